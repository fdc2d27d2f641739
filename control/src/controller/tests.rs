//! A controller as its clients meet it: over TLS, by clients of another implementation.

mod client;

use std::fs;
use std::time::Instant;

use rcgen::{CertificateParams, KeyPair};
use tonic::Code;

use super::*;
use crate::testing::DEADLINE;
use client::{Rig, within};

fn mesh(names: &[&str]) -> String {
    let item = |name: &&str| {
        format!(
            "- {{name: {name}, namespace: a, serviceAccount: sa-{name}, node: node-1, workloadIps: [10.0.0.1]}}\n"
        )
    };
    format!("workloads:\n{}", names.iter().map(item).collect::<String>())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_file_says_reaches_a_subscriber_and_so_does_every_change() {
    let rig = Rig::start(&mesh(&["one"])).await;
    let mut stream = rig.client("node-token").subscribe(&[]).await.unwrap();
    assert_eq!(stream.next().await, (vec!["one//Pod/a/one".to_owned()], vec![]));
    let edited = Instant::now();
    rig.replace(&mesh(&["two"]));
    let change = stream.next().await;
    println!("from edit to receipt: {:?}", edited.elapsed());
    assert_eq!(change, (vec!["one//Pod/a/two".to_owned()], vec!["one//Pod/a/one".to_owned()]));
    rig.end().await;
}

#[tokio::test]
async fn a_subscriber_on_demand_gets_what_it_asks_for() {
    let rig = Rig::start(&mesh(&["one", "two"])).await;
    let mut stream = rig.client("node-token").subscribe(&["one//Pod/a/two"]).await.unwrap();
    assert_eq!(stream.next().await, (vec!["one//Pod/a/two".to_owned()], vec![]));
    stream.ask("a/none").await;
    assert_eq!(stream.next().await, (vec![], vec!["a/none".to_owned()]));
    rig.end().await;
}

#[tokio::test]
async fn whoever_shows_no_credentials_gets_nothing() {
    let rig = Rig::start(&mesh(&["one"])).await;
    for token in ["", "wrong-token"] {
        let refused = rig.client(token).subscribe(&[]).await.err().expect("the stream was let in");
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    }
    let metrics = rig.health("/metrics").await;
    assert!(metrics.contains("halo_controller_auth_failures_total{reason=\"missing\"} 1"), "{metrics}");
    assert!(metrics.contains("halo_controller_auth_failures_total{reason=\"unknown\"} 1"), "{metrics}");
    rig.end().await;
}

#[tokio::test]
async fn a_node_gets_certificates_for_its_workloads_by_its_token_and_what_it_got_counts_for_discovery_only() {
    let rig = Rig::start(&mesh(&["one"])).await;
    rig.ready().await;
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let mut node = rig.client("node-token");
    let there = node.certificate(&csr, "spiffe://cluster.local/ns/a/sa/sa-one").await.unwrap();
    let elsewhere = node.certificate(&csr, "spiffe://cluster.local/ns/a/sa/sa-two").await.unwrap_err();
    assert_eq!(elsewhere.code(), Code::PermissionDenied, "{elsewhere}");
    let mut peer = rig.client_with(&there[0], &key);
    let mut stream = peer.subscribe(&[]).await.unwrap();
    assert_eq!(stream.next().await.0, ["one//Pod/a/one"]);
    let other = peer.certificate(&csr, "spiffe://cluster.local/ns/a/sa/sa-one").await.unwrap_err();
    assert_eq!(other.code(), Code::Unauthenticated, "{other}");
    let metrics = rig.health("/metrics").await;
    assert!(metrics.contains("halo_controller_certificates_issued_total 1"), "{metrics}");
    assert!(metrics.contains("halo_controller_subscribers{type=\"address\"} 1"), "{metrics}");
    rig.end().await;
}

#[tokio::test]
async fn a_wrong_file_changes_nothing_and_readiness_says_what_is_wrong() {
    let rig = Rig::start("workloads:\n- colour: red\n").await;
    let said = rig.health_where(|text| text.contains("colour")).await;
    assert!(said.contains("500") && said.contains("line 2, workloads[0].colour: "), "{said}");
    let mut stream = rig.client("node-token").subscribe(&[]).await.unwrap();
    rig.replace(&mesh(&["one"]));
    rig.ready().await;
    assert_eq!(stream.next().await.0, ["one//Pod/a/one"]);
    rig.replace("workloads: 7\n");
    let said = rig.health_where(|text| text.contains("refused")).await;
    assert!(
        said.contains("200") && said.contains("generation 1 stays in force: line 1, workloads: "),
        "{said}"
    );
    rig.replace(&mesh(&["one", "two"]));
    assert_eq!(stream.next().await.0, ["one//Pod/a/two"]);
    rig.health_where(|text| !text.contains("refused")).await;
    rig.end().await;
}

#[tokio::test]
async fn nonsense_ends_its_own_stream_and_no_other() {
    let rig = Rig::start(&mesh(&["one"])).await;
    let mut client = rig.client("node-token");
    let mut good = client.subscribe(&[]).await.unwrap();
    let mut bad = client.subscribe(&[]).await.unwrap();
    bad.ask(&"k".repeat(10_000)).await;
    let end = bad.end().await;
    assert_eq!(end.code(), Code::InvalidArgument, "{end}");
    assert_eq!(good.next().await.0, ["one//Pod/a/one"]);
    let unknown = client.call("/istio.v1.auth.Other/Call").await;
    assert_eq!(unknown.code(), Code::Unimplemented, "{unknown}");
    rig.end().await;
}

#[tokio::test]
async fn a_connection_has_a_few_discovery_streams_and_a_new_one_when_one_has_ended() {
    let rig = Rig::start(&mesh(&["one"])).await;
    let mut client = rig.client("node-token");
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(client.subscribe(&[]).await.unwrap());
    }
    let refused = client.subscribe(&[]).await.err().expect("there is no limit");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let mut ending = streams.pop().unwrap();
    ending.ask(&"k".repeat(10_000)).await;
    ending.end().await;
    let mut next = client.subscribe(&[]).await.unwrap();
    assert_eq!(next.next().await.0, ["one//Pod/a/one"]);
    rig.end().await;
}

#[tokio::test]
async fn whoever_shows_nothing_takes_few_places_and_leaves_them_once_let_in() {
    let rig = Rig::start(&mesh(&["one"])).await;
    let mut streams = Vec::new();
    // Those that were let in do not count.
    for _ in 0..3 {
        streams.push(rig.client("node-token").subscribe(&[]).await.unwrap());
    }
    let mut idle = Vec::new();
    for _ in 0..65 {
        idle.push(rig.connect().await);
    }
    within(async {
        while !rig.health("/metrics").await.contains("halo_controller_newcomers_refused_total 1\n") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    drop(idle);
    rig.client_let_in().await;
    rig.end().await;
}

#[tokio::test]
async fn a_stream_ends_with_the_certificate_that_let_it_in() {
    let rig = Rig::start(&mesh(&["one"])).await;
    rig.ready().await;
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let mut node = rig.client("node-token");
    let asked = node.certificate_for(&csr, "spiffe://cluster.local/ns/a/sa/sa-one", 3);
    let chain = asked.await.unwrap();
    let mut stream = rig.client_with(&chain[0], &key).subscribe(&[]).await.unwrap();
    assert_eq!(stream.next().await.0, ["one//Pod/a/one"]);
    let end = stream.end().await;
    assert_eq!(end.code(), Code::Unavailable, "{end}");
    let metrics = rig.health("/metrics").await;
    assert!(metrics.contains("halo_controller_streams_lost_total{reason=\"age\"} 1"), "{metrics}");
    rig.end().await;
}

#[tokio::test]
async fn shutting_down_ends_streams_and_says_so() {
    let rig = Rig::start(&mesh(&["one"])).await;
    let mut stream = rig.client("node-token").subscribe(&[]).await.unwrap();
    stream.next().await;
    rig.end().await;
    let end = stream.end().await;
    assert_eq!((end.code(), end.message()), (Code::Unavailable, "the control plane is shutting down"));
}

#[tokio::test]
async fn without_credentials_only_loopback_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let config = ControllerConfig {
        listen: "0.0.0.0:0".parse().unwrap(),
        credentials: Credentials::None,
        ..client::config(folder.path())
    };
    let refused = within(run(config, std::future::pending::<()>())).await.unwrap_err();
    assert!(matches!(refused, ControllerError::Open { .. }), "{refused}");
}

#[tokio::test]
async fn a_name_that_no_certificate_can_carry_stops_the_start() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("mesh.yaml"), mesh(&[])).unwrap();
    let config = ControllerConfig {
        server_names: vec!["not a name".into()],
        credentials: Credentials::None,
        ..client::config(folder.path())
    };
    let refused = within(run(config, std::future::pending::<()>())).await.unwrap_err();
    assert!(refused.to_string().contains("\"not a name\" is neither a DNS name"), "{refused}");
}
