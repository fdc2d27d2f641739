//! A data plane for tests: it records what it is told and answers as the test wants.

pub(crate) mod authority;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use halo_core::certificate::Certificate;
use halo_core::id::Identity;
use halo_core::report::{ShardReport, View};
use halo_core::snapshot::Snapshot;
use imbl::HashMap;
use tokio::sync::watch;

use crate::publish::Publisher;
use crate::shards::{Pod, PodError, Shards};

/// How long a test waits for what must happen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// A publisher that runs beside the test.
pub(crate) fn publisher(shards: &FakeShards) -> Publisher {
    let (publisher, publishing) = Publisher::new(Snapshot::default(), shards.clone());
    tokio::spawn(publishing);
    publisher
}

/// The certificates of one generation.
pub(crate) type Certificates = HashMap<Identity, Arc<Certificate>>;

#[derive(Debug, Clone)]
pub(crate) struct FakeShards {
    published: Arc<watch::Sender<Arc<Snapshot>>>,
    /// The certificates of every generation.
    pub(crate) certificates: Arc<Mutex<Vec<Certificates>>>,
    pods: Arc<watch::Sender<BTreeMap<Arc<str>, Pod>>>,
    /// Pods that cannot be bound, with the cause.
    pub(crate) broken: Arc<Mutex<BTreeMap<String, String>>>,
    /// Pods whose listeners are never open and never refused.
    pub(crate) stuck: Arc<Mutex<BTreeSet<String>>>,
    publish_broken: Arc<AtomicBool>,
    /// Whether `inspect` never ends.
    pub(crate) mute: Arc<AtomicBool>,
    /// Whether `drain` does not end.
    pub(crate) hold_drain: Arc<AtomicBool>,
    /// What `inspect` gives.
    pub(crate) reports: Arc<Mutex<Vec<ShardReport>>>,
    /// Calls in order, for example `add a` and `remove a`.
    pub(crate) calls: Arc<Mutex<Vec<String>>>,
}

impl Default for FakeShards {
    fn default() -> Self {
        Self {
            published: Arc::new(watch::Sender::new(Arc::default())),
            certificates: Arc::default(),
            pods: Arc::default(),
            broken: Arc::default(),
            stuck: Arc::default(),
            publish_broken: Arc::default(),
            mute: Arc::default(),
            hold_drain: Arc::default(),
            reports: Arc::default(),
            calls: Arc::default(),
        }
    }
}

impl FakeShards {
    pub(crate) fn published(&self) -> Arc<Snapshot> {
        self.published.borrow().clone()
    }

    /// Waits for a published snapshot of which something holds.
    pub(crate) async fn snapshot_where(&self, holds: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let mut published = self.published.subscribe();
        let found = tokio::time::timeout(DEADLINE, published.wait_for(|snapshot| holds(snapshot))).await;
        found.expect("no such snapshot was published in time").unwrap().clone()
    }

    /// Waits until exactly these pods are bound.
    pub(crate) async fn pods_are(&self, uids: &[&str]) {
        let mut pods = self.pods.subscribe();
        let same = |pods: &BTreeMap<Arc<str>, Pod>| pods.keys().map(|uid| &**uid).eq(uids.iter().copied());
        let found = tokio::time::timeout(DEADLINE, pods.wait_for(same)).await;
        assert!(found.is_ok(), "the pods are {:?}, not {uids:?}", self.pods.borrow().keys());
    }

    pub(crate) fn break_pod(&self, uid: &str, cause: &str) {
        self.broken.lock().unwrap().insert(uid.into(), cause.into());
    }

    /// From now on a new generation is a panic.
    pub(crate) fn break_publish(&self) {
        self.publish_broken.store(true, Ordering::SeqCst);
    }

    /// A pod that is bound.
    pub(crate) fn pod(&self, uid: &str) -> Option<Pod> {
        self.pods.borrow().get(uid).cloned()
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

impl Shards for FakeShards {
    fn publish(&self, snapshot: Arc<Snapshot>) {
        assert!(!self.publish_broken.load(Ordering::SeqCst), "the test breaks the publisher");
        self.certificates.lock().unwrap().push(snapshot.certificates.clone());
        self.published.send_replace(snapshot);
    }

    async fn add_pod(&self, pod: Pod) -> Result<(), PodError> {
        tokio::task::yield_now().await;
        self.calls.lock().unwrap().push(format!("add {}", pod.uid));
        let stuck = self.stuck.lock().unwrap().contains(&*pod.uid);
        if stuck {
            std::future::pending::<()>().await;
        }
        if let Some(cause) = self.broken.lock().unwrap().get(&*pod.uid) {
            return Err(PodError { uid: pod.uid, step: "bind 15008", cause: cause.clone() });
        }
        self.pods.send_modify(|pods| drop(pods.insert(pod.uid.clone(), pod)));
        Ok(())
    }

    async fn remove_pod(&self, uid: Arc<str>) {
        tokio::task::yield_now().await;
        self.calls.lock().unwrap().push(format!("remove {uid}"));
        self.pods.send_modify(|pods| drop(pods.remove(&uid)));
    }

    fn count(&self) -> usize {
        self.reports.lock().unwrap().len()
    }

    async fn inspect(&self, _: View) -> Vec<ShardReport> {
        if self.mute.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        self.reports.lock().unwrap().clone()
    }

    async fn drain(&self) {
        self.calls.lock().unwrap().push("drain".into());
        while self.hold_drain.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
        self.pods.send_modify(BTreeMap::clear);
    }
}
