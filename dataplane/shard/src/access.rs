//! The shard's side of the access log: lines leave as data, in batches, through a bounded queue.
//!
//! A reader that is slow costs lines, which are counted, never a connection's time; and what nobody wants to read is
//! not made.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use halo_core::access::{AccessLevel, AccessLine, Event};
use halo_core::counters::Counters;

use crate::timer::{Deadline, Timers};

/// Lines that make a batch.
const BATCH_MAX: usize = 64;
/// How long a line waits for others, ms.
const WAIT_MS_MAX: u64 = 5;

/// Takes a batch of lines; `false` when there is no room for it. It must not block.
pub type AccessSink = Arc<dyn Fn(Vec<AccessLine>) -> bool + Send + Sync>;

/// Where a shard's access lines go, and which it is to make.
#[derive(Clone)]
pub struct AccessOutput {
    /// The lines wanted.
    pub level: AccessLevel,
    /// What takes them.
    pub sink: AccessSink,
}

/// Lines on their way out.
pub(crate) struct AccessLog {
    output: AccessOutput,
    counters: Arc<Counters>,
    batch: RefCell<Vec<AccessLine>>,
    deadline: RefCell<Option<Deadline>>,
}

impl AccessLog {
    pub(crate) fn new(output: AccessOutput, counters: Arc<Counters>) -> Rc<Self> {
        Rc::new(Self { output, counters, batch: RefCell::default(), deadline: RefCell::default() })
    }

    /// Whether lines of this event are wanted.
    pub(crate) fn wants(&self, event: Event) -> bool {
        self.output.level.wants(event)
    }

    /// Takes a line.
    pub(crate) fn push(self: &Rc<Self>, line: AccessLine, timers: &Rc<Timers>) {
        let mut batch = self.batch.borrow_mut();
        if batch.capacity() == 0 {
            batch.reserve_exact(BATCH_MAX);
        }
        batch.push(line);
        let length = batch.len();
        drop(batch);
        if length >= BATCH_MAX {
            self.flush();
        } else if self.deadline.borrow().is_none() {
            let log = self.clone();
            self.deadline.replace(Some(timers.after(WAIT_MS_MAX, move || log.flush())));
        }
    }

    /// Sends what waits.
    pub(crate) fn flush(&self) {
        drop(self.deadline.take());
        let batch = self.batch.take();
        let lines = batch.len() as u64;
        if lines > 0 && !(self.output.sink)(batch) {
            self.counters.access_lines_dropped.add(lines);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::sync::mpsc::{self, Receiver};
    use std::time::SystemTime;

    use halo_core::outcome::Reason;
    use halo_core::report::Direction;

    use super::*;
    use crate::ring::{self, Ring, RingKind};

    /// An output for this many batches, and its other end. Every event is wanted.
    pub(crate) fn output(batches: usize) -> (AccessOutput, Receiver<Vec<AccessLine>>) {
        let (queue, lines) = mpsc::sync_channel(batches);
        let level = AccessLevel::default();
        level.set(u8::MAX);
        (AccessOutput { level, sink: Arc::new(move |batch| queue.try_send(batch).is_ok()) }, lines)
    }

    fn line() -> AccessLine {
        AccessLine {
            policy: None,
            time: SystemTime::UNIX_EPOCH,
            event: Event::Complete,
            direction: Direction::Inbound,
            source: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 4000),
            destination: None,
            authority: None,
            traffic: None,
            bytes: (0, 0),
            duration_ms: 0,
            reason: Reason::Complete,
            more: 0,
        }
    }

    #[test]
    fn a_full_batch_leaves_at_once_and_a_small_one_soon() {
        Ring::build(RingKind::Auto).unwrap().run(async {
            let (output, lines) = output(8);
            let log = AccessLog::new(output, Arc::default());
            let timers = Rc::new(Timers::default());
            ring::spawn(timers.clone().run(), |_| ());
            for _ in 0..BATCH_MAX {
                log.push(line(), &timers);
            }
            assert_eq!(lines.try_recv().unwrap().len(), BATCH_MAX);
            log.push(line(), &timers);
            assert!(lines.try_recv().is_err());
            let batch = loop {
                match lines.try_recv() {
                    Ok(batch) => break batch,
                    Err(_) => ring::sleep_ms(1).await,
                }
            };
            assert_eq!(batch.len(), 1);
        });
    }

    #[test]
    fn a_reader_that_does_not_read_costs_lines_and_each_is_counted() {
        let (output, lines) = output(1);
        let counters = Arc::new(Counters::default());
        let log = AccessLog::new(output, counters.clone());
        for _ in 0..3 {
            log.batch.borrow_mut().extend([line(), line()]);
            log.flush();
        }
        assert_eq!(lines.try_iter().count(), 1);
        assert_eq!(counters.access_lines_dropped.total(), 4);
    }
}
