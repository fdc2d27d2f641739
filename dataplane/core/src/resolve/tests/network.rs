//! Traffic into another network, through its gateway.

use super::*;
use crate::net::NetworkAddress;
use crate::workload::{Gateway, GatewayDestination};

/// A workload of another network, reached through a gateway.
fn far(name: &str, gateway: Option<Gateway>) -> Workload {
    Workload { network: "n2".into(), network_gateway: gateway.map(Box::new), ..pod("shop", name, "10.0.0.2") }
}

/// The gateway of the other network: a service of its own, and one workload behind it.
fn gateway_service() -> Service {
    let ports = [(15008, 15008)].into();
    let subject_alt_names = ["spiffe://td/ns/infra/sa/other-gateway".into()].into();
    Service { ports, subject_alt_names, ..service("infra", "gateway.infra", &["10.96.0.70"]) }
}

fn gateway_pod(name: &str, address: &str) -> Workload {
    // What a mesh says of another network's gateway is that it is on that network.
    let made = pod("infra", name, address);
    serving(Workload { network: "n2".into(), service_account: "gateway".into(), ..made }, &gateway_service())
}

fn by_name() -> Gateway {
    waypoint_service("infra", "gateway.infra")
}

fn by_address(text: &str) -> Gateway {
    let address = NetworkAddress { network: "n2".into(), ip: ip(text) };
    Gateway { destination: GatewayDestination::Address(address), hbone_mtls_port: 15008 }
}

fn shop() -> Service {
    let subject_alt_names = ["spiffe://td/ns/shop/sa/cart".into(), "cart.example".into()].into();
    Service { subject_alt_names, ..service("shop", "cart.shop", &[VIP]) }
}

#[test]
fn an_endpoint_on_another_network_is_reached_through_its_gateway_as_its_service() {
    let lone = Workload { services: Default::default(), ..gateway_pod("g", "192.0.2.7") };
    for (reference, gateway) in [
        (by_name(), gateway_pod("g", "192.0.2.7")),
        (by_address("192.0.2.7"), gateway_pod("g", "192.0.2.7")),
        (by_address("192.0.2.7"), lone.clone()),
    ] {
        let of_service = matches!(reference.destination, GatewayDestination::Service(_));
        let cart = serving(far("cart", Some(reference)), &shop());
        let mesh = snapshot([cart, gateway], [shop(), gateway_service()]);
        let found = hbone(route(&mesh, "10.96.0.1:80"));
        assert_eq!(found.peer, at("192.0.2.7:15008"));
        assert_eq!(found.authority, Authority::Host("cart.shop".into(), 80));
        let mut accepted = vec![Identity::new("td", "infra", "gateway")];
        accepted.extend(of_service.then(|| Identity::new("td", "infra", "other-gateway")));
        assert_eq!(*found.identities, accepted[..]);
        assert_eq!((&*found.workload.name, found.service.as_deref()), ("g", Some(&shop())));
        // The far side picks the pod, so its own identity is not among them.
        assert_eq!(found.inner.as_deref(), Some(&[Identity::new("td", "shop", "cart")][..]));
    }
}

#[test]
fn a_gateway_without_an_address_is_found_by_dns_and_keeps_the_authority() {
    let gateway = Workload {
        addresses: [].into(),
        hostname: "gateway.example".into(),
        ..gateway_pod("g", "192.0.2.7")
    };
    let cart = serving(far("cart", Some(by_name())), &shop());
    let mesh = snapshot([cart, gateway], [shop(), gateway_service()]);
    let found = hbone(route(&mesh, "10.96.0.1:80"));
    let Target::Host(host) = &found.peer else { panic!("{:?}", found.peer) };
    assert_eq!((&*host.hostname, host.port), ("gateway.example", 15008));
    assert_eq!(found.authority_at(ip("192.0.2.7")), Authority::Host("cart.shop".into(), 80));
}

#[test]
fn a_service_without_names_accepts_no_server_behind_the_gateway() {
    let shop = service("shop", "cart.shop", &[VIP]);
    let cart = serving(far("cart", Some(by_name())), &shop);
    let mesh = snapshot([cart, gateway_pod("g", "192.0.2.7")], [shop, gateway_service()]);
    assert_eq!(hbone(route(&mesh, "10.96.0.1:80")).inner.as_deref(), Some(&[][..]));
}

#[test]
fn without_a_gateway_an_endpoint_on_another_network_cannot_be_used() {
    let denied = Route::Deny(Reason::NoHealthyUpstream);
    let mesh = snapshot([serving(far("cart", None), &shop())], [shop()]);
    assert_eq!(route(&mesh, "10.96.0.1:80"), denied);
    for reference in [by_name(), by_address("192.0.2.7")] {
        let mesh = snapshot([serving(far("cart", Some(reference)), &shop())], [shop()]);
        assert_eq!(route(&mesh, "10.96.0.1:80"), Route::Deny(Reason::UnknownGateway));
    }
    // Its address means nothing on our network.
    assert_eq!(route(&mesh, "10.0.0.2:80"), tcp("10.0.0.2:80"));
}

#[test]
fn an_endpoint_whose_gateway_leads_nowhere_leaves_its_connections_to_the_others() {
    let near = serving(pod("shop", "near", "10.0.0.3"), &shop());
    let lost = serving(far("a-lost", Some(by_name())), &shop());
    let gone = serving(far("b-gone", None), &shop());
    let mesh = snapshot([lost, gone, near], [shop()]);
    // The random number zero points to the first.
    assert_eq!(hbone(route(&mesh, "10.96.0.1:80")).peer, at("10.0.0.3:15008"));
}

#[test]
fn a_gateway_of_the_own_network_is_not_used() {
    let near = Workload { network_gateway: Some(by_name().into()), ..pod("shop", "near", "10.0.0.3") };
    let mesh = snapshot([serving(near, &shop()), gateway_pod("g", "192.0.2.7")], [shop(), gateway_service()]);
    assert_eq!(hbone(route(&mesh, "10.96.0.1:80")).inner, None);
}

#[test]
fn a_waypoint_on_another_network_is_reached_through_its_gateway() {
    let waypoint = Service {
        ports: [(15008, 15008)].into(),
        subject_alt_names: ["spiffe://td/ns/shop/sa/waypoint".into()].into(),
        ..service("shop", "waypoint.shop", &[])
    };
    let named = serving(far("w", Some(by_name())), &waypoint);
    let alone = Workload { hostname: "w.example".into(), ..far("w", Some(by_name())) };
    for (reference, proxy, accepted) in [
        (waypoint_service("shop", "waypoint.shop"), named, Identity::new("td", "shop", "waypoint")),
        (waypoint_service("shop", "w.example"), alone, Identity::new("td", "shop", "w")),
    ] {
        let cart = Service { waypoint: Some(reference.clone()), ..shop() };
        let target = Workload { waypoint: Some(reference.into()), ..pod("shop", "cart", "10.0.0.5") };
        let workloads = [proxy, target, gateway_pod("g", "192.0.2.7")];
        let mesh = snapshot(workloads.clone(), [cart.clone(), waypoint.clone(), gateway_service()]);
        let found = hbone(route(&mesh, "10.96.0.1:80"));
        assert_eq!((&*found.workload.name, &found.peer), ("g", &at("192.0.2.7:15008")));
        assert_eq!(found.authority, Authority::Host("cart.shop".into(), 80));
        assert_eq!(found.inner.as_deref(), Some(&[accepted][..]));
        // Only services cross networks.
        assert_eq!(route(&mesh, "10.0.0.5:80"), Route::Deny(Reason::UnknownWaypoint));
        let mesh = snapshot(workloads[..2].to_vec(), [cart, waypoint.clone()]);
        assert_eq!(route(&mesh, "10.96.0.1:80"), Route::Deny(Reason::UnknownWaypoint));
    }
}

#[test]
fn a_workloads_waypoint_is_chosen_from_those_on_the_own_network() {
    let waypoint = Service { ports: [(15008, 15008)].into(), ..service("shop", "waypoint.shop", &[]) };
    let far = serving(far("a-far", Some(by_name())), &waypoint);
    let near = serving(pod("shop", "near", "10.0.0.9"), &waypoint);
    let reference = waypoint_service("shop", "waypoint.shop");
    let cart = Workload { waypoint: Some(reference.into()), ..pod("shop", "cart", "10.0.0.5") };
    let mesh = snapshot([far, near, cart, gateway_pod("g", "192.0.2.7")], [waypoint, gateway_service()]);
    // The random number zero points to the first.
    assert_eq!(&*hbone(route(&mesh, "10.0.0.5:80")).workload.name, "near");
}
