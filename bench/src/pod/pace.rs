//! When the requests of an open loop are due, and who sends them: whichever connection is free, first come, first
//! served. What nobody is free for waits, and its latency grows.
//!
//! The runtime's own timers count milliseconds, which is several requests at 5 000 a second. A timer of the kernel wakes
//! us soon after a request is due, without spinning: at 5 000 a second on a busy virtual machine of two cores, half of
//! the time within 40 µs and 99 of 100 times within 100 µs. That is part of the latency, in every subject alike.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::tally::Tally;

/// Requests that wait for a connection; further ones fail.
const DUES_MAX: usize = 1 << 20;
/// The timer fires no more often; at higher rates several requests are due at a time.
const TICK_MIN_NS: u64 = 50_000;

/// Requests that are due, by when they were.
#[derive(Debug, Default)]
pub(super) struct Dues {
    queue: RefCell<VecDeque<Instant>>,
    news: Notify,
}

impl Dues {
    /// Takes the request that has been due the longest, or the next one.
    pub(super) async fn next(&self) -> Instant {
        loop {
            // Another connection may have become free between the news and us.
            if let Some(due) = self.queue.borrow_mut().pop_front() {
                return due;
            }
            self.news.notified().await;
        }
    }

    /// A request is due; `false` if too many wait.
    fn push(&self, due: Instant) -> bool {
        let mut queue = self.queue.borrow_mut();
        let fits = queue.len() < DUES_MAX;
        if fits {
            queue.push_back(due);
            self.news.notify_one();
        }
        fits
    }
}

/// Makes requests due at a fixed rate.
#[derive(Debug)]
pub(super) struct Pacer {
    timer: AsyncFd<Timer>,
    /// Time from one request to the next, ns: whole, so that the timer and the requests never drift apart.
    interval_ns: u64,
    tick_ns: u64,
}

impl Pacer {
    /// A rate of 0, or of more than one a nanosecond, is `InvalidInput`.
    pub(super) fn new(per_second: u32) -> io::Result<Self> {
        let interval_ns = 1_000_000_000_u64.checked_div(per_second.into()).filter(|&ns| ns > 0);
        let impossible = || io::Error::new(io::ErrorKind::InvalidInput, format!("a rate of {per_second}/s"));
        let interval_ns = interval_ns.ok_or_else(impossible)?;
        let tick_ns = interval_ns * TICK_MIN_NS.div_ceil(interval_ns);
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        Ok(Self { timer: Timer::watched(timer)?, interval_ns, tick_ns })
    }

    /// Makes requests due from now on, without an end. Fails when the timer does.
    pub(super) async fn run(&self, dues: &Dues, tally: &Tally) -> io::Result<()> {
        let began = Instant::now();
        let tick = TimeSpec::from_duration(Duration::from_nanos(self.tick_ns));
        let every = Expiration::IntervalDelayed(tick, tick);
        self.timer.get_ref().0.set(every, TimerSetTimeFlags::empty())?;
        let mut next_ns = self.interval_ns;
        loop {
            self.tick().await?;
            let elapsed_ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
            while next_ns <= elapsed_ns {
                if !dues.push(began + Duration::from_nanos(next_ns)) {
                    tally.failed("more requests are due than can wait");
                }
                next_ns += self.interval_ns;
            }
        }
    }

    /// The timer's next firing.
    async fn tick(&self) -> io::Result<()> {
        loop {
            // Reading starts the timer again; it tells the poller nothing, so we do.
            self.timer.readable().await?.clear_ready();
            match self.timer.get_ref().0.wait() {
                Ok(()) => return Ok(()),
                Err(Errno::EAGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[derive(Debug)]
struct Timer(TimerFd);

impl Timer {
    #[allow(
        deprecated,
        reason = "what replaces it is unsafe; the timer owns its descriptor, which never changes"
    )]
    fn watched(timer: TimerFd) -> io::Result<AsyncFd<Self>> {
        AsyncFd::with_interest(Self(timer), Interest::READABLE)
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_hold_whole_intervals() {
        let ticks = |per_second| {
            super::super::local(async move {
                let pacer = Pacer::new(per_second).unwrap();
                (pacer.interval_ns, pacer.tick_ns)
            })
            .unwrap()
        };
        assert_eq!(ticks(1), (1_000_000_000, 1_000_000_000));
        assert_eq!(ticks(5_000), (200_000, 200_000));
        assert_eq!(ticks(100_000), (10_000, 50_000));
        let (interval_ns, tick_ns) = ticks(294_967_295);
        assert!(tick_ns.is_multiple_of(interval_ns) && tick_ns >= TICK_MIN_NS);
    }

    #[test]
    fn an_impossible_rate_is_refused() {
        assert_eq!(Pacer::new(0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(Pacer::new(2_000_000_000).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn the_oldest_due_request_goes_first_and_too_many_are_refused() {
        let (dues, now) = (Dues::default(), Instant::now());
        let due = |n| now + Duration::from_nanos(n);
        let pushed = (0..DUES_MAX as u64).all(|n| dues.push(due(n)));
        assert!(pushed && !dues.push(now));
        let taken = super::super::local(async { (dues.next().await, dues.next().await) }).unwrap();
        assert_eq!(taken, (due(0), due(1)));
    }
}
