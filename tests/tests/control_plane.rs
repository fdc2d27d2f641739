//! Node proxies with a real control plane: what it says reaches traffic, and when it is gone nothing is lost.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use halo::lab::certs;
use halo::lab::client::Server;
use halo::lab::mesh::{Action, Policy, TRUST_DOMAIN, spiffe_id};
use halo::lab::node::{NodeOptions, NodeProxy};
use halo::lab::process::wait_for;
use halo::lab::topology::NodePlan;
use halo_tests::pair::{HTTP, Pair, RAW, await_answered};
use halo_tests::rig::SOON;
use halo_tests::socket::{self, End};
use halo_tests::traffic::Traffic;
use halo_tests::{Rig, requests};

/// How long a part of the control plane is gone.
const GONE: Duration = Duration::from_secs(60);

fn with_variables(variables: &[(&str, &str)]) -> NodeOptions {
    let environment = variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    NodeOptions { environment, ..NodeOptions::default() }
}

fn deny_web() -> Policy {
    Policy { name: "no-web".into(), action: Action::Deny, pod: "shop".into(), clients: vec!["web".into()] }
}

/// A total in a node's metrics.
fn metric(proxy: &NodeProxy, name: &str) -> u64 {
    let text = proxy.metrics().unwrap();
    let of_line = |line: &str| line.strip_prefix(name)?.rsplit_once(' ')?.1.parse::<u64>().ok();
    let values: Vec<u64> = text.lines().filter(|line| !line.starts_with('#')).filter_map(of_line).collect();
    assert!(!values.is_empty(), "no metric {name} in:\n{text}");
    values.into_iter().sum()
}

/// What a proxy says of its readiness, once it says this.
fn await_readiness(proxy: &NodeProxy, words: &str) {
    let told = wait_for(&format!("{} saying {words:?}", proxy.process.name()), SOON, || {
        match proxy.wait_ready(Duration::ZERO) {
            Err(error) if error.to_string().contains(words) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    told.unwrap();
}

#[test]
fn what_the_control_plane_says_reaches_open_and_new_connections() {
    let mut rig = Rig::with_controller(NodeOptions::default());
    let _server = Server::http(&rig.lab, rig.pod("shop"), HTTP).unwrap();
    let listener = socket::listen(rig.netns("shop"), RAW);
    await_answered(&rig, "web", "shop");
    let pair = Pair::open(&rig, "web", "shop", &listener);
    assert_eq!(rig.counter(0, "connections_outbound"), rig.counter(1, "connections_inbound"));
    rig.mesh.policies.push(deny_web());
    rig.mesh.publish().unwrap();
    assert_eq!(pair.ends(), (End::Reset, End::Reset));
    assert!(requests::one(rig.netns("web"), rig.address("shop", HTTP)).is_err());
    rig.mesh.policies.clear();
    rig.mesh.publish().unwrap();
    await_answered(&rig, "web", "shop");
    let service = rig.service(7, "shop", HTTP);
    wait_for("the service answering", SOON, || {
        requests::one(rig.netns("web"), service).map_err(|error| error.to_string())
    })
    .unwrap();
    let certificates = rig.dump(0).certificates;
    assert_eq!(certificates.len(), 1, "{certificates:?}");
    assert_eq!(certificates[0].identity, spiffe_id("web"));
}

#[test]
fn wrong_state_changes_nothing_and_the_controller_says_where_it_is_wrong() {
    let mut rig = Rig::with_controller(NodeOptions::default());
    let _server = Server::http(&rig.lab, rig.pod("shop"), HTTP).unwrap();
    await_answered(&rig, "web", "shop");
    fs::write(rig.mesh.path(), "workloads:\n- {namespace: demo, workloadIps: [10.0.0.300]}\n").unwrap();
    let process = rig.controller().process.clone();
    process
        .wait_for("saying what is wrong", SOON, || {
            let log = process.log_tail(20);
            let told = log.contains("line 2")
                && log.contains("workloads[0].workloadIps")
                && log.contains("10.0.0.300");
            if told { Ok(()) } else { Err(log) }
        })
        .unwrap();
    requests::one(rig.netns("web"), rig.address("shop", HTTP)).unwrap();
    rig.mesh.policies.push(deny_web());
    rig.mesh.publish().unwrap();
    wait_for("the mended state being in force", SOON, || {
        match requests::one(rig.netns("web"), rig.address("shop", HTTP)) {
            Err(_) => Ok(()),
            Ok(_) => Err("the connection is admitted".into()),
        }
    })
    .unwrap();
}

#[test]
fn control_plane_gone_for_a_minute_costs_no_connection_and_comes_back_without_a_storm() {
    let mut rig = Rig::with_controller(NodeOptions::default());
    let listener = socket::listen(rig.netns("shop"), RAW);
    let mut pair = Pair::open(&rig, "web", "shop", &listener);
    let traffic = Traffic::start(&rig, "web", "shop", RAW + 1);
    let issued: Vec<_> =
        rig.proxies.iter().map(|proxy| metric(proxy, "halo_certificates_issued_total")).collect();
    rig.controller().kill();
    let gone = Instant::now();
    while gone.elapsed() < GONE {
        pair.exchange();
        traffic.check();
        thread::sleep(Duration::from_millis(200));
    }
    for proxy in &rig.proxies {
        // Backing off to 15 s makes about twelve attempts in a minute.
        let attempts = metric(proxy, "istio_xds_connection_terminations_total");
        assert!((2..=20).contains(&attempts), "{attempts} attempts while nobody was there");
        proxy.wait_ready(Duration::ZERO).unwrap();
    }
    rig.mesh.policies.push(deny_web());
    rig.mesh.publish().unwrap();
    let mesh = &rig.mesh;
    rig.controller.as_mut().unwrap().restart(&rig.lab, mesh).unwrap();
    // What changed meanwhile comes into force, and ends what it no longer admits.
    assert_eq!(pair.ends(), (End::Reset, End::Reset));
    for (proxy, before) in rig.proxies.iter().zip(issued) {
        assert_eq!(
            metric(proxy, "halo_certificates_issued_total"),
            before,
            "certificates were asked for anew"
        );
    }
    drop(traffic);
}

#[test]
fn agent_gone_for_a_minute_costs_no_connection_and_its_successor_takes_the_pods_over() {
    let mut rig = Rig::with_controller(NodeOptions::default());
    let listener = socket::listen(rig.netns("shop"), RAW);
    let mut pair = Pair::open(&rig, "web", "shop", &listener);
    let traffic = Traffic::start(&rig, "web", "shop", RAW + 1);
    for proxy in &mut rig.proxies {
        proxy.agent.stop();
    }
    await_readiness(&rig.proxies[0], "no complete snapshot");
    let gone = Instant::now();
    while gone.elapsed() < GONE {
        pair.exchange();
        traffic.check();
        thread::sleep(Duration::from_millis(200));
    }
    for node in 0..2 {
        let pods: Vec<_> = rig.topology.pods.iter().filter(|pod| pod.node == node).collect();
        rig.proxies[node].agent.resume(&pods).unwrap();
        rig.proxies[node].wait_ready(SOON).unwrap();
    }
    pair.exchange();
    assert!(traffic.stop() > 0);
    // The new agent is listened to.
    rig.proxies[1].agent.remove(rig.pod("shop")).unwrap();
    assert_eq!(pair.ends(), (End::Reset, End::Reset));
}

#[test]
fn certificates_of_half_a_minute_rotate_for_five_minutes_and_nothing_is_lost() {
    let mut rig = Rig::with_controller(with_variables(&[("SECRET_TTL", "30s")]));
    let listener = socket::listen(rig.netns("shop"), RAW);
    let mut pair = Pair::open(&rig, "web", "shop", &listener);
    let traffic = Traffic::start(&rig, "web", "shop", RAW + 1);
    let (started, mut seen) = (Instant::now(), Vec::new());
    while started.elapsed() < Duration::from_secs(300) {
        pair.exchange();
        traffic.check();
        let expiries: Vec<_> = rig.dump(1).certificates.into_iter().map(|leaf| leaf.expires).collect();
        if seen.last() != Some(&expiries) {
            seen.push(expiries);
        }
        thread::sleep(Duration::from_millis(500));
    }
    pair.exchange();
    assert!(traffic.stop() > 0);
    // Each is renewed at half of its life, counted from when it began.
    assert!(seen.len() >= 15, "only {} certificates in ten lives: {seen:?}", seen.len());
    for (node, proxy) in rig.proxies.iter().enumerate() {
        assert!(metric(proxy, "halo_certificates_issued_total") >= 15);
        assert_eq!(
            (rig.counter(node, "closed_no_certificate"), rig.counter(node, "handshakes_failed")),
            (0, 0)
        );
    }
    rig.controller().process.ensure_running().unwrap();
}

#[test]
fn roots_are_exchanged_under_traffic_and_nothing_is_lost() {
    let mut rig = Rig::with_controller(with_variables(&[("SECRET_TTL", "6s")]));
    let traffic = Traffic::start(&rig, "web", "shop", RAW);
    let next = rig.lab.dir().join("next-ca");
    certs::make_root(&next, TRUST_DOMAIN).unwrap();
    let ca = rig.controller().ca();
    let read = |directory: &std::path::Path, name: &str| fs::read_to_string(directory.join(name)).unwrap();
    let (old, new) = (read(&ca, "root-cert.pem"), read(&next, "root-cert.pem"));
    let (old_key, new_key) = (read(&ca, "root-key.pem"), read(&next, "root-key.pem"));
    assert!(!old_key.is_empty());
    // First everybody trusts both.
    fs::write(ca.join("extra-roots.pem"), &new).unwrap();
    await_roots(&rig, 2);
    // Then the new one signs. Nodes learn by the file that they know the controller itself by.
    rig.controller().kill();
    fs::write(ca.join("root-cert.pem"), &new).unwrap();
    fs::write(ca.join("root-key.pem"), &new_key).unwrap();
    fs::write(ca.join("extra-roots.pem"), &old).unwrap();
    let mesh = &rig.mesh;
    rig.controller.as_mut().unwrap().restart(&rig.lab, mesh).unwrap();
    let changed: Vec<_> =
        rig.proxies.iter().map(|proxy| metric(proxy, "halo_certificates_issued_total") + 3).collect();
    for (proxy, wanted) in rig.proxies.iter().zip(changed) {
        wait_for("certificates of the new root", Duration::from_secs(60), || {
            let issued = metric(proxy, "halo_certificates_issued_total");
            if issued >= wanted { Ok(()) } else { Err(format!("{issued} of {wanted}")) }
        })
        .unwrap();
    }
    // At last the old one goes.
    fs::remove_file(ca.join("extra-roots.pem")).unwrap();
    await_roots(&rig, 1);
    assert!(traffic.stop() > 0);
    for node in 0..2 {
        assert_eq!(rig.counter(node, "handshakes_failed"), 0);
    }
}

/// Waits until every certificate in use trusts this many roots.
fn await_roots(rig: &Rig, count: usize) {
    for proxy in &rig.proxies {
        let look = |dump: &halo::lab::admin::Dump| {
            let roots = dump.all["certificates"][0]["rootCerts"].as_array().map_or(0, Vec::len);
            if roots == count { Ok(()) } else { Err(format!("{roots} roots")) }
        };
        proxy.wait_dump(&format!("trusting {count} roots"), Duration::from_secs(60), look).unwrap();
    }
}

#[test]
fn node_that_starts_without_its_control_plane_takes_no_pods_and_says_why() {
    let mut rig = Rig::with_controller(NodeOptions::default());
    let _server = Server::http(&rig.lab, rig.pod("shop"), HTTP).unwrap();
    rig.controller().kill();
    rig.proxies[0].process.stop(SOON);
    let (lab, nodes) = (&rig.lab, &rig.topology.nodes);
    rig.proxies[0].restart(lab, &nodes[0], &rig.mesh, &rig.options).unwrap();
    await_readiness(&rig.proxies[0], "state manager: ");
    await_readiness(&rig.proxies[0], "Connection refused");
    assert!(
        requests::one(rig.netns("web"), rig.address("shop", HTTP)).is_err(),
        "a request passed the proxy by"
    );
    rig.controller.as_mut().unwrap().restart(&rig.lab, &rig.mesh).unwrap();
    rig.proxies[0].wait_ready(SOON).unwrap();
    await_answered(&rig, "web", "shop");
}

#[test]
fn wrong_token_and_unknown_server_are_told_apart_and_mended_without_a_restart() {
    let plan = [NodePlan::new("node-a", &["web"]), NodePlan::new("node-b", &["shop"])];
    let mut rig = Rig::build(&plan, NodeOptions::default());
    rig.start_controller();
    let control_plane = rig.options.control_plane.clone().unwrap();
    let token = fs::read_to_string(control_plane.tokens.join("node-a")).unwrap();
    fs::write(control_plane.tokens.join("node-a"), "not-this").unwrap();
    let foreign = rig.lab.dir().join("foreign.pem");
    fs::write(&foreign, certs::Root::foreign().unwrap().issue(&spiffe_id("web")).unwrap().root).unwrap();
    let mut distrustful = rig.options.clone();
    distrustful.control_plane.as_mut().unwrap().root = foreign.clone();
    let nodes = &rig.topology.nodes;
    let first = NodeProxy::start(&rig.lab, &nodes[0], &rig.mesh, &rig.options).unwrap();
    let second = NodeProxy::start(&rig.lab, &nodes[1], &rig.mesh, &distrustful).unwrap();
    await_readiness(&first, "token");
    await_readiness(&second, "vouches for its certificate");
    let lines = |proxy: &NodeProxy| proxy.process.log_tail(200).matches("\twarn\t").count();
    let before = (lines(&first), lines(&second));
    thread::sleep(Duration::from_secs(5));
    assert_eq!((lines(&first), lines(&second)), before, "the same trouble is told again and again");
    assert!(!first.process.log_tail(500).contains("not-this"), "the token is in the log");
    fs::write(control_plane.tokens.join("node-a"), token).unwrap();
    fs::write(&foreign, fs::read_to_string(&control_plane.root).unwrap()).unwrap();
    first.wait_ready(SOON).unwrap();
    second.wait_ready(SOON).unwrap();
    rig.proxies = vec![first, second];
}

#[test]
fn certificate_for_an_account_of_another_node_is_refused() {
    let plan = [NodePlan::new("node-a", &["web"]), NodePlan::new("node-b", &["shop"])];
    let mut rig = Rig::build(&plan, NodeOptions::default());
    rig.start_controller();
    // The second node shows the token of the first.
    let tokens = rig.options.control_plane.as_ref().unwrap().tokens.clone();
    fs::copy(tokens.join("node-a"), tokens.join("node-b")).unwrap();
    rig.start();
    for pod in &rig.topology.pods {
        rig.proxies[pod.node].agent.enrol(pod, &Default::default()).unwrap();
    }
    rig.proxies[0].wait_certificates(&[spiffe_id("web")], SOON).unwrap();
    let refused = |dump: &halo::lab::admin::Dump| {
        let state = dump.certificates.first().map(|leaf| leaf.state.clone()).unwrap_or_default();
        if state.contains("no workload with the identity") { Ok(()) } else { Err(state) }
    };
    rig.proxies[1].wait_dump("being refused a certificate", SOON, refused).unwrap();
}

#[test]
fn node_on_demand_asks_for_what_its_pods_connect_to_and_no_more() {
    let plan = [NodePlan::new("node-a", &["web"]), NodePlan::new("node-b", &["shop", "bank", "outside"])];
    let mut rig = Rig::build(&plan, with_variables(&[("XDS_ON_DEMAND", "true")]));
    rig.mesh.forget("outside");
    rig.start_controller();
    rig.start();
    for pod in rig.topology.pods.iter().filter(|pod| pod.name != "outside") {
        rig.proxies[pod.node].agent.enrol(pod, &Default::default()).unwrap();
        rig.mesh.enrolled.insert(pod.name.clone());
    }
    let service = rig.service(3, "shop", HTTP);
    rig.mesh.publish().unwrap();
    let _servers = ["shop", "bank", "outside"].map(|pod| Server::http(&rig.lab, rig.pod(pod), HTTP).unwrap());
    let known = |rig: &Rig| -> Vec<String> {
        let dump = rig.dump(0);
        let workloads = dump.all["workloads"].as_array().unwrap().clone();
        workloads.iter().map(|workload| workload["name"].as_str().unwrap().to_owned()).collect()
    };
    wait_for("the service answering", SOON, || {
        requests::one(rig.netns("web"), service).map_err(|error| error.to_string())
    })
    .unwrap();
    assert_eq!(known(&rig), ["shop", "web"]);
    await_answered(&rig, "web", "bank");
    assert_eq!(known(&rig), ["bank", "shop", "web"]);
    assert!(rig.counter(0, "tunnels_dialed") >= 2);
    // Nobody knows it, and the control plane says so: it is reached as what is outside the mesh.
    await_answered(&rig, "web", "outside");
    assert_eq!(known(&rig).len(), 3);
}
