//! The shape of `config_dump`, key by key as the stock node proxy's tools read it. Lists are sorted, so that two dumps
//! of the same state are equal. Private keys are not part of it.

mod mesh;

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use halo_core::certificate::Certificate;
use halo_core::id::Identity;
use halo_core::report::{ConnectionReport, Direction, ShardReport, Transport};
use halo_core::snapshot::Snapshot;
use halo_core::zds::PodState;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::ca::pem;
use crate::certs::CertificateView;
use crate::certs::keeper::State;
use crate::config::LocalSource;
use crate::pods::{PodView, Pods};
use crate::readiness::Part;
use crate::source::SourceStatus;
use crate::version::Version;
use crate::xds::XdsStatus;

/// What a dump is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) config: Value,
    /// Version of the mesh.
    pub(crate) mesh_version: String,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) pods: Pods,
    pub(crate) certificates: CertificateView,
    /// The local source, if there is one.
    pub(crate) local: Option<LocalSource>,
    /// Of the local source, if there is one.
    pub(crate) source: Option<SourceStatus>,
    /// Of the control plane, if there is one, with its address.
    pub(crate) xds: Option<(Arc<str>, XdsStatus)>,
    pub(crate) pending: BTreeMap<Part, String>,
    pub(crate) shards: Vec<ShardReport>,
}

/// The dump as text.
pub(crate) fn write(parts: &Parts) -> String {
    let value = value(parts);
    serde_json::to_string_pretty(&value).unwrap_or_else(|_| value.to_string())
}

fn value(parts: &Parts) -> Value {
    let snapshot = &parts.snapshot;
    json!({
        "certificates": parts.certificates.iter().map(certificate).collect::<Vec<_>>(),
        "config": parts.config,
        "policies": mesh::policies(snapshot),
        "services": mesh::services(snapshot),
        "stagedServices": mesh::staged_services(snapshot),
        "staticConfig": static_config(parts.local.as_ref()),
        "version": Version { mesh: &parts.mesh_version }.to_json(),
        "workloads": mesh::workloads(snapshot),
        "workloadState": workload_state(parts),
        "halo": halo(parts),
    })
}

/// The local source as it is written at this moment. A text that cannot be read is told of under `halo`, by whoever
/// follows it.
fn static_config(local: Option<&LocalSource>) -> Value {
    let text = match local {
        Some(LocalSource::File(path)) => std::fs::read_to_string(path).unwrap_or_default(),
        Some(LocalSource::Inline(text)) => text.clone(),
        None => String::new(),
    };
    let written = serde_saphyr::from_str::<Option<Map<String, Value>>>(&text).ok().flatten();
    let mut written = written.unwrap_or_default();
    for list in ["workloads", "services", "policies"] {
        let held = written.entry(list).or_insert_with(|| json!([]));
        if held.is_null() {
            *held = json!([]);
        }
    }
    Value::Object(written)
}

fn certificate((identity, state): &(Identity, State)) -> Value {
    let (text, certificate) = match state {
        State::Initializing => ("Initializing".to_owned(), None),
        State::Available(certificate) => ("Available".to_owned(), Some(certificate)),
        State::Unavailable(reason) => (format!("Unavailable: {reason}"), None),
    };
    let list = |of: fn(&Certificate) -> &Vec<Vec<u8>>| -> Vec<Value> {
        certificate
            .map(|certificate| of(certificate).iter().map(|der| x509(der)).collect())
            .unwrap_or_default()
    };
    json!({
        "identity": identity.to_string(),
        "state": text,
        "certChain": list(|certificate| &certificate.chain),
        "rootCerts": list(|certificate| &certificate.roots),
    })
}

fn x509(der: &[u8]) -> Value {
    let parsed = X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate);
    let serial = parsed.as_ref().map(|certificate| certificate.serial.to_string()).unwrap_or_default();
    let date = |seconds: i64| OffsetDateTime::from_unix_timestamp(seconds).ok()?.format(&Rfc3339).ok();
    let validity = parsed.as_ref().map(|certificate| certificate.validity());
    let date = |time: Option<i64>| time.and_then(date).unwrap_or_default();
    json!({
        "pem": STANDARD.encode(pem(der)),
        "serialNumber": serial,
        "validFrom": date(validity.map(|validity| validity.not_before.timestamp())),
        "expirationTime": date(validity.map(|validity| validity.not_after.timestamp())),
    })
}

fn workload_state(parts: &Parts) -> Value {
    let connections: Vec<_> = parts.shards.iter().flat_map(|shard| &shard.connections).collect();
    let pod = |(uid, pod): (&Arc<str>, &PodView)| {
        let state = match pod.state {
            PodState::Running => "Up",
            PodState::Starting | PodState::Pending => "Pending",
        };
        let value = json!({
            "state": state,
            "info": {
                "name": *pod.info.name,
                "namespace": *pod.info.namespace,
                "serviceAccount": *pod.info.service_account,
            },
            "connections": {
                "inbound": of_pod(&connections, uid, Direction::Inbound),
                "outbound": of_pod(&connections, uid, Direction::Outbound),
            },
        });
        (uid.to_string(), value)
    };
    Value::Object(parts.pods.iter().map(pod).collect())
}

fn of_pod(connections: &[&ConnectionReport], uid: &Arc<str>, direction: Direction) -> Vec<Value> {
    let mut own: Vec<_> =
        connections.iter().filter(|report| report.pod == *uid && report.direction == direction).collect();
    own.sort_by_key(|report| (report.source, report.destination));
    own.into_iter().map(|report| Value::Object(connection(report))).collect()
}

/// What operators' tools read of a connection. Of an inbound one, the original destination is the host that was asked
/// for, if one was.
fn connection(report: &ConnectionReport) -> Map<String, Value> {
    let original = match report.direction {
        Direction::Inbound => report.service.as_deref(),
        Direction::Outbound => Some(report.original_destination.as_str()),
    };
    let mut out = Map::new();
    out.insert("src".into(), json!(report.source));
    out.insert("originalDst".into(), json!(original));
    out.insert("actualDst".into(), json!(report.destination));
    let protocol = match report.transport {
        Transport::Tcp => "TCP",
        Transport::Hbone => "HBONE",
        Transport::DoubleHbone => "DOUBLEHBONE",
    };
    out.insert("protocol".into(), json!(protocol));
    out
}

/// Halo's own view.
fn halo(parts: &Parts) -> Value {
    let pending: Map<_, _> =
        parts.pending.iter().map(|(part, why)| (part.name().into(), json!(why))).collect();
    json!({
        "generation": parts.snapshot.generation,
        "pending": pending,
        "source": parts.source.as_ref().map(source),
        "xds": parts.xds.as_ref().map(xds),
        "shards": parts.shards.iter().map(shard).collect::<Vec<_>>(),
    })
}

fn source(status: &SourceStatus) -> Value {
    json!({
        "synced": status.synced,
        "loads": status.loads,
        "errors": status.errors,
        "error": status.error.as_deref(),
    })
}

fn xds((address, status): &(Arc<str>, XdsStatus)) -> Value {
    json!({
        "address": **address,
        "synced": status.synced,
        "connected": status.connected,
        "error": status.error.as_deref(),
        "resourcesRejected": status.counters.session.rejected,
    })
}

fn shard(report: &ShardReport) -> Value {
    let counters: Map<_, _> =
        report.counters.iter().map(|(name, total)| ((*name).into(), json!(total))).collect();
    let identity = |identity: &Option<Identity>| json!(identity.as_ref().map(Identity::to_string));
    let connections = report.connections.iter().map(|one| {
        let mut out = connection(one);
        let direction = match one.direction {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        };
        out.insert("pod".into(), json!(*one.pod));
        out.insert("direction".into(), json!(direction));
        out.insert("asked".into(), json!(one.original_destination));
        out.insert("service".into(), json!(one.service.as_deref()));
        out.insert("srcIdentity".into(), identity(&one.source_identity));
        out.insert("dstIdentity".into(), identity(&one.destination_identity));
        out.insert("bytesReceived".into(), json!(one.bytes_received));
        out.insert("bytesSent".into(), json!(one.bytes_sent));
        Value::Object(out)
    });
    json!({
        "shard": report.shard,
        "core": report.core,
        "ring": report.ring,
        "generation": report.generation,
        "cpuNs": report.cpu_ns,
        "pods": report.pods,
        "tunnels": report.tunnels,
        "counters": counters,
        "connections": connections.collect::<Vec<_>>(),
    })
}
