//! Interoperation with Envoy, in both roles, with certificates of the same root.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use halo::lab::client::Server;
use halo::lab::mesh::spiffe_id;
use halo::lab::node::NodeOptions;
use halo::lab::topology::NodePlan;
use halo_tests::certs::Root;
use halo_tests::envoy::{self, Door, Onward, Outlet, Plan, Tunnel};
use halo_tests::exchange::{self, Order, Script};
use halo_tests::{Rig, requests, socket};

/// The application that answers requests, and the one that takes and gives bulk.
const HTTP: u16 = 8080;
const BULK: u16 = 9000;
/// Envoy's own ports, which stand for the other pod's.
const OUTLETS: [(u16, u16); 2] = [(18080, HTTP), (19000, BULK)];

const MIB: u64 = 1 << 20;

/// How much goes through.
#[derive(Clone, Copy)]
struct Size {
    requests: usize,
    bulk: u64,
}

const FULL: Size = Size { requests: 10_000, bulk: 256 * MIB };
const SMALL: Size = Size { requests: 500, bulk: 16 * MIB };

fn options(variables: &[(&str, &str)]) -> NodeOptions {
    let environment = variables.iter().map(|&(name, value)| (name.into(), value.into())).collect();
    NodeOptions { environment, ..NodeOptions::default() }
}

/// `web` is Halo's on the first node, `shop` is Halo's on the second; `peer` beside `shop` is Envoy's. Both servers'
/// pods run the same two applications.
struct Stage {
    rig: Rig,
    _servers: Vec<Server>,
}

fn start_envoy(rig: &Rig, pod: &str, target: &str) {
    let pod = rig.pod(pod);
    let leaf = Root::of(&rig.ca()).unwrap().issue(&spiffe_id(&pod.name)).unwrap();
    let outlets = OUTLETS.map(|(port, port_there)| {
        let tunnel = Tunnel::to(rig.pod(target), port_there);
        Outlet { port, tunnel }
    });
    let doors = [HTTP, BULK].map(|port| Door {
        authority: rig.address(&pod.name, port).to_string(),
        http: false,
        onward: vec![Onward::Plain(([127, 0, 0, 1], port).into())],
    });
    envoy::start(&rig.lab, &Plan { pod, leaf, doors: doors.into(), outlets: outlets.into() });
}

fn stage(options: NodeOptions) -> Stage {
    let plan = [NodePlan::new("node-a", &["web"]), NodePlan::new("node-b", &["shop", "peer"])];
    let mut rig = Rig::build(&plan, options);
    start_envoy(&rig, "peer", "shop");
    rig.mesh.enrolled.insert("peer".into());
    rig.start();
    rig.enrol(&["web", "shop"]);
    let servers = ["shop", "peer"].map(|pod| Server::http(&rig.lab, rig.pod(pod), HTTP).unwrap());
    Stage { rig, _servers: servers.into() }
}

/// Requests and bulk from `client` to the applications of `server`, which it reaches at these addresses.
fn carry(rig: &Rig, (client, server): (&str, &str), (http, bulk): (SocketAddr, SocketAddr), size: Size) {
    requests::run(rig.netns(client), http, server, (size.requests, 8));
    let listener = socket::listen(rig.netns(server), BULK);
    let scripts = [
        Script::new(1, size.bulk, 8, Order::ClientFirst),
        Script::new(2, 8, size.bulk, Order::ClientFirst),
        Script::new(3, size.bulk / 16, size.bulk / 16, Order::ClientFirst),
    ];
    let reports = exchange::run(&scripts, rig.netns(client), bulk, &listener, 2);
    exchange::judge_all(&scripts, &reports);
}

fn halo_to_envoy(variables: &[(&str, &str)], size: Size) {
    let stage = stage(options(variables));
    let rig = &stage.rig;
    let before = rig.counter(0, "tunnels_dialed");
    carry(rig, ("web", "peer"), (rig.address("peer", HTTP), rig.address("peer", BULK)), size);
    assert!(rig.counter(0, "tunnels_dialed") > before, "the traffic took no tunnel");
}

fn envoy_to_halo(variables: &[(&str, &str)], size: Size) {
    let stage = stage(options(variables));
    let rig = &stage.rig;
    let before = rig.counter(1, "tunnels_accepted");
    let [http, bulk] = OUTLETS.map(|(port, _)| rig.address("peer", port));
    carry(rig, ("peer", "shop"), (http, bulk), size);
    assert!(rig.counter(1, "tunnels_accepted") > before, "the traffic took no tunnel");
}

#[test]
fn envoy_and_envoy_understand_each_other_so_the_peer_is_right() {
    let plan = [NodePlan::new("node-a", &["one"]), NodePlan::new("node-b", &["two"])];
    let rig = Rig::build(&plan, NodeOptions::default());
    start_envoy(&rig, "one", "two");
    start_envoy(&rig, "two", "one");
    let _server = Server::http(&rig.lab, rig.pod("two"), HTTP).unwrap();
    let [http, bulk] = OUTLETS.map(|(port, _)| rig.address("one", port));
    carry(&rig, ("one", "two"), (http, bulk), SMALL);
}

#[test]
fn envoy_as_a_waypoint_reaches_a_captured_server_and_adds_its_header() {
    let plan = [NodePlan::new("node-a", &["one"]), NodePlan::new("node-b", &["way", "shop"])];
    let rig = Rig::with_enrolled(&plan, NodeOptions::default(), &["shop"]);
    let _server = Server::http(&rig.lab, rig.pod("shop"), HTTP).unwrap();
    let target = rig.address("shop", HTTP);
    envoy::waypoint(&rig, "way", &[(target.to_string(), &["shop"], HTTP)]);
    let tunnel = Tunnel { authority: target.to_string(), ..Tunnel::to(rig.pod("way"), HTTP) };
    let leaf = Root::of(&rig.ca()).unwrap().issue(&spiffe_id("one")).unwrap();
    let outlets = vec![Outlet { port: OUTLETS[0].0, tunnel }];
    envoy::start(&rig.lab, &Plan { pod: rig.pod("one"), leaf, doors: Vec::new(), outlets });
    let answer = requests::await_answer(rig.netns("one"), rig.address("one", OUTLETS[0].0));
    assert_eq!(answer.header(envoy::VIA), Some("way"));
    assert!(answer.text().starts_with(&format!("shop answers {}:", rig.pod("way").address)));
}

#[test]
fn captured_client_reaches_an_envoy_server() {
    halo_to_envoy(&[("HALO_RECORDS", "sealed")], FULL);
}

#[test]
fn envoy_client_reaches_a_captured_server() {
    envoy_to_halo(&[("HALO_RECORDS", "sealed")], FULL);
}

#[test]
fn envoy_is_understood_with_rustls_records() {
    halo_to_envoy(&[("HALO_RECORDS", "rustls")], SMALL);
    envoy_to_halo(&[("HALO_RECORDS", "rustls")], SMALL);
}

#[test]
fn envoy_is_understood_on_epoll() {
    halo_to_envoy(&[("HALO_RING", "epoll")], SMALL);
    envoy_to_halo(&[("HALO_RING", "epoll")], SMALL);
}
