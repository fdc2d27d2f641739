//! The mesh over IPv6, end to end on each ring. Needs root and fails without it.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use halo::lab::Lab;
use halo::lab::capture::{Capture, Seen};
use halo::lab::client::{Client, Server};
use halo::lab::mesh::{Action, Mesh, Policy, spiffe_id};
use halo::lab::node::{NodeOptions, NodeProxy};
use halo::lab::pod::{Ask, Outcome};
use halo::lab::process::wait_for;
use halo::lab::topology::{LINK, NodePlan, Pod, Topology};

const MARKER: &str = "ipv6-marker-51c2";
const PORT: u16 = 8080;
const LIMIT: Duration = Duration::from_secs(15);
const ENROLLED: [&str; 3] = ["web", "intruder", "shop"];

/// Two nodes with their proxies. `web` and `intruder` call `shop`, all enrolled; `plain` and the node of `shop` are
/// not, and the mesh knows nothing of the node's address.
struct Rig {
    // Clients and servers end before the lab takes their namespaces away.
    clients: Vec<Client>,
    _servers: Vec<Server>,
    proxies: Vec<NodeProxy>,
    mesh: Mesh,
    topology: Topology,
    _lab: Lab,
}

impl Rig {
    fn new(ring: &str) -> Self {
        let lab = Lab::new(env!("CARGO_BIN_EXE_halo").into()).expect("this test needs root");
        let plan =
            [NodePlan::new("node-a", &["web", "intruder", "plain"]), NodePlan::new("node-b", &["shop"])];
        let topology = Topology::build(&lab, &plan).unwrap();
        let outside = outside(&topology);
        let servers =
            [topology.pod("shop").unwrap(), &outside].map(|pod| Server::http(&lab, pod, PORT).unwrap());
        let clients = ["web", "intruder", "plain"]
            .map(|name| Client::start(&lab, topology.pod(name).unwrap(), "client").unwrap());
        let mut mesh = Mesh::new(&lab.dir().join("mesh.yaml"), &topology);
        mesh.enrolled = ENROLLED.map(str::to_owned).into();
        mesh.publish().unwrap();
        let environment = vec![("HALO_RING".to_owned(), ring.to_owned())];
        let options = NodeOptions { environment, ..NodeOptions::default() };
        let start = |node| NodeProxy::start(&lab, node, &mesh, &options).unwrap();
        let proxies: Vec<_> = topology.nodes.iter().map(start).collect();
        proxies.iter().for_each(|proxy| proxy.wait_connected(LIMIT).unwrap());
        for pod in ENROLLED.map(|name| topology.pod(name).unwrap()) {
            proxies[pod.node].agent.enrol(pod, &pod.redirect()).unwrap();
        }
        proxies.iter().for_each(|proxy| proxy.wait_ready(LIMIT).unwrap());
        Self { clients: clients.into(), _servers: servers.into(), proxies, mesh, topology, _lab: lab }
    }

    fn client(&self, name: &str) -> &Client {
        let process = format!("{name}-client");
        self.clients.iter().find(|client| client.process.name() == process).unwrap()
    }

    /// A call over IPv6; its body when it was answered.
    fn call(&self, client: &str, server: &Pod) -> Result<String, String> {
        let ask = Ask::new((server.addresses.v6.unwrap(), PORT)).marker(MARKER);
        match self.client(client).get(&ask).unwrap() {
            Outcome::Answer { status: 200, body, .. } => Ok(body),
            other => Err(format!("{other:?}")),
        }
    }

    fn shop(&self) -> &Pod {
        self.topology.pod("shop").unwrap()
    }

    /// What crosses the link while `client` calls `server`, which must see the client's own address.
    fn crossing(&self, client: &str, server: &Pod) -> Seen {
        let source = IpAddr::from(self.topology.pod(client).unwrap().addresses.v6.unwrap());
        let capture = Capture::start(&self.topology.nodes[0].netns, LINK, MARKER).unwrap();
        let body = self.call(client, server).unwrap();
        let seen = capture.finish().unwrap();
        let shown = body.split(' ').nth(2).unwrap().parse::<SocketAddr>().unwrap();
        assert_eq!(shown.ip(), source, "{body}");
        assert_eq!(seen.gaps, 0, "{seen:?}");
        seen
    }
}

/// A program on the second node itself, whose address is in no mesh file.
fn outside(topology: &Topology) -> Pod {
    let node = &topology.nodes[1];
    Pod {
        name: "outside".into(),
        uid: "unused".into(),
        node: 1,
        netns: node.netns.clone(),
        address: node.address,
        addresses: node.addresses,
        dns_search: Vec::new(),
    }
}

/// An enrolled client and an enrolled server: TLS on 15008 and nothing else, with both identities.
fn tunnelled(rig: &Rig) {
    let seen = rig.crossing("web", rig.shop());
    assert_eq!((seen.markers, seen.other_segments, seen.tunnels_without_tls), (0, 0, 0), "{seen:?}");
    assert!(seen.tls13_handshakes > 0 && seen.older_handshakes == 0 && seen.data_records > 0, "{seen:?}");

    let (shop, client) = (rig.shop(), rig.client("web"));
    let ask = Ask::new((shop.addresses.v6.unwrap(), PORT));
    assert!(matches!(client.open("shown", &ask).unwrap(), Outcome::Answer { status: 200, .. }));
    let source = rig.topology.pod("web").unwrap().addresses.v6.unwrap();
    rig.proxies[1]
        .wait_dump("showing the call", LIMIT, |dump| {
            let call = dump.connections.iter().find(|call| call.pod == shop.uid);
            let call = call.ok_or_else(|| format!("{:?}", dump.connections))?;
            assert_eq!(call.source_identity, spiffe_id("web"));
            assert_eq!(call.destination_identity, spiffe_id("shop"));
            assert_eq!(call.source.parse::<SocketAddr>().unwrap().ip(), IpAddr::from(source));
            Ok(())
        })
        .unwrap();
    client.close("shown").unwrap();
}

/// A destination that the mesh does not know, and a client that is not enrolled.
fn plaintext(rig: &Rig) {
    let outside = outside(&rig.topology);
    for (client, server) in [("web", &outside), ("plain", rig.shop())] {
        let seen = rig.crossing(client, server);
        // The tunnel of an earlier request may still have a word to say.
        assert_eq!(seen.markers, 2, "{client}: {seen:?}");
    }
    let dump = |node: usize| rig.proxies[node].dump().unwrap().shards.remove(0).counters;
    assert_eq!(dump(0)["connections_outbound"], 3, "{}", dump(0));
    assert_eq!(dump(1)["connections_plaintext"], 1, "{}", dump(1));
}

/// A policy refuses one identity, and only that.
fn denied(rig: &mut Rig) {
    let shop = rig.shop().clone();
    rig.call("intruder", &shop).unwrap();
    rig.mesh.policies = vec![Policy {
        name: "no-intruder".into(),
        action: Action::Deny,
        pod: "shop".into(),
        clients: vec!["intruder".into()],
    }];
    rig.mesh.publish().unwrap();
    let refused = || rig.call("intruder", &shop).map_or_else(|_| Ok(()), Err);
    wait_for("the intruder being refused", LIMIT, refused).unwrap();
    // The first may have been cut in its middle; this one comes too late for that.
    rig.call("intruder", &shop).unwrap_err();
    rig.call("web", &shop).unwrap();
    let counters = &rig.proxies[1].dump().unwrap().shards[0].counters;
    assert!(counters["closed_policy_deny"].as_u64() > Some(0), "{counters}");
}

fn scenario(ring: &str) {
    let mut rig = Rig::new(ring);
    tunnelled(&rig);
    plaintext(&rig);
    denied(&mut rig);
}

#[test]
fn ipv6_is_carried_as_ipv4_is_on_io_uring() {
    scenario("io_uring");
}

#[test]
fn ipv6_is_carried_as_ipv4_is_on_epoll() {
    scenario("epoll");
}
