//! Where an inbound CONNECT goes: always to the workload that the tunnel is for, at a port that the authority decides.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::{lookup, unanswered};
use crate::balance;
use crate::demand::Question;
use crate::net::{NetworkAddress, is_own_port};
use crate::outcome::Reason;
use crate::service::Service;
use crate::snapshot::Snapshot;
use crate::workload::{ApplicationProtocol, Gateway, GatewayDestination, PortMap, Workload};

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
/// `requested.local` is always the address of the answer: the authority contributes the port. It is `ip:port`, `[v6]:port`
/// or `host:port`. An address must be the tunnel's, unless the workload stands for others: it has an application tunnel,
/// or is the waypoint of what has the address. A host is a service as the workload's own namespace sees it. An application
/// tunnel may replace the port, and is told the authority's address in a PROXY header.
pub fn inbound_target(
    snapshot: &Snapshot,
    local: &Workload,
    requested: &Requested<'_>,
) -> Result<InboundTarget, NoTarget> {
    let pod = requested.local.to_canonical();
    let asked = parse_authority(requested.authority)?;
    let (service, port) = match asked {
        Asked::Address(ip, port) => {
            if ip != pod && local.application_tunnel.is_none() {
                stands_for(snapshot, local, pod, ip)?;
            }
            (None, port)
        }
        Asked::Host(host, port) => {
            let (service, port) = host_port(snapshot, local, host, port)?;
            (Some(service), port)
        }
    };
    let tunnel = local.application_tunnel.unwrap_or_default();
    let destination = SocketAddr::new(pod, tunnel.port.unwrap_or(port));
    if is_own_port(port) || is_own_port(destination.port()) {
        return Err(Reason::OwnPort.into());
    }
    let (mut connect, mut proxy) = (destination, None);
    if tunnel.protocol == ApplicationProtocol::Proxy {
        proxy = Some(told(snapshot, &asked, service)?);
        if snapshot.mesh.application_tunnels_local {
            connect.set_ip(loopback(pod));
        }
    }
    let served = || served(snapshot, local, port, requested.forwarded_host);
    Ok(InboundTarget { destination, connect, proxy, service: service.or_else(served).cloned() })
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
        let ip = ip.strip_suffix(']').and_then(|ip| ip.parse::<Ipv6Addr>().ok());
        return ip.map(|ip| Asked::Address(ip.to_canonical(), port)).ok_or(Reason::BadAuthority);
    }
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Ok(Asked::Address(ip.into(), port));
    }
    let part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let valid = !host.is_empty() && host.bytes().all(part);
    if valid { Ok(Asked::Host(host, port)) } else { Err(Reason::BadAuthority) }
}

/// The service behind a host, and the application's port: what this workload maps it to, else the service's number. A host
/// that is not known may be one whose service has not been delivered yet, but only where the workload serves one of that
/// name: whatever else a peer may think of is not worth a question.
fn host_port<'a>(
    snapshot: &'a Snapshot,
    local: &Workload,
    host: &str,
    port: u16,
) -> Result<(&'a Arc<Service>, u16), NoTarget> {
    let Some(service) = lookup::service_named(snapshot, &local.namespace, host) else {
        let served = local.services.keys().find(|key| *key.hostname == *host);
        let question = served.and_then(|key| unanswered(snapshot, || Question::Service(key.clone())));
        return Err(question.map_or(NoTarget::Deny(Reason::UnknownService), NoTarget::Lookup));
    };
    let none = PortMap::new();
    let ports = local.services.get(&service.key).unwrap_or(&none);
    let found = balance::mapped(ports, port).or_else(|| balance::target_port(service, ports, port));
    found.map(|port| (service, port)).ok_or(NoTarget::Deny(Reason::UnknownService))
}

/// Whether the local workload is the waypoint of the service or workload that has the address `ip`.
fn stands_for(snapshot: &Snapshot, local: &Workload, pod: IpAddr, ip: IpAddr) -> Result<(), NoTarget> {
    let address = NetworkAddress { network: local.network.clone(), ip };
    // Whoever asks for an address sees every service that has it; their own namespace is not known here.
    let service = lookup::service(snapshot, "", &address);
    let workload = lookup::workload(snapshot, &address);
    let weighted = service.into_iter().flat_map(|service| &service.weighted_waypoints);
    let of_service = service.and_then(|service| service.waypoint.as_ref());
    let of_workload = workload.and_then(|workload| workload.waypoint.as_deref());
    let references = weighted.map(|one| &one.gateway).chain(of_service).chain(of_workload);
    let mut question = None;
    for reference in references {
        match is_local(snapshot, local, pod, reference) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(unknown) => question = question.or(Some(unknown)),
        }
    }
    if service.is_none() && workload.is_none() {
        question = unanswered(snapshot, || Question::Address(address));
    }
    Err(question.map_or(NoTarget::Deny(Reason::NotForUs), NoTarget::Lookup))
}

/// Whether a reference to a waypoint means the local workload: it is an endpoint of that service, or that workload.
fn is_local(
    snapshot: &Snapshot,
    local: &Workload,
    pod: IpAddr,
    reference: &Gateway,
) -> Result<bool, Question> {
    match &reference.destination {
        GatewayDestination::Service(key) => {
            let named = key.namespace == local.namespace && key.hostname == local.hostname;
            let workload = named && !local.hostname.is_empty() && snapshot.services.get(key).is_none();
            Ok(workload || local.services.contains_key(key))
        }
        GatewayDestination::Address(address) => {
            if let Some(service) = lookup::service(snapshot, "", address) {
                return Ok(local.services.contains_key(&service.key));
            }
            if address.ip == pod && address.network == local.network {
                return Ok(true);
            }
            if let Some(workload) = lookup::workload(snapshot, address) {
                return Ok(workload.uid == local.uid);
            }
            unanswered(snapshot, || Question::Address(address.clone())).map_or(Ok(false), Err)
        }
    }
}

/// The address that an application tunnel is told: the authority's, or of a host's addresses one on the own network and
/// there an IPv4 one, with the port that the client addressed.
fn told(
    snapshot: &Snapshot,
    asked: &Asked<'_>,
    service: Option<&Arc<Service>>,
) -> Result<SocketAddr, Reason> {
    let (ip, port) = match *asked {
        Asked::Address(ip, port) => (Some(ip), port),
        Asked::Host(_, port) => {
            let mut best: Option<(u8, IpAddr)> = None;
            for vip in service.iter().flat_map(|service| &service.vips) {
                let rank = match (vip.network == snapshot.mesh.network, vip.ip.is_ipv4()) {
                    (true, true) => 2,
                    (true, false) => 1,
                    (false, _) => 0,
                };
                if best.is_none_or(|(highest, _)| rank > highest) {
                    best = Some((rank, vip.ip));
                }
            }
            (best.map(|(_, ip)| ip), port)
        }
    };
    ip.map(|ip| SocketAddr::new(ip, port)).ok_or(Reason::NoServiceAddress)
}

fn loopback(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// Which of the workload's services a connection to `port` is for: the one that the client names, else the first with a
/// port that leads there.
fn served<'a>(
    snapshot: &'a Snapshot,
    local: &Workload,
    port: u16,
    forwarded_host: Option<&str>,
) -> Option<&'a Arc<Service>> {
    if let Some(host) = forwarded_host {
        let named = local.services.keys().filter(|key| *key.hostname == *host);
        if let Some(service) = named.filter_map(|key| snapshot.services.get(key)).next() {
            return Some(service);
        }
    }
    let leads_there = |(service, ports): &(&Arc<Service>, &PortMap)| {
        let target = |from: &u16| balance::target_port(service, ports, *from);
        service.ports.iter().any(|(from, to)| *to == port || target(from) == Some(port))
    };
    let services =
        local.services.iter().filter_map(|(key, ports)| Some((snapshot.services.get(key)?, ports)));
    services.into_iter().find(leads_there).map(|(service, _)| service)
}
