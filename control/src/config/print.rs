//! The configuration as text, in the names that operators know.

use halo_core::net::{HBONE_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT, SOCKS5_PORT};
use halo_core::options::{Options, OriginalSource};
use halo_core::zds::WorkloadInfo;
use serde_json::{Value, json};

use super::{
    CaSource, Config, LocalSource, LogFormat, NodeFacts, ProxyMode, RecordsMode, RingMode, ShardCount,
};
use crate::grpc::{Roots, UpstreamConfig};

/// The form of a printed configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrintFormat {
    /// YAML.
    Yaml,
    /// JSON.
    Json,
}

pub(super) fn print(config: &Config, format: PrintFormat) -> String {
    let value = to_json(config);
    // Both writers fail only on values that JSON cannot hold, and this is a JSON value.
    let text = match format {
        PrintFormat::Yaml => serde_saphyr::to_string(&value).ok(),
        PrintFormat::Json => serde_json::to_string_pretty(&value).ok(),
    };
    text.unwrap_or_else(|| value.to_string())
}

pub(super) fn to_json(config: &Config) -> Value {
    let local = config.local.as_ref().map(|source| match source {
        LocalSource::File(path) => json!({ "path": path }),
        LocalSource::Inline(text) => json!({ "inlineBytes": text.len() }),
    });
    let mut all = json!({
        "localNode": config.node,
        "network": config.network,
        "clusterId": config.cluster,
        "trustDomain": config.trust_domain,
        "preferedServiceNamespace": config.preferred_namespace,
        "meshVersion": config.mesh_version,
        "inpodUds": config.zds_path,
        "localXds": local,
        "secretTtl": seconds(config.secret_ttl.as_secs_f64()),
        "xds": config.xds.as_ref().map(upstream),
        "xdsOnDemand": config.xds_on_demand,
        "ca": match &config.ca {
            CaSource::Memory => json!("memory"),
            CaSource::Directory(directory) => json!({ "dir": directory }),
            CaSource::Remote(ca) => upstream(ca),
        },
        "crlPath": config.crl_path,
        "node": facts(&config.facts),
        "workerThreads": shards(config.shards),
        "cores": config.cores.as_ref().map(ToString::to_string),
        "records": match config.records {
            RecordsMode::Sealed => "sealed",
            RecordsMode::Rustls => "rustls",
        },
        "ring": match config.ring {
            RingMode::Auto => "auto",
            RingMode::IoUring => "io_uring",
            RingMode::Epoll => "epoll",
        },
        "ipv6Enabled": config.ipv6,
        "clusterDomain": config.cluster_domain,
        "dnsProxy": config.dns.capture,
        "dnsProxyAddr": config.dns.listen,
        "dnsServers": config.dns.servers,
        "adminAddr": config.admin,
        "readinessAddr": config.readiness,
        "statsAddr": config.metrics,
        "log": config.log_filter,
        "logFormat": match config.log_format {
            LogFormat::Plain => "plain",
            LogFormat::Json => "json",
        },
        "limits": limits(config),
        "trustDomainAliases": config.trust_domain_aliases,
        "localhostAppTunnel": config.application_tunnels_local,
        "options": options(&config.options),
    });
    if let (Some(all), Value::Object(stock)) = (all.as_object_mut(), stock(config)) {
        all.extend(stock);
    }
    all
}

/// What the stock node proxy has under names of its own, so that whoever looks for them finds them.
fn stock(config: &Config) -> Value {
    let limits = &config.limits;
    let wildcard = config.readiness.ip();
    let on = |port| std::net::SocketAddr::new(wildcard, port);
    let ca = match &config.ca {
        CaSource::Remote(ca) => Some(ca),
        CaSource::Memory | CaSource::Directory(_) => None,
    };
    let dedicated = match &config.mode {
        ProxyMode::Dedicated(workload) => Some(workload),
        ProxyMode::Shared => None,
    };
    let mut illegal = vec![OUTBOUND_PORT, INBOUND_PLAINTEXT_PORT, HBONE_PORT];
    illegal.extend(config.options.socks5.then_some(SOCKS5_PORT));
    let own = config.own_workload();
    let own_identity = own.as_ref().map(|own| {
        format!("spiffe://{}/ns/{}/sa/{}", config.trust_domain, own.namespace, own.service_account)
    });
    json!({
        "proxy": true,
        "proxyMode": if dedicated.is_some() { "Dedicated" } else { "Shared" },
        "proxyWorkloadInformation": dedicated.map(workload),
        "proxyArgs": config.arguments,
        "proxyMetadata": config.facts.metadata,
        "ztunnelIdentity": own_identity,
        "ztunnelWorkload": own.as_ref().map(workload),
        "fakeCa": false,
        "xdsAddress": config.xds.as_ref().map(|xds| &xds.address),
        "altXdsHostname": config.xds.as_ref().and_then(|xds| xds.alt_hostname.as_ref()),
        "caAddress": ca.map(|ca| &ca.address),
        "altCaHostname": ca.and_then(|ca| ca.alt_hostname.as_ref()),
        "windowSize": limits.stream_window_max,
        "connectionWindowSize": limits.connection_window,
        "frameSize": limits.frame_size_max,
        "poolMaxStreamsPerConn": limits.streams_per_tunnel_max,
        "poolUnusedReleaseTimeout": milliseconds(limits.tunnel_idle_ms_max),
        "selfTerminationDeadline": milliseconds(limits.drain_ms_max),
        "packetMark": (limits.packet_mark != 0).then_some(limits.packet_mark),
        "outboundAddr": on(OUTBOUND_PORT),
        "inboundPlaintextAddr": on(INBOUND_PLAINTEXT_PORT),
        "inboundAddr": on(HBONE_PORT),
        "illegalPorts": illegal,
    })
}

fn workload(info: &WorkloadInfo) -> Value {
    json!({
        "name": *info.name,
        "namespace": *info.namespace,
        "serviceAccount": *info.service_account,
    })
}

fn milliseconds(milliseconds: u64) -> String {
    seconds(milliseconds as f64 / 1000.0)
}

fn upstream(upstream: &UpstreamConfig) -> Value {
    let headers: Vec<_> = upstream.headers.iter().map(|(name, _)| name).collect();
    let client = upstream.client_certificate.as_ref();
    json!({
        "address": upstream.address,
        "rootCert": match &upstream.roots {
            Roots::File(path) => json!({ "path": path }),
            Roots::Inline(text) => json!({ "inlineBytes": text.len() }),
            Roots::System => json!("system"),
        },
        "altHostname": upstream.alt_hostname,
        "token": upstream.token.to_string(),
        "clientCertificate": client.map(|(certificate, key)| json!({ "path": certificate, "keyPath": key })),
        "clusterId": upstream.cluster,
        // Their values may be secrets.
        "headers": headers,
    })
}

fn facts(facts: &NodeFacts) -> Value {
    json!({
        "instanceIp": facts.instance_ip,
        "podName": facts.pod_name,
        "podNamespace": facts.pod_namespace,
        "serviceAccount": facts.service_account,
        "nodeName": facts.node_name,
        "proxyMetadata": facts.metadata,
        "jsonMetadata": facts.json,
    })
}

fn seconds(seconds: f64) -> String {
    format!("{seconds}s")
}

fn shards(count: ShardCount) -> String {
    match count {
        ShardCount::Auto => "auto".into(),
        ShardCount::EveryCore => "0".into(),
        ShardCount::Count(count) => count.to_string(),
        ShardCount::Percent(percent) => format!("{percent}%"),
    }
}

fn options(options: &Options) -> Value {
    json!({
        "compliancePolicy": options.tls.pqc_only.then_some("pqc"),
        "tls12Enabled": options.tls.tls12,
        "keepalive": options.keepalive.map(|keepalive| json!({
            "time": seconds(keepalive.time_s.into()),
            "interval": seconds(keepalive.interval_s.into()),
            "retries": keepalive.retries,
        })),
        "userTimeout": options.user_timeout_s.map(|timeout| seconds(timeout.into())),
        "origSrc": match options.original_source {
            OriginalSource::Auto => json!("auto"),
            OriginalSource::Always => json!(true),
            OriginalSource::Never => json!(false),
        },
        "inpodPortReuse": options.port_reuse,
        "responseBaggage": options.response_baggage,
        "socks5": options.socks5,
    })
}

fn limits(config: &Config) -> Value {
    let limits = &config.limits;
    json!({
        "connectMsMax": limits.connect_ms_max,
        "handshakeMsMax": limits.handshake_ms_max,
        "connectAnswerMsMax": limits.connect_answer_ms_max,
        "halfCloseMsMax": limits.half_close_ms_max,
        "lookupMsMax": limits.lookup_ms_max,
        "streamsPerTunnelMax": limits.streams_per_tunnel_max,
        "tunnelIdleMsMax": limits.tunnel_idle_ms_max,
        "pingIntervalMs": limits.ping_interval_ms,
        "pingTimeoutMs": limits.ping_timeout_ms,
        "streamWindowInitial": limits.stream_window_initial,
        "streamWindowMax": limits.stream_window_max,
        "connectionWindow": limits.connection_window,
        "frameSizeMax": limits.frame_size_max,
        "connectionsPerPodMax": limits.connections_per_pod_max,
        "packetMark": limits.packet_mark,
        "drainMsMax": limits.drain_ms_max,
    })
}
