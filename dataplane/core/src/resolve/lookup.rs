//! What an address or a host name is, as one client sees it: which of several services or workloads that share it.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::net::NetworkAddress;
use crate::service::{Service, Visibility};
use crate::snapshot::Snapshot;
use crate::workload::{Protocol, Workload};

/// An address on the own network.
pub fn own_network(snapshot: &Snapshot, ip: IpAddr) -> NetworkAddress {
    NetworkAddress { network: snapshot.mesh.network.clone(), ip }
}

/// The service with this virtual address: an exact one if the client sees any, else the best range.
pub fn service<'a>(
    snapshot: &'a Snapshot,
    client_namespace: &str,
    address: &NetworkAddress,
) -> Option<&'a Arc<Service>> {
    preferred(snapshot, client_namespace, snapshot.services.at(address))
        .or_else(|| service_in_range(snapshot, client_namespace, address))
}

/// The service with this host name.
pub fn service_named<'a>(
    snapshot: &'a Snapshot,
    client_namespace: &str,
    hostname: &str,
) -> Option<&'a Arc<Service>> {
    preferred(snapshot, client_namespace, snapshot.services.with_hostname(hostname))
}

/// The workload with this address. Where several share it, a pod comes before anything else, and HBONE before TCP.
pub fn workload<'a>(snapshot: &'a Snapshot, address: &NetworkAddress) -> Option<&'a Arc<Workload>> {
    let mut best: Option<(u8, &Arc<Workload>)> = None;
    for candidate in snapshot.workloads.at(address) {
        let rank = rank(candidate);
        if best.is_none_or(|(highest, _)| rank > highest) {
            best = Some((rank, candidate));
        }
    }
    best.map(|(_, workload)| workload)
}

fn rank(workload: &Workload) -> u8 {
    match (workload.uid.contains("//Pod/"), workload.protocol) {
        (true, Protocol::Hbone) => 3,
        (true, Protocol::Tcp) => 2,
        (false, Protocol::Hbone) => 1,
        (false, Protocol::Tcp) => 0,
    }
}

fn visible(service: &Service, client_namespace: &str) -> bool {
    match service.visibility {
        Visibility::Public => true,
        // A client whose namespace is not known sees everything.
        Visibility::Namespace => client_namespace.is_empty() || &*service.key.namespace == client_namespace,
    }
}

/// Of the services that the client sees: its own namespace's, else the last canonical one, else the preferred
/// namespace's, else the first.
pub(crate) fn preferred<'a>(
    snapshot: &Snapshot,
    client_namespace: &str,
    services: impl Iterator<Item = &'a Arc<Service>>,
) -> Option<&'a Arc<Service>> {
    let preferred_namespace = snapshot.mesh.preferred_namespace.as_ref();
    let mut best: Option<(u8, &Arc<Service>)> = None;
    for service in services.filter(|service| visible(service, client_namespace)) {
        let rank = if &*service.key.namespace == client_namespace {
            3
        } else if service.canonical {
            2
        } else {
            u8::from(preferred_namespace == Some(&service.key.namespace))
        };
        let last_canonical = rank == 2;
        if best.is_none_or(|(highest, _)| rank > highest || (last_canonical && rank == highest)) {
            best = Some((rank, service));
        }
    }
    best.map(|(_, service)| service)
}

/// The service whose virtual range holds the address, best first by client namespace, prefix length, canonical.
///
/// It looks each prefix length up, longest first, so the cost is the number of lengths and not that of services.
fn service_in_range<'a>(
    snapshot: &'a Snapshot,
    client_namespace: &str,
    address: &NetworkAddress,
) -> Option<&'a Arc<Service>> {
    if !snapshot.services.has_ranges() {
        return None;
    }
    let length_max = IpNet::from(address.ip).max_prefix_len();
    let mut best = None;
    let mut best_rank = None;
    for length in (0..=length_max).rev() {
        let Ok(range) = IpNet::new(address.ip, length) else { continue };
        let services = snapshot.services.in_range(&address.network, range.trunc());
        for service in services.filter(|service| visible(service, client_namespace)) {
            let rank = Some((&*service.key.namespace == client_namespace, length, service.canonical));
            if rank > best_rank {
                best = Some(service);
                best_rank = rank;
            }
        }
        if best_rank.is_some_and(|(own_namespace, ..)| own_namespace) {
            break;
        }
    }
    best
}
