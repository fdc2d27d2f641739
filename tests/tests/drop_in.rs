//! The scenarios that the stock node proxy is tested with, under their names: who is captured, and what is told of it.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;

use halo::lab::admin;
use halo::lab::capture::{Capture, Seen};
use halo::lab::client::Server;
use halo::lab::mesh::{Action, Policy, Scope, Service, fields, spiffe_id};
use halo::lab::node::{self, NodeOptions};
use halo::lab::process::wait_for;
use halo::lab::topology::{LINK, Node, NodePlan};
use halo_control::redirect;
use halo_tests::certs::{Leaf, Root};
use halo_tests::pair::{HTTP, RAW};
use halo_tests::rig::SOON;
use halo_tests::talk::{ANSWERED, ASKED, talk};
use halo_tests::{Rig, hbone, observe, requests, socket};
use http::Method;
use serde_json::json;

const OPENED: &str = "istio_tcp_connections_opened_total";
const CLOSED: &str = "istio_tcp_connections_closed_total";
const RECEIVED: &str = "istio_tcp_received_bytes_total";
const SENT: &str = "istio_tcp_sent_bytes_total";
const HBONE: u16 = 15008;

fn options() -> NodeOptions {
    let (name, value) = observe::JSON_LOG;
    NodeOptions { environment: vec![(name.into(), value.into())], ..NodeOptions::default() }
}

/// `client` and `server` share the first node, `remote` is on the second.
fn rig(enrolled: &[&str]) -> Rig {
    let plan = [NodePlan::new("node-a", &["client", "server"]), NodePlan::new("node-b", &["remote"])];
    let mut rig = Rig::build(&plan, options());
    rig.start_with(enrolled);
    rig
}

/// One conversation from `client` to `server`, as it crosses the interface of the client's pod; the server sees the
/// client's own address.
fn converse(rig: &Rig, client: &str, server: &str) -> Seen {
    let listener = socket::listen(rig.netns(server), RAW);
    let node = rig.pod(client).node;
    let capture = Capture::start(&rig.topology.nodes[node].netns, "pod0", "hello world").unwrap();
    let from = talk(rig.netns(client), rig.address(server, RAW), &listener).unwrap();
    assert_eq!(from.ip(), rig.pod(client).address);
    let seen = capture.finish().unwrap();
    assert_eq!(seen.gaps, 0, "{seen:?}");
    seen
}

fn assert_encrypted(seen: Seen) {
    assert_eq!((seen.markers, seen.other_segments, seen.tunnels_without_tls), (0, 0, 0), "{seen:?}");
    assert!(seen.tls13_handshakes > 0 && seen.data_records > 0, "{seen:?}");
}

fn assert_plain(seen: Seen) {
    assert!(seen.markers > 0 && seen.tunnel_segments == 0, "{seen:?}");
}

/// What one side counts of the one conversation from `client` to `server`.
fn assert_counted(
    rig: &Rig,
    (node, reporter): (usize, &str),
    (client, server): (&str, &str),
    security: &str,
) {
    let labels = [
        ("reporter", reporter),
        ("source_workload", client),
        ("source_workload_namespace", "demo"),
        ("destination_workload", server),
        ("destination_workload_namespace", "demo"),
        ("request_protocol", "tcp"),
        ("response_flags", "-"),
        ("connection_security_policy", security),
    ];
    let expected = [(CLOSED, 1), (OPENED, 1), (RECEIVED, ASKED.len()), (SENT, ANSWERED.len())];
    for (name, value) in expected {
        observe::await_total(&rig.proxies[node], name, &labels, value as f64);
    }
}

/// The lines of both sides about the one conversation from `client` to `server` through a tunnel.
fn assert_told(rig: &Rig, (from, to): (usize, usize), (client, server): (&str, &str)) {
    let (asked, answered) = (ASKED.len().to_string(), ANSWERED.len().to_string());
    let authority = rig.address(server, RAW).to_string();
    let peer = rig.address(server, HBONE).to_string();
    let (client_id, server_id) = (spiffe_id(client), spiffe_id(server));
    let both = [
        ("src.workload", client),
        ("src.namespace", "demo"),
        ("src.identity", client_id.as_str()),
        ("dst.addr", &peer),
        ("dst.hbone_addr", &authority),
        ("dst.workload", server),
        ("dst.namespace", "demo"),
        ("dst.identity", &server_id),
    ];
    let outbound = [("direction", "outbound"), ("bytes_sent", &*asked), ("bytes_recv", &*answered)];
    observe::access(&rig.proxies[from], "connection complete", &[&both[..], &outbound].concat());
    let inbound = [("direction", "inbound"), ("bytes_sent", &*answered), ("bytes_recv", &*asked)];
    observe::access(&rig.proxies[to], "connection complete", &[&both[..], &inbound].concat());
}

#[test]
fn local_captured_inpod_is_encrypted_between_pods_of_one_node() {
    let rig = rig(&["client", "server"]);
    assert_encrypted(converse(&rig, "client", "server"));
    for reporter in ["source", "destination"] {
        assert_counted(&rig, (0, reporter), ("client", "server"), "mutual_tls");
    }
    assert_told(&rig, (0, 0), ("client", "server"));
}

#[test]
fn cross_node_captured_is_encrypted_and_told_by_both_nodes() {
    let rig = rig(&["client", "remote"]);
    assert_encrypted(converse(&rig, "client", "remote"));
    assert_counted(&rig, (0, "source"), ("client", "remote"), "mutual_tls");
    assert_counted(&rig, (1, "destination"), ("client", "remote"), "mutual_tls");
    assert_told(&rig, (0, 1), ("client", "remote"));
}

#[test]
fn server_uncaptured_is_reached_in_plain_and_told_by_the_client_s_node() {
    let rig = rig(&["client"]);
    for server in ["server", "remote"] {
        assert_plain(converse(&rig, "client", server));
        assert_counted(&rig, (0, "source"), ("client", server), "unknown");
        let target = rig.address(server, RAW).to_string();
        let line = observe::access(
            &rig.proxies[0],
            "connection complete",
            &[("dst.addr", &target), ("src.workload", "client"), ("dst.workload", server)],
        );
        assert_eq!((&line["dst.hbone_addr"], &line["dst.identity"]), (&json!(null), &json!(null)), "{line}");
    }
}

#[test]
fn client_uncaptured_reaches_captured_pods_in_plain_and_is_told_by_their_node() {
    let rig = rig(&["server", "remote"]);
    for (node, server) in [(0, "server"), (1, "remote")] {
        assert_plain(converse(&rig, "client", server));
        assert_counted(&rig, (node, "destination"), ("client", server), "unknown");
        let fields = [("direction", "inbound"), ("src.workload", "client"), ("dst.workload", server)];
        let line = observe::access(&rig.proxies[node], "connection complete", &fields);
        assert_eq!(line["src.identity"], json!(null), "{line}");
    }
}

/// Runs a proxy inside a pod, for that pod alone, and captures the pod's traffic.
fn dedicate(rig: &Rig, pod: &str) {
    let pod = rig.pod(pod);
    let node = &rig.topology.nodes[pod.node];
    let place = Node {
        name: node.name.clone(),
        netns: pod.netns.clone(),
        address: pod.address,
        addresses: pod.addresses,
        cores: node.cores.clone(),
    };
    let mut options = options();
    let own = format!("demo/{0}/{0}", pod.name);
    let variables = [("PROXY_MODE", "dedicated"), ("PROXY_WORKLOAD_INFO", &own), ("PACKET_MARK", "1337")];
    options.environment.extend(variables.map(|(name, value)| (name.into(), value.into())));
    let name = format!("{}-dedicated", pod.name);
    let process =
        node::launch(&rig.lab, (&place, &name), &rig.mesh, (&options, Path::new("/nowhere"))).unwrap();
    process.wait_for("becoming ready", SOON, || admin::readiness(&pod.netns, admin::READINESS_PORT)).unwrap();
    redirect::apply(pod.netns.fd().as_fd(), &pod.redirect()).unwrap();
}

#[test]
fn dedicated_proxies_carry_their_own_pods_captured_and_not() {
    let plan = [NodePlan::new("node-a", &["client", "server"]), NodePlan::new("node-b", &["remote"])];
    let mut rig = Rig::build(&plan, options());
    rig.mesh.publish().unwrap();
    dedicate(&rig, "client");
    assert_plain(converse(&rig, "client", "remote"));
    dedicate(&rig, "remote");
    assert_plain(converse(&rig, "client", "server"));
    let from_outside = socket::listen(rig.netns("remote"), RAW + 1);
    talk(rig.netns("server"), rig.address("remote", RAW + 1), &from_outside).unwrap();
    rig.mesh.enrolled.extend(["client".into(), "remote".into()]);
    rig.mesh.publish().unwrap();
    for pod in ["client", "remote"] {
        let netns = rig.netns(pod);
        wait_for(&format!("{pod} learning the mesh"), SOON, || {
            let dump = admin::dump(netns).map_err(|error| error.to_string())?;
            let workloads = dump.all["workloads"].as_array().cloned().unwrap_or_default();
            let tunnelled = workloads.iter().filter(|workload| workload["protocol"] == "HBONE").count();
            if tunnelled == 2 { Ok(()) } else { Err(format!("{tunnelled}")) }
        })
        .unwrap();
    }
    assert_encrypted(converse(&rig, "client", "remote"));
}

/// Requests to a service, until every one of these pods has answered.
fn reach_all(rig: &Rig, client: &str, service: SocketAddr, pods: &[&str]) {
    let mut missing: Vec<_> = pods.to_vec();
    // Two equal backends both miss a hundred requests once in 2^99.
    for _ in 0..100 {
        let body = requests::one(rig.netns(client), service).unwrap();
        missing.retain(|pod| !body.starts_with(&format!("{pod} answers ")));
        if missing.is_empty() {
            return;
        }
    }
    panic!("{missing:?} never answered");
}

#[test]
fn service_loadbalancing_reaches_plain_and_tunnelled_backends_and_tells_the_service() {
    let plan = [NodePlan::new("node-a", &["client", "server"]), NodePlan::new("node-b", &["remote"])];
    let mut rig = Rig::build(&plan, options());
    let vip = SocketAddr::from(([10, 96, 0, 1], 80));
    let service = Service::new("shop", vip, "", HTTP).backends(&["server", "remote"]);
    rig.mesh.services.push(service);
    rig.start_with(&["client", "remote"]);
    let _servers = ["server", "remote"].map(|pod| Server::http(&rig.lab, rig.pod(pod), HTTP).unwrap());
    requests::await_answer(rig.netns("client"), vip);
    reach_all(&rig, "client", vip, &["server", "remote"]);
    let service = [
        ("destination_service", "shop.demo.svc.cluster.local"),
        ("destination_service_name", "shop"),
        ("destination_service_namespace", "demo"),
    ];
    for (server, security) in [("server", "unknown"), ("remote", "mutual_tls")] {
        let principal = spiffe_id(server);
        let labels = [("destination_principal", &*principal), ("connection_security_policy", security)];
        let labels = [&service[..], &labels[..]].concat();
        let told = observe::total(&rig.proxies[0], OPENED, &labels);
        assert!(told.is_some(), "{server}");
    }
    let labels = [&service[..], &[("reporter", "destination"), ("destination_workload", "remote")]].concat();
    assert!(observe::total(&rig.proxies[1], OPENED, &labels).is_some());
    // One backend less: what is left takes all.
    rig.mesh.set("remote", fields::text("status", "Unhealthy"));
    rig.publish();
    for _ in 0..20 {
        assert!(requests::one(rig.netns("client"), vip).unwrap().starts_with("server answers "));
    }
}

/// `client` is a pod outside the mesh, from which raw peers dial; `remote` is enrolled.
fn raw_rig() -> Rig {
    let mut rig = rig(&["remote"]);
    rig.mesh.enrolled.insert("remote".into());
    rig
}

fn leaf(rig: &Rig, account: &str) -> Leaf {
    Root::of(&rig.ca()).unwrap().issue(&spiffe_id(account)).unwrap()
}

/// The status of a CONNECT to `remote`'s proxy, from `client` with its certificate.
fn connect(rig: &Rig, authority: &str) -> Result<u16, String> {
    let leaf = leaf(rig, "client");
    hbone::request(
        rig.netns("client"),
        rig.address("remote", HBONE),
        Some(&leaf),
        (Method::CONNECT, authority),
    )
}

#[test]
fn policy_of_the_namespace_that_allows_only_a_waypoint_answers_401_to_who_goes_around_it() {
    let mut rig = raw_rig();
    let condition = json!({"principals": [{"Exact": "cluster.local/ns/demo/sa/waypoint"}]});
    let policy = Policy::document("no-bypass", Scope::Namespace, Action::Allow, &condition);
    rig.mesh.extra.policies.push(policy);
    rig.publish();
    let _server = Server::http(&rig.lab, rig.pod("remote"), HTTP).unwrap();
    assert_eq!(connect(&rig, &rig.address("remote", HTTP).to_string()), Ok(401));
    let line = observe::access(&rig.proxies[1], "connection complete", &[("direction", "inbound")]);
    let error = line["error"].as_str().unwrap_or_default();
    let words = "connection closed due to policy rejection: allow policies exist, but none allowed";
    assert!(error.starts_with(words), "{line}");
    assert_eq!(
        (&line["level"], &line["src.identity"]),
        (&json!("error"), &json!(spiffe_id("client"))),
        "{line}"
    );
    observe::await_total(&rig.proxies[1], CLOSED, &[("response_flags", "DENY")], 1.0);
}

#[test]
fn hbone_ip_mismatch_answers_400_and_is_told() {
    let rig = raw_rig();
    assert_eq!(connect(&rig, &rig.address("client", HTTP).to_string()), Ok(400));
    let line = observe::access(&rig.proxies[1], "connection failed", &[("direction", "inbound")]);
    assert!(line["error"].as_str().unwrap_or_default().starts_with("ip mismatch:"), "{line}");
}

/// CONNECT to a service by its host name, whose port 80 leads to this target port; the workload maps it to [`HTTP`].
fn svc_hostname(target_port: u16) {
    let mut rig = raw_rig();
    let service = Service::new("shop", ([10, 96, 0, 1], 80), "remote", HTTP);
    rig.mesh.services.push(service.with(("ports", json!({"80": target_port}))));
    rig.publish();
    assert_eq!(connect(&rig, "shop.demo.svc.cluster.local:80"), Ok(503), "before the application listens");
    let _server = Server::http(&rig.lab, rig.pod("remote"), HTTP).unwrap();
    assert_eq!(connect(&rig, "shop.demo.svc.cluster.local:80"), Ok(200));
    assert_eq!(connect(&rig, "shop.demo.svc.cluster.local:81"), Ok(503));
    assert_eq!(connect(&rig, "nobody.demo.svc.cluster.local:80"), Ok(503));
}

#[test]
fn svc_hostname_port_is_the_target_port_of_the_service() {
    svc_hostname(HTTP);
}

#[test]
fn svc_hostname_named_port_is_what_the_endpoint_maps() {
    svc_hostname(0);
}

/// What became of words that nobody should take.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    /// No connection.
    Refused,
    /// A connection that ended without an answer to them.
    Nothing,
    /// An answer.
    Answer,
}

fn poke(rig: &Rig, from: &str, target: SocketAddr) -> Heard {
    let Ok(mut stream) = socket::connect(rig.netns(from), target) else { return Heard::Refused };
    let mut heard = Vec::new();
    // The other end may be gone before it has read, or in the middle of its own words.
    let _ = stream.write_all(b"GET /healthz/ready HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n");
    let ended = stream.read_to_end(&mut heard);
    assert!(!ended.as_ref().is_err_and(socket::is_timeout), "{from} to {target}: {ended:?}");
    if heard.starts_with(b"HTTP/1.1 ") { Heard::Answer } else { Heard::Nothing }
}

#[test]
fn malicious_calls_inpod_to_the_proxy_s_own_ports_end_at_once_and_loop_nowhere() {
    let rig = rig(&["client"]);
    let (node, own) = (rig.topology.nodes[0].address, rig.pod("client").address);
    let home: IpAddr = [127, 0, 0, 1].into();
    let mut pokes = 0;
    let mut expect = |from: &str, to: IpAddr, port: u16, expected: &[Heard]| {
        pokes += 1;
        let heard = poke(&rig, from, (to, port).into());
        assert!(expected.contains(&heard), "{from} to {to}:{port}: {heard:?}, not one of {expected:?}");
    };
    let nothing = [Heard::Refused, Heard::Nothing];
    for port in [15001, 15006, 15008, 15080, 15000] {
        for address in [node, own, home] {
            expect("client", address, port, &nothing);
        }
        // A pod that is not captured reaches the listeners of a captured one no better, and those of the node not at all.
        expect("server", own, port, &nothing);
        expect("server", node, port, &[Heard::Refused]);
    }
    for port in [15020, 15021] {
        expect("client", node, port, &[Heard::Answer]);
        expect("server", node, port, &[Heard::Answer]);
        for address in [own, home] {
            expect("client", address, port, &nothing);
        }
        expect("server", own, port, &nothing);
    }
    let accepts = rig.counter(0, "accepts");
    assert!(accepts <= pokes, "{accepts} connections came of {pokes}");
    rig.proxies[0].wait_ready(SOON).unwrap();
}

#[test]
fn hbone_metrics_access_goes_through_the_proxy_s_own_tunnel_listener() {
    let plan = [NodePlan::new("node-a", &["client"]), NodePlan::new("node-b", &["remote"])];
    let mut rig = Rig::build(&plan, options());
    let own = [("POD_NAME", "proxy-b"), ("POD_NAMESPACE", "demo"), ("SERVICE_ACCOUNT", "proxy")];
    rig.options.of_node.insert("node-b".into(), own.map(|(name, value)| (name.into(), value.into())).into());
    let node = rig.topology.nodes[1].address;
    rig.mesh.extra.workloads.push(json!({
        "uid": "Kubernetes//Pod/demo/proxy-b", "name": "proxy-b", "namespace": "demo", "serviceAccount": "proxy",
        "workloadName": "proxy", "workloadType": "pod", "canonicalName": "proxy", "node": "node-b",
        "workloadIps": [node], "protocol": "HBONE",
    }));
    rig.start_with(&["client"]);
    let capture = Capture::start(&rig.topology.nodes[0].netns, LINK, "istio_build").unwrap();
    let target = SocketAddr::from((node, 15020));
    let page = wait_for("the metrics of the other node", SOON, || {
        requests::answer_of(rig.netns("client"), target, "/metrics").map_err(|error| error.to_string())
    });
    let page = page.unwrap().text();
    assert!(page.contains("# TYPE istio_build") && page.contains("component=\"ztunnel\""), "{page}");
    let seen = capture.finish().unwrap();
    assert_eq!((seen.markers, seen.gaps, seen.tunnels_without_tls), (0, 0, 0), "{seen:?}");
    let labels = [
        ("reporter", "destination"),
        ("source_workload", "client"),
        ("destination_workload", "proxy"),
        ("connection_security_policy", "mutual_tls"),
    ];
    assert!(
        observe::total(&rig.proxies[1], OPENED, &labels).is_some(),
        "{}",
        rig.proxies[1].metrics().unwrap()
    );
    let (client, proxy) = (spiffe_id("client"), spiffe_id("proxy"));
    let fields = [
        ("direction", "inbound"),
        ("src.workload", "client"),
        ("src.identity", &*client),
        ("dst.workload", "proxy-b"),
        ("dst.identity", &*proxy),
        ("dst.hbone_addr", &*target.to_string()),
    ];
    observe::access(&rig.proxies[1], "connection complete", &fields);
    // Nothing but this is served there.
    let leaf = Root::of(&rig.ca()).unwrap().issue(&spiffe_id("client")).unwrap();
    let admin = SocketAddr::from((node, 15000)).to_string();
    let asked =
        hbone::request(rig.netns("client"), (node, HBONE).into(), Some(&leaf), (Method::CONNECT, &admin));
    assert_ne!(asked, Ok(200), "the admin port is open to the mesh");
}
