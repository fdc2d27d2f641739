//! A service: a name with virtual addresses in front of workloads (WDS `istio.workload.Service`).

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use crate::net::NetworkAddress;
use crate::workload::{Gateway, PortMap};

/// A service's primary key, written `namespace/hostname`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Fully qualified host name.
    pub hostname: Arc<str>,
}

impl ServiceKey {
    /// Makes a key from its parts.
    pub fn new(namespace: &str, hostname: &str) -> Self {
        Self { namespace: namespace.into(), hostname: hostname.into() }
    }

    /// Reads `namespace/hostname`; `None` unless there is exactly one slash with text on both sides.
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, hostname) = text.split_once('/')?;
        let valid = !namespace.is_empty() && !hostname.is_empty() && !hostname.contains('/');
        valid.then(|| Self::new(namespace, hostname))
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.namespace, self.hostname)
    }
}

/// One step of a routing preference (WDS `LoadBalancing.Scope`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Same region.
    Region,
    /// Same zone.
    Zone,
    /// Same subzone.
    Subzone,
    /// Same node.
    Node,
    /// Same cluster.
    Cluster,
    /// Same network.
    Network,
}

/// How routing preferences are applied (WDS `LoadBalancing.Mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BalanceMode {
    /// No preference: every usable endpoint.
    #[default]
    Standard,
    /// Endpoints must match every scope.
    Strict,
    /// Endpoints that match more scopes are preferred.
    Failover,
    /// Traffic goes to the original address, unchanged.
    Passthrough,
}

/// Whether unhealthy endpoints are used (WDS `LoadBalancing.HealthPolicy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HealthPolicy {
    /// Only healthy ones.
    #[default]
    OnlyHealthy,
    /// All.
    AllowAll,
}

/// A service's load-balancing policy (WDS `LoadBalancing`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LoadBalancer {
    /// Scopes, most general first.
    pub routing_preferences: Vec<Scope>,
    /// How the scopes are applied.
    pub mode: BalanceMode,
    /// Whether unhealthy endpoints are used.
    pub health_policy: HealthPolicy,
}

/// Which address families a service offers (WDS `IPFamilies`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpFamilies {
    /// IPv4 only.
    Ipv4,
    /// IPv6 only.
    Ipv6,
    /// Both.
    Dual,
}

/// Who sees a service (WDS `Service.Visibility`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Visibility {
    /// Every client.
    #[default]
    Public,
    /// Clients of the service's own namespace.
    Namespace,
}

/// A virtual address that covers a range (WDS `NetworkAddress.length`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CidrVip {
    /// Network the range belongs to.
    pub network: Arc<str>,
    /// The range.
    pub cidr: IpNet,
}

/// A waypoint with a share of the traffic (WDS `WeightedWaypoint`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightedWaypoint {
    /// The waypoint.
    pub gateway: Gateway,
    /// Its share.
    pub weight: u32,
}

/// One service (WDS `Service`). Endpoints are not part of it: workloads name the services they serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Name and namespace key.
    pub key: ServiceKey,
    /// Short name, a label.
    pub name: Arc<str>,
    /// Virtual addresses.
    pub vips: Vec<NetworkAddress>,
    /// Virtual ranges.
    pub cidr_vips: Vec<CidrVip>,
    /// Service port to target port; 0 is a named port, found on the endpoint.
    pub ports: PortMap,
    /// Extra identities that endpoints may present, SPIFFE texts.
    pub subject_alt_names: Vec<Arc<str>>,
    /// Waypoint for traffic addressed to the service.
    pub waypoint: Option<Gateway>,
    /// Waypoints by weight; tried before `waypoint`.
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// Load balancing; `None` is uniform over all usable endpoints.
    pub load_balancer: Option<LoadBalancer>,
    /// Address families offered; `None` is automatic.
    pub ip_families: Option<IpFamilies>,
    /// Preferred among services that share a host name or address.
    pub canonical: bool,
    /// Who sees it.
    pub visibility: Visibility,
}
