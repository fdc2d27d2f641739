//! Where an inbound CONNECT goes.

use super::*;
use crate::net::NetworkAddress;
use crate::workload::{ApplicationProtocol, ApplicationTunnel};

fn target(mesh: &Snapshot, local: &Workload, authority: &str) -> Result<InboundTarget, NoTarget> {
    let requested = Requested { local: local.addresses[0], authority, forwarded_host: None };
    inbound_target(mesh, local, &requested)
}

fn with_tunnel(protocol: ApplicationProtocol, port: Option<u16>) -> Workload {
    let application_tunnel = Some(ApplicationTunnel { protocol, port });
    Workload { application_tunnel, ..pod("shop", "w", "10.0.0.9") }
}

#[test]
fn an_application_tunnel_takes_every_address_and_is_told_it() {
    let mesh = snapshot([], []);
    for (protocol, port, told) in [
        (ApplicationProtocol::Proxy, Some(15088), true),
        (ApplicationProtocol::Proxy, None, true),
        (ApplicationProtocol::None, Some(15088), false),
        (ApplicationProtocol::None, None, false),
    ] {
        let local = with_tunnel(protocol, port);
        for authority in ["10.0.0.9:8080", "10.0.0.3:8080", "[fd00::1]:8080"] {
            let found = target(&mesh, &local, authority).unwrap();
            let destination = SocketAddr::new(ip("10.0.0.9"), port.unwrap_or(8080));
            assert_eq!((found.destination, found.connect), (destination, destination));
            assert_eq!(found.proxy, told.then(|| socket(authority)));
        }
    }
}

#[test]
fn only_a_tunnel_with_a_proxy_header_is_reached_at_the_loopback_address() {
    let mut mesh = snapshot([], []);
    Arc::make_mut(&mut mesh.mesh).application_tunnels_local = true;
    let proxy = with_tunnel(ApplicationProtocol::Proxy, Some(15088));
    let dual = Workload { addresses: [ip("fd00::9")].into(), ..proxy.clone() };
    for (local, destination, connect) in [
        (&proxy, "10.0.0.9:15088", "127.0.0.1:15088"),
        (&dual, "[fd00::9]:15088", "[::1]:15088"),
        (&with_tunnel(ApplicationProtocol::None, Some(15088)), "10.0.0.9:15088", "10.0.0.9:15088"),
        (&pod("shop", "w", "10.0.0.9"), "10.0.0.9:80", "10.0.0.9:80"),
    ] {
        let authority = SocketAddr::new(local.addresses[0], 80).to_string();
        let found = target(&mesh, local, &authority).unwrap();
        assert_eq!((found.destination, found.connect), (socket(destination), socket(connect)));
    }
}

#[test]
fn a_tunnel_never_leads_to_the_proxys_own_ports() {
    let mesh = snapshot([], []);
    let own = Err(NoTarget::Deny(Reason::OwnPort));
    let looping = with_tunnel(ApplicationProtocol::Proxy, Some(15008));
    assert_eq!(target(&mesh, &looping, "10.0.0.9:80"), own);
    let tunnel = with_tunnel(ApplicationProtocol::Proxy, Some(15088));
    assert_eq!(target(&mesh, &tunnel, "10.0.0.9:15001"), own);
}

#[test]
fn a_tunnel_is_told_the_address_of_a_host_on_the_own_network_and_ipv4_first() {
    let local = with_tunnel(ApplicationProtocol::Proxy, Some(15088));
    let vips = |addresses: &[(&str, &str)]| {
        let one =
            |(network, text): &(&str, &str)| NetworkAddress { network: (*network).into(), ip: ip(text) };
        Service { vips: addresses.iter().map(one).collect(), ..service("shop", "cart.shop", &[]) }
    };
    for (addresses, expected) in [
        (&[("n2", "10.1.0.1"), (NETWORK, "fd00::1"), (NETWORK, "10.96.0.1")][..], Some("10.96.0.1:80")),
        (&[("n2", "10.1.0.1"), (NETWORK, "fd00::1")], Some("[fd00::1]:80")),
        (&[("n2", "10.1.0.1")], Some("10.1.0.1:80")),
        (&[], None),
    ] {
        let mesh = snapshot([], [vips(addresses)]);
        let found = target(&mesh, &local, "cart.shop:80").map(|found| found.proxy);
        let none = Err(NoTarget::Deny(Reason::NoServiceAddress));
        assert_eq!(found, expected.map_or(none, |address| Ok(Some(socket(address)))));
    }
}

#[test]
fn a_waypoint_without_a_tunnel_takes_the_addresses_that_name_it() {
    let proxy_service = service("shop", "w.shop", &["10.96.0.9"]);
    let served = serving(pod("shop", "w", "10.0.0.9"), &proxy_service);
    let named = Workload { hostname: "w.example".into(), ..pod("shop", "w", "10.0.0.9") };
    let references = [
        (waypoint_service("shop", "w.shop"), &served),
        (waypoint_address("10.96.0.9"), &served),
        (waypoint_address("10.0.0.9"), &named),
        (waypoint_service("shop", "w.example"), &named),
    ];
    for (reference, local) in references {
        let plain = Service { waypoint: Some(reference.clone()), ..service("shop", "plain", &["10.96.1.1"]) };
        let weighted = vec![WeightedWaypoint { gateway: reference.clone(), weight: 1 }];
        let weighted =
            Service { weighted_waypoints: weighted, ..service("shop", "weighted", &["10.96.1.2"]) };
        let other = service("shop", "other", &["10.96.1.3"]);
        let cart = Workload { waypoint: Some(reference.into()), ..pod("shop", "cart", "10.0.0.2") };
        let lone = pod("shop", "lone", "10.0.0.3");
        let mesh = snapshot([local.clone(), cart, lone], [plain, weighted, other, proxy_service.clone()]);
        let found = |authority| target(&mesh, local, authority).map(|found| found.destination);
        for authority in ["10.96.1.1:80", "10.96.1.2:80", "10.0.0.2:80"] {
            assert_eq!(found(authority), Ok(socket("10.0.0.9:80")), "{authority}");
        }
        for authority in ["10.96.1.3:80", "10.0.0.3:80", "10.77.0.1:80"] {
            assert_eq!(found(authority), Err(NoTarget::Deny(Reason::NotForUs)), "{authority}");
        }
        // Nobody else is that waypoint.
        let other = pod("shop", "other", "10.0.0.8");
        assert_eq!(target(&mesh, &other, "10.96.1.1:80"), Err(NoTarget::Deny(Reason::NotForUs)));
    }
}

#[test]
fn the_service_is_the_one_that_the_client_names_or_the_first_whose_port_leads_there() {
    let first = service("shop", "a.shop", &[]);
    let mut second = service("shop", "b.shop", &[]);
    second.ports = [(80, 8080), (81, 0)].into();
    let mut cart = serving(pod("shop", "cart", "10.0.0.2"), &first);
    cart.services.insert(second.key.clone(), [(81, 9090)].into());
    let mesh = snapshot([cart.clone()], [first, second, service("shop", "c.shop", &[])]);
    let found = |authority, forwarded_host| {
        let requested = Requested { local: ip("10.0.0.2"), authority, forwarded_host };
        let found = inbound_target(&mesh, &cart, &requested).unwrap();
        found.service.map(|service| service.key.hostname.to_string()).unwrap_or_default()
    };
    assert_eq!(found("10.0.0.2:8080", None), "a.shop");
    assert_eq!(found("10.0.0.2:8080", Some("b.shop")), "b.shop");
    assert_eq!(found("10.0.0.2:8080", Some("c.shop")), "a.shop");
    assert_eq!(found("10.0.0.2:9090", None), "b.shop");
    assert_eq!(found("10.0.0.2:7070", None), "");
    assert_eq!(found("10.0.0.2:7070", Some("a.shop")), "a.shop");
    assert_eq!(found("b.shop:80", None), "b.shop");
}

#[test]
fn a_host_is_asked_for_at_the_port_that_the_workload_maps_it_to_first() {
    let shop = service("shop", "cart.shop", &[]);
    let mut cart = pod("shop", "cart", "10.0.0.2");
    cart.services.insert(shop.key.clone(), [(80, 9090), (99, 9999)].into());
    let mesh = snapshot([cart.clone()], [shop]);
    for (authority, expected) in [("cart.shop:80", "10.0.0.2:9090"), ("cart.shop:99", "10.0.0.2:9999")] {
        assert_eq!(inbound(&mesh, &cart, ip("10.0.0.2"), authority), Ok(socket(expected)));
    }
}

#[test]
fn an_inbound_authority_is_an_address_of_the_tunnel_or_a_service() {
    let mut shop = service("shop", "cart.shop", &[VIP]);
    shop.ports = [(80, 8080), (81, 0), (82, 0), (83, 15008)].into();
    let mut cart = pod("shop", "cart", "10.0.0.2");
    cart.services.insert(ServiceKey::new("shop", "cart.shop"), [(81, 9090)].into());
    let foreign = Service { visibility: Visibility::Namespace, ..service("a", "hidden.a", &[]) };
    let mesh = snapshot([cart.clone()], [shop, foreign]);
    let target = |destination: &str, authority: &str| inbound(&mesh, &cart, ip(destination), authority);

    for (authority, expected) in [
        ("10.0.0.2:9000", Ok("10.0.0.2:9000")),
        ("[::ffff:10.0.0.2]:9000", Ok("10.0.0.2:9000")),
        ("cart.shop:80", Ok("10.0.0.2:8080")),
        ("cart.shop:81", Ok("10.0.0.2:9090")),
        ("10.0.0.3:9000", Err(Reason::NotForUs)),
        ("[2001:db8::2]:9000", Err(Reason::NotForUs)),
        ("10.0.0.2:15008", Err(Reason::OwnPort)),
        ("10.0.0.2:15001", Err(Reason::OwnPort)),
        ("cart.shop:83", Err(Reason::OwnPort)),
        ("cart.shop:82", Err(Reason::UnknownService)),
        ("cart.shop:99", Err(Reason::UnknownService)),
        ("gone.shop:80", Err(Reason::UnknownService)),
        ("hidden.a:80", Err(Reason::UnknownService)),
    ] {
        let expected = expected.map(socket).map_err(NoTarget::Deny);
        assert_eq!(target("10.0.0.2", authority), expected, "{authority}");
    }
    assert_eq!(target("2001:db8::2", "[2001:db8::2]:80"), Ok(socket("[2001:db8::2]:80")));
    assert_eq!(target("::ffff:10.0.0.2", "10.0.0.2:80"), Ok(socket("10.0.0.2:80")));
}

#[test]
fn a_malformed_authority_is_refused() {
    let mesh = snapshot([client()], []);
    for authority in [
        "",
        ":",
        ":80",
        "10.0.0.1",
        "10.0.0.1:",
        "10.0.0.1:0",
        "10.0.0.1:+80",
        "10.0.0.1:65536",
        "10.0.0.1:80:90",
        "2001:db8::1",
        "2001:db8::1:80",
        "[2001:db8::1]",
        "[2001:db8::1:80",
        "[10.0.0.1]:80",
        "[]:80",
        "user@host:80",
        "host/path:80",
        "ho st:80",
        "host:8 0",
    ] {
        let target = inbound(&mesh, &client(), ip("10.0.0.1"), authority);
        assert_eq!(target, Err(Reason::BadAuthority.into()), "{authority:?}");
    }
}

proptest::proptest! {
    #[test]
    fn an_accepted_authority_has_the_tunnels_address_and_the_port_of_the_text(
        authority in "(10\\.0\\.0\\.[12]|\\[::1\\]|[a-z.:\\[\\]é]{0,6})(:[0-9+]{0,6})?"
    ) {
        let mesh = snapshot([client()], []);
        if let Ok(target) = inbound(&mesh, &client(), ip("10.0.0.1"), &authority) {
            proptest::prop_assert_eq!(target.ip(), ip("10.0.0.1"));
            let port = authority.rsplit(':').next().and_then(|port| port.parse().ok());
            proptest::prop_assert_eq!(Some(target.port()), port);
        }
    }
}
