//! A node's configuration: environment variables and flags, read once and turned into types with units.
//!
//! The variables of the stock node proxy keep their names, forms and defaults; Halo's own begin with `HALO_`. Every
//! variable is one row of [`resolved::VARIABLES`], which both parses and documents it. Nothing here reads the process's
//! environment: the binary hands it in.

mod cores;
mod cpu;
mod dns;
mod mode;
mod print;
mod proxy_config;
pub mod raw;
pub mod resolved;
#[cfg(test)]
mod tests;
mod upstream;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use halo_core::limits::Limits;
use halo_core::options::Options;
use halo_core::zds::WorkloadInfo;

pub use cores::Cores;
pub use cpu::CpuBudget;
pub use dns::DnsSettings;
pub use mode::ProxyMode;
pub use print::PrintFormat;
pub use raw::{ConfigError, Files, Variables};

use crate::grpc::{Token, UpstreamConfig};

/// Where workloads, services and policies come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalSource {
    /// A file, watched.
    File(PathBuf),
    /// The text itself, read once.
    Inline(String),
}

/// Who issues the workloads' certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaSource {
    /// This process, with a root that lives and dies with it.
    Memory,
    /// This process, with a root that the nodes share in a directory.
    Directory(PathBuf),
    /// An authority elsewhere.
    Remote(UpstreamConfig),
}

/// What the node tells a control plane of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// The node proxy's own address.
    pub instance_ip: IpAddr,
    /// The node proxy's own pod.
    pub pod_name: String,
    /// The namespace of that pod.
    pub pod_namespace: String,
    /// The service account of that pod.
    pub service_account: String,
    /// The node.
    pub node_name: String,
    /// Further metadata.
    pub metadata: BTreeMap<String, String>,
    /// Further metadata that is more than text.
    pub json: BTreeMap<String, serde_json::Value>,
}

/// How many shards run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardCount {
    /// A quarter of the cores, rounded up. One shard does the work of several threads that share; a second one on a
    /// small machine costs more than it brings, because a peer's connections are spread over twice the tunnels.
    Auto,
    /// One for each core.
    EveryCore,
    /// This many.
    Count(NonZeroU32),
    /// This share of the cores, in percent, rounded up.
    Percent(NonZeroU32),
}

impl ShardCount {
    /// The number of shards on a machine with `cores` cores: at least one, never more than there are cores unless a
    /// number was asked for.
    pub fn on(self, cores: usize) -> usize {
        let share = |percent: usize| (cores * percent).div_ceil(100);
        match self {
            Self::Auto => share(25).max(1),
            Self::EveryCore => cores.max(1),
            Self::Count(count) => count.get() as usize,
            Self::Percent(percent) => share(percent.get() as usize).clamp(1, cores.max(1)),
        }
    }
}

/// How TLS records are sealed and opened after the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordsMode {
    /// By Halo, straight between application and tunnel buffers.
    Sealed,
    /// By rustls.
    Rustls,
}

/// Which kernel interface the shards use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingMode {
    /// `io_uring` where the kernel allows it, else `epoll`.
    Auto,
    /// `io_uring` or no start.
    IoUring,
    /// `epoll`.
    Epoll,
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text.
    Plain,
    /// One JSON object a line.
    Json,
}

/// A node's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Name of the node.
    pub node: String,
    /// Network of the node's pods.
    pub network: String,
    /// Name of the cluster.
    pub cluster: String,
    /// Trust domain of pods whose workload names none, and of the embedded certificate authority's root.
    pub trust_domain: String,
    /// Namespace preferred when several services share a name or an address.
    pub preferred_namespace: Option<String>,
    /// Version of the mesh that metrics report.
    pub mesh_version: String,
    /// The socket of the node's CNI agent.
    pub zds_path: PathBuf,
    /// The local source, if there is one.
    pub local: Option<LocalSource>,
    /// Life of a workload certificate.
    pub secret_ttl: Duration,
    /// The control plane that workloads, services and policies come from, if there is one.
    pub xds: Option<UpstreamConfig>,
    /// Whether the control plane is asked for what is needed, rather than for everything.
    pub xds_on_demand: bool,
    /// Who issues certificates.
    pub ca: CaSource,
    /// File of revoked certificates, watched.
    pub crl_path: Option<PathBuf>,
    /// What the control plane is told of the node.
    pub facts: NodeFacts,
    /// Whom the node proxy serves.
    pub mode: ProxyMode,
    /// How many shards run.
    pub shards: ShardCount,
    /// What the pod's resources say of its CPU.
    pub cpu: CpuBudget,
    /// The command line, for `config_dump`.
    pub arguments: String,
    /// The cores that shards are pinned to, in turn; without them all cores of the process's cpuset.
    pub cores: Option<Cores>,
    /// How TLS records are handled.
    pub records: RecordsMode,
    /// Which kernel interface the shards use.
    pub ring: RingMode,
    /// Whether listeners take IPv6.
    pub ipv6: bool,
    /// How pods' DNS is done.
    pub dns: DnsSettings,
    /// The cluster's DNS domain.
    pub cluster_domain: String,
    /// Admin server.
    pub admin: SocketAddr,
    /// Readiness server.
    pub readiness: SocketAddr,
    /// Metrics server.
    pub metrics: SocketAddr,
    /// Log filter, for example `info,halo=debug`.
    pub log_filter: String,
    /// Form of log lines.
    pub log_format: LogFormat,
    /// How long metrics show a series after its last use, once a workload of it has left the mesh.
    pub metrics_expiry: Duration,
    /// Bounds of the shards.
    pub limits: Limits,
    /// How the shards make connections.
    pub options: Options,
    /// Other names of the workloads' trust domain.
    pub trust_domain_aliases: Vec<String>,
    /// Whether an application that takes the PROXY protocol is reached at the loopback address.
    pub application_tunnels_local: bool,
    /// Variables whose value is not known and that hold something else, in one line each.
    pub unknown: Vec<String>,
}

/// What flags set; a flag wins over its variable.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--node`.
    pub node: Option<String>,
    /// `--local`: a file of workloads, services and policies.
    pub local: Option<PathBuf>,
    /// `--zds`: the CNI agent's socket.
    pub zds: Option<PathBuf>,
    /// `--ca-dir`.
    pub ca_dir: Option<PathBuf>,
    /// `--shards`: a number, a percentage, or 0 for every core.
    pub shards: Option<String>,
    /// `--cores`: a list such as `0-3,6`.
    pub cores: Option<String>,
    /// `--ring`.
    pub ring: Option<String>,
    /// `--records`.
    pub records: Option<String>,
    /// `--admin`.
    pub admin: Option<SocketAddr>,
    /// `--readiness`.
    pub readiness: Option<SocketAddr>,
    /// `--metrics`.
    pub metrics: Option<SocketAddr>,
    /// `--log`.
    pub log: Option<String>,
    /// The whole command line, for `config_dump`.
    pub arguments: String,
}

impl Config {
    /// Reads a configuration from variables, then lets flags win.
    pub fn read(variables: &Variables, overrides: &Overrides) -> Result<Self, ConfigError> {
        resolved::resolve(variables, overrides)
    }

    /// The number of shards of a process that may use this many cores. Shards share the ports in pods: without leave to
    /// do so there is one, unless a number was asked for.
    pub fn shards_on(&self, usable: usize) -> usize {
        match self.is_one_shard() {
            true => 1,
            false => self.cpu.shards(self.shards, usable),
        }
    }

    fn is_one_shard(&self) -> bool {
        self.shards == ShardCount::Auto && !self.options.port_reuse
    }

    /// The node proxy's own pod, where it has been told all of it: peers read its metrics through the mesh.
    pub fn own_workload(&self) -> Option<WorkloadInfo> {
        let NodeFacts { pod_name, pod_namespace, service_account, .. } = &self.facts;
        let known = [pod_name, pod_namespace, service_account].iter().all(|part| !part.is_empty());
        (known && self.mode == ProxyMode::Shared).then(|| WorkloadInfo {
            name: pod_name.as_str().into(),
            namespace: pod_namespace.as_str().into(),
            service_account: service_account.as_str().into(),
            ..WorkloadInfo::default()
        })
    }

    /// What is allowed and hardly meant, in one line each.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.unknown.clone();
        if self.is_one_shard() {
            warnings.push(
                "INPOD_PORT_REUSE=false: shards would share the ports in pods, so one shard runs".to_owned(),
            );
        }
        if let (Some(xds), CaSource::Memory) = (&self.xds, &self.ca) {
            warnings.push(format!(
                "the mesh comes from {}, and certificates from an authority of this process that no other node \
                 trusts; set CA_ADDRESS, or HALO_CA_DIR to a directory that the nodes share",
                xds.address
            ));
        }
        if self.options.tls.pqc_only && self.options.tls.tls12 {
            warnings
                .push("COMPLIANCE_POLICY=pqc leaves TLS 1.3 alone; TLS12_ENABLED has no effect".to_owned());
        }
        let ca = match &self.ca {
            CaSource::Remote(ca) => Some(ca),
            CaSource::Memory | CaSource::Directory(_) => None,
        };
        for upstream in self.xds.iter().chain(ca) {
            if upstream.address.starts_with("http://") && upstream.token != Token::None {
                warnings.push(format!("the node's token goes to {} without encryption", upstream.address));
            }
        }
        warnings.extend(self.dns.warnings());
        warnings
    }

    /// The configuration as text, for `--print-config`. It holds no secret.
    pub fn print(&self, format: PrintFormat) -> String {
        print::print(self, format)
    }

    /// The configuration as `config_dump` shows it.
    pub fn to_json(&self) -> serde_json::Value {
        print::to_json(self)
    }
}
