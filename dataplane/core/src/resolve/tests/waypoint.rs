//! Traffic that a waypoint takes.

use super::*;
use crate::fixture::random;
use crate::service::IpFamilies;
use crate::workload::{ApplicationProtocol, ApplicationTunnel, Gateway};

/// A waypoint's pod behind `waypoint.shop`.
fn proxy(name: &str, address: &str) -> Workload {
    let proxy = pod("shop", name, address);
    serving(Workload { service_account: "waypoint".into(), ..proxy }, &waypoint())
}

/// The service of a waypoint, at 10.96.0.9, with the port that waypoints are dialled on.
fn waypoint() -> Service {
    Service { ports: [(15008, 15008)].into(), ..service("shop", "waypoint.shop", &["10.96.0.9", "fd00::9"]) }
}

fn by_name() -> Gateway {
    waypoint_service("shop", "waypoint.shop")
}

fn unknown() -> [Gateway; 2] {
    [waypoint_service("shop", "gone.shop"), waypoint_address("10.96.0.99")]
}

fn cart_service() -> Service {
    service("shop", "cart.shop", &[VIP, "fd00::1"])
}

fn weighted(gateways: &[(Gateway, u32)]) -> Vec<WeightedWaypoint> {
    let one =
        |(gateway, weight): &(Gateway, u32)| WeightedWaypoint { gateway: gateway.clone(), weight: *weight };
    gateways.iter().map(one).collect()
}

#[test]
fn a_waypoint_of_a_service_is_asked_for_the_address_that_the_client_wanted() {
    let mut named = waypoint();
    named.subject_alt_names = ["spiffe://td/ns/shop/sa/old".into()].into();
    for reference in [by_name(), waypoint_address("10.96.0.9")] {
        let cart = Service { waypoint: Some(reference), ..cart_service() };
        let endpoint = serving(pod("shop", "cart", "10.0.0.2"), &cart);
        let mesh = snapshot([endpoint, proxy("w", "10.0.0.9")], [cart.clone(), named.clone()]);
        let found = hbone(route(&mesh, "10.96.0.1:80"));
        assert_eq!(found.peer, at("10.0.0.9:15008"));
        assert_eq!(found.authority, Authority::Address(socket("10.96.0.1:80")));
        let accepted =
            [("shop", "waypoint"), ("shop", "old")].map(|(ns, name)| Identity::new("td", ns, name));
        assert_eq!(*found.identities, accepted);
        assert_eq!((&*found.workload.name, found.service.as_deref()), ("w", Some(&cart)));
        assert_eq!(found.inner, None);
    }
}

#[test]
fn a_waypoint_of_a_service_is_never_bypassed() {
    let known = [by_name(), waypoint_address("10.96.0.9")];
    let mut cases = vec![];
    cases.extend(known.clone().map(|gateway| (vec![], Some(gateway), true)));
    cases.extend(unknown().map(|gateway| (vec![], Some(gateway), false)));
    cases.push((vec![(unknown()[0].clone(), 1), (known[0].clone(), 1)], None, true));
    cases.push((vec![(unknown()[0].clone(), 1)], Some(known[1].clone()), true));
    cases.push((vec![(known[0].clone(), 0)], Some(known[1].clone()), true));
    cases.push((vec![(unknown()[0].clone(), 1)], None, false));
    cases.push((vec![(known[0].clone(), 0)], None, false));
    for mode in [BalanceMode::Standard, BalanceMode::Passthrough] {
        for (weights, plain, usable) in &cases {
            let mut cart = cart_service();
            cart.load_balancer = Some(LoadBalancer { mode, ..Default::default() });
            cart.waypoint = plain.clone();
            cart.weighted_waypoints = weighted(weights);
            let endpoint = serving(pod("shop", "cart", "10.0.0.2"), &cart);
            let mesh = snapshot([endpoint, proxy("w", "10.0.0.9")], [cart, waypoint()]);
            let found = route(&mesh, "10.96.0.1:80");
            if *usable {
                assert_eq!(&*hbone(found).workload.name, "w", "{weights:?} {plain:?}");
            } else {
                assert_eq!(found, Route::Deny(Reason::UnknownWaypoint), "{weights:?} {plain:?}");
            }
        }
    }
}

#[test]
fn a_waypoint_without_a_usable_endpoint_is_unknown() {
    let sick = Workload { health: crate::workload::Health::Unhealthy, ..proxy("w", "10.0.0.9") };
    let cart = Service { waypoint: Some(by_name()), ..cart_service() };
    let other_port = Service { ports: [(80, 80)].into(), ..waypoint() };
    for (workloads, waypoint) in
        [(vec![], waypoint()), (vec![sick], waypoint()), (vec![proxy("w", "10.0.0.9")], other_port)]
    {
        let mesh = snapshot(workloads, [cart.clone(), waypoint]);
        assert_eq!(route(&mesh, "10.96.0.1:80"), Route::Deny(Reason::UnknownWaypoint));
    }
}

#[test]
fn weighted_waypoints_share_connections_by_weight_as_far_as_they_can_be_used() {
    let canary = Service { ports: [(15008, 15008)].into(), ..service("shop", "canary.shop", &[]) };
    let mut cart = cart_service();
    let gone = waypoint_service("shop", "gone.shop");
    cart.weighted_waypoints =
        weighted(&[(by_name(), 9), (waypoint_service("shop", "canary.shop"), 1), (gone, 50)]);
    cart.waypoint = Some(unknown()[0].clone());
    let pods = ["c1", "c2"].map(|name| serving(pod("shop", name, "10.0.0.8"), &canary));
    let mesh = snapshot(
        [proxy("w1", "10.0.0.9"), proxy("w2", "10.0.0.9")].into_iter().chain(pods),
        [cart, waypoint(), canary],
    );
    let source = client();
    let captured =
        Captured { source: &source, client: socket("10.0.0.1:40000"), destination: socket("10.96.0.1:80") };
    let mut state = 7;
    let mut counts = std::collections::BTreeMap::<String, i32>::new();
    for _ in 0..10_000 {
        let found = hbone(resolve(&mesh, &captured, random(&mut state), &[]));
        *counts.entry(found.workload.name.to_string()).or_default() += 1;
    }
    // Within a waypoint the endpoints share evenly: one choice does not sway the other. Five standard deviations of a
    // count here are at most 250.
    for (name, share) in [("c1", 500), ("c2", 500), ("w1", 4500), ("w2", 4500)] {
        assert!(counts[name].abs_diff(share) < 250, "{counts:?}");
    }
    assert_eq!(counts.len(), 4);
}

#[test]
fn a_waypoint_by_name_adapts_to_the_clients_family_and_one_by_address_does_not() {
    let mut dual = proxy("w", "10.0.0.9");
    dual.addresses.insert(1, ip("fd00::99"));
    for (reference, destination, expected) in [
        (by_name(), "10.96.0.1:80", "10.0.0.9:15008"),
        (by_name(), "[fd00::1]:80", "[fd00::99]:15008"),
        (waypoint_address("10.96.0.9"), "[fd00::1]:80", "10.0.0.9:15008"),
        (waypoint_address("fd00::9"), "10.96.0.1:80", "[fd00::99]:15008"),
        (waypoint_address("10.0.0.9"), "[fd00::1]:80", "10.0.0.9:15008"),
        (waypoint_address("fd00::99"), "10.96.0.1:80", "[fd00::99]:15008"),
    ] {
        let cart = Service { waypoint: Some(reference), ..cart_service() };
        let mesh = snapshot([dual.clone()], [cart, waypoint()]);
        assert_eq!(hbone(route(&mesh, destination)).peer, at(expected), "{destination}");
    }
    let only_v4 = Service { ip_families: Some(IpFamilies::Ipv4), ..waypoint() };
    let cart = Service { waypoint: Some(by_name()), ..cart_service() };
    let mesh = snapshot([dual], [cart, only_v4]);
    assert_eq!(hbone(route(&mesh, "[fd00::1]:80")).peer, at("10.0.0.9:15008"));
}

#[test]
fn a_waypoints_port_is_mapped_and_need_not_be_listed_where_it_has_an_application_tunnel() {
    let tunnel = |port| Some(ApplicationTunnel { protocol: ApplicationProtocol::Proxy, port });
    let unlisted = || Service { ports: [(80, 8080)].into(), ..waypoint() };
    let listed = |target| Service { ports: [(15008, target)].into(), ..waypoint() };
    for (service, own, tunnel, expected) in [
        (listed(16008), None, None, Some(16008)),
        (listed(16008), Some(17008), None, Some(17008)),
        (listed(0), None, None, None),
        (listed(0), None, tunnel(Some(15088)), Some(15008)),
        (listed(0), None, tunnel(None), None),
        (unlisted(), None, None, None),
        (unlisted(), None, tunnel(Some(15088)), Some(15008)),
        (unlisted(), Some(17008), tunnel(Some(15088)), Some(17008)),
        (unlisted(), None, tunnel(None), None),
    ] {
        let mut proxy = Workload { application_tunnel: tunnel, ..pod("shop", "w", "10.0.0.9") };
        proxy.services.insert(service.key.clone(), own.into_iter().map(|port| (15008, port)).collect());
        let cart = Service { waypoint: Some(by_name()), ..cart_service() };
        let mesh = snapshot([proxy], [cart, service]);
        let found = match route(&mesh, "10.96.0.1:80") {
            Route::Hbone(found) => Some(found.peer),
            other => {
                assert_eq!(other, Route::Deny(Reason::UnknownWaypoint));
                None
            }
        };
        let expected = expected.map(|port| Target::Address(SocketAddr::new(ip("10.0.0.9"), port)));
        assert_eq!(found, expected, "{own:?} {tunnel:?}");
    }
}

#[test]
fn an_address_of_both_a_service_and_a_workload_takes_the_services_waypoint() {
    let mut shop = service("shop", "cart.shop", &["10.0.0.2"]);
    shop.waypoint = Some(by_name());
    let cart =
        Workload { waypoint: Some(waypoint_address("10.0.0.77").into()), ..pod("shop", "cart", "10.0.0.2") };
    let mesh = snapshot([serving(cart, &shop), proxy("w", "10.0.0.9")], [shop, waypoint()]);
    assert_eq!(&*hbone(route(&mesh, "10.0.0.2:80")).workload.name, "w");
}

#[test]
fn a_waypoint_of_a_workload_is_bypassed_by_the_waypoint_alone() {
    // The client is the only endpoint of the waypoint's service in the second mesh, so it is the waypoint.
    let proxy_itself = serving(client(), &waypoint());
    for reference in [by_name(), waypoint_address("10.96.0.9")] {
        let cart = Workload { waypoint: Some(reference.into()), ..pod("shop", "cart", "10.0.0.2") };
        let through = |found: Route| {
            let found = hbone(found);
            assert_eq!(found.authority, Authority::Address(socket("10.0.0.2:80")));
            (found.workload.name.to_string(), found.service)
        };
        let mesh = snapshot([client(), cart.clone(), proxy("w", "10.0.0.9")], [waypoint()]);
        assert_eq!(through(route(&mesh, "10.0.0.2:80")), ("w".into(), None));
        let mesh = snapshot([proxy_itself.clone(), cart.clone()], [waypoint()]);
        assert_eq!(through(route(&mesh, "10.0.0.2:80")), ("cart".into(), None));
        // Same address, other identity.
        let other = Workload { service_account: "other".into(), ..proxy_itself.clone() };
        let mesh = snapshot([other, cart.clone()], [waypoint()]);
        assert_eq!(through(route(&mesh, "10.0.0.2:80")), ("client".into(), None));
        // Same identity, other address.
        let other = Workload { addresses: [ip("10.0.0.5")].into(), ..proxy_itself.clone() };
        let mesh = snapshot([other, cart.clone()], [waypoint()]);
        assert_eq!(hbone(route(&mesh, "10.0.0.2:80")).peer, at("10.0.0.5:15008"));
        let mesh = snapshot([client(), cart], []);
        assert_eq!(route(&mesh, "10.0.0.2:80"), Route::Deny(Reason::UnknownWaypoint));
    }
}

#[test]
fn a_waypoint_may_be_a_workload_by_hostname_or_address() {
    let proxy = Workload { hostname: "waypoint.example".into(), ..pod("shop", "waypoint", "10.0.0.9") };
    for reference in [waypoint_service("shop", "waypoint.example"), waypoint_address("10.0.0.9")] {
        let cart = Workload { waypoint: Some(reference.into()), ..pod("shop", "cart", "10.0.0.2") };
        let mesh = snapshot([proxy.clone(), cart.clone()], []);
        let found = hbone(route(&mesh, "10.0.0.2:80"));
        assert_eq!((&found.peer, &*found.workload), (&at("10.0.0.9:15008"), &proxy));
        assert_eq!(*found.identities, [proxy.identity()]);
        let captured =
            Captured { source: &proxy, client: socket("10.0.0.9:40000"), destination: socket("10.0.0.2:80") };
        assert_eq!(hbone(resolve(&mesh, &captured, 0, &[])).workload.name, cart.name);
    }
}

#[test]
fn a_waypoint_without_an_address_is_found_by_dns() {
    let proxy = Workload { addresses: [].into(), hostname: "w.example".into(), ..proxy("w", "10.0.0.9") };
    let cart = Service { waypoint: Some(by_name()), ..cart_service() };
    let mesh = snapshot([proxy], [cart, waypoint()]);
    let found = hbone(route(&mesh, "[fd00::1]:80"));
    let hostname = "w.example".into();
    let host = HostTarget { hostname, port: 15008, ipv4: true, ipv6: true, ipv6_first: true };
    assert_eq!(found.peer, Target::Host(host));
    // What the client wanted stays what the waypoint is asked for.
    assert_eq!(found.authority_at(ip("10.9.9.9")), Authority::Address(socket("[fd00::1]:80")));
}

#[test]
fn a_waypoint_by_the_address_of_a_passthrough_service_is_unknown() {
    let passing = LoadBalancer { mode: BalanceMode::Passthrough, ..Default::default() };
    let named = Service { load_balancer: Some(passing), ..waypoint() };
    let cart = Service { waypoint: Some(waypoint_address("10.96.0.9")), ..cart_service() };
    let mesh = snapshot([proxy("w", "10.0.0.9")], [cart, named]);
    assert_eq!(route(&mesh, "10.96.0.1:80"), Route::Deny(Reason::UnknownWaypoint));
}
