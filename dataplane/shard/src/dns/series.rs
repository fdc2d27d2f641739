//! What metrics say of pods' DNS: counts and times by query type, protocol and canonical service.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use halo_core::dns::message::{Protocol, RecordType, type_label};
use halo_core::report::{DNS_BUCKETS_S, DnsSeries};
use halo_core::workload::Workload;

use crate::ring;

/// Series at once; what would be one more is counted with the unknown.
const SERIES_MAX: usize = 4_096;
/// A series that nothing was added to for so long is forgotten, ms.
const IDLE_MS_MAX: u64 = 3_600_000;

/// The series of one shard.
#[derive(Default)]
pub(crate) struct Series(RefCell<HashMap<Key, Entry>>);

/// Query type, protocol, canonical service, revision.
type Key = (&'static str, &'static str, Arc<str>, Arc<str>);

struct Entry {
    series: DnsSeries,
    used_ms: u64,
}

/// How one query is counted.
#[derive(Debug, Clone)]
pub(super) struct Labels(Key);

impl Labels {
    pub(super) fn new(record_type: RecordType, protocol: Protocol, source: Option<&Workload>) -> Self {
        let (service, revision) = source.map_or_else(Default::default, |source| {
            (source.canonical_name.clone(), source.canonical_revision.clone())
        });
        Self((type_label(record_type), protocol.label(), service, revision))
    }
}

impl Series {
    /// Counts a query.
    pub(super) fn requested(&self, labels: &Labels) {
        self.change(labels, |series| series.requests += 1);
    }

    /// Counts a forwarded query that took so long.
    pub(super) fn forwarded(&self, labels: &Labels, duration_s: f64, failed: bool) {
        self.change(labels, |series| {
            series.forwarded += 1;
            series.failed += u64::from(failed);
            series.duration_s += duration_s;
            let buckets = series.buckets.iter_mut().zip(DNS_BUCKETS_S);
            if let Some((bucket, _)) = buckets.into_iter().find(|(_, bound_s)| duration_s <= *bound_s) {
                *bucket += 1;
            }
        });
    }

    fn change(&self, labels: &Labels, change: impl FnOnce(&mut DnsSeries)) {
        let mut all = self.0.borrow_mut();
        let (query_type, protocol, ..) = labels.0;
        let mut key = labels.0.clone();
        if all.len() >= SERIES_MAX && !all.contains_key(&key) {
            key = (query_type, protocol, "".into(), "".into());
        }
        let entry = all.entry(key).or_insert_with_key(|(_, _, service, revision)| {
            let series = DnsSeries {
                query_type,
                protocol,
                canonical_service: service.clone(),
                canonical_revision: revision.clone(),
                ..DnsSeries::default()
            };
            Entry { series, used_ms: 0 }
        });
        entry.used_ms = ring::now_ms();
        change(&mut entry.series);
    }

    /// All of them, without those that were not used for long.
    pub(crate) fn report(&self) -> Vec<DnsSeries> {
        let mut all = self.0.borrow_mut();
        let now_ms = ring::now_ms();
        all.retain(|_, entry| now_ms.saturating_sub(entry.used_ms) < IDLE_MS_MAX);
        all.values().map(|entry| entry.series.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_counted_under_its_type_protocol_and_service_and_in_one_bucket() {
        let series = Series::default();
        let cart =
            Workload { canonical_name: "cart".into(), canonical_revision: "v1".into(), ..Default::default() };
        let labels = Labels::new(RecordType::AAAA, Protocol::Udp, Some(&cart));
        series.requested(&labels);
        series.forwarded(&labels, 0.02, false);
        series.requested(&labels);
        series.forwarded(&labels, 6.0, true);
        series.requested(&Labels::new(RecordType::Unknown(65_000), Protocol::Tcp, None));
        let mut all = series.report();
        all.sort_by_key(|series| series.query_type);
        let [aaaa, unknown] = &all[..] else { panic!("two series: {all:?}") };
        assert_eq!((aaaa.query_type, aaaa.protocol, &*aaaa.canonical_service), ("aaaa", "udp", "cart"));
        assert_eq!((aaaa.requests, aaaa.forwarded, aaaa.failed), (2, 2, 1));
        assert_eq!(aaaa.buckets, [0, 0, 0, 1, 0, 0], "what took longer than all is in none");
        assert!((aaaa.duration_s - 6.02).abs() < 1e-9);
        assert_eq!((unknown.query_type, unknown.protocol, unknown.requests), ("unknown", "tcp", 1));
    }

    #[test]
    fn services_beyond_the_bound_are_counted_together() {
        let series = Series::default();
        for number in 0..SERIES_MAX + 10 {
            let source = Workload { canonical_name: format!("s{number}").into(), ..Default::default() };
            series.requested(&Labels::new(RecordType::A, Protocol::Udp, Some(&source)));
        }
        let all = series.report();
        assert_eq!(all.len(), SERIES_MAX + 1);
        assert_eq!(all.iter().map(|series| series.requests).sum::<u64>(), SERIES_MAX as u64 + 10);
    }
}
