//! What a client counts, and what several clients' counts make together.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::time::Instant;

use hdrhistogram::Histogram;

use super::Measured;
use crate::model::Latency;

/// A longer latency counts as this, ns.
const LATENCY_NS_MAX: u64 = 60_000_000_000;
/// Significant decimal digits of a recorded latency.
const DIGITS: u8 = 3;
/// Points of a latency curve between two halvings of what lies beyond.
const STEPS: u32 = 8;
/// Halvings of a latency curve.
const HALVINGS: u32 = 24;

/// Counts while a window is open, and keeps the first failure's words from the start.
#[derive(Debug, Default)]
pub(super) struct Tally {
    window: RefCell<Option<Window>>,
    first_error: RefCell<Option<String>>,
}

#[derive(Debug)]
struct Window {
    began: Instant,
    measured: Measured,
    latency_ns: Histogram<u64>,
}

impl Tally {
    /// Opens a window; what another has counted is forgotten.
    pub(super) fn begin(&self) -> io::Result<()> {
        let latency_ns = Histogram::new_with_bounds(1, LATENCY_NS_MAX, DIGITS).map_err(io::Error::other)?;
        *self.window.borrow_mut() =
            Some(Window { began: Instant::now(), measured: Measured::default(), latency_ns });
        Ok(())
    }

    /// Closes the window; what it has counted.
    pub(super) fn end(&self) -> Measured {
        let Some(window) = self.window.take() else { return Measured::default() };
        let seconds = window.began.elapsed().as_secs_f64();
        let recorded = window.latency_ns.iter_recorded();
        let latency_ns = recorded.map(|step| (step.value_iterated_to(), step.count_at_value())).collect();
        Measured { seconds, latency_ns, ..window.measured }
    }

    /// An operation is done, which has moved `bytes`; its latency counts from `since`.
    pub(super) fn done(&self, since: Instant, bytes: u64) {
        if let Some(window) = &mut *self.window.borrow_mut() {
            window.measured.operations += 1;
            window.measured.bytes += bytes;
            window
                .latency_ns
                .saturating_record(u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
    }

    /// A stream has moved bytes.
    pub(super) fn moved(&self, bytes: usize) {
        if let Some(window) = &mut *self.window.borrow_mut() {
            window.measured.bytes += bytes as u64;
        }
    }

    /// An operation has failed.
    pub(super) fn failed(&self, words: &str) {
        self.first_error.borrow_mut().get_or_insert_with(|| words.into());
        if let Some(window) = &mut *self.window.borrow_mut() {
            window.measured.errors += 1;
            window.measured.first_error.get_or_insert_with(|| words.into());
        }
    }

    /// The words of the first failure, in a window or not.
    pub(super) fn first_error(&self) -> Option<String> {
        self.first_error.borrow().clone()
    }
}

/// What several clients have measured at the same time: counts are added, the time is the longest.
pub(crate) fn merge(parts: &[Measured]) -> Measured {
    let mut whole = Measured::default();
    let mut latency_ns = BTreeMap::new();
    for part in parts {
        whole.seconds = whole.seconds.max(part.seconds);
        whole.operations += part.operations;
        whole.bytes += part.bytes;
        whole.errors += part.errors;
        if whole.first_error.is_none() {
            whole.first_error.clone_from(&part.first_error);
        }
        for &(value, count) in &part.latency_ns {
            *latency_ns.entry(value).or_insert(0) += count;
        }
    }
    whole.latency_ns = latency_ns.into_iter().collect();
    whole
}

/// The latency, µs, of recorded values, ns, and how often each occurred, ascending. `None` without any.
///
/// The curve has as many points between a half and a quarter as between 1/1000 and 1/2000 of the operations, and ends
/// with the slowest.
pub(crate) fn latency(recorded: &[(u64, u64)]) -> Option<Latency> {
    let mut below = 0;
    let sums: Vec<(u64, u64)> = recorded
        .iter()
        .map(|&(value, count)| {
            below += count;
            (below, value)
        })
        .collect();
    let &(total, slowest) = sums.last().filter(|&&(total, _)| total > 0)?;
    let at = |quantile: f64| {
        let rank = ((quantile * total as f64).ceil() as u64).clamp(1, total);
        let index = sums.partition_point(|&(below, _)| below < rank);
        sums.get(index).map_or(slowest, |&(_, value)| value) as f64 / 1000.0
    };
    // Beyond one operation there is nothing left to halve.
    let halvings = (u64::BITS - total.leading_zeros()).min(HALVINGS);
    let quantiles = (0..halvings * STEPS).map(|step| {
        let left = 0.5_f64.powi((step / STEPS) as i32);
        1.0 - left + left / 2.0 * f64::from(step % STEPS) / f64::from(STEPS)
    });
    let curve = quantiles.chain([1.0]).map(|quantile| (short(quantile), at(quantile))).collect();
    Some(Latency { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: at(1.0), curve })
}

/// Without digits that no run has operations for.
fn short(quantile: f64) -> f64 {
    (quantile * 1e7).round() / 1e7
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_happens_in_the_window_counts() {
        let (tally, now) = (Tally::default(), Instant::now());
        tally.failed("early");
        tally.done(now, 1);
        tally.begin().unwrap();
        tally.done(now, 2);
        tally.moved(3);
        tally.failed("first");
        tally.failed("second");
        let measured = tally.end();
        tally.done(now, 4);
        assert_eq!((measured.operations, measured.bytes, measured.errors), (1, 5, 2));
        assert_eq!(measured.first_error.as_deref(), Some("first"));
        assert_eq!(measured.latency_ns.iter().map(|&(_, count)| count).sum::<u64>(), 1);
        assert_eq!(tally.first_error().as_deref(), Some("early"));
        assert_eq!(tally.end(), Measured::default());
    }

    #[test]
    fn merging_adds_counts_and_latencies() {
        let part = |seconds, error: Option<&str>, latency_ns| Measured {
            seconds,
            operations: 2,
            bytes: 10,
            errors: u64::from(error.is_some()),
            first_error: error.map(Into::into),
            latency_ns,
        };
        let parts = [part(1.0, None, vec![(5, 1), (7, 1)]), part(2.0, Some("b"), vec![(6, 1), (7, 1)])];
        let whole = merge(&parts);
        assert_eq!(whole.latency_ns, [(5, 1), (6, 1), (7, 2)]);
        assert_eq!((whole.seconds, whole.operations, whole.bytes, whole.errors), (2.0, 4, 20, 1));
        assert_eq!(whole.first_error.as_deref(), Some("b"));
        assert_eq!(merge(&[]), Measured::default());
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_values() {
        let recorded: Vec<(u64, u64)> = (1..=1000).map(|value| (value * 1000, 1)).collect();
        let latency = latency(&recorded).unwrap();
        assert_eq!((latency.p50, latency.p90, latency.p99), (500.0, 900.0, 990.0));
        assert_eq!((latency.p999, latency.max), (999.0, 1000.0));
        assert_eq!(latency.curve.first(), Some(&(0.0, 1.0)));
        assert_eq!(latency.curve.last(), Some(&(1.0, 1000.0)));
        assert!(latency.curve.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1));
        assert!(latency.curve.iter().filter(|point| point.0 > 0.99).count() > 20, "the tail is visible");
    }

    #[test]
    fn a_curve_stays_short_and_nothing_has_none() {
        assert_eq!(latency(&[]), None);
        assert_eq!(latency(&[(5, 0)]), None);
        assert_eq!(latency(&[(5000, 1)]).unwrap().max, 5.0);
        let many = latency(&[(1, u64::MAX / 4), (2, 1)]).unwrap();
        assert!(many.curve.len() <= 200, "{}", many.curve.len());
    }
}
