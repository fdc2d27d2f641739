//! What is tried after something failed.

use super::*;

fn tried(workload: &Workload, address: Option<&str>) -> Attempt {
    Attempt { workload: workload.uid.clone(), ip: address.map(ip) }
}

/// Every route that is tried for a destination, when each fails, and the last answer.
fn all_tried(mesh: &Snapshot, destination: &str, random: u64) -> (Vec<Target>, Route) {
    let source = client();
    let captured =
        Captured { source: &source, client: socket("10.0.0.1:40000"), destination: socket(destination) };
    let (mut failed, mut targets) = (vec![], vec![]);
    loop {
        let found = resolve(mesh, &captured, random, &failed);
        let (target, workload) = match &found {
            Route::Hbone(found) => (&found.peer, Some(&found.workload)),
            Route::Tcp(found) => (&found.target, found.workload.as_ref()),
            _ => return (targets, found),
        };
        let ip = match target {
            Target::Address(address) => Some(address.ip()),
            Target::Host(_) => None,
        };
        failed.push(Attempt { workload: workload.map_or("".into(), |one| one.uid.clone()), ip });
        targets.push(target.clone());
        assert!(targets.len() < 20, "{targets:?}");
    }
}

fn dual(name: &str, host: u8) -> Workload {
    let mut made = pod("shop", name, &format!("10.0.0.{host}"));
    made.addresses.insert(1, ip(&format!("fd00::{host}")));
    made
}

const NOTHING_LEFT: Route = Route::Deny(Reason::NoHealthyUpstream);

#[test]
fn the_other_family_of_an_endpoint_is_tried_before_another_endpoint() {
    let shop = service("shop", "cart.shop", &[VIP]);
    let endpoints = [dual("a", 2), dual("b", 3)].map(|endpoint| serving(endpoint, &shop));
    let mesh = snapshot(endpoints, [shop]);
    let expected = ["10.0.0.2:15008", "[fd00::2]:15008", "10.0.0.3:15008", "[fd00::3]:15008"].map(at);
    assert_eq!(all_tried(&mesh, "10.96.0.1:80", 0), (expected.to_vec(), NOTHING_LEFT));
}

#[test]
fn a_family_that_the_service_does_not_offer_is_not_tried() {
    let mut shop = service("shop", "cart.shop", &[VIP]);
    shop.ip_families = Some(crate::service::IpFamilies::Ipv4);
    let mut endpoint = dual("a", 2);
    endpoint.addresses.insert(2, ip("10.0.0.7"));
    let mesh = snapshot([serving(endpoint, &shop)], [shop]);
    let expected = ["10.0.0.2:15008", "10.0.0.7:15008"].map(at);
    assert_eq!(all_tried(&mesh, "10.96.0.1:80", 0), (expected.to_vec(), NOTHING_LEFT));
}

#[test]
fn an_endpoint_is_tried_by_dns_once() {
    let shop = service("shop", "cart.shop", &[VIP]);
    let endpoint = Workload { hostname: "a.example".into(), ..pod("shop", "a", "10.0.0.2") };
    let mesh = snapshot([serving(endpoint.clone(), &shop)], [shop]);
    let (targets, last) = all_tried(&mesh, "10.96.0.1:80", 0);
    assert_eq!((targets.len(), last), (2, NOTHING_LEFT));
    assert!(matches!(&targets[1], Target::Host(host) if &*host.hostname == "a.example"));
    // An address that is not its own is one that DNS found.
    let source = client();
    let captured =
        Captured { source: &source, client: socket("10.0.0.1:40000"), destination: socket("10.96.0.1:80") };
    let failed = [tried(&endpoint, Some("10.0.0.2")), tried(&endpoint, Some("192.0.2.1"))];
    assert_eq!(resolve(&mesh, &captured, 0, &failed), NOTHING_LEFT);
}

#[test]
fn a_farther_endpoint_is_tried_when_the_near_ones_failed_unless_locality_is_strict() {
    let preferences = vec![crate::service::Scope::Node];
    for (mode, count) in [(BalanceMode::Failover, 2), (BalanceMode::Strict, 1)] {
        let mut shop = service("shop", "cart.shop", &[VIP]);
        let routing_preferences = preferences.clone();
        shop.load_balancer = Some(LoadBalancer { mode, routing_preferences, ..Default::default() });
        let near = serving(pod("shop", "near", "10.0.0.2"), &shop);
        let far = Workload { node: "other".into(), ..serving(pod("shop", "far", "10.0.0.3"), &shop) };
        let mesh = snapshot([near, far], [shop]);
        let expected = ["10.0.0.2:15008", "10.0.0.3:15008"].map(at);
        assert_eq!(all_tried(&mesh, "10.96.0.1:80", 0), (expected[..count].to_vec(), NOTHING_LEFT));
    }
}

#[test]
fn what_the_client_addressed_itself_has_no_alternative() {
    let passing = LoadBalancer { mode: BalanceMode::Passthrough, ..Default::default() };
    let shop = Service { load_balancer: Some(passing), ..service("shop", "cart.shop", &[VIP]) };
    let mesh = snapshot([dual("a", 2)], [shop]);
    for destination in ["10.0.0.2:80", "10.96.0.1:80", "192.0.2.1:80", "127.0.0.1:80"] {
        let (targets, last) = all_tried(&mesh, destination, 0);
        assert_eq!((targets.len(), last), (1, NOTHING_LEFT), "{destination}");
    }
}

#[test]
fn another_endpoint_of_a_waypoint_is_tried_and_then_the_plain_waypoint_but_never_the_application() {
    let named = |name| Service { ports: [(15008, 15008)].into(), ..service("shop", name, &[]) };
    let (first, second) = (named("first.shop"), named("second.shop"));
    let mut shop = service("shop", "cart.shop", &[VIP]);
    let gateway = waypoint_service("shop", "first.shop");
    shop.weighted_waypoints = vec![WeightedWaypoint { gateway, weight: 1 }];
    shop.waypoint = Some(waypoint_service("shop", "second.shop"));
    let mesh = snapshot(
        [
            serving(dual("w1", 7), &first),
            serving(pod("shop", "w2", "10.0.0.8"), &first),
            serving(pod("shop", "w3", "10.0.0.9"), &second),
            serving(pod("shop", "cart", "10.0.0.2"), &shop),
        ],
        [first, second, shop],
    );
    let expected = ["10.0.0.7:15008", "[fd00::7]:15008", "10.0.0.8:15008", "10.0.0.9:15008"].map(at);
    assert_eq!(all_tried(&mesh, "10.96.0.1:80", 0), (expected.to_vec(), NOTHING_LEFT));
}

#[test]
fn another_gateway_is_tried_and_then_an_endpoint_that_needs_none() {
    let gateways = Service { ports: [(15008, 15008)].into(), ..service("infra", "gateway", &[]) };
    let shop = service("shop", "cart.shop", &[VIP]);
    let reference = Some(waypoint_service("infra", "gateway").into());
    let far = Workload { network: "n2".into(), network_gateway: reference, ..pod("shop", "a", "10.0.0.2") };
    let mesh = snapshot(
        [
            serving(pod("infra", "g1", "192.0.2.1"), &gateways),
            serving(pod("infra", "g2", "192.0.2.2"), &gateways),
            serving(far, &shop),
            serving(pod("shop", "b", "10.0.0.3"), &shop),
        ],
        [gateways, shop],
    );
    let expected = ["192.0.2.1:15008", "192.0.2.2:15008", "10.0.0.3:15008"].map(at);
    assert_eq!(all_tried(&mesh, "10.96.0.1:80", 0), (expected.to_vec(), NOTHING_LEFT));
}
