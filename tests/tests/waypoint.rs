//! Traffic to workloads and services that have a waypoint goes through it, and nowhere else. Envoy is the waypoint: it
//! takes the tunnel, reads HTTP, adds a header to the answers and opens a tunnel of its own to the pod.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use halo::lab::capture::Capture;
use halo::lab::client::Server;
use halo::lab::mesh::{Field, Service, fields, spiffe_id};
use halo::lab::node::NodeOptions;
use halo::lab::topology::{LINK, NodePlan};
use halo_tests::envoy::{self, VIA};
use halo_tests::pair::HTTP;
use halo_tests::sandwich::Relay;
use halo_tests::{Rig, observe, requests, socket};

const HBONE: u16 = 15008;
/// Where a relay takes connections that begin with a PROXY header.
const PROXY: u16 = 15088;
/// The host name of the service in front of the waypoint, as references write it.
const WAYPOINT_SERVICE: &str = "demo/way.demo.svc.cluster.local";

fn vip(nth: u8) -> SocketAddr {
    ([10, 96, 0, nth], 80).into()
}

/// `client` on the first node; `way` and `other` for waypoints and `shop` on the second. The clients and `shop` are
/// enrolled; waypoints run outside of capture and take tunnels.
fn rig() -> Rig {
    let (name, value) = observe::JSON_LOG;
    let environment = vec![(name.into(), value.into())];
    let plan = [NodePlan::new("node-a", &["client"]), NodePlan::new("node-b", &["shop", "way", "other"])];
    let mut rig = Rig::build(&plan, NodeOptions { environment, ..NodeOptions::default() });
    rig.mesh.enrolled.extend(["way".into(), "other".into()]);
    rig
}

/// `way` by its address.
fn by_address(rig: &Rig) -> Field {
    fields::waypoint(&format!("/{}", rig.pod("way").address), HBONE)
}

fn start(rig: &mut Rig) -> Server {
    rig.start_with(&["client", "shop"]);
    Server::http(&rig.lab, rig.pod("shop"), HTTP).unwrap()
}

/// One request that goes through `way`: the answer has its header, the pod sees its address, and only tunnels cross
/// the link. The client's node tells that it asked the waypoint for `authority`.
fn assert_through(rig: &Rig, target: SocketAddr, authority: &str) {
    let answer = requests::await_answer(rig.netns("client"), target);
    assert_eq!(answer.header(VIA), Some("way"), "{answer:?}");
    let capture = Capture::start(&rig.topology.nodes[0].netns, LINK, "shop answers").unwrap();
    let answer = requests::answer(rig.netns("client"), target).unwrap();
    let seen = capture.finish().unwrap();
    assert_eq!((seen.markers, seen.tunnels_without_tls, seen.gaps), (0, 0, 0), "{seen:?}");
    assert!(seen.tunnel_segments > 0, "{seen:?}");
    assert_eq!(answer.header(VIA), Some("way"), "{answer:?}");
    let client = format!("shop answers {}:", rig.pod("way").address);
    assert!(answer.text().starts_with(&client), "{}", answer.text());
    let (peer, identity) = (rig.address("way", HBONE).to_string(), spiffe_id("way"));
    let fields = [
        ("direction", "outbound"),
        ("src.workload", "client"),
        ("dst.workload", "way"),
        ("dst.addr", &*peer),
        ("dst.hbone_addr", authority),
        ("dst.identity", &*identity),
    ];
    observe::access(&rig.proxies[0], "connection complete", &fields);
    let labels = [("reporter", "source"), ("destination_workload", "way"), ("response_flags", "-")];
    let opened = observe::total(&rig.proxies[0], "istio_tcp_connections_opened_total", &labels);
    assert!(opened >= Some(2.0), "{opened:?}");
}

#[test]
fn workload_waypoint_is_asked_for_the_workload_s_address() {
    let mut rig = rig();
    let field = by_address(&rig);
    rig.mesh.set("shop", field);
    let _server = start(&mut rig);
    let target = rig.address("shop", HTTP);
    envoy::waypoint(&rig, "way", &[(target.to_string(), &["shop"], HTTP)]);
    assert_through(&rig, target, &target.to_string());
}

#[test]
fn service_waypoint_is_asked_for_the_service_s_address() {
    let mut rig = rig();
    let service = Service::new("shop", vip(1), "shop", HTTP).with(by_address(&rig));
    rig.mesh.services.push(service);
    let _server = start(&mut rig);
    envoy::waypoint(&rig, "way", &[(vip(1).to_string(), &["shop"], HTTP)]);
    assert_through(&rig, vip(1), &vip(1).to_string());
    // The workload itself has none, and is reached without.
    let answer = requests::answer(rig.netns("client"), rig.address("shop", HTTP)).unwrap();
    assert_eq!(answer.header(VIA), None);
}

#[test]
fn service_waypoint_hostname_is_found_among_services() {
    let mut rig = rig();
    rig.mesh.services.push(Service::new("way", SocketAddr::from(([10, 96, 0, 9], HBONE)), "way", HBONE));
    rig.mesh.set("shop", fields::waypoint(WAYPOINT_SERVICE, HBONE));
    let service = Service::new("shop", vip(1), "shop", HTTP);
    rig.mesh.services.push(service.with(fields::waypoint(WAYPOINT_SERVICE, HBONE)));
    let _server = start(&mut rig);
    let target = rig.address("shop", HTTP);
    let fronts = [(target.to_string(), &["shop"][..], HTTP), (vip(1).to_string(), &["shop"][..], HTTP)];
    envoy::waypoint(&rig, "way", &fronts);
    assert_through(&rig, target, &target.to_string());
    assert_through(&rig, vip(1), &vip(1).to_string());
}

#[test]
fn service_waypoint_workload_hostname_is_found_among_workloads() {
    let mut rig = rig();
    rig.mesh.set("way", fields::text("hostname", "waypoint.example.com"));
    rig.mesh.set("shop", fields::waypoint("demo/waypoint.example.com", HBONE));
    let _server = start(&mut rig);
    let target = rig.address("shop", HTTP);
    envoy::waypoint(&rig, "way", &[(target.to_string(), &["shop"], HTTP)]);
    assert_through(&rig, target, &target.to_string());
}

#[test]
fn waypoint_that_nobody_knows_is_an_error_and_no_way_around() {
    let mut rig = rig();
    rig.mesh.set("shop", fields::waypoint("demo/nobody.demo.svc.cluster.local", HBONE));
    let _server = start(&mut rig);
    let answer = requests::answer(rig.netns("client"), rig.address("shop", HTTP));
    assert!(answer.is_err(), "{answer:?}");
    let line = observe::access(&rig.proxies[0], "connection failed", &[("direction", "outbound")]);
    assert!(line["error"].as_str().unwrap_or_default().starts_with("unknown waypoint:"), "{line}");
}

#[test]
fn waypoint_that_is_down_fails_the_connection_and_is_not_bypassed() {
    let mut rig = rig();
    let field = by_address(&rig);
    rig.mesh.set("shop", field);
    let _server = start(&mut rig);
    let target = rig.address("shop", HTTP);
    assert!(requests::answer(rig.netns("client"), target).is_err());
    envoy::waypoint(&rig, "way", &[(target.to_string(), &["shop"], HTTP)]);
    assert_through(&rig, target, &target.to_string());
}

#[test]
fn weighted_waypoints_share_by_weight_and_a_weight_of_zero_gets_nothing() {
    let mut rig = rig();
    let [way, other] = ["way", "other"].map(|pod| format!("/{}", rig.pod(pod).address));
    let weighted = |ways: &[(&str, u16, u32)]| {
        Service::new("shop", vip(1), "shop", HTTP).with(fields::weighted_waypoints(ways))
    };
    rig.mesh.services.push(weighted(&[(&way, HBONE, 3), (&other, HBONE, 1)]));
    let _server = start(&mut rig);
    for pod in ["way", "other"] {
        envoy::waypoint(&rig, pod, &[(vip(1).to_string(), &["shop"], HTTP)]);
    }
    requests::await_answer(rig.netns("client"), vip(1));
    let share = |rig: &Rig, count: usize| {
        let via =
            |_: usize| requests::answer(rig.netns("client"), vip(1)).unwrap().header(VIA).unwrap().to_owned();
        (0..count).map(via).filter(|via| via == "way").count()
    };
    // Of 200 with probability 3/4 each: 150, and 110 to 190 are six deviations around it.
    let first = share(&rig, 200);
    assert!((110..=190).contains(&first), "{first} of 200 through the one that should have 150");
    rig.mesh.services = vec![weighted(&[(&way, HBONE, 0), (&other, HBONE, 1)])];
    rig.publish();
    assert_eq!(share(&rig, 50), 0);
}

/// `way` is captured like any other pod, and an ordinary program in it passes on what its node proxy hands over.
fn start_sandwich(rig: &mut Rig) -> Server {
    rig.start_with(&["client", "shop", "way"]);
    Server::http(&rig.lab, rig.pod("shop"), HTTP).unwrap()
}

/// One request that reaches `shop` by way of the relay.
fn assert_relayed(rig: &Rig) {
    let answer = requests::await_answer(rig.netns("client"), rig.address("shop", HTTP));
    let seen = format!("shop answers {}:", rig.pod("way").address);
    assert!(answer.text().starts_with(&seen), "{}", answer.text());
    let (client, way) = (spiffe_id("client"), spiffe_id("way"));
    for (from, to, identity, node) in [("client", "way", &client, 0), ("way", "shop", &way, 1)] {
        let fields = [
            ("direction", "outbound"),
            ("src.workload", from),
            ("dst.workload", to),
            ("src.identity", identity),
        ];
        observe::access(&rig.proxies[node], "connection complete", &fields);
    }
}

#[test]
fn sandwich_waypoint_plain_is_handed_the_bytes_on_the_asked_port() {
    let mut rig = rig();
    let field = by_address(&rig);
    rig.mesh.set("shop", field);
    rig.mesh.set("way", fields::application_tunnel("NONE", None));
    let _server = start_sandwich(&mut rig);
    let listener = socket::listen(rig.netns("way"), HTTP);
    let _relay = Relay::start(rig.netns("way"), listener, Some(rig.address("shop", HTTP)));
    assert_relayed(&rig);
}

/// The waypoint is named by the address of a service that has no ports: the tunnel's own port makes up for it.
fn proxy_protocol_rig() -> Rig {
    let mut rig = rig();
    let service = Service::new("way", vip(9), "way", PROXY).with(("ports", serde_json::json!({})));
    rig.mesh.services.push(service);
    rig.mesh.set("shop", fields::waypoint(&format!("/{}", vip(9).ip()), HBONE));
    rig.mesh.set("way", fields::application_tunnel("PROXY", Some(PROXY)));
    rig
}

#[test]
fn sandwich_waypoint_proxy_protocol_is_told_the_client_the_destination_and_the_identity() {
    let mut rig = proxy_protocol_rig();
    let _server = start_sandwich(&mut rig);
    let relay = Relay::start(rig.netns("way"), socket::listen(rig.netns("way"), PROXY), None);
    assert_relayed(&rig);
    let header = relay.header();
    assert_eq!(header.source.ip(), rig.pod("client").address);
    assert_eq!(header.destination, rig.address("shop", HTTP));
    assert_eq!(header.identity, Some(spiffe_id("client")));
}

#[test]
fn sandwich_waypoint_on_loopback_is_reached_where_the_node_says_so() {
    let mut rig = proxy_protocol_rig();
    rig.options.environment.push(("LOCALHOST_APP_TUNNEL".into(), "true".into()));
    let _server = start_sandwich(&mut rig);
    let relay = Relay::start(rig.netns("way"), socket::listen_at_home(rig.netns("way"), PROXY), None);
    assert_relayed(&rig);
    assert_eq!(relay.header().destination, rig.address("shop", HTTP));
}
