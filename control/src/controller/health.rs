//! Readiness and metrics of the control plane, by default on port 15014.

use std::path::PathBuf;
use std::sync::Arc;

use hyper::{Method, StatusCode};
use tokio::sync::watch;

use super::server::Services;
use super::stats::{Loss, TypeStats};
use super::world::{ResourceType, World};
use crate::http::{Answer, Request, Service};
use crate::metrics::Text;
use crate::source::SourceStatus;

/// What the server shows.
#[derive(Clone)]
pub(crate) struct HealthService {
    pub(crate) world: World,
    pub(crate) services: Arc<Services>,
    pub(crate) file: Arc<PathBuf>,
    pub(crate) source: watch::Receiver<SourceStatus>,
    pub(crate) closing: watch::Receiver<bool>,
}

impl Service for HealthService {
    async fn answer(&self, request: Request) -> Answer {
        match request.path.as_str() {
            "/healthz/ready" if request.method == Method::GET => self.readiness(),
            "/metrics" => Answer::metrics(self.metrics()),
            _ => Answer::text(StatusCode::NOT_FOUND, "Not Found\n"),
        }
    }
}

impl HealthService {
    /// Ready once the state has been read, and from then on: a wrong text leaves in force what was there, and is told.
    fn readiness(&self) -> Answer {
        let (status, edition) = (self.source.borrow().clone(), self.world.edition());
        let file = self.file.display();
        if *self.closing.borrow() {
            return Answer::text(StatusCode::INTERNAL_SERVER_ERROR, "not ready: shutting down\n");
        }
        if !edition.is_known() {
            let why = status.error.as_deref().unwrap_or("it has not been read");
            return Answer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("not ready: {file}: {why}\n"));
        }
        let generation = edition.generation();
        let mut text = String::from("ready\n");
        if let Some(error) = status.error {
            text.push_str(&format!("{file} is refused, generation {generation} stays in force: {error}\n"));
        }
        if let Some(problem) = self.services.authenticator.problem() {
            text.push_str(&format!("credentials are refused, those before stay in force: {problem}\n"));
        }
        Answer::text(StatusCode::OK, text)
    }

    fn metrics(&self) -> String {
        let (mut text, stats) = (Text::default(), &self.services.stats);
        let edition = self.world.edition();
        text.gauge("halo_controller_generation", "Generation of the mesh in force.", edition.generation());
        text.head("halo_controller_resources", "gauge", "Resources known.");
        for kind in ResourceType::ALL {
            text.sample("halo_controller_resources", &label(kind), edition.table(kind).len() as u64);
        }
        text.head("halo_controller_resource_bytes", "gauge", "Bytes of all resources, encoded.");
        for kind in ResourceType::ALL {
            text.sample("halo_controller_resource_bytes", &label(kind), edition.table(kind).bytes() as u64);
        }
        let source = self.source.borrow().clone();
        text.counter("halo_source_loads_total", "Texts of the state file taken.", source.loads);
        text.counter("halo_source_errors_total", "Texts of the state file refused.", source.errors);
        text.gauge("halo_controller_connections", "Open connections.", stats.connections.value());
        text.gauge("halo_controller_streams", "Open discovery streams.", stats.streams.value());
        let failed = "Connections that could not be accepted.";
        text.counter("halo_controller_accepts_failed_total", failed, stats.accepts_failed.total());
        let refused = "Connections refused because too many had made no call that was let in.";
        text.counter("halo_controller_newcomers_refused_total", refused, stats.newcomers_refused.total());
        let failed = "TLS handshakes that failed.";
        text.counter("halo_controller_handshakes_failed_total", failed, stats.handshakes_failed.total());
        text.head("halo_controller_streams_lost_total", "counter", "Streams that their clients did not end.");
        for why in Loss::ALL {
            let labels = format!("{{reason=\"{}\"}}", why.label());
            text.sample("halo_controller_streams_lost_total", &labels, stats.lost(why).total());
        }
        self.by_type(&mut text);
        self.certificates(&mut text);
        text.finish()
    }

    fn certificates(&self, text: &mut Text) {
        let counts = self.services.certificates.counts();
        text.counter("halo_controller_certificates_issued_total", "Certificates issued.", counts.issued);
        let name = "halo_controller_certificates_refused_total";
        text.head(name, "counter", "Certificate requests refused.");
        for (reason, total) in &counts.refused {
            text.sample(name, &format!("{{reason=\"{reason}\"}}"), *total);
        }
        let name = "halo_controller_auth_failures_total";
        text.head(name, "counter", "Calls refused for their credentials.");
        for (reason, total) in self.services.stats.refused.totals() {
            text.sample(name, &format!("{{reason=\"{reason}\"}}"), total);
        }
    }

    fn by_type(&self, text: &mut Text) {
        type Value = fn(&TypeStats) -> u64;
        let series: [(&str, &str, &str, Value); 6] = [
            ("subscribers", "gauge", "Streams that subscribe.", |stats| stats.subscribers.value()),
            ("pushes_total", "counter", "Responses.", |stats| stats.pushes.total()),
            ("full_pushes_total", "counter", "Responses with everything.", |stats| stats.full_pushes.total()),
            ("push_bytes_total", "counter", "Bytes of resources in responses.", |stats| stats.bytes.total()),
            ("acks_total", "counter", "Responses taken by their clients.", |stats| {
                stats.acknowledged.total()
            }),
            ("nacks_total", "counter", "Responses refused by their clients.", |stats| stats.refused.total()),
        ];
        for (name, kind, help, value) in series {
            let name = format!("halo_controller_{name}");
            text.head(&name, kind, help);
            for of in ResourceType::ALL {
                text.sample(&name, &label(of), value(self.services.stats.of(of)));
            }
        }
    }
}

fn label(kind: ResourceType) -> String {
    format!("{{type=\"{}\"}}", kind.label())
}
