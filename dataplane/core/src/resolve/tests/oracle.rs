//! The rules of routing read word by word, slowly, over plain lists, and compared with the decision on random meshes.
//!
//! A rule that leaves a choice leaves all that may be chosen: the decision must be one of them, and with enough random
//! numbers it must be each of them.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::fixture::random;
use crate::net::{HostTarget, NetworkAddress};
use crate::service::{HealthPolicy, IpFamilies, Scope};
use crate::workload::{
    ApplicationProtocol, ApplicationTunnel, Gateway, GatewayDestination, Health, Locality, NetworkMode,
};

mod inbound;
mod mesh;

use mesh::Plain;

/// One possible answer, as text that can be sorted.
type Answers = BTreeSet<String>;

/// What an endpoint is wanted for.
#[derive(Clone, Copy, PartialEq)]
enum For {
    Application,
    Waypoint,
    Gateway,
}

/// A workload to dial, and the service that it was chosen from.
#[derive(Clone)]
struct Hop<'a> {
    workload: &'a Workload,
    service: Option<&'a Service>,
    target: Target,
}

/// The ways to one workload: itself, or through any of some gateways.
enum Way<'a> {
    Near(Hop<'a>),
    Far { workload: &'a Workload, service: Option<&'a Service>, gateways: Vec<Hop<'a>> },
}

impl Plain {
    fn answers(&self, source: &Workload, client: SocketAddr, destination: SocketAddr) -> Answers {
        let ip = destination.ip();
        let own = source.addresses.contains(&ip);
        let local = own || ip.is_loopback() || ip.is_unspecified();
        if local && [15001, 15006, 15008].contains(&destination.port()) {
            return only(Route::Deny(Reason::OwnPort));
        }
        let network = NETWORK;
        if let Some(service) = self.service_at(&source.namespace, network, ip) {
            return self.to_service(source, destination, service);
        }
        let Some(workload) = self.workload_at(network, ip) else {
            return only(tcp(&destination.to_string()));
        };
        if own {
            let target = Target::Address(destination);
            let workload = Some(Arc::new(workload.clone()));
            return only(Route::Tcp(TcpRoute { target, workload, service: None }));
        }
        if let Some(waypoint) = workload.waypoint.as_deref()
            && !self.is_waypoint(source, client, waypoint)
        {
            let near = |way| match way {
                Way::Near(hop) => Some(waypoint_route(&hop, destination, None)),
                Way::Far { .. } => None,
            };
            let found: Answers = self
                .refer(source, destination, waypoint, For::Waypoint)
                .into_iter()
                .filter_map(near)
                .collect();
            return if found.is_empty() { only(Route::Deny(Reason::UnknownWaypoint)) } else { found };
        }
        [application_route(workload, None, Target::Address(destination))].into()
    }

    fn to_service(&self, source: &Workload, destination: SocketAddr, service: &Service) -> Answers {
        let mut waypoints: Vec<&Gateway> = vec![];
        for weighted in &service.weighted_waypoints {
            let usable = !self.refer(source, destination, &weighted.gateway, For::Waypoint).is_empty();
            if weighted.weight > 0 && usable {
                waypoints.push(&weighted.gateway);
            }
        }
        if waypoints.is_empty() {
            waypoints.extend(&service.waypoint);
        }
        if !waypoints.is_empty() || !service.weighted_waypoints.is_empty() {
            let mut answers = Answers::new();
            for waypoint in waypoints {
                for way in self.refer(source, destination, waypoint, For::Waypoint) {
                    match way {
                        Way::Near(hop) => {
                            answers.insert(waypoint_route(&hop, destination, Some(service)));
                        }
                        Way::Far { workload, service: of, gateways } => {
                            let inner = match of {
                                Some(of) => names(of),
                                None => vec![workload.identity()],
                            };
                            answers.extend(gateway_routes(&gateways, service, destination, &inner));
                        }
                    }
                }
            }
            return if answers.is_empty() { only(Route::Deny(Reason::UnknownWaypoint)) } else { answers };
        }
        if service.load_balancer.as_ref().is_some_and(|one| one.mode == BalanceMode::Passthrough) {
            let service = Some(Arc::new(service.clone()));
            let target = Target::Address(destination);
            return only(Route::Tcp(TcpRoute { target, workload: None, service }));
        }
        let port = destination.port();
        let ways = self.endpoints(source, destination, (service, port, destination.ip()), For::Application);
        let mut answers = Answers::new();
        for way in &ways {
            match way {
                Way::Near(hop) => {
                    answers.insert(application_route(hop.workload, Some(service), hop.target.clone()));
                }
                Way::Far { gateways, .. } => {
                    answers.extend(gateway_routes(gateways, service, destination, &names(service)));
                }
            }
        }
        if answers.is_empty() {
            let asked = (service, port, destination.ip());
            let mut chosen = best(source, service, self.candidates(source, asked, For::Application));
            chosen.retain(|one| has_weight(one.0));
            // Whatever may be chosen has a gateway that leads nowhere.
            let reason = if chosen.is_empty() { Reason::NoHealthyUpstream } else { Reason::UnknownGateway };
            return only(Route::Deny(reason));
        }
        answers
    }

    /// The ways behind a reference to a waypoint or gateway, empty if it leads nowhere.
    fn refer<'a>(
        &'a self,
        source: &Workload,
        destination: SocketAddr,
        reference: &'a Gateway,
        purpose: For,
    ) -> Vec<Way<'a>> {
        let port = reference.hbone_mtls_port;
        let (service, workload, requested) = match &reference.destination {
            GatewayDestination::Service(key) => {
                let mut named: Vec<&Workload> = self.workloads.iter().collect();
                named.retain(|one| one.namespace == key.namespace && one.hostname == key.hostname);
                named.sort_by_key(|one| one.uid.clone());
                let service = self.services.iter().find(|one| one.key == *key);
                (service, named, destination.ip())
            }
            GatewayDestination::Address(address) => {
                let service = self.service_at(&source.namespace, &address.network, address.ip);
                let passes = service.and_then(|one| one.load_balancer.as_ref());
                if passes.is_some_and(|one| one.mode == BalanceMode::Passthrough) {
                    return vec![];
                }
                let at = self.workload_at(&address.network, address.ip);
                (service, at.into_iter().collect(), address.ip)
            }
        };
        if let Some(service) = service {
            return self.endpoints(source, destination, (service, port, requested), purpose);
        }
        let ways = workload
            .into_iter()
            .filter_map(|workload| self.way(source, destination, (workload, None, port, requested), purpose));
        // Of several workloads with one host name the first that can be used is.
        ways.take(1).collect()
    }

    /// The ways to the best endpoints of a service at a port. Those whose gateway leads nowhere are left out, and the best
    /// are those of the rest.
    fn endpoints<'a>(
        &'a self,
        source: &Workload,
        destination: SocketAddr,
        (service, port, requested): (&'a Service, u16, IpAddr),
        purpose: For,
    ) -> Vec<Way<'a>> {
        let way = |(workload, port)| {
            let asked = (workload, Some(service), port, requested);
            self.way(source, destination, asked, purpose)
        };
        let all = self.candidates(source, (service, port, requested), purpose);
        let mut first = best(source, service, all.clone());
        first.retain(|one| has_weight(one.0));
        let count = first.len();
        let mut ways: Vec<Way<'_>> = first.into_iter().filter_map(way).collect();
        if ways.len() < count {
            let leads = all.into_iter().filter(|one| way(*one).is_some()).collect();
            let rest = best(source, service, leads).into_iter().filter(|one| has_weight(one.0));
            ways.extend(rest.filter_map(way));
        }
        ways
    }

    /// The endpoints that may be used at all, with their ports.
    fn candidates<'a>(
        &'a self,
        source: &Workload,
        (service, port, requested): (&'a Service, u16, IpAddr),
        purpose: For,
    ) -> Vec<(&'a Workload, u16)> {
        let mut found = vec![];
        for workload in &self.workloads {
            let Some(ports) = workload.services.get(&service.key) else { continue };
            let policy = service.load_balancer.as_ref().map(|one| one.health_policy);
            if workload.health == Health::Unhealthy && policy != Some(HealthPolicy::AllowAll) {
                continue;
            }
            let far = &*workload.network != NETWORK && purpose != For::Gateway;
            let reachable = match far {
                true => workload.network_gateway.is_some(),
                false => {
                    !addresses(workload, Some(service), requested).is_empty() || !workload.hostname.is_empty()
                }
            };
            let listed = service.ports.get(&port).copied();
            let mapped = ports.get(&port).copied().filter(|port| *port > 0);
            let tunnel = workload.application_tunnel.filter(|_| purpose == For::Waypoint);
            if !reachable || (listed.is_none() && tunnel.is_none()) {
                continue;
            }
            let tunnelled = tunnel.and_then(|tunnel| tunnel.port).map(|_| port);
            if let Some(port) = mapped.or(listed.filter(|port| *port > 0)).or(tunnelled) {
                found.push((workload, port));
            }
        }
        let strict = |one: &(&Workload, u16)| rank(source, service, one.0).is_some();
        found.into_iter().filter(strict).collect()
    }

    fn way<'a>(
        &'a self,
        source: &Workload,
        destination: SocketAddr,
        (workload, service, port, requested): (&'a Workload, Option<&'a Service>, u16, IpAddr),
        purpose: For,
    ) -> Option<Way<'a>> {
        if purpose != For::Gateway && &*workload.network != NETWORK {
            let reference = workload.network_gateway.as_deref()?;
            let hop = |way| match way {
                Way::Near(hop) => Some(hop),
                Way::Far { .. } => None,
            };
            let ways = self.refer(source, destination, reference, For::Gateway);
            let gateways: Vec<Hop<'_>> = ways.into_iter().filter_map(hop).collect();
            return (!gateways.is_empty()).then_some(Way::Far { workload, service, gateways });
        }
        let target = target(workload, service, requested, port)?;
        Some(Way::Near(Hop { workload, service, target }))
    }

    fn is_waypoint(&self, source: &Workload, client: SocketAddr, reference: &Gateway) -> bool {
        let (service, named) = match &reference.destination {
            GatewayDestination::Service(key) => (
                self.services.iter().find(|one| one.key == *key),
                self.workloads
                    .iter()
                    .filter(|one| one.namespace == key.namespace && one.hostname == key.hostname)
                    .collect::<Vec<_>>(),
            ),
            GatewayDestination::Address(address) => (
                self.service_at(&source.namespace, &address.network, address.ip),
                self.workload_at(&address.network, address.ip).into_iter().collect(),
            ),
        };
        let behind: Vec<&Workload> = match service {
            Some(service) => {
                self.workloads.iter().filter(|one| one.services.contains_key(&service.key)).collect()
            }
            None => named,
        };
        behind.iter().any(|one| one.identity() == source.identity() && one.addresses.contains(&client.ip()))
    }

    /// An exact virtual address that the client sees, else the best range.
    fn service_at(&self, client: &str, network: &str, ip: IpAddr) -> Option<&Service> {
        let mut seen: Vec<&Service> = self.services.iter().collect();
        seen.sort_by_key(|one| one.key.clone());
        seen.retain(|one| {
            one.visibility == Visibility::Public || client.is_empty() || *one.key.namespace == *client
        });
        let exact = |one: &&&Service| one.vips.iter().any(|vip| *vip.network == *network && vip.ip == ip);
        let exact: Vec<&Service> = seen.iter().filter(exact).copied().collect();
        let own = exact.iter().find(|one| *one.key.namespace == *client);
        let canonical = exact.iter().rfind(|one| one.canonical);
        let preferred = exact.iter().find(|one| &*one.key.namespace == mesh::PREFERRED);
        if let Some(found) = own.or(canonical).or(preferred).or(exact.first()) {
            return Some(found);
        }
        let mut best: Option<((bool, u8, bool), &Service)> = None;
        for service in seen {
            for vip in &service.cidr_vips {
                if *vip.network == *network && vip.cidr.contains(&ip) {
                    let rank = (*service.key.namespace == *client, vip.cidr.prefix_len(), service.canonical);
                    if best.is_none_or(|(highest, _)| rank > highest) {
                        best = Some((rank, service));
                    }
                }
            }
        }
        best.map(|(_, service)| service)
    }

    fn workload_at(&self, network: &str, ip: IpAddr) -> Option<&Workload> {
        let mut at: Vec<&Workload> = self.workloads.iter().collect();
        at.retain(|one| *one.network == *network && one.addresses.contains(&ip));
        at.retain(|one| one.network_mode != NetworkMode::HostNetwork);
        at.sort_by_key(|one| one.uid.clone());
        let rank = |one: &Workload| match (one.uid.contains("//Pod/"), one.protocol) {
            (true, Protocol::Hbone) => 3,
            (true, Protocol::Tcp) => 2,
            (false, Protocol::Hbone) => 1,
            (false, Protocol::Tcp) => 0,
        };
        let highest = at.iter().map(|one| rank(one)).max()?;
        at.into_iter().find(|one| rank(one) == highest)
    }
}

fn only(route: Route) -> Answers {
    [format!("{route:?}")].into()
}

/// The endpoints of the best rank.
fn best<'a>(source: &Workload, service: &Service, all: Vec<(&'a Workload, u16)>) -> Vec<(&'a Workload, u16)> {
    let highest = all.iter().filter_map(|one| rank(source, service, one.0)).max();
    all.into_iter().filter(|one| rank(source, service, one.0) == highest).collect()
}

fn has_weight(workload: &Workload) -> bool {
    workload.capacity != Some(0)
}

/// How near a workload is, `None` if it may not be used.
fn rank(source: &Workload, service: &Service, workload: &Workload) -> Option<usize> {
    let Some(balancer) = &service.load_balancer else { return Some(0) };
    if matches!(balancer.mode, BalanceMode::Standard | BalanceMode::Passthrough) {
        return Some(0);
    }
    let scopes = &balancer.routing_preferences;
    let (mut rank, mut adjust) = (0, 0);
    for scope in scopes {
        let matches = match scope {
            Scope::Region => source.locality.region == workload.locality.region,
            Scope::Zone => source.locality.zone == workload.locality.zone,
            Scope::Subzone => source.locality.subzone == workload.locality.subzone,
            Scope::Node => source.node == workload.node,
            Scope::Cluster => source.cluster_id == workload.cluster_id,
            Scope::Network => source.network == workload.network,
        };
        if *scope == Scope::Network && scopes[0] == Scope::Network {
            if !matches {
                continue;
            }
            adjust = scopes.len() - 1;
        }
        if !matches {
            break;
        }
        rank += 1;
    }
    let all = rank == scopes.len();
    (all || balancer.mode == BalanceMode::Failover).then_some(rank + adjust)
}

/// The addresses at which a workload is reached, best first.
fn addresses(workload: &Workload, service: Option<&Service>, requested: IpAddr) -> Vec<IpAddr> {
    let families = service.and_then(|one| one.ip_families);
    let offered = |ip: &IpAddr| match families {
        Some(IpFamilies::Ipv4) => ip.is_ipv4(),
        Some(IpFamilies::Ipv6) => ip.is_ipv6(),
        _ => true,
    };
    let mut found: Vec<IpAddr> = workload.addresses.iter().copied().filter(|ip| *ip == requested).collect();
    let others: Vec<IpAddr> = workload.addresses.iter().copied().filter(offered).collect();
    found.extend(others.iter().filter(|ip| ip.is_ipv4() == requested.is_ipv4()));
    found.extend(others);
    found
}

fn target(workload: &Workload, service: Option<&Service>, requested: IpAddr, port: u16) -> Option<Target> {
    if let Some(ip) = addresses(workload, service, requested).first() {
        return Some(Target::Address(SocketAddr::new(*ip, port)));
    }
    let families = service.and_then(|one| one.ip_families);
    let host = HostTarget {
        hostname: workload.hostname.clone(),
        port,
        ipv4: families != Some(IpFamilies::Ipv6),
        ipv6: families != Some(IpFamilies::Ipv4),
        ipv6_first: requested.is_ipv6(),
    };
    (!workload.hostname.is_empty()).then_some(Target::Host(host))
}

fn names(service: &Service) -> Vec<Identity> {
    service.subject_alt_names.iter().filter_map(|name| name.parse().ok()).collect()
}

fn accepted(workload: &Workload, service: Option<&Service>) -> Arc<[Identity]> {
    let mut all = vec![workload.identity()];
    all.extend(
        service.map(names).unwrap_or_default().into_iter().filter(|name| *name != workload.identity()),
    );
    all.into()
}

fn application_route(workload: &Workload, service: Option<&Service>, target: Target) -> String {
    let owned = Arc::new(workload.clone());
    let of = service.map(|service| Arc::new(service.clone()));
    if workload.protocol == Protocol::Tcp {
        return format!("{:?}", Route::Tcp(TcpRoute { target, workload: Some(owned), service: of }));
    }
    let (peer, authority) = match &target {
        Target::Address(address) => {
            (Target::Address(SocketAddr::new(address.ip(), 15008)), Authority::Address(*address))
        }
        Target::Host(host) => (
            Target::Host(HostTarget { port: 15008, ..host.clone() }),
            Authority::Host(host.hostname.clone(), host.port),
        ),
    };
    let identities = accepted(workload, service);
    let route = HboneRoute { peer, authority, identities, workload: owned, service: of, inner: None };
    format!("{:?}", Route::Hbone(route))
}

fn waypoint_route(hop: &Hop<'_>, destination: SocketAddr, service: Option<&Service>) -> String {
    let route = HboneRoute {
        peer: hop.target.clone(),
        authority: Authority::Address(destination),
        identities: accepted(hop.workload, hop.service),
        workload: Arc::new(hop.workload.clone()),
        service: service.map(|service| Arc::new(service.clone())),
        inner: None,
    };
    format!("{:?}", Route::Hbone(route))
}

fn gateway_routes(
    gateways: &[Hop<'_>],
    service: &Service,
    destination: SocketAddr,
    inner: &[Identity],
) -> Vec<String> {
    let route = |hop: &Hop<'_>| HboneRoute {
        peer: hop.target.clone(),
        authority: Authority::Host(service.key.hostname.clone(), destination.port()),
        identities: accepted(hop.workload, hop.service),
        workload: Arc::new(hop.workload.clone()),
        service: Some(Arc::new(service.clone())),
        inner: Some(inner.into()),
    };
    gateways.iter().map(|hop| format!("{:?}", Route::Hbone(route(hop)))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2500))]

    #[test]
    fn the_decision_is_what_a_literal_reading_allows_and_everything_that_it_allows(seed: u64) {
        let plain = Plain::random(seed);
        let mesh = plain.snapshot();
        let (source, client) = plain.source();
        let mut state = seed;
        let destination = plain.destination(random(&mut state));
        let allowed = plain.answers(&source, client, destination);
        let captured = Captured { source: &source, client, destination };
        let mut found = Answers::new();
        for round in 0..2000 {
            // Each of a dozen choices comes up in so many rounds; mostly far fewer are needed.
            if round >= 10 && found == allowed {
                break;
            }
            let route = resolve(&mesh, &captured, random(&mut state), &[]);
            let route = format!("{route:?}");
            prop_assert!(allowed.contains(&route), "{destination}: {route}\nis none of\n{allowed:#?}");
            found.insert(route);
        }
        prop_assert_eq!(found, allowed);
    }

    #[test]
    fn what_failed_is_never_tried_again_and_all_that_is_tried_could_have_been_chosen(seed: u64) {
        let plain = Plain::random(seed);
        let mesh = plain.snapshot();
        let (source, client) = plain.source();
        let mut state = seed;
        let destination = plain.destination(random(&mut state));
        let captured = Captured { source: &source, client, destination };
        let mut failed: Vec<Attempt> = vec![];
        while let Some(attempt) = attempt(&resolve(&mesh, &captured, random(&mut state), &failed)) {
            prop_assert!(!failed.contains(&attempt), "{attempt:?} again after {failed:?}");
            failed.push(attempt);
            prop_assert!(failed.len() < 40);
        }
        if !failed.is_empty() {
            let last = resolve(&mesh, &captured, random(&mut state), &failed);
            prop_assert!(matches!(last, Route::Deny(Reason::NoHealthyUpstream)), "{last:?}");
        }
    }
}

/// What is tried by a route; `None` if there is none.
fn attempt(route: &Route) -> Option<Attempt> {
    let (target, workload) = match route {
        Route::Tcp(found) => (&found.target, found.workload.as_ref()),
        Route::Hbone(found) => (&found.peer, Some(&found.workload)),
        Route::Lookup(_) | Route::Deny(_) => return None,
    };
    let ip = match target {
        Target::Address(address) => Some(address.ip()),
        Target::Host(_) => None,
    };
    Some(Attempt { workload: workload.map_or("".into(), |one| one.uid.clone()), ip })
}
