//! Pods, node proxies and certificates come and go; connections end in an orderly way or visibly, and the others
//! never notice.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use halo::lab::client::Server;
use halo::lab::node::{self, NodeOptions};
use halo::lab::process::{Process, wait_for};
use halo::lab::topology::NodePlan;
use halo_core::zds::Request;
use halo_tests::exchange::{self, Order, Script};
use halo_tests::pair::{HTTP, Pair, RAW, await_answered};
use halo_tests::rig::SOON;
use halo_tests::socket::{self, End};
use halo_tests::{Rig, requests, zds};
use nix::sys::signal::Signal;

const HBONE: u16 = 15008;

fn with_variable(name: &str, value: &str) -> NodeOptions {
    NodeOptions { environment: vec![(name.into(), value.into())], ..NodeOptions::default() }
}

/// Waits until a process has ended with success.
fn ends_well(process: &Process, limit: Duration) {
    let ended = wait_for("the proxy ending", limit, || {
        process
            .exit_status()
            .map(|status| assert!(status.success(), "{status}"))
            .ok_or_else(|| "it runs".into())
    });
    ended.unwrap();
}

#[test]
fn server_shutdown_cuts_the_connections_of_the_pod_and_not_those_of_its_neighbour() {
    let plan = [NodePlan::new("node-a", &["web"]), NodePlan::new("node-b", &["shop", "bank"])];
    let rig = Rig::with_enrolled(&plan, NodeOptions::default(), &["web", "shop", "bank"]);
    let [shop, bank] = ["shop", "bank"].map(|pod| socket::listen(rig.netns(pod), RAW));
    let leaving = Pair::open(&rig, "web", "shop", &shop);
    let mut staying = Pair::open(&rig, "web", "bank", &bank);
    rig.proxies[1].agent.remove(rig.pod("shop")).unwrap();
    assert_eq!(leaving.ends(), (End::Reset, End::Reset));
    staying.exchange();
    // Time for the last delayed acknowledgement: an idle connection is told too.
    thread::sleep(Duration::from_millis(200));
    rig.proxies[0].agent.remove(rig.pod("web")).unwrap();
    assert_eq!(staying.ends(), (End::Reset, End::Reset));
}

#[test]
fn ztunnel_shutdown_finishes_what_is_in_flight_refuses_the_new_and_exits_with_zero() {
    let rig = Rig::web_and_shop(with_variable("CONNECTION_TERMINATION_DEADLINE", "15s"));
    let listener = socket::listen(rig.netns("shop"), RAW);
    let mut pair = Pair::open(&rig, "web", "shop", &listener);
    let process = &rig.proxies[0].process;
    process.terminate();
    wait_for("new connections being refused", SOON, || {
        let Ok(mut attempt) = socket::connect(rig.netns("web"), rig.address("shop", RAW)) else {
            return Ok(());
        };
        // One that came before the drain is as good as any other, and stays open.
        attempt.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        match socket::end_of(&mut attempt) {
            End::Reset => Ok(()),
            end => Err(format!("{end:?}")),
        }
    })
    .unwrap();
    // Whatever of these attempts reached the server's queue is reset with it.
    drop(listener);
    pair.exchange();
    process.ensure_running().unwrap();
    pair.client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(socket::end_of(&mut pair.server), End::Eof);
    pair.server.write_all(b"bye").unwrap();
    drop(pair.server);
    let mut rest = String::new();
    pair.client.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "bye");
    drop(pair.client);
    ends_well(process, Duration::from_secs(10));
}

#[test]
fn ztunnel_shutdown_cuts_what_outlives_the_drain_deadline() {
    let rig = Rig::web_and_shop(with_variable("CONNECTION_TERMINATION_DEADLINE", "1s"));
    let listener = socket::listen(rig.netns("shop"), RAW);
    let pair = Pair::open(&rig, "web", "shop", &listener);
    let (process, started) = (&rig.proxies[0].process, Instant::now());
    process.terminate();
    assert_eq!(pair.ends(), (End::Reset, End::Reset));
    assert!(started.elapsed() >= Duration::from_millis(900), "cut after {:?}", started.elapsed());
    ends_well(process, Duration::from_secs(5));
}

#[test]
fn pod_without_a_descriptor_is_refused_and_the_others_work() {
    let plan = [NodePlan::new("node-a", &["web", "lost"]), NodePlan::new("node-b", &["shop"])];
    let mut rig = Rig::build(&plan, NodeOptions::default());
    rig.mesh.publish().unwrap();
    let path = rig.lab.dir().join("zds.sock");
    let agent = zds::Listener::bind(&path);
    let (first, second) = (&rig.topology.nodes[0], &rig.topology.nodes[1]);
    let process = node::launch(&rig.lab, (first, "node-a"), &rig.mesh, (&rig.options, &path)).unwrap();
    let peer = agent.accept();
    peer.ask(&Request::SnapshotSent, None).unwrap();
    let refused = peer.ask(&zds::add(rig.pod("lost")), None);
    assert!(refused.is_err(), "an add without a descriptor was taken");
    // The stock proxy ends here. Whether the connection lasts is the proxy's choice; the process and its pods last.
    let web = rig.pod("web");
    halo_control::redirect::apply(web.netns.fd().as_fd(), &Default::default()).unwrap();
    let taken = peer.try_ask(&zds::add(web), Some(web.netns.fd().as_fd()));
    if taken.is_err() {
        let peer = agent.accept();
        peer.ask(&zds::add(web), Some(web.netns.fd().as_fd())).unwrap();
        peer.ask(&Request::SnapshotSent, None).unwrap();
    }
    process.ensure_running().unwrap();
    let _server = Server::http(&rig.lab, rig.pod("shop"), HTTP).unwrap();
    let proxy = node::NodeProxy::start(&rig.lab, second, &rig.mesh, &rig.options).unwrap();
    proxy.wait_connected(SOON).unwrap();
    proxy.agent.enrol(rig.pod("shop"), &Default::default()).unwrap();
    rig.mesh.enrolled.extend(["web".to_owned(), "shop".to_owned()]);
    rig.mesh.publish().unwrap();
    await_answered(&rig, "web", "shop");
    process.ensure_running().unwrap();
}

#[test]
fn broken_mesh_file_changes_nothing_until_it_is_mended() {
    let plan = [NodePlan::new("node-a", &["web"]), NodePlan::new("node-b", &["shop"])];
    let mut rig = Rig::with_enrolled(&plan, NodeOptions::default(), &["web", "shop"]);
    let _server = Server::http(&rig.lab, rig.pod("shop"), HTTP).unwrap();
    let listener = socket::listen(rig.netns("shop"), RAW);
    let mut pair = Pair::open(&rig, "web", "shop", &listener);
    let before = rig.counter(0, "tunnels_dialed");
    std::fs::write(rig.mesh.path(), "workloads: [{namespace: demo, protocol: HBO").unwrap();
    wait_for("the proxies telling that the file is broken", SOON, || {
        let said = rig.proxies.iter().all(|proxy| proxy.process.log_tail(50).contains("mesh.yaml"));
        if said { Ok(()) } else { Err(rig.proxies[0].process.log_tail(5)) }
    })
    .unwrap();
    pair.exchange();
    requests::one(rig.netns("web"), rig.address("shop", HTTP)).unwrap();
    assert_eq!(rig.counter(0, "tunnels_dialed"), before, "the traffic left its tunnel");
    rig.mesh.strict.insert("shop".into());
    rig.mesh.policies.push(halo::lab::mesh::Policy {
        name: "no-web".into(),
        action: halo::lab::mesh::Action::Deny,
        pod: "shop".into(),
        clients: vec!["web".into()],
    });
    rig.mesh.publish().unwrap();
    assert_eq!(pair.ends(), (End::Reset, End::Reset));
}

#[test]
fn killed_proxy_is_seen_as_resets_and_its_successor_takes_the_same_pods() {
    let mut rig = Rig::web_and_shop(NodeOptions::default());
    let _server = Server::http(&rig.lab, rig.pod("shop"), HTTP).unwrap();
    let listener = socket::listen(rig.netns("shop"), RAW);
    for node in [1, 0] {
        let pair = Pair::open(&rig, "web", "shop", &listener);
        rig.proxies[node].process.signal(Signal::SIGKILL);
        // The kernel ends the dead proxy's own sockets in order. What is behind the tunnel must not look so.
        let (client, server) = pair.ends();
        let (beside, behind) = if node == 0 { (client, server) } else { (server, client) };
        assert_eq!(behind, End::Reset, "node {node}");
        assert_ne!(beside, End::Open, "node {node}");
        let (lab, nodes) = (&rig.lab, &rig.topology.nodes);
        rig.proxies[node].restart(lab, &nodes[node], &rig.mesh, &rig.options).unwrap();
        rig.proxies[node].wait_connected(SOON).unwrap();
        rig.proxies[node].wait_ready(SOON).unwrap();
        await_answered(&rig, "web", "shop");
    }
}

#[test]
fn silent_peer_is_given_up_at_the_deadline_and_holds_up_nobody_else() {
    let plan = [NodePlan::new("node-a", &["web"]), NodePlan::new("node-b", &["shop", "silent"])];
    let mut rig = Rig::build(&plan, NodeOptions::default());
    rig.mesh.enrolled.insert("silent".into());
    rig.start();
    rig.enrol(&["web", "shop"]);
    let _server = Server::http(&rig.lab, rig.pod("shop"), HTTP).unwrap();
    // The kernel accepts; nobody ever answers.
    let _listener = socket::listen(rig.netns("silent"), HBONE);
    let mut waiting = socket::connect(rig.netns("web"), rig.address("silent", HTTP)).unwrap();
    waiting.write_all(b"?").unwrap();
    let started = Instant::now();
    let mut others = 0;
    waiting.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    while socket::end_of(&mut waiting) == End::Open {
        assert!(started.elapsed() < Duration::from_secs(15), "still waiting");
        let asked = Instant::now();
        requests::one(rig.netns("web"), rig.address("shop", HTTP)).unwrap();
        assert!(asked.elapsed() < Duration::from_secs(3), "held up for {:?}", asked.elapsed());
        others += 1;
    }
    assert!(started.elapsed() > Duration::from_secs(5), "given up after {:?}", started.elapsed());
    assert!(others > 10, "{others}");
    rig.await_counted(0, "closed_tls_timeout", 0);
}

#[test]
fn certificates_rotate_under_traffic_and_nothing_is_lost() {
    let rig = Rig::web_and_shop(with_variable("SECRET_TTL", "4s"));
    let listener = socket::listen(rig.netns("shop"), RAW);
    let mut pair = Pair::open(&rig, "web", "shop", &listener);
    let serials = |rig: &Rig| -> Vec<String> {
        rig.dump(0).certificates.iter().map(|certificate| certificate.expires.clone()).collect()
    };
    let (first, started) = (serials(&rig), Instant::now());
    assert!(!first.is_empty());
    let traffic = socket::listen(rig.netns("shop"), RAW + 1);
    let target = rig.address("shop", RAW + 1);
    let (mut seen, mut rounds) = (vec![first], 0_u64);
    // Three lives of a certificate.
    while started.elapsed() < Duration::from_secs(12) {
        rounds += 1;
        let script = |nth| Script::new(rounds * 100 + nth, 300_000, 300_000, Order::Together);
        let scripts: Vec<_> = (0..4).map(script).collect();
        exchange::judge_all(&scripts, &exchange::run(&scripts, rig.netns("web"), target, &traffic, 4));
        pair.exchange();
        let now = serials(&rig);
        if seen.last() != Some(&now) {
            seen.push(now);
        }
    }
    assert!(seen.len() >= 4, "only {} certificates in three lives: {seen:?}", seen.len());
    assert_eq!((rig.counter(0, "closed_no_certificate"), rig.counter(0, "handshakes_failed")), (0, 0));
    pair.exchange();
}
