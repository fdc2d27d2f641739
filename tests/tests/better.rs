//! Where the stock node proxy is weak: what waits has a deadline, what is lost is told, what has room is used, and what
//! has gone is forgotten.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use halo::lab::client::Server;
use halo::lab::mesh::{Mesh, NAMESPACE, Service, fields, spiffe_id};
use halo::lab::node::NodeOptions;
use halo::lab::process::wait_for;
use halo::lab::topology::NodePlan;
use halo_core::h2::StreamId;
use halo_core::h2::frame::{be_u32, kind};
use halo_tests::certs::Root;
use halo_tests::frames::{self, Tunnel};
use halo_tests::pair::{HTTP, Pair, RAW, await_answered};
use halo_tests::rig::{SOON, with_variables};
use halo_tests::socket::{self, End};
use halo_tests::xds::{ControlPlane, Resource};
use halo_tests::{Rig, observe, requests, xds};
use serde_json::json;

const HBONE: u16 = 15008;

/// Connects from `web` to the raw port of a pod.
fn connect(rig: &Rig, pod: &str) -> TcpStream {
    socket::connect(rig.netns("web"), rig.address(pod, RAW)).unwrap()
}

/// Waits for a line with these words in a node proxy's log.
fn await_line(rig: &Rig, node: usize, words: &[&str]) {
    let process = &rig.proxies[node].process;
    let told = process.wait_for(&format!("telling {words:?}"), SOON, || {
        let log = process.log_tail(1_000);
        let told = log.lines().any(|line| words.iter().all(|word| line.contains(word)));
        if told { Ok(()) } else { Err(log) }
    });
    told.unwrap();
}

#[test]
fn peer_that_does_not_answer_connect_is_given_up_at_the_deadline() {
    let limits = [("HALO_ANSWER_TIMEOUT", "2s"), ("HALO_CONNECT_TIMEOUT", "2s")];
    let rig = Rig::played(&["shop"], with_variables(&limits), &["web"], &["shop"]);
    let server = frames::Server::start(&rig, "shop");
    let mut clients = vec![connect(&rig, "shop"), connect(&rig, "shop")];
    let mut tunnel = server.accept();
    // One of the two is answered: the deadline is the stream's, and its tunnel goes on.
    let (answered, ignored) = (tunnel.request(), tunnel.request());
    tunnel.answer(answered);
    assert_eq!(tunnel.expect(kind::RST_STREAM).header.stream, ignored.0);
    rig.await_counted(0, "closed_answer_timeout", 0);
    let reset = |client: &mut TcpStream| {
        client.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        socket::end_of(client) == End::Reset
    };
    let given_up = wait_for("one of the clients being reset", SOON, || {
        clients.iter_mut().position(reset).ok_or_else(|| "both are open".to_owned())
    });
    clients.remove(given_up.unwrap());
    tunnel.send(answered, b"!");
    let mut byte = [0];
    clients[0].set_read_timeout(Some(SOON)).unwrap();
    clients[0].read_exact(&mut byte).unwrap();
    assert_eq!((rig.counter(0, "tunnels_dialed"), rig.counter(0, "closed_answer_timeout")), (1, 1));
}

#[test]
fn peer_whose_tunnel_port_swallows_everything_is_given_up_at_the_deadline_as_a_network_policy() {
    let rig = Rig::played(&["shop"], with_variables(&[("HALO_CONNECT_TIMEOUT", "1s")]), &["web"], &["shop"]);
    let rules = "add table inet cut; \
                 add chain inet cut forward { type filter hook forward priority 0; }; \
                 add rule inet cut forward tcp dport 15008 drop";
    rig.topology.nodes[1].netns.command("nft", &[rules]).unwrap();
    assert_eq!(socket::end_of(&mut connect(&rig, "shop")), End::Reset);
    rig.await_counted(0, "closed_hbone_timeout", 0);
    await_line(&rig, 0, &["maybe a NetworkPolicy is blocking HBONE port 15008"]);
}

#[test]
fn half_closed_pair_that_falls_silent_is_reset_at_the_deadline() {
    let limit = with_variables(&[("HALO_HALF_CLOSE_TIMEOUT", "1s")]);
    let rig = Rig::played(&["shop"], limit, &["web", "shop"], &[]);
    let listener = socket::listen(rig.netns("shop"), RAW);
    for by_client in [true, false] {
        let Pair { client, server } = Pair::open(&rig, "web", "shop", &listener);
        let (mut ended, mut silent) = if by_client { (client, server) } else { (server, client) };
        ended.shutdown(Shutdown::Write).unwrap();
        assert_eq!(silent.read(&mut [0]).unwrap(), 0, "the end is carried over");
        assert_eq!(socket::end_of(&mut ended), End::Reset);
        wait_for("the silent end being reset too", SOON, || match silent.write(b"x") {
            Err(error) if socket::is_reset(&error) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .unwrap();
    }
    let counted: u64 = (0..2).map(|node| rig.counter(node, "closed_half_close_timeout")).sum();
    assert!(counted >= 2, "{counted}");
}

#[test]
fn half_closed_pair_that_still_says_something_is_left_alone() {
    let limit = Duration::from_secs(2);
    let options = with_variables(&[("HALO_HALF_CLOSE_TIMEOUT", "2s")]);
    let rig = Rig::played(&["shop"], options, &["web", "shop"], &[]);
    let listener = socket::listen(rig.netns("shop"), RAW);
    let mut pair = Pair::open(&rig, "web", "shop", &listener);
    pair.client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(socket::end_of(&mut pair.server), End::Eof);
    let (started, mut byte) = (Instant::now(), [0]);
    while started.elapsed() < 2 * limit {
        pair.server.write_all(b"!").unwrap();
        pair.client.read_exact(&mut byte).unwrap();
        thread::sleep(limit / 20);
    }
    pair.server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(socket::end_of(&mut pair.client), End::Eof);
}

#[test]
fn lost_dial_wakes_everyone_who_waits_for_it() {
    const WAITERS: u64 = 20;
    let rig = Rig::played(&["shop"], NodeOptions::default(), &["web"], &["shop"]);
    let listener = socket::listen(rig.netns("shop"), HBONE);
    let mut clients: Vec<_> = (0..WAITERS).map(|_| connect(&rig, "shop")).collect();
    let dial = socket::accept(&listener).unwrap();
    wait_for("all of them waiting", SOON, || match rig.counter(0, "accepts") {
        WAITERS => Ok(()),
        accepts => Err(format!("{accepts}")),
    })
    .unwrap();
    let lost = Instant::now();
    socket::reset(dial);
    for client in &mut clients {
        assert_eq!(socket::end_of(client), End::Reset);
    }
    // They hear of the loss: nobody sits until a deadline of his own.
    assert!(lost.elapsed() < Duration::from_secs(8), "after {:?}", lost.elapsed());
    assert_eq!(rig.counter(0, "handshakes_failed"), 1, "one dial served them all");
    assert_eq!(rig.counter(0, "closed_tls_failed"), WAITERS);
    // And the next one dials again. Its dial stays until it has connected, or it would hear of the end while it does.
    thread::scope(|scope| {
        let client = scope.spawn(|| connect(&rig, "shop"));
        let dial = socket::accept(&listener).unwrap();
        drop((client.join().unwrap(), dial));
    });
}

#[test]
fn tunnel_below_its_limit_is_used_again() {
    let limit = with_variables(&[("POOL_MAX_STREAMS_PER_CONNECTION", "2")]);
    let rig = Rig::played(&["shop"], limit, &["web", "shop"], &[]);
    let listener = socket::listen(rig.netns("shop"), RAW);
    let mut pairs: Vec<_> = (0..4).map(|_| Pair::open(&rig, "web", "shop", &listener)).collect();
    assert_eq!(rig.counter(0, "tunnels_dialed"), 2);
    // Full tunnels that lose a stream take the next one, again and again.
    for nth in 0..12 {
        let ended = rig.counter(0, "closed_complete");
        drop(pairs.remove(nth % pairs.len()));
        rig.await_counted(0, "closed_complete", ended);
        pairs.push(Pair::open(&rig, "web", "shop", &listener));
        assert_eq!(rig.counter(0, "tunnels_dialed"), 2);
    }
    for pair in &mut pairs {
        pair.exchange();
    }
}

#[test]
fn tunnel_closes_when_its_workload_leaves_the_mesh() {
    let mut rig = Rig::played(&["shop", "bank"], NodeOptions::default(), &["web"], &["shop", "bank"]);
    let servers = ["shop", "bank"].map(|pod| frames::Server::start(&rig, pod));
    let mut tunnels: Vec<Tunnel> = Vec::new();
    for (pod, server) in ["shop", "bank"].iter().zip(&servers) {
        let client = connect(&rig, pod);
        let mut tunnel = server.accept();
        let stream = tunnel.request();
        tunnel.answer(stream);
        // The tunnel has no stream left, and is kept for the next.
        drop(client);
        assert_eq!(tunnel.expect(kind::DATA).header.stream, stream.0);
        tunnel.end(stream);
        tunnels.push(tunnel);
    }
    rig.mesh.forget("shop");
    rig.mesh.publish().unwrap();
    tunnels[0].expect_closed();
    // The other one has not been touched.
    let mut client = connect(&rig, "bank");
    client.write_all(b"?").unwrap();
    let stream = tunnels[1].request();
    tunnels[1].answer(stream);
    assert_eq!(tunnels[1].receive(stream), b"?");
    assert_eq!(rig.counter(0, "tunnels_dialed"), 2);
}

/// `web` is enrolled and the control plane does not know it.
fn with_unknown_pod(options: NodeOptions) -> Rig {
    let plan = [NodePlan::new("node-a", &["web"]), NodePlan::new("node-b", &["shop"])];
    let mut rig = Rig::build(&plan, options);
    rig.mesh.forget("web");
    rig.start_controller();
    rig.start();
    rig.enrol(&["shop"]);
    rig.proxies[0].agent.enrol(rig.pod("web"), &Default::default()).unwrap();
    rig
}

#[test]
fn pod_that_the_control_plane_has_not_delivered_waits_and_is_served_when_it_has() {
    let mut rig = with_unknown_pod(with_variables(&[("HALO_LOOKUP_TIMEOUT", "20s")]));
    let _server = Server::http(&rig.lab, rig.pod("shop"), HTTP).unwrap();
    let (web, target) = (rig.netns("web").clone(), rig.address("shop", HTTP));
    let waiting = thread::spawn(move || requests::one(&web, target));
    rig.await_counted(0, "lookups", 0);
    assert!(!waiting.is_finished());
    let mut mesh = Mesh::new(rig.mesh.path(), &rig.topology);
    mesh.enrolled.extend(["web".to_owned(), "shop".to_owned()]);
    rig.mesh = mesh;
    rig.mesh.publish().unwrap();
    waiting.join().unwrap().unwrap();
    assert_eq!((rig.counter(0, "lookups_expired"), rig.counter(0, "closed_source_unknown")), (0, 0));
    assert_eq!(rig.counter(0, "tunnels_dialed"), 1);
}

#[test]
fn pod_that_the_control_plane_never_delivers_is_refused_at_the_deadline_with_a_line_and_a_metric() {
    let rig = with_unknown_pod(with_variables(&[("HALO_LOOKUP_TIMEOUT", "1s")]));
    let _server = Server::http(&rig.lab, rig.pod("shop"), HTTP).unwrap();
    assert!(requests::one(rig.netns("web"), rig.address("shop", HTTP)).is_err());
    rig.await_counted(0, "lookups_expired", 0);
    rig.await_counted(0, "closed_source_unknown", 0);
    let source = format!("src.addr={}:", rig.pod("web").address);
    await_line(&rig, 0, &[&source, "local workload: the control plane has not delivered it"]);
    assert_eq!(observe::total(&rig.proxies[0], "halo_shard_lookups_expired_total", &[]), Some(1.0));
}

#[test]
fn drain_is_announced_in_two_steps_and_lets_in_what_was_on_its_way() {
    const EVERY_STREAM: u32 = (1 << 31) - 1;
    let options = with_variables(&[("CONNECTION_TERMINATION_DEADLINE", "15s")]);
    let rig = Rig::played(&["shop", "stranger"], options, &["shop"], &[]);
    let listener = socket::listen(rig.netns("shop"), RAW);
    let leaf = Root::of(&rig.ca()).unwrap().issue(&spiffe_id("stranger")).unwrap();
    let mut tunnel = Tunnel::dial(rig.netns("stranger"), rig.address("shop", HBONE), &leaf);
    let authority = rig.address("shop", RAW).to_string();
    let (first, second) = (StreamId(1), StreamId(3));
    tunnel.ask(first, &authority);
    let mut server = socket::accept(&listener).unwrap();
    tunnel.admitted(first);
    tunnel.hold_pings();
    let process = rig.proxies[1].process.clone();
    process.terminate();
    assert_eq!(be_u32(&tunnel.expect(kind::GOAWAY).payload), EVERY_STREAM);
    // A request that the client sends before it can have heard is served.
    tunnel.ask(second, &authority);
    let mut late = socket::accept(&listener).unwrap();
    tunnel.admitted(second);
    tunnel.release_pings();
    assert_eq!(be_u32(&tunnel.expect(kind::GOAWAY).payload), second.0);
    let mut byte = [0];
    for (stream, server) in [(first, &mut server), (second, &mut late)] {
        tunnel.send(stream, b"?");
        server.read_exact(&mut byte).unwrap();
        server.write_all(b"!").unwrap();
        assert_eq!(tunnel.receive(stream), b"!");
        tunnel.end(stream);
        server.shutdown(Shutdown::Write).unwrap();
        assert_eq!(tunnel.receive(stream), b"");
    }
    let ended = wait_for("the proxy ending", SOON, || {
        process.exit_status().map(|status| assert!(status.success(), "{status}")).ok_or_else(String::new)
    });
    ended.unwrap();
}

/// `istio.security.Authorization` for a pod, with one match.
fn policy(name: &str, deny: bool, one_match: &[u8]) -> Resource {
    let rule = xds::field(1, &xds::field(2, one_match));
    let message = [
        xds::field(1, name.as_bytes()),
        xds::field(2, NAMESPACE.as_bytes()),
        xds::number(3, 2),
        xds::number(4, deny.into()),
        xds::field(5, &rule),
    ];
    Resource { kind: xds::AUTHORIZATION, name: format!("{NAMESPACE}/{name}"), message: message.concat() }
}

/// A match's `source_ips`: an address and how many bits of it count.
fn source(address: &[u8], bits: u32) -> Vec<u8> {
    xds::field(5, &[xds::field(1, address), xds::number(2, bits)].concat())
}

#[test]
fn part_of_a_policy_that_cannot_be_understood_neither_opens_an_allow_nor_keeps_a_deny_from_denying() {
    let anybody = xds::field(3, &xds::field(4, b""));
    // A condition of a control plane that is newer than the proxy.
    let newer = xds::field(90, b"only on Sundays");
    let sound = source(&[10, 0, 0, 0], 8);
    let no_address = source(&[10, 0, 0, 0, 0], 8);
    let cases: [(&str, bool, Vec<u8>, bool); 7] = [
        ("allow-sound", false, sound.clone(), true),
        ("allow-no-address", false, no_address.clone(), false),
        ("allow-newer", false, [anybody.clone(), newer.clone()].concat(), false),
        ("allow-only-newer", false, newer.clone(), false),
        ("deny-other", true, source(&[192, 0, 2, 0], 24), true),
        ("deny-no-address", true, no_address, false),
        ("deny-newer", true, [anybody, newer].concat(), false),
    ];
    let pods: Vec<_> = cases.iter().map(|(name, ..)| *name).collect();
    let plan = [NodePlan::new("node-a", &["web"]), NodePlan::new("node-b", &pods)];
    let mut rig = Rig::build(&plan, NodeOptions::default());
    rig.mesh.enrolled.extend(rig.topology.pods.iter().map(|pod| pod.name.clone()));
    for name in &pods {
        rig.mesh.set(name, ("authorizationPolicies", json!([format!("{NAMESPACE}/{name}")])));
    }
    let mut resources = xds::addresses(&rig);
    resources.extend(cases.iter().map(|(name, deny, one_match, _)| policy(name, *deny, one_match)));
    let node = &rig.topology.nodes[0];
    let control_plane = ControlPlane::serve(&node.netns, node.address, resources);
    let variables = [("XDS_ADDRESS", control_plane.url.as_str()), ("LOCAL_XDS_PATH", "")];
    rig.options = with_variables(&variables);
    rig.start();
    rig.enrol(&[&["web"], &*pods].concat());
    for (name, _, _, admits) in &cases {
        let _server = Server::http(&rig.lab, rig.pod(name), HTTP).unwrap();
        let reason = if name.starts_with("allow") { "closed_policy_no_allow" } else { "closed_policy_deny" };
        let before = rig.counter(1, reason);
        let answer = requests::one(rig.netns("web"), rig.address(name, HTTP));
        assert_eq!(answer.is_ok(), *admits, "{name}: {answer:?}");
        if !admits {
            rig.await_counted(1, reason, before);
        }
    }
    // A person is told what is not as it was written, and how much of it there is.
    for (node, proxy) in rig.proxies.iter().enumerate() {
        await_line(&rig, node, &["warn", "demo/allow-no-address", "source_ips", "not understood"]);
        observe::await_total(proxy, "halo_policies_not_understood", &[], 5.0);
    }
}

/// A connection from `web` arrives at this played server, and works.
fn assert_arrives(rig: &Rig, target: SocketAddr, server: &frames::Server) {
    let web = rig.netns("web").clone();
    let dialed = thread::spawn(move || socket::connect(&web, target).unwrap());
    let mut tunnel = server.accept();
    let stream = tunnel.request();
    tunnel.answer(stream);
    let mut client = dialed.join().unwrap();
    client.write_all(b"?").unwrap();
    assert_eq!(tunnel.receive(stream), b"?");
}

#[test]
fn address_of_a_workload_that_is_also_a_services_is_the_services_for_waypoint_and_endpoint_alike() {
    let plan = [NodePlan::new("node-a", &["web"]), NodePlan::new("node-b", &["shop", "bank", "way"])];
    let mut rig = Rig::build(&plan, NodeOptions::default());
    rig.mesh.enrolled.extend(["shop", "bank", "way"].map(str::to_owned));
    let waypoint = fields::waypoint(&format!("/{}", rig.pod("way").address), HBONE);
    let [shop, bank] = ["shop", "bank"].map(|pod| rig.address(pod, 80));
    // One service has a waypoint and its pod has none; with the other one it is the other way round.
    let services = [
        Service::new("shop", shop, "shop", HTTP).with(waypoint.clone()),
        Service::new("bank", bank, "bank", HTTP),
    ];
    rig.mesh.services.extend(services);
    rig.mesh.set("bank", waypoint);
    rig.start_with(&["web"]);
    let [shop_peer, bank_peer, way_peer] =
        ["shop", "bank", "way"].map(|pod| frames::Server::start(&rig, pod));
    assert_arrives(&rig, shop, &way_peer);
    assert_arrives(&rig, bank, &bank_peer);
    shop_peer.listener.set_nonblocking(true).unwrap();
    assert!(shop_peer.listener.accept().is_err(), "the waypoint was passed by");
    assert_eq!(rig.counter(0, "tunnels_dialed"), 2);
}

#[test]
fn another_endpoint_is_tried_when_the_first_refuses_the_connection() {
    const TRIES_MAX: u32 = 200;
    let pods = ["gone", "shop", "bare", "open"];
    let mut rig = Rig::played(&pods, NodeOptions::default(), &["web", "shop"], &["gone"]);
    let (tunnelled, plain) = (SocketAddr::from(([10, 96, 0, 1], 80)), SocketAddr::from(([10, 96, 0, 2], 80)));
    let none = SocketAddr::from(([10, 96, 0, 3], 80));
    rig.mesh.services.extend([
        Service::new("tunnelled", tunnelled, "", HTTP).backends(&["gone", "shop"]),
        Service::new("plain", plain, "", HTTP).backends(&["bare", "open"]),
        Service::new("none", none, "gone", HTTP),
    ]);
    rig.publish();
    let _servers = ["shop", "open"].map(|pod| Server::http(&rig.lab, rig.pod(pod), HTTP).unwrap());
    for (target, name) in [(tunnelled, "shop"), (plain, "open")] {
        let before = rig.counter(0, "retries");
        let mut tries = 0;
        // Who is first is chance.
        while rig.counter(0, "retries") < before + 5 {
            tries += 1;
            assert!(tries < TRIES_MAX, "{name} was always the first");
            let answer = requests::one(rig.netns("web"), target).unwrap();
            assert!(answer.starts_with(&format!("{name} answers ")), "{answer}");
        }
    }
    assert_eq!(rig.counter(0, "closed_connect_failed"), 0);
    // Where there is no other one, the failure is told as it is.
    assert!(requests::one(rig.netns("web"), none).is_err());
    rig.await_counted(0, "closed_connect_failed", 0);
    assert_eq!(rig.counter(0, "closed_no_healthy_upstream"), 0);
}

#[test]
fn series_of_workloads_that_left_the_mesh_expire_and_others_stay() {
    const OPENED: &str = "istio_tcp_connections_opened_total";
    let expiry = with_variables(&[("HALO_METRICS_EXPIRY", "1s")]);
    let mut rig = Rig::played(&["shop", "bank"], expiry, &["web", "shop", "bank"], &[]);
    let _servers = ["shop", "bank"].map(|pod| Server::http(&rig.lab, rig.pod(pod), HTTP).unwrap());
    let opened = |rig: &Rig, node: usize, pod: &str| {
        observe::total(&rig.proxies[node], OPENED, &[("destination_workload", pod)])
    };
    for pod in ["shop", "bank"] {
        await_answered(&rig, "web", pod);
        for node in 0..2 {
            wait_for("a series of it", SOON, || match opened(&rig, node, pod) {
                Some(_) => Ok(()),
                None => Err(rig.proxies[node].metrics().unwrap()),
            })
            .unwrap();
        }
    }
    rig.mesh.forget("shop");
    rig.mesh.publish().unwrap();
    for node in 0..2 {
        wait_for("the series of the lost workload expiring", SOON, || match opened(&rig, node, "shop") {
            None => Ok(()),
            total => Err(format!("{total:?}")),
        })
        .unwrap();
        let page = rig.proxies[node].metrics().unwrap();
        assert!(!page.contains("destination_workload=\"shop\""), "{page}");
        // It has been idle for as long, and is still in the mesh.
        assert!(opened(&rig, node, "bank") >= Some(1.0));
    }
}
