//! Which waypoint a destination has, and whether the client is that waypoint.

use std::sync::Arc;

use super::ask::{Ask, Draw};
use super::lookup;
use super::reach::{self, Reached, Unreached, refer};
use crate::balance::{self, Purpose};
use crate::outcome::Reason;
use crate::service::{Service, WeightedWaypoint};
use crate::workload::{Gateway, GatewayDestination, Workload};

/// The waypoint of a service, `None` if it names none: one of the weighted ones by weight, as far as they can be used,
/// else the plain one. One that has to be asked for counts as one that can be used, so that the weights hold from the
/// first connection on.
pub(super) fn of_service<'a>(ask: &Ask<'a>, service: &'a Service) -> Option<Result<Reached<'a>, Unreached>> {
    let plain = || service.waypoint.as_ref().map(|waypoint| refer(ask, waypoint, Purpose::Waypoint));
    if service.weighted_waypoints.is_empty() {
        return plain();
    }
    let usable = |one: &&WeightedWaypoint| {
        let reached = || refer(ask, &one.gateway, Purpose::Waypoint);
        one.weight > 0 && !matches!(reached(), Err(Unreached::No(_)))
    };
    let weighted = || service.weighted_waypoints.iter().filter(usable);
    let total = weighted().map(|one| u64::from(one.weight)).sum();
    let mut mark = balance::scale(ask.draw(Draw::Waypoint), total).unwrap_or_default();
    for one in weighted() {
        if mark < u64::from(one.weight) {
            return Some(refer(ask, &one.gateway, Purpose::Waypoint));
        }
        mark -= u64::from(one.weight);
    }
    Some(plain().unwrap_or(Err(Unreached::No(Reason::UnknownWaypoint))))
}

/// The waypoint of a workload, `None` if it names none or the client is that waypoint.
pub(super) fn of_workload<'a>(
    ask: &Ask<'a>,
    workload: &'a Workload,
) -> Option<Result<Reached<'a>, Unreached>> {
    let waypoint = workload.waypoint.as_deref().filter(|waypoint| !is_client(ask, waypoint))?;
    Some(refer(ask, waypoint, Purpose::Waypoint))
}

/// Whether the captured connection comes from the waypoint itself: the source has the identity of a workload behind
/// the reference, and the client's address is that workload's.
fn is_client<'a>(ask: &Ask<'a>, waypoint: &'a Gateway) -> bool {
    let (snapshot, captured) = (ask.snapshot, ask.captured);
    let client = captured.client.ip();
    let identity = captured.source.identity();
    let ours =
        |workload: &Arc<Workload>| workload.addresses.contains(&client) && workload.identity() == identity;
    let service = match &waypoint.destination {
        GatewayDestination::Service(key) => snapshot.services.get(key),
        GatewayDestination::Address(address) => {
            lookup::service(snapshot, &captured.source.namespace, address)
        }
    };
    match service {
        Some(service) => snapshot.workloads.endpoints(&service.key).any(|end| ours(&end.workload)),
        None => reach::workloads(ask, waypoint).any(ours),
    }
}
