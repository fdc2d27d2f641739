//! Choices on the way of a connection: which endpoint, which keys and which version of TLS, and applications that say
//! themselves where they want to go.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};

use halo::lab::client::Server;
use halo::lab::mesh::{Service, fields};
use halo::lab::node::NodeOptions;
use halo::lab::process::wait_for;
use halo::lab::topology::NodePlan;
use halo_tests::pair::HTTP;
use halo_tests::rig::SOON;
use halo_tests::{Rig, requests, socket};

const VIP: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 1)), 80);
const HBONE: u16 = 15008;
const SHOPS: [&str; 3] = ["near", "far", "farther"];

fn with(variables: &[(&str, &str)]) -> NodeOptions {
    let environment = variables.iter().map(|&(name, value)| (name.into(), value.into())).collect();
    NodeOptions { environment, ..NodeOptions::default() }
}

/// `client` and `near` on one node, `far` and `farther` on the other; the three are the service's.
fn rig(service: Service) -> (Rig, Vec<Server>) {
    let plan = [NodePlan::new("node-a", &["client", "near"]), NodePlan::new("node-b", &["far", "farther"])];
    let mut rig = Rig::build(&plan, NodeOptions::default());
    rig.mesh.services.push(service.backends(&SHOPS));
    for (pod, zone) in [("client", "one"), ("near", "one"), ("far", "two"), ("farther", "three")] {
        rig.mesh.set(pod, fields::locality("region", zone, ""));
    }
    rig.start_with(&["client", "near", "far", "farther"]);
    let servers = SHOPS.map(|pod| Server::http(&rig.lab, rig.pod(pod), HTTP).unwrap());
    requests::await_answer(rig.netns("client"), VIP);
    (rig, servers.into())
}

fn shop() -> Service {
    Service::new("shop", VIP, "near", HTTP)
}

/// Who answers how many of `count` requests.
fn answers(rig: &Rig, count: usize) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    for _ in 0..count {
        let body = requests::one(rig.netns("client"), VIP).unwrap();
        *answers.entry(body.split(' ').next().unwrap().to_owned()).or_default() += 1;
    }
    answers
}

#[test]
fn capacity_is_the_share_of_an_endpoint() {
    let (mut rig, _servers) = rig(shop());
    for (pod, capacity) in [("near", 0), ("far", 1), ("farther", 3)] {
        rig.mesh.set(pod, ("capacity", capacity.into()));
    }
    rig.publish();
    let answers = answers(&rig, 200);
    // Of 200 with probability 1/4 each: 50, and 10 to 90 are six deviations around it.
    assert!((10..=90).contains(&answers["far"]) && !answers.contains_key("near"), "{answers:?}");
}

#[test]
fn strict_keeps_to_its_node_and_failover_leaves_it_when_nobody_is_left() {
    let (mut rig, _servers) = rig(shop().with(fields::load_balancer("Strict", &["Node"])));
    assert_eq!(answers(&rig, 20), BTreeMap::from([("near".into(), 20)]));
    rig.mesh.services =
        vec![shop().backends(&SHOPS).with(fields::load_balancer("Failover", &["Region", "Zone"]))];
    rig.publish();
    assert_eq!(answers(&rig, 20), BTreeMap::from([("near".into(), 20)]));
    rig.mesh.set("near", fields::text("status", "Unhealthy"));
    rig.publish();
    let rest = answers(&rig, 60);
    assert_eq!(rest.keys().collect::<Vec<_>>(), ["far", "farther"], "{rest:?}");
    rig.mesh.services = vec![shop().backends(&SHOPS).with(fields::load_balancer("Strict", &["Node"]))];
    rig.publish();
    requests::one(rig.netns("client"), VIP).unwrap_err();
    rig.await_counted(0, "closed_no_healthy_upstream", 0);
}

#[test]
fn passthrough_goes_to_the_address_as_it_is() {
    let (mut rig, _servers) = rig(shop());
    // The client's node translates it, as without a mesh.
    rig.topology.service(VIP, rig.address("far", HTTP)).unwrap();
    rig.mesh.services = vec![shop().backends(&SHOPS).with(fields::load_balancer("Passthrough", &[]))];
    let before = rig.counter(0, "tunnels_dialed");
    rig.publish();
    assert_eq!(answers(&rig, 20), BTreeMap::from([("far".into(), 20)]));
    assert_eq!(rig.counter(0, "tunnels_dialed"), before);
}

#[test]
fn endpoint_that_refuses_is_replaced_by_another_while_nothing_is_sent() {
    let (rig, mut servers) = rig(shop());
    let before = rig.counter(0, "retries");
    // Its application is gone; its node proxy answers 503.
    servers.remove(1).process.stop(SOON);
    assert!(!answers(&rig, 50).contains_key("far"));
    // Its node proxy is unreachable too.
    let rules = "add table inet broken; \
                 add chain inet broken input { type filter hook input priority 0; }; \
                 add rule inet broken input tcp dport 15008 reject with tcp reset";
    rig.netns("far").command("nft", &[rules]).unwrap();
    assert!(!answers(&rig, 50).contains_key("far"));
    rig.await_counted(0, "retries", before);
}

/// How OpenSSL's handshake with a node proxy ends; it shows no certificate, so that the best is being asked for one.
fn handshake(rig: &Rig, arguments: &[&str]) -> String {
    let target = rig.address("server", HBONE).to_string();
    let mut command = Command::new("timeout");
    let common =
        ["10", "openssl", "s_client", "-connect", &target, "-alpn", "h2", "-noservername", "-ign_eof"];
    command.args(common).args(arguments).stdin(Stdio::null());
    let output = rig.netns("plain").within(|| command.output()).unwrap().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn server_rig(variables: &[(&str, &str)]) -> Rig {
    let plan = [NodePlan::new("node-a", &["client", "plain"]), NodePlan::new("node-b", &["server"])];
    Rig::with_enrolled(&plan, with(variables), &["client", "server"])
}

#[test]
fn tls12_is_spoken_only_where_it_is_switched_on() {
    let text = handshake(&server_rig(&[]), &["-tls1_2"]);
    assert!(text.contains("protocol version"), "{text}");
    let rig = server_rig(&[("TLS12_ENABLED", "true")]);
    let text = handshake(&rig, &["-tls1_2"]);
    assert!(text.contains("Protocol  : TLSv1.2") && text.contains("Client Certificate Types"), "{text}");
    assert!(text.contains("ECDHE-ECDSA-AES"), "{text}");
    let text = handshake(&rig, &["-tls1_3"]);
    assert!(text.contains("TLSv1.3") && text.contains("certificate required"), "{text}");
}

#[test]
fn pqc_policy_refuses_keys_that_a_quantum_computer_finds_and_proxies_still_meet() {
    assert!(handshake(&server_rig(&[]), &["-groups", "X25519"]).contains("certificate required"));
    let rig = server_rig(&[("COMPLIANCE_POLICY", "pqc")]);
    let _server = Server::http(&rig.lab, rig.pod("server"), HTTP).unwrap();
    requests::await_answer(rig.netns("client"), rig.address("server", HTTP));
    assert!(rig.counter(0, "tunnels_dialed") > 0);
    let text = handshake(&rig, &["-groups", "X25519"]);
    assert!(text.contains("handshake failure") && !text.contains("certificate required"), "{text}");
}

#[test]
fn socks5_takes_hosts_and_addresses_where_it_is_switched_on() {
    let plan = [NodePlan::new("node-a", &["client"]), NodePlan::new("node-b", &["server"])];
    let mut rig = Rig::build(&plan, with(&[("UNSTABLE_ENABLE_SOCKS5", "true")]));
    rig.mesh.services.push(Service::new("shop", VIP, "server", HTTP));
    rig.start_with(&["client", "server"]);
    let _server = Server::http(&rig.lab, rig.pod("server"), HTTP).unwrap();
    let curl = |flag: &str, url: &str| {
        let arguments = ["--silent", "--show-error", "--max-time", "10", flag, "127.0.0.1:15080", url];
        rig.netns("client").command("curl", &arguments).map_err(|error| error.to_string())
    };
    wait_for("an answer by way of SOCKS5", SOON, || curl("--socks5", &format!("http://{VIP}/"))).unwrap();
    for (flag, host) in [
        ("--socks5-hostname", "shop.demo.svc.cluster.local".to_owned()),
        ("--socks5-hostname", "shop".to_owned()),
        ("--socks5", VIP.ip().to_string()),
        ("--socks5", rig.address("server", HTTP).to_string()),
    ] {
        let body = curl(flag, &format!("http://{host}/")).unwrap_or_else(|error| panic!("{host}: {error}"));
        assert!(body.starts_with("server answers "), "{host}: {body}");
    }
    curl("--socks5-hostname", "http://missing.example/").unwrap_err();
    assert!(rig.counter(0, "tunnels_dialed") > 0);
    let nobody = socket::connect(rig.netns("server"), (rig.pod("client").address, 15080).into());
    assert!(nobody.is_err() || socket::end_of(&mut nobody.unwrap()) != socket::End::Open);
}
