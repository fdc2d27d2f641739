//! Queries over TCP: two bytes of length before each message (RFC 7766), any number of them on a connection, answered in
//! the order in which their answers come.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use halo_core::dns::message::Protocol;

use super::query::{self, Sink};
use super::{CONNECTIONS_PER_POD_MAX, MESSAGE_MAX};
use crate::pod::Pod;
use crate::ring;
use crate::shard::Shard;
use crate::socket::{Closer, Listener, Reader, Socket, Writer};
use crate::wake::{Finally, Signal, both};

/// A connection that brings no whole query for so long is closed, ms; as long a client may take to read an answer.
const IDLE_MS_MAX: u64 = 5_000;
/// Queries of one connection that may be on their way; while there are more it is not read.
const QUEUED_MAX: usize = 32;
/// Pause after an accept that failed, ms.
const BACKOFF_MS: u64 = 100;

/// Accepts until the pod's listeners are stopped.
pub(super) async fn run(shard: Rc<Shard>, pod: Rc<Pod>, listener: Rc<Listener>) {
    loop {
        let accepted = listener.accept().await;
        if pod.is_stopped() {
            return;
        }
        let Ok((socket, _)) = accepted else {
            shard.counters.accept_backoffs.increment();
            ring::sleep_ms(BACKOFF_MS).await;
            continue;
        };
        let open = &pod.dns.connections;
        if open.get() >= CONNECTIONS_PER_POD_MAX {
            shard.counters.dns_connections_shed.increment();
            socket.closer().abort();
            continue;
        }
        open.set(open.get() + 1);
        shard.spawn(serve(shard.clone(), pod.clone(), socket));
    }
}

/// A connection's answers, between those who have them and who writes them.
#[derive(Default)]
struct Answers {
    queue: RefCell<VecDeque<Vec<u8>>>,
    /// Queries that were read, and whose answers are not written.
    pending: Cell<usize>,
    /// No more queries come.
    ended: Cell<bool>,
    /// Answers can no longer be written.
    lost: Cell<bool>,
    changed: Signal,
    written: Signal,
}

impl Answers {
    fn finish_one(&self) {
        self.pending.set(self.pending.get() - 1);
        self.changed.notify();
        self.written.notify();
    }
}

async fn serve(shard: Rc<Shard>, pod: Rc<Pod>, socket: Socket) {
    let _open = Finally(|| pod.dns.connections.set(pod.dns.connections.get() - 1));
    let closer = socket.closer();
    let _held = pod.dns.hold(closer.clone());
    let Socket { reader, writer, .. } = socket;
    let answers = Rc::new(Answers::default());
    let reading = async {
        read(&shard, &pod, reader, (&closer, &answers)).await;
        answers.ended.set(true);
        answers.changed.notify();
    };
    both(reading, write(&shard, writer, (&closer, &answers))).await;
}

/// Reads queries until the client ends, or is idle.
async fn read(
    shard: &Rc<Shard>,
    pod: &Rc<Pod>,
    mut reader: Reader,
    (closer, answers): (&Closer, &Rc<Answers>),
) {
    let idle = || {
        let closer = closer.clone();
        shard.timers.after(IDLE_MS_MAX, move || closer.end_reading())
    };
    let mut deadline = idle();
    let mut buffer = Vec::new();
    loop {
        while let Some(message) = next_message(&mut buffer) {
            let Ok(message) = message else { return };
            while answers.pending.get() >= QUEUED_MAX && !answers.lost.get() {
                answers.written.wait().await;
            }
            answers.pending.set(answers.pending.get() + 1);
            let sink = ToConnection { answers: answers.clone(), sent: Cell::new(false) };
            query::take(shard, pod, &message, sink);
            deadline = idle();
        }
        if reader.readable().await.is_err() {
            break;
        }
        buffer.reserve(512);
        let (read, kept) = reader.read(buffer).await;
        buffer = kept;
        if answers.lost.get() || !matches!(read, Ok(1..)) {
            break;
        }
    }
    drop(deadline);
}

/// Takes the first whole message off the bytes that have come; an error where it is longer than any query.
fn next_message(buffer: &mut Vec<u8>) -> Option<Result<Vec<u8>, ()>> {
    let length = usize::from(u16::from_be_bytes(*buffer.first_chunk()?));
    if length > MESSAGE_MAX {
        return Some(Err(()));
    }
    if buffer.len() < 2 + length {
        return None;
    }
    let rest = buffer.split_off(2 + length);
    let mut message = std::mem::replace(buffer, rest);
    message.drain(..2);
    Some(Ok(message))
}

/// Writes answers until the last query has its own.
async fn write(shard: &Rc<Shard>, mut writer: Writer, (closer, answers): (&Closer, &Rc<Answers>)) {
    loop {
        let next = answers.queue.borrow_mut().pop_front();
        let Some(bytes) = next else {
            if answers.ended.get() && answers.pending.get() == 0 {
                closer.end();
                return;
            }
            answers.changed.wait().await;
            continue;
        };
        let slow = closer.clone();
        let _deadline = shard.timers.after(IDLE_MS_MAX, move || slow.abort());
        let written = writer.write_all(bytes).await.0;
        answers.finish_one();
        if written.is_err() {
            answers.lost.set(true);
            answers.written.notify();
            closer.abort();
            return;
        }
    }
}

/// The way of one query's answer to its connection.
struct ToConnection {
    answers: Rc<Answers>,
    sent: Cell<bool>,
}

impl Sink for ToConnection {
    fn protocol(&self) -> Protocol {
        Protocol::Tcp
    }

    fn send(&self, bytes: Vec<u8>) {
        let Ok(length) = u16::try_from(bytes.len()) else { return };
        let mut framed = Vec::with_capacity(2 + bytes.len());
        framed.extend(length.to_be_bytes());
        framed.extend(bytes);
        self.answers.queue.borrow_mut().push_back(framed);
        self.sent.set(true);
        self.answers.changed.notify();
    }
}

impl Drop for ToConnection {
    fn drop(&mut self) {
        // A query that gets no answer is done as well.
        if !self.sent.get() {
            self.answers.finish_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_taken_once_it_is_whole_and_the_rest_is_kept() {
        let mut buffer = vec![0];
        assert_eq!(next_message(&mut buffer), None);
        buffer.extend([3, 7, 8]);
        assert_eq!(next_message(&mut buffer), None);
        buffer.extend([9, 0, 0, 0]);
        assert_eq!(next_message(&mut buffer), Some(Ok(vec![7, 8, 9])));
        assert_eq!(next_message(&mut buffer), Some(Ok(vec![])));
        assert_eq!((next_message(&mut buffer), &buffer[..]), (None, &[0][..]));
        let mut long = vec![0xff, 0xff];
        assert_eq!(next_message(&mut long), Some(Err(())));
    }
}
