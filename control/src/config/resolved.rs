//! The table of variables, and the relations between their values.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use halo_core::limits::Limits;
use halo_core::options::{Keepalive, Options, OriginalSource};
use halo_core::zds::WorkloadInfo;

use super::cpu::{quantity, whole};
use super::dns::{self, DnsDraft, DnsSettings};
use super::mode::{self, Kind};
use super::proxy_config::{MeshConfig, ProxyConfig};
use super::raw::{
    ConfigError, Files, MESH_CONFIG, Reason, Variables, boolean, duration, duration_some, mark, milliseconds,
    number, parse, shard_count, word,
};
use super::upstream::{self, UpstreamDraft, header, hostname, json, roots, token};
use super::{
    CaSource, Config, Cores, CpuBudget, LocalSource, LogFormat, NodeFacts, Overrides, ProxyMode, RecordsMode,
    RingMode, ShardCount,
};
use crate::grpc::Token;

/// One variable: what parses it is what documents it.
#[derive(Debug)]
pub struct Variable {
    /// Its name in the environment.
    pub name: &'static str,
    /// What holds when it is not set, in words.
    pub default: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// Takes the text into the draft, or says what is wrong with it. Where the name ends in `*`, the text before says
    /// what that stands for.
    set: fn(&mut Draft, &str, &str) -> Result<(), Reason>,
}

/// A configuration while variables are read: what depends on several of them is not decided yet.
pub(super) struct Draft {
    pub(super) config: Config,
    pub(super) xds: UpstreamDraft,
    pub(super) ca: UpstreamDraft,
    pub(super) ca_dir: Option<PathBuf>,
    pub(super) token: Option<Token>,
    pub(super) client_certificate: Option<PathBuf>,
    pub(super) client_key: Option<PathBuf>,
    pub(super) kubernetes: bool,
    keepalive: Keepalive,
    probes: bool,
    user_timeout: bool,
    proxy: ProxyConfig,
    mode: Kind,
    workload: Option<WorkloadInfo>,
    packet_mark: Option<u32>,
    shards: Option<ShardCount>,
    local_path: Option<PathBuf>,
    local_inline: Option<String>,
    drain: Option<Duration>,
    grace: Option<Duration>,
    admin: Option<SocketAddr>,
    readiness: Option<SocketAddr>,
    metrics: Option<SocketAddr>,
    stats_port: u16,
    pub(super) discovery: Option<String>,
    dns: DnsDraft,
    connection_window: Option<u32>,
}

/// Largest flow-control window (RFC 9113, section 6.9.1).
const WINDOW_MAX: u32 = (1 << 31) - 1;
/// Bounds of SETTINGS_MAX_FRAME_SIZE (RFC 9113, section 6.5.2).
const FRAME_SIZE: (u32, u32) = (1 << 14, (1 << 24) - 1);

/// Most seconds that the kernel takes between two probes of a connection, and most probes (tcp(7)).
const PROBE_S_MAX: u64 = 32_767;
const PROBES_MAX: u32 = 127;

/// Shortest life of a certificate.
const LIFE_MIN: Duration = Duration::from_secs(2);

/// Rows: name, default, meaning, and how the text is taken.
macro_rules! variables {
    (@or_unused) => { _ };
    (@or_unused $rest:ident) => { $rest };
    ($($name:literal, $default:literal, $meaning:literal, |$draft:ident, $text:ident $(, $rest:ident)?| $set:expr;)*) => {
        /// Every variable that is read. Where two mean the same, the later row wins. A name that ends in `*` stands for
        /// all that begin so.
        pub const VARIABLES: &[Variable] = &[$(Variable {
            name: $name,
            default: $default,
            meaning: $meaning,
            set: |$draft, variables!(@or_unused $($rest)?), $text| { $set; Ok(()) },
        },)*];
    };
}

variables! {
    "NODE_NAME", "empty", "name of this node", |draft, text| draft.config.node = text.into();
    "PROXY_MODE", "shared", "whom this proxy serves: shared (the pods that the CNI agent names) or dedicated (one workload)",
        |draft, text| draft.mode = mode::kind(text)?;
    "PROXY_WORKLOAD_INFO", "none", "the workload of PROXY_MODE=dedicated: namespace/name/serviceaccount",
        |draft, text| draft.workload = Some(mode::workload(text)?);
    "ENABLE_PROXY", "true", "taken for the stock node proxy's sake; only true", |_draft, text| mode::proxy(text)?;
    "INPOD_ENABLED", "none", "taken for the stock manifest's sake, and without meaning", |_draft, text| mode::ignored(text);
    "NETWORK", "empty", "network of this node's pods", |draft, text| draft.config.network = text.into();
    "CLUSTER_ID", "Kubernetes", "name of this cluster", |draft, text| draft.config.cluster = text.into();
    "ISTIO_META_CLUSTER_ID", "CLUSTER_ID", "name of this cluster; wins over CLUSTER_ID",
        |draft, text| draft.config.cluster = text.into();
    "TRUST_DOMAIN", "cluster.local", "trust domain of pods whose workload names none",
        |draft, text| draft.config.trust_domain = text.into();
    "PREFERED_SERVICE_NAMESPACE", "none", "namespace preferred when services share a name (spelt so)",
        |draft, text| draft.config.preferred_namespace = Some(text.into());
    "ISTIO_META_ISTIO_VERSION", "unknown", "mesh version in the istio_build metric",
        |draft, text| draft.config.mesh_version = text.into();
    "INPOD_UDS", "/var/run/ztunnel/ztunnel.sock", "socket of the node's CNI agent",
        |draft, text| draft.config.zds_path = text.into();
    "LOCAL_XDS_PATH", "none", "file of workloads, services and policies, watched",
        |draft, text| draft.local_path = Some(text.into());
    "LOCAL_XDS", "none", "workloads, services and policies as text, read once",
        |draft, text| draft.local_inline = Some(text.into());
    "SECRET_TTL", "24h", "life of a workload certificate: whole seconds, at least 2",
        |draft, text| draft.config.secret_ttl = life(text)?;
    "HALO_CA_DIR", "none: a root in memory", "directory with the embedded authority's root, shared by the nodes",
        |draft, text| draft.ca_dir = Some(text.into());
    "FAKE_CA", "false", "taken for the stock node proxy's sake; only false", |_draft, text| mode::fake_ca(text)?;
    "XDS_ADDRESS", "discoveryAddress of PROXY_CONFIG; else istiod, in Kubernetes; none with a local source",
        "control plane: https://host:port; set to nothing: none", |draft, text| draft.xds.at(text)?;
    "CA_ADDRESS", "like XDS_ADDRESS; none with HALO_CA_DIR",
        "certificate authority: https://host:port; set to nothing: none", |draft, text| draft.ca.at(text)?;
    "XDS_ROOT_CA", "./var/run/secrets/istio/root-cert.pem", "roots of the control plane: a file, PEM text or SYSTEM",
        |draft, text| draft.xds.roots = roots(text)?;
    "CA_ROOT_CA", "./var/run/secrets/istio/root-cert.pem", "roots of the authority's server: a file, PEM text or SYSTEM",
        |draft, text| draft.ca.roots = roots(text)?;
    "ALT_XDS_HOSTNAME", "none", "name that the control plane's certificate may carry instead",
        |draft, text| draft.xds.alt_hostname = Some(hostname(text)?);
    "ALT_CA_HOSTNAME", "none", "name that the authority's certificate may carry instead",
        |draft, text| draft.ca.alt_hostname = Some(hostname(text)?);
    "AUTH_TOKEN", "./var/run/secrets/tokens/istio-token, if it is there",
        "what the node shows to be let in: a file, by a path that begins with / or ., or the token itself",
        |draft, text| draft.token = Some(token(text));
    "XDS_HEADER_*", "none", "further headers to the control plane",
        |draft, text, name| draft.xds.headers.push(header(name, text)?);
    "CA_HEADER_*", "none", "further headers to the authority",
        |draft, text, name| draft.ca.headers.push(header(name, text)?);
    "HALO_XDS_CLIENT_CERT", "none", "certificate that the node shows the control plane, PEM file",
        |draft, text| draft.client_certificate = Some(text.into());
    "HALO_XDS_CLIENT_KEY", "none", "key of HALO_XDS_CLIENT_CERT, PEM file",
        |draft, text| draft.client_key = Some(text.into());
    "XDS_ON_DEMAND", "false", "ask the control plane for what is needed rather than for everything",
        |draft, text| draft.config.xds_on_demand = boolean(text)?;
    "CRL_PATH", "none", "file of revoked certificates, PEM or DER, watched",
        |draft, text| draft.config.crl_path = Some(text.into());
    "KUBERNETES_SERVICE_HOST", "none", "set in Kubernetes, where istiod is the control plane unless another is named",
        |draft, _text| draft.kubernetes = true;
    "PROXY_CONFIG", "defaultConfig of ./etc/istio/config/mesh, if it is there",
        "YAML: discoveryAddress, proxyAdminPort, statsPort, concurrency, proxyMetadata",
        |draft, text| draft.proxy.merge(ProxyConfig::parse(text)?);
    "POD_NAME", "empty", "the node proxy's own pod", |draft, text| draft.config.facts.pod_name = text.into();
    "POD_NAMESPACE", "empty", "the namespace of POD_NAME", |draft, text| draft.config.facts.pod_namespace = text.into();
    "SERVICE_ACCOUNT", "empty", "the service account of POD_NAME",
        |draft, text| draft.config.facts.service_account = text.into();
    "INSTANCE_IP", "1.1.1.1", "the node proxy's own address",
        |draft, text| draft.config.facts.instance_ip = parse(text, "an IP address")?;
    "ISTIO_META_*", "none", "metadata of the node for the control plane; wins over proxyMetadata",
        |draft, text, name| drop(draft.config.facts.metadata.insert(name.into(), text.into()));
    "ISTIO_METAJSON_*", "none", "metadata of the node for the control plane, as JSON",
        |draft, text, name| drop(draft.config.facts.json.insert(name.into(), json(text)?));
    "ZTUNNEL_WORKER_THREADS", "concurrency of PROXY_CONFIG; else a quarter of the cores",
        "shards: N, P%, or 0 for every core", |draft, text| draft.shards = Some(shard_count(text)?);
    "ZTUNNEL_CPU_LIMIT", "the process's cores", "cores to reckon with for a share of them",
        |draft, text| draft.config.cpu.assumed = Some(whole(text)?);
    "ZTUNNEL_RESOURCE_CPU_LIMIT", "none", "the pod's CPU limit: without ZTUNNEL_WORKER_THREADS a shard for each core of it",
        |draft, text| draft.config.cpu.limit = Some(quantity(text)?);
    "ZTUNNEL_RESOURCE_CPU_REQUEST", "none", "the pod's CPU request: without ZTUNNEL_WORKER_THREADS at least as many shards",
        |draft, text| draft.config.cpu.request = Some(quantity(text)?);
    "HALO_CORES", "all of the process's cpuset", "cores that shards are pinned to, in turn: a list such as 0-3,6",
        |draft, text| draft.config.cores = Some(Cores::parse(text)?);
    "HALO_RECORDS", "sealed", "who seals TLS records: sealed (Halo) or rustls",
        |draft, text| draft.config.records = records(text)?;
    "HALO_RING", "auto", "kernel interface: auto, io_uring or epoll", |draft, text| draft.config.ring = ring(text)?;
    "POOL_MAX_STREAMS_PER_CONNECTION", "100", "streams in one tunnel",
        |draft, text| draft.config.limits.streams_per_tunnel_max = number(text, 1, WINDOW_MAX)?;
    "POOL_UNUSED_RELEASE_TIMEOUT", "5m", "a tunnel without streams is closed after this",
        |draft, text| draft.config.limits.tunnel_idle_ms_max = milliseconds(duration(text)?);
    "HALO_CONNECT_TIMEOUT", "10s", "how long a TCP connection may take to open",
        |draft, text| draft.config.limits.connect_ms_max = milliseconds(duration_some(text)?);
    "HALO_HANDSHAKE_TIMEOUT", "10s", "how long a TLS handshake may take, in both roles",
        |draft, text| draft.config.limits.handshake_ms_max = milliseconds(duration_some(text)?);
    "HALO_ANSWER_TIMEOUT", "20s", "how long a peer may take to answer CONNECT; at least HALO_CONNECT_TIMEOUT",
        |draft, text| draft.config.limits.connect_answer_ms_max = milliseconds(duration_some(text)?);
    "HALO_HALF_CLOSE_TIMEOUT", "5m", "how long one direction may stay silent after the other has ended",
        |draft, text| draft.config.limits.half_close_ms_max = milliseconds(duration_some(text)?);
    "HALO_LOOKUP_TIMEOUT", "5s", "how long a connection waits for what the control plane has not delivered yet",
        |draft, text| draft.config.limits.lookup_ms_max = milliseconds(duration_some(text)?);
    "HALO_PING_INTERVAL", "10s", "between two probes of a tunnel",
        |draft, text| draft.config.limits.ping_interval_ms = milliseconds(duration_some(text)?);
    "HALO_PING_TIMEOUT", "20s", "a tunnel that leaves a probe unanswered for this long is dead",
        |draft, text| draft.config.limits.ping_timeout_ms = milliseconds(duration_some(text)?);
    "HTTP2_STREAM_WINDOW_SIZE", "4194304", "largest receive window of a stream, bytes",
        |draft, text| draft.config.limits.stream_window_max = number(text, 65_535, WINDOW_MAX)?;
    "HTTP2_CONNECTION_WINDOW_SIZE", "16777216, or 4 windows of a stream if they are larger", "receive window of a tunnel, bytes",
        |draft, text| draft.connection_window = Some(number(text, 65_535, WINDOW_MAX)?);
    "HTTP2_FRAME_SIZE", "1048576", "largest frame that is accepted, bytes",
        |draft, text| draft.config.limits.frame_size_max = number(text, FRAME_SIZE.0, FRAME_SIZE.1)?;
    "CONNECTION_TERMINATION_DEADLINE", "from TERMINATION_GRACE_PERIOD_SECONDS", "how long connections may run on at shutdown",
        |draft, text| draft.drain = Some(duration(text)?);
    "TERMINATION_GRACE_PERIOD_SECONDS", "none: 5 s to drain", "the pod's grace period; drain ends a little earlier",
        |draft, text| draft.grace = Some(duration(text)?);
    "TRUST_DOMAIN_ALIASES", "trustDomainAliases of ./etc/istio/config/mesh, if it is there",
        "other names of the workloads' trust domain, separated by commas",
        |draft, text| draft.config.trust_domain_aliases = names(text)?;
    "COMPLIANCE_POLICY", "none", "pqc: keys of tunnels are exchanged by X25519MLKEM768 alone",
        |draft, text| draft.config.options.tls.pqc_only =
            draft.known(("COMPLIANCE_POLICY", text), &[("pqc", true)], (false, "no policy holds"));
    "TLS12_ENABLED", "false", "let peers use TLS 1.2 that do not speak TLS 1.3",
        |draft, text| draft.config.options.tls.tls12 =
            draft.known(("TLS12_ENABLED", text), &[("true", true), ("false", false)], (false, "TLS 1.2 is not spoken"));
    "KEEPALIVE_ENABLED", "true", "probe silent TCP connections", |draft, text| draft.probes = boolean(text)?;
    "KEEPALIVE_TIME", "180s", "silence before the first probe", |draft, text| draft.keepalive.time_s = probe(text)?;
    "KEEPALIVE_INTERVAL", "180s", "between two probes", |draft, text| draft.keepalive.interval_s = probe(text)?;
    "KEEPALIVE_RETRIES", "9", "probes without an answer that end a connection",
        |draft, text| draft.keepalive.retries = number(text, 1, PROBES_MAX)?;
    "USER_TIMEOUT_ENABLED", "false", "end a connection whose bytes are not acknowledged for as long as probes would take",
        |draft, text| draft.user_timeout = boolean(text)?;
    "ENABLE_ORIG_SRC", "true where the kernel lets it", "applications see their clients' own addresses",
        |draft, text| draft.config.options.original_source = match boolean(text)? {
            true => OriginalSource::Always,
            false => OriginalSource::Never,
        };
    "INPOD_PORT_REUSE", "true", "several processes, and several shards, may listen on the ports in pods",
        |draft, text| draft.config.options.port_reuse = boolean(text)?;
    "LOCALHOST_APP_TUNNEL", "true", "reach applications that take the PROXY protocol at the loopback address",
        |draft, text| draft.config.application_tunnels_local = boolean(text)?;
    "ENABLE_RESPONSE_BAGGAGE", "true", "tell clients about the workload that answers them, and read what servers tell",
        |draft, text| draft.config.options.response_baggage = boolean(text)?;
    "UNSTABLE_ENABLE_SOCKS5", "false", "a SOCKS5 proxy on 127.0.0.1:15080 in every pod",
        |draft, text| draft.config.options.socks5 = boolean(text)?;
    "PACKET_MARK", "1337; none with PROXY_MODE=dedicated", "mark on packets from pods' network namespaces; 0 for none",
        |draft, text| draft.packet_mark = Some(mark(text)?);
    "IPV6_ENABLED", "true", "listen on IPv6 too", |draft, text| draft.config.ipv6 = boolean(text)?;
    "CLUSTER_DOMAIN", "cluster.local", "the cluster's DNS domain",
        |draft, text| draft.config.cluster_domain = text.trim_matches('.').to_ascii_lowercase();
    "ISTIO_META_DNS_CAPTURE", "true", "answer pods' DNS queries: true, or anything else for no; not with XDS_ON_DEMAND",
        |draft, text| draft.dns.capture = Some(text.into());
    "ISTIO_META_DNS_PROXY_ADDR", "localhost:15053", "where captured DNS queries come in, inside each pod",
        |draft, text| draft.dns.listen = Some(text.into());
    "HALO_DNS_SERVERS", "those of /etc/resolv.conf", "DNS servers, as pods reach them: 10.96.0.10,[fd00::a]:53",
        |draft, text| draft.dns.servers = Some(dns::servers(text)?);
    "HALO_ADMIN_ADDR", "127.0.0.1:15000", "admin server", |draft, text| draft.admin = Some(address(text)?);
    "HALO_READINESS_ADDR", "[::]:15021", "readiness server", |draft, text| draft.readiness = Some(address(text)?);
    "HALO_METRICS_ADDR", "[::]:15020", "metrics server", |draft, text| draft.metrics = Some(address(text)?);
    "AUTHZ_POLICY_INFO_LOGGING", "none", "taken for the stock node proxy's sake: refusals by policy are always logged",
        |_draft, text| mode::ignored(text);
    "RUST_LOG", "info", "log filter", |draft, text| draft.config.log_filter = text.into();
    "HALO_METRICS_EXPIRY", "5m", "how long metrics of workloads that are gone are shown after their last use",
        |draft, text| draft.config.metrics_expiry = duration_some(text)?;
    "LOG_FORMAT", "plain", "form of log lines: plain or json", |draft, text| draft.config.log_format =
        draft.known(("LOG_FORMAT", text), LOG_FORMATS, (LogFormat::Plain, "lines are plain"));
}

const LOG_FORMATS: &[(&str, LogFormat)] = &[("plain", LogFormat::Plain), ("json", LogFormat::Json)];

/// Names separated by commas.
fn names(text: &str) -> Result<Vec<String>, Reason> {
    let names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
    match names.iter().any(|name| name.is_empty() || name.contains(char::is_whitespace)) {
        true => Err("expected names separated by commas, such as old.example,older.example".to_owned()),
        false => Ok(names),
    }
}

/// Seconds that the kernel takes.
fn probe(text: &str) -> Result<u32, Reason> {
    let time = duration(text)?;
    let whole = time.subsec_nanos() == 0 && (1..=PROBE_S_MAX).contains(&time.as_secs());
    let seconds = u32::try_from(time.as_secs()).ok().filter(|_| whole);
    seconds.ok_or_else(|| format!("must be whole seconds, from 1 to {PROBE_S_MAX}"))
}

fn records(text: &str) -> Result<RecordsMode, Reason> {
    word(text, &[("sealed", RecordsMode::Sealed), ("rustls", RecordsMode::Rustls)])
}

fn ring(text: &str) -> Result<RingMode, Reason> {
    word(text, &[("auto", RingMode::Auto), ("io_uring", RingMode::IoUring), ("epoll", RingMode::Epoll)])
}

fn address(text: &str) -> Result<SocketAddr, Reason> {
    parse(text, "an address with its port, such as 127.0.0.1:15000 or [::]:15021")
}

/// A certificate's life. What certificates say of it, and what authorities are asked for, has no fractions of a second;
/// one of a single second would be renewed without pause.
fn life(text: &str) -> Result<Duration, Reason> {
    let life = duration_some(text)?;
    match life.subsec_nanos() == 0 && life >= LIFE_MIN {
        true => Ok(life),
        false => Err(format!("must be whole seconds, at least {}", LIFE_MIN.as_secs())),
    }
}

fn unknown_node() -> NodeFacts {
    NodeFacts {
        instance_ip: Ipv4Addr::new(1, 1, 1, 1).into(),
        pod_name: String::new(),
        pod_namespace: String::new(),
        service_account: String::new(),
        node_name: String::new(),
        metadata: BTreeMap::new(),
        json: BTreeMap::new(),
    }
}

impl Default for Draft {
    fn default() -> Self {
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
        let config = Config {
            node: String::new(),
            network: String::new(),
            cluster: "Kubernetes".into(),
            trust_domain: "cluster.local".into(),
            preferred_namespace: None,
            mesh_version: "unknown".into(),
            zds_path: "/var/run/ztunnel/ztunnel.sock".into(),
            local: None,
            secret_ttl: Duration::from_secs(24 * 3600),
            xds: None,
            xds_on_demand: false,
            ca: CaSource::Memory,
            crl_path: None,
            facts: unknown_node(),
            mode: ProxyMode::Shared,
            shards: ShardCount::Auto,
            cpu: CpuBudget::default(),
            arguments: String::new(),
            cores: None,
            records: RecordsMode::Sealed,
            ring: RingMode::Auto,
            ipv6: true,
            dns: DnsSettings { capture: true, held_back: false, listen: Vec::new(), servers: Vec::new() },
            cluster_domain: "cluster.local".into(),
            admin: any,
            readiness: any,
            metrics: any,
            log_filter: "info".into(),
            log_format: LogFormat::Plain,
            metrics_expiry: Duration::from_secs(300),
            limits: Limits::default(),
            options: Options::default(),
            trust_domain_aliases: Vec::new(),
            application_tunnels_local: true,
            unknown: Vec::new(),
        };
        Self {
            config,
            xds: UpstreamDraft::default(),
            ca: UpstreamDraft::default(),
            ca_dir: None,
            token: None,
            client_certificate: None,
            client_key: None,
            kubernetes: false,
            keepalive: Keepalive::default(),
            probes: true,
            user_timeout: false,
            proxy: ProxyConfig::default(),
            mode: Kind::Shared,
            workload: None,
            packet_mark: None,
            shards: None,
            local_path: None,
            local_inline: None,
            drain: None,
            grace: None,
            admin: None,
            readiness: None,
            metrics: None,
            stats_port: 15_020,
            discovery: None,
            dns: DnsDraft::default(),
            connection_window: None,
        }
    }
}

impl Draft {
    /// One of a few words. The stock node proxy takes any other for one that it does not know, and starts; so does this
    /// one, and says what holds.
    fn known<T: Copy>(
        &mut self,
        (variable, text): (&str, &str),
        words: &[(&str, T)],
        (otherwise, held): (T, &str),
    ) -> T {
        word(text, words).unwrap_or_else(|reason| {
            self.config.unknown.push(format!("{variable}={text:?}: {reason}; {held}"));
            otherwise
        })
    }
}

/// Reads every row, lets flags win, then settles what depends on several values.
pub(super) fn resolve(variables: &Variables, overrides: &Overrides) -> Result<Config, ConfigError> {
    let mut draft = Draft::default();
    if let Some(text) = &variables.files().mesh_config {
        let mesh = MeshConfig::parse(text).map_err(|reason| refuse(MESH_CONFIG, "(its text)", reason))?;
        draft.proxy = mesh.default_config.unwrap_or_default();
        draft.config.trust_domain_aliases = mesh.trust_domain_aliases;
    }
    for variable in VARIABLES {
        match variable.name.strip_suffix('*') {
            None => take(&mut draft, variable, "", variables.value(variable.name))?,
            Some(prefix) => {
                for (rest, value) in variables.starting_with(prefix) {
                    take(&mut draft, variable, rest, Some(value))?;
                }
            }
        }
    }
    draft.xds.disabled = variables.is_set_empty("XDS_ADDRESS");
    draft.ca.disabled = variables.is_set_empty("CA_ADDRESS");
    override_with(&mut draft, overrides)?;
    adopt(&mut draft);
    settle(draft, variables.files())
}

fn take(draft: &mut Draft, variable: &Variable, rest: &str, value: Option<&str>) -> Result<(), ConfigError> {
    let Some(value) = value else { return Ok(()) };
    (variable.set)(draft, rest, value).map_err(|reason| {
        let name = format!("{}{rest}", variable.name.trim_end_matches('*'));
        let secret = matches!(variable.name, "AUTH_TOKEN" | "XDS_HEADER_*" | "CA_HEADER_*");
        refuse(name, if secret { "(not shown)" } else { value }, reason)
    })
}

/// Takes what `PROXY_CONFIG` says where no variable or flag says otherwise.
fn adopt(draft: &mut Draft) {
    let proxy = std::mem::take(&mut draft.proxy);
    let own = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), proxy.proxy_admin_port.unwrap_or(15_000));
    draft.admin = draft.admin.or(Some(own));
    draft.stats_port = proxy.stats_port.unwrap_or(15_020);
    let of = |count: u16| NonZeroU32::new(count.into()).map_or(ShardCount::EveryCore, ShardCount::Count);
    draft.config.shards = draft.shards.or(proxy.concurrency.map(of)).unwrap_or(ShardCount::Auto);
    for (name, value) in proxy.proxy_metadata {
        let name = name.strip_prefix("ISTIO_META_").unwrap_or(&name);
        draft.config.facts.metadata.entry(name.to_owned()).or_insert(value);
    }
    draft.discovery = proxy.discovery_address;
}

pub(super) fn refuse(
    variable: impl Into<Cow<'static, str>>,
    value: &str,
    reason: impl Into<String>,
) -> ConfigError {
    ConfigError { variable: variable.into(), value: value.to_owned(), reason: reason.into() }
}

fn override_with(draft: &mut Draft, flags: &Overrides) -> Result<(), ConfigError> {
    let config = &mut draft.config;
    if let Some(node) = &flags.node {
        config.node.clone_from(node);
    }
    if let Some(path) = &flags.zds {
        config.zds_path.clone_from(path);
    }
    if let Some(filter) = &flags.log {
        config.log_filter.clone_from(filter);
    }
    if let Some(text) = &flags.shards {
        draft.shards = Some(shard_count(text).map_err(|reason| refuse("--shards", text, reason))?);
    }
    if let Some(text) = &flags.cores {
        let cores = Cores::parse(text).map_err(|reason| refuse("--cores", text, reason))?;
        config.cores = Some(cores);
    }
    if let Some(text) = &flags.ring {
        config.ring = ring(text).map_err(|reason| refuse("--ring", text, reason))?;
    }
    if let Some(text) = &flags.records {
        config.records = records(text).map_err(|reason| refuse("--records", text, reason))?;
    }
    if flags.ca_dir.is_some() {
        draft.ca_dir.clone_from(&flags.ca_dir);
    }
    if flags.local.is_some() {
        draft.local_path.clone_from(&flags.local);
        draft.local_inline = None;
    }
    config.arguments.clone_from(&flags.arguments);
    draft.admin = flags.admin.or(draft.admin);
    draft.readiness = flags.readiness.or(draft.readiness);
    draft.metrics = flags.metrics.or(draft.metrics);
    Ok(())
}

fn settle(mut draft: Draft, files: &Files) -> Result<Config, ConfigError> {
    draft.config.local = match (draft.local_path.take(), draft.local_inline.take()) {
        (Some(path), Some(_)) => {
            let path = path.display().to_string();
            return Err(refuse("LOCAL_XDS_PATH", &path, "LOCAL_XDS is set too; only one may be"));
        }
        (Some(path), None) => Some(LocalSource::File(path)),
        (None, inline) => inline.map(LocalSource::Inline),
    };
    upstream::settle(&mut draft, files)?;
    let mut config = draft.config;
    config.mode = mode::settle(draft.mode, draft.workload.take())?;
    let unmarked = matches!(config.mode, ProxyMode::Dedicated(_));
    let mark = draft.packet_mark.unwrap_or(if unmarked { 0 } else { config.limits.packet_mark });
    config.limits.packet_mark = mark;
    let (metadata, resolv_conf) = (&config.facts.metadata, files.resolv_conf.as_deref());
    config.dns = draft.dns.settle(metadata, resolv_conf, config.xds_on_demand)?;
    config.facts.node_name.clone_from(&config.node);
    config.options.keepalive = draft.probes.then_some(draft.keepalive);
    config.options.user_timeout_s = draft.user_timeout.then(|| draft.keepalive.total_s());
    let limits = &mut config.limits;
    // A tunnel whose streams have large windows carries several of them at full speed.
    let fitting = limits.stream_window_max.saturating_mul(4).min(WINDOW_MAX).max(limits.connection_window);
    limits.connection_window = draft.connection_window.unwrap_or(fitting);
    if limits.connection_window < limits.stream_window_max {
        let reason = format!("must not be below HTTP2_STREAM_WINDOW_SIZE, {}", limits.stream_window_max);
        return Err(refuse("HTTP2_CONNECTION_WINDOW_SIZE", &limits.connection_window.to_string(), reason));
    }
    if limits.connect_answer_ms_max < limits.connect_ms_max {
        // The answer waits for the far side's own connect.
        let reason = format!("must not be below HALO_CONNECT_TIMEOUT, {}ms", limits.connect_ms_max);
        return Err(refuse("HALO_ANSWER_TIMEOUT", &format!("{}ms", limits.connect_answer_ms_max), reason));
    }
    limits.stream_window_initial = limits.stream_window_initial.min(limits.stream_window_max);
    limits.drain_ms_max = match (draft.drain, draft.grace) {
        (Some(drain), _) => milliseconds(drain),
        (None, Some(grace)) => milliseconds(drain_within(grace)),
        (None, None) => limits.drain_ms_max,
    };
    let any = |port| match config.ipv6 {
        true => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port),
        false => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port),
    };
    config.admin = draft.admin.unwrap_or(config.admin);
    config.readiness = draft.readiness.unwrap_or(any(15_021));
    config.metrics = draft.metrics.unwrap_or(any(draft.stats_port));
    Ok(config)
}

/// Leaves time within the grace period to end after the drain: 5 s of a long one, 1 s of a short one.
fn drain_within(grace: Duration) -> Duration {
    let margin = if grace > Duration::from_secs(10) { 5 } else { 1 };
    grace.saturating_sub(Duration::from_secs(margin)).max(Duration::from_secs(1))
}
