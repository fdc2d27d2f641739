//! `halo controller`: boots the control plane.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use halo_control::controller::auth::{AUDIENCE, Credentials};
use halo_control::controller::{self, ControllerConfig, ControllerError};
use tracing_subscriber::EnvFilter;

use crate::node::{INTERRUPTED, Stop, raise_descriptor_limit};

/// What node proxies call a control plane by, and what a person on the same machine does.
const SERVER_NAMES: [&str; 6] = [
    "istiod.istio-system.svc",
    "istiod.istio-system.svc.cluster.local",
    "halo-controller.halo-system.svc",
    "localhost",
    "127.0.0.1",
    "::1",
];

/// Flags of `halo controller`; each wins over its variable.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// File of workloads, services and policies, which is followed
    #[arg(long, env = "HALO_CONTROLLER_FROM_FILE", value_name = "PATH")]
    from_file: PathBuf,
    /// Address that discovery and certificates are served on
    #[arg(long, env = "HALO_CONTROLLER_LISTEN", default_value = "[::]:15012")]
    listen: SocketAddr,
    /// Address that readiness and metrics are served on
    #[arg(long, env = "HALO_CONTROLLER_HEALTH", default_value = "[::]:15014")]
    health: SocketAddr,
    /// Directory with the root of the certificate authority; the root is made if there is none
    #[arg(long, env = "HALO_CONTROLLER_CA_DIR", value_name = "PATH", default_value = "/var/lib/halo/ca")]
    ca_dir: PathBuf,
    /// DNS name or IP address of the serving certificate; may be given several times
    #[arg(
        long = "server-name",
        env = "HALO_CONTROLLER_SERVER_NAMES",
        value_name = "NAME",
        value_delimiter = ',',
        value_parser = server_name,
        default_values = SERVER_NAMES
    )]
    server_names: Vec<String>,
    /// File with the list of tokens that callers may show
    #[arg(long, env = "HALO_CONTROLLER_TOKENS", value_name = "PATH", conflicts_with = "jwks")]
    tokens: Option<PathBuf>,
    /// File with the keys that sign callers' tokens, as an API server gives it at /openid/v1/jwks
    #[arg(long, env = "HALO_CONTROLLER_JWKS", value_name = "PATH")]
    jwks: Option<PathBuf>,
    /// Issuer that callers' signed tokens must name; any, if not given
    #[arg(long, env = "HALO_CONTROLLER_ISSUER", requires = "jwks")]
    issuer: Option<String>,
    /// Audience that callers' signed tokens must be for
    #[arg(long, env = "HALO_CONTROLLER_AUDIENCE", default_value = AUDIENCE)]
    audience: String,
    /// Trust domain of identities
    #[arg(
        long,
        env = "HALO_CONTROLLER_TRUST_DOMAIN",
        value_name = "DOMAIN",
        default_value = "cluster.local"
    )]
    trust_domain: String,
    /// Name of the cluster, for workloads whose entry names none
    #[arg(long, env = "HALO_CONTROLLER_CLUSTER", value_name = "NAME", default_value = "Kubernetes")]
    cluster: String,
    /// Service account of node proxies, which get certificates for the workloads on their node; may be given several
    /// times
    #[arg(
        long = "trusted-account",
        env = "HALO_CONTROLLER_TRUSTED_ACCOUNTS",
        value_name = "NAMESPACE/NAME",
        value_delimiter = ',',
        value_parser = account,
        default_values = ["istio-system/ztunnel", "halo-system/halo-node"]
    )]
    trusted_accounts: Vec<String>,
    /// Log filter, for example `info,halo_control=debug`
    #[arg(long, env = "HALO_CONTROLLER_LOG", value_name = "FILTER", default_value = "info", value_parser = filter)]
    log: String,
}

fn server_name(text: &str) -> Result<String, String> {
    let valid = controller::is_server_name(text);
    if valid { Ok(text.to_owned()) } else { Err("expected a DNS name or an IP address".to_owned()) }
}

fn account(text: &str) -> Result<String, String> {
    let valid = text
        .split_once('/')
        .is_some_and(|(namespace, name)| !namespace.is_empty() && !name.is_empty() && !name.contains('/'));
    if valid { Ok(text.to_owned()) } else { Err("expected <namespace>/<name>".to_owned()) }
}

fn filter(text: &str) -> Result<String, String> {
    EnvFilter::builder().parse(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

impl From<Options> for ControllerConfig {
    fn from(options: Options) -> Self {
        let credentials = match (options.tokens, options.jwks) {
            (Some(tokens), _) => Credentials::Tokens(tokens),
            (None, Some(path)) => {
                Credentials::Jwks { path, issuer: options.issuer, audience: options.audience }
            }
            (None, None) => Credentials::None,
        };
        Self {
            file: options.from_file,
            listen: options.listen,
            health: options.health,
            ca_dir: options.ca_dir,
            server_names: options.server_names,
            credentials,
            trusted_accounts: options.trusted_accounts.into_iter().collect(),
            trust_domain: options.trust_domain,
            cluster: options.cluster,
        }
    }
}

/// Why the controller ended in failure.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// It did not start, or failed.
    #[error(transparent)]
    Controller(#[from] ControllerError),
    /// Its runtime or signal handlers could not be made.
    #[error("the controller cannot start: {0}")]
    Runtime(#[from] std::io::Error),
}

/// Runs `halo controller` until SIGTERM or SIGINT.
pub fn main(options: Options) -> ExitCode {
    let filter = EnvFilter::new(&options.log);
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    match run(options.into()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the controller ends");
            ExitCode::FAILURE
        }
    }
}

fn run(config: ControllerConfig) -> Result<(), Error> {
    // A subscriber needs a socket. With the old limit it still works, and says so when it is reached.
    let _ = raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let stop = runtime.block_on(async { Stop::listen(|| std::process::exit(INTERRUPTED)) })?;
    runtime.block_on(controller::run(config, stop.requested()))?;
    Ok(())
}
