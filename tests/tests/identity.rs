//! Who is not proven is refused, and the refusal has a reason that the node proxy counts.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use halo::lab::client::Server;
use halo::lab::mesh::{Action, Policy, fields, spiffe_id};
use halo::lab::node::NodeOptions;
use halo::lab::topology::NodePlan;
use halo_tests::certs::{self, Leaf, Root};
use halo_tests::pair::{HTTP, Pair, RAW, await_answered};
use halo_tests::rig::SOON;
use halo_tests::socket::{self, End};
use halo_tests::{Rig, hbone, requests};
use http::Method;

const HBONE: u16 = 15008;
const SHOP: usize = 1;

/// `shop` is enrolled; `stranger` beside `web` is a pod outside the mesh from which raw peers dial.
fn rig() -> Rig {
    let plan = [NodePlan::new("node-a", &["web", "stranger"]), NodePlan::new("node-b", &["shop", "peer"])];
    Rig::with_enrolled(&plan, NodeOptions::default(), &["web", "shop"])
}

/// A CONNECT to the application of `shop`, from the stranger's namespace with this certificate.
fn knock(rig: &Rig, leaf: Option<&Leaf>) -> Result<u16, String> {
    let authority = rig.address("shop", HTTP).to_string();
    ask(rig, leaf, (Method::CONNECT, &authority))
}

fn ask(rig: &Rig, leaf: Option<&Leaf>, request: (Method, &str)) -> Result<u16, String> {
    hbone::request(rig.netns("stranger"), rig.address("shop", HBONE), leaf, request)
}

fn valid(rig: &Rig) -> Leaf {
    Root::of(&rig.ca()).unwrap().issue(&spiffe_id("stranger")).unwrap()
}

/// The peer is refused before any answer, and the node proxy counts it under `reason`.
fn refused_and_counted(rig: &Rig, leaf: Option<&Leaf>, reason: &str) {
    let before = rig.counter(SHOP, reason);
    let answer = knock(rig, leaf);
    assert!(answer.is_err(), "{reason}: {answer:?}");
    rig.await_counted(SHOP, reason, before);
}

#[test]
fn unproven_clients_are_refused_by_reason_and_a_proven_one_is_answered() {
    let rig = rig();
    let _server = Server::http(&rig.lab, rig.pod("shop"), HTTP).unwrap();
    assert_eq!(knock(&rig, Some(&valid(&rig))), Ok(200));
    refused_and_counted(&rig, None, "closed_peer_no_certificate");
    let foreign = Root::foreign().unwrap().issue(&spiffe_id("web")).unwrap();
    refused_and_counted(&rig, Some(&foreign), "closed_peer_bad_certificate");
    assert_eq!(knock(&rig, Some(&valid(&rig))), Ok(200));
}

#[test]
fn crl_inbound_terminates_existing_connections_on_revocation_and_rejects_new_ones() {
    let (rig, list) = revoking_rig("node-b");
    let _server = Server::http(&rig.lab, rig.pod("shop"), HTTP).unwrap();
    let listener = socket::listen(rig.netns("shop"), RAW);
    let pair = Pair::open(&rig, "web", "shop", &listener);
    let web = rig.dump(0).all["certificates"][0]["certChain"][0]["serialNumber"].clone();
    let root = Root::of(&rig.ca()).unwrap();
    let revoked = root.revoke(&[certs::serial(web.as_str().unwrap())]).unwrap();
    std::fs::write(&list, revoked).unwrap();
    assert_eq!(pair.ends(), (End::Reset, End::Reset));
    rig.await_counted(SHOP, "closed_cert_revoked", 0);
    assert!(requests::one(rig.netns("web"), rig.address("shop", HTTP)).is_err());
    assert_eq!(knock(&rig, Some(&valid(&rig))), Ok(200));
    // A list that is broken changes nothing, and one without entries takes everybody back.
    std::fs::write(&list, "-----BEGIN X509 CRL-----\nnonsense\n-----END X509 CRL-----\n").unwrap();
    halo::lab::process::wait_for("the broken list being told", SOON, || {
        let log = rig.proxies[SHOP].process.log_tail(50);
        if log.contains("crl.pem") && log.contains("stays in force") { Ok(()) } else { Err(log) }
    })
    .unwrap();
    assert!(requests::one(rig.netns("web"), rig.address("shop", HTTP)).is_err());
    std::fs::write(&list, root.revoke(&[]).unwrap()).unwrap();
    await_answered(&rig, "web", "shop");
}

/// Web and shop are enrolled, and the proxy of one node follows a revocation list.
fn revoking_rig(node: &str) -> (Rig, PathBuf) {
    let plan = [NodePlan::new("node-a", &["web", "stranger"]), NodePlan::new("node-b", &["shop", "peer"])];
    let mut rig = Rig::build(&plan, NodeOptions::default());
    let list = rig.lab.dir().join("crl.pem");
    std::fs::write(&list, "").unwrap();
    rig.options.of_node.insert(node.into(), vec![("CRL_PATH".into(), list.display().to_string())]);
    rig.start();
    rig.enrol(&["web", "shop"]);
    (rig, list)
}

#[test]
fn crl_outbound_terminates_existing_connections_on_revocation_and_rejects_new_ones() {
    let (rig, list) = revoking_rig("node-a");
    let _server = Server::http(&rig.lab, rig.pod("shop"), HTTP).unwrap();
    let listener = socket::listen(rig.netns("shop"), RAW);
    let pair = Pair::open(&rig, "web", "shop", &listener);
    let shop = rig.dump(SHOP).all["certificates"][0]["certChain"][0]["serialNumber"].clone();
    let root = Root::of(&rig.ca()).unwrap();
    std::fs::write(&list, root.revoke(&[certs::serial(shop.as_str().unwrap())]).unwrap()).unwrap();
    assert_eq!(pair.ends(), (End::Reset, End::Reset));
    rig.await_counted(0, "closed_cert_revoked", 0);
    assert!(requests::one(rig.netns("web"), rig.address("shop", HTTP)).is_err());
    std::fs::write(&list, root.revoke(&[]).unwrap()).unwrap();
    await_answered(&rig, "web", "shop");
}

#[test]
fn prefetch_forget_certs_follows_the_workloads_of_the_own_node() {
    let plan = [NodePlan::new("node-a", &["one", "two"]), NodePlan::new("node-b", &["far"])];
    let mut rig = Rig::build(&plan, NodeOptions::default());
    for pod in ["one", "two", "far"] {
        rig.mesh.set(pod, fields::text("serviceAccount", "shared"));
    }
    rig.start_controller();
    rig.start();
    let shared = [spiffe_id("shared")];
    let held = |rig: &Rig| rig.dump(0).certificates.iter().filter(|c| c.identity == shared[0]).count();
    rig.mesh.enrolled.insert("far".into());
    rig.publish();
    rig.proxies[1].wait_certificates(&shared, SOON).unwrap();
    assert_eq!(held(&rig), 0, "a certificate for a workload of another node");
    rig.mesh.enrolled.insert("one".into());
    rig.publish();
    let first = rig.proxies[0].wait_certificates(&shared, SOON).unwrap();
    rig.mesh.enrolled.insert("two".into());
    rig.publish();
    for gone in ["far", "one"] {
        rig.mesh.forget(gone);
        rig.publish();
        assert_eq!(rig.proxies[0].wait_certificates(&shared, SOON).unwrap(), first);
    }
    rig.mesh.forget("two");
    rig.publish();
    rig.proxies[0]
        .wait_dump("forgetting the certificate", SOON, |dump| {
            if dump.certificates.is_empty() { Ok(()) } else { Err(format!("{:?}", dump.certificates)) }
        })
        .unwrap();
}

#[test]
fn trust_domain_mismatch_rejected_on_both_sides() {
    let mut rig = rig();
    let _server = Server::http(&rig.lab, rig.pod("shop"), HTTP).unwrap();
    let elsewhere = Root::of(&rig.ca()).unwrap().issue("spiffe://elsewhere.example/ns/demo/sa/web").unwrap();
    refused_and_counted(&rig, Some(&elsewhere), "closed_peer_trust_domain");
    // The client believes that the server is of another domain: whoever is there is not that server.
    rig.mesh.set("peer", fields::text("trustDomain", "elsewhere.example"));
    rig.mesh.enrolled.insert("peer".into());
    rig.publish();
    let listener = socket::listen(rig.netns("peer"), HBONE);
    let local = Root::of(&rig.ca()).unwrap().issue(&spiffe_id("peer")).unwrap();
    let serving = thread::spawn(move || hbone::serve_once(&listener, &local));
    let mut stream = socket::connect(rig.netns("web"), rig.address("peer", HTTP)).unwrap();
    assert_eq!(socket::end_of(&mut stream), End::Reset);
    rig.await_counted(0, "closed_peer_trust_domain", 0);
    let _ = serving.join().unwrap();
}

#[test]
fn trust_domain_alias_counts_as_the_own_domain_for_tls_and_for_policies() {
    let plan = [NodePlan::new("node-a", &["web", "stranger"]), NodePlan::new("node-b", &["shop", "peer"])];
    let variable = ("TRUST_DOMAIN_ALIASES".to_owned(), "old.example".to_owned());
    let options = NodeOptions { environment: vec![variable], ..NodeOptions::default() };
    let mut rig = Rig::with_enrolled(&plan, options, &["web", "shop"]);
    let _server = Server::http(&rig.lab, rig.pod("shop"), HTTP).unwrap();
    let root = Root::of(&rig.ca()).unwrap();
    let old = root.issue("spiffe://old.example/ns/demo/sa/stranger").unwrap();
    assert_eq!(knock(&rig, Some(&old)), Ok(200));
    let elsewhere = root.issue("spiffe://elsewhere.example/ns/demo/sa/stranger").unwrap();
    refused_and_counted(&rig, Some(&elsewhere), "closed_peer_trust_domain");
    // A policy that names an account means it under its old name too.
    rig.mesh.policies.push(Policy {
        name: "no-stranger".into(),
        action: Action::Deny,
        pod: "shop".into(),
        clients: vec!["stranger".into()],
    });
    rig.publish();
    assert_eq!(knock(&rig, Some(&old)), Ok(401));
    // A server may still show its old name.
    rig.mesh.enrolled.insert("peer".into());
    rig.publish();
    let listener = socket::listen(rig.netns("peer"), HBONE);
    let leaf = root.issue("spiffe://old.example/ns/demo/sa/peer").unwrap();
    let serving = thread::spawn(move || hbone::serve_once(&listener, &leaf));
    let _stream = socket::connect(rig.netns("web"), rig.address("peer", HTTP)).unwrap();
    let heard = serving.join().unwrap().unwrap();
    assert!(heard.starts_with(b"PRI * HTTP/2.0"), "{heard:?}");
}

#[test]
fn openssl_without_a_certificate_gets_an_alert_and_nothing_else() {
    let rig = rig();
    let target = rig.address("shop", HBONE).to_string();
    let arguments = ["s_client", "-connect", &target, "-tls1_3", "-alpn", "h2", "-noservername", "-ign_eof"];
    let mut command = Command::new("timeout");
    command.args(["10", "openssl"]).args(arguments).stdin(Stdio::null());
    let output = rig.netns("stranger").within(|| command.output()).unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("ALPN protocol: h2") && text.contains("TLSv1.3"), "{text}");
    assert!(text.contains("certificate required"), "no alert: {text}");
    assert_ne!(output.status.code(), Some(0));
}

#[test]
fn requests_that_are_not_for_this_workload_get_their_status() {
    let mut rig = rig();
    let _server = Server::http(&rig.lab, rig.pod("shop"), HTTP).unwrap();
    let leaf = valid(&rig);
    let other = rig.address("peer", HTTP).to_string();
    assert_eq!(ask(&rig, Some(&leaf), (Method::CONNECT, &other)), Ok(400));
    let url = format!("https://{}/", rig.address("shop", HTTP));
    assert_eq!(ask(&rig, Some(&leaf), (Method::GET, &url)), Ok(400));
    let nobody = rig.address("shop", 1).to_string();
    assert_eq!(ask(&rig, Some(&leaf), (Method::CONNECT, &nobody)), Ok(503));
    rig.mesh.policies.push(Policy {
        name: "no-stranger".into(),
        action: Action::Deny,
        pod: "shop".into(),
        clients: vec!["stranger".into()],
    });
    let before = rig.counter(SHOP, "snapshots");
    rig.mesh.publish().unwrap();
    rig.await_counted(SHOP, "snapshots", before);
    assert_eq!(knock(&rig, Some(&leaf)), Ok(401));
    for reason in ["closed_not_for_us", "closed_not_connect", "closed_policy_deny"] {
        rig.await_counted(SHOP, reason, 0);
    }
}

#[test]
fn server_that_is_not_who_was_asked_for_gets_no_stream() {
    let mut rig = rig();
    rig.mesh.enrolled.insert("peer".into());
    rig.mesh.publish().unwrap();
    rig.await_adopted();
    let listener = socket::listen(rig.netns("peer"), HBONE);
    let impostor = Root::of(&rig.ca()).unwrap().issue(&spiffe_id("somebody-else")).unwrap();
    let serving = thread::spawn(move || hbone::serve_once(&listener, &impostor));
    let outcome =
        socket::connect(rig.netns("web"), rig.address("peer", HTTP)).map(|mut s| socket::end_of(&mut s));
    assert!(!matches!(outcome, Ok(End::Open)), "{outcome:?}");
    rig.await_counted(0, "closed_peer_identity", 0);
    // Whatever it heard, no request was in it: the client ends before its first stream.
    let heard = serving.join().unwrap().unwrap_or_default();
    let address = rig.address("peer", HTTP).to_string();
    assert!(!heard.windows(address.len()).any(|window| window == address.as_bytes()), "{heard:?}");
}

#[test]
fn service_without_endpoints_refuses_and_an_unknown_destination_passes() {
    let mut rig = rig();
    let empty = rig.service(90, "nobody", HTTP);
    let before = rig.counter(0, "closed_no_healthy_upstream");
    // Before the proxy knows the service its address is unknown, and passes to nowhere: also no answer.
    halo::lab::process::wait_for("the empty service being refused", SOON, || {
        let answer = requests::one(rig.netns("web"), empty);
        assert!(answer.is_err(), "{answer:?}");
        match rig.counter(0, "closed_no_healthy_upstream") {
            total if total > before => Ok(()),
            total => Err(format!("{total}, {answer:?}")),
        }
    })
    .unwrap();
    let dialed = rig.counter(0, "tunnels_dialed");
    let _server = Server::http(&rig.lab, rig.pod("peer"), HTTP).unwrap();
    let outside = Server::http(&rig.lab, &outside(&rig), 7000).unwrap();
    for target in [rig.address("peer", HTTP), (rig.topology.nodes[1].address, 7000).into()] {
        requests::one(rig.netns("web"), target).unwrap();
    }
    outside.process.ensure_running().unwrap();
    assert_eq!(rig.counter(0, "tunnels_dialed"), dialed);
}

/// The second node itself: the mesh knows nothing of it.
fn outside(rig: &Rig) -> halo::lab::topology::Pod {
    let node = &rig.topology.nodes[1];
    halo::lab::topology::Pod {
        name: "outside".into(),
        netns: node.netns.clone(),
        address: node.address,
        addresses: node.addresses,
        ..rig.pod("peer").clone()
    }
}
