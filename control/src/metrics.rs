//! Prometheus metrics on port 15020, in the text format 0.0.4, written by hand: the shards' totals summed, and what the
//! control thread knows. No series has a label whose values grow.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use halo_core::report::ShardReport;
use halo_core::zds::PodState;
use hyper::StatusCode;

use crate::admin::Node;
use crate::certs::keeper::State;
use crate::http::{Answer, Request, Service};
use crate::shards::Shards;

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
        text.gauge("halo_workloads", "Workloads known.", snapshot.workloads.len() as u64);
        text.gauge("halo_services", "Services known.", snapshot.services.len() as u64);
        text.gauge("halo_policies", "Policies known.", snapshot.policies.len() as u64);
        let certificates = node.certificates.borrow().clone();
        let valid = certificates.iter().filter(|(_, state)| matches!(state, State::Available(_))).count();
        text.gauge("halo_certificates_wanted", "Identities of the node's pods.", certificates.len() as u64);
        text.gauge("halo_certificates_valid", "Identities with a certificate.", valid as u64);
        let source = node.source.borrow().clone();
        text.counter("halo_source_loads_total", "Texts of the local source taken.", source.loads);
        text.counter("halo_source_errors_total", "Texts of the local source refused.", source.errors);
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
