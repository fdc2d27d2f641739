//! Metrics on port 15020: the shards' totals and series summed, and what the control thread knows. Names, labels and
//! their order are those of the stock node proxy; what is Halo's own begins with `halo_`.

mod connections;
mod dns;
pub(crate) mod flight;
pub(crate) mod kept;
mod process;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod text;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use flight::{Form, Rendering, Turn};
use halo_core::labels::escape;
use halo_core::report::{ShardReport, View};
use halo_core::zds::PodState;
use hyper::StatusCode;
use tokio::task::{spawn, spawn_blocking};

use crate::admin::{Node, Reports};
use crate::certs::CertificateTotals;
use crate::certs::keeper::State;
use crate::http::{Answer, Encoding, Request, Service};
use crate::log::LogControl;
use crate::proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use crate::shards::Shards;
use crate::xds::XdsStatus;
pub(crate) use text::{Format, Text};

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
            "/metrics" | "/stats/prometheus" => self.0.clone().metrics(&request).await,
            _ => Answer::text(StatusCode::NOT_FOUND, "Not Found\n"),
        }
    }
}

impl<S: Shards> Node<S> {
    /// The metrics, in the form and coding that the request asks for.
    pub(crate) async fn metrics(self: Arc<Self>, request: &Request) -> Answer {
        let (format, encoding) =
            (Format::accepted(&request.accept), Encoding::accepted(&request.accept_encoding));
        let body = match self.rendering.turn((format, encoding)).await {
            Turn::Fresh(body) => Ok(body),
            // A task of its own: a client that goes does not give the turn to the next one before this one is done.
            Turn::Own(turn) => {
                let written = spawn(async move { self.render((format, encoding), turn).await });
                written.await.map_err(Into::into).and_then(|written| written)
            }
        };
        match body {
            Ok(body) => Answer::encoded(format.content_type(), encoding, body),
            Err(error) => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    async fn render(&self, (format, encoding): Form, turn: Rendering) -> io::Result<Bytes> {
        let mut reports = self.reports(View::Series).await;
        let kept = self.kept.clone();
        let mut text = Text::new(format);
        self.control_metrics(&mut text);
        process::runtime(&mut text);
        // Many series take a while to write down; the control thread has other things to do meanwhile.
        let written = spawn_blocking(move || {
            if reports.complete {
                kept.lock().unwrap_or_else(PoisonError::into_inner).settle(&mut reports.all);
            }
            shards(&mut text, reports);
            process::descriptors(&mut text);
            Ok(turn.finish(encoding.encode(text.finish().into_bytes())?))
        });
        written.await.map_err(Into::into).and_then(|written| written)
    }

    fn control_metrics(&self, text: &mut Text) {
        let node = self;
        text.head("istio_build", "gauge", "Version of the mesh that this proxy belongs to.");
        let mut tag = String::new();
        escape(&mut tag, &node.config.mesh_version);
        text.sample("istio_build", &format!("{{component=\"ztunnel\",tag=\"{tag}\"}}"), 1);
        let pods = node.pods.borrow().clone();
        let named = || pods.values().filter(|pod| !pod.resident);
        let count = |state| named().filter(|pod| pod.state == state).count() as u64;
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
        let help =
            "Policies of which a part is not understood: an ALLOW admits nobody by it, a DENY refuses by it.";
        text.gauge("halo_policies_not_understood", help, not_understood);
        let certificates = node.certificates.borrow().clone();
        let valid = certificates.iter().filter(|(_, state)| matches!(state, State::Available(_))).count();
        text.gauge("halo_certificates_wanted", "Identities of the node's pods.", certificates.len() as u64);
        text.gauge("halo_certificates_valid", "Identities with a certificate.", valid as u64);
        certificate_totals(text, &node.certificate_totals);
        if let Some(losses) = node.log.as_ref().map(LogControl::losses) {
            let help = "Log lines that were lost because nobody read fast enough.";
            text.counter("halo_log_lines_dropped_total", help, losses.dropped());
            let help = "Writes of log lines that failed.";
            text.counter("halo_log_writes_failed_total", help, losses.failed());
        }
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

/// Writes what the shards say. Where one of them is missing, sums over the shards are left out: a total that fell and
/// came back would be read as a restart.
fn shards(text: &mut Text, Reports { all: mut reports, complete }: Reports) {
    text.gauge("halo_shards", "Shards that answered.", reports.len() as u64);
    if !complete {
        return;
    }
    connections::write(text, &mut reports);
    dns::write(text, &reports);
    let sum = |of: fn(&ShardReport) -> u64| reports.iter().map(of).sum();
    text.gauge("halo_shard_tunnels", "Open tunnels.", sum(|report| report.tunnels as u64));
    text.gauge("halo_shard_connections", "Open connections.", sum(|report| report.connections_open as u64));
    let behind = reports.iter().map(|report| report.generation).min().unwrap_or(0);
    text.gauge("halo_shard_generation", "Oldest generation that a shard decides by.", behind);
    text.head("halo_shard_cpu_nanoseconds_total", "counter", "CPU time of each shard.");
    for report in &reports {
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
