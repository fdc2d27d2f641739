//! Workloads.

use std::collections::BTreeMap;
use std::sync::Arc;

use halo_core::service::ServiceKey;
use halo_core::workload::{
    ApplicationProtocol, ApplicationTunnel, Health, Locality, NetworkMode, PortMap, Protocol, Workload,
    WorkloadType,
};

use super::parts::{gateway, ip, known, octets, port, ports, raw_gateway, raw_ports, raw_texts, texts};
use super::{Interner, WireError};
use crate::proto::workload::{self as proto, PortList};

/// The cluster of a workload that names none.
const CLUSTER: &str = "Kubernetes";
/// The trust domain of a workload that names none.
const TRUST_DOMAIN: &str = "cluster.local";
/// The service account of a workload that names none.
const SERVICE_ACCOUNT: &str = "default";

pub(super) fn decode(raw: proto::Workload, interner: &mut Interner) -> Result<Workload, WireError> {
    if raw.uid.is_empty() {
        return Err(WireError::field("workload.uid", "empty", "the workload's key"));
    }
    let addresses =
        raw.addresses.iter().map(|bytes| ip("workload.addresses", bytes)).collect::<Result<_, _>>()?;
    let mut to = |field, raw: Option<_>| raw.map(|raw| gateway(field, raw, interner)).transpose();
    let waypoint = to("workload.waypoint", raw.waypoint)?;
    let network_gateway = to("workload.network_gateway", raw.network_gateway)?;
    Ok(Workload {
        protocol: protocol(raw.tunnel_protocol)?,
        network_mode: network_mode(raw.network_mode)?,
        workload_type: workload_type(raw.workload_type)?,
        health: health(raw.status)?,
        application_tunnel: raw.application_tunnel.map(application_tunnel).transpose()?,
        services: services(raw.services, interner)?.into(),
        uid: raw.uid.into(),
        // A pod's own name is rarely that of another.
        name: raw.name.into(),
        namespace: interner.share(&raw.namespace),
        addresses,
        network: interner.share(&raw.network),
        trust_domain: or(&raw.trust_domain, TRUST_DOMAIN, interner),
        service_account: or(&raw.service_account, SERVICE_ACCOUNT, interner),
        waypoint: waypoint.map(Box::new),
        network_gateway: network_gateway.map(Box::new),
        node: interner.share(&raw.node),
        canonical_name: interner.share(&raw.canonical_name),
        canonical_revision: interner.share(&raw.canonical_revision),
        workload_name: interner.share(&raw.workload_name),
        native_tunnel: raw.native_tunnel,
        authorization_policies: texts(raw.authorization_policies, interner).into(),
        cluster_id: or(&raw.cluster_id, CLUSTER, interner),
        locality: locality(raw.locality.unwrap_or_default(), interner),
        hostname: interner.share(&raw.hostname),
        capacity: raw.capacity,
    })
}

fn or(text: &str, default: &str, interner: &mut Interner) -> Arc<str> {
    interner.share(if text.is_empty() { default } else { text })
}

fn protocol(number: i32) -> Result<Protocol, WireError> {
    let field = "workload.tunnel_protocol";
    let expected = "NONE (0) or HBONE (1)";
    match known(field, number, expected)? {
        proto::TunnelProtocol::None => Ok(Protocol::Tcp),
        proto::TunnelProtocol::Hbone => Ok(Protocol::Hbone),
        proto::TunnelProtocol::LegacyIstioMtls => {
            Err(WireError::field(field, "LEGACY_ISTIO_MTLS (2)", expected))
        }
    }
}

fn network_mode(number: i32) -> Result<NetworkMode, WireError> {
    Ok(match known("workload.network_mode", number, "STANDARD (0) or HOST_NETWORK (1)")? {
        proto::NetworkMode::Standard => NetworkMode::Standard,
        proto::NetworkMode::HostNetwork => NetworkMode::HostNetwork,
    })
}

fn workload_type(number: i32) -> Result<WorkloadType, WireError> {
    let expected = "DEPLOYMENT (0), CRONJOB (1), POD (2) or JOB (3)";
    Ok(match known("workload.workload_type", number, expected)? {
        proto::WorkloadType::Deployment => WorkloadType::Deployment,
        proto::WorkloadType::Cronjob => WorkloadType::CronJob,
        proto::WorkloadType::Pod => WorkloadType::Pod,
        proto::WorkloadType::Job => WorkloadType::Job,
    })
}

fn health(number: i32) -> Result<Health, WireError> {
    Ok(match known("workload.status", number, "HEALTHY (0) or UNHEALTHY (1)")? {
        proto::WorkloadStatus::Healthy => Health::Healthy,
        proto::WorkloadStatus::Unhealthy => Health::Unhealthy,
    })
}

fn application_tunnel(raw: proto::ApplicationTunnel) -> Result<ApplicationTunnel, WireError> {
    use proto::application_tunnel::Protocol;
    let field = "workload.application_tunnel";
    let number = port(&format!("{field}.port"), raw.port)?;
    Ok(ApplicationTunnel {
        protocol: match known(&format!("{field}.protocol"), raw.protocol, "NONE (0) or PROXY (1)")? {
            Protocol::None => ApplicationProtocol::None,
            Protocol::Proxy => ApplicationProtocol::Proxy,
        },
        port: (number != 0).then_some(number),
    })
}

fn services(
    raw: BTreeMap<String, PortList>,
    interner: &mut Interner,
) -> Result<BTreeMap<ServiceKey, PortMap>, WireError> {
    let mut services = BTreeMap::new();
    for (text, list) in raw {
        let parts = text.split_once('/').filter(|(_, hostname)| !hostname.contains('/'));
        let Some((namespace, hostname)) = parts else {
            let expected = "namespace/hostname, with one slash";
            return Err(WireError::field("workload.services", format!("{text:?}"), expected));
        };
        let key = ServiceKey { namespace: interner.share(namespace), hostname: interner.share(hostname) };
        services.insert(key, ports("workload.services.ports", list.ports)?);
    }
    Ok(services)
}

fn locality(raw: proto::Locality, interner: &mut Interner) -> Locality {
    Locality {
        region: interner.share(&raw.region),
        zone: interner.share(&raw.zone),
        subzone: interner.share(&raw.subzone),
    }
}

pub(super) fn encode(workload: &Workload) -> proto::Workload {
    proto::Workload {
        name: workload.name.to_string(),
        namespace: workload.namespace.to_string(),
        addresses: workload.addresses.iter().map(|ip| octets(*ip)).collect(),
        network: workload.network.to_string(),
        tunnel_protocol: match workload.protocol {
            Protocol::Tcp => proto::TunnelProtocol::None,
            Protocol::Hbone => proto::TunnelProtocol::Hbone,
        }
        .into(),
        trust_domain: workload.trust_domain.to_string(),
        service_account: workload.service_account.to_string(),
        waypoint: workload.waypoint.as_deref().map(raw_gateway),
        node: workload.node.to_string(),
        canonical_name: workload.canonical_name.to_string(),
        canonical_revision: workload.canonical_revision.to_string(),
        workload_type: match workload.workload_type {
            WorkloadType::Deployment => proto::WorkloadType::Deployment,
            WorkloadType::CronJob => proto::WorkloadType::Cronjob,
            WorkloadType::Pod => proto::WorkloadType::Pod,
            WorkloadType::Job => proto::WorkloadType::Job,
        }
        .into(),
        workload_name: workload.workload_name.to_string(),
        native_tunnel: workload.native_tunnel,
        authorization_policies: raw_texts(&workload.authorization_policies),
        status: match workload.health {
            Health::Healthy => proto::WorkloadStatus::Healthy,
            Health::Unhealthy => proto::WorkloadStatus::Unhealthy,
        }
        .into(),
        cluster_id: workload.cluster_id.to_string(),
        network_gateway: workload.network_gateway.as_deref().map(raw_gateway),
        uid: workload.uid.to_string(),
        hostname: workload.hostname.to_string(),
        services: workload.services.iter().map(raw_service).collect(),
        application_tunnel: workload.application_tunnel.as_ref().map(raw_application_tunnel),
        locality: raw_locality(&workload.locality),
        network_mode: match workload.network_mode {
            NetworkMode::Standard => proto::NetworkMode::Standard,
            NetworkMode::HostNetwork => proto::NetworkMode::HostNetwork,
        }
        .into(),
        capacity: workload.capacity,
    }
}

fn raw_service((key, ports): (&ServiceKey, &PortMap)) -> (String, PortList) {
    (key.to_string(), PortList { ports: raw_ports(ports) })
}

fn raw_application_tunnel(tunnel: &ApplicationTunnel) -> proto::ApplicationTunnel {
    use proto::application_tunnel::Protocol;
    let protocol = match tunnel.protocol {
        ApplicationProtocol::None => Protocol::None,
        ApplicationProtocol::Proxy => Protocol::Proxy,
    };
    proto::ApplicationTunnel { protocol: protocol.into(), port: tunnel.port.unwrap_or_default().into() }
}

/// A locality that says nothing is left out.
fn raw_locality(locality: &Locality) -> Option<proto::Locality> {
    let said = [&locality.region, &locality.zone, &locality.subzone].iter().any(|text| !text.is_empty());
    said.then(|| proto::Locality {
        region: locality.region.to_string(),
        zone: locality.zone.to_string(),
        subzone: locality.subzone.to_string(),
    })
}
