//! What the agent's requests do: which pods are started, stopped and retried, and what each request is answered.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::{Request, WorkloadInfo, ZdsError};

#[cfg(test)]
mod tests;

/// How long a pod that could not be started waits for its next attempt, ms.
pub const RETRY_MS: u64 = 5_000;

/// A network namespace: device and inode of its descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespaceId {
    /// Device.
    pub device: u64,
    /// Inode.
    pub inode: u64,
}

/// What the caller has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Open the pod's listeners in this namespace, and report `started` with the same attempt.
    Start {
        /// The pod.
        uid: Arc<str>,
        /// Who it is.
        info: WorkloadInfo,
        /// Where: the descriptor of the pod's newest `Add`, which the caller keeps until `Stop` or `Forget`.
        namespace: NamespaceId,
        /// Tells apart several starts of one pod.
        attempt: u64,
    },
    /// Drain the pod's listeners and connections at once, also those of a start that has not been reported yet. A
    /// `Start` for the same pod in another namespace may follow.
    Stop {
        /// The pod.
        uid: Arc<str>,
        /// The namespace it was served in.
        namespace: NamespaceId,
    },
    /// The pod is not served and will not be retried: drop its descriptor.
    Forget {
        /// The pod.
        uid: Arc<str>,
    },
    /// Answer the request that is being handled: `None` is success.
    Ack {
        /// What failed.
        error: Option<String>,
    },
}

/// How far a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodState {
    /// Its listeners are being opened.
    Starting,
    /// It is served.
    Running,
    /// It could not be started, and will be tried again.
    Pending,
}

/// The proxy's half of ZDS, over any number of connections to the agent.
///
/// Order of calls: `connected`; then, for each datagram, `handle` or `handle_error`, and `poll_effect` until `None`. The
/// next datagram is read once `is_busy` is false, so answers leave in the order of the requests. `disconnected` ends the
/// connection; what runs stays up. A request that breaks the protocol is refused in its answer and changes nothing.
#[derive(Debug, Default)]
pub struct ZdsSession {
    pods: BTreeMap<Arc<str>, Pod>,
    /// Pods named since this connection began, while its snapshot is not complete.
    named: BTreeSet<Arc<str>>,
    connected: bool,
    snapshot_sent: bool,
    /// Counts connections, to know the starts that belong to an earlier one.
    connection: u64,
    attempts: u64,
    /// The start whose result is the answer that is due.
    awaited: Option<u64>,
    effects: VecDeque<Effect>,
}

#[derive(Debug)]
struct Pod {
    info: WorkloadInfo,
    namespace: NamespaceId,
    connection: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Starting { attempt: u64, again: bool },
    Running,
    Pending { retry_at_ms: u64 },
}

impl ZdsSession {
    /// No pods, no connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// A connection to the agent is open and hello was sent.
    pub fn connected(&mut self) {
        self.reset();
        self.connected = true;
        self.connection += 1;
        self.check();
    }

    /// The connection is lost. The agent names every pod again on the next one, so what was pending is forgotten.
    pub fn disconnected(&mut self) {
        self.reset();
        self.connected = false;
        self.check();
    }

    /// Handles a request. `namespace` identifies the descriptor that came with an `Add`.
    pub fn handle(&mut self, request: Request, namespace: Option<NamespaceId>) {
        debug_assert!(!self.is_busy(), "the next request is read once the last one is answered");
        let refused = match request {
            Request::Add { uid, info } => match namespace {
                Some(namespace) => {
                    self.add(uid, info, namespace);
                    None
                }
                None => Some(ZdsError::NotNamespace { uid }),
            },
            Request::Keep { uid } => self.keep(uid),
            Request::Del { uid } => {
                self.del(&uid);
                None
            }
            Request::SnapshotSent => self.snapshot_sent(),
        };
        if let Some(error) = refused {
            self.handle_error(&error);
        } else if !self.is_busy() {
            self.effects.push_back(Effect::Ack { error: None });
        }
        self.check();
    }

    /// Refuses a datagram that could not be read.
    pub fn handle_error(&mut self, error: &ZdsError) {
        self.effects.push_back(Effect::Ack { error: Some(error.to_string()) });
    }

    /// Reports the result of a start. One that a later request overtook is ignored.
    pub fn started(&mut self, uid: &str, attempt: u64, result: Result<(), String>, now_ms: u64) {
        let connection = self.connection;
        let Some(pod) = self.pods.get_mut(uid) else { return };
        if !matches!(pod.state, State::Starting { attempt: current, .. } if current == attempt) {
            return;
        }
        // A start of an earlier connection is not retried: if the pod still exists, the agent names it again.
        let current = self.connected && pod.connection == connection;
        match &result {
            Ok(()) => pod.state = State::Running,
            Err(_) if current => pod.state = State::Pending { retry_at_ms: now_ms.saturating_add(RETRY_MS) },
            Err(_) => self.forget(uid),
        }
        if self.awaited.take_if(|awaited| *awaited == attempt).is_some() {
            self.effects.push_back(Effect::Ack { error: result.err() });
        }
        self.check();
    }

    /// The next thing to do; `None` once all is done.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When `handle_timeout` is due, ms.
    pub fn poll_timeout(&self) -> Option<u64> {
        let retries = self.pods.values().filter_map(|pod| match pod.state {
            State::Pending { retry_at_ms } => Some(retry_at_ms),
            State::Starting { .. } | State::Running => None,
        });
        retries.min()
    }

    /// Starts the pending pods whose time has come.
    pub fn handle_timeout(&mut self, now_ms: u64) {
        let due = |pod: &Pod| matches!(pod.state, State::Pending { retry_at_ms } if retry_at_ms <= now_ms);
        let due: Vec<_> = self.pods.iter().filter(|(_, pod)| due(pod)).map(|(uid, _)| uid.clone()).collect();
        for uid in due {
            self.start(&uid, true);
        }
        self.check();
    }

    /// Whether the last request is still to be answered, because its pod is starting.
    pub fn is_busy(&self) -> bool {
        self.awaited.is_some()
    }

    /// Whether the agent is connected, has named every pod, and none of them failed to start.
    pub fn is_ready(&self) -> bool {
        let failed =
            |pod: &Pod| matches!(pod.state, State::Pending { .. } | State::Starting { again: true, .. });
        self.connected && self.snapshot_sent && !self.pods.values().any(failed)
    }

    /// Every pod, in order of uid.
    pub fn pods(&self) -> impl Iterator<Item = (&Arc<str>, &WorkloadInfo, PodState)> {
        self.pods.iter().map(|(uid, pod)| {
            let state = match pod.state {
                State::Starting { .. } => PodState::Starting,
                State::Running => PodState::Running,
                State::Pending { .. } => PodState::Pending,
            };
            (uid, &pod.info, state)
        })
    }

    fn add(&mut self, uid: Arc<str>, info: WorkloadInfo, namespace: NamespaceId) {
        if !self.snapshot_sent {
            self.named.insert(uid.clone());
        }
        if let Some(pod) = self.pods.get_mut(&uid).filter(|pod| pod.namespace == namespace) {
            pod.connection = self.connection;
            match pod.state {
                State::Running => return,
                State::Starting { attempt, .. } => {
                    self.awaited = Some(attempt);
                    return;
                }
                State::Pending { .. } => {}
            }
        }
        if let Some(old) = self.pods.get(&uid)
            && !matches!(old.state, State::Pending { .. })
        {
            self.effects.push_back(Effect::Stop { uid: uid.clone(), namespace: old.namespace });
        }
        let state = State::Starting { attempt: 0, again: false };
        self.pods.insert(uid.clone(), Pod { info, namespace, connection: self.connection, state });
        self.awaited = self.start(&uid, false);
    }

    fn keep(&mut self, uid: Arc<str>) -> Option<ZdsError> {
        if self.snapshot_sent {
            return Some(ZdsError::KeepAfterSnapshot { uid });
        }
        // A start that an earlier connection asked for is from now on this one's, and is retried if it fails.
        if let Some(pod) = self.pods.get_mut(&uid) {
            pod.connection = self.connection;
        }
        self.named.insert(uid);
        None
    }

    fn del(&mut self, uid: &str) {
        if self.snapshot_sent {
            self.remove(uid);
            return;
        }
        // What runs is stopped by the snapshot, which no longer names it.
        self.named.remove(uid);
        if self.pods.get(uid).is_some_and(|pod| pod.state != State::Running) {
            self.remove(uid);
        }
    }

    fn snapshot_sent(&mut self) -> Option<ZdsError> {
        if self.snapshot_sent {
            return Some(ZdsError::SecondSnapshot);
        }
        self.snapshot_sent = true;
        let named = std::mem::take(&mut self.named);
        let gone: Vec<_> = self.pods.keys().filter(|uid| !named.contains(*uid)).cloned().collect();
        for uid in gone {
            self.remove(&uid);
        }
        None
    }

    fn start(&mut self, uid: &Arc<str>, again: bool) -> Option<u64> {
        let pod = self.pods.get_mut(uid)?;
        self.attempts += 1;
        let attempt = self.attempts;
        pod.state = State::Starting { attempt, again };
        let (info, namespace) = (pod.info.clone(), pod.namespace);
        self.effects.push_back(Effect::Start { uid: uid.clone(), info, namespace, attempt });
        Some(attempt)
    }

    /// Stops or forgets a pod, whichever its state asks for.
    fn remove(&mut self, uid: &str) {
        match self.pods.get(uid).map(|pod| pod.state) {
            Some(State::Running | State::Starting { .. }) => {
                if let Some((uid, pod)) = self.pods.remove_entry(uid) {
                    self.effects.push_back(Effect::Stop { uid, namespace: pod.namespace });
                }
            }
            Some(State::Pending { .. }) => self.forget(uid),
            None => {}
        }
    }

    fn forget(&mut self, uid: &str) {
        if let Some((uid, _)) = self.pods.remove_entry(uid) {
            self.effects.push_back(Effect::Forget { uid });
        }
    }

    /// Forgets what belongs to one connection only, answers that can no longer be sent among it.
    fn reset(&mut self) {
        self.named.clear();
        self.snapshot_sent = false;
        self.awaited = None;
        self.effects.retain(|effect| !matches!(effect, Effect::Ack { .. }));
        let pending = |pod: &Pod| matches!(pod.state, State::Pending { .. });
        let pending: Vec<_> =
            self.pods.iter().filter(|(_, pod)| pending(pod)).map(|(uid, _)| uid.clone()).collect();
        for uid in pending {
            self.forget(&uid);
        }
    }

    fn check(&self) {
        debug_assert!(self.connected || !self.snapshot_sent, "a snapshot belongs to a connection");
        debug_assert!(!self.snapshot_sent || self.named.is_empty(), "names are kept until the snapshot only");
        let awaited = |attempt: u64| {
            self.pods
                .values()
                .any(|pod| matches!(pod.state, State::Starting { attempt: a, .. } if a == attempt))
        };
        debug_assert!(self.awaited.is_none_or(awaited), "an answer waits for a start that nobody performs");
    }
}
