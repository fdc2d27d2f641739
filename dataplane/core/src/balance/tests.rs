use super::*;
use crate::fixture::{ip, pod, random, service, snapshot};
use crate::workload::{Gateway, GatewayDestination, Locality};

fn client() -> Workload {
    let locality = Locality { region: "r1".into(), zone: "z1".into(), subzone: "s1".into() };
    Workload { locality, node: "node1".into(), ..pod("shop", "client", "10.0.0.1") }
}

/// An endpoint whose locality is `region/zone/subzone`.
fn endpoint(name: &str, locality: &str) -> Workload {
    let mut parts = locality.split('/').map(Into::into);
    let mut part = || parts.next().unwrap_or_default();
    let locality = Locality { region: part(), zone: part(), subzone: part() };
    let mut workload = Workload { locality, ..pod("shop", name, "10.0.0.2") };
    workload.services.insert(service("shop", "cart", &[]).key, Default::default());
    workload
}

fn balanced(mode: BalanceMode, routing_preferences: &[Scope]) -> Service {
    let routing_preferences = routing_preferences.to_vec();
    let load_balancer = Some(LoadBalancer { mode, routing_preferences, ..Default::default() });
    Service { load_balancer, ..service("shop", "cart", &[]) }
}

/// A connection of the client to the port 80 of a service.
fn request<'a>(snapshot: &'a Snapshot, source: &'a Workload, service: &'a Service) -> Request<'a> {
    let requested = ip("10.96.0.1");
    Request { snapshot, source, service, port: 80, requested, purpose: Purpose::Application }
}

/// How often each endpoint is chosen in `rounds` rounds, in order of name.
fn counts(service: &Service, endpoints: &[Workload], rounds: usize) -> Vec<usize> {
    let snapshot = snapshot(endpoints.to_vec(), [service.clone()]);
    let source = client();
    let mut state = 1;
    let mut counts = vec![0; endpoints.len()];
    for _ in 0..rounds {
        if let Some(choice) = request(&snapshot, &source, service).choose(random(&mut state), |_| false) {
            let name = &choice.endpoint.workload.name;
            counts[endpoints.iter().position(|endpoint| endpoint.name == *name).unwrap()] += 1;
        }
    }
    let total: usize = counts.iter().sum();
    assert!(total == 0 || total == rounds, "a service with usable endpoints gave none");
    counts
}

/// The names of the endpoints that are ever chosen.
fn chosen(service: &Service, endpoints: &[Workload]) -> Vec<String> {
    let counts = counts(service, endpoints, 200);
    let ever = endpoints.iter().zip(counts).filter(|(_, count)| *count > 0);
    ever.map(|(endpoint, _)| endpoint.name.to_string()).collect()
}

#[test]
fn endpoints_are_chosen_by_weight() {
    let weights = [Some(1), None, Some(2), Some(6), Some(0)];
    let endpoints: Vec<_> = weights
        .iter()
        .enumerate()
        .map(|(place, capacity)| Workload { capacity: *capacity, ..endpoint(&format!("e{place}"), "") })
        .collect();
    let counts = counts(&service("shop", "cart", &[]), &endpoints, 20_000);
    assert_eq!((counts.iter().sum::<usize>(), counts[4]), (20_000, 0));
    for (count, share) in counts.iter().zip([2000, 2000, 4000, 12_000]) {
        // Five standard deviations of the largest variance here are about 350.
        assert!(count.abs_diff(share) < 350, "{counts:?}");
    }
}

#[test]
fn the_ends_of_the_random_range_choose_the_first_and_last_endpoint() {
    let shop = service("shop", "cart", &[]);
    let snapshot = snapshot([endpoint("a", ""), endpoint("b", ""), endpoint("c", "")], [shop.clone()]);
    let source = client();
    let name = |random| {
        let choice = request(&snapshot, &source, &shop).choose(random, |_| false);
        choice.map(|choice| choice.endpoint.workload.name.to_string())
    };
    assert_eq!((name(0).as_deref(), name(u64::MAX).as_deref()), (Some("a"), Some("c")));
}

#[test]
fn a_service_whose_weights_are_all_zero_has_no_endpoint() {
    let endpoints = [Workload { capacity: Some(0), ..endpoint("a", "") }];
    assert_eq!(chosen(&service("shop", "cart", &[]), &endpoints), [""; 0]);
    // Zero weights of the best rank do not fall back to a worse one.
    let near = Workload { capacity: Some(0), ..endpoint("near", "r1") };
    let failover = balanced(BalanceMode::Failover, &[Scope::Region]);
    assert_eq!(chosen(&failover, &[near, endpoint("far", "r2")]), [""; 0]);
}

#[test]
fn an_unhealthy_endpoint_is_chosen_only_where_the_service_allows_all() {
    let endpoints = ["a", "b"].map(|name| Workload { health: Health::Unhealthy, ..endpoint(name, "") });
    let mut shop = balanced(BalanceMode::Standard, &[]);
    assert_eq!(chosen(&shop, &endpoints), [""; 0]);
    shop.load_balancer.as_mut().unwrap().health_policy = HealthPolicy::AllowAll;
    assert_eq!(chosen(&shop, &endpoints), ["a", "b"]);
}

#[test]
fn the_nearest_endpoints_are_chosen() {
    use Scope::{Network, Region, Subzone, Zone};
    let all = [
        endpoint("a_same", "r1/z1/s1"),
        endpoint("b_zone", "r1/z1/s2"),
        endpoint("c_region", "r1/z2/s1"),
        endpoint("d_far", "r2/z1/s1"),
    ];
    let scopes = &[Region, Zone, Subzone][..];
    let network = &[Network, Region, Zone][..];
    let table = [
        (BalanceMode::Standard, scopes, 0, "a_same b_zone c_region d_far"),
        (BalanceMode::Failover, scopes, 0, "a_same"),
        (BalanceMode::Failover, scopes, 1, "b_zone"),
        (BalanceMode::Failover, scopes, 2, "c_region"),
        (BalanceMode::Failover, scopes, 3, "d_far"),
        // The first mismatch ends the walk: the zone of another region counts for nothing.
        (BalanceMode::Failover, &[Region, Subzone], 1, "c_region"),
        (BalanceMode::Failover, &[], 0, "a_same b_zone c_region d_far"),
        (BalanceMode::Strict, scopes, 0, "a_same"),
        (BalanceMode::Strict, scopes, 1, ""),
        (BalanceMode::Strict, &[Zone], 1, "b_zone d_far"),
        (BalanceMode::Strict, &[], 2, "c_region d_far"),
        (BalanceMode::Failover, network, 0, "a_same b_zone"),
    ];
    for (mode, scopes, skip, expected) in table {
        let names = chosen(&balanced(mode, scopes), &all[skip..]).join(" ");
        assert_eq!(names, expected, "{mode:?} {scopes:?} without the first {skip}");
    }
}

#[test]
fn a_network_in_first_place_outranks_every_other_scope_and_is_nice_to_have() {
    let far = |name, locality| Workload {
        network: "n2".into(),
        network_gateway: gateway(),
        ..endpoint(name, locality)
    };
    let failover = balanced(BalanceMode::Failover, &[Scope::Network, Scope::Region, Scope::Zone]);
    let near = endpoint("own_network", "r2/z2");
    assert_eq!(chosen(&failover, &[far("far", "r1/z1"), near]), ["own_network"]);
    assert_eq!(chosen(&failover, &[far("far_region", "r2/z1"), far("far_zone", "r1/z2")]), ["far_zone"]);
    // A worse endpoint that is seen first leaves no weight behind.
    assert_eq!(chosen(&failover, &[far("a_far", "r9"), endpoint("b_near", "r1/z1")]), ["b_near"]);
    // In any other place it is a scope like the others.
    let last = balanced(BalanceMode::Failover, &[Scope::Region, Scope::Network]);
    assert_eq!(chosen(&last, &[far("region", "r1"), endpoint("network", "r2")]), ["region"]);
}

#[test]
fn node_and_cluster_are_compared_with_the_source() {
    let near = Workload { node: "node1".into(), ..endpoint("near", "") };
    let far = Workload { node: "node2".into(), cluster_id: "c2".into(), ..endpoint("far", "") };
    for scope in [Scope::Node, Scope::Cluster] {
        let strict = balanced(BalanceMode::Strict, &[scope]);
        assert_eq!(chosen(&strict, &[near.clone(), far.clone()]), ["near"]);
    }
}

fn gateway() -> Option<Box<Gateway>> {
    let destination = GatewayDestination::Service(crate::service::ServiceKey::new("g", "gateway"));
    Some(Box::new(Gateway { destination, hbone_mtls_port: 15008 }))
}

#[test]
fn an_endpoint_that_cannot_be_reached_is_not_chosen() {
    let without = |name: &str| Workload { addresses: [].into(), ..endpoint(name, "") };
    let endpoints = [
        Workload { hostname: "db.example".into(), ..without("dns") },
        Workload { network: "n2".into(), network_gateway: gateway(), ..without("far") },
        Workload { network: "n2".into(), network_gateway: gateway(), ..endpoint("far_with_address", "") },
        Workload { network: "n2".into(), ..endpoint("far_without_gateway", "") },
        Workload { network_gateway: gateway(), ..without("gateway_of_own_network") },
        without("nowhere"),
    ];
    let mut shop = service("shop", "cart", &[]);
    assert_eq!(chosen(&shop, &endpoints), ["dns", "far", "far_with_address"]);
    shop.ip_families = Some(IpFamilies::Ipv6);
    let near = endpoint("only_ipv4", "");
    assert_eq!(chosen(&shop, &[near]), [""; 0]);
}

#[test]
fn a_gateway_is_dialled_whatever_its_network() {
    let shop = service("shop", "cart", &[]);
    let far = Workload { network: "n2".into(), ..endpoint("gateway", "") };
    let nowhere = Workload { addresses: [].into(), network_gateway: gateway(), ..far.clone() };
    for (workload, usable) in [(far, true), (nowhere, false)] {
        let snapshot = snapshot([workload], [shop.clone()]);
        let source = client();
        let request = Request { purpose: Purpose::Gateway, ..request(&snapshot, &source, &shop) };
        assert_eq!(request.choose(0, |_| false).is_some(), usable);
    }
}

#[test]
fn an_endpoint_is_given_by_name_only_if_it_may_be_used_and_one_that_is_excepted_is_not_chosen() {
    let shop = service("shop", "cart", &[]);
    let sick = Workload { health: Health::Unhealthy, ..endpoint("sick", "") };
    let snapshot = snapshot([endpoint("a", ""), endpoint("b", ""), sick], [shop.clone()]);
    let source = client();
    let request = request(&snapshot, &source, &shop);
    assert!(request.endpoint("c1//Pod/shop/b").is_some());
    assert!(request.endpoint("c1//Pod/shop/sick").is_none() && request.endpoint("gone").is_none());
    let mut state = 3;
    for _ in 0..50 {
        let choice = request.choose(random(&mut state), |workload| &*workload.name == "a").unwrap();
        assert_eq!(&*choice.endpoint.workload.name, "b");
    }
}

#[test]
fn the_port_is_the_endpoints_own_then_the_services_number() {
    let mut shop = service("shop", "cart", &[]);
    shop.ports = [(80, 8080), (81, 0)].into();
    let cases = [
        (&[][..], 80, Some(8080)),
        (&[(80, 9090)], 80, Some(9090)),
        (&[(80, 0)], 80, Some(8080)),
        (&[], 81, None),
        (&[(81, 9191)], 81, Some(9191)),
        (&[(81, 0)], 81, None),
        // The service does not list the port.
        (&[(82, 9292)], 82, None),
    ];
    for (ports, port, expected) in cases {
        let mut workload = endpoint("a", "");
        workload.services.insert(shop.key.clone(), ports.iter().copied().collect());
        let snapshot = snapshot([workload], [shop.clone()]);
        let source = client();
        let choice = Request { port, ..request(&snapshot, &source, &shop) }.choose(7, |_| false);
        assert_eq!(choice.map(|choice| choice.port), expected, "{ports:?} {port}");
    }
}

#[test]
fn the_address_is_the_requested_one_then_of_an_offered_family() {
    let mut workload = pod("shop", "cart", "10.0.0.2");
    workload.addresses.insert(1, ip("2001:db8::2"));
    workload.addresses.insert(2, ip("10.0.0.3"));
    let mut shop = service("shop", "cart", &[]);
    let cases = [
        (None, "10.0.0.3", Some("10.0.0.3")),
        (None, "10.96.0.1", Some("10.0.0.2")),
        (None, "2001:db8::99", Some("2001:db8::2")),
        (Some(IpFamilies::Dual), "2001:db8::99", Some("2001:db8::2")),
        (Some(IpFamilies::Ipv4), "2001:db8::99", Some("10.0.0.2")),
        (Some(IpFamilies::Ipv6), "10.96.0.1", Some("2001:db8::2")),
        // The workload owns it, whatever the service offers.
        (Some(IpFamilies::Ipv6), "10.0.0.2", Some("10.0.0.2")),
    ];
    for (families, requested, expected) in cases {
        shop.ip_families = families;
        let found = address(&workload, Some(&shop), ip(requested));
        assert_eq!(found, expected.map(ip), "{families:?} {requested}");
    }
    workload.addresses = workload.addresses.iter().copied().filter(IpAddr::is_ipv4).collect();
    shop.ip_families = Some(IpFamilies::Ipv6);
    assert_eq!(address(&workload, Some(&shop), ip("10.96.0.1")), None);
}
