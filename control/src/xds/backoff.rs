//! Decides how long to wait before the next attempt to have a stream.
//!
//! Attempts that fail wait twice as long each time. A stream that was of use makes the next attempt an early one;
//! streams that end soon again and again do not, however useful, so that no server can make a node spin.

use std::time::Duration;

/// The first pause.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// A stream that lasts this long is steady.
const STEADY: Duration = Duration::from_secs(10);

/// Counts failures in a row.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    /// Attempts in a row that were of no use.
    failures: u32,
    /// Streams in a row that ended soon.
    short: u32,
}

impl Backoff {
    /// There was no stream.
    pub(super) fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// A stream has ended after some time. It was of use if something came over it, or if it ended in a way that a
    /// server's restart ends streams.
    pub(super) fn ended(&mut self, lasted: Duration, of_use: bool) {
        self.failures = if of_use { 0 } else { self.failures.saturating_add(1) };
        self.short = if lasted >= STEADY { 0 } else { self.short.saturating_add(1) };
    }

    /// The pause before the next attempt: between half and all of what the failures call for, by a random number.
    pub(super) fn pause(&self, random: u64) -> Duration {
        let doublings = self.failures.max(self.short).saturating_sub(1).min(16);
        let whole = PAUSE_MIN.saturating_mul(1 << doublings).min(PAUSE_MAX);
        let half = whole / 2;
        let share = u32::try_from(random % 1000).unwrap_or_default();
        half + half * share / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);

    /// The longest pause that may come.
    fn longest(backoff: &Backoff) -> Duration {
        backoff.pause(999)
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_vary_by_half() {
        let mut backoff = Backoff::default();
        backoff.failed();
        assert_eq!(backoff.pause(0), Duration::from_millis(5));
        assert!(
            longest(&backoff) > Duration::from_millis(9) && longest(&backoff) < Duration::from_millis(10)
        );
        backoff.failed();
        assert_eq!(backoff.pause(0), Duration::from_millis(10));
        for _ in 0..100 {
            backoff.failed();
        }
        assert_eq!(backoff.pause(0), PAUSE_MAX / 2);
    }

    #[test]
    fn a_stream_of_use_makes_the_next_attempt_an_early_one() {
        let mut backoff = Backoff::default();
        for _ in 0..20 {
            backoff.failed();
        }
        backoff.ended(MOMENT, true);
        assert!(longest(&backoff) < Duration::from_millis(10));
        backoff.ended(STEADY, true);
        assert!(longest(&backoff) < Duration::from_millis(10));
    }

    #[test]
    fn streams_that_always_end_soon_do_not_make_a_node_spin() {
        let mut backoff = Backoff::default();
        for _ in 0..20 {
            backoff.ended(MOMENT, true);
        }
        assert_eq!(backoff.pause(0), PAUSE_MAX / 2);
        backoff.ended(STEADY, true);
        assert!(longest(&backoff) < Duration::from_millis(10));
    }
}
