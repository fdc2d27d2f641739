//! Which workload takes a connection, as an endpoint, a waypoint or a gateway, and how it is reached.

use std::sync::Arc;

use super::ask::{Ask, Draw};
use super::{lookup, unanswered};
use crate::balance::{Choice, Purpose, Request};
use crate::demand::Question;
use crate::net::Target;
use crate::outcome::Reason;
use crate::service::{BalanceMode, Service};
use crate::workload::{Gateway, GatewayDestination, Workload};

/// A workload to dial.
pub(super) struct Hop<'a> {
    pub(super) workload: &'a Arc<Workload>,
    /// The service that it was chosen from.
    pub(super) service: Option<&'a Arc<Service>>,
    pub(super) target: Target,
}

/// The workload that takes a connection.
pub(super) enum Reached<'a> {
    /// It is dialled.
    Near(Hop<'a>),
    /// It is on another network, whose gateway is dialled.
    Far { workload: &'a Arc<Workload>, service: Option<&'a Arc<Service>>, gateway: Hop<'a> },
}

/// Why no workload takes a connection.
pub(super) enum Unreached {
    /// The control plane has not said.
    Ask(Question),
    /// There is none.
    No(Reason),
}

/// The endpoint of `service`, which is that of the request: after a failure another address of the same one if it has
/// one, else one that was not tried.
pub(super) fn endpoint<'a>(
    ask: &Ask<'a>,
    request: &Request<'a>,
    service: &'a Arc<Service>,
) -> Result<Reached<'a>, Unreached> {
    let last = ask.failed.last().and_then(|last| request.endpoint(&last.workload));
    if let Some(hop) = last.and_then(|last| near(ask, request, service, last)) {
        return Ok(Reached::Near(hop));
    }
    let random = ask.draw(match request.purpose {
        Purpose::Gateway => Draw::Gateway,
        Purpose::Application | Purpose::Waypoint => Draw::Endpoint,
    });
    let useless = |workload: &Workload| ask.tried(workload) || (!ask.crosses && request.is_far(workload));
    let Some(choice) = request.choose(random, useless) else {
        let empty = ask.snapshot.workloads.endpoints(&service.key).next().is_none();
        let question = || Question::Service(service.key.clone());
        let question = Some(ask.snapshot).filter(|_| empty).and_then(|mesh| unanswered(mesh, question));
        return Err(question.map_or(Unreached::No(Reason::NoHealthyUpstream), Unreached::Ask));
    };
    match take(ask, request, service, choice) {
        Err(Unreached::No(reason)) => {
            // Its gateway leads nowhere. That is rare enough to look at every gateway only now.
            let lost = |workload: &Workload| {
                request.is_far(workload) && matches!(gateway(ask, workload), Err(Unreached::No(_)))
            };
            let choice = request.choose(random, |workload| useless(workload) || lost(workload));
            choice.map_or(Err(Unreached::No(reason)), |choice| take(ask, request, service, choice))
        }
        taken => taken,
    }
}

/// The workload behind the reference to a waypoint or gateway. A reference by host name adapts to the family of the
/// address that the client asked for, one by address stays with its own.
pub(super) fn refer<'a>(
    ask: &Ask<'a>,
    reference: &'a Gateway,
    purpose: Purpose,
) -> Result<Reached<'a>, Unreached> {
    let (snapshot, source) = (ask.snapshot, ask.captured.source);
    let (service, requested) = match &reference.destination {
        GatewayDestination::Service(key) => (snapshot.services.get(key), ask.captured.destination.ip()),
        GatewayDestination::Address(address) => {
            let service = lookup::service(snapshot, &source.namespace, address);
            // Such a service sends nobody anywhere.
            let passes = |service: &&Arc<Service>| {
                service.load_balancer.as_ref().is_some_and(|one| one.mode == BalanceMode::Passthrough)
            };
            if service.as_ref().is_some_and(passes) {
                return Err(Unreached::No(nowhere(purpose)));
            }
            (service, address.ip)
        }
    };
    let port = reference.hbone_mtls_port;
    if let Some(service) = service {
        let request = Request { snapshot, source, service, port, requested, purpose };
        return endpoint(ask, &request, service);
    }
    let mut first = None;
    for workload in workloads(ask, reference) {
        let far = purpose == Purpose::Waypoint && workload.network != snapshot.mesh.network;
        let reached = match far {
            true if ask.crosses => {
                gateway(ask, workload).map(|gateway| Reached::Far { workload, service: None, gateway })
            }
            true => Err(Unreached::No(nowhere(purpose))),
            false => {
                let target = ask.target(workload, None, requested, port);
                let near = target.map(|target| Reached::Near(Hop { workload, service: None, target }));
                near.ok_or(Unreached::No(nowhere(purpose)))
            }
        };
        match reached {
            Ok(reached) => return Ok(reached),
            Err(unreached) => first = first.or(Some(unreached)),
        }
    }
    Err(first.unwrap_or_else(|| {
        let question = unanswered(snapshot, || match &reference.destination {
            GatewayDestination::Service(key) => Question::Service(key.clone()),
            GatewayDestination::Address(address) => Question::Address(address.clone()),
        });
        question.map_or(Unreached::No(nowhere(purpose)), Unreached::Ask)
    }))
}

/// The workloads that a reference means where it means no service.
pub(super) fn workloads<'a>(
    ask: &Ask<'a>,
    reference: &'a Gateway,
) -> impl Iterator<Item = &'a Arc<Workload>> {
    let workloads = &ask.snapshot.workloads;
    let (named, at) = match &reference.destination {
        GatewayDestination::Service(key) => {
            (Some(workloads.with_hostname(&key.namespace, &key.hostname)), None)
        }
        GatewayDestination::Address(address) => (None, lookup::workload(ask.snapshot, address)),
    };
    named.into_iter().flatten().chain(at)
}

fn take<'a>(
    ask: &Ask<'a>,
    request: &Request<'a>,
    service: &'a Arc<Service>,
    choice: Choice<'a>,
) -> Result<Reached<'a>, Unreached> {
    let workload = &choice.endpoint.workload;
    if request.is_far(workload) {
        let gateway = gateway(ask, workload)?;
        return Ok(Reached::Far { workload, service: Some(service), gateway });
    }
    let hop = near(ask, request, service, choice);
    hop.map(Reached::Near).ok_or(Unreached::No(Reason::NoHealthyUpstream))
}

fn near<'a>(
    ask: &Ask<'a>,
    request: &Request<'a>,
    service: &'a Arc<Service>,
    choice: Choice<'a>,
) -> Option<Hop<'a>> {
    let workload = &choice.endpoint.workload;
    if request.is_far(workload) {
        return None;
    }
    let target = ask.target(workload, Some(service), request.requested, choice.port)?;
    Some(Hop { workload, service: Some(service), target })
}

/// The gateway through which a workload of another network is reached.
fn gateway<'a>(ask: &Ask<'a>, workload: &'a Workload) -> Result<Hop<'a>, Unreached> {
    let reference = workload.network_gateway.as_deref();
    match reference.map(|reference| refer(ask, reference, Purpose::Gateway)) {
        Some(Ok(Reached::Near(hop))) => Ok(hop),
        Some(Err(Unreached::Ask(question))) => Err(Unreached::Ask(question)),
        Some(Ok(Reached::Far { .. }) | Err(Unreached::No(_))) | None => {
            Err(Unreached::No(Reason::UnknownGateway))
        }
    }
}

fn nowhere(purpose: Purpose) -> Reason {
    match purpose {
        Purpose::Application => Reason::NoHealthyUpstream,
        Purpose::Waypoint => Reason::UnknownWaypoint,
        Purpose::Gateway => Reason::UnknownGateway,
    }
}
