use super::*;
use crate::fixture::{
    NETWORK, ip, on_network, pod, service, serving, snapshot, socket, waypoint_address, waypoint_service,
};
use crate::net::HostTarget;
use crate::service::{CidrVip, LoadBalancer, ServiceKey, Visibility, WeightedWaypoint};
use crate::workload::NetworkMode;

mod inbound;
mod network;
mod on_demand;
mod oracle;
mod retry;
mod waypoint;

const VIP: &str = "10.96.0.1";

fn client() -> Workload {
    pod("shop", "client", "10.0.0.1")
}

fn route(snapshot: &Snapshot, destination: &str) -> Route {
    let source = client();
    let captured =
        Captured { source: &source, client: socket("10.0.0.1:40000"), destination: socket(destination) };
    resolve(snapshot, &captured, 0, &[])
}

fn at(address: &str) -> Target {
    Target::Address(socket(address))
}

/// The application's address that a request is for.
fn inbound(
    snapshot: &Snapshot,
    local: &Workload,
    address: IpAddr,
    authority: &str,
) -> Result<SocketAddr, NoTarget> {
    let requested = Requested { local: address, authority, forwarded_host: None };
    inbound_target(snapshot, local, &requested).map(|target| target.destination)
}

fn tcp(destination: &str) -> Route {
    Route::Tcp(TcpRoute { target: at(destination), workload: None, service: None })
}

fn hbone(route: Route) -> HboneRoute {
    match route {
        Route::Hbone(route) => route,
        other => panic!("not HBONE: {other:?}"),
    }
}

/// The name of the service that a plain TCP or HBONE route carries.
fn service_of(route: Route) -> String {
    let service = match route {
        Route::Tcp(route) => route.service,
        Route::Hbone(route) => route.service,
        Route::Lookup(question) => return question.to_string(),
        Route::Deny(reason) => return format!("{reason:?}"),
    };
    service.map(|service| service.key.to_string()).unwrap_or_default()
}

#[test]
fn an_unknown_destination_is_plain_tcp() {
    let mesh = snapshot([client()], []);
    for destination in ["1.1.1.1:443", "127.0.0.1:8080", "[2001:db8::1]:80", "1.1.1.1:15008"] {
        assert_eq!(route(&mesh, destination), tcp(destination));
    }
}

#[test]
fn the_proxys_own_ports_on_this_pod_are_refused() {
    let mesh = snapshot([client()], []);
    for host in ["127.0.0.1", "127.1.2.3", "[::1]", "10.0.0.1", "0.0.0.0"] {
        for port in [15001, 15006, 15008] {
            assert_eq!(
                route(&mesh, &format!("{host}:{port}")),
                Route::Deny(Reason::OwnPort),
                "{host}:{port}"
            );
        }
    }
}

#[test]
fn the_pods_own_address_is_plain_tcp_whatever_the_workload_says() {
    let source = Workload { waypoint: Some(waypoint_address("10.0.0.77").into()), ..client() };
    let mesh = snapshot([source.clone()], []);
    let expected = TcpRoute { target: at("10.0.0.1:8080"), workload: Some(Arc::new(source)), service: None };
    assert_eq!(route(&mesh, "10.0.0.1:8080"), Route::Tcp(expected));
}

#[test]
fn a_workload_is_reached_at_the_address_that_was_asked_for() {
    let plain = Workload { protocol: Protocol::Tcp, ..pod("shop", "plain", "10.0.0.3") };
    let mut cart = pod("shop", "cart", "10.0.0.2");
    cart.addresses.insert(1, ip("2001:db8::2"));
    let mesh = snapshot([client(), cart.clone(), plain.clone()], []);

    let route_v6 = hbone(route(&mesh, "[2001:db8::2]:8080"));
    assert_eq!(route_v6.peer, at("[2001:db8::2]:15008"));
    let route_v4 = hbone(route(&mesh, "10.0.0.2:8080"));
    assert_eq!(
        (route_v4.peer, route_v4.authority),
        (at("10.0.0.2:15008"), Authority::Address(socket("10.0.0.2:8080")))
    );
    assert_eq!(*route_v4.identities, [cart.identity()]);
    assert_eq!((&*route_v4.workload, route_v4.service), (&cart, None));

    let expected = TcpRoute { target: at("10.0.0.3:90"), workload: Some(Arc::new(plain)), service: None };
    assert_eq!(route(&mesh, "10.0.0.3:90"), Route::Tcp(expected));
}

#[test]
fn a_service_is_reached_at_an_endpoints_target_port() {
    let mut shop = service("shop", "cart.shop", &[VIP]);
    shop.subject_alt_names =
        ["spiffe://td/ns/shop/sa/old", "cart.example", "spiffe://td/ns/shop/sa/cart"].map(Into::into).into();
    let cart = serving(pod("shop", "cart", "10.0.0.2"), &shop);
    let mesh = snapshot([client(), cart.clone()], [shop.clone()]);
    let route = hbone(route(&mesh, "10.96.0.1:80"));
    assert_eq!(
        (route.peer, route.authority),
        (at("10.0.0.2:15008"), Authority::Address(socket("10.0.0.2:8080")))
    );
    assert_eq!(*route.identities, [cart.identity(), Identity::new("td", "shop", "old")]);
    assert_eq!(route.service.as_deref(), Some(&shop));
}

#[test]
fn a_plain_endpoint_of_a_service_is_plain_tcp() {
    let shop = service("shop", "cart.shop", &[VIP]);
    let cart = Workload { protocol: Protocol::Tcp, ..pod("shop", "cart", "10.0.0.2") };
    let mesh = snapshot([serving(cart.clone(), &shop)], [shop.clone()]);
    let Route::Tcp(route) = route(&mesh, "10.96.0.1:80") else { panic!("not TCP") };
    assert_eq!(route.target, at("10.0.0.2:8080"));
    assert_eq!(route.workload.map(|workload| workload.uid.clone()), Some(cart.uid));
    assert_eq!(route.service.as_deref(), Some(&shop));
}

#[test]
fn a_service_without_a_usable_endpoint_is_refused_and_never_passed_through() {
    let shop = service("shop", "cart.shop", &[VIP]);
    let mesh = snapshot([client()], [shop.clone()]);
    assert_eq!(route(&mesh, "10.96.0.1:80"), Route::Deny(Reason::NoHealthyUpstream));
    let mesh = snapshot([serving(pod("shop", "cart", "10.0.0.2"), &shop)], [shop.clone()]);
    assert_eq!(route(&mesh, "10.96.0.1:81"), Route::Deny(Reason::NoHealthyUpstream));
    let by_dns =
        Workload { addresses: [].into(), hostname: "db.example".into(), ..pod("shop", "db", "10.0.0.2") };
    let mesh = snapshot([serving(by_dns, &shop)], [shop]);
    let Route::Hbone(found) = route(&mesh, "10.96.0.1:80") else { panic!("not HBONE") };
    let host =
        |port| HostTarget { hostname: "db.example".into(), port, ipv4: true, ipv6: true, ipv6_first: false };
    assert_eq!(found.peer, Target::Host(host(15008)));
}

#[test]
fn a_passthrough_service_is_plain_tcp_to_the_original_address() {
    let mut shop = service("shop", "cart.shop", &[VIP]);
    shop.load_balancer = Some(LoadBalancer { mode: BalanceMode::Passthrough, ..Default::default() });
    let mesh = snapshot([serving(pod("shop", "cart", "10.0.0.2"), &shop)], [shop.clone()]);
    let destination = socket("10.96.0.1:99");
    let expected =
        TcpRoute { target: Target::Address(destination), workload: None, service: Some(Arc::new(shop)) };
    assert_eq!(route(&mesh, "10.96.0.1:99"), Route::Tcp(expected));
}

#[test]
fn the_best_of_several_services_with_one_address_is_taken() {
    let first = || service("a", "same", &[VIP]);
    let canonical = |namespace| Service { canonical: true, ..service(namespace, "same", &[VIP]) };
    let hidden = |namespace| Service {
        visibility: Visibility::Namespace,
        canonical: true,
        ..service(namespace, "same", &[VIP])
    };
    let cases = [
        (vec![first(), service("b", "same", &[VIP])], "a/same"),
        (vec![first(), service("pref", "same", &[VIP])], "pref/same"),
        (vec![first(), canonical("b"), canonical("c"), service("pref", "same", &[VIP])], "c/same"),
        (vec![first(), canonical("b"), service("shop", "same", &[VIP])], "shop/same"),
        (vec![first(), hidden("b")], "a/same"),
        (vec![first(), hidden("shop")], "shop/same"),
    ];
    for (services, expected) in cases {
        let endpoints: Vec<_> = services
            .iter()
            .enumerate()
            .map(|(place, service)| serving(pod("shop", &format!("p{place}"), "10.0.0.2"), service))
            .collect();
        let mut mesh = snapshot(endpoints, services);
        Arc::make_mut(&mut mesh.mesh).preferred_namespace = Some("pref".into());
        assert_eq!(service_of(route(&mesh, "10.96.0.1:80")), expected);
        let found = lookup::service_named(&mesh, "shop", "same").unwrap();
        assert_eq!(found.key.to_string(), expected);
    }
    let mesh = snapshot([], [hidden("b")]);
    assert_eq!(route(&mesh, "10.96.0.1:80"), tcp("10.96.0.1:80"));
}

/// A passthrough service with virtual ranges, so that it needs no endpoint.
fn ranged(namespace: &str, hostname: &str, ranges: &[&str]) -> Service {
    let vip = |range: &&str| CidrVip { network: NETWORK.into(), cidr: range.parse().unwrap() };
    Service {
        cidr_vips: ranges.iter().map(vip).collect(),
        load_balancer: Some(LoadBalancer { mode: BalanceMode::Passthrough, ..Default::default() }),
        ..service(namespace, hostname, &[])
    }
}

#[test]
fn the_best_range_is_by_namespace_then_length_then_canonical() {
    let canonical = |service| Service { canonical: true, ..service };
    let mesh = snapshot(
        [],
        [
            ranged("a", "wide", &["10.0.0.0/8", "::/0"]),
            ranged("a", "middle", &["10.1.0.0/16"]),
            canonical(ranged("b", "middle", &["10.1.0.0/16"])),
            ranged("shop", "own", &["10.2.0.0/15", "2001:db8::/32"]),
            ranged("a", "narrow", &["10.2.3.0/24", "10.9.9.9/32"]),
            Service { visibility: Visibility::Namespace, ..ranged("a", "hidden", &["10.4.0.0/16"]) },
        ],
    );
    for (destination, expected) in [
        ("10.200.0.1:1", "a/wide"),
        ("10.1.2.3:1", "b/middle"),
        ("10.2.3.4:1", "shop/own"),
        ("10.9.9.9:1", "a/narrow"),
        ("10.4.0.1:1", "a/wide"),
        ("[2001:db8::1]:1", "shop/own"),
        ("[2001:db9::1]:1", "a/wide"),
        ("11.0.0.1:1", ""),
    ] {
        assert_eq!(service_of(route(&mesh, destination)), expected, "{destination}");
    }
}

#[test]
fn an_exact_address_beats_a_range_unless_the_client_does_not_see_it() {
    let mut exact = ranged("a", "exact", &[]);
    exact.vips = service("a", "exact", &[VIP]).vips;
    let range = ranged("shop", "range", &["10.96.0.0/16"]);
    let mesh = snapshot([], [exact.clone(), range.clone()]);
    assert_eq!(service_of(route(&mesh, "10.96.0.1:80")), "a/exact");
    exact.visibility = Visibility::Namespace;
    let mesh = snapshot([], [exact, range]);
    assert_eq!(service_of(route(&mesh, "10.96.0.1:80")), "shop/range");
}

#[test]
fn of_workloads_that_share_an_address_the_pod_with_hbone_is_taken() {
    let make = |uid: &str, protocol| Workload { uid: uid.into(), protocol, ..pod("shop", "any", "10.0.0.2") };
    let ranked = [
        make("a/ServiceEntry/x", Protocol::Tcp),
        make("b/WorkloadEntry/x", Protocol::Hbone),
        make("c//Pod/shop/x", Protocol::Tcp),
        make("d//Pod/shop/x", Protocol::Hbone),
    ];
    for count in 1..=ranked.len() {
        let mesh = snapshot(ranked[..count].to_vec(), []);
        let found = lookup::workload(&mesh, &on_network("10.0.0.2")).unwrap();
        assert_eq!(**found, ranked[count - 1]);
    }
    let host = Workload { network_mode: NetworkMode::HostNetwork, ..ranked[3].clone() };
    assert_eq!(lookup::workload(&snapshot([host], []), &on_network("10.0.0.2")), None);
}

#[test]
fn the_local_workload_is_found_by_name_and_service_account_in_the_own_cluster_first() {
    let other = Workload { uid: "z".into(), cluster_id: "c2".into(), ..client() };
    let mesh = snapshot([client(), other.clone()], []);
    let find = |mesh: &Snapshot, account: &str| {
        local_workload(mesh, &"shop".into(), &"client".into(), account).map(|found| found.uid.clone())
    };
    assert_eq!(find(&mesh, "client"), Some(client().uid));
    assert_eq!(find(&mesh, "other"), None);
    assert_eq!(find(&snapshot([other.clone()], []), "client"), Some(other.uid));
}
