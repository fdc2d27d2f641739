use std::fs::File;
use std::time::Duration;

use halo_core::zds::{self, Request};
use tokio::time::timeout;

use super::*;

const DEADLINE: Duration = Duration::from_secs(10);

struct Bench {
    server: ZdsServer,
    _folder: tempfile::TempDir,
}

fn bench() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let server = ZdsServer::bind(folder.path().join("zds.sock")).unwrap();
    Bench { server, _folder: folder }
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

async fn proxy(server: &ZdsServer) -> Seqpacket {
    let socket = Seqpacket::connect(server.path()).unwrap();
    socket.send(&zds::encode_hello(), None).await.unwrap();
    socket
}

/// Receives one request and answers it; gives the request and how many descriptors came with it.
async fn answer(socket: &Seqpacket, error: &str) -> (Request, usize) {
    let message = timeout(DEADLINE, socket.receive()).await.unwrap().unwrap().unwrap();
    let request = zds::decode_request(&message.bytes, message.descriptors.len()).unwrap();
    let error = Some(error).filter(|error| !error.is_empty());
    socket.send(&zds::encode_ack(error), None).await.unwrap();
    (request, message.descriptors.len())
}

#[tokio::test]
async fn a_proxy_gets_every_known_pod_and_then_the_end_of_the_snapshot() {
    let bench = bench();
    assert!(bench.server.add(pod("a"), netns()).await.unwrap_err().contains("no proxy"));
    bench.server.keep("b");
    let proxy = proxy(&bench.server).await;
    assert!(matches!(answer(&proxy, "").await, (Request::Add { uid, .. }, 1) if &*uid == "a"));
    assert!(matches!(answer(&proxy, "").await, (Request::Keep { uid }, 0) if &*uid == "b"));
    assert_eq!(bench.server.ready_count(), 0);
    assert!(matches!(answer(&proxy, "").await, (Request::SnapshotSent, 0)));
    assert_eq!(timeout(DEADLINE, bench.server.connected()).await.unwrap(), 1);
}

#[tokio::test]
async fn an_add_goes_to_the_newest_proxy_and_a_del_to_all() {
    let bench = bench();
    let old = proxy(&bench.server).await;
    answer(&old, "").await;
    let new = proxy(&bench.server).await;
    answer(&new, "").await;
    assert_eq!(timeout(DEADLINE, bench.server.connected_count(2)).await.unwrap(), 2);
    let (added, (request, descriptors)) = tokio::join!(bench.server.add(pod("a"), netns()), answer(&new, ""));
    assert_eq!((added, descriptors), (Ok(()), 1));
    assert!(matches!(request, Request::Add { .. }));
    let (gone, first, second) = tokio::join!(bench.server.del("a"), answer(&old, ""), answer(&new, "odd"));
    assert_eq!(gone, Err("odd".to_owned()));
    let del = Request::Del { uid: "a".into() };
    assert_eq!((first.0, second.0), (del.clone(), del));
}

#[tokio::test]
async fn the_text_of_a_refusal_reaches_the_caller_and_is_kept_until_the_pod_is_taken() {
    let bench = bench();
    let proxy = proxy(&bench.server).await;
    answer(&proxy, "").await;
    bench.server.connected().await;
    let (added, _) = tokio::join!(bench.server.add(pod("a"), netns()), answer(&proxy, "bind 15008: in use"));
    assert_eq!(added, Err("bind 15008: in use".to_owned()));
    assert_eq!(bench.server.failures()["a"], "bind 15008: in use");
    let (added, _) = tokio::join!(bench.server.add(pod("a"), netns()), answer(&proxy, ""));
    assert_eq!(added, Ok(()));
    assert!(bench.server.failures().is_empty());
}

#[tokio::test]
async fn a_proxy_that_leaves_or_speaks_unasked_is_forgotten() {
    let bench = bench();
    for unasked in [false, true] {
        let proxy = proxy(&bench.server).await;
        answer(&proxy, "").await;
        bench.server.connected().await;
        let mut ready = bench.server.shared.ready.subscribe();
        if unasked {
            proxy.send(b"news", None).await.unwrap();
        } else {
            drop(proxy);
        }
        timeout(DEADLINE, ready.wait_for(|ready| *ready == 0)).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_proxy_of_another_version_is_refused() {
    let bench = bench();
    let socket = Seqpacket::connect(bench.server.path()).unwrap();
    socket.send(b"\x08\x07", None).await.unwrap();
    assert!(timeout(DEADLINE, socket.receive()).await.unwrap().unwrap().is_none());
    assert_eq!(bench.server.ready_count(), 0);
}

#[tokio::test]
async fn a_proxy_that_does_not_acknowledge_is_given_up_and_the_caller_told() {
    let bench = bench();
    let proxy = proxy(&bench.server).await;
    answer(&proxy, "").await;
    bench.server.connected().await;
    let added = timeout(DEADLINE, bench.server.add(pod("a"), netns())).await.unwrap();
    assert_eq!(added, Err("the proxy did not acknowledge a message within 5 s".to_owned()));
    assert!(timeout(DEADLINE, proxy.receive()).await.unwrap().unwrap().is_some());
    assert!(timeout(DEADLINE, proxy.receive()).await.unwrap().unwrap().is_none());
}
