//! What peers, pods and agents do to a node proxy when nothing is in order: they fall silent, go away in the middle of
//! a word, come back as somebody else, or take all there is.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use halo::lab::client::Server;
use halo::lab::mesh::{Mesh, fields, spiffe_id};
use halo::lab::node::{self, NodeOptions};
use halo::lab::process::{Process, wait_for};
use halo::lab::topology::{NodePlan, Pod};
use halo_core::h2::StreamId;
use halo_core::zds::Request;
use halo_tests::certs::Root;
use halo_tests::frames::{self, Tunnel};
use halo_tests::pair::{HTTP, Pair, RAW, await_answered};
use halo_tests::rig::{SOON, with_variables};
use halo_tests::socket::{self, End, PATIENCE};
use halo_tests::{Rig, requests, zds};

const HBONE: u16 = 15008;

/// How many tunnels a node proxy has, as soon as they are so many.
fn await_tunnels(rig: &Rig, node: usize, count: u64) {
    let look = |dump: &halo::lab::admin::Dump| {
        let tunnels: u64 = dump.shards.iter().map(|shard| shard.tunnels).sum();
        if tunnels == count { Ok(()) } else { Err(format!("{tunnels}")) }
    };
    rig.proxies[node].wait_dump(&format!("having {count} tunnels"), SOON, look).unwrap();
}

#[test]
fn half_open_peer_is_found_dead_by_its_probes_and_its_connections_are_reset() {
    let probes = with_variables(&[("HALO_PING_INTERVAL", "500ms"), ("HALO_PING_TIMEOUT", "2s")]);
    let rig = Rig::played(&["shop"], probes, &["web", "shop"], &[]);
    let listener = socket::listen(rig.netns("shop"), RAW);
    let pair = Pair::open(&rig, "web", "shop", &listener);
    // From here on neither end hears of the other, and nobody is told.
    let cut = "add table inet cut; \
               add chain inet cut forward { type filter hook forward priority 0; policy drop; }";
    rig.topology.nodes[1].netns.command("nft", &[cut]).unwrap();
    assert_eq!(pair.ends(), (End::Reset, End::Reset));
    for node in 0..2 {
        await_tunnels(&rig, node, 0);
        rig.await_counted(node, "closed_tunnel_lost", 0);
    }
}

#[test]
fn client_that_is_silent_before_or_within_its_handshake_is_closed_at_the_deadline() {
    let rig = Rig::played(
        &["shop", "stranger"],
        with_variables(&[("HALO_HANDSHAKE_TIMEOUT", "1s")]),
        &["shop"],
        &[],
    );
    let _server = Server::http(&rig.lab, rig.pod("shop"), HTTP).unwrap();
    let connect = || socket::connect(rig.netns("stranger"), rig.address("shop", HBONE)).unwrap();
    let (mut silent, mut halted) = (connect(), connect());
    // The head of a record that holds a ClientHello of 512 bytes, of which a part comes.
    halted.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]).unwrap();
    // Whoever speaks is served meanwhile.
    let leaf = Root::of(&rig.ca()).unwrap().issue(&spiffe_id("stranger")).unwrap();
    let authority = rig.address("shop", HTTP).to_string();
    let ask = (http::Method::CONNECT, &*authority);
    let answer =
        halo_tests::hbone::request(rig.netns("stranger"), rig.address("shop", HBONE), Some(&leaf), ask);
    assert_eq!(answer, Ok(200));
    for client in [&mut silent, &mut halted] {
        assert_ne!(socket::end_of(client), End::Open);
    }
    rig.await_counted(1, "closed_tls_timeout", 1);
}

/// Gives the address of a pod to another pod of its node, which takes its place in the mesh under the same service
/// account, as a replica does that is scheduled after it.
fn pass_address(rig: &mut Rig, from: &str, to: &str) {
    let (old, new) = (rig.pod(from).clone(), rig.pod(to).clone());
    let address = format!("{}/32", old.address);
    new.netns.command("ip", &["addr", "add", &address, "dev", "eth0"]).unwrap();
    // The interface of the new one is that which its own address is behind.
    let node = &rig.topology.nodes[new.node].netns;
    let route = node.command("ip", &["route", "show", &new.address.to_string()]).unwrap();
    let port = route.split_ascii_whitespace().skip_while(|word| *word != "dev").nth(1).unwrap();
    node.command("ip", &["route", "replace", &address, "dev", port]).unwrap();
    let heir = Pod { name: new.name, uid: new.uid, netns: new.netns, ..old };
    rig.topology.pods.retain(|pod| pod.name != to);
    rig.topology.pods.push(heir);
    let mut mesh = Mesh::new(rig.mesh.path(), &rig.topology);
    mesh.forget(from);
    mesh.enrolled.clone_from(&rig.mesh.enrolled);
    mesh.set(to, fields::text("serviceAccount", from));
    mesh.publish().unwrap();
    rig.mesh = mesh;
}

/// Opens a connection that ends at a played server; gives both of its ends.
fn open_at(rig: &Rig, pod: &str, tunnel: &mut Tunnel) -> (TcpStream, StreamId) {
    let mut client = socket::connect(rig.netns("web"), rig.address(pod, RAW)).unwrap();
    client.write_all(b"?").unwrap();
    let stream = tunnel.request();
    tunnel.answer(stream);
    assert_eq!(tunnel.receive(stream), b"?");
    echo(&mut client, tunnel, stream);
    (client, stream)
}

fn echo(client: &mut TcpStream, tunnel: &mut Tunnel, stream: StreamId) {
    client.write_all(b"a").unwrap();
    assert_eq!(tunnel.receive(stream), b"a");
    tunnel.send(stream, b"b");
    let mut byte = [0];
    client.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"b");
}

#[test]
fn stale_tunnel_of_an_address_that_passed_on_carries_nothing_more() {
    let mut rig = Rig::played(&["shop", "heir"], NodeOptions::default(), &["web"], &["shop", "heir"]);
    let (old, new) = (frames::Server::start(&rig, "shop"), frames::Server::start_as(&rig, "heir", "shop"));
    let web = rig.netns("web").clone();
    let target = rig.address("shop", RAW);
    let first = thread::spawn(move || socket::connect(&web, target).unwrap());
    let mut stale = old.accept();
    let stream = stale.request();
    stale.answer(stream);
    let mut client = first.join().unwrap();
    client.write_all(b"?").unwrap();
    assert_eq!(stale.receive(stream), b"?");
    // The pod that had the address is gone without a word, and another one of the same account has it.
    pass_address(&mut rig, "shop", "heir");
    rig.proxies[0]
        .wait_dump("learning who has the address", SOON, |dump| {
            let workloads = dump.all["workloads"].as_array().cloned().unwrap_or_default();
            let names: Vec<_> = workloads.iter().map(|workload| workload["name"].to_string()).collect();
            if names.iter().any(|name| name.contains("shop")) { Err(names.join(" ")) } else { Ok(()) }
        })
        .unwrap();
    let web = rig.netns("web").clone();
    let second = thread::spawn(move || {
        let mut client = socket::connect(&web, target).unwrap();
        client.write_all(b"?").unwrap();
        client
    });
    let mut fresh = new.accept();
    let stream = fresh.request();
    fresh.answer(stream);
    assert_eq!(fresh.receive(stream), b"?");
    let mut client = second.join().unwrap();
    echo(&mut client, &mut fresh, stream);
    assert_eq!(rig.counter(0, "tunnels_dialed"), 2);
}

#[test]
fn request_that_crosses_a_goaway_goes_through_another_tunnel_and_what_runs_goes_on() {
    let rig = Rig::played(&["shop"], NodeOptions::default(), &["web"], &["shop"]);
    let server = frames::Server::start(&rig, "shop");
    let (web, target) = (rig.netns("web").clone(), rig.address("shop", RAW));
    let dialed = thread::spawn({
        let web = web.clone();
        move || socket::connect(&web, target).unwrap()
    });
    let mut leaving = server.accept();
    let running = leaving.request();
    leaving.answer(running);
    let mut before = dialed.join().unwrap();
    // A request is on its way when the peer says that it serves none after the first.
    let mut crossing = socket::connect(&web, target).unwrap();
    let late = leaving.request();
    assert!(late.0 > running.0);
    leaving.go_away(running.0);
    let mut next = server.accept();
    let again = next.request();
    next.answer(again);
    echo(&mut crossing, &mut next, again);
    echo(&mut before, &mut leaving, running);
    // The new ones keep away from it, and it ends with its last stream.
    let (mut third, stream) = open_at(&rig, "shop", &mut next);
    echo(&mut third, &mut next, stream);
    drop(before);
    assert_eq!(leaving.take().unwrap().header.kind, halo_core::h2::frame::kind::DATA);
    assert_eq!((rig.counter(0, "tunnels_dialed"), rig.counter(0, "closed_tunnel_lost")), (2, 0));
}

/// Sets how many descriptors a process may have open.
fn limit_descriptors(process: &Process, count: usize) {
    let status = Command::new("prlimit")
        .args([format!("--pid={}", process.pid()), format!("--nofile={count}:")])
        .status()
        .unwrap();
    assert!(status.success(), "prlimit: {status}");
}

fn descriptors(process: &Process) -> usize {
    fs::read_dir(format!("/proc/{}/fd", process.pid())).unwrap().count()
}

#[test]
fn proxy_without_descriptors_keeps_what_it_has_and_takes_what_waited_when_some_are_free() {
    const CLIENTS: usize = 40;
    const ROOM: usize = 12;
    let rig = Rig::with_controller(NodeOptions::default());
    let listener = socket::listen(rig.netns("shop"), RAW);
    let mut pair = Pair::open(&rig, "web", "shop", &listener);
    let process = rig.proxies[0].process.clone();
    let limit = descriptors(&process) + ROOM;
    limit_descriptors(&process, limit);
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = socket::connect(rig.netns("web"), rig.address("shop", RAW)).unwrap();
        client.write_all(b"?").unwrap();
        clients.push(client);
    }
    wait_for("the descriptors being used up", SOON, || match descriptors(&process) {
        open if open >= limit => Ok(()),
        open => Err(format!("{open} of {limit}")),
    })
    .unwrap();
    pair.exchange();
    process.ensure_running().unwrap();
    // Each that is served makes room for one that waits.
    let mut byte = [0];
    for nth in 0..CLIENTS {
        let mut server = socket::accept(&listener).unwrap_or_else(|error| panic!("client {nth}: {error}"));
        server.read_exact(&mut byte).unwrap();
        server.write_all(b"!").unwrap();
        drop(server);
        let served = clients.iter_mut().position(|client| {
            client.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            matches!(client.read(&mut byte), Ok(1))
        });
        drop(served.map(|served| clients.swap_remove(served)));
    }
    for mut client in clients {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.read_exact(&mut byte).unwrap();
    }
    pair.exchange();
    let backoffs = rig.counter(0, "accept_backoffs");
    assert!(backoffs > 0, "accepting never failed");
    assert!(backoffs < 1_000, "accepting was tried {backoffs} times in vain");
    assert_eq!(rig.counter(0, "closed_defect"), 0);
}

#[test]
fn agent_that_restarts_in_the_middle_of_its_snapshot_removes_nobody_before_it_is_complete() {
    let plan = [NodePlan::new("node-a", &["web", "leaving"]), NodePlan::new("node-b", &["shop"])];
    let mut rig = Rig::build(&plan, NodeOptions::default());
    rig.mesh.enrolled.insert("shop".into());
    rig.start_controller();
    let path = rig.lab.dir().join("zds.sock");
    let process = {
        let node = (&rig.topology.nodes[0], "node-a");
        node::launch(&rig.lab, node, &rig.mesh, (&rig.options, &path)).unwrap()
    };
    let shop = node::NodeProxy::start(&rig.lab, &rig.topology.nodes[1], &rig.mesh, &rig.options).unwrap();
    shop.wait_connected(SOON).unwrap();
    shop.agent.enrol(rig.pod("shop"), &Default::default()).unwrap();
    let [web, leaving] = ["web", "leaving"].map(|pod| rig.pod(pod).clone());
    for pod in [&web, &leaving] {
        halo_control::redirect::apply(pod.netns.fd().as_fd(), &Default::default()).unwrap();
    }
    let add = |peer: &zds::Peer, pod: &Pod| peer.ask(&zds::add(pod), Some(pod.netns.fd().as_fd())).unwrap();
    // A whole snapshot.
    let agent = zds::Listener::bind(&path);
    let peer = agent.accept();
    add(&peer, &web);
    add(&peer, &leaving);
    peer.ask(&Request::SnapshotSent, None).unwrap();
    let _server = Server::http(&rig.lab, rig.pod("shop"), HTTP).unwrap();
    for pod in ["web", "leaving"] {
        await_answered(&rig, pod, "shop");
    }
    let listener = socket::listen(rig.netns("shop"), RAW);
    let mut stays = Pair::open(&rig, "web", "shop", &listener);
    let mut goes = Pair::open(&rig, "leaving", "shop", &listener);
    // Two agents that tell of one pod and are gone.
    let mut last = (agent, peer);
    for _ in 0..2 {
        drop(last);
        fs::remove_file(&path).unwrap();
        let agent = zds::Listener::bind(&path);
        let peer = agent.accept();
        add(&peer, &web);
        stays.exchange();
        goes.exchange();
        requests::one(rig.netns("leaving"), rig.address("shop", HTTP)).unwrap();
        last = (agent, peer);
    }
    // The third finishes: what it does not name has left.
    drop(last);
    fs::remove_file(&path).unwrap();
    let agent = zds::Listener::bind(&path);
    let peer = agent.accept();
    add(&peer, &web);
    peer.ask(&Request::SnapshotSent, None).unwrap();
    assert_eq!(goes.ends(), (End::Reset, End::Reset));
    stays.exchange();
    requests::one(rig.netns("web"), rig.address("shop", HTTP)).unwrap();
    process.ensure_running().unwrap();
}

#[test]
fn stream_that_nobody_reads_stops_alone_and_leaves_its_tunnel_to_the_others() {
    let rig = Rig::with_controller(NodeOptions::default());
    let listener = socket::listen(rig.netns("shop"), RAW);
    let (mut unread, mut lively) =
        (Pair::open(&rig, "web", "shop", &listener), Pair::open(&rig, "web", "shop", &listener));
    let chunk = vec![7; 1 << 20];
    unread.client.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut sent = 0;
    let stopped = loop {
        match unread.client.write(&chunk) {
            Ok(length) => sent += length,
            Err(error) => break error,
        }
        lively.exchange();
    };
    assert!(socket::is_timeout(&stopped), "{stopped}");
    for _ in 0..100 {
        lively.exchange();
    }
    assert_eq!(rig.counter(0, "tunnels_dialed"), 1);
    // Nothing of it is lost.
    unread.client.shutdown(Shutdown::Write).unwrap();
    let mut received = Vec::new();
    unread.server.read_to_end(&mut received).unwrap();
    assert_eq!(received.len(), sent);
}

#[test]
fn streams_of_one_tunnel_all_get_their_share() {
    const STREAMS: usize = 8;
    /// What all of them carry together before they are compared: far more than their windows hold, which grow at first.
    const TOTAL: u64 = 1 << 30;
    let rig = Rig::with_controller(NodeOptions::default());
    let listener = socket::listen(rig.netns("shop"), RAW);
    let pairs: Vec<_> = (0..STREAMS).map(|_| Pair::open(&rig, "web", "shop", &listener)).collect();
    let mut probe = Pair::open(&rig, "web", "shop", &listener);
    let moved: Arc<Vec<AtomicU64>> = Arc::new((0..STREAMS).map(|_| AtomicU64::new(0)).collect());
    let sum = || moved.iter().map(|count| count.load(Ordering::Relaxed)).sum::<u64>();
    let ends: Vec<_> = pairs
        .iter()
        .map(|pair| (pair.client.try_clone().unwrap(), pair.server.try_clone().unwrap()))
        .collect();
    for (nth, Pair { mut client, mut server }) in pairs.into_iter().enumerate() {
        let moved = moved.clone();
        thread::spawn(move || while client.write_all(&[7; 64 << 10]).is_ok() {});
        thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(length @ 1..) = server.read(&mut buffer) {
                moved[nth].fetch_add(length as u64, Ordering::Relaxed);
            }
        });
    }
    let started = Instant::now();
    while sum() < TOTAL {
        assert!(started.elapsed() < Duration::from_secs(120), "only {} bytes", sum());
        // The one that says little is not drowned by those that say much.
        probe.exchange();
    }
    let shares: Vec<u64> = moved.iter().map(|count| count.load(Ordering::Relaxed)).collect();
    for (client, server) in ends {
        let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
    }
    let mean = shares.iter().sum::<u64>() / STREAMS as u64;
    assert!(shares.iter().all(|share| *share > mean / 8), "one starves: {shares:?}");
    assert_eq!(rig.counter(0, "tunnels_dialed"), 1);
}
