//! Prometheus metrics on port 15020, in the text format 0.0.4, written by hand: the shards' totals summed, and what the
//! control thread knows. No series has a label whose values grow.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::SystemTime;

use halo_core::report::ShardReport;
use halo_core::zds::PodState;
use hyper::StatusCode;

use crate::admin::Node;
use crate::certs::CertificateTotals;
use crate::certs::keeper::State;
use crate::http::{Answer, Request, Service};
use crate::proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use crate::shards::Shards;
use crate::xds::XdsStatus;

/// The metrics server.
#[derive(Debug)]
pub(crate) struct MetricsService<S>(pub(crate) Arc<Node<S>>);

impl<S> Clone for MetricsService<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: Shards> Service for MetricsService<S> {
    async fn answer(&self, request: Request) -> Answer {
        match request.path.as_str() {
            "/metrics" | "/stats/prometheus" => Answer::metrics(self.text().await),
            _ => Answer::text(StatusCode::NOT_FOUND, "Not Found\n"),
        }
    }
}

/// A text under construction.
#[derive(Default)]
pub(crate) struct Text(pub(crate) String);

impl Text {
    pub(crate) fn counter(&mut self, name: &str, help: &str, total: u64) {
        self.single(name, "counter", help, total);
    }

    pub(crate) fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.single(name, "gauge", help, value);
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.head(name, kind, help);
        self.sample(name, "", value);
    }

    pub(crate) fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    pub(crate) fn sample(&mut self, name: &str, labels: &str, value: u64) {
        self.line(format_args!("{name}{labels} {value}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a text cannot fail.
        let _ = writeln!(self.0, "{line}");
    }
}

impl<S: Shards> MetricsService<S> {
    async fn text(&self) -> String {
        let reports = self.0.reports().await;
        let mut text = Text::default();
        self.control(&mut text);
        shards(&mut text, &reports);
        text.0
    }

    fn control(&self, text: &mut Text) {
        let node = &self.0;
        text.head("istio_build", "gauge", "Version of the mesh that this proxy belongs to.");
        let tag = escape(&node.config.mesh_version);
        text.sample("istio_build", &format!("{{component=\"ztunnel\",tag=\"{tag}\"}}"), 1);
        let pods = node.pods.borrow().clone();
        let count = |state| pods.values().filter(|pod| pod.state == state).count() as u64;
        let pending = count(PodState::Pending) + count(PodState::Starting);
        text.gauge("workload_manager_active_proxy_count", "Pods that are served.", count(PodState::Running));
        text.gauge("workload_manager_pending_proxy_count", "Pods that are not served yet.", pending);
        let (started, stopped) = node.totals.totals();
        text.counter("workload_manager_proxies_started_total", "Pods started.", started);
        text.counter("workload_manager_proxies_stopped_total", "Pods stopped.", stopped);
        let snapshot = node.publisher.snapshot();
        text.gauge("halo_generation", "Generation of the mesh in force.", snapshot.generation);
        let published = node.publisher.totals();
        text.counter("halo_published_edits_total", "Changes of the mesh put in force.", published.edits);
        let spent = "Time to put them in force and hand each generation to the shards.";
        text.counter("halo_publish_nanoseconds_total", spent, published.ns);
        text.gauge("halo_publish_nanoseconds_max", "The longest of these times.", published.ns_max);
        text.gauge("halo_workloads", "Workloads known.", snapshot.workloads.len() as u64);
        text.gauge("halo_services", "Services known.", snapshot.services.len() as u64);
        text.gauge("halo_policies", "Policies known.", snapshot.policies.len() as u64);
        let not_understood = snapshot.policies.not_understood() as u64;
        let help = "Policies of which a part is not understood, so that they admit nobody by it.";
        text.gauge("halo_policies_not_understood", help, not_understood);
        let certificates = node.certificates.borrow().clone();
        let valid = certificates.iter().filter(|(_, state)| matches!(state, State::Available(_))).count();
        text.gauge("halo_certificates_wanted", "Identities of the node's pods.", certificates.len() as u64);
        text.gauge("halo_certificates_valid", "Identities with a certificate.", valid as u64);
        certificate_totals(text, &node.certificate_totals);
        if let Some(source) = node.sources.local_status() {
            text.counter("halo_source_loads_total", "Texts of the local source taken.", source.loads);
            text.counter("halo_source_errors_total", "Texts of the local source refused.", source.errors);
        }
        if let Some((_, status)) = node.sources.xds_status() {
            xds(text, &status);
        }
    }
}

fn certificate_totals(text: &mut Text, totals: &CertificateTotals) {
    text.counter("halo_certificates_issued_total", "Certificates issued.", totals.issued());
    text.counter("halo_certificates_failed_total", "Requests for certificates that failed.", totals.failed());
    let help = "Certificates that took the place of one in force.";
    text.counter("halo_certificate_rotations_total", help, totals.rotations());
    text.gauge("halo_certificates_in_flight", "Requests for certificates that are out.", totals.in_flight());
    if let Some(expiry_s) = totals.expiry_s(SystemTime::now()) {
        text.gauge("halo_certificate_expiry_seconds", "Until the first certificate in force ends.", expiry_s);
    }
}

fn xds(text: &mut Text, status: &XdsStatus) {
    let counters = &status.counters;
    text.gauge(
        "halo_xds_connected",
        "Whether there is a stream to the control plane.",
        status.connected.into(),
    );
    let name = "istio_xds_connection_terminations_total";
    text.head(name, "counter", "Ends of streams to the control plane, and of attempts to have one.");
    let ends = &counters.terminations;
    for (reason, total) in [
        ("ConnectionError", ends.connection_error),
        ("Error", ends.error),
        ("Reconnect", ends.reconnect),
        ("Complete", ends.complete),
    ] {
        text.sample(name, &format!("{{reason=\"{reason}\"}}"), total);
    }
    let types = [(ADDRESS_TYPE, counters.addresses), (AUTHORIZATION_TYPE, counters.policies)];
    of_types(
        text,
        ("istio_xds_message_total", "Responses received."),
        types.map(|(url, of)| (url, of.messages)),
    );
    let name = "istio_xds_message_bytes_total";
    of_types(text, (name, "Bytes of responses received."), types.map(|(url, of)| (url, of.bytes)));
    let session = &counters.session;
    text.counter("halo_xds_resources_rejected_total", "Resources refused by name.", session.rejected);
    text.counter("halo_xds_demands_total", "Questions asked of the control plane.", session.demands);
    let help = "Questions not asked for want of room.";
    text.counter("halo_xds_demands_refused_total", help, session.demands_refused);
    let help = "Subscriptions given up for want of room.";
    text.counter("halo_xds_demands_evicted_total", help, session.demands_evicted);
    text.counter("halo_xds_demands_answered_total", "Questions answered.", session.demands_answered);
}

fn of_types(text: &mut Text, (name, help): (&str, &str), totals: [(&str, u64); 2]) {
    text.head(name, "counter", help);
    for (url, total) in totals {
        text.sample(name, &format!("{{url=\"{url}\"}}"), total);
    }
}

fn shards(text: &mut Text, reports: &[ShardReport]) {
    text.gauge("halo_shards", "Shards that answered.", reports.len() as u64);
    let sum = |of: fn(&ShardReport) -> u64| reports.iter().map(of).sum();
    text.gauge("halo_shard_tunnels", "Open tunnels.", sum(|report| report.tunnels as u64));
    text.gauge("halo_shard_connections", "Open connections.", sum(|report| report.connections.len() as u64));
    let behind = reports.iter().map(|report| report.generation).min().unwrap_or(0);
    text.gauge("halo_shard_generation", "Oldest generation that a shard decides by.", behind);
    text.head("halo_shard_cpu_nanoseconds_total", "counter", "CPU time of each shard.");
    for report in reports {
        let label = format!("{{shard=\"{}\"}}", report.shard);
        text.sample("halo_shard_cpu_nanoseconds_total", &label, report.cpu_ns);
    }
    let mut totals: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, total) in reports.iter().flat_map(|report| &report.counters) {
        *totals.entry(name).or_default() += total;
    }
    for (name, total) in totals {
        text.counter(&format!("halo_shard_{name}_total"), "Summed over the shards.", total);
    }
}

/// A label's value (Prometheus text format): backslash, quote and line feed are escaped.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
