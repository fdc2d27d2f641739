//! Destinations that are not where they seem: on another network behind a gateway, on the node's own network, or
//! somewhere that only a host name tells. Envoy is the gateway: it takes the outer tunnel and passes on the inner.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use halo::lab::client::Server;
use halo::lab::mesh::{Action, NAMESPACE, Policy, Service, fields, spiffe_id};
use halo::lab::node::NodeOptions;
use halo::lab::process::wait_for;
use halo::lab::topology::{NodePlan, Pod};
use halo_tests::envoy;
use halo_tests::names::NameServer;
use halo_tests::names::wire::Record;
use halo_tests::pair::HTTP;
use halo_tests::rig::SOON;
use halo_tests::{Rig, observe, requests};
use serde_json::json;

const HBONE: u16 = 15008;
const VIP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 1)), 80);
const AUTHORITY: &str = "remote.demo.svc.cluster.local:80";

fn options() -> NodeOptions {
    let (name, value) = observe::JSON_LOG;
    NodeOptions { environment: vec![(name.into(), value.into())], ..NodeOptions::default() }
}

/// `client` on the network `near`, `gate` and `shop` on the network `far`. The near node has no way to `shop`, only to
/// `gate`. The service `remote` is `shop`'s.
fn rig() -> Rig {
    let plan = [NodePlan::new("node-a", &["client"]), NodePlan::new("node-b", &["shop", "gate"])];
    let mut rig = Rig::build(&plan, options());
    for (node, network) in [("node-a", "near"), ("node-b", "far")] {
        rig.options.of_node.insert(node.into(), vec![("NETWORK".into(), network.into())]);
    }
    rig.mesh.set("client", fields::text("network", "near"));
    rig.mesh.set("gate", fields::text("network", "far"));
    rig.mesh.set("shop", fields::text("network", "far"));
    rig.mesh.enrolled.insert("gate".into());
    let shop = rig.pod("shop").clone();
    rig.topology.hide(&shop).unwrap();
    rig.mesh.services.push(remote(&spiffe_id("shop")));
    rig
}

/// The service on both networks, whose servers must prove this identity.
fn remote(identity: &str) -> Service {
    Service::new("remote", VIP, "shop", HTTP)
        .with(fields::vips(&["near/10.96.0.1", "far/10.96.0.1"]))
        .with(fields::subject_alt_names(&[identity.into()]))
}

fn by_address(rig: &mut Rig) {
    let gate = format!("far/{}", rig.pod("gate").address);
    rig.mesh.set("shop", fields::network_gateway(&gate, HBONE));
}

fn start(rig: &mut Rig) -> Server {
    rig.start_with(&["client", "shop"]);
    envoy::gateway(rig, "gate", &[(AUTHORITY.into(), "shop")]);
    Server::http(&rig.lab, rig.pod("shop"), HTTP).unwrap()
}

/// A request that goes through the gateway: both nodes know who the other end is.
fn assert_through(rig: &Rig) {
    let answer = requests::await_answer(rig.netns("client"), VIP);
    let seen = format!("shop answers {}:", rig.pod("gate").address);
    assert!(answer.text().starts_with(&seen), "{}", answer.text());
    let (client_id, shop_id) = (spiffe_id("client"), spiffe_id("shop"));
    let both = [
        ("src.workload", "client"),
        ("src.identity", &*client_id),
        ("dst.workload", "shop"),
        ("dst.identity", &*shop_id),
        ("dst.service", "remote.demo.svc.cluster.local"),
        ("dst.hbone_addr", AUTHORITY),
    ];
    let gate = rig.address("gate", HBONE).to_string();
    let outbound = [("direction", "outbound"), ("dst.addr", &*gate)];
    observe::access(&rig.proxies[0], "connection complete", &[&both[..], &outbound].concat());
    observe::access(
        &rig.proxies[1],
        "connection complete",
        &[&both[..], &[("direction", "inbound")]].concat(),
    );
    for (node, reporter) in [(0, "source"), (1, "destination")] {
        let labels = [
            ("reporter", reporter),
            ("source_workload", "client"),
            ("source_principal", &*client_id),
            ("destination_workload", "shop"),
            ("destination_service", "remote.demo.svc.cluster.local"),
            ("connection_security_policy", "mutual_tls"),
        ];
        let opened = observe::total(&rig.proxies[node], "istio_tcp_connections_opened_total", &labels);
        assert!(opened.is_some(), "{reporter}: {}", rig.proxies[node].metrics().unwrap());
    }
}

#[test]
fn double_hbone1_reaches_another_network_through_a_gateway_by_its_address() {
    let mut rig = rig();
    by_address(&mut rig);
    let _server = start(&mut rig);
    assert_through(&rig);
    // Who asks is proven end to end, so the far end may refuse it.
    rig.mesh.policies.push(Policy {
        name: "no-client".into(),
        action: Action::Deny,
        pod: "shop".into(),
        clients: vec!["client".into()],
    });
    rig.publish();
    assert!(requests::one(rig.netns("client"), VIP).is_err());
    rig.await_counted(1, "closed_policy_deny", 0);
}

#[test]
fn double_hbone2_reaches_another_network_through_a_gateway_by_its_service() {
    let mut rig = rig();
    let gate = SocketAddr::from(([10, 96, 0, 2], 15009));
    let service =
        Service::new("gate", gate, "gate", HBONE).with(fields::vips(&["near/10.96.0.2", "far/10.96.0.2"]));
    let key = service.key();
    rig.mesh.services.push(service);
    rig.mesh.set("shop", fields::network_gateway(&key, 15009));
    let _server = start(&mut rig);
    assert_through(&rig);
}

/// No request is answered, and the reason is in the end who is there: until the gateway is, it may be another one.
fn refused_for_the_identity(rig: &Rig, before: u64) {
    let refused = wait_for("a refusal for the identity", SOON, || {
        assert!(requests::one(rig.netns("client"), VIP).is_err());
        match rig.counter(0, "closed_peer_identity") {
            total if total > before => Ok(()),
            total => Err(format!("{total}; {:?}", rig.dump(0).shards)),
        }
    });
    refused.unwrap();
}

#[test]
fn double_hbone_accepts_no_server_but_the_service_s_own() {
    let mut rig = rig();
    by_address(&mut rig);
    rig.mesh.services = vec![remote(&spiffe_id("bank"))];
    let _server = start(&mut rig);
    refused_for_the_identity(&rig, 0);
    // The other way round: the right name in front of a gateway that is not who it should be.
    rig.mesh.services = vec![remote(&spiffe_id("shop"))];
    rig.mesh.set("gate", fields::text("serviceAccount", "somebody-else"));
    rig.publish();
    let before = rig.counter(0, "closed_peer_identity");
    refused_for_the_identity(&rig, before);
    rig.mesh.set("gate", fields::text("serviceAccount", "gate"));
    rig.publish();
    assert_through(&rig);
}

#[test]
fn endpoint_on_another_network_without_a_gateway_is_no_endpoint() {
    let mut rig = rig();
    let _server = start(&mut rig);
    assert!(requests::one(rig.netns("client"), VIP).is_err());
    let line = observe::access(&rig.proxies[0], "connection failed", &[("direction", "outbound")]);
    assert!(line["error"].as_str().unwrap_or_default().starts_with("no healthy upstream:"), "{line}");
}

/// The second node itself, as a place for programs.
fn second_node(rig: &Rig) -> Pod {
    let node = &rig.topology.nodes[1];
    Pod {
        name: "outside".into(),
        netns: node.netns.clone(),
        address: node.address,
        addresses: node.addresses,
        ..rig.pod("shop").clone()
    }
}

/// A workload beside the pods, behind the service `remote`.
fn beside(name: &str) -> serde_json::Value {
    json!({
        "uid": format!("Kubernetes//Pod/{NAMESPACE}/{name}"),
        "name": name,
        "namespace": NAMESPACE,
        "serviceAccount": name,
        "workloadName": name,
        "workloadType": "pod",
        "canonicalName": name,
        "workloadIps": [],
        "services": {"demo/remote.demo.svc.cluster.local": {"80": HTTP}},
    })
}

fn plain_rig() -> Rig {
    let plan = [NodePlan::new("node-a", &["client"]), NodePlan::new("node-b", &["shop", "names"])];
    let mut rig = Rig::build(&plan, options());
    rig.mesh.services.push(Service::new("remote", VIP, "nobody", HTTP));
    rig
}

#[test]
fn host_network_workload_is_an_endpoint_and_its_address_is_no_workload_s() {
    let mut rig = plain_rig();
    let host = second_node(&rig);
    let mut workload = beside("agent");
    workload["workloadIps"] = json!([host.address]);
    workload["networkMode"] = json!("HostNetwork");
    rig.mesh.extra.workloads.push(workload);
    rig.start_with(&["client", "shop"]);
    let _server = Server::http(&rig.lab, &host, HTTP).unwrap();
    requests::await_answer(rig.netns("client"), VIP);
    let fields = [("dst.workload", "agent"), ("dst.service", "remote.demo.svc.cluster.local")];
    observe::access(&rig.proxies[0], "connection complete", &fields);
    let target = SocketAddr::from((host.address, HTTP));
    requests::one(rig.netns("client"), target).unwrap();
    let fields = [("direction", "outbound"), ("dst.addr", &*target.to_string())];
    let told = observe::access(&rig.proxies[0], "connection complete", &fields);
    assert!(told["dst.service"].is_null() || told["dst.workload"] == "agent", "{told}");
    let unknown =
        [("destination_workload", "unknown"), ("destination_service", "unknown"), ("reporter", "source")];
    assert!(observe::total(&rig.proxies[0], "istio_tcp_connections_opened_total", &unknown).is_some());
}

#[test]
fn hostname_endpoint_is_found_by_dns_and_counted() {
    let mut rig = plain_rig();
    let mut workload = beside("outside");
    workload["hostname"] = json!("outside.example");
    rig.mesh.extra.workloads.push(workload);
    let resolver = rig.lab.dir().join("resolv.conf");
    std::fs::write(&resolver, format!("nameserver {}\n", rig.pod("names").address)).unwrap();
    rig.options.resolver = Some(resolver);
    let address = Record::Address(rig.pod("shop").address);
    let names = NameServer::start(rig.netns("names"), &[("outside.example", address)]);
    rig.start_with(&["client"]);
    let _server = Server::http(&rig.lab, rig.pod("shop"), HTTP).unwrap();
    let answer = requests::await_answer(rig.netns("client"), VIP);
    assert!(answer.text().starts_with("shop answers "), "{}", answer.text());
    assert!(names.asked("outside.example", halo_tests::names::wire::Kind::A) > 0);
    let fields = [("dst.workload", "outside"), ("dst.addr", &*rig.address("shop", HTTP).to_string())];
    observe::access(&rig.proxies[0], "connection complete", &fields);
    let labels = [("hostname", "outside.example"), ("source_workload", "client")];
    assert!(observe::total(&rig.proxies[0], "istio_on_demand_dns_total", &labels) >= Some(1.0));
}
