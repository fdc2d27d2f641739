//! What is asked where the node knows only a part of the mesh, and that answers lead to the decision of one that knows
//! it all.

use proptest::prelude::*;

use super::*;
use crate::fixture::random;

/// A waypoint's service at 10.96.0.9.
fn waypoint(hostname: &str) -> Service {
    Service { ports: [(15008, 15008)].into(), ..service("infra", hostname, &["10.96.0.9"]) }
}

/// The snapshot of a node that asks.
fn asking(mut mesh: Snapshot) -> Snapshot {
    Arc::make_mut(&mut mesh.mesh).on_demand = true;
    mesh
}

fn answer(mut mesh: Snapshot, question: Question) -> Snapshot {
    mesh.answered.insert(question);
    mesh
}

fn address(text: &str) -> Question {
    Question::Address(on_network(text))
}

fn key(namespace: &str, hostname: &str) -> Question {
    Question::Service(ServiceKey::new(namespace, hostname))
}

#[test]
fn an_unknown_address_is_asked_for_until_it_is_answered() {
    let mesh = asking(snapshot([client()], []));
    assert_eq!(route(&mesh, "10.0.0.2:80"), Route::Lookup(address("10.0.0.2")));
    assert_eq!(route(&mesh, "[2001:db8::1]:80"), Route::Lookup(address("2001:db8::1")));
    let mesh = answer(mesh, address("10.0.0.2"));
    assert_eq!(route(&mesh, "10.0.0.2:80"), tcp("10.0.0.2:80"));
    assert_eq!(route(&mesh, "10.0.0.3:80"), Route::Lookup(address("10.0.0.3")));
}

#[test]
fn what_is_known_is_not_asked_for() {
    let shop = service("shop", "cart.shop", &[VIP]);
    let cart = serving(pod("shop", "cart", "10.0.0.2"), &shop);
    let mesh = asking(snapshot([client(), cart], [shop]));
    assert_eq!(hbone(route(&mesh, "10.96.0.1:80")).authority, Authority::Address(socket("10.0.0.2:8080")));
    assert_eq!(hbone(route(&mesh, "10.0.0.2:80")).authority, Authority::Address(socket("10.0.0.2:80")));
}

#[test]
fn the_pods_own_and_local_addresses_are_never_asked_for() {
    for mesh in [snapshot([client()], []), snapshot([], [])] {
        for destination in ["127.0.0.1:80", "[::1]:80", "0.0.0.0:80", "10.0.0.1:80"] {
            let route = route(&asking(mesh.clone()), destination);
            assert!(matches!(route, Route::Tcp(_)), "{destination}: {route:?}");
        }
    }
}

#[test]
fn an_unknown_waypoint_is_asked_for_by_the_name_that_the_destination_gives_it() {
    let cases = [
        (waypoint_service("infra", "waypoint.infra"), key("infra", "waypoint.infra")),
        (waypoint_address("10.96.0.9"), address("10.96.0.9")),
    ];
    for (reference, question) in cases {
        let mut shop = service("shop", "cart.shop", &[VIP]);
        shop.waypoint = Some(reference.clone());
        let cart = Workload { waypoint: Some(reference.into()), ..pod("shop", "cart", "10.0.0.2") };
        let mesh = asking(snapshot([client(), cart], [shop]));
        for destination in ["10.96.0.1:80", "10.0.0.2:80"] {
            assert_eq!(route(&mesh, destination), Route::Lookup(question.clone()), "{destination}");
            let answered = answer(mesh.clone(), question.clone());
            assert_eq!(route(&answered, destination), Route::Deny(Reason::UnknownWaypoint));
        }
        let waypoint = waypoint("waypoint.infra");
        let mut known = mesh.clone();
        known.services.insert(Arc::new(waypoint.clone()));
        // A service may come without its endpoints, as part of another answer.
        assert_eq!(route(&known, "10.96.0.1:80"), Route::Lookup(key("infra", "waypoint.infra")));
        known.workloads.insert(Arc::new(serving(pod("infra", "w", "10.0.0.9"), &waypoint)));
        assert_eq!(hbone(route(&known, "10.96.0.1:80")).peer, at("10.0.0.9:15008"));
    }
}

#[test]
fn a_weighted_waypoint_is_asked_for_when_its_turn_comes_and_the_plain_one_when_none_is_left() {
    let mut shop = service("shop", "cart.shop", &[VIP]);
    let weighted = |name| WeightedWaypoint { gateway: waypoint_service("infra", name), weight: 1 };
    shop.weighted_waypoints = vec![weighted("one"), weighted("two")];
    shop.waypoint = Some(waypoint_service("infra", "three"));
    let mut mesh = asking(snapshot([client()], [shop]));
    let route_at = |mesh: &Snapshot, random| {
        let source = client();
        let captured = Captured {
            source: &source,
            client: socket("10.0.0.1:40000"),
            destination: socket("10.96.0.1:80"),
        };
        resolve(mesh, &captured, random, &[])
    };
    assert_eq!(route_at(&mesh, 0), Route::Lookup(key("infra", "one")));
    assert_eq!(route_at(&mesh, u64::MAX), Route::Lookup(key("infra", "two")));
    mesh = answer(mesh, key("infra", "one"));
    assert_eq!(route_at(&mesh, 0), Route::Lookup(key("infra", "two")));
    mesh = answer(mesh, key("infra", "two"));
    assert_eq!(route_at(&mesh, 0), Route::Lookup(key("infra", "three")));
    mesh = answer(mesh, key("infra", "three"));
    assert_eq!(route_at(&mesh, 0), Route::Deny(Reason::UnknownWaypoint));
    let three = waypoint("three");
    mesh.workloads.insert(Arc::new(serving(pod("infra", "w", "10.0.0.9"), &three)));
    mesh.services.insert(Arc::new(three));
    assert_eq!(hbone(route_at(&mesh, 0)).peer, at("10.0.0.9:15008"));
}

#[test]
fn an_unknown_gateway_is_asked_for() {
    let shop = service("shop", "cart.shop", &[VIP]);
    let reference = Some(waypoint_service("infra", "gateway").into());
    let far = Workload { network: "n2".into(), network_gateway: reference, ..pod("shop", "a", "10.0.0.2") };
    let mesh = asking(snapshot([serving(far, &shop)], [shop]));
    assert_eq!(route(&mesh, "10.96.0.1:80"), Route::Lookup(key("infra", "gateway")));
    let mesh = answer(mesh, key("infra", "gateway"));
    assert_eq!(route(&mesh, "10.96.0.1:80"), Route::Deny(Reason::UnknownGateway));
}

#[test]
fn a_service_without_endpoints_is_asked_for_by_name_once() {
    let mesh = asking(snapshot([client()], [service("shop", "cart.shop", &[VIP])]));
    assert_eq!(route(&mesh, "10.96.0.1:80"), Route::Lookup(key("shop", "cart.shop")));
    let mesh = answer(mesh, key("shop", "cart.shop"));
    assert_eq!(route(&mesh, "10.96.0.1:80"), Route::Deny(Reason::NoHealthyUpstream));
}

#[test]
fn an_unknown_host_of_an_inbound_authority_is_asked_for_only_where_the_workload_serves_it() {
    let elsewhere = service("other", "cart.other", &[]);
    let cart = serving(pod("shop", "cart", "10.0.0.2"), &elsewhere);
    let mesh = asking(snapshot([cart.clone()], []));
    let target = |mesh: &Snapshot, authority| inbound(mesh, &cart, ip("10.0.0.2"), authority);
    let unknown = Err(NoTarget::Deny(Reason::UnknownService));
    assert_eq!(target(&mesh, "cart.shop:80"), unknown);
    let question = key("other", "cart.other");
    assert_eq!(target(&mesh, "cart.other:80"), Err(NoTarget::Lookup(question.clone())));
    assert_eq!(target(&answer(mesh.clone(), question), "cart.other:80"), unknown);
    assert_eq!(target(&mesh, "10.0.0.2:80"), Ok(socket("10.0.0.2:80")));
    assert_eq!(target(&mesh, "no host:80"), Err(NoTarget::Deny(Reason::BadAuthority)));
    let mut mesh = mesh;
    mesh.services.insert(Arc::new(elsewhere));
    assert_eq!(target(&mesh, "cart.other:80"), Ok(socket("10.0.0.2:8080")));
    assert_eq!(target(&mesh, "cart.other:81"), unknown);
}

#[test]
fn an_address_of_an_inbound_authority_is_asked_for_where_it_may_have_this_waypoint() {
    let proxy = pod("shop", "w", "10.0.0.9");
    let mesh = asking(snapshot([proxy.clone()], []));
    let target = |mesh: &Snapshot| inbound(mesh, &proxy, ip("10.0.0.9"), "10.96.0.1:80");
    let refused = Err(NoTarget::Deny(Reason::NotForUs));
    assert_eq!(target(&mesh), Err(NoTarget::Lookup(address("10.96.0.1"))));
    assert_eq!(target(&answer(mesh.clone(), address("10.96.0.1"))), refused);
    let mut shop = service("shop", "cart.shop", &[VIP]);
    shop.waypoint = Some(waypoint_address("10.96.0.9"));
    let mut mesh = mesh;
    mesh.services.insert(Arc::new(shop));
    assert_eq!(target(&mesh), Err(NoTarget::Lookup(address("10.96.0.9"))));
    assert_eq!(target(&answer(mesh, address("10.96.0.9"))), refused);
}

/// A mesh of few names and addresses, so that they meet.
fn small_mesh(seed: u64) -> Snapshot {
    let mut state = seed;
    let mut below = |n: u64| random(&mut state) % n;
    let reference = |below: &mut dyn FnMut(u64) -> u64| match below(4) {
        0 => Some(waypoint_service("shop", &format!("s{}", below(4)))),
        1 => Some(waypoint_address(&format!("10.0.0.{}", below(6)))),
        _ => None,
    };
    let mut services = Vec::new();
    for n in 0..below(4) {
        let vip = format!("10.0.0.{}", below(6));
        let mut made = service("shop", &format!("s{n}"), &[&vip]);
        made.waypoint = reference(&mut below);
        made.ports.insert(15008, 15008);
        let gateways = [reference(&mut below), reference(&mut below)].into_iter().flatten();
        made.weighted_waypoints = gateways.map(|gateway| WeightedWaypoint { gateway, weight: 1 }).collect();
        services.push(made);
    }
    let mut workloads = vec![client()];
    for n in 0..below(4) {
        let mut made = pod("shop", &format!("w{n}"), &format!("10.0.0.{}", below(6)));
        made.waypoint = reference(&mut below).map(Box::new);
        if below(2) == 0 {
            made.hostname = format!("s{}", below(4)).into();
        }
        for service in &services {
            if below(2) == 0 {
                made = serving(made, service);
            }
        }
        workloads.push(made);
    }
    snapshot(workloads, services)
}

proptest! {
    #[test]
    fn with_everything_answered_a_node_that_asks_decides_like_one_that_knows_all(seed: u64, host in 0u8..7) {
        let whole = small_mesh(seed);
        let mut mesh = asking(whole.clone());
        let destination = format!("10.0.0.{host}:80");
        // A question that is asked is new, so this ends; the bound is the number of names and addresses.
        let mut asked = 0;
        while let Route::Lookup(question) = route(&mesh, &destination) {
            prop_assert!(mesh.answered.insert(question).is_none(), "asked twice");
            asked += 1;
            prop_assert!(asked <= 15);
        }
        prop_assert_eq!(route(&mesh, &destination), route(&whole, &destination));
    }

    #[test]
    fn a_node_that_knows_all_asks_nothing(seed: u64, host in 0u8..7) {
        let asks = matches!(route(&small_mesh(seed), &format!("10.0.0.{host}:80")), Route::Lookup(_));
        prop_assert!(!asks);
    }
}
