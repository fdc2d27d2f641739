//! The lab itself, for real: namespaces, processes, capture. Needs root and fails without it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use halo::lab::agent::Agent;
use halo::lab::capture::Capture;
use halo::lab::client::{Client, Server};
use halo::lab::load::LoadPlan;
use halo::lab::mesh::{Action, Mesh, Policy, Scope, Service, fields, spiffe_id};
use halo::lab::node::{NodeOptions, NodeProxy};
use halo::lab::pod::{Ask, Outcome};
use halo::lab::process::Spec;
use halo::lab::run::ProcessId;
use halo::lab::topology::{Families, LINK, NodePlan, Topology};
use halo::lab::{Cleaned, Lab};
use halo_control::local::{Defaults, LocalState};
use halo_control::redirect::Options;
use halo_core::workload::Protocol;
use serde_json::json;

fn lab() -> Lab {
    Lab::new(env!("CARGO_BIN_EXE_halo").into()).expect("this test needs root")
}

fn plan() -> [NodePlan; 2] {
    [NodePlan::new("node-a", &["web"]), NodePlan::new("node-b", &["shop", "greeter"])]
}

fn namespaces_of(run: &str) -> Vec<String> {
    let prefix = format!("halo-{run}-");
    let entries = fs::read_dir("/run/netns").unwrap().flatten();
    entries.map(|e| e.file_name().into_string().unwrap()).filter(|n| n.starts_with(&prefix)).collect()
}

fn body(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Answer { status: 200, body, .. } => body,
        other => panic!("{other:?}"),
    }
}

#[test]
fn plaintext_crosses_the_link_and_the_capture_finds_its_marker() {
    let lab = lab();
    let topology = Topology::build(&lab, &plan()).unwrap();
    let (web, shop) = (topology.pod("web").unwrap(), topology.pod("shop").unwrap());
    let greeter = topology.pod("greeter").unwrap();
    let _servers =
        [Server::http(&lab, shop, 8080).unwrap(), Server::greeter(&lab, greeter, 9000, "hello").unwrap()];
    let client = Client::start(&lab, web, "client").unwrap();
    let vip: SocketAddrV4 = "10.96.0.80:80".parse().unwrap();
    topology.service(vip.into(), (shop.address, 8080).into()).unwrap();
    let capture = Capture::start(&topology.nodes[0].netns, LINK, "marker-7f3a").unwrap();

    let direct = SocketAddr::from((shop.address, 8080));
    let outcome = client.get(&Ask::new(direct).marker("marker-7f3a")).unwrap();
    assert!(body(&outcome).starts_with(&format!("shop answers {}:", web.address)), "{outcome:?}");
    let outcome = client.get(&Ask::new(vip).marker("marker-7f3a")).unwrap();
    assert!(body(&outcome).contains("marker-7f3a"));
    let outcome = client.hear(SocketAddr::from((greeter.address, 9000))).unwrap();
    assert!(matches!(outcome, Outcome::Heard { ref line, .. } if line == "hello"), "{outcome:?}");

    let seen = capture.finish().unwrap();
    assert_eq!((seen.markers, seen.gaps, seen.tunnel_segments), (4, 0, 0), "{seen:?}");
}

#[test]
fn load_reports_answers_and_counts_refusals() {
    let lab = lab();
    let topology = Topology::build(&lab, &plan()).unwrap();
    let shop = topology.pod("shop").unwrap();
    let server = Server::http(&lab, shop, 8080).unwrap();
    let client = Client::start(&lab, topology.pod("web").unwrap(), "client").unwrap();
    let target = SocketAddr::from((shop.address, 8080));
    let plan = LoadPlan { target, connections: 2, seconds: 0.2 };
    let report = client.load(&plan).unwrap();
    assert!(report.requests > 0 && report.errors == 0 && report.p50_us <= report.p99_us, "{report:?}");
    assert!(report.rps > 0.0 && server.process.usage().unwrap().memory_bytes > 0);
    server.process.stop(Duration::from_secs(2));
    let report = client.load(&plan).unwrap();
    assert!(report.requests == 0 && report.errors > 0, "{report:?}");
}

#[test]
fn open_connection_is_seen_to_close() {
    let lab = lab();
    let topology = Topology::build(&lab, &plan()).unwrap();
    let shop = topology.pod("shop").unwrap();
    let server = Server::http(&lab, shop, 8080).unwrap();
    let client = Client::start(&lab, topology.pod("web").unwrap(), "client").unwrap();
    let ask = Ask::new((shop.address, 8080));
    body(&client.open("kept", &ask).unwrap());
    body(&client.again("kept", &ask).unwrap());
    server.process.stop(Duration::from_secs(2));
    let outcome = client.await_close("kept").unwrap();
    assert!(matches!(outcome, Outcome::Closed { .. }), "{outcome:?}");
    let outcome = client.again("kept", &ask).unwrap();
    assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
}

#[test]
fn cleanup_removes_every_trace_and_closes_the_lab() {
    let lab = lab();
    let topology = Topology::build(&lab, &plan()).unwrap();
    let client = Client::start(&lab, topology.pod("web").unwrap(), "client").unwrap();
    let stubborn = lab
        .spawn(Spec {
            name: "stubborn".into(),
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), "trap '' TERM; while :; do sleep 0.05; done".into()],
            environment: Vec::new(),
            netns: topology.nodes[0].netns.clone(),
            piped: false,
        })
        .unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let pids = [client.process.pid(), stubborn.pid()];
    assert!(pids.iter().all(|&pid| ProcessId::of(pid).is_some()));
    let cleaned = lab.cleanup().unwrap();
    assert_eq!(cleaned, Cleaned { processes: 2, namespaces: 5 });
    assert!(pids.iter().all(|&pid| ProcessId::of(pid).is_none()));
    assert_eq!(namespaces_of(lab.run_id()), Vec::<String>::new());
    assert!(!lab.dir().exists());
    assert_eq!(lab.cleanup().unwrap(), Cleaned::default());
    assert!(lab.namespace("late").is_err());
}

#[test]
fn panic_leaves_nothing_behind() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let lab = lab();
        lab.namespace("one").unwrap();
        sender.send(lab.run_id().to_owned()).unwrap();
        panic!("on purpose");
    });
    assert!(thread.join().is_err());
    assert_eq!(namespaces_of(&receiver.recv().unwrap()), Vec::<String>::new());
}

#[test]
fn dead_run_is_swept_by_the_next_and_a_living_one_is_not() {
    let living = lab();
    living.namespace("kept").unwrap();
    let dead = format!("test{}", std::process::id() % 1000);
    let dir = Path::new("/run/halo-lab").join(&dead);
    fs::create_dir_all(&dir).unwrap();
    let name = format!("halo-{dead}-pod");
    assert!(Command::new("ip").args(["netns", "add", &name]).status().unwrap().success());
    let mut orphan = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
    let id = ProcessId::of(i32::try_from(orphan.id()).unwrap()).unwrap();
    fs::write(dir.join("processes"), format!("{} {}\n", id.pid, id.started)).unwrap();
    // The id of a living process with another start time is that of a dead one.
    fs::write(dir.join("owner"), format!("{} {}\n", std::process::id(), 1)).unwrap();

    let next = lab();
    let deadline = Instant::now() + Duration::from_secs(5);
    while orphan.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the orphan lives");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!dir.exists() && namespaces_of(&dead).is_empty());
    assert_eq!(namespaces_of(living.run_id()).len(), 1);
    assert_ne!(next.run_id(), living.run_id());
}

#[test]
fn mesh_file_is_replaced_whole_and_says_who_is_enrolled() {
    let lab = lab();
    let topology = Topology::build(&lab, &plan()).unwrap();
    let mut mesh = Mesh::new(&lab.dir().join("mesh.yaml"), &topology);
    mesh.services.push(Service::new("shop", ([10, 96, 0, 80], 80), "shop", 8080));
    mesh.publish().unwrap();
    let text = fs::read_to_string(mesh.path()).unwrap();
    assert!(text.contains("protocol: TCP") && !text.contains("HBONE"), "{text}");
    mesh.enrolled.extend(["web".into(), "shop".into()]);
    mesh.policies.push(Policy {
        name: "no-intruder".into(),
        action: Action::Deny,
        pod: "shop".into(),
        clients: vec!["intruder".into()],
    });
    mesh.publish().unwrap();
    let text = fs::read_to_string(mesh.path()).unwrap();
    assert_eq!(text, include_str!("golden/mesh.yaml"));
    assert_eq!(spiffe_id("web"), "spiffe://cluster.local/ns/demo/sa/web");
}

#[test]
fn fields_of_the_mesh_file_are_those_that_a_node_proxy_reads() {
    let lab = lab();
    let topology = Topology::build(&lab, &plan()).unwrap();
    let mut mesh = Mesh::new(&lab.dir().join("mesh.yaml"), &topology);
    let service = Service::new("shop", ([10, 96, 0, 80], 80), "shop", 8080).backends(&["shop", "greeter"]);
    let service = service
        .vip(Ipv6Addr::LOCALHOST)
        .with(fields::weighted_waypoints(&[("/10.2.0.11", 15008, 3), ("demo/way.demo", 15008, 1)]))
        .with(fields::load_balancer("Failover", &["Region", "Zone"]))
        .with(fields::subject_alt_names(&[spiffe_id("shop")]))
        .with(fields::text("ipFamilies", "Dual"));
    mesh.services = vec![service, Service::headless("bare", (80, 8080), &["shop"])];
    for field in [
        fields::waypoint("demo/way.demo.svc.cluster.local", 15008),
        fields::network_gateway("far/10.2.0.12", 15008),
        fields::application_tunnel("PROXY", Some(15088)),
        fields::locality("r", "z", "s"),
        fields::text("network", "far"),
    ] {
        mesh.set("shop", field);
    }
    mesh.extra.policies.push(Policy::document(
        "all",
        Scope::Global,
        Action::Deny,
        &json!({"notNamespaces": []}),
    ));
    let state = LocalState::parse(
        &mesh.text().unwrap(),
        &Defaults { trust_domain: "unused".into(), cluster: "unused".into() },
    )
    .unwrap();
    let shop = &state.workloads["Kubernetes//Pod/demo/shop"];
    assert_eq!((shop.services.len(), &*shop.network, shop.locality.zone.as_ref()), (2, "far", "z"));
    assert!(shop.waypoint.is_some() && shop.network_gateway.is_some());
    assert_eq!(shop.application_tunnel.unwrap().port, Some(15088));
    let service = state.services.values().find(|service| &*service.name == "shop").unwrap();
    assert_eq!((service.vips.len(), service.weighted_waypoints.len()), (2, 2));
    assert_eq!((state.services.len(), state.policies.len()), (2, 1));
}

#[test]
fn topology_has_the_families_that_were_asked_for() {
    for (families, v4, v6) in
        [(Families::V4, true, false), (Families::V6, false, true), (Families::Dual, true, true)]
    {
        let lab = lab();
        let topology = Topology::build_with(&lab, &plan(), families).unwrap();
        let (web, shop) = (topology.pod("web").unwrap(), topology.pod("shop").unwrap());
        assert_eq!((shop.addresses.v4.is_some(), shop.addresses.v6.is_some()), (v4, v6));
        let _server = Server::http(&lab, shop, 8080).unwrap();
        let client = Client::start(&lab, web, "client").unwrap();
        for address in shop.addresses.iter() {
            body(&client.get(&Ask::new((address, 8080))).unwrap());
        }
        topology.hide(shop).unwrap();
        for address in shop.addresses.iter() {
            let outcome = client.get(&Ask::new((address, 8080))).unwrap();
            assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
        }
    }
}

#[test]
fn enrolment_without_a_proxy_says_so_and_captures_the_pod_until_it_is_removed() {
    let lab = lab();
    let topology = Topology::build(&lab, &plan()).unwrap();
    let web = topology.pod("web").unwrap();
    let agent = Agent::start(&lab.dir().join("node-a/zds.sock")).unwrap();
    let error = agent.enrol(web, &Options::default()).unwrap_err().to_string();
    assert!(error.contains("no proxy is connected"), "{error}");
    assert!(web.netns.command("nft", &["list", "ruleset"]).unwrap().contains("redirect to :15001"));
    agent.remove(web).unwrap();
    assert_eq!(web.netns.command("nft", &["list", "ruleset"]).unwrap(), "");
}

#[test]
fn proxy_that_ends_is_reported_with_its_last_words_and_at_once() {
    let lab = lab();
    let topology = Topology::build(&lab, &plan()).unwrap();
    let mesh = Mesh::new(&lab.dir().join("mesh.yaml"), &topology);
    mesh.publish().unwrap();
    let wrong = vec![("RUST_LOG".to_owned(), "info".to_owned()), ("LOCAL_XDS".to_owned(), "both".to_owned())];
    let options = NodeOptions { environment: wrong, ..NodeOptions::default() };
    let proxy = NodeProxy::start(&lab, &topology.nodes[0], &mesh, &options).unwrap();
    let started = Instant::now();
    let error = proxy.wait_connected(Duration::from_secs(20)).unwrap_err().to_string();
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert!(error.starts_with("node-a: ended by itself (exit status: "), "{error}");
    assert!(!proxy.process.log_tail(3).is_empty());
}

#[test]
fn mesh_file_is_read_by_the_node_as_it_is_meant() {
    let defaults = Defaults { trust_domain: "unused".into(), cluster: "unused".into() };
    let state = LocalState::parse(include_str!("golden/mesh.yaml"), &defaults).unwrap();
    let workload = |name: &str| state.workloads.values().find(|w| *w.name == *name).unwrap();
    let shop = workload("shop");
    assert_eq!(shop.identity().to_string(), spiffe_id("shop"));
    assert_eq!((shop.protocol, workload("greeter").protocol), (Protocol::Hbone, Protocol::Tcp));
    assert_eq!((state.services.len(), state.policies.len()), (1, 1));
    assert!(state.policies.contains_key("demo/no-intruder"), "{:?}", state.policies);
}
