//! A workload: one pod, virtual machine or external endpoint that the mesh knows (WDS `istio.workload.Workload`).

use std::net::IpAddr;
use std::sync::Arc;

use crate::few::{Few, FewMap};
use crate::id::Identity;
use crate::net::NetworkAddress;
use crate::service::ServiceKey;

/// How a workload is reached (WDS `TunnelProtocol`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// Plain TCP: the workload is outside the mesh.
    #[default]
    Tcp,
    /// Mutual TLS and HTTP/2 CONNECT on port 15008.
    Hbone,
}

/// What an application speaks behind its tunnel (WDS `ApplicationTunnel.Protocol`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ApplicationProtocol {
    /// Bytes as they come.
    #[default]
    None,
    /// A PROXY protocol header before them.
    Proxy,
}

/// How traffic is handed to a workload that wants to know its client, such as a waypoint (WDS `ApplicationTunnel`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ApplicationTunnel {
    /// What it is told, and in which form.
    pub protocol: ApplicationProtocol,
    /// The port that takes such traffic, in place of the one addressed.
    pub port: Option<u16>,
}

/// Whether a workload may receive traffic (WDS `WorkloadStatus`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Health {
    /// Ready for traffic.
    #[default]
    Healthy,
    /// Not ready: only services with health policy `AllowAll` choose it.
    Unhealthy,
}

/// Whether a workload has a network namespace of its own (WDS `NetworkMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NetworkMode {
    /// It has its own addresses.
    #[default]
    Standard,
    /// It shares its node's addresses, so it is never found by address.
    HostNetwork,
}

/// What kind of object made the workload (WDS `WorkloadType`); a label, and the middle of a baggage key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum WorkloadType {
    /// A Deployment.
    #[default]
    Deployment,
    /// A CronJob.
    CronJob,
    /// A bare Pod.
    Pod,
    /// A Job.
    Job,
}

/// Where a workload runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Locality {
    /// Cloud region.
    pub region: Arc<str>,
    /// Zone within the region.
    pub zone: Arc<str>,
    /// Part of the zone.
    pub subzone: Arc<str>,
}

/// What a gateway reference points to (WDS `GatewayAddress.destination`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GatewayDestination {
    /// A service, by namespace and hostname.
    Service(ServiceKey),
    /// An address.
    Address(NetworkAddress),
}

/// A waypoint or network gateway (WDS `GatewayAddress`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// Which service or address it is.
    pub destination: GatewayDestination,
    /// The port that speaks HBONE.
    pub hbone_mtls_port: u16,
}

/// The ports of one service on one workload, service port to target port; a target of 0 is a named port.
pub type PortMap = FewMap<u16, u16>;

/// One workload (WDS `Workload`). Empty texts mean "not set", as on the wire.
///
/// A node holds hundreds of thousands, so what most workloads do not have, or have one of, takes little room here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Workload {
    /// Primary key, for example `cluster//Pod/ns/name`.
    pub uid: Arc<str>,
    /// Pod name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Addresses, canonical.
    pub addresses: Few<IpAddr>,
    /// Network the addresses belong to.
    pub network: Arc<str>,
    /// How it is reached.
    pub protocol: Protocol,
    /// Whether it shares its node's addresses.
    pub network_mode: NetworkMode,
    /// Trust domain of its identity.
    pub trust_domain: Arc<str>,
    /// Service account of its identity.
    pub service_account: Arc<str>,
    /// Waypoint for traffic addressed to the workload itself.
    pub waypoint: Option<Box<Gateway>>,
    /// Gateway through which another network reaches it.
    pub network_gateway: Option<Box<Gateway>>,
    /// Node it runs on.
    pub node: Arc<str>,
    /// Canonical service name, a label.
    pub canonical_name: Arc<str>,
    /// Canonical revision, a label.
    pub canonical_revision: Arc<str>,
    /// What made it.
    pub workload_type: WorkloadType,
    /// Name of what made it.
    pub workload_name: Arc<str>,
    /// Whether the pod speaks HBONE itself.
    pub native_tunnel: bool,
    /// How traffic is handed to its application, where that is not as plain bytes.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Policies that select it, `namespace/name`.
    pub authorization_policies: Box<[Arc<str>]>,
    /// Whether it may receive traffic.
    pub health: Health,
    /// Cluster it belongs to.
    pub cluster_id: Arc<str>,
    /// Where it runs.
    pub locality: Locality,
    /// Resolved by DNS when it has no address.
    pub hostname: Arc<str>,
    /// Services it serves, with its own ports for each.
    pub services: FewMap<ServiceKey, PortMap>,
    /// Load-balancing weight; absent on the wire means 1.
    pub capacity: Option<u32>,
}

impl Workload {
    /// The identity that its certificate carries.
    pub fn identity(&self) -> Identity {
        Identity {
            trust_domain: self.trust_domain.clone(),
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
        }
    }

    /// Load-balancing weight, 1 unless set.
    pub fn weight(&self) -> u32 {
        self.capacity.unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_with_its_reference_counts_fits_the_allocators_384_bytes() {
        assert!(size_of::<Workload>() + 2 * size_of::<usize>() <= 384, "{}", size_of::<Workload>());
    }
}
