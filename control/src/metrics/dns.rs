//! What pods asked of DNS, and the hosts that were looked up for their connections, summed over the shards.

use std::collections::BTreeMap;

use halo_core::labels::{escape, host_lookup};
use halo_core::report::{DNS_BUCKETS_S, DnsSeries, ShardReport};

use super::text::Text;

/// Writes the families of DNS.
pub(super) fn write(text: &mut Text, reports: &[ShardReport]) {
    let mut hosts: BTreeMap<String, u64> = BTreeMap::new();
    for host in reports.iter().flat_map(|report| &report.hosts) {
        *hosts.entry(host_lookup(host.source.as_deref(), &host.hostname)).or_default() += host.lookups;
    }
    let name = "istio_on_demand_dns_total";
    text.head(name, "counter", "Lookups of hosts that connections were addressed to.");
    for (labels, lookups) in &hosts {
        text.sample(name, &format!("{{{labels}}}"), lookups);
    }
    queries(text, &merged(reports));
}

fn queries(text: &mut Text, all: &BTreeMap<String, DnsSeries>) {
    type Total = fn(&DnsSeries) -> u64;
    let families: [(&str, &str, Total); 3] = [
        ("istio_dns_requests_total", "DNS queries of pods.", |series| series.requests),
        (
            "istio_dns_upstream_requests_total",
            "DNS queries that the mesh does not answer itself.",
            |series| series.forwarded,
        ),
        ("istio_dns_upstream_failures_total", "DNS queries that no server answered.", |series| series.failed),
    ];
    for (name, help, total) in families {
        text.head(name, "counter", help);
        for (labels, series) in all.iter().filter(|(_, series)| total(series) > 0) {
            text.sample(name, &format!("{{{labels}}}"), total(series));
        }
    }
    let name = "istio_dns_upstream_request_duration_seconds";
    text.head(name, "histogram", "Time until DNS servers answered.");
    for (labels, series) in all.iter().filter(|(_, series)| series.forwarded > 0) {
        text.sample(&format!("{name}_sum"), &format!("{{{labels}}}"), series.duration_s);
        text.sample(&format!("{name}_count"), &format!("{{{labels}}}"), series.forwarded);
        let mut below = 0;
        for (bound_s, count) in DNS_BUCKETS_S.iter().zip(series.buckets) {
            below += count;
            text.sample(&format!("{name}_bucket"), &format!("{{le=\"{bound_s:?}\",{labels}}}"), below);
        }
        text.sample(&format!("{name}_bucket"), &format!("{{le=\"+Inf\",{labels}}}"), series.forwarded);
    }
}

/// The series of all shards by their labels.
fn merged(reports: &[ShardReport]) -> BTreeMap<String, DnsSeries> {
    let mut all: BTreeMap<String, DnsSeries> = BTreeMap::new();
    for series in reports.iter().flat_map(|report| &report.dns) {
        add(all.entry(labels(series)).or_default(), series);
    }
    all
}

/// Adds what was counted under the same labels.
pub(super) fn add(sum: &mut DnsSeries, series: &DnsSeries) {
    sum.requests += series.requests;
    sum.forwarded += series.forwarded;
    sum.failed += series.failed;
    sum.duration_s += series.duration_s;
    for (total, more) in sum.buckets.iter_mut().zip(series.buckets) {
        *total += more;
    }
}

pub(super) fn labels(series: &DnsSeries) -> String {
    let mut text =
        format!("request_query_type=\"{}\",request_protocol=\"{}\"", series.query_type, series.protocol);
    for (name, value) in [
        ("source_canonical_service", &series.canonical_service),
        ("source_canonical_revision", &series.canonical_revision),
    ] {
        text.push_str(&format!(",{name}=\""));
        escape(&mut text, if value.is_empty() { "unknown" } else { value });
        text.push('"');
    }
    text
}
