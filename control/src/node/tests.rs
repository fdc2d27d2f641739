use std::future::pending;
use std::sync::atomic::Ordering;

use halo_core::demand::Question;
use halo_core::id::Identity;
use halo_core::report::{ConnectionReport, Direction, ShardReport, Transport};
use halo_core::service::ServiceKey;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::*;
use crate::cni::server::{PodInfo, ZdsServer};
use crate::config::{Overrides, Variables};
use crate::metrics::tests as metrics;
use crate::node::sources::Sources;
use crate::questions::{Asked, queues};
use crate::source::SourceStatus;
use crate::testing::{DEADLINE, FakeShards};
use crate::xds::XdsStatus;

const MESH: &str = "workloads:\n- {uid: w, name: cart, namespace: shop, serviceAccount: cart, workloadIps: [10.0.0.1], \
                    protocol: HBONE, trustDomain: td}\n";

struct Running {
    shards: FakeShards,
    asked: Asked,
    addresses: NodeAddresses,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), NodeError>>,
    folder: TempDir,
}

impl Running {
    async fn start(mesh: Option<&str>) -> Self {
        Self::start_with(mesh, &[]).await
    }

    async fn start_with(mesh: Option<&str>, more: &[(&'static str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        if let Some(mesh) = mesh {
            std::fs::write(path("mesh.yaml"), mesh).unwrap();
        }
        let variables: Variables = [
            ("NODE_NAME", "node-1".to_owned()),
            ("INPOD_UDS", path("zds.sock")),
            ("LOCAL_XDS_PATH", path("mesh.yaml")),
            ("HALO_CA_DIR", path("ca")),
            ("HALO_ADMIN_ADDR", "127.0.0.1:0".to_owned()),
            ("HALO_READINESS_ADDR", "[::]:0".to_owned()),
            ("HALO_METRICS_ADDR", "127.0.0.1:0".to_owned()),
        ]
        .into_iter()
        .chain(more.iter().map(|(name, value)| (*name, (*value).to_owned())))
        .collect();
        let config = Config::read(&variables, &Overrides::default()).unwrap();
        let shards = FakeShards::default();
        let (asked, questions) = queues();
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = oneshot::channel();
        let node =
            run_with(config, shards.clone(), questions, stopped, |addresses| tell.send(addresses).unwrap());
        let task = tokio::spawn(node);
        let mut addresses = told.await.unwrap();
        addresses.readiness.set_ip("127.0.0.1".parse().unwrap());
        Self { shards, asked, addresses, stop: Some(stop), task, folder }
    }

    async fn ready_text(&self) -> (u16, String) {
        fetch(self.addresses.readiness, "GET", "/healthz/ready").await
    }

    async fn readiness_where(&self, status: u16, holds: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let (found, text) = self.ready_text().await;
            if found == status && holds(&text) {
                return;
            }
            assert!(Instant::now() < deadline, "readiness stays {found} {text:?}");
        }
    }

    async fn dump(&self) -> Value {
        let (status, text) = fetch(self.addresses.admin, "GET", "/config_dump").await;
        assert_eq!(status, 200);
        serde_json::from_str(&text).unwrap()
    }
}

async fn fetch(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: halo\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
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

fn netns() -> std::os::fd::OwnedFd {
    std::fs::File::open("/proc/self/ns/net").unwrap().into()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn connection(uid: &str) -> ConnectionReport {
    ConnectionReport {
        service: None,
        pod: uid.into(),
        direction: Direction::Outbound,
        source: "10.0.0.1:40000".parse().unwrap(),
        original_destination: "10.96.0.1:80".into(),
        destination: "10.0.0.2:15008".parse().unwrap(),
        transport: Transport::Hbone,
        source_identity: Some("spiffe://td/ns/shop/sa/cart".parse().unwrap()),
        destination_identity: None,
        bytes_received: 5,
        bytes_sent: 7,
    }
}

#[tokio::test]
async fn a_node_is_ready_once_mesh_and_pods_are_there_and_says_what_is_missing() {
    let node = Running::start(None).await;
    node.readiness_where(500, |text| {
        text.starts_with("not ready, pending: state manager, dns proxy, workload proxy manager\n")
            && text.contains("state manager: cannot be read")
    })
    .await;
    let server = ZdsServer::bind(node.folder.path().join("zds.sock")).unwrap();
    drop(server.add(pod("u1"), netns()).await);
    // Without the mesh no pod is taken: the proxy before this one, if there is one, keeps them.
    node.readiness_where(500, |text| {
        text.contains("workload proxy manager: pods are taken once the mesh is known")
    })
    .await;
    assert_eq!((server.ready_count(), node.shards.calls().len()), (0, 0));
    drop(server);
    std::fs::write(node.folder.path().join("mesh.yaml"), MESH).unwrap();
    node.readiness_where(500, |text| text.starts_with("not ready, pending: workload proxy manager\n")).await;
    let server = ZdsServer::bind(node.folder.path().join("zds.sock")).unwrap();
    node.readiness_where(200, |text| text == "ready\n").await;
    drop(server);
    node.readiness_where(500, |text| text.contains("no complete snapshot")).await;
    assert_eq!(fetch(node.addresses.readiness, "POST", "/healthz/ready").await.0, 405);
    assert_eq!(fetch(node.addresses.readiness, "GET", "/").await.0, 404);
}

#[tokio::test]
async fn a_text_that_is_read_once_does_not_end_the_wait_for_the_control_plane() {
    let (xds_sender, xds) = watch::channel(XdsStatus::default());
    let (local_sender, local) = watch::channel(SourceStatus::default());
    let sources = Sources { local: Some(local), xds: Some(("https://istiod:15012".into(), xds)) };
    let readiness = Readiness::pending(&[Part::StateManager]);
    let following = tokio::spawn(sources::follow(sources, readiness.clone()));
    local_sender.send_modify(|status| status.synced = true);
    drop(local_sender);
    let waits = timeout(DEADLINE, async {
        while !readiness.parts_pending()[&Part::StateManager].starts_with("the control plane at ") {
            tokio::task::yield_now().await;
        }
    });
    waits.await.unwrap();
    // The control plane comes later than the end of the text is seen.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    xds_sender.send_modify(|status| status.synced = true);
    timeout(DEADLINE, readiness.part_ready(Part::StateManager)).await.unwrap();
    timeout(DEADLINE, following).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_dump_has_the_keys_that_operators_tools_read() {
    let node = Running::start(Some(MESH)).await;
    let server = ZdsServer::bind(node.folder.path().join("zds.sock")).unwrap();
    timeout(DEADLINE, server.connected()).await.unwrap();
    server.add(pod("u1"), netns()).await.unwrap();
    node.shards.snapshot_where(|snapshot| snapshot.certificates.len() == 1).await;
    *node.shards.reports.lock().unwrap() = vec![ShardReport {
        ring: "epoll",
        cpu_ns: 9,
        counters: vec![("reads", 3)],
        connections: vec![connection("u1")],
        ..ShardReport::default()
    }];
    let dump = node.dump().await;
    assert_eq!(
        keys(&dump),
        [
            "certificates",
            "config",
            "policies",
            "services",
            "stagedServices",
            "staticConfig",
            "version",
            "workloads",
            "workloadState",
            "halo"
        ]
    );
    let certificate = &dump["certificates"][0];
    assert_eq!(keys(certificate), ["identity", "state", "certChain", "rootCerts"]);
    assert_eq!(
        (&certificate["identity"], &certificate["state"]),
        (&"spiffe://td/ns/shop/sa/cart".into(), &"Available".into())
    );
    assert_eq!(keys(&certificate["certChain"][0]), ["pem", "serialNumber", "validFrom", "expirationTime"]);
    let state = &dump["workloadState"]["u1"];
    assert_eq!(state["state"], "Up");
    assert_eq!(keys(&state["info"]), ["name", "namespace", "serviceAccount"]);
    let outbound = &state["connections"]["outbound"][0];
    assert_eq!(keys(outbound), ["src", "originalDst", "actualDst", "protocol"]);
    assert_eq!((&outbound["originalDst"], &outbound["protocol"]), (&"10.96.0.1:80".into(), &"HBONE".into()));
    let own = &dump["halo"]["shards"][0]["connections"][0];
    assert_eq!((&own["srcIdentity"], &own["bytesSent"]), (&"spiffe://td/ns/shop/sa/cart".into(), &7.into()));
    assert_eq!(dump["staticConfig"]["workloads"][0]["uid"], "w");
    assert_eq!(dump["staticConfig"]["policies"], serde_json::json!([]));
    assert_eq!(dump["halo"]["shards"][0]["cpuNs"], 9);
    assert_eq!(dump["halo"]["shards"][0]["counters"]["reads"], 3);
    assert_eq!(dump["halo"]["generation"], node.shards.published().generation);
    assert_eq!(dump["config"]["localNode"], "node-1");
    assert!(!dump.to_string().contains("PRIVATE KEY"));
}

#[tokio::test]
async fn without_a_control_plane_questions_about_the_mesh_are_refused() {
    let node = Running::start(Some(MESH)).await;
    assert!(!node.asked.ask(Question::Service(ServiceKey { namespace: "a".into(), hostname: "b".into() })));
    assert!(node.asked.ask(Question::Certificate("spiffe://td/ns/shop/sa/cart".parse().unwrap())));
}

#[tokio::test]
async fn metrics_sum_the_shards_and_count_the_pods() {
    let node = Running::start(Some(MESH)).await;
    let server = ZdsServer::bind(node.folder.path().join("zds.sock")).unwrap();
    timeout(DEADLINE, server.connected()).await.unwrap();
    server.add(pod("u1"), netns()).await.unwrap();
    node.shards.snapshot_where(|snapshot| snapshot.workloads.len() == 1).await;
    let report = |shard| ShardReport { shard, counters: vec![("reads", 3)], ..ShardReport::default() };
    *node.shards.reports.lock().unwrap() = vec![report(0), report(1)];
    let (status, text) = fetch(node.addresses.metrics, "GET", "/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "istio_build{component=\"ztunnel\",tag=\"unknown\"} 1",
        "workload_manager_active_proxy_count 1",
        "workload_manager_pending_proxy_count 0",
        "workload_manager_proxies_started_total 1",
        "workload_manager_proxies_stopped_total 0",
        "halo_workloads 1",
        "halo_shards 2",
        "# TYPE halo_shard_reads_total counter",
        "halo_shard_reads_total 6",
        "halo_shard_cpu_nanoseconds_total{shard=\"1\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line:?} is not in\n{text}");
    }
    assert_eq!(fetch(node.addresses.metrics, "GET", "/").await.0, 404);
}

#[tokio::test]
async fn metrics_are_the_stock_ones_in_the_form_and_coding_asked_for_on_both_servers() {
    let node = Running::start(Some(MESH)).await;
    node.shards.snapshot_where(|snapshot| snapshot.workloads.len() == 1).await;
    let series = vec![metrics::series("web")];
    let report = metrics::dns(ShardReport { series, ..ShardReport::default() });
    *node.shards.reports.lock().unwrap() = vec![report];
    for (address, path) in [(node.addresses.metrics, "/stats/prometheus"), (node.addresses.admin, "/metrics")]
    {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: halo\r\nAccept: application/openmetrics-text;version=1.0.0\r\n\
             Accept-Encoding: gzip\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        timeout(DEADLINE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8(answer[..end].to_vec()).unwrap().to_ascii_lowercase();
        assert!(head.contains("content-encoding: gzip\r\n"), "{head}");
        assert!(
            head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n")
        );
        let mut text = String::new();
        std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&answer[end..]), &mut text).unwrap();
        let found = metrics::check_stock(&text);
        let missing = |name: &&str| name.starts_with("istio_xds_") || *name == metrics::WITHOUT_SAMPLES;
        let expected: Vec<_> =
            metrics::STOCK.iter().map(|(name, ..)| *name).filter(|name| !missing(name)).collect();
        assert_eq!(found, expected);
    }
}

#[tokio::test]
async fn a_shard_that_does_not_answer_hides_nothing_else() {
    let node = Running::start(Some(MESH)).await;
    node.shards.snapshot_where(|snapshot| snapshot.workloads.len() == 1).await;
    node.shards.mute.store(true, Ordering::SeqCst);
    let (metrics, dump) = tokio::join!(fetch(node.addresses.metrics, "GET", "/metrics"), node.dump());
    assert!(metrics.1.contains("\nhalo_workloads 1\n") && metrics.1.contains("\nhalo_shards 0\n"));
    // A total of no shard would be read as a restart.
    assert!(
        !metrics.1.contains("istio_tcp_sockets_open") && !metrics.1.contains("halo_shard_"),
        "{}",
        metrics.1
    );
    assert_eq!(dump["halo"]["generation"], 1);
}

#[tokio::test]
async fn shutdown_drains_the_shards_and_returns() {
    let mut node = Running::start(Some(MESH)).await;
    node.stop.take().unwrap().send(()).unwrap();
    timeout(DEADLINE, &mut node.task).await.unwrap().unwrap().unwrap();
    assert_eq!(node.shards.calls(), ["drain"]);
}

#[tokio::test]
async fn quitquitquit_ends_the_node_and_only_by_post() {
    let mut node = Running::start(Some(MESH)).await;
    assert_eq!(fetch(node.addresses.admin, "GET", "/quitquitquit").await.0, 405);
    assert_eq!(fetch(node.addresses.admin, "GET", "/nothing").await.0, 404);
    assert!(fetch(node.addresses.admin, "GET", "/").await.1.contains("config_dump"));
    assert_eq!(fetch(node.addresses.admin, "POST", "/quitquitquit").await.0, 200);
    timeout(DEADLINE, &mut node.task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn quitquitquit_is_answered_once_the_shards_have_drained() {
    let mut node = Running::start(Some(MESH)).await;
    node.shards.hold_drain.store(true, Ordering::SeqCst);
    let asked = tokio::spawn(fetch(node.addresses.admin, "POST", "/quitquitquit"));
    node.readiness_where(500, |text| text.contains("workload proxy manager: shutting down")).await;
    assert!(!asked.is_finished() && !node.task.is_finished());
    node.shards.hold_drain.store(false, Ordering::SeqCst);
    assert_eq!(timeout(DEADLINE, asked).await.unwrap().unwrap(), (200, "shutdown now\n".to_owned()));
    timeout(DEADLINE, &mut node.task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_dedicated_proxy_serves_its_workload_without_an_agent() {
    let dedicated = [("PROXY_MODE", "dedicated"), ("PROXY_WORKLOAD_INFO", "shop/cart/cart")];
    let node = Running::start_with(None, &dedicated).await;
    node.readiness_where(500, |text| {
        text.starts_with("not ready, pending: state manager, proxy, dns proxy\n")
            && text.contains("proxy: pods are taken once the mesh is known")
    })
    .await;
    assert!(node.shards.calls().is_empty());
    std::fs::write(node.folder.path().join("mesh.yaml"), MESH).unwrap();
    node.readiness_where(200, |text| text == "ready\n").await;
    assert_eq!(node.shards.calls(), ["add shop/cart"]);
    node.shards.snapshot_where(|snapshot| snapshot.certificates.len() == 1).await;
    let pod = node.shards.pod("shop/cart").unwrap();
    assert_eq!((pod.listeners, pod.dns_search.is_some()), (Listeners::Captured, true));
    let dump = node.dump().await;
    assert_eq!(
        (&dump["workloadState"]["shop/cart"]["state"], &dump["config"]["proxyMode"]),
        (&"Up".into(), &"Dedicated".into())
    );
}

#[tokio::test]
async fn the_proxys_own_pod_is_served_beside_the_agents_and_has_a_certificate() {
    let own = [
        ("POD_NAME", "proxy-x"),
        ("POD_NAMESPACE", "mesh"),
        ("SERVICE_ACCOUNT", "proxy"),
        ("TRUST_DOMAIN", "td"),
    ];
    let node = Running::start_with(Some(MESH), &own).await;
    node.shards.pods_are(&["mesh/proxy-x"]).await;
    assert_eq!(node.shards.pod("mesh/proxy-x").unwrap().listeners, Listeners::Own);
    let server = ZdsServer::bind(node.folder.path().join("zds.sock")).unwrap();
    node.readiness_where(200, |text| text == "ready\n").await;
    server.add(pod("u1"), netns()).await.unwrap();
    // The agent's pods come and go beside it, and its snapshot does not name it.
    let identity: Identity = "spiffe://td/ns/mesh/sa/proxy".parse().unwrap();
    node.shards
        .snapshot_where(|snapshot| {
            snapshot.certificates.len() == 2 && snapshot.certificates.contains_key(&identity)
        })
        .await;
    server.del("u1").await.unwrap();
    node.shards.snapshot_where(|snapshot| snapshot.certificates.len() == 1).await;
    let (_, text) = fetch(node.addresses.metrics, "GET", "/metrics").await;
    assert!(text.contains("\nworkload_manager_active_proxy_count 0\n"), "{text}");
    assert_eq!(node.dump().await["workloadState"]["mesh/proxy-x"]["state"], "Up");
}

#[tokio::test]
async fn the_admin_server_answers_on_both_loopback_addresses() {
    let node = Running::start(Some(MESH)).await;
    // A machine without IPv6 on its loopback interface has one of the two.
    let six = Ipv6Addr::LOCALHOST;
    if TcpListener::bind((six, 0)).await.is_ok() {
        let (status, text) = fetch((six, node.addresses.admin.port()).into(), "GET", "/").await;
        assert_eq!((status, text.contains("config_dump")), (200, true));
    }
    let (status, text) = fetch(node.addresses.admin, "POST", "/logging?level=debug").await;
    assert_eq!((status, text.as_str()), (500, "the log is not in this process's hands\n"));
    assert_eq!(fetch(node.addresses.admin, "GET", "/debug/pprof/profile?seconds=0").await.0, 400);
    assert_eq!(fetch(node.addresses.admin, "GET", "/debug/pprof/heap").await.0, 500);
}

#[tokio::test]
async fn a_client_that_never_sends_its_request_is_cut_off() {
    let node = Running::start(Some(MESH)).await;
    let mut stream = TcpStream::connect(node.addresses.admin).await.unwrap();
    stream.write_all(b"GET / HT").await.unwrap();
    let mut answer = Vec::new();
    // The end may be a reset: what was sent was never read to its end. The server's own deadline for a whole answer is
    // far beyond the test's.
    drop(timeout(DEADLINE, stream.read_to_end(&mut answer)).await.unwrap());
    assert!(<AdminService<FakeShards> as http::Service>::DEADLINE > 2 * DEADLINE);
    assert!(!String::from_utf8_lossy(&answer).contains("200 OK"), "{answer:?}");
}

#[tokio::test]
async fn a_port_that_is_taken_is_an_error_that_names_the_server() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let variables: Variables = [("HALO_ADMIN_ADDR", address.to_string())].into_iter().collect();
    let config = Config::read(&variables, &Overrides::default()).unwrap();
    let error = run(config, FakeShards::default(), queues().1, pending::<()>()).await.unwrap_err();
    assert!(error.to_string().starts_with(&format!("admin server on {address}: ")), "{error}");
}

#[tokio::test]
async fn a_part_that_fails_ends_the_node_with_an_error_that_names_it() {
    let mut node = Running::start(None).await;
    node.shards.break_publish();
    std::fs::write(node.folder.path().join("mesh.yaml"), MESH).unwrap();
    let error = timeout(DEADLINE, &mut node.task).await.unwrap().unwrap().unwrap_err();
    assert!(error.to_string().starts_with("a part of the control thread failed: publisher: "), "{error}");
    assert_eq!(node.shards.calls(), ["drain"]);
}
