use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use halo_core::zds::{PodState, WorkloadInfo};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::cni::server::{PodInfo, ZdsServer};
use crate::seqpacket::SeqpacketListener;
use crate::testing::{DEADLINE, FakeShards};

struct Proxy {
    shards: FakeShards,
    view: watch::Receiver<Pods>,
    readiness: Readiness,
    task: JoinHandle<()>,
}

impl Proxy {
    fn start(path: &std::path::Path) -> Self {
        let shards = FakeShards::default();
        let (sender, view) = watch::channel(Pods::new());
        let readiness = Readiness::pending(&[Part::WorkloadProxyManager]);
        let shown = Shown { view: sender, readiness: readiness.clone(), totals: Arc::default() };
        let client = ZdsClient::new(path.into(), shards.clone(), shown);
        Self { shards, view, readiness, task: tokio::spawn(client.run()) }
    }

    async fn ready(&self) {
        timeout(DEADLINE, self.readiness.ready()).await.expect("the proxy is not ready in time");
    }

    async fn pods_where(&mut self, holds: impl Fn(&Pods) -> bool) {
        let found = timeout(DEADLINE, self.view.wait_for(|pods| holds(pods))).await;
        found.expect("no such pods in time").unwrap();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn pod(uid: &str) -> PodInfo {
    PodInfo {
        uid: uid.into(),
        name: "cart".into(),
        namespace: "shop".into(),
        service_account: "cart".into(),
        dns_search: vec![],
    }
}

fn netns() -> OwnedFd {
    File::open("/proc/self/ns/net").unwrap().into()
}

/// A second namespace, as far as device and inode can tell.
fn other_netns() -> OwnedFd {
    File::open("/proc/self/ns/uts").unwrap().into()
}

fn agent() -> (ZdsServer, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (ZdsServer::bind(folder.path().join("zds.sock")).unwrap(), folder)
}

#[tokio::test]
async fn pods_of_the_snapshot_and_later_ones_are_bound_before_they_are_acknowledged() {
    let (server, _folder) = agent();
    drop(server.add(pod("a"), netns()).await);
    let proxy = Proxy::start(server.path());
    proxy.ready().await;
    proxy.shards.pods_are(&["a"]).await;
    server.add(pod("b"), netns()).await.unwrap();
    assert_eq!(proxy.shards.calls(), ["add a", "add b"]);
    server.add(pod("b"), netns()).await.unwrap();
    assert_eq!(proxy.shards.calls().len(), 2, "the same pod in the same namespace was bound again");
    server.del("a").await.unwrap();
    server.del("unknown").await.unwrap();
    proxy.shards.pods_are(&["b"]).await;
}

#[tokio::test]
async fn a_pod_in_another_namespace_is_stopped_and_started() {
    let (server, _folder) = agent();
    let proxy = Proxy::start(server.path());
    proxy.ready().await;
    server.add(pod("a"), netns()).await.unwrap();
    server.add(pod("a"), other_netns()).await.unwrap();
    assert_eq!(proxy.shards.calls(), ["add a", "remove a", "add a"]);
}

#[tokio::test]
async fn a_pod_that_cannot_be_bound_is_an_acknowledged_error_and_pending_until_it_is_replaced() {
    let (server, _folder) = agent();
    let mut proxy = Proxy::start(server.path());
    proxy.ready().await;
    proxy.shards.break_pod("a", "in use");
    let error = server.add(pod("a"), netns()).await.unwrap_err();
    assert_eq!(error, "pod a: bind 15008: in use");
    server.add(pod("b"), netns()).await.unwrap();
    proxy.pods_where(|pods| pods.get("a").is_some_and(|pod| pod.state == PodState::Pending)).await;
    let why = proxy.readiness.parts_pending();
    assert!(why[&Part::WorkloadProxyManager].contains("1 pods could not be started"), "{why:?}");
    proxy.shards.broken.lock().unwrap().clear();
    server.add(pod("a"), netns()).await.unwrap();
    proxy.ready().await;
    proxy.shards.pods_are(&["a", "b"]).await;
}

#[tokio::test]
async fn pods_stay_up_while_the_agent_restarts_and_those_it_no_longer_names_go() {
    let (server, folder) = agent();
    let proxy = Proxy::start(server.path());
    proxy.ready().await;
    for uid in ["a", "b", "c"] {
        server.add(pod(uid), netns()).await.unwrap();
    }
    drop(server);
    let server = ZdsServer::bind(folder.path().join("zds.sock")).unwrap();
    drop(server.add(pod("a"), netns()).await);
    server.keep("b");
    assert_eq!(timeout(DEADLINE, server.connected()).await.unwrap(), 1);
    proxy.shards.pods_are(&["a", "b"]).await;
    assert_eq!(proxy.shards.calls(), ["add a", "add b", "add c", "remove c"]);
    proxy.ready().await;
}

#[tokio::test]
async fn losing_the_agent_makes_the_node_not_ready() {
    let (server, _folder) = agent();
    let proxy = Proxy::start(server.path());
    proxy.ready().await;
    drop(server);
    let mut pending = proxy.readiness.parts_pending();
    let deadline = Instant::now() + DEADLINE;
    while pending.is_empty() && Instant::now() < deadline {
        tokio::task::yield_now().await;
        pending = proxy.readiness.parts_pending();
    }
    assert!(pending[&Part::WorkloadProxyManager].contains("no complete snapshot"));
}

#[tokio::test]
async fn a_node_without_an_agent_says_why_it_cannot_reach_it() {
    let folder = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(&folder.path().join("zds.sock"));
    let told = |why: &str| why.contains("cannot be reached: No such file or directory");
    let deadline = Instant::now() + DEADLINE;
    while !proxy.readiness.parts_pending().get(&Part::WorkloadProxyManager).is_some_and(|why| told(why)) {
        assert!(Instant::now() < deadline, "{:?}", proxy.readiness.parts_pending());
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn two_proxies_share_an_agent_while_one_replaces_the_other() {
    let (server, _folder) = agent();
    let old = Proxy::start(server.path());
    old.ready().await;
    server.add(pod("a"), netns()).await.unwrap();
    let new = Proxy::start(server.path());
    assert_eq!(timeout(DEADLINE, server.connected_count(2)).await.unwrap(), 2);
    new.shards.pods_are(&["a"]).await;
    server.add(pod("b"), netns()).await.unwrap();
    new.shards.pods_are(&["a", "b"]).await;
    assert_eq!(old.shards.calls(), ["add a"]);
    server.del("a").await.unwrap();
    old.shards.pods_are(&[]).await;
    new.shards.pods_are(&["b"]).await;
}

/// An agent that writes what it likes.
struct RawAgent(Seqpacket);

impl RawAgent {
    async fn with_proxy() -> (Self, Proxy, TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("zds.sock");
        let listener = SeqpacketListener::bind(&path).unwrap();
        let proxy = Proxy::start(&path);
        (Self::accept(&listener).await, proxy, folder)
    }

    async fn accept(listener: &SeqpacketListener) -> Self {
        let agent = Self(timeout(DEADLINE, listener.accept()).await.unwrap().unwrap());
        assert_eq!(zds::decode_hello(&agent.receive().await), Ok(()));
        agent
    }

    async fn receive(&self) -> Vec<u8> {
        timeout(DEADLINE, self.0.receive()).await.unwrap().unwrap().unwrap().bytes
    }

    /// The proxy's answer to a message: the text of its error.
    async fn ask(&self, bytes: &[u8], descriptor: Option<&OwnedFd>) -> Option<String> {
        self.0.send(bytes, descriptor.map(AsFd::as_fd)).await.unwrap();
        zds::decode_response(&self.receive().await).unwrap()
    }
}

fn add(uid: &str) -> Vec<u8> {
    let info = WorkloadInfo {
        name: "n".into(),
        namespace: "s".into(),
        service_account: "a".into(),
        ..WorkloadInfo::default()
    };
    zds::encode_request(&Request::Add { uid: uid.into(), info })
}

#[tokio::test]
async fn a_message_that_breaks_the_protocol_is_refused_and_the_connection_goes_on() {
    let (agent, proxy, _folder) = RawAgent::with_proxy().await;
    let snapshot = zds::encode_request(&Request::SnapshotSent);
    let keep = zds::encode_request(&Request::Keep { uid: "k".into() });
    let plain: OwnedFd = tempfile::tempfile().unwrap().into();
    assert_eq!(agent.ask(&add("first"), Some(&netns())).await, None);
    let mut oversize = add("long");
    oversize.extend(std::iter::repeat_n(0, 2000));
    for (bytes, descriptor, told) in [
        (add("bare"), None, "0 descriptors, expected 1"),
        (add("file"), Some(&plain), "not a network namespace"),
        (keep.clone(), Some(&plain), "1 descriptors, expected 0"),
        (oversize, Some(&netns()), "cut short"),
        (b"\xff\xff\xff".to_vec(), None, "not valid protobuf"),
        (b"\x0a\x03\x0a\x01u".to_vec(), Some(&netns()), "no workload info"),
    ] {
        let error = agent.ask(&bytes, descriptor).await.expect(told);
        assert!(error.contains(told), "{error}");
    }
    assert_eq!(agent.ask(&keep, None).await, None);
    assert_eq!(agent.ask(&snapshot, None).await, None);
    proxy.ready().await;
    assert!(agent.ask(&snapshot, None).await.unwrap().contains("already sent"));
    assert!(agent.ask(&keep, None).await.unwrap().contains("after the snapshot"));
    assert_eq!(agent.ask(&add("second"), Some(&netns())).await, None);
    proxy.shards.pods_are(&["first", "second"]).await;
}

#[tokio::test]
async fn a_del_before_the_snapshot_only_takes_the_name_back() {
    let (agent, proxy, _folder) = RawAgent::with_proxy().await;
    let del = zds::encode_request(&Request::Del { uid: "a".into() });
    assert_eq!(agent.ask(&add("a"), Some(&netns())).await, None);
    assert_eq!(agent.ask(&del, None).await, None);
    assert_eq!(proxy.shards.calls(), ["add a"]);
    assert_eq!(agent.ask(&zds::encode_request(&Request::SnapshotSent), None).await, None);
    proxy.shards.pods_are(&[]).await;
    assert_eq!(proxy.shards.calls(), ["add a", "remove a"]);
}

#[tokio::test]
async fn descriptors_that_are_refused_are_closed() {
    let (agent, _proxy, _folder) = RawAgent::with_proxy().await;
    let keep = zds::encode_request(&Request::Keep { uid: "k".into() });
    let (reader, writer) = io::pipe().unwrap();
    let writer: OwnedFd = writer.into();
    assert!(agent.ask(&keep, Some(&writer)).await.is_some());
    drop(writer);
    let end = tokio::task::spawn_blocking(move || io::Read::read(&mut &reader, &mut [0; 1]));
    assert_eq!(timeout(DEADLINE, end).await.unwrap().unwrap().unwrap(), 0);
}

#[tokio::test]
async fn attempts_to_reach_an_agent_that_only_closes_become_rarer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("zds.sock");
    let listener = SeqpacketListener::bind(&path).unwrap();
    let _proxy = Proxy::start(&path);
    let begun = Instant::now();
    for _ in 0..6 {
        drop(timeout(DEADLINE, listener.accept()).await.unwrap().unwrap());
    }
    // 10 + 20 + 40 + 80 + 160 ms lie between six attempts.
    assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn attempts_to_reach_an_agent_that_talks_nonsense_become_rarer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("zds.sock");
    let listener = SeqpacketListener::bind(&path).unwrap();
    let _proxy = Proxy::start(&path);
    let begun = Instant::now();
    for _ in 0..6 {
        let agent = RawAgent::accept(&listener).await;
        assert!(agent.ask(b"\xff\xff\xff", None).await.is_some());
    }
    assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn an_agent_that_ends_in_mid_snapshot_takes_no_pod_away() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("zds.sock");
    let listener = SeqpacketListener::bind(&path).unwrap();
    let proxy = Proxy::start(&path);
    let snapshot = zds::encode_request(&Request::SnapshotSent);
    let agent = RawAgent::accept(&listener).await;
    for uid in ["a", "b", "c"] {
        assert_eq!(agent.ask(&add(uid), Some(&netns())).await, None);
    }
    assert_eq!(agent.ask(&snapshot, None).await, None);
    drop(agent);
    let agent = RawAgent::accept(&listener).await;
    assert_eq!(agent.ask(&add("a"), Some(&netns())).await, None);
    drop(agent);
    let agent = RawAgent::accept(&listener).await;
    proxy.shards.pods_are(&["a", "b", "c"]).await;
    assert_eq!(agent.ask(&zds::encode_request(&Request::Keep { uid: "b".into() }), None).await, None);
    assert_eq!(agent.ask(&snapshot, None).await, None);
    // What the connection before had named counts no more.
    proxy.shards.pods_are(&["b"]).await;
    proxy.ready().await;
}

#[tokio::test]
async fn a_pod_that_the_shards_never_open_is_refused_in_time_for_the_agent_and_undone() {
    let (server, _folder) = agent();
    let proxy = Proxy::start(server.path());
    proxy.ready().await;
    proxy.shards.stuck.lock().unwrap().insert("a".into());
    let error = server.add(pod("a"), netns()).await.unwrap_err();
    assert!(error.contains("did not open the pod's listeners within 4s"), "{error}");
    server.add(pod("b"), netns()).await.unwrap();
    assert_eq!(proxy.shards.calls(), ["add a", "remove a", "add b"]);
}

#[tokio::test]
async fn a_pod_that_could_not_be_bound_is_tried_again_without_being_asked() {
    let (server, _folder) = agent();
    let proxy = Proxy::start(server.path());
    proxy.ready().await;
    proxy.shards.break_pod("a", "in use");
    server.add(pod("a"), netns()).await.unwrap_err();
    proxy.shards.broken.lock().unwrap().clear();
    proxy.shards.pods_are(&["a"]).await;
    proxy.ready().await;
    assert_eq!(proxy.shards.calls(), ["add a", "add a"]);
}
