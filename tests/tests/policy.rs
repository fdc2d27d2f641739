//! Policies decide about connections, new and open, by who the client is proven to be.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpStream;

use halo::lab::client::Server;
use halo::lab::mesh::{Action, Policy};
use halo::lab::node::NodeOptions;
use halo::lab::process::wait_for;
use halo::lab::topology::NodePlan;
use halo_tests::rig::SOON;
use halo_tests::socket::{self, End};
use halo_tests::{Rig, requests};

const HTTP: u16 = 8080;
const RAW: u16 = 9000;

/// `web`, `intruder` and `shop` are enrolled; `plain` is a pod outside the mesh.
fn rig() -> Rig {
    let plan = [NodePlan::new("node-a", &["web", "intruder", "plain"]), NodePlan::new("node-b", &["shop"])];
    Rig::with_enrolled(&plan, NodeOptions::default(), &["web", "intruder", "shop"])
}

fn policy(action: Action, client: &str) -> Policy {
    Policy {
        name: format!("{action:?}-{client}").to_lowercase(),
        action,
        pod: "shop".into(),
        clients: vec![client.into()],
    }
}

/// Waits until a request from the pod is answered, or until it is refused.
fn await_answered(rig: &Rig, pod: &str, answered: bool) {
    let target = rig.address("shop", HTTP);
    let what = format!("{pod} being {}", if answered { "answered" } else { "refused" });
    wait_for(&what, SOON, || {
        let answer = requests::one(rig.netns(pod), target);
        if answer.is_ok() == answered { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .unwrap();
}

fn answered(rig: &Rig, pod: &str) {
    requests::one(rig.netns(pod), rig.address("shop", HTTP)).unwrap_or_else(|error| panic!("{pod}: {error}"));
}

fn refused(rig: &Rig, pod: &str) {
    let answer = requests::one(rig.netns(pod), rig.address("shop", HTTP));
    assert!(answer.is_err(), "{pod} was answered: {answer:?}");
}

#[test]
fn deny_keeps_one_identity_out_and_allow_lets_only_one_in() {
    let mut rig = rig();
    let _server = Server::http(&rig.lab, rig.pod("shop"), HTTP).unwrap();
    for pod in ["web", "intruder", "plain"] {
        answered(&rig, pod);
    }
    rig.mesh.policies = vec![policy(Action::Deny, "intruder")];
    rig.mesh.publish().unwrap();
    await_answered(&rig, "intruder", false);
    answered(&rig, "web");
    answered(&rig, "plain");
    rig.mesh.policies = vec![policy(Action::Allow, "intruder")];
    rig.mesh.publish().unwrap();
    await_answered(&rig, "intruder", true);
    refused(&rig, "web");
    refused(&rig, "plain");
    rig.mesh.policies = vec![policy(Action::Allow, "web"), policy(Action::Deny, "web")];
    rig.mesh.publish().unwrap();
    await_answered(&rig, "intruder", false);
    refused(&rig, "web");
    rig.mesh.policies.clear();
    rig.mesh.publish().unwrap();
    for pod in ["web", "intruder", "plain"] {
        await_answered(&rig, pod, true);
    }
}

/// A connection from the pod to the raw port of `shop` with a byte each way behind it: both ends.
fn open(rig: &Rig, pod: &str, listener: &std::net::TcpListener) -> (TcpStream, TcpStream) {
    let mut client = socket::connect(rig.netns(pod), rig.address("shop", RAW)).unwrap();
    client.write_all(b"?").unwrap();
    let mut server = socket::accept(listener).unwrap();
    let mut byte = [0];
    server.read_exact(&mut byte).unwrap();
    server.write_all(b"!").unwrap();
    client.read_exact(&mut byte).unwrap();
    (client, server)
}

#[test]
fn policy_change_resets_the_open_connections_that_it_forbids_and_no_others() {
    let mut rig = rig();
    let listener = socket::listen(rig.netns("shop"), RAW);
    let (mut client, mut server) = open(&rig, "intruder", &listener);
    let (mut plain_client, mut plain_server) = open(&rig, "plain", &listener);
    let (mut web_client, mut web_server) = open(&rig, "web", &listener);
    let before = rig.counter(1, "closed_policy_change");
    rig.mesh.policies = vec![policy(Action::Deny, "intruder")];
    rig.mesh.publish().unwrap();
    assert_eq!((socket::end_of(&mut client), socket::end_of(&mut server)), (End::Reset, End::Reset));
    rig.await_counted(1, "closed_policy_change", before);
    rig.mesh.policies = vec![policy(Action::Allow, "web")];
    rig.mesh.publish().unwrap();
    let ends = (socket::end_of(&mut plain_client), socket::end_of(&mut plain_server));
    assert_eq!(ends, (End::Reset, End::Reset));
    let mut byte = [0];
    web_client.write_all(b"+").unwrap();
    web_server.read_exact(&mut byte).unwrap();
    web_server.write_all(b"-").unwrap();
    web_client.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"-");
}

#[test]
fn plaintext_passes_without_a_policy_and_not_where_identity_is_required() {
    let mut rig = rig();
    let _server = Server::http(&rig.lab, rig.pod("shop"), HTTP).unwrap();
    let body = requests::one(rig.netns("plain"), rig.address("shop", HTTP)).unwrap();
    let source = rig.pod("plain").address.to_string();
    assert!(body.contains(&format!(" {source}:")), "the server does not see the client's address: {body}");
    rig.mesh.strict.insert("shop".into());
    rig.mesh.publish().unwrap();
    await_answered(&rig, "plain", false);
    answered(&rig, "web");
    rig.mesh.strict.clear();
    rig.mesh.publish().unwrap();
    await_answered(&rig, "plain", true);
}
