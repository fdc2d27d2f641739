//! A node: starts every part of the control thread, and ends them in order.

pub(crate) mod sources;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use halo_core::snapshot::{Mesh, Snapshot};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tracing::{info, warn};

use crate::admin::{AdminService, Node};
use crate::ca::client::RemoteCa;
use crate::ca::{Authority, CaError, EmbeddedCa};
use crate::certs::{self, CertificateTotals, CertificateView, CertificatesSetup};
use crate::config::{CaSource, Config};
use crate::http;
pub use crate::http::ListenError;
use crate::metrics::MetricsService;
pub use crate::parts::PartError;
use crate::parts::Parts;
use crate::pods::{PodTotals, Pods};
use crate::publish::Publisher;
pub use crate::questions::Questions;
use crate::readiness::{Part, Readiness, ReadinessService};
use crate::shards::Shards;
use crate::zds_client::{Shown, ZdsClient};

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// One of the node's own servers cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The embedded authority cannot start.
    #[error("certificate authority: {0}")]
    Ca(#[from] CaError),
    /// A part of the control thread failed; a defect in this program. The shards were drained.
    #[error("a part of the control thread failed: {0}")]
    Defect(#[from] PartError),
}

/// The addresses that the node's own servers listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeAddresses {
    /// Admin server.
    pub admin: SocketAddr,
    /// Metrics server.
    pub metrics: SocketAddr,
    /// Readiness server.
    pub readiness: SocketAddr,
}

/// Runs a node until `shutdown` or `/quitquitquit`, then drains the shards and returns. Must run on a tokio runtime with
/// I/O and time. Signals belong to the caller. `questions` is what the shards ask.
pub async fn run(
    config: Config,
    shards: impl Shards,
    questions: Questions,
    shutdown: impl Future,
) -> Result<(), NodeError> {
    run_with(config, shards, questions, shutdown, |_| ()).await
}

/// Like [`run`]; tells the addresses once its servers listen, which is of use when a port is 0.
pub async fn run_with(
    config: Config,
    shards: impl Shards,
    questions: Questions,
    shutdown: impl Future,
    listening: impl FnOnce(NodeAddresses),
) -> Result<(), NodeError> {
    let servers = Servers::bind(&config).await?;
    let authority = authority(&config)?;
    for warning in config.warnings() {
        warn!("{warning}");
    }
    let addresses = servers.addresses;
    let mut parts = Parts::default();
    let (node, zds) = start(config, shards.clone(), (authority, questions), &mut parts);
    parts.spawn("admin server", http::serve(servers.admin, AdminService(node.clone())));
    parts.spawn("metrics server", http::serve(servers.metrics, MetricsService(node.clone())));
    let readiness = ReadinessService(node.readiness.clone());
    parts.spawn("readiness server", http::serve(servers.readiness, readiness));
    info!(admin = %addresses.admin, metrics = %addresses.metrics, readiness = %addresses.readiness, "node started");
    listening(addresses);
    let end = tokio::select! {
        _ = shutdown => Ok(()),
        () = node.quit.notified() => Ok(()),
        // It is better to restart the process than to leave it half alive.
        failure = parts.failure() => Err(NodeError::Defect(failure)),
    };
    info!("draining");
    // The CNI agent sees the connection end, and turns to the proxy that takes over, if there is one.
    zds.abort();
    node.readiness.set(Part::WorkloadProxyManager, Some("shutting down".to_owned()));
    // While the shards drain, the mesh, certificates and servers go on: open streams still need them.
    shards.drain().await;
    info!("drained");
    parts.shutdown().await;
    end
}

fn authority(config: &Config) -> Result<Authority, CaError> {
    let (domain, now) = (&config.trust_domain, SystemTime::now());
    Ok(match &config.ca {
        CaSource::Directory(directory) => {
            Authority::Embedded(EmbeddedCa::in_directory(directory, domain, now)?)
        }
        CaSource::Memory => Authority::Embedded(EmbeddedCa::in_memory(domain, now)?),
        CaSource::Remote(upstream) => Authority::Remote(RemoteCa::at(upstream.clone())),
    })
}

/// The node's servers, bound.
struct Servers {
    admin: TcpListener,
    metrics: TcpListener,
    readiness: TcpListener,
    addresses: NodeAddresses,
}

impl Servers {
    async fn bind(config: &Config) -> Result<Self, NodeError> {
        let (admin, admin_address) = http::listen("admin", config.admin).await?;
        let (metrics, metrics_address) = http::listen("metrics", config.metrics).await?;
        let (readiness, readiness_address) = http::listen("readiness", config.readiness).await?;
        let addresses =
            NodeAddresses { admin: admin_address, metrics: metrics_address, readiness: readiness_address };
        Ok(Self { admin, metrics, readiness, addresses })
    }
}

/// Starts everything but the servers; gives the handle that ends the ZDS client.
fn start<S: Shards>(
    config: Config,
    shards: S,
    (authority, questions): (Authority, Questions),
    parts: &mut Parts,
) -> (Arc<Node<S>>, AbortHandle) {
    let mesh = Mesh {
        node: config.node.as_str().into(),
        network: config.network.as_str().into(),
        cluster: config.cluster.as_str().into(),
        preferred_namespace: config.preferred_namespace.as_deref().map(Into::into),
        on_demand: config.xds_on_demand && config.xds.is_some(),
        trust_domain_aliases: Box::default(),
        cluster_domain: config.cluster_domain.as_str().into(),
        application_tunnels_local: true,
    };
    let first = Snapshot { mesh: Arc::new(mesh), ..Snapshot::default() };
    let (publisher, publishing) = Publisher::new(first, shards.clone());
    let trust_domain: Arc<str> = config.trust_domain.as_str().into();
    let (pods_sender, pods) = watch::channel(Pods::new());
    let (view, certificates) = watch::channel(CertificateView::new());
    let readiness = Readiness::pending(&[Part::StateManager, Part::WorkloadProxyManager]);
    if config.dns.capture {
        readiness.set(Part::DnsProxy, Some("names are answered once the mesh is known".to_owned()));
    }
    readiness.set(Part::WorkloadProxyManager, Some("pods are taken once the mesh is known".to_owned()));
    let (totals, certificate_totals) =
        (Arc::new(PodTotals::default()), Arc::new(CertificateTotals::default()));

    parts.spawn("publisher", publishing);
    let setup = CertificatesSetup {
        authority,
        ttl: config.secret_ttl,
        trust_domain,
        publisher: publisher.clone(),
        pods: pods.clone(),
        questions: questions.certificates,
        view,
        totals: certificate_totals.clone(),
    };
    parts.spawn("certificate keeper", certs::run(setup));
    let shown = Shown { view: pods_sender, readiness: readiness.clone(), totals: totals.clone() };
    let client = ZdsClient::new(config.zds_path.clone(), shards.clone(), shown);
    let gate = readiness.clone();
    let zds = parts.spawn("ZDS client", async move {
        // A proxy that does not know the mesh takes no pods: until then they stay with the one before it, or refused.
        gate.part_ready(Part::StateManager).await;
        gate.set(Part::DnsProxy, None);
        client.run().await;
    });
    let sources = sources::start(&config, &publisher, pods.clone(), questions.mesh, parts);
    parts.spawn_until_done("readiness of the sources", sources::follow(sources.clone(), readiness.clone()));
    let quit = Notify::new();
    let node = Node {
        config,
        shards,
        publisher,
        pods,
        totals,
        certificates,
        certificate_totals,
        sources,
        readiness,
        quit,
    };
    (Arc::new(node), zds)
}
