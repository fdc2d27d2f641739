//! What a shard measures of itself: its CPU time, and how long the phases of a connection take.

use std::cell::RefCell;
use std::time::Instant;

use halo_core::report::LatencyReport;
use hdrhistogram::Histogram;
use nix::time::{ClockId, clock_gettime};

/// Largest latency told apart, µs; longer ones count as this.
const LATENCY_US_MAX: u64 = 60_000_000;

/// How long phases took since the shard started.
pub(crate) struct Latencies {
    dial: RefCell<Histogram<u32>>,
    answer: RefCell<Histogram<u32>>,
    connect: RefCell<Histogram<u32>>,
}

/// A phase of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Phase {
    /// A tunnel's TCP connect and TLS handshake, as client.
    Dial,
    /// From CONNECT sent to its answer.
    Answer,
    /// TCP connect to an application of the pod.
    Connect,
}

impl Default for Latencies {
    fn default() -> Self {
        let empty = || {
            // Two digits up to a minute take 12 KiB; the bounds are constants that the library accepts.
            let histogram = Histogram::new_with_bounds(1, LATENCY_US_MAX, 2);
            RefCell::new(histogram.expect("the bounds are valid"))
        };
        Self { dial: empty(), answer: empty(), connect: empty() }
    }
}

impl Latencies {
    /// Records that a phase took from `begin` to now.
    pub(crate) fn record(&self, phase: Phase, begin: Instant) {
        let us = u64::try_from(begin.elapsed().as_micros()).unwrap_or(LATENCY_US_MAX);
        self.of(phase).borrow_mut().saturating_record(us.max(1));
    }

    /// What has been recorded, phase by phase.
    pub(crate) fn report(&self) -> Vec<LatencyReport> {
        let phases = [("dial", Phase::Dial), ("answer", Phase::Answer), ("connect", Phase::Connect)];
        let report = phases.map(|(name, phase)| {
            let histogram = self.of(phase).borrow();
            LatencyReport {
                name,
                count: histogram.len(),
                p50_us: histogram.value_at_quantile(0.5),
                p99_us: histogram.value_at_quantile(0.99),
                max_us: histogram.max(),
            }
        });
        report.into()
    }

    fn of(&self, phase: Phase) -> &RefCell<Histogram<u32>> {
        match phase {
            Phase::Dial => &self.dial,
            Phase::Answer => &self.answer,
            Phase::Connect => &self.connect,
        }
    }
}

/// CPU time of the calling thread, ns; 0 where the kernel does not say.
pub(crate) fn thread_cpu_ns() -> u64 {
    let spent = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    spent.map_or(0, |spent| {
        let seconds = u64::try_from(spent.tv_sec()).unwrap_or(0);
        seconds * 1_000_000_000 + u64::try_from(spent.tv_nsec()).unwrap_or(0)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_latency_is_reported_in_its_phase_within_two_digits() {
        let latencies = Latencies::default();
        let begin = Instant::now().checked_sub(Duration::from_millis(50)).unwrap();
        latencies.record(Phase::Answer, begin);
        let report = latencies.report();
        let counts: Vec<_> = report.iter().map(|phase| (phase.name, phase.count)).collect();
        assert_eq!(counts, [("dial", 0), ("answer", 1), ("connect", 0)]);
        assert!(report[1].p50_us >= 49_000 && report[1].max_us >= report[1].p50_us);
    }

    #[test]
    fn a_threads_cpu_time_grows_with_its_work() {
        let before = thread_cpu_ns();
        let mut sum = 0_u64;
        while thread_cpu_ns() == before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(thread_cpu_ns() > before);
    }
}
