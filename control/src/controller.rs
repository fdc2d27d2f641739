//! The mesh's controller: it serves the node proxies their world and their certificates.
//!
//! A source keeps the [`world::World`] equal to what it reads; every stream of the server follows the world's editions.
//! Parts live as long as the process: it is better to restart it than to leave it half alive.

mod ads;
pub mod auth;
pub mod certificates;
mod health;
mod server;
mod stats;
mod subscriber;
#[cfg(test)]
mod tests;
pub mod world;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use halo_core::id::Identity;
use rustls_pki_types::DnsName;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::info;

use crate::ca::{CaError, EmbeddedCa};
use crate::config::LocalSource;
use crate::edit::MeshEdit;
use crate::http;
pub use crate::http::ListenError;
use crate::local::Defaults;
use crate::parts::{PartError, Parts};
use crate::publish::PublisherGone;
use crate::source::{self, Sink, SourceStatus};
use ads::Ads;
use auth::{Authenticator, Credentials, CredentialsError};
use certificates::{CertificateConfig, CertificateService};
use health::HealthService;
use server::Services;
use server::tls::ServingCertificate;
pub use server::tls::TlsError;
use stats::Stats;
use world::World;

/// Life of a workload's certificate whose request does not say.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(24 * 3600);

/// What a controller serves, to whom and where.
#[derive(Debug, Clone)]
pub struct ControllerConfig {
    /// File of workloads, services and policies, which is followed.
    pub file: PathBuf,
    /// Where discovery and certificates are served.
    pub listen: SocketAddr,
    /// Where readiness and metrics are served.
    pub health: SocketAddr,
    /// Directory of the authority's root, which is made if there is none.
    pub ca_dir: PathBuf,
    /// DNS names and IP addresses that the serving certificate is for.
    pub server_names: Vec<String>,
    /// What callers have to show.
    pub credentials: Credentials,
    /// Service accounts of node proxies, `<namespace>/<name>`, which get certificates for the workloads on their node.
    pub trusted_accounts: BTreeSet<String>,
    /// Trust domain of identities.
    pub trust_domain: String,
    /// The cluster's name.
    pub cluster: String,
}

/// Why a controller cannot start, or has failed.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// One of its servers cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The certificate authority cannot start.
    #[error("certificate authority: {0}")]
    Ca(#[from] CaError),
    /// The file of credentials is wrong.
    #[error("credentials: {0}")]
    Credentials(#[from] CredentialsError),
    /// Without credentials whoever can connect gets any certificate.
    #[error(
        "{address} can be reached from other machines, and callers are not asked for credentials; give --tokens or \
         --jwks, or listen on loopback"
    )]
    Open {
        /// Where it would have listened.
        address: SocketAddr,
    },
    /// The server cannot speak TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A part failed; a defect in this program.
    #[error("a part of the controller failed: {0}")]
    Defect(#[from] PartError),
}

/// The addresses that a controller listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControllerAddresses {
    /// Discovery and certificates.
    pub listen: SocketAddr,
    /// Readiness and metrics.
    pub health: SocketAddr,
}

impl Sink for World {
    /// Encodes away from the tasks that serve.
    async fn apply(&self, edits: Vec<MeshEdit>) -> Result<u64, PublisherGone> {
        let world = self.clone();
        tokio::task::spawn_blocking(move || World::apply(&world, edits)).await.map_err(|_| PublisherGone)
    }
}

/// Whether a serving certificate can be for this name.
pub fn is_server_name(name: &str) -> bool {
    name.parse::<IpAddr>().is_ok() || DnsName::try_from(name).is_ok()
}

/// Runs a controller until `shutdown`, then ends every stream and returns. Must run on a tokio runtime with I/O and
/// time. Signals belong to the caller.
///
/// # Errors
/// [`ControllerError`], with the remedy where there is one.
pub async fn run(config: ControllerConfig, shutdown: impl Future) -> Result<(), ControllerError> {
    run_with(config, shutdown, |_| ()).await
}

/// Like [`run`]; tells the addresses once its servers listen, which is of use when a port is 0.
///
/// # Errors
/// As [`run`].
pub async fn run_with(
    config: ControllerConfig,
    shutdown: impl Future,
    listening: impl FnOnce(ControllerAddresses),
) -> Result<(), ControllerError> {
    let file = LocalSource::File(config.file.clone());
    let defaults = Defaults {
        trust_domain: config.trust_domain.as_str().into(),
        cluster: config.cluster.as_str().into(),
    };
    let follow = |world, status| source::run(file, defaults, world, status);
    run_from(config, follow, shutdown, listening).await
}

/// Like [`run_with`], for a mesh whose state is kept elsewhere than in the file, which then only names it in messages:
/// `source` keeps the world equal to what it reads, and tells how it fares.
///
/// # Errors
/// As [`run`].
pub async fn run_from<S>(
    config: ControllerConfig,
    source: impl FnOnce(World, watch::Sender<SourceStatus>) -> S,
    shutdown: impl Future,
    listening: impl FnOnce(ControllerAddresses),
) -> Result<(), ControllerError>
where
    S: Future<Output = ()> + Send + 'static,
{
    let (discovery, listen) = http::listen("discovery", config.listen).await?;
    let (health, health_address) = http::listen("health", config.health).await?;
    let (close, closing) = watch::channel(false);
    let mut parts = Parts::default();
    let (world, (status, told)) = (World::default(), watch::channel(SourceStatus::default()));
    let mut serving = start(&config, &mut parts, (discovery, health), (world.clone(), told), closing)?;
    parts.spawn("source of the mesh's state", source(world, status));
    info!(%listen, health = %health_address, file = %config.file.display(), "controller started");
    listening(ControllerAddresses { listen, health: health_address });
    let end = tokio::select! {
        _ = shutdown => Ok(()),
        failure = parts.failure() => Err(ControllerError::Defect(failure)),
        // It ends only when it is told to.
        ended = &mut serving => {
            let part = "discovery server";
            let failure = match ended {
                Ok(()) => PartError::Ended { part },
                Err(error) => PartError::Failed { part, error },
            };
            parts.shutdown().await;
            return Err(ControllerError::Defect(failure));
        }
    };
    info!("shutting down");
    close.send_replace(true);
    // It ends by itself, after a while at the latest; if it has failed, there is nothing left to end.
    drop(serving.await);
    parts.shutdown().await;
    end
}

/// Starts every part; gives the one that ends when asked.
fn start(
    config: &ControllerConfig,
    parts: &mut Parts,
    (discovery, health): (TcpListener, TcpListener),
    (world, source): (World, watch::Receiver<SourceStatus>),
    closing: watch::Receiver<bool>,
) -> Result<JoinHandle<()>, ControllerError> {
    let stats = Arc::new(Stats::default());
    let authority = EmbeddedCa::in_directory(&config.ca_dir, &config.trust_domain, SystemTime::now())?;
    let authenticator = authenticator(config, &world)?;
    let certificate = Arc::new(ServingCertificate::new(authority.clone(), config.server_names.clone())?);
    let acceptor = certificate.acceptor()?;
    let certificates = CertificateService::new(
        CertificateConfig {
            trust_domain: config.trust_domain.as_str().into(),
            trusted_accounts: config.trusted_accounts.clone(),
            ttl: CERTIFICATE_LIFE,
        },
        authenticator.clone(),
        authority,
        Arc::new({
            let world = world.clone();
            move |node: &str, identity: &Identity| world.edition().runs_on(node, identity)
        }),
    );
    let ads = Ads::new(world.clone(), stats.clone(), closing.clone());
    let services = Arc::new(Services { ads, certificates, authenticator, stats });

    parts.spawn("serving certificate", certificate.renew());
    let file = config.file.clone().into();
    let shown = HealthService { world, services: services.clone(), file, source, closing: closing.clone() };
    parts.spawn("health server", http::serve(health, shown));
    Ok(tokio::spawn(server::serve(discovery, acceptor, services, closing)))
}

fn authenticator(config: &ControllerConfig, world: &World) -> Result<Arc<Authenticator>, ControllerError> {
    let authenticator = Authenticator::new(config.credentials.clone())?;
    if authenticator.is_open() && !config.listen.ip().is_loopback() {
        return Err(ControllerError::Open { address: config.listen });
    }
    let (world, cluster) = (world.clone(), config.cluster.clone());
    let nodes = move |namespace: &str, pod: &str| world.edition().node_of_pod(&cluster, namespace, pod);
    let trust_domain = config.trust_domain.as_str().into();
    Ok(Arc::new(authenticator.with_nodes(Arc::new(nodes)).with_peers_of(trust_domain)))
}
