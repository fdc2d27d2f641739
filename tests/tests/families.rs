//! The main scenarios where pods have IPv6 alone, or both families.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use halo::lab::capture::Capture;
use halo::lab::client::Server;
use halo::lab::mesh::{Action, Policy, Service, fields, spiffe_id};
use halo::lab::node::NodeOptions;
use halo::lab::topology::{Families, LINK, NodePlan};
use halo_tests::envoy::{self, VIA};
use halo_tests::pair::HTTP;
use halo_tests::{Rig, requests};
use serde_json::json;

const HBONE: u16 = 15008;
const SERVERS: [&str; 2] = ["shop", "outside"];

fn vip_v4(nth: u8) -> SocketAddr {
    ([10, 96, 0, nth], 80).into()
}

fn vip_v6(nth: u16) -> SocketAddr {
    (Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, nth), 80).into()
}

/// A service with an address in each family of the rig.
fn service(families: Families, name: &str, nth: u8, backend: &str) -> Service {
    let v6 = Service::new(name, vip_v6(nth.into()), backend, HTTP);
    if families == Families::Dual { v6.vip(vip_v4(nth).ip()) } else { v6 }
}

/// `client` and `intruder` call; `plain` and `outside` are not in the mesh's capture. `shop` is enrolled, `way` is the
/// waypoint of the service `behind`, which is `shop`'s, as `front` is without one.
fn rig(families: Families) -> (Rig, [Server; 2]) {
    let plan = [
        NodePlan::new("node-a", &["client", "intruder", "plain"]),
        NodePlan::new("node-b", &["shop", "outside", "way"]),
    ];
    let mut rig = Rig::build_with(&plan, NodeOptions::default(), families);
    rig.mesh.enrolled.insert("way".into());
    let waypoint = fields::waypoint(&format!("/{}", rig.pod("way").address), HBONE);
    rig.mesh.services =
        vec![service(families, "front", 1, "shop"), service(families, "behind", 2, "shop").with(waypoint)];
    rig.start_with(&["client", "intruder", "shop"]);
    let servers = SERVERS.map(|pod| Server::http(&rig.lab, rig.pod(pod), HTTP).unwrap());
    (rig, servers)
}

/// A request that is answered by `server`, which sees the client's own address; whether it crosses the link in a
/// tunnel.
fn crosses_in_a_tunnel(rig: &Rig, client: &str, (server, address): (&str, IpAddr)) -> bool {
    let capture = Capture::start(&rig.topology.nodes[0].netns, LINK, "answers").unwrap();
    let body = requests::one(rig.netns(client), (address, HTTP).into()).unwrap();
    let seen = capture.finish().unwrap();
    let shown: SocketAddr = body.split(' ').nth(2).unwrap().parse().unwrap();
    assert!(body.starts_with(&format!("{server} answers ")), "{body}");
    assert!(rig.pod(client).addresses.iter().any(|own| own == shown.ip()), "{body}");
    assert_eq!(shown.is_ipv4(), address.is_ipv4(), "{body}");
    assert_eq!((seen.gaps, seen.tunnels_without_tls), (0, 0), "{seen:?}");
    match (seen.markers, seen.tunnel_segments) {
        (0, 1..) => true,
        // A tunnel of an earlier request may still have a word to say.
        (1.., _) => false,
        _ => panic!("{seen:?}"),
    }
}

fn capture_and_not(rig: &Rig) {
    requests::await_answer(rig.netns("client"), rig.address("shop", HTTP));
    for (client, server, tunnelled) in
        [("client", "shop", true), ("client", "outside", false), ("plain", "shop", false)]
    {
        for address in rig.pod(server).addresses.iter() {
            assert_eq!(
                crosses_in_a_tunnel(rig, client, (server, address)),
                tunnelled,
                "{client} to {address}"
            );
        }
    }
}

fn services_and_waypoint(rig: &Rig, families: Families) {
    let vips = |nth: u8| [Some(vip_v6(nth.into())), (families == Families::Dual).then(|| vip_v4(nth))];
    for vip in vips(1).into_iter().flatten() {
        assert!(requests::one(rig.netns("client"), vip).unwrap().starts_with("shop answers "), "{vip}");
    }
    let fronts: Vec<_> =
        vips(2).into_iter().flatten().map(|vip| (vip.to_string(), &["shop"][..], HTTP)).collect();
    envoy::waypoint(rig, "way", &fronts);
    for vip in vips(2).into_iter().flatten() {
        let answer = requests::await_answer(rig.netns("client"), vip);
        assert_eq!(answer.header(VIA), Some("way"), "{vip}: {answer:?}");
    }
}

fn policy(rig: &mut Rig) {
    let target = rig.address("shop", HTTP);
    requests::one(rig.netns("intruder"), target).unwrap();
    rig.mesh.policies.push(Policy {
        name: "no-intruder".into(),
        action: Action::Deny,
        pod: "shop".into(),
        clients: vec!["intruder".into()],
    });
    rig.publish();
    requests::one(rig.netns("intruder"), target).unwrap_err();
    requests::one(rig.netns("client"), target).unwrap();
    let range = rig.pod("client").addresses.iter().last().unwrap();
    let condition = json!({"sourceIps": [format!("{range}/{}", if range.is_ipv4() { 32 } else { 128 })]});
    let by_address = Policy::document("no-client", halo::lab::mesh::Scope::Global, Action::Deny, &condition);
    rig.mesh.extra.policies.push(by_address);
    rig.publish();
    requests::one(rig.netns("client"), (range, HTTP).into()).unwrap_err();
    let shop = rig.pod("shop").addresses.iter().last().unwrap();
    requests::one(rig.netns("client"), (shop, HTTP).into()).unwrap_err();
}

fn main_scenarios(families: Families) {
    let (mut rig, _servers) = rig(families);
    capture_and_not(&rig);
    services_and_waypoint(&rig, families);
    policy(&mut rig);
}

#[test]
fn ipv6_alone_carries_capture_services_waypoints_and_policies() {
    main_scenarios(Families::V6);
}

#[test]
fn dual_stack_carries_capture_services_waypoints_and_policies_in_both_families() {
    main_scenarios(Families::Dual);
}

/// Another network behind a gateway, as in `networks.rs`.
fn double_hbone(families: Families) {
    let plan = [NodePlan::new("node-a", &["client"]), NodePlan::new("node-b", &["shop", "gate"])];
    let mut rig = Rig::build_with(&plan, NodeOptions::default(), families);
    for (node, network) in [("node-a", "near"), ("node-b", "far")] {
        rig.options.of_node.insert(node.into(), vec![("NETWORK".into(), network.into())]);
    }
    rig.mesh.set("client", fields::text("network", "near"));
    for pod in ["gate", "shop"] {
        rig.mesh.set(pod, fields::text("network", "far"));
    }
    rig.mesh.enrolled.insert("gate".into());
    let gate = rig.pod("gate").addresses.iter().last().unwrap();
    rig.mesh.set("shop", fields::network_gateway(&format!("far/{gate}"), HBONE));
    let shop = rig.pod("shop").clone();
    rig.topology.hide(&shop).unwrap();
    let vips = ["near", "far"].map(|network| format!("{network}/{}", vip_v6(1).ip()));
    let remote = Service::new("remote", vip_v6(1), "shop", HTTP);
    rig.mesh.services = vec![
        remote
            .with(fields::vips(&vips.each_ref().map(String::as_str)))
            .with(fields::subject_alt_names(&[spiffe_id("shop")])),
    ];
    rig.start_with(&["client", "shop"]);
    envoy::gateway(&rig, "gate", &[("remote.demo.svc.cluster.local:80".into(), "shop")]);
    let _server = Server::http(&rig.lab, rig.pod("shop"), HTTP).unwrap();
    let answer = requests::await_answer(rig.netns("client"), vip_v6(1));
    assert!(answer.text().starts_with("shop answers "), "{}", answer.text());
}

#[test]
fn ipv6_alone_reaches_another_network() {
    double_hbone(Families::V6);
}

#[test]
fn dual_stack_reaches_another_network_through_a_gateway_s_ipv6_address() {
    double_hbone(Families::Dual);
}

#[test]
fn caller_of_one_family_reaches_an_endpoint_of_the_other() {
    let plan = [NodePlan::new("node-a", &["client"]), NodePlan::new("node-b", &["shop"])];
    let mut rig = Rig::build(&plan, NodeOptions::default());
    rig.mesh.services.push(service(Families::Dual, "front", 1, "shop"));
    rig.start_with(&["client", "shop"]);
    let _server = Server::http(&rig.lab, rig.pod("shop"), HTTP).unwrap();
    requests::await_answer(rig.netns("client"), vip_v4(1));
    for only in rig.pod("shop").addresses.iter() {
        rig.mesh.set("shop", ("workloadIps", json!([only])));
        rig.publish();
        for vip in [vip_v4(1), vip_v6(1)] {
            let body = requests::one(rig.netns("client"), vip).unwrap();
            let shown: SocketAddr = body.split(' ').nth(2).unwrap().parse().unwrap();
            assert_eq!(shown.is_ipv4(), only.is_ipv4(), "{vip} to {only}: {body}");
        }
    }
}

#[test]
fn second_address_is_tried_when_the_first_fails() {
    let plan = [NodePlan::new("node-a", &["client"]), NodePlan::new("node-b", &["shop"])];
    let mut rig = Rig::build(&plan, NodeOptions::default());
    rig.mesh.services.push(service(Families::Dual, "front", 1, "shop"));
    rig.start_with(&["client", "shop"]);
    let _server = Server::http(&rig.lab, rig.pod("shop"), HTTP).unwrap();
    requests::await_answer(rig.netns("client"), vip_v4(1));
    // Over IPv4 nobody takes tunnels any more, and those that are there are cut.
    let rules = "add table ip broken; \
                 add chain ip broken input { type filter hook input priority 0; }; \
                 add rule ip broken input tcp dport 15008 reject with tcp reset";
    rig.netns("shop").command("nft", &[rules]).unwrap();
    for round in 0..3 {
        let body = requests::await_answer(rig.netns("client"), vip_v4(1)).text();
        assert!(body.contains(" [fd00:10:1::"), "round {round}: {body}");
    }
    // The first request may have met the tunnel that was cut; every later one is answered at once.
    for vip in [vip_v4(1), vip_v6(1)] {
        requests::one(rig.netns("client"), vip).unwrap();
    }
    rig.await_counted(0, "retries", 0);
}
