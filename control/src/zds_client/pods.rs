//! The namespaces that pods live in, and what the shards are being told about pods.

use std::collections::{BTreeMap, HashMap};
use std::future::pending;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use halo_core::net::Listeners;
use halo_core::zds::{NamespaceId, WorkloadInfo, ZdsSession};
use tokio::sync::oneshot;
use tokio::task::{self, JoinSet};
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::pods::PodTotals;
use crate::shards::{Pod, Shards};

/// The descriptor of each pod's newest `add`.
#[derive(Debug, Default)]
pub(super) struct PodPlaces(BTreeMap<Arc<str>, (NamespaceId, Arc<OwnedFd>)>);

impl PodPlaces {
    pub(super) fn insert(&mut self, uid: Arc<str>, namespace: NamespaceId, netns: OwnedFd) {
        self.0.insert(uid, (namespace, Arc::new(netns)));
    }

    /// Drops the descriptor of a pod, unless it is already of another namespace than the one that is left.
    pub(super) fn remove(&mut self, uid: &str, left: Option<NamespaceId>) {
        if self.0.get(uid).is_some_and(|(namespace, _)| left.is_none_or(|left| left == *namespace)) {
            self.0.remove(uid);
        }
    }

    pub(super) fn pod(&self, uid: &Arc<str>, info: &WorkloadInfo, namespace: NamespaceId) -> Option<Pod> {
        let (_, netns) = self.0.get(uid).filter(|(held, _)| *held == namespace)?;
        Some(Pod {
            listeners: Listeners::Captured,
            dns_search: Some(info.dns_search.clone()).filter(|search| !search.is_empty()),
            uid: uid.clone(),
            name: info.name.clone(),
            namespace: info.namespace.clone(),
            service_account: info.service_account.clone(),
            netns: netns.clone(),
        })
    }
}

/// How long the shards may take to open a pod's listeners: the agent waits 5 s for the answer.
const ADD_MAX: Duration = Duration::from_secs(4);

/// Has the shards open a pod. What a shard does after the deadline it undoes.
async fn add<S: Shards>(shards: S, pod: Pod) -> Result<(), String> {
    let uid = pod.uid.clone();
    match timeout(ADD_MAX, shards.add_pod(pod)).await {
        Ok(added) => added.map_err(|error| error.to_string()),
        Err(_) => {
            // Shards take their orders in turn, so this one comes after the other.
            tokio::spawn(async move { shards.remove_pod(uid).await });
            Err(format!("a shard did not open the pod's listeners within {ADD_MAX:?}"))
        }
    }
}

/// An operation that ended.
#[derive(Debug)]
pub(super) struct Ended {
    uid: Arc<str>,
    /// Of a start: which one.
    attempt: Option<u64>,
    /// How it ended. A stop fails only by a defect in this program.
    result: Result<(), String>,
}

impl Ended {
    /// Tells the session.
    pub(super) fn report(self, session: &mut ZdsSession, now_ms: u64) {
        let Self { uid, attempt, result } = self;
        match (attempt, &result) {
            (Some(_), Ok(())) => info!(%uid, "pod added"),
            (Some(_), Err(error)) => warn!(%uid, error, "pod not added"),
            (None, Ok(())) => info!(%uid, "pod removed"),
            (None, Err(error)) => error!(%uid, error, "pod not removed"),
        }
        if let Some(attempt) = attempt {
            session.started(&uid, attempt, result, now_ms);
        }
    }
}

/// What the shards are being told. Operations on different pods run side by side; those on one pod run one after the
/// other, so that a stop never overtakes the start before it.
pub(super) struct Operations<S> {
    shards: S,
    totals: Arc<PodTotals>,
    running: JoinSet<Result<(), String>>,
    /// What each running task does: the pod, and of a start its attempt.
    tasks: HashMap<task::Id, (Arc<str>, Option<u64>)>,
    /// For each pod with operations: how many, and the end of the last one.
    last: BTreeMap<Arc<str>, (usize, oneshot::Receiver<()>)>,
}

impl<S: Shards> Operations<S> {
    pub(super) fn new(shards: S, totals: Arc<PodTotals>) -> Self {
        Self { shards, totals, running: JoinSet::new(), tasks: HashMap::new(), last: BTreeMap::new() }
    }

    pub(super) fn start(&mut self, pod: Pod, attempt: u64) {
        let (before, ends) = self.enqueue(&pod.uid);
        let (uid, shards) = (pod.uid.clone(), self.shards.clone());
        let task = self.running.spawn(async move {
            let _ends = ends;
            finished(before).await;
            add(shards, pod).await
        });
        self.tasks.insert(task.id(), (uid, Some(attempt)));
    }

    pub(super) fn stop(&mut self, uid: Arc<str>) {
        let (before, ends) = self.enqueue(&uid);
        let (gone, shards) = (uid.clone(), self.shards.clone());
        let task = self.running.spawn(async move {
            let _ends = ends;
            finished(before).await;
            shards.remove_pod(gone).await;
            Ok(())
        });
        self.tasks.insert(task.id(), (uid, None));
    }

    /// The end of the operation before, and what ends this one when it is dropped.
    fn enqueue(&mut self, uid: &Arc<str>) -> (Option<oneshot::Receiver<()>>, oneshot::Sender<()>) {
        let (ends, end) = oneshot::channel();
        let (count, before) = match self.last.remove(uid) {
            Some((count, before)) => (count, Some(before)),
            None => (0, None),
        };
        self.last.insert(uid.clone(), (count + 1, end));
        (before, ends)
    }

    /// The next operation to end; never, while there is none.
    pub(super) async fn next(&mut self) -> Ended {
        loop {
            let (id, result) = match self.running.join_next_with_id().await {
                Some(Ok((id, result))) => (id, result),
                Some(Err(failure)) => (failure.id(), Err(format!("internal error: {failure}"))),
                None => return pending().await,
            };
            let Some((uid, attempt)) = self.tasks.remove(&id) else { continue };
            if let Some((count, _)) = self.last.get_mut(&uid) {
                *count -= 1;
                if *count == 0 {
                    self.last.remove(&uid);
                }
            }
            match (attempt, &result) {
                (Some(_), Ok(())) => self.totals.count_started(),
                (None, Ok(())) => self.totals.count_stopped(),
                (_, Err(_)) => {}
            }
            return Ended { uid, attempt, result };
        }
    }
}

async fn finished(operation: Option<oneshot::Receiver<()>>) {
    if let Some(operation) = operation {
        // Nothing is ever sent: it ends by being dropped.
        drop(operation.await);
    }
}
