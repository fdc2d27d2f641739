//! A shard with one pod in a namespace of its own, and the mesh as the shard is told it.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use halo_core::access::{AccessLevel, AccessLine};
use halo_core::certificate::Certificate;
use halo_core::counters::Counters;
use halo_core::demand::Question;
use halo_core::id::Identity;
use halo_core::limits::Limits;
use halo_core::net::{Listeners, NetworkAddress};
use halo_core::options::Options;
use halo_core::policy::{Action, Match, Policy, Scope};
use halo_core::report::{SeriesReport, ShardReport, View};
use halo_core::service::{Service, ServiceKey, Visibility};
use halo_core::snapshot::Snapshot;
use halo_core::workload::{Protocol, Workload};
use halo_shard::tls::{RecordsKind, TlsConfig};
use halo_shard::{
    AccessOutput, Ask, DnsConfig, Mailbox, Message, PodSpec, Reply, RingKind, ShardConfig, start,
};
use nix::sched::{CloneFlags, unshare};

use crate::authority::Authority;

/// How long anything may take before the test fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
/// Where peers dial from.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 1);
/// The pod's address.
pub(crate) const POD: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 2);
/// The address of a service that the pod serves.
pub(crate) const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 9);
pub(crate) const UID: &str = "c1//Pod/shop/pay";

/// Who dials the pod.
pub(crate) fn cart() -> Identity {
    Identity::new("cluster.local", "shop", "cart")
}

/// Who the pod is.
pub(crate) fn pay() -> Identity {
    Identity::new("cluster.local", "shop", "pay")
}

/// One shard with its pod.
pub(crate) struct Rig {
    /// The record layer of the peers; the shard has the other one.
    pub(crate) peer_records: RecordsKind,
    pub(crate) counters: Arc<Counters>,
    pub(crate) client: TlsConfig,
    pub(crate) authority: Authority,
    /// What the shard asks.
    pub(crate) questions: mpsc::Receiver<Question>,
    /// Whether the queue of questions is full.
    pub(crate) full: Arc<AtomicBool>,
    /// What it tells, in batches; every event is wanted.
    pub(crate) lines: mpsc::Receiver<Vec<AccessLine>>,
    mailbox: Mailbox,
    snapshot: Snapshot,
}

/// Runs a test with each ring and each record layer of the shard.
pub(crate) fn each_shard(test: fn(Rig)) {
    each_shard_with(Limits::default(), test);
}

/// Like [`each_shard`], within these limits.
pub(crate) fn each_shard_with(limits: Limits, test: fn(Rig)) {
    each_shard_set(limits, Options::default(), test);
}

/// Like [`each_shard`], within these limits and with these options.
pub(crate) fn each_shard_set(limits: Limits, options: Options, test: fn(Rig)) {
    let mut running = Vec::new();
    for ring in [RingKind::Auto, RingKind::Epoll] {
        for records in [RecordsKind::Sealed, RecordsKind::Rustls] {
            let limits = limits.clone();
            let mut config = shard_config(limits, records, ring);
            config.options = options;
            running.push((format!("{ring:?} {records:?}"), begin(config, test)));
        }
    }
    let failed: Vec<_> =
        running.into_iter().filter_map(|(name, thread)| thread.join().is_err().then_some(name)).collect();
    assert!(failed.is_empty(), "failed with {failed:?}");
}

fn shard_config(limits: Limits, records: RecordsKind, ring: RingKind) -> ShardConfig {
    let access = AccessOutput { level: AccessLevel::default(), sink: Arc::new(|_| true) };
    let ask: Ask = Arc::new(|_| false);
    let series_expiry_ms = 300_000;
    ShardConfig {
        index: 0,
        core: None,
        limits,
        records,
        ipv6: true,
        options: Options::default(),
        ring,
        access,
        series_expiry_ms,
        ask,
        dns: DnsConfig { servers: Arc::new(DNS_SERVERS), ..DnsConfig::default() },
    }
}

/// The DNS servers of every shard.
pub(crate) const DNS_SERVERS: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 9, 9, 53)), 5353),
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 9, 9, 54)), 5353),
];

/// Runs a test with each ring, with the pod's DNS captured.
pub(crate) fn each_dns_shard(limits: Limits, test: fn(Rig)) {
    let run = |ring| {
        let mut config = shard_config(limits.clone(), RecordsKind::default(), ring);
        config.dns.capture = true;
        begin(config, test)
    };
    let running = [RingKind::Auto, RingKind::Epoll].map(|ring| (ring, run(ring)));
    let failed: Vec<_> =
        running.into_iter().filter_map(|(ring, thread)| thread.join().is_err().then_some(ring)).collect();
    assert!(failed.is_empty(), "failed with {failed:?}");
}

/// Runs a test with one ring alone.
pub(crate) fn one_shard(ring: RingKind, test: fn(Rig)) {
    let (limits, records) = (Limits::default(), RecordsKind::default());
    let config = shard_config(limits, records, ring);
    begin(config, test).join().unwrap();
}

/// Starts a test on a thread of its own, which it moves into a new namespace.
fn begin(mut config: ShardConfig, test: fn(Rig)) -> thread::JoinHandle<()> {
    let records = config.records;
    let (asked, questions) = mpsc::channel();
    let full = Arc::<AtomicBool>::default();
    let closed = full.clone();
    let (queue, lines) = mpsc::channel();
    let level = AccessLevel::default();
    level.set(u8::MAX);
    config.access = AccessOutput { level, sink: Arc::new(move |batch| queue.send(batch).is_ok()) };
    config.ask = Arc::new(move |question| !closed.load(Ordering::Relaxed) && asked.send(question).is_ok());
    // The shard begins outside, so that it has to enter the pod's namespace.
    let started = start(config).unwrap();
    thread::spawn(move || test(Rig::new(started, (questions, full, lines), records)))
}

impl Rig {
    /// Moves the calling thread into a new namespace, and opens the pod there.
    fn new(
        (mailbox, counters): (Mailbox, Arc<Counters>),
        (questions, full, lines): (
            mpsc::Receiver<Question>,
            Arc<AtomicBool>,
            mpsc::Receiver<Vec<AccessLine>>,
        ),
        records: RecordsKind,
    ) -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace, which needs root");
        // An address with a prefix makes the whole range local on this interface.
        for arguments in ["link set lo up", "addr add 10.9.9.1/24 dev lo"] {
            assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success(), "{arguments}");
        }
        // Small buffers in the kernel, so that what waits in the proxy is soon what waits.
        for name in ["tcp_rmem", "tcp_wmem"] {
            std::fs::write(format!("/proc/sys/net/ipv4/{name}"), "4096 16384 65536").unwrap();
        }
        let authority = Authority::new("root");
        let mut snapshot = Snapshot::default();
        snapshot.certificates.insert(pay(), Arc::new(authority.issue(&pay())));
        snapshot.workloads.insert(Arc::new(workload()));
        let peer_records = match records {
            RecordsKind::Sealed => RecordsKind::Rustls,
            RecordsKind::Rustls => RecordsKind::Sealed,
        };
        let client = TlsConfig::new(&authority.issue(&cart())).unwrap();
        let mut rig =
            Self { peer_records, counters, client, authority, questions, full, lines, mailbox, snapshot };
        rig.publish(|_| {});
        rig.add_pod();
        rig
    }

    fn add_pod(&self) {
        self.ask(|reply| Message::AddPod(pod(), reply)).unwrap();
    }

    /// Makes the pod the node proxy's own.
    pub(crate) fn own_pod(&self) {
        let own = PodSpec { listeners: Listeners::Own, ..pod() };
        self.ask(|reply| Message::AddPod(own, reply)).unwrap();
    }

    /// Puts a pod with this search list in the pod's place.
    pub(crate) fn search(&self, list: &[&str]) {
        let list = list.iter().map(|domain| (*domain).to_owned()).collect();
        let pod = PodSpec { dns_search: Some(list), ..pod() };
        self.ask(|reply| Message::AddPod(pod, reply)).unwrap();
    }

    /// Puts a pod of the same uid in the pod's place and publishes the next generation, with no time between.
    pub(crate) fn replace_pod_and_publish(&mut self, change: impl FnOnce(&mut Snapshot)) {
        // A pod that is added takes the place of the one with its uid.
        let added = self.tell(|reply| Message::AddPod(pod(), reply));
        self.publish(change);
        added.recv_timeout(DEADLINE).expect("the shard answers").unwrap();
    }

    pub(crate) fn remove_pod(&self) {
        self.ask(|reply| Message::RemovePod(UID.into(), reply));
    }

    /// Publishes the next generation, and waits until it is in force.
    pub(crate) fn publish(&mut self, change: impl FnOnce(&mut Snapshot)) {
        change(&mut self.snapshot);
        self.snapshot.generation += 1;
        self.mailbox.send(Message::Publish(Arc::new(self.snapshot.clone())));
        assert_eq!(self.inspect().generation, self.snapshot.generation);
    }

    /// The next question of the shard.
    pub(crate) fn question(&self) -> Question {
        self.questions.recv_timeout(DEADLINE).expect("the shard asks")
    }

    /// The shard's certificate of an identity.
    pub(crate) fn certificate(&self, identity: &Identity) -> Arc<Certificate> {
        self.snapshot.certificates[identity].clone()
    }

    /// Publishes a policy that refuses every connection to `port`.
    pub(crate) fn deny(&mut self, port: u16) {
        let rule = vec![vec![Match { destination_ports: vec![port], ..Match::default() }]];
        let policy = Policy {
            name: format!("no-{port}").into(),
            namespace: "shop".into(),
            scope: Scope::Namespace,
            action: Action::Deny,
            rules: vec![rule],
            dry_run: false,
        };
        self.publish(|snapshot| snapshot.policies.insert(Arc::new(policy)));
    }

    /// Publishes the service, whose captured port leads to `port` of the pod.
    pub(crate) fn serve(&mut self, captured: u16, port: u16) {
        let key = service();
        let service = Service {
            key: key.clone(),
            name: "pay".into(),
            vips: vec![NetworkAddress { network: "".into(), ip: SERVICE.into() }],
            cidr_vips: vec![],
            ports: [(captured, port)].into(),
            subject_alt_names: vec![],
            waypoint: None,
            weighted_waypoints: vec![],
            load_balancer: None,
            ip_families: None,
            canonical: false,
            visibility: Visibility::Public,
        };
        let mut endpoint = workload();
        endpoint.services.insert(key, [(captured, port)].into());
        self.publish(|snapshot| {
            snapshot.services.insert(Arc::new(service));
            snapshot.workloads.insert(Arc::new(endpoint));
        });
    }

    /// Publishes that the service of [`Rig::serve`] is unknown again, while the pod still serves it.
    pub(crate) fn withdraw_service(&mut self) -> ServiceKey {
        let key = service();
        self.publish(|snapshot| drop(snapshot.services.remove(&key)));
        key
    }

    /// Publishes that the pod's own workload is unknown again.
    pub(crate) fn withdraw_pod(&mut self) -> Arc<Workload> {
        let known = self.snapshot.workloads.get(UID).unwrap().clone();
        self.publish(|snapshot| drop(snapshot.workloads.remove(UID)));
        known
    }

    pub(crate) fn inspect(&self) -> ShardReport {
        self.ask(|reply| Message::Inspect(View::Connections, reply))
    }

    pub(crate) fn series(&self) -> Vec<SeriesReport> {
        self.ask(|reply| Message::Inspect(View::Series, reply)).series
    }

    /// Begins a drain; the receiver hears of its end.
    pub(crate) fn drain(&self) -> mpsc::Receiver<()> {
        self.tell(Message::Drain)
    }

    /// Looks until `holds`; each look is answered by a turn of the shard.
    pub(crate) fn until(&self, what: &str, holds: impl Fn(&ShardReport) -> bool) {
        let begin = std::time::Instant::now();
        loop {
            let report = self.inspect();
            if holds(&report) {
                return;
            }
            assert!(begin.elapsed() < DEADLINE, "never {what}: {report:?}");
            thread::yield_now();
        }
    }

    fn ask<T: Send + 'static>(&self, message: impl FnOnce(Reply<T>) -> Message) -> T {
        self.tell(message).recv_timeout(DEADLINE).expect("the shard answers")
    }

    fn tell<T: Send + 'static>(&self, message: impl FnOnce(Reply<T>) -> Message) -> mpsc::Receiver<T> {
        let (sender, receiver) = mpsc::channel();
        // The test may have stopped listening.
        self.mailbox.send(message(Box::new(move |answer| drop(sender.send(answer)))));
        receiver
    }
}

fn pod() -> PodSpec {
    PodSpec {
        listeners: Listeners::Captured,
        dns_search: None,
        uid: UID.into(),
        name: "pay".into(),
        namespace: "shop".into(),
        service_account: "pay".into(),
        netns: Arc::new(OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap())),
    }
}

/// The service that the pod serves.
pub(crate) fn service() -> ServiceKey {
    ServiceKey::new("shop", "pay.shop.svc")
}

/// The pod, as the mesh knows it.
pub(crate) fn workload() -> Workload {
    Workload {
        uid: UID.into(),
        name: "pay".into(),
        namespace: "shop".into(),
        addresses: [IpAddr::from(POD)].into(),
        protocol: Protocol::Hbone,
        trust_domain: "cluster.local".into(),
        service_account: "pay".into(),
        ..Workload::default()
    }
}

/// A port of the pod.
pub(crate) fn at_pod(port: u16) -> SocketAddr {
    (POD, port).into()
}
