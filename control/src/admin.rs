//! The admin server: the mesh and the node as they are now, and a way to end the process. It answers on the node's
//! loopback address only, in the shapes that the stock node proxy's tools read; what is Halo's own is under `halo`.

pub mod dump;
pub mod heap;
mod logging;
mod profile;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use halo_core::report::{ShardReport, View};
use hyper::{Method, StatusCode};
use tokio::sync::{Mutex, Notify, watch};
use tokio::time::timeout;
use tracing::warn;

use crate::certs::{CertificateTotals, CertificateView};
use crate::config::Config;
use crate::http::{Answer, Request, Service};
use crate::log::LogControl;
use crate::metrics::flight::Flight;
use crate::metrics::kept::Kept;
use crate::node::sources::Sources;
use crate::pods::{PodTotals, Pods};
use crate::publish::Publisher;
use crate::readiness::Readiness;
use crate::shards::Shards;
use heap::HeapProfiler;

/// How long the shards may take to say what they are doing; each does between two turns.
const INSPECT_MAX: Duration = Duration::from_secs(2);

const INDEX: &str = "<!DOCTYPE html><title>Halo</title><h1>Halo node proxy</h1><ul>\
    <li><a href=\"config_dump\">config_dump</a>: the mesh, the certificates, the pods and the shards as they are now\
    <li>logging (POST): the log levels; ?level=access:debug,info changes them, ?reset goes back\
    <li><a href=\"debug/pprof/profile\">debug/pprof/profile</a>: a CPU profile; ?seconds=10 (1-300), \
    ?frequency=100 (1-1000 Hz)\
    <li><a href=\"debug/pprof/heap\">debug/pprof/heap</a>: a heap profile, while the profiler is active\
    <li><a href=\"debug/pprof/heap/profiling\">debug/pprof/heap/profiling</a>: whether it is; ?activate=true or false\
    <li>quitquitquit (POST): end after draining</ul>\n";

/// The node as admin and metrics look at it.
#[derive(Debug)]
pub(crate) struct Node<S> {
    pub(crate) config: Config,
    pub(crate) shards: S,
    pub(crate) publisher: Publisher,
    pub(crate) pods: watch::Receiver<Pods>,
    pub(crate) totals: Arc<PodTotals>,
    pub(crate) certificates: watch::Receiver<CertificateView>,
    pub(crate) certificate_totals: Arc<CertificateTotals>,
    pub(crate) sources: Sources,
    pub(crate) readiness: Readiness,
    pub(crate) log: Option<LogControl>,
    pub(crate) heap: Option<Arc<dyn HeapProfiler>>,
    /// Who renders metrics, and for whom.
    pub(crate) rendering: Flight,
    /// What shards have counted and forgotten.
    pub(crate) kept: Arc<std::sync::Mutex<Kept>>,
    /// Held while the mesh is written down for a dump.
    pub(crate) dumping: Arc<Mutex<()>>,
    /// Held while a CPU profile is taken.
    pub(crate) profiling: Mutex<()>,
    /// Told once the process is to end.
    pub(crate) quit: Notify,
    /// Whether the shards have drained.
    pub(crate) drained: watch::Sender<bool>,
}

impl<S: Shards> Node<S> {
    /// What the shards are doing. None of them is told of if one does not answer in time: whoever asks wants to see
    /// the rest of the node then all the more.
    pub(crate) async fn reports(&self, view: View) -> Reports {
        let all = timeout(INSPECT_MAX, self.shards.inspect(view)).await.unwrap_or_else(|_| {
            warn!("a shard does not say what it is doing");
            Vec::new()
        });
        Reports { complete: !all.is_empty() && all.len() == self.shards.count(), all }
    }
}

/// What shards say of themselves.
#[derive(Debug)]
pub(crate) struct Reports {
    pub(crate) all: Vec<ShardReport>,
    /// Whether every shard has answered: sums over the shards mean something.
    pub(crate) complete: bool,
}

/// The admin server.
#[derive(Debug)]
pub(crate) struct AdminService<S>(pub(crate) Arc<Node<S>>);

impl<S> Clone for AdminService<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: Shards> Service for AdminService<S> {
    /// A CPU profile takes up to 5 minutes, and a dump of a large mesh goes to people, often over a slow line.
    const DEADLINE: Duration = Duration::from_secs(360);

    async fn answer(&self, request: Request) -> Answer {
        match request.path.as_str() {
            "/" => Answer::html(INDEX),
            "/config_dump" => self.config_dump().await,
            "/metrics" | "/stats/prometheus" => self.0.clone().metrics(&request).await,
            "/logging" => logging::answer(self.0.log.as_ref(), &request),
            "/debug/pprof/profile" => profile::answer(&self.0.profiling, self.0.heap.clone(), &request).await,
            "/debug/pprof/heap" => heap::profile(self.0.heap.clone()).await,
            "/debug/pprof/heap/profiling" => heap::activate(self.0.heap.clone(), &request).await,
            "/quitquitquit" if request.method == Method::POST => {
                self.0.quit.notify_one();
                // The sender is held by `self`, so waiting cannot fail.
                drop(self.0.drained.subscribe().wait_for(|drained| *drained).await);
                Answer::text(StatusCode::OK, "shutdown now\n")
            }
            "/quitquitquit" => Answer::text(StatusCode::METHOD_NOT_ALLOWED, "Invalid HTTP method\n"),
            _ => Answer::text(StatusCode::NOT_FOUND, "Not Found\n"),
        }
    }
}

impl<S: Shards> AdminService<S> {
    async fn config_dump(&self) -> Answer {
        let node = &self.0;
        // A dump of a large mesh takes as much memory as the mesh: one is made at a time, even if nobody waits for it.
        let turn = node.dumping.clone().lock_owned().await;
        let shards = node.reports(View::Connections).await.all;
        let parts = dump::Parts {
            config: node.config.to_json(),
            mesh_version: node.config.mesh_version.clone(),
            snapshot: node.publisher.snapshot(),
            pods: node.pods.borrow().clone(),
            certificates: node.certificates.borrow().clone(),
            local: node.config.local.clone(),
            source: node.sources.local_status(),
            xds: node.sources.xds_status(),
            pending: node.readiness.parts_pending(),
            shards,
        };
        // A large mesh takes a while to write down; the control thread has other things to do meanwhile.
        match tokio::task::spawn_blocking(move || {
            let text = dump::write(&parts);
            drop(turn);
            text
        })
        .await
        {
            Ok(text) => Answer::json(text),
            Err(error) => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }
}
