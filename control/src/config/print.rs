//! The configuration as text, in the names that operators know.

use serde_json::{Value, json};

use super::{CaSource, Config, LocalSource, LogFormat, NodeFacts, RecordsMode, RingMode, ShardCount};
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
    json!({
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
    })
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
