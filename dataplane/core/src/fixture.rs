//! A small mesh for the tests of this crate.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::net::NetworkAddress;
use crate::service::{Service, ServiceKey, Visibility};
use crate::snapshot::{Mesh, Snapshot};
use crate::workload::{Gateway, GatewayDestination, Protocol, Workload};

/// The network of the node.
pub(crate) const NETWORK: &str = "n1";

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(crate) fn on_network(text: &str) -> NetworkAddress {
    NetworkAddress { network: NETWORK.into(), ip: ip(text) }
}

/// A pod `c1//Pod/<namespace>/<name>` that speaks HBONE, with its name as its service account.
pub(crate) fn pod(namespace: &str, name: &str, address: &str) -> Workload {
    Workload {
        uid: format!("c1//Pod/{namespace}/{name}").into(),
        name: name.into(),
        namespace: namespace.into(),
        addresses: [ip(address)].into(),
        network: NETWORK.into(),
        protocol: Protocol::Hbone,
        trust_domain: "td".into(),
        service_account: name.into(),
        cluster_id: "c1".into(),
        ..Default::default()
    }
}

/// A service `<namespace>/<hostname>` whose port 80 goes to 8080.
pub(crate) fn service(namespace: &str, hostname: &str, vips: &[&str]) -> Service {
    Service {
        key: ServiceKey::new(namespace, hostname),
        name: hostname.into(),
        vips: vips.iter().map(|vip| on_network(vip)).collect(),
        cidr_vips: vec![],
        ports: [(80, 8080)].into(),
        subject_alt_names: vec![],
        waypoint: None,
        weighted_waypoints: vec![],
        load_balancer: None,
        ip_families: None,
        canonical: false,
        visibility: Visibility::Public,
    }
}

/// `workload` as an endpoint of `service`, with no ports of its own.
pub(crate) fn serving(mut workload: Workload, service: &Service) -> Workload {
    workload.services.insert(service.key.clone(), Default::default());
    workload
}

pub(crate) fn waypoint_service(namespace: &str, hostname: &str) -> Gateway {
    let destination = GatewayDestination::Service(ServiceKey::new(namespace, hostname));
    Gateway { destination, hbone_mtls_port: 15008 }
}

pub(crate) fn waypoint_address(address: &str) -> Gateway {
    Gateway { destination: GatewayDestination::Address(on_network(address)), hbone_mtls_port: 15008 }
}

pub(crate) fn snapshot(
    workloads: impl IntoIterator<Item = Workload>,
    services: impl IntoIterator<Item = Service>,
) -> Snapshot {
    let mesh = Mesh { network: NETWORK.into(), cluster: "c1".into(), ..Default::default() };
    let mut snapshot = Snapshot { mesh: Arc::new(mesh), ..Default::default() };
    for workload in workloads {
        snapshot.workloads.insert(Arc::new(workload));
    }
    for service in services {
        snapshot.services.insert(Arc::new(service));
    }
    snapshot
}

/// The next of a sequence of random numbers (SplitMix64).
pub(crate) fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
