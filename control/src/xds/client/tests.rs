mod server;

use std::net::IpAddr;
use std::sync::Arc;

use halo_core::net::NetworkAddress;
use halo_core::workload::Workload;
use halo_core::zds::{PodState, WorkloadInfo};

use self::server::{Server, Stream};
use super::*;
use crate::grpc::{Roots, Token, UpstreamConfig};
use crate::pods::PodView;
use crate::proto::discovery::{Any, DeltaDiscoveryResponse, Node, Resource};
use crate::testing::{DEADLINE, FakeShards, publisher};
use crate::wire;

struct Bench {
    shards: FakeShards,
    status: watch::Receiver<XdsStatus>,
    questions: mpsc::Sender<Question>,
    pods: watch::Sender<Pods>,
}

impl Bench {
    fn start(address: &str, on_demand: bool) -> Self {
        Self::start_with(address, on_demand, SILENCE_MAX)
    }

    fn start_with(address: &str, on_demand: bool, silence_max: Duration) -> Self {
        let shards = FakeShards::default();
        let (status, seen) = watch::channel(XdsStatus::default());
        let (questions, asked) = mpsc::channel(10);
        let (pods, enrolled) = watch::channel(Pods::default());
        let config = UpstreamConfig {
            address: address.into(),
            roots: Roots::System,
            alt_hostname: None,
            token: Token::None,
            client_certificate: None,
            cluster: "c1".into(),
            headers: vec![("x-extra".into(), "1".into())],
        };
        let setup = XdsSetup {
            upstream: Upstream::new(config),
            node: Node { id: "node".into(), ..Node::default() },
            on_demand,
            publisher: publisher(&shards),
            questions: asked,
            pods: enrolled,
            status,
            cluster: "c1".into(),
        };
        tokio::spawn(follow(setup, silence_max));
        Self { shards, status: seen, questions, pods }
    }

    async fn status_where(&mut self, holds: impl Fn(&XdsStatus) -> bool) -> XdsStatus {
        let found = tokio::time::timeout(DEADLINE, self.status.wait_for(|status| holds(status))).await;
        if let Some(status) = found.ok().map(|status| status.unwrap().clone()) {
            return status;
        }
        panic!("no such status in time; it is {:?}", self.status.borrow())
    }

    /// The uids of the workloads in force.
    fn uids(&self) -> Vec<Arc<str>> {
        let mut uids: Vec<_> =
            self.shards.published().workloads.iter().map(|workload| workload.uid.clone()).collect();
        uids.sort();
        uids
    }
}

fn workload(uid: &str, version: &str) -> Resource {
    let workload = Workload { uid: uid.into(), ..Workload::default() };
    resource(uid, version, &workload)
}

fn resource(name: &str, version: &str, workload: &Workload) -> Resource {
    Resource {
        name: name.into(),
        version: version.into(),
        resource: Some(Any { type_url: ADDRESS_TYPE.into(), value: wire::encode_workload(workload).into() }),
        aliases: vec![],
    }
}

fn push(nonce: &str, resources: Vec<Resource>) -> DeltaDiscoveryResponse {
    let (type_url, nonce) = (ADDRESS_TYPE.into(), nonce.into());
    DeltaDiscoveryResponse { type_url, nonce, resources, ..DeltaDiscoveryResponse::default() }
}

fn policies(nonce: &str) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse { type_url: AUTHORIZATION_TYPE.into(), ..push(nonce, vec![]) }
}

/// The first requests of a stream, of which the one for workloads is given.
async fn opened(stream: &mut Stream) -> DeltaDiscoveryRequest {
    let first = stream.request().await;
    assert_eq!((first.type_url.as_str(), first.node.clone().unwrap().id.as_str()), (ADDRESS_TYPE, "node"));
    let second = stream.request().await;
    assert_eq!((second.type_url.as_str(), second.node.is_some()), (AUTHORIZATION_TYPE, true));
    first
}

#[tokio::test]
async fn a_push_is_one_generation_and_in_force_before_its_ack() {
    let mut server = Server::start().await;
    let mut bench = Bench::start(&server.address(), false);
    let mut stream = server.stream().await;
    assert_eq!(stream.header("clusterid"), "c1");
    assert_eq!(stream.header("x-extra"), "1");
    let first = opened(&mut stream).await;
    assert!(first.initial_resource_versions.is_empty() && first.resource_names_unsubscribe.is_empty());
    let waiting = bench.status_where(|status| status.connected).await;
    let text =
        "connected; waiting for the first push of istio.workload.Address and istio.security.Authorization";
    assert_eq!(waiting.error.as_deref(), Some(text));

    stream.send(push("n1", vec![workload("a", "1"), workload("b", "1")])).await;
    let ack = stream.request().await;
    assert_eq!((ack.response_nonce.as_str(), ack.error_detail), ("n1", None));
    assert_eq!(bench.uids(), ["a".into(), "b".into()]);
    assert_eq!(bench.shards.published().generation, 1);
    let half = bench.status_where(|status| status.counters.addresses.messages == 1).await;
    assert!(!half.synced && half.error.unwrap().ends_with("push of istio.security.Authorization"));

    stream.send(policies("n2")).await;
    assert_eq!(stream.request().await.response_nonce, "n2");
    let synced = bench.status_where(|status| status.synced).await;
    assert_eq!((synced.connected, synced.error), (true, None));
    assert!(synced.counters.addresses.bytes > 0);
    assert_eq!((synced.counters.addresses.messages, synced.counters.policies.messages), (1, 1));
}

#[tokio::test]
async fn a_refused_resource_is_named_and_the_rest_is_in_force() {
    let mut server = Server::start().await;
    let mut bench = Bench::start(&server.address(), false);
    let mut stream = server.stream().await;
    opened(&mut stream).await;
    stream.send(policies("n0")).await;
    stream.request().await;
    stream.send(push("n1", vec![workload("a", "1"), resource("bad", "1", &Workload::default())])).await;
    let nack = stream.request().await;
    assert_eq!(nack.response_nonce, "n1");
    let expected = "bad: workload.uid is empty; expected the workload's key";
    assert_eq!(nack.error_detail.map(|status| (status.code, status.message)), Some((0, expected.into())));
    assert_eq!(bench.uids(), ["a".into()]);
    let refused = |status: &XdsStatus| status.error.as_ref().is_some_and(|error| error.contains("refused"));
    let status = bench.status_where(refused).await;
    assert_eq!(status.counters.session.rejected, 1);
    assert!(status.synced);
    let error = "connected; 1 of istio.workload.Address refused: ";
    assert_eq!(status.error, Some(format!("{error}{expected}").into()));
    stream.send(push("n2", vec![workload("other", "1")])).await;
    assert_eq!(stream.request().await.error_detail, None);
    assert!(refused(&bench.status.borrow()));
    stream.send(push("n3", vec![workload("bad", "2")])).await;
    assert_eq!(stream.request().await.error_detail, None);
    bench.status_where(|status| status.error.is_none()).await;
}

#[tokio::test]
async fn a_node_is_not_ready_while_a_policy_is_refused_and_says_so() {
    let mut server = Server::start().await;
    let mut bench = Bench::start(&server.address(), false);
    let mut stream = server.stream().await;
    opened(&mut stream).await;
    stream.send(push("n1", vec![])).await;
    stream.request().await;
    let bad = Resource { name: "a/deny".into(), version: "1".into(), ..Resource::default() };
    stream.send(DeltaDiscoveryResponse { resources: vec![bad], ..policies("n2") }).await;
    assert_eq!(stream.request().await.error_detail.unwrap().message, "a/deny: the resource is not set");
    stream.send(policies("n3")).await;
    assert_eq!(stream.request().await.error_detail, None);
    let status = bench.status_where(|status| status.counters.policies.messages == 2).await;
    assert!(!status.synced);
    let error = "connected; not ready, since what a refused policy denies would be let through: \
                 1 of istio.security.Authorization refused: a/deny: the resource is not set";
    assert_eq!(status.error.as_deref(), Some(error));
    stream.send(DeltaDiscoveryResponse { removed_resources: vec!["a/deny".into()], ..policies("n4") }).await;
    let status = bench.status_where(|status| status.synced).await;
    assert_eq!(status.error, None);
}

#[tokio::test]
async fn the_next_stream_says_what_is_held() {
    let mut server = Server::start().await;
    let mut bench = Bench::start(&server.address(), false);
    let mut stream = server.stream().await;
    opened(&mut stream).await;
    stream.send(push("n1", vec![workload("a", "7"), resource("bad", "1", &Workload::default())])).await;
    stream.request().await;
    drop(stream);
    let mut stream = server.stream().await;
    let first = opened(&mut stream).await;
    assert_eq!(first.initial_resource_versions, [("a".into(), "7".into())].into());
    assert_eq!(bench.uids(), ["a".into()]);
    let status = bench.status_where(|status| status.connected).await;
    assert_eq!(status.counters.terminations.complete, 1);
}

#[tokio::test]
async fn a_server_that_will_not_read_what_is_held_sends_everything() {
    let mut server = Server::start().await;
    let bench = Bench::start(&server.address(), false);
    let mut stream = server.stream().await;
    opened(&mut stream).await;
    stream.send(push("n1", vec![workload("a", "1"), workload("b", "1")])).await;
    stream.request().await;
    drop(stream);
    let refusal = "grpc: received message larger than max (5000000 vs. 4194304)";
    server.stream().await.end(Some(Status::resource_exhausted(refusal))).await;
    let mut stream = server.stream().await;
    let first = opened(&mut stream).await;
    assert!(first.initial_resource_versions.is_empty());
    stream.send(push("n1", vec![workload("b", "1"), workload("c", "1")])).await;
    stream.request().await;
    assert_eq!(bench.uids(), ["b".into(), "c".into()]);
}

#[tokio::test]
async fn what_was_told_stays_in_force_while_the_server_is_gone() {
    let mut server = Server::start().await;
    let mut bench = Bench::start(&server.address(), false);
    let mut stream = server.stream().await;
    opened(&mut stream).await;
    stream.send(push("n1", vec![workload("a", "1")])).await;
    stream.request().await;
    stream.send(policies("n2")).await;
    stream.request().await;
    let place = server.stop().await;
    drop(stream);
    let gone = bench.status_where(|status| status.counters.terminations.connection_error > 0).await;
    assert!(gone.synced && !gone.connected && gone.error.unwrap().contains("cannot be reached"));
    assert_eq!(bench.uids(), ["a".into()]);

    let mut server = Server::start_at(place).await;
    let mut stream = server.stream().await;
    let first = opened(&mut stream).await;
    assert_eq!(first.initial_resource_versions, [("a".into(), "1".into())].into());
    let back = bench.status_where(|status| status.connected).await;
    assert_eq!((back.synced, back.error), (true, None));
}

#[tokio::test]
async fn a_server_that_says_nothing_is_left_while_the_node_waits_for_it() {
    let mut server = Server::start().await;
    let mut bench = Bench::start_with(&server.address(), false, Duration::from_millis(50));
    let _silent = server.stream().await;
    let said = |status: &XdsStatus| status.error.as_deref() == Some("Unavailable: no response within 0.05 s");
    let status = bench.status_where(said).await;
    assert!(!status.connected && status.counters.terminations.error > 0);
    let _next = server.stream().await;
    assert!(server.connections() >= 2, "the next stream goes over the same connection");
}

#[tokio::test]
async fn a_server_that_ends_streams_unanswered_does_not_get_the_next_over_the_same_connection() {
    let mut server = Server::start().await;
    let bench = Bench::start(&server.address(), false);
    for ending in [Some(Status::unavailable("overloaded")), Some(Status::internal("x")), None] {
        let before = server.connections();
        server.stream().await.end(ending).await;
        let mut stream = server.stream().await;
        assert_eq!(server.connections(), before.max(1) + 1);
        opened(&mut stream).await;
        stream.send(push("n1", vec![])).await;
        stream.request().await;
        stream.end(None).await;
    }
    let last = server.stream().await;
    assert_eq!(server.connections(), 4, "a server that answers keeps the node");
    drop((bench, last));
}

/// The listener's queue takes connections, which says nothing of a server behind it.
#[tokio::test]
async fn a_connection_is_no_stream_until_the_server_takes_the_call() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let mut bench = Bench::start_with(&address, false, Duration::from_millis(50));
    let ended = |status: &XdsStatus| status.counters != Default::default() || status.connected;
    assert!(!bench.status_where(ended).await.connected);
}

#[tokio::test]
async fn a_push_of_20_mib_is_taken() {
    let mut server = Server::start().await;
    let bench = Bench::start(&server.address(), false);
    let mut stream = server.stream().await;
    opened(&mut stream).await;
    let large = |number: u32| {
        let uid = format!("w{number}");
        let workload = Workload {
            uid: uid.as_str().into(),
            workload_name: "x".repeat(1 << 20).into(),
            ..Workload::default()
        };
        resource(&uid, "1", &workload)
    };
    stream.send(push("n1", (0..20).map(large).collect())).await;
    assert_eq!(stream.request().await.response_nonce, "n1");
    assert_eq!((bench.uids().len(), bench.shards.published().generation), (20, 1));
}

/// Pauses are at least 5 ms, twice as long each time.
#[tokio::test]
async fn a_server_that_always_ends_the_stream_is_not_asked_without_pause() {
    let mut server = Server::start().await;
    let bench = Bench::start(&server.address(), false);
    let start = Instant::now();
    for ending in [None, Some(Status::unknown("x")), Some(Status::internal("x"))].into_iter().cycle().take(7)
    {
        let mut stream = server.stream().await;
        if ending.is_none() {
            opened(&mut stream).await;
            stream.send(push("n", vec![workload("a", "1")])).await;
            stream.request().await;
        }
        stream.end(ending).await;
    }
    drop(server.stream().await);
    let pauses = [5, 10, 20, 40, 80, 160, 320].iter().sum();
    assert!(start.elapsed() >= Duration::from_millis(pauses), "{:?}", start.elapsed());
    let terminations = bench.status.borrow().counters.terminations;
    assert_eq!((terminations.complete, terminations.reconnect, terminations.error), (3, 2, 2));
}

#[tokio::test]
async fn a_server_that_talks_nonsense_is_not_asked_without_pause() {
    use tokio::io::AsyncWriteExt;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut bench = Bench::start(&format!("http://{}", listener.local_addr().unwrap()), false);
    let start = Instant::now();
    for _ in 0..6 {
        let (mut stream, _) = tokio::time::timeout(DEADLINE, listener.accept()).await.unwrap().unwrap();
        // The client may have gone already.
        let _ = stream.write_all(b"220 this is no HTTP/2, whatever you say\r\n").await;
    }
    assert!(start.elapsed() >= Duration::from_millis(5 + 10 + 20 + 40 + 80), "{:?}", start.elapsed());
    bench.status_where(|status| status.error.is_some() && !status.connected && !status.synced).await;
}

#[tokio::test]
async fn a_question_is_subscribed_and_its_answer_is_in_the_snapshot() {
    let mut server = Server::start().await;
    let mut bench = Bench::start(&server.address(), true);
    let ip: IpAddr = [10, 0, 0, 1].into();
    let question = Question::Address(NetworkAddress { network: "n1".into(), ip });
    bench.questions.send(question.clone()).await.unwrap();
    let mut stream = server.stream().await;
    let first = opened(&mut stream).await;
    let mut asked = first.resource_names_subscribe;
    assert_eq!(first.resource_names_unsubscribe, ["*"]);
    if asked.is_empty() {
        asked = stream.request().await.resource_names_subscribe;
    }
    assert_eq!(asked, ["n1/10.0.0.1"]);
    let pod =
        Workload { uid: "a".into(), network: "n1".into(), addresses: [ip].into(), ..Workload::default() };
    stream.send(push("n1", vec![resource("a", "1", &pod)])).await;
    assert_eq!(stream.request().await.response_nonce, "n1");
    assert!(bench.shards.published().answered.contains(&question));
    assert_eq!(bench.uids(), ["a".into()]);
    let status = bench.status_where(|status| status.counters.session.demands_answered == 1).await;
    assert_eq!((status.counters.session.demands, status.synced), (1, false));
}

#[tokio::test]
async fn the_nodes_pods_are_subscribed_and_unsubscribed() {
    let mut server = Server::start().await;
    let bench = Bench::start(&server.address(), true);
    let mut stream = server.stream().await;
    opened(&mut stream).await;
    let info = WorkloadInfo {
        name: "x".into(),
        namespace: "shop".into(),
        service_account: "x".into(),
        ..WorkloadInfo::default()
    };
    let pod = PodView { info, state: PodState::Pending, resident: false };
    bench.pods.send_modify(|pods| drop(pods.insert("uid".into(), pod)));
    assert_eq!(stream.request().await.resource_names_subscribe, ["c1//Pod/shop/x"]);
    bench.pods.send_modify(Pods::clear);
    assert_eq!(stream.request().await.resource_names_unsubscribe, ["c1//Pod/shop/x"]);
}
