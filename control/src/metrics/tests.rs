pub(crate) mod open_metrics;

use halo_core::id::Identity;
use halo_core::labels::{Ends, Labels, Party, Traffic};
use halo_core::outcome::ResponseFlag;
use halo_core::report::{ByDirection, Direction, DnsSeries, HostSeries, SeriesReport, Transport};
use halo_core::workload::Workload;

use super::*;

/// The labels of connections, in order.
const T: &[&str] = &[
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
    "source_region",
    "source_zone",
    "destination_region",
    "destination_zone",
];

/// The labels of lookups of hosts, in order.
const HOST: &[&str] = &[
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "hostname",
];

/// The labels of DNS queries, in order.
const DNS: &[&str] =
    &["request_query_type", "request_protocol", "source_canonical_service", "source_canonical_revision"];

/// Connections that a revocation does not reach. There are none here, and a family without samples is left out.
pub(crate) const WITHOUT_SAMPLES: &str = "istio_crl_untracked_connections";

/// Families that the stock node proxy has and users' dashboards read: name, type, unit, labels in order.
pub(crate) const STOCK: &[(&str, &str, &str, &[&str])] = &[
    ("istio_tcp_connections_opened", "counter", "", T),
    ("istio_tcp_connections_closed", "counter", "", T),
    ("istio_tcp_connections_failed", "counter", "", T),
    ("istio_tcp_received_bytes", "counter", "bytes", T),
    ("istio_tcp_sent_bytes", "counter", "bytes", T),
    ("istio_tcp_sockets_open", "gauge", "", &["reporter"]),
    ("istio_crl_policy_rejections", "counter", "", &["reporter"]),
    (WITHOUT_SAMPLES, "counter", "", &["reporter"]),
    ("istio_on_demand_dns", "counter", "", HOST),
    ("istio_dns_requests", "counter", "", DNS),
    ("istio_dns_upstream_requests", "counter", "", DNS),
    ("istio_dns_upstream_failures", "counter", "", DNS),
    ("istio_dns_upstream_request_duration_seconds", "histogram", "seconds", DNS),
    ("istio_build", "gauge", "", &["component", "tag"]),
    ("istio_xds_connection_terminations", "counter", "", &["reason"]),
    ("istio_xds_message", "counter", "", &["url"]),
    ("istio_xds_message_bytes", "counter", "bytes", &["url"]),
    ("workload_manager_active_proxy_count", "gauge", "", &[]),
    ("workload_manager_pending_proxy_count", "gauge", "", &[]),
    ("workload_manager_proxies_started", "counter", "", &[]),
    ("workload_manager_proxies_stopped", "counter", "", &[]),
    ("process_open_fds", "gauge", "", &[]),
    ("process_max_fds", "gauge", "", &[]),
    ("tokio_num_workers", "gauge", "", &[]),
    ("tokio_num_alive_tasks", "gauge", "", &[]),
    ("tokio_global_queue_depth", "gauge", "", &[]),
    ("tokio_worker_total_busy_duration_seconds", "counter", "seconds", &["worker"]),
    ("tokio_worker_park_count", "counter", "", &["worker"]),
    ("tokio_worker_park_unpark_count", "counter", "", &["worker"]),
];

fn labels(source: &str) -> Arc<Labels> {
    let workload = Workload { workload_name: source.into(), ..Workload::default() };
    let traffic = Traffic {
        direction: Direction::Outbound,
        transport: Transport::Hbone,
        ends: Ends { source: Party::Known(Arc::new(workload)), ..Ends::default() },
        source_identity: Some(Identity::new("td", "shop", source)),
        destination_identity: None,
    };
    Arc::new(traffic.labels())
}

/// A series with something in each of its families.
pub(crate) fn series(source: &str) -> SeriesReport {
    let mut closed = [0; ResponseFlag::ALL.len()];
    closed[ResponseFlag::None as usize] = 2;
    closed[ResponseFlag::Deny as usize] = 1;
    SeriesReport {
        labels: labels(source),
        opened: 4,
        closed,
        bytes_received: 10,
        bytes_sent: 20,
        is_live: true,
    }
}

fn report(shard: usize, series: Vec<SeriesReport>) -> ShardReport {
    let sockets = ByDirection { outbound: 3, inbound: 2 };
    ShardReport { shard, sockets, counters: vec![("reads", 3)], series, ..ShardReport::default() }
}

/// A report with something in each family of DNS.
pub(crate) fn dns(report: ShardReport) -> ShardReport {
    let queries = DnsSeries {
        query_type: "aaaa",
        protocol: "udp",
        canonical_service: "cart".into(),
        requests: 5,
        forwarded: 3,
        failed: 1,
        buckets: [0, 1, 0, 1, 0, 0],
        duration_s: 7.25,
        ..DnsSeries::default()
    };
    let source = Some(Arc::new(Workload { workload_name: "web".into(), ..Workload::default() }));
    let host = HostSeries { source, hostname: "example.com".into(), lookups: 4 };
    ShardReport { dns: vec![queries], hosts: vec![host], ..report }
}

fn rendered(format: Format, reports: Vec<ShardReport>) -> String {
    let mut text = Text::new(format);
    shards(&mut text, Reports { all: reports, complete: true });
    text.finish()
}

fn of<'a>(families: &'a [open_metrics::Family], name: &str) -> &'a open_metrics::Family {
    families.iter().find(|family| family.name == name).unwrap_or_else(|| panic!("no family {name}"))
}

fn label<'a>(sample: &'a open_metrics::Sample, name: &str) -> &'a str {
    &sample.labels.iter().find(|(other, _)| other == name).unwrap().1
}

/// Checks what is there of the stock families for name, type, unit and labels; gives the names of those that are.
pub(crate) fn check_stock(text: &str) -> Vec<&'static str> {
    let families = open_metrics::read(text);
    let mut found = Vec::new();
    for (name, kind, unit, labels) in STOCK {
        let Some(family) = families.iter().find(|family| family.name == *name) else {
            continue;
        };
        assert_eq!((family.kind.as_str(), family.unit.as_str()), (*kind, *unit), "{name}");
        assert!(!family.help.is_empty());
        for sample in &family.samples {
            let names = sample.labels.iter().map(|(name, _)| name.as_str()).filter(|name| *name != "le");
            let names: Vec<_> = names.collect();
            assert_eq!(names, *labels, "{name}");
        }
        found.push(*name);
    }
    found
}

#[test]
fn connections_have_the_stock_names_types_units_and_labels() {
    let text = rendered(Format::OpenMetrics, vec![report(0, vec![series("web"), series("a\"b\\c\nd")])]);
    let found = check_stock(&text);
    let expected: Vec<_> = STOCK.iter().map(|(name, ..)| *name).take(7).collect();
    assert_eq!(found, expected);
    let families = open_metrics::read(&text);
    let opened = of(&families, "istio_tcp_connections_opened");
    assert_eq!(label(&opened.samples[0], "source_workload"), "a\"b\\c\nd");
    assert_eq!(label(&opened.samples[1], "source_principal"), "spiffe://td/ns/shop/sa/web");
}

#[test]
fn the_control_planes_connection_has_the_stock_names_and_labels() {
    let mut text = Text::new(Format::OpenMetrics);
    xds(&mut text, &XdsStatus::default());
    let expected = ["istio_xds_connection_terminations", "istio_xds_message", "istio_xds_message_bytes"];
    assert_eq!(check_stock(&text.finish()), expected);
}

#[test]
fn ends_are_told_apart_by_their_flags_and_bytes_and_beginnings_are_not() {
    let text = rendered(Format::OpenMetrics, vec![report(0, vec![series("web")])]);
    let families = open_metrics::read(&text);
    let by_flag = |name: &str| -> Vec<_> {
        let samples = of(&families, name).samples.iter();
        samples.map(|sample| (label(sample, "response_flags").to_owned(), sample.value)).collect()
    };
    assert_eq!(by_flag("istio_tcp_connections_opened"), [("-".to_owned(), 4.0)]);
    assert_eq!(by_flag("istio_tcp_connections_closed"), [("-".to_owned(), 2.0), ("DENY".to_owned(), 1.0)]);
    assert_eq!(by_flag("istio_tcp_connections_failed"), [("DENY".to_owned(), 1.0)]);
    assert_eq!(by_flag("istio_tcp_received_bytes"), [("-".to_owned(), 10.0)]);
    assert_eq!(by_flag("istio_tcp_sent_bytes"), [("-".to_owned(), 20.0)]);
}

#[test]
fn shards_are_summed_and_a_series_is_shown_while_one_of_them_shows_it() {
    let hidden = SeriesReport { is_live: false, ..series("web") };
    let gone = SeriesReport { is_live: false, ..series("old") };
    let reports = vec![report(0, vec![hidden, gone]), report(1, vec![series("web")])];
    let families = open_metrics::read(&rendered(Format::OpenMetrics, reports));
    let opened = &of(&families, "istio_tcp_connections_opened").samples;
    assert_eq!((opened.len(), opened[0].value), (1, 8.0));
    let sockets = &of(&families, "istio_tcp_sockets_open").samples;
    let sockets: Vec<_> = sockets.iter().map(|sample| (label(sample, "reporter"), sample.value)).collect();
    assert_eq!(sockets, [("source", 6.0), ("destination", 4.0)]);
}

#[test]
fn dns_is_summed_over_the_shards_and_its_buckets_add_up() {
    let reports = vec![dns(report(0, Vec::new())), dns(report(1, Vec::new()))];
    let text = rendered(Format::OpenMetrics, reports);
    let of_dns: Vec<_> = check_stock(&text).into_iter().filter(|name| name.contains("dns")).collect();
    assert_eq!(of_dns.len(), 5);
    let families = open_metrics::read(&text);
    let durations = of(&families, "istio_dns_upstream_request_duration_seconds");
    let values: Vec<_> = durations.samples.iter().map(|sample| sample.value).collect();
    assert_eq!(values, [14.5, 6.0, 0.0, 2.0, 2.0, 4.0, 4.0, 4.0, 6.0]);
    let bounds: Vec<_> = durations.samples[2..].iter().map(|sample| label(sample, "le")).collect();
    assert_eq!(bounds, ["0.0005", "0.001", "0.01", "0.1", "1.0", "5.0", "+Inf"]);
    let hosts = &of(&families, "istio_on_demand_dns").samples;
    assert_eq!((hosts.len(), hosts[0].value, label(&hosts[0], "hostname")), (1, 8.0, "example.com"));
}

#[test]
fn sums_over_the_shards_are_left_out_where_one_of_them_is_missing() {
    let mut text = Text::new(Format::OpenMetrics);
    shards(&mut text, Reports { all: vec![dns(report(0, vec![series("web")]))], complete: false });
    let families = open_metrics::read(&text.finish());
    let names: Vec<_> = families.iter().map(|family| family.name.as_str()).collect();
    assert_eq!(names, ["halo_shards"]);
}

#[test]
fn families_without_samples_are_left_out() {
    let text = rendered(Format::Prometheus, vec![report(0, Vec::new())]);
    assert!(!text.contains("istio_tcp_connections") && !text.contains("_bytes_total"), "{text}");
    assert!(text.contains("# TYPE halo_shard_reads_total counter\nhalo_shard_reads_total 3\n"), "{text}");
    assert!(text.ends_with("# EOF\n"));
}
