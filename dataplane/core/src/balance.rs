//! Which endpoint of a service takes a connection, and at which of its ports and addresses.
//!
//! The choice keeps the endpoints of the best locality rank and picks one of them by weight. It reads the snapshot
//! twice and allocates nothing: the first pass finds the best rank and the weight behind it, the second finds the
//! endpoint that the random number points to. It decides neither health nor waypoints: health is a fact of the
//! workload, and [`crate::resolve`] has already turned to the waypoint where there is one.

use std::net::IpAddr;

use crate::service::{BalanceMode, HealthPolicy, IpFamilies, LoadBalancer, Scope, Service};
use crate::snapshot::{Endpoint, Snapshot};
use crate::workload::{Health, Workload};

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

/// Chooses the endpoint of `service` that takes a connection of `source` to the service port `port`.
///
/// `random` is uniform over all of `u64`. `None` means that the service has no usable endpoint for this port: none
/// exists, none is healthy, none matches a strict preference, or all that remain have weight zero.
pub fn choose<'a>(
    snapshot: &'a Snapshot,
    source: &Workload,
    service: &Service,
    port: u16,
    random: u64,
) -> Option<Choice<'a>> {
    let request = Request { snapshot, source, service, port };
    let mut best = None;
    let mut total = 0;
    for candidate in request.candidates() {
        if best.is_none_or(|rank| candidate.rank > rank) {
            best = Some(candidate.rank);
            total = 0;
        }
        if best == Some(candidate.rank) {
            total += candidate.weight;
        }
    }
    let mut mark = scale(random, total)?;
    for candidate in request.candidates().filter(|candidate| Some(candidate.rank) == best) {
        if mark < candidate.weight {
            return Some(candidate.choice);
        }
        mark -= candidate.weight;
    }
    None
}

/// The address to reach `workload` at: exactly `requested` where the workload owns it, else an address of a family that
/// the service offers, of the family of `requested` if there is one.
///
/// `None` means that the workload has no such address: it is reached by DNS or through a gateway, or not at all.
pub fn address(workload: &Workload, service: Option<&Service>, requested: IpAddr) -> Option<IpAddr> {
    if workload.addresses.contains(&requested) {
        return Some(requested);
    }
    let families = service.and_then(|service| service.ip_families);
    let allowed = |ip: &&IpAddr| match families {
        Some(IpFamilies::Ipv4) => ip.is_ipv4(),
        Some(IpFamilies::Ipv6) => ip.is_ipv6(),
        Some(IpFamilies::Dual) | None => true,
    };
    let same_family = |ip: &&IpAddr| ip.is_ipv4() == requested.is_ipv4();
    let mut addresses = workload.addresses.iter().filter(allowed);
    addresses.clone().find(same_family).or_else(|| addresses.next()).copied()
}

/// The port that the application on `endpoint` listens on for the service port `port`: the endpoint's own mapping, else
/// the service's number. `None` where the service does not list the port or names it and the endpoint does not map it.
pub fn target_port(service: &Service, ports: &crate::workload::PortMap, port: u16) -> Option<u16> {
    let of_service = *service.ports.get(&port)?;
    let of_endpoint = ports.get(&port).copied().filter(|target| *target > 0);
    of_endpoint.or(Some(of_service).filter(|target| *target > 0))
}

struct Request<'a, 'b> {
    snapshot: &'a Snapshot,
    source: &'b Workload,
    service: &'b Service,
    port: u16,
}

struct Candidate<'a> {
    choice: Choice<'a>,
    rank: usize,
    weight: u64,
}

impl<'a> Request<'a, '_> {
    fn candidates(&self) -> impl Iterator<Item = Candidate<'a>> {
        let snapshot = self.snapshot;
        snapshot.workloads.endpoints(&self.service.key).filter_map(|endpoint| self.candidate(endpoint))
    }

    fn candidate(&self, endpoint: &'a Endpoint) -> Option<Candidate<'a>> {
        let workload = &endpoint.workload;
        let balancer = self.service.load_balancer.as_ref();
        let health_policy = balancer.map_or(HealthPolicy::OnlyHealthy, |balancer| balancer.health_policy);
        let healthy = workload.health == Health::Healthy || health_policy == HealthPolicy::AllowAll;
        if !healthy || !self.reachable(workload) {
            return None;
        }
        let port = target_port(self.service, &endpoint.ports, self.port)?;
        let rank = balancer.map_or(Some(0), |balancer| rank(balancer, self.source, workload))?;
        Some(Candidate { choice: Choice { endpoint, port }, rank, weight: u64::from(workload.weight()) })
    }

    fn reachable(&self, workload: &Workload) -> bool {
        let far = workload.network != self.snapshot.mesh.network;
        !workload.addresses.is_empty()
            || !workload.hostname.is_empty()
            || (far && workload.network_gateway.is_some())
    }
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
fn scale(random: u64, total: u64) -> Option<u64> {
    let product = u128::from(random) * u128::from(total);
    (total > 0).then_some((product >> 64) as u64)
}
