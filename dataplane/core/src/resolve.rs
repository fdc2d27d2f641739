//! Where a connection goes: a captured destination to a route, an inbound CONNECT authority to the application.
//!
//! An address is looked up once, service first and then workload, and every rule reads that one answer: a waypoint of
//! the service is seen even where the same address is also a workload's. A waypoint that a destination names is never
//! bypassed: one that leads nowhere is [`Reason::UnknownWaypoint`]. Resolving opens nothing and waits for nothing: where
//! the node knows only what it asked for, "not there" counts once the control plane has said so, and until then the
//! answer is the question.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::balance::{Purpose, Request};
use crate::demand::Question;
use crate::id::Identity;
use crate::net::{Authority, HBONE_PORT, Target, is_own_port};
use crate::outcome::Reason;
use crate::service::{BalanceMode, Service};
use crate::snapshot::Snapshot;
use crate::workload::{Protocol, Workload};

use ask::Ask;
use reach::{Reached, Unreached};

mod ask;
pub mod inbound;
pub mod lookup;
mod reach;
#[cfg(test)]
mod tests;
mod waypoint;

pub use inbound::{InboundTarget, NoTarget, Requested, inbound_target};

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
    /// `service-hostname:service-port` through a gateway. An endpoint that DNS has to find stands here by its host name:
    /// [`HboneRoute::authority_at`] says what to send once it is found.
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

impl HboneRoute {
    /// The authority to send to a peer that was found at `ip`: an endpoint is asked for its own address, not for the host
    /// name by which DNS finds it.
    pub fn authority_at(&self, ip: IpAddr) -> Authority {
        match (&self.peer, &self.authority) {
            (Target::Host(peer), Authority::Host(host, port))
                if self.inner.is_none() && peer.hostname == *host =>
            {
                Authority::Address(SocketAddr::new(ip, *port))
            }
            _ => self.authority.clone(),
        }
    }
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
    let ask = Ask { snapshot, captured, random, failed, crosses: true };
    let destination = captured.destination;
    let own_address = captured.source.addresses.contains(&destination.ip());
    let local = own_address || destination.ip().is_loopback() || destination.ip().is_unspecified();
    if local && is_own_port(destination.port()) {
        return Route::Deny(Reason::OwnPort);
    }
    let address = lookup::own_network(snapshot, destination.ip());
    if let Some(service) = lookup::service(snapshot, &captured.source.namespace, &address) {
        return to_service(&ask, service);
    }
    let workload = lookup::workload(snapshot, &address);
    if let Some(workload) = workload.filter(|_| !own_address) {
        return to_workload(&ask, workload);
    }
    if !local && let Some(question) = unanswered(snapshot, || Question::Address(address)) {
        return Route::Lookup(question);
    }
    to_original(&ask, workload, None)
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

/// To exactly what the application asked for.
fn to_original(ask: &Ask<'_>, workload: Option<&Arc<Workload>>, service: Option<&Arc<Service>>) -> Route {
    if !ask.failed.is_empty() {
        return Route::Deny(Reason::NoHealthyUpstream);
    }
    let target = Target::Address(ask.captured.destination);
    Route::Tcp(TcpRoute { target, workload: workload.cloned(), service: service.cloned() })
}

fn to_service(ask: &Ask<'_>, service: &Arc<Service>) -> Route {
    if let Some(waypoint) = waypoint::of_service(ask, service) {
        return through_waypoint(ask, waypoint, Some(service));
    }
    if service.load_balancer.as_ref().is_some_and(|balancer| balancer.mode == BalanceMode::Passthrough) {
        return to_original(ask, None, Some(service));
    }
    let destination = ask.captured.destination;
    let request = Request {
        snapshot: ask.snapshot,
        source: ask.captured.source,
        service,
        port: destination.port(),
        requested: destination.ip(),
        purpose: Purpose::Application,
    };
    match reach::endpoint(ask, &request, service) {
        Ok(Reached::Near(hop)) => to_endpoint(hop.workload, Some(service), hop.target),
        Ok(Reached::Far { gateway, .. }) => {
            let accepted = identities(None, Some(service));
            through_gateway(ask, &gateway, service, accepted)
        }
        Err(Unreached::Ask(question)) => Route::Lookup(question),
        Err(Unreached::No(reason)) => Route::Deny(ask.exhausted().unwrap_or(reason)),
    }
}

fn to_workload(ask: &Ask<'_>, workload: &Arc<Workload>) -> Route {
    let ask = &Ask { crosses: false, ..*ask };
    if let Some(waypoint) = waypoint::of_workload(ask, workload) {
        return through_waypoint(ask, waypoint, None);
    }
    // The client asked for this very address, so there is no other to try.
    if ask.tried(workload) {
        return Route::Deny(Reason::NoHealthyUpstream);
    }
    to_endpoint(workload, None, Target::Address(ask.captured.destination))
}

/// To an application at `target`, in a tunnel if its workload has that.
fn to_endpoint(workload: &Arc<Workload>, service: Option<&Arc<Service>>, target: Target) -> Route {
    let workload = workload.clone();
    if workload.protocol == Protocol::Tcp {
        return Route::Tcp(TcpRoute { target, workload: Some(workload), service: service.cloned() });
    }
    let (peer, authority) = match target {
        Target::Address(address) => {
            (Target::Address(SocketAddr::new(address.ip(), HBONE_PORT)), Authority::Address(address))
        }
        Target::Host(mut host) => {
            let authority = Authority::Host(host.hostname.clone(), host.port);
            host.port = HBONE_PORT;
            (Target::Host(host), authority)
        }
    };
    Route::Hbone(HboneRoute {
        peer,
        authority,
        identities: identities(Some(&workload), service),
        workload,
        service: service.cloned(),
        inner: None,
    })
}

/// To a waypoint, which is told what the client addressed. One on another network takes connections to services only.
fn through_waypoint(
    ask: &Ask<'_>,
    waypoint: Result<Reached<'_>, Unreached>,
    service: Option<&Arc<Service>>,
) -> Route {
    match (waypoint, service) {
        (Ok(Reached::Near(hop)), _) => Route::Hbone(HboneRoute {
            peer: hop.target,
            authority: Authority::Address(ask.captured.destination),
            identities: identities(Some(hop.workload), hop.service),
            workload: hop.workload.clone(),
            service: service.cloned(),
            inner: None,
        }),
        (Ok(Reached::Far { workload, service: of, gateway }), Some(service)) => {
            // Which of the waypoint's pods answers is decided over there; a waypoint that is one workload is that one.
            let accepted = identities(Some(workload).filter(|_| of.is_none()), of);
            through_gateway(ask, &gateway, service, accepted)
        }
        (Err(Unreached::Ask(question)), _) => Route::Lookup(question),
        (Ok(Reached::Far { .. }), None) | (Err(Unreached::No(_)), _) => {
            Route::Deny(ask.exhausted().unwrap_or(Reason::UnknownWaypoint))
        }
    }
}

/// Into another network: a tunnel to its gateway, and in it one to a server that is one of `accepted`.
fn through_gateway(
    ask: &Ask<'_>,
    gateway: &reach::Hop<'_>,
    service: &Arc<Service>,
    accepted: Arc<[Identity]>,
) -> Route {
    Route::Hbone(HboneRoute {
        peer: gateway.target.clone(),
        authority: Authority::Host(service.key.hostname.clone(), ask.captured.destination.port()),
        identities: identities(Some(gateway.workload), gateway.service),
        workload: gateway.workload.clone(),
        service: Some(service.clone()),
        inner: Some(accepted),
    })
}

/// The workload's own identity, and then the service's names as far as they are identities.
fn identities(workload: Option<&Arc<Workload>>, service: Option<&Arc<Service>>) -> Arc<[Identity]> {
    let own = workload.map(|workload| workload.identity());
    let names = service.map_or(&[][..], |service| &service.subject_alt_names);
    let others = names.iter().filter_map(|name| name.parse().ok()).filter(|name| Some(name) != own.as_ref());
    let others: Vec<Identity> = others.collect();
    own.into_iter().chain(others).collect()
}

/// The question about something that was not found, unless its answer is known to be that there is no such thing.
fn unanswered(snapshot: &Snapshot, question: impl FnOnce() -> Question) -> Option<Question> {
    if !snapshot.mesh.on_demand {
        return None;
    }
    Some(question()).filter(|question| !snapshot.answered.contains(question))
}
