//! Which endpoint of a service takes a connection, and at which of its ports and addresses.
//!
//! The choice keeps the endpoints of the best locality rank and picks one of them by weight. It reads the snapshot
//! twice and allocates nothing: the first pass finds the best rank and the weight behind it, the second finds the
//! endpoint that the random number points to. It decides neither health nor waypoints: health is a fact of the
//! workload, and [`crate::resolve`] has already turned to the waypoint where there is one.

use std::net::IpAddr;

use crate::service::{BalanceMode, HealthPolicy, IpFamilies, LoadBalancer, Scope, Service};
use crate::snapshot::{Endpoint, Snapshot};
use crate::workload::{Health, PortMap, Workload};

#[cfg(test)]
mod tests;

/// An endpoint and the port to reach it at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice<'a> {
    /// The endpoint.
    pub endpoint: &'a Endpoint,
    /// The port that the application listens on.
    pub port: u16,
}

/// What an endpoint is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To serve the connection.
    Application,
    /// To take the connection as a waypoint. Nobody addresses a waypoint's port, so one that has an application tunnel
    /// need not list it.
    Waypoint,
    /// To carry the connection into another network. It is dialled itself, whatever network it is said to be on.
    Gateway,
}

/// A connection that needs an endpoint of a service.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The mesh.
    pub snapshot: &'a Snapshot,
    /// Who connects.
    pub source: &'a Workload,
    /// To which service.
    pub service: &'a Service,
    /// At which of its ports.
    pub port: u16,
    /// The address that was asked for, which decides between an endpoint's addresses.
    pub requested: IpAddr,
    /// What for.
    pub purpose: Purpose,
}

impl<'a> Request<'a> {
    /// Chooses the endpoint that takes the connection, of those that `except` does not drop.
    ///
    /// `random` is uniform over all of `u64`. `None` means that no endpoint may be used: none exists, none is healthy,
    /// none is reachable, none has the port, none matches a strict preference, or all that remain have weight zero.
    pub fn choose(&self, random: u64, except: impl Fn(&Workload) -> bool) -> Option<Choice<'a>> {
        let candidates = || self.candidates().filter(|one| !except(&one.choice.endpoint.workload));
        let mut best = None;
        let mut total = 0;
        for candidate in candidates() {
            if best.is_none_or(|rank| candidate.rank > rank) {
                best = Some(candidate.rank);
                total = 0;
            }
            if best == Some(candidate.rank) {
                total += candidate.weight;
            }
        }
        let mut mark = scale(random, total)?;
        for candidate in candidates().filter(|candidate| Some(candidate.rank) == best) {
            if mark < candidate.weight {
                return Some(candidate.choice);
            }
            mark -= candidate.weight;
        }
        None
    }

    /// The endpoint that is the workload with this uid, if it may be used.
    pub fn endpoint(&self, uid: &str) -> Option<Choice<'a>> {
        let found = self.candidates().find(|one| *one.choice.endpoint.workload.uid == *uid);
        found.map(|candidate| candidate.choice)
    }

    /// Whether a workload is on another network, so that it is reached through its gateway.
    pub fn is_far(&self, workload: &Workload) -> bool {
        self.purpose != Purpose::Gateway && workload.network != self.snapshot.mesh.network
    }

    fn candidates(&self) -> impl Iterator<Item = Candidate<'a>> {
        let snapshot = self.snapshot;
        snapshot.workloads.endpoints(&self.service.key).filter_map(|endpoint| self.candidate(endpoint))
    }

    fn candidate(&self, endpoint: &'a Endpoint) -> Option<Candidate<'a>> {
        let workload = &endpoint.workload;
        let balancer = self.service.load_balancer.as_ref();
        let health_policy = balancer.map_or(HealthPolicy::OnlyHealthy, |balancer| balancer.health_policy);
        let healthy = workload.health == Health::Healthy || health_policy == HealthPolicy::AllowAll;
        if !healthy || !self.is_reachable(workload) {
            return None;
        }
        let port = self.port_of(endpoint)?;
        let rank = balancer.map_or(Some(0), |balancer| rank(balancer, self.source, workload))?;
        Some(Candidate { choice: Choice { endpoint, port }, rank, weight: u64::from(workload.weight()) })
    }

    /// A workload on another network is reached through its gateway, and has to have one; any other by address or DNS.
    fn is_reachable(&self, workload: &Workload) -> bool {
        if self.is_far(workload) {
            return workload.network_gateway.is_some();
        }
        !workload.hostname.is_empty() || address(workload, Some(self.service), self.requested).is_some()
    }

    fn port_of(&self, endpoint: &Endpoint) -> Option<u16> {
        let found = target_port(self.service, &endpoint.ports, self.port);
        let tunnel = endpoint.workload.application_tunnel.filter(|_| self.purpose == Purpose::Waypoint);
        let Some(tunnel) = tunnel.filter(|_| found.is_none()) else { return found };
        // Whatever the port, the waypoint's own node proxy hands it to the tunnel's.
        mapped(&endpoint.ports, self.port).or(tunnel.port.map(|_| self.port))
    }
}

/// The address to reach `workload` at: exactly `requested` where the workload owns it, else an address of a family that
/// the service offers, of the family of `requested` if there is one.
///
/// `None` means that the workload has no such address: it is reached by DNS or through a gateway, or not at all.
pub fn address(workload: &Workload, service: Option<&Service>, requested: IpAddr) -> Option<IpAddr> {
    if workload.addresses.contains(&requested) {
        return Some(requested);
    }
    let mut addresses = addresses(workload, service);
    addresses.clone().find(|ip| ip.is_ipv4() == requested.is_ipv4()).or_else(|| addresses.next())
}

/// The addresses of `workload` that are of a family that the service offers.
pub fn addresses(workload: &Workload, service: Option<&Service>) -> impl Iterator<Item = IpAddr> + Clone {
    let (ipv4, ipv6) = families(service);
    workload.addresses.iter().copied().filter(move |ip| if ip.is_ipv4() { ipv4 } else { ipv6 })
}

/// Whether a service offers IPv4, and whether IPv6. Without one, or where it does not say, both do.
pub fn families(service: Option<&Service>) -> (bool, bool) {
    match service.and_then(|service| service.ip_families) {
        Some(IpFamilies::Ipv4) => (true, false),
        Some(IpFamilies::Ipv6) => (false, true),
        Some(IpFamilies::Dual) | None => (true, true),
    }
}

/// The port that the application on `endpoint` listens on for the service port `port`: the endpoint's own mapping, else
/// the service's number. `None` where the service does not list the port or names it and the endpoint does not map it.
pub fn target_port(service: &Service, ports: &PortMap, port: u16) -> Option<u16> {
    let of_service = *service.ports.get(&port)?;
    mapped(ports, port).or(Some(of_service).filter(|target| *target > 0))
}

/// The port that an endpoint maps a service port to itself.
pub fn mapped(ports: &PortMap, port: u16) -> Option<u16> {
    ports.get(&port).copied().filter(|target| *target > 0)
}

struct Candidate<'a> {
    choice: Choice<'a>,
    rank: usize,
    weight: u64,
}

/// How near a workload is: one for each scope that matches, up to the first that does not. `None` drops it.
///
/// A network in first place is nice to have: every endpoint on the own network outranks every other, and one that is
/// not on it is still compared by the scopes that follow.
fn rank(balancer: &LoadBalancer, source: &Workload, workload: &Workload) -> Option<usize> {
    let scopes = &balancer.routing_preferences;
    if !matches!(balancer.mode, BalanceMode::Strict | BalanceMode::Failover) {
        return Some(0);
    }
    let mut rank = 0;
    let mut every = true;
    for (place, scope) in scopes.iter().enumerate() {
        let network_first = place == 0 && *scope == Scope::Network;
        match (matches(*scope, source, workload), network_first) {
            (true, true) => rank += scopes.len(),
            (true, false) => rank += 1,
            (false, true) => every = false,
            (false, false) => {
                every = false;
                break;
            }
        }
    }
    (every || balancer.mode != BalanceMode::Strict).then_some(rank)
}

fn matches(scope: Scope, source: &Workload, workload: &Workload) -> bool {
    match scope {
        Scope::Region => source.locality.region == workload.locality.region,
        Scope::Zone => source.locality.zone == workload.locality.zone,
        Scope::Subzone => source.locality.subzone == workload.locality.subzone,
        Scope::Node => source.node == workload.node,
        Scope::Cluster => source.cluster_id == workload.cluster_id,
        Scope::Network => source.network == workload.network,
    }
}

/// A number below `total` from a uniform `random`, without the bias of a remainder; `None` if `total` is zero.
pub fn scale(random: u64, total: u64) -> Option<u64> {
    let product = u128::from(random) * u128::from(total);
    (total > 0).then_some((product >> 64) as u64)
}
