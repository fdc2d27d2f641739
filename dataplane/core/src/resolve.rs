//! Where a connection goes: a captured destination to a route, an inbound CONNECT authority to the application.
//!
//! An address is looked up once, service first and then workload, and every rule reads that one answer: a waypoint of
//! the service is seen even where the same address is also a workload's. A waypoint that a destination names is never
//! bypassed: unknown, it is [`Reason::UnknownWaypoint`]; known, it needs a route that this build does not have.
//! Resolving opens nothing and waits for nothing: where the node knows only what it asked for, "not there" counts once
//! the control plane has said so, and until then the answer is the question.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::balance;
use crate::demand::Question;
use crate::id::Identity;
use crate::net::{Authority, HBONE_PORT, Target, is_own_port};
use crate::outcome::Reason;
use crate::service::{BalanceMode, Service};
use crate::snapshot::Snapshot;
use crate::workload::{ApplicationTunnel, Gateway, GatewayDestination, Protocol, Workload};

pub mod lookup;
#[cfg(test)]
mod tests;

/// A connection that an application opened. Addresses are canonical.
#[derive(Debug, Clone, Copy)]
pub struct Captured<'a> {
    /// The pod's own workload.
    pub source: &'a Workload,
    /// The application's end.
    pub client: SocketAddr,
    /// Where the application wanted to go.
    pub destination: SocketAddr,
}

/// How a captured connection travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// Plain TCP.
    Tcp(TcpRoute),
    /// A stream in a tunnel.
    Hbone(HboneRoute),
    /// Not decided: the control plane has not said what the destination is.
    Lookup(Question),
    /// Not at all.
    Deny(Reason),
}

/// A plain TCP connection to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpRoute {
    /// What to connect to.
    pub target: Target,
    /// The workload behind it, where the mesh knows one.
    pub workload: Option<Arc<Workload>>,
    /// The service that was addressed.
    pub service: Option<Arc<Service>>,
}

/// A CONNECT to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HboneRoute {
    /// The tunnel's far end: port 15008 of the endpoint, or the HBONE port of a waypoint or gateway.
    pub peer: Target,
    /// The CONNECT authority: `endpoint-ip:target-port`, what the client addressed where a waypoint is in between, or
    /// `service-hostname:service-port` through a gateway.
    pub authority: Authority,
    /// Identities that the peer may present: the endpoint's own, then the service's subject alternative names. Names
    /// that are not workload identities cannot be presented and are left out.
    pub identities: Arc<[Identity]>,
    /// What is dialled: the endpoint, the waypoint or the gateway.
    pub workload: Arc<Workload>,
    /// The service that was addressed.
    pub service: Option<Arc<Service>>,
    /// Through a gateway: identities that the far end of the inner tunnel may present, the service's subject alternative
    /// names. Without one no server is acceptable. The inner CONNECT has the same authority.
    pub inner: Option<Arc<[Identity]>>,
}

/// An endpoint that was tried for a connection and could not be reached, before anything was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Uid of the workload.
    pub workload: Arc<str>,
    /// The address that was tried; `None` where the workload was tried by host name.
    pub ip: Option<IpAddr>,
}

/// Decides the route of a captured connection. `random` is uniform over all of `u64`. `failed` is what was tried before
/// for the same connection: the next choice is another address of the last one's workload, else another workload.
pub fn resolve(snapshot: &Snapshot, captured: &Captured<'_>, random: u64, failed: &[Attempt]) -> Route {
    let _ = failed;
    let destination = captured.destination;
    let own_address = captured.source.addresses.contains(&destination.ip());
    let local = own_address || destination.ip().is_loopback() || destination.ip().is_unspecified();
    if local && is_own_port(destination.port()) {
        return Route::Deny(Reason::OwnPort);
    }
    let address = lookup::own_network(snapshot, destination.ip());
    if let Some(service) = lookup::service(snapshot, &captured.source.namespace, &address) {
        return to_service(snapshot, captured, service, random);
    }
    let workload = lookup::workload(snapshot, &address);
    if let Some(workload) = workload.filter(|_| !own_address) {
        return to_workload(snapshot, captured, workload);
    }
    if !local && let Some(question) = unanswered(snapshot, || Question::Address(address)) {
        return Route::Lookup(question);
    }
    let target = Target::Address(destination);
    Route::Tcp(TcpRoute { target, workload: workload.cloned(), service: None })
}

/// The local pod's own workload. Pods of one name exist only in different clusters; the own cluster's is preferred.
pub fn local_workload<'a>(
    snapshot: &'a Snapshot,
    namespace: &Arc<str>,
    name: &Arc<str>,
    service_account: &str,
) -> Option<&'a Arc<Workload>> {
    let named = snapshot.workloads.named(namespace, name);
    let candidates = named.filter(|workload| &*workload.service_account == service_account);
    let own_cluster = |workload: &&Arc<Workload>| workload.cluster_id == snapshot.mesh.cluster;
    candidates.max_by_key(own_cluster)
}

/// Why an inbound CONNECT has no target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoTarget {
    /// The control plane has not said what the authority's host is.
    Lookup(Question),
    /// It may not have one.
    Deny(Reason),
}

impl From<Reason> for NoTarget {
    fn from(reason: Reason) -> Self {
        Self::Deny(reason)
    }
}

/// An inbound CONNECT.
#[derive(Debug, Clone, Copy)]
pub struct Requested<'a> {
    /// The address that the tunnel was accepted on.
    pub local: IpAddr,
    /// The request's authority.
    pub authority: &'a str,
    /// The service that the client addressed, by its own account (`host` of the `forwarded` header); for labels only.
    pub forwarded_host: Option<&'a str>,
}

/// Where an inbound CONNECT goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboundTarget {
    /// The pod's address and the application's port: what policy is asked about.
    pub destination: SocketAddr,
    /// The address to connect to: `destination`, or the same port on the loopback address for an application tunnel.
    pub connect: SocketAddr,
    /// The destination address of the PROXY header that the application is sent first; `None` without a header.
    pub proxy: Option<SocketAddr>,
    /// The service that is served, for labels.
    pub service: Option<Arc<Service>>,
}

/// Decides which address an inbound CONNECT is for.
///
/// `local` is always the address of the answer: the
/// authority contributes the port. It is `ip:port`, `[v6]:port` or `host:port`; an address must be the tunnel's, and
/// a host is a service as the workload's own namespace sees it. A workload that wants its traffic by an application tunnel
/// is refused: without the tunnel it would take the proxy for the client.
pub fn inbound_target(
    snapshot: &Snapshot,
    local: &Workload,
    requested: &Requested<'_>,
) -> Result<InboundTarget, NoTarget> {
    let tunnel_destination = requested.local.to_canonical();
    let authority = parse_authority(requested.authority)?;
    if local.application_tunnel.is_some_and(|tunnel| tunnel != ApplicationTunnel::default()) {
        return Err(Reason::Unsupported.into());
    }
    let port = match authority {
        Asked::Address(ip, port) if ip == tunnel_destination => port,
        Asked::Address(..) => return Err(Reason::NotForUs.into()),
        Asked::Host(host, port) => host_port(snapshot, local, host, port)?,
    };
    if is_own_port(port) {
        return Err(Reason::OwnPort.into());
    }
    let destination = SocketAddr::new(tunnel_destination, port);
    Ok(InboundTarget { destination, connect: destination, proxy: None, service: None })
}

fn to_service(snapshot: &Snapshot, captured: &Captured<'_>, service: &Arc<Service>, random: u64) -> Route {
    // Weighted waypoints are tried before the plain one.
    let weighted = service.weighted_waypoints.iter().map(|waypoint| &waypoint.gateway);
    let waypoints = weighted.chain(&service.waypoint);
    if let Some(route) = to_waypoint(snapshot, &captured.source.namespace, waypoints) {
        return route;
    }
    let destination = captured.destination;
    let mode = service.load_balancer.as_ref().map(|balancer| balancer.mode);
    if mode == Some(BalanceMode::Passthrough) {
        let target = Target::Address(destination);
        return Route::Tcp(TcpRoute { target, workload: None, service: Some(service.clone()) });
    }
    let choice = balance::choose(snapshot, captured.source, service, destination.port(), random);
    let Some(choice) = choice else {
        return Route::Deny(Reason::NoHealthyUpstream);
    };
    let workload = &choice.endpoint.workload;
    if workload.network != snapshot.mesh.network {
        return Route::Deny(Reason::Unsupported);
    }
    match balance::address(workload, Some(service), destination.ip()) {
        Some(ip) => to_endpoint(workload, Some(service), SocketAddr::new(ip, choice.port)),
        // Only DNS can find it.
        None if !workload.hostname.is_empty() => Route::Deny(Reason::Unsupported),
        None => Route::Deny(Reason::NoHealthyUpstream),
    }
}

fn to_workload(snapshot: &Snapshot, captured: &Captured<'_>, workload: &Arc<Workload>) -> Route {
    let waypoint = workload.waypoint.as_deref().into_iter();
    let waypoint = waypoint.filter(|waypoint| !is_waypoint(snapshot, captured, waypoint));
    if let Some(route) = to_waypoint(snapshot, &captured.source.namespace, waypoint) {
        return route;
    }
    to_endpoint(workload, None, captured.destination)
}

fn to_endpoint(workload: &Arc<Workload>, service: Option<&Arc<Service>>, address: SocketAddr) -> Route {
    let workload = workload.clone();
    let service = service.cloned();
    match workload.protocol {
        Protocol::Tcp => {
            Route::Tcp(TcpRoute { target: Target::Address(address), workload: Some(workload), service })
        }
        Protocol::Hbone => Route::Hbone(HboneRoute {
            peer: Target::Address(SocketAddr::new(address.ip(), HBONE_PORT)),
            authority: Authority::Address(address),
            identities: identities(&workload, service.as_deref()),
            workload,
            service,
            inner: None,
        }),
    }
}

fn identities(workload: &Workload, service: Option<&Service>) -> Arc<[Identity]> {
    let own = workload.identity();
    let names = service.map_or(&[][..], |service| &service.subject_alt_names);
    let others = names.iter().filter_map(|name| name.parse().ok()).filter(|name| *name != own);
    let others: Vec<Identity> = others.collect();
    std::iter::once(own).chain(others).collect()
}

/// The route through one of these waypoints; `None` if there are none. One that is known is enough to know the route,
/// and where none is, the first that nobody has asked for is asked for.
fn to_waypoint<'a>(
    snapshot: &Snapshot,
    client_namespace: &str,
    waypoints: impl Iterator<Item = &'a Gateway>,
) -> Option<Route> {
    let (mut named, mut lookup) = (false, None);
    for waypoint in waypoints {
        named = true;
        if waypoint_exists(snapshot, client_namespace, waypoint) {
            return Some(Route::Deny(Reason::Unsupported));
        }
        lookup = lookup.or_else(|| {
            unanswered(snapshot, || match &waypoint.destination {
                GatewayDestination::Service(key) => Question::Service(key.clone()),
                GatewayDestination::Address(address) => Question::Address(address.clone()),
            })
        });
    }
    named.then(|| lookup.map_or(Route::Deny(Reason::UnknownWaypoint), Route::Lookup))
}

/// The question about something that was not found, unless its answer is known to be that there is no such thing.
fn unanswered(snapshot: &Snapshot, question: impl FnOnce() -> Question) -> Option<Question> {
    if !snapshot.mesh.on_demand {
        return None;
    }
    Some(question()).filter(|question| !snapshot.answered.contains(question))
}

fn waypoint_exists(snapshot: &Snapshot, client_namespace: &str, waypoint: &Gateway) -> bool {
    match &waypoint.destination {
        GatewayDestination::Service(key) => {
            snapshot.services.get(key).is_some()
                || snapshot.workloads.with_hostname(&key.namespace, &key.hostname).next().is_some()
        }
        GatewayDestination::Address(address) => {
            lookup::service(snapshot, client_namespace, address).is_some()
                || lookup::workload(snapshot, address).is_some()
        }
    }
}

/// Whether the captured connection comes from the waypoint itself: the source has the identity of a workload behind
/// the reference, and the client's address is that workload's.
fn is_waypoint(snapshot: &Snapshot, captured: &Captured<'_>, waypoint: &Gateway) -> bool {
    let client = captured.client.ip();
    let identity = captured.source.identity();
    let ours =
        |workload: &Arc<Workload>| workload.addresses.contains(&client) && workload.identity() == identity;
    let workloads = &snapshot.workloads;
    let behind = |service: &Arc<Service>| workloads.endpoints(&service.key).any(|end| ours(&end.workload));
    match &waypoint.destination {
        GatewayDestination::Service(key) => match snapshot.services.get(key) {
            Some(service) => behind(service),
            None => workloads.with_hostname(&key.namespace, &key.hostname).any(ours),
        },
        GatewayDestination::Address(address) => {
            match lookup::service(snapshot, &captured.source.namespace, address) {
                Some(service) => behind(service),
                None => lookup::workload(snapshot, address).is_some_and(ours),
            }
        }
    }
}

enum Asked<'a> {
    Address(IpAddr, u16),
    Host(&'a str, u16),
}

fn parse_authority(text: &str) -> Result<Asked<'_>, Reason> {
    let (host, port) = text.rsplit_once(':').ok_or(Reason::BadAuthority)?;
    // `parse` alone would take a leading plus sign.
    let port = Some(port).filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    let port =
        port.and_then(|port| port.parse().ok()).filter(|port| *port > 0).ok_or(Reason::BadAuthority)?;
    if let Some(ip) = host.strip_prefix('[') {
        let ip = ip.strip_suffix(']').and_then(|ip| ip.parse::<std::net::Ipv6Addr>().ok());
        return ip.map(|ip| Asked::Address(ip.to_canonical(), port)).ok_or(Reason::BadAuthority);
    }
    if let Ok(ip) = host.parse::<std::net::Ipv4Addr>() {
        return Ok(Asked::Address(ip.into(), port));
    }
    let part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let valid = !host.is_empty() && host.bytes().all(part);
    if valid { Ok(Asked::Host(host, port)) } else { Err(Reason::BadAuthority) }
}

/// The application's port behind a host. A host that is not known may be one whose service has not been delivered yet, but
/// only where the workload serves one of that name: whatever else a peer may think of is not worth a question.
fn host_port(snapshot: &Snapshot, local: &Workload, host: &str, port: u16) -> Result<u16, NoTarget> {
    let Some(service) = lookup::service_named(snapshot, &local.namespace, host) else {
        let served = local.services.keys().find(|key| *key.hostname == *host);
        let question = served.and_then(|key| unanswered(snapshot, || Question::Service(key.clone())));
        return Err(question.map_or(NoTarget::Deny(Reason::UnknownService), NoTarget::Lookup));
    };
    let none = crate::workload::PortMap::new();
    let port = balance::target_port(service, local.services.get(&service.key).unwrap_or(&none), port);
    port.ok_or(NoTarget::Deny(Reason::UnknownService))
}
