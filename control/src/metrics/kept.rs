//! What a shard has counted of a series that it has forgotten. Another shard may show the same labels still, and a sum
//! over the shards that fell would be read as a restart. Totals are kept as long as any shard shows the labels.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use halo_core::labels::{Labels, host_lookup};
use halo_core::report::{DnsSeries, HostSeries, SeriesReport, ShardReport};

use super::dns;

/// The totals that shards have forgotten.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    series: Table<SeriesReport>,
    dns: Table<DnsSeries>,
    hosts: Table<HostSeries>,
}

impl Kept {
    /// Adds to the reports of all shards, in their order, what they have forgotten since the last time.
    pub(crate) fn settle(&mut self, reports: &mut [ShardReport]) {
        self.series.settle(reports, |report| &mut report.series);
        self.dns.settle(reports, |report| &mut report.dns);
        self.hosts.settle(reports, |report| &mut report.hosts);
    }
}

/// Totals under some labels.
trait Total: Clone {
    type Key: Hash + Eq;

    fn key(&self) -> Self::Key;

    /// What a shard no longer shows of what it showed `before`.
    fn lost(before: &Self, now: Option<&Self>) -> Option<Self>;

    fn merge(&mut self, other: &Self);
}

#[derive(Debug)]
struct Table<T: Total>(HashMap<T::Key, Held<T>>);

impl<T: Total> Default for Table<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

#[derive(Debug)]
struct Held<T> {
    /// What each shard showed last.
    shown: Vec<Option<T>>,
    /// What shards have forgotten.
    lost: Option<T>,
}

impl<T: Total> Table<T> {
    fn settle(&mut self, reports: &mut [ShardReport], of: fn(&mut ShardReport) -> &mut Vec<T>) {
        let mut now: HashMap<T::Key, Vec<Option<T>>> = HashMap::with_capacity(self.0.len());
        let count = reports.len();
        for (shard, report) in reports.iter_mut().enumerate() {
            for total in of(report).iter() {
                let shown = now.entry(total.key()).or_insert_with(|| vec![None; count]);
                add(&mut shown[shard], total);
            }
        }
        let mut before = std::mem::take(&mut self.0);
        for (key, shown) in now {
            let held = before.remove(&key);
            let mut lost = None;
            if let Some(held) = held {
                lost = held.lost;
                for (before, now) in held.shown.iter().zip(&shown) {
                    let gone = before.as_ref().and_then(|before| T::lost(before, now.as_ref()));
                    gone.iter().for_each(|gone| add(&mut lost, gone));
                }
            }
            if let (Some(lost), Some(first)) = (&lost, reports.first_mut()) {
                of(first).push(lost.clone());
            }
            self.0.insert(key, Held { shown, lost });
        }
    }
}

fn add<T: Total>(sum: &mut Option<T>, more: &T) {
    match sum {
        Some(sum) => sum.merge(more),
        None => *sum = Some(more.clone()),
    }
}

impl Total for SeriesReport {
    type Key = Arc<Labels>;

    fn key(&self) -> Self::Key {
        self.labels.clone()
    }

    fn lost(before: &Self, now: Option<&Self>) -> Option<Self> {
        let begins_anew = now.is_none_or(|now| {
            now.opened < before.opened
                || now.closed.iter().zip(before.closed).any(|(now, before)| *now < before)
                || now.bytes_received < before.bytes_received
                || now.bytes_sent < before.bytes_sent
        });
        // It is the shards that show it.
        begins_anew.then(|| Self { is_live: false, ..before.clone() })
    }

    fn merge(&mut self, other: &Self) {
        Self::merge(self, other);
    }
}

impl Total for DnsSeries {
    type Key = String;

    fn key(&self) -> Self::Key {
        dns::labels(self)
    }

    fn lost(before: &Self, now: Option<&Self>) -> Option<Self> {
        now.is_none_or(|now| now.requests < before.requests).then(|| before.clone())
    }

    fn merge(&mut self, other: &Self) {
        dns::add(self, other);
    }
}

impl Total for HostSeries {
    type Key = String;

    fn key(&self) -> Self::Key {
        host_lookup(self.source.as_deref(), &self.hostname)
    }

    /// Several pods count under the same labels: of what they have counted, the part of one that goes is missing.
    fn lost(before: &Self, now: Option<&Self>) -> Option<Self> {
        let lookups = before.lookups.saturating_sub(now.map_or(0, |now| now.lookups));
        (lookups > 0).then(|| Self { lookups, ..before.clone() })
    }

    fn merge(&mut self, other: &Self) {
        self.lookups += other.lookups;
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{dns, series};
    use super::*;

    fn reports(shown: [bool; 2]) -> Vec<ShardReport> {
        let report = |(shard, shown)| match shown {
            true => dns(ShardReport { shard, series: vec![series("web")], ..ShardReport::default() }),
            false => ShardReport { shard, ..ShardReport::default() },
        };
        shown.into_iter().enumerate().map(report).collect()
    }

    /// The sums over the shards: connections, DNS queries and lookups.
    fn sums(kept: &mut Kept, shown: [bool; 2]) -> [u64; 3] {
        let mut all = reports(shown);
        kept.settle(&mut all);
        let opened = all.iter().flat_map(|report| &report.series).map(|series| series.opened).sum();
        let queries = all.iter().flat_map(|report| &report.dns).map(|series| series.requests).sum();
        let lookups = all.iter().flat_map(|report| &report.hosts).map(|host| host.lookups).sum();
        [opened, queries, lookups]
    }

    #[test]
    fn what_one_shard_forgets_is_kept_while_another_shows_it_and_no_longer() {
        let mut kept = Kept::default();
        for (shown, expected) in [
            ([true, true], [8, 10, 8]),
            ([true, false], [8, 10, 8]),
            ([true, false], [8, 10, 8]),
            // It begins again where it was forgotten.
            ([true, true], [12, 15, 12]),
            ([false, true], [12, 15, 12]),
            ([false, false], [0, 0, 0]),
            ([true, false], [4, 5, 4]),
        ] {
            assert_eq!(sums(&mut kept, shown), expected, "{shown:?}");
        }
    }

    #[test]
    fn a_series_that_begins_again_between_two_looks_goes_on_where_it_was() {
        let mut kept = Kept::default();
        sums(&mut kept, [true, true]);
        let mut all = reports([true, true]);
        all[1].series[0].opened = 1;
        kept.settle(&mut all);
        let lost = &all[0].series[1];
        assert_eq!((lost.opened, lost.bytes_sent, lost.is_live), (4, 20, false));
    }
}
