//! A node: starts every part of the control thread, and ends them in order.

pub(crate) mod sources;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use halo_core::net::Listeners;
use halo_core::snapshot::{Mesh, Snapshot};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Notify, mpsc, watch};
use tokio::task::AbortHandle;
use tracing::{info, warn};

pub use crate::admin::heap::{HeapError, HeapProfiler};
use crate::admin::{AdminService, Node};
use crate::ca::client::RemoteCa;
use crate::ca::{Authority, CaError, EmbeddedCa};
use crate::certs::{self, CertificateTotals, CertificateView, CertificatesSetup};
use crate::config::{CaSource, Config, ProxyMode};
use crate::http;
pub use crate::http::ListenError;
use crate::log::LogControl;
use crate::metrics::MetricsService;
use crate::metrics::flight::Flight;
pub use crate::parts::PartError;
use crate::parts::Parts;
use crate::pods::{PodTotals, Pods};
use crate::publish::Publisher;
pub use crate::questions::Questions;
use crate::readiness::{Part, Readiness, ReadinessService};
use crate::residents::{self, Resident};
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

/// What the binary lends the control thread.
#[derive(Debug)]
pub struct Wiring {
    /// What the shards ask.
    pub questions: Questions,
    /// The log levels, where the log is in our hands.
    pub log: Option<LogControl>,
    /// The allocator's profiler, where it has one.
    pub heap: Option<Arc<dyn HeapProfiler>>,
}

impl From<Questions> for Wiring {
    fn from(questions: Questions) -> Self {
        Self { questions, log: None, heap: None }
    }
}

/// Runs a node until `shutdown` or `/quitquitquit`, then drains the shards and returns. Must run on a tokio runtime with
/// I/O and time. Signals belong to the caller.
pub async fn run(
    config: Config,
    shards: impl Shards,
    wiring: impl Into<Wiring>,
    shutdown: impl Future,
) -> Result<(), NodeError> {
    run_with(config, shards, wiring, shutdown, |_| ()).await
}

/// Like [`run`]; tells the addresses once its servers listen, which is of use when a port is 0.
pub async fn run_with(
    config: Config,
    shards: impl Shards,
    wiring: impl Into<Wiring>,
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
    let (node, agent) = start(config, shards.clone(), (authority, wiring.into()), &mut parts);
    let serving = servers.serve(&node, &mut parts);
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
    agent.part.abort();
    node.readiness.set(agent.shown, Some("shutting down".to_owned()));
    // While the shards drain, the mesh, certificates and servers go on: open streams still need them.
    shards.drain().await;
    info!("drained");
    node.drained.send_replace(true);
    serving.end().await;
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
        CaSource::Remote(upstream) => {
            let ca = RemoteCa::at(upstream.clone());
            Authority::Remote(match config.mode {
                ProxyMode::Shared => ca,
                ProxyMode::Dedicated(_) => ca.for_itself(),
            })
        }
    })
}

/// The node's servers, bound.
struct Servers {
    admin: TcpListener,
    /// The other family's loopback address.
    admin_v6: Option<TcpListener>,
    metrics: TcpListener,
    readiness: TcpListener,
    addresses: NodeAddresses,
}

impl Servers {
    async fn bind(config: &Config) -> Result<Self, NodeError> {
        let (admin, admin_address) = http::listen("admin", config.admin).await?;
        let admin_v6 = match config.ipv6 && admin_address.ip() == Ipv4Addr::LOCALHOST {
            // Without IPv6 on the loopback interface there is nobody to be served there.
            true => http::listen("admin", (Ipv6Addr::LOCALHOST, admin_address.port()).into()).await.ok(),
            false => None,
        };
        let (metrics, metrics_address) = http::listen("metrics", config.metrics).await?;
        let (readiness, readiness_address) = http::listen("readiness", config.readiness).await?;
        let addresses =
            NodeAddresses { admin: admin_address, metrics: metrics_address, readiness: readiness_address };
        Ok(Self { admin, admin_v6: admin_v6.map(|(listener, _)| listener), metrics, readiness, addresses })
    }

    fn serve<S: Shards>(self, node: &Arc<Node<S>>, parts: &mut Parts) -> Serving {
        let (ending, end) = watch::channel(false);
        let (alive, ended) = mpsc::channel(1);
        let until = || {
            let (mut end, alive) = (end.clone(), alive.clone());
            async move {
                // A sender that is gone ends the servers too.
                drop(end.wait_for(|end| *end).await);
                drop(alive);
            }
        };
        for admin in [Some(self.admin), self.admin_v6].into_iter().flatten() {
            parts.spawn("admin server", http::serve_until(admin, AdminService(node.clone()), until()));
        }
        let metrics = MetricsService(node.clone());
        parts.spawn("metrics server", http::serve_until(self.metrics, metrics, until()));
        let readiness = ReadinessService(node.readiness.clone());
        parts.spawn("readiness server", http::serve_until(self.readiness, readiness, until()));
        Serving { ending, ended }
    }
}

/// The servers as they run.
struct Serving {
    ending: watch::Sender<bool>,
    ended: mpsc::Receiver<Infallible>,
}

impl Serving {
    /// Lets them finish: no new client, and an end to those that are there.
    async fn end(mut self) {
        self.ending.send_replace(true);
        self.ended.recv().await;
    }
}

/// What brings pods, and the part of readiness that tells of it.
struct Agent {
    part: AbortHandle,
    shown: Part,
}

/// Starts everything but the servers.
fn start<S: Shards>(
    config: Config,
    shards: S,
    (authority, wiring): (Authority, Wiring),
    parts: &mut Parts,
) -> (Arc<Node<S>>, Agent) {
    let Wiring { questions, log, heap } = wiring;
    let mesh = Mesh {
        node: config.node.as_str().into(),
        network: config.network.as_str().into(),
        cluster: config.cluster.as_str().into(),
        preferred_namespace: config.preferred_namespace.as_deref().map(Into::into),
        on_demand: config.xds_on_demand && config.xds.is_some(),
        trust_domain_aliases: config.trust_domain_aliases.iter().map(|alias| alias.as_str().into()).collect(),
        cluster_domain: config.cluster_domain.as_str().into(),
        application_tunnels_local: config.application_tunnels_local,
    };
    let first = Snapshot { mesh: Arc::new(mesh), ..Snapshot::default() };
    let (publisher, publishing) = Publisher::new(first, shards.clone());
    let trust_domain: Arc<str> = config.trust_domain.as_str().into();
    let (pods_sender, pods) = watch::channel(Pods::new());
    let (view, certificates) = watch::channel(CertificateView::new());
    let readiness = Readiness::pending(&[Part::StateManager]);
    if config.dns.capture {
        readiness.set(Part::DnsProxy, Some("names are answered once the mesh is known".to_owned()));
    }
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
    let agent = take_pods(&config, &shards, shown, parts);
    let sources = sources::start(&config, &publisher, pods.clone(), questions.mesh, parts);
    parts.spawn_until_done("readiness of DNS", {
        let readiness = readiness.clone();
        async move {
            readiness.part_ready(Part::StateManager).await;
            readiness.set(Part::DnsProxy, None);
        }
    });
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
        log,
        heap,
        rendering: Flight::default(),
        kept: Arc::default(),
        dumping: Arc::default(),
        profiling: Mutex::default(),
        quit,
        drained: watch::Sender::new(false),
    };
    (Arc::new(node), agent)
}

/// Starts what brings pods: the agent's, or the one that a dedicated proxy serves. And the proxy's own, where it is known.
fn take_pods<S: Shards>(config: &Config, shards: &S, shown: Shown, parts: &mut Parts) -> Agent {
    let (view, readiness) = (shown.view.clone(), shown.readiness.clone());
    let resident = |info, listeners, part| {
        let resident = Resident { info, listeners, part };
        residents::open(resident, shards.clone(), view.clone(), readiness.clone())
    };
    if let Some(own) = config.own_workload() {
        parts.spawn_until_done("own pod", resident(own, Listeners::Own, None));
    }
    let part = match &config.mode {
        ProxyMode::Dedicated(_) => Part::Proxy,
        ProxyMode::Shared => Part::WorkloadProxyManager,
    };
    readiness.set(part, Some("pods are taken once the mesh is known".to_owned()));
    let task = match &config.mode {
        ProxyMode::Dedicated(info) => {
            parts.spawn_until_done("workload", resident(info.clone(), Listeners::Captured, Some(part)))
        }
        ProxyMode::Shared => {
            let client = ZdsClient::new(config.zds_path.clone(), shards.clone(), shown);
            let gate = readiness.clone();
            parts.spawn("ZDS client", async move {
                // A proxy that does not know the mesh takes no pods: until then they stay with the one before it, or
                // refused.
                gate.part_ready(Part::StateManager).await;
                client.run().await;
            })
        }
    };
    Agent { part: task, shown: part }
}
