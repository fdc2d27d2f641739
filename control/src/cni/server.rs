//! The node agent's half of ZDS: it tells the node's proxies which pods to carry, and hands over their namespaces.
//!
//! Several proxies may be connected while one replaces another: `add` goes to the newest, `del` to all, and each new
//! one gets every known pod first. It decides nothing about pods; the agent that owns it does.

mod connection;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::seqpacket::{Seqpacket, SeqpacketListener};
use connection::Order;

/// Who a pod is, as the agent knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodInfo {
    /// Kubernetes uid.
    pub uid: String,
    /// Pod name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// The search list of its resolver; empty where it is not known.
    pub dns_search: Vec<String>,
}

/// A pod with its network namespace.
type Enrolled = (PodInfo, Arc<OwnedFd>);

/// What the server knows; nothing in it is held across an await.
#[derive(Debug, Default)]
struct State {
    /// By uid; `None` is a pod whose namespace the agent does not hold, which a proxy that has it should keep.
    pods: BTreeMap<String, Option<Enrolled>>,
    /// Oldest first, each with its number.
    proxies: Vec<(u64, mpsc::Sender<Order>)>,
    /// The last error that a proxy gave for a pod, by uid.
    failures: BTreeMap<String, String>,
}

/// State that the accept task and the connections share with the server.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Proxies that have acknowledged their snapshot.
    ready: watch::Sender<usize>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers how a proxy answered for a pod.
    fn answered(&self, uid: &str, answer: &Result<(), String>) {
        let mut state = self.state();
        match answer {
            Ok(()) => drop(state.failures.remove(uid)),
            Err(error) => drop(state.failures.insert(uid.to_owned(), error.clone())),
        }
    }
}

/// A listening ZDS server. Dropping it closes every connection and removes its socket.
#[derive(Debug)]
pub struct ZdsServer {
    path: PathBuf,
    shared: Arc<Shared>,
    accept: JoinHandle<()>,
}

impl ZdsServer {
    /// Listens on a path, replacing a socket left by an earlier process. Must be called on a tokio runtime.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::bind_with(path, [])
    }

    /// As [`ZdsServer::bind`], with pods that are known already, as they are to an agent that starts again: the first
    /// proxy to connect is given them.
    pub fn bind_with(
        path: impl AsRef<Path>,
        pods: impl IntoIterator<Item = (PodInfo, OwnedFd)>,
    ) -> io::Result<Self> {
        let path = path.as_ref().to_path_buf();
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let listener = SeqpacketListener::bind(&path)?;
        let known = |(pod, netns): (PodInfo, OwnedFd)| (pod.uid.clone(), Some((pod, Arc::new(netns))));
        let state = State { pods: pods.into_iter().map(known).collect(), ..State::default() };
        let shared = Arc::new(Shared { state: Mutex::new(state), ready: watch::Sender::new(0) });
        let accept = tokio::spawn(accept(listener, shared.clone()));
        Ok(Self { path, shared, accept })
    }

    /// The path it listens on.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Enrols a pod: the newest proxy is told, and its answer awaited. The error is the proxy's own text, or says why
    /// there is none. The pod stays known either way, so that the next proxy to connect is given it.
    pub async fn add(&self, pod: PodInfo, netns: OwnedFd) -> Result<(), String> {
        let uid = pod.uid.clone();
        let entry = (pod, Arc::new(netns));
        let newest = {
            let mut state = self.shared.state();
            state.pods.insert(uid.clone(), Some(entry.clone()));
            state.proxies.last().map(|(_, orders)| orders.clone())
        };
        let Some(orders) = newest else {
            return Err("no proxy is connected; the pod will be given to the next one".to_owned());
        };
        let (answer, answered) = oneshot::channel();
        let result = order(&orders, Order::Add { pod: entry.0, netns: entry.1, answer }, answered).await;
        self.shared.answered(&uid, &result);
        result
    }

    /// Makes a pod known without its namespace: a proxy that connects is told to keep it if it has it.
    pub fn keep(&self, uid: &str) {
        self.shared.state().pods.entry(uid.to_owned()).or_insert(None);
    }

    /// Removes a pod from every proxy and waits for their answers; the error joins the texts of those that failed.
    pub async fn del(&self, uid: &str) -> Result<(), String> {
        let proxies: Vec<_> = {
            let mut state = self.shared.state();
            state.pods.remove(uid);
            state.failures.remove(uid);
            state.proxies.iter().map(|(_, orders)| orders.clone()).collect()
        };
        let mut waiting = Vec::new();
        for orders in &proxies {
            let (answer, answered) = oneshot::channel();
            waiting.push(order(orders, Order::Del { uid: uid.to_owned(), answer }, answered));
        }
        let mut errors = Vec::new();
        for answer in join_all(waiting).await {
            errors.extend(answer.err());
        }
        if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
    }

    /// Waits until at least one proxy has taken its snapshot; gives how many have.
    pub async fn connected(&self) -> usize {
        self.connected_count(1).await
    }

    /// Waits until at least `count` proxies have taken their snapshot; gives how many have.
    pub async fn connected_count(&self, count: usize) -> usize {
        let mut ready = self.shared.ready.subscribe();
        ready.wait_for(|ready| *ready >= count).await.map_or(0, |ready| *ready)
    }

    /// How many proxies have taken their snapshot.
    pub fn ready_count(&self) -> usize {
        *self.shared.ready.borrow()
    }

    /// The last error of each pod that a proxy refused and has not taken since, by uid.
    pub fn failures(&self) -> BTreeMap<String, String> {
        self.shared.state().failures.clone()
    }
}

impl Drop for ZdsServer {
    fn drop(&mut self) {
        self.accept.abort();
        // Their queues end, and with them the connections.
        self.shared.state().proxies.clear();
        if let Err(error) = std::fs::remove_file(&self.path) {
            warn!(path = %self.path.display(), %error, "the socket could not be removed");
        }
    }
}

async fn order(
    orders: &mpsc::Sender<Order>,
    order: Order,
    answered: oneshot::Receiver<Result<(), String>>,
) -> Result<(), String> {
    let gone = || "the proxy disconnected before it answered".to_owned();
    orders.send(order).await.map_err(|_| gone())?;
    answered.await.unwrap_or_else(|_| Err(gone()))
}

/// Runs all of them at once.
async fn join_all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut slots: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for (future, output) in &mut slots {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *output = Some(value),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    slots.into_iter().filter_map(|(_, output)| output).collect()
}

async fn accept(listener: SeqpacketListener, shared: Arc<Shared>) {
    let mut number = 0;
    loop {
        match listener.accept().await {
            Ok(socket) => {
                number += 1;
                tokio::spawn(connection::serve(socket, number, shared.clone()));
            }
            Err(error) => {
                warn!(%error, "a proxy could not be accepted");
                tokio::time::sleep(connection::ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Registers a connection while it is served, so that every way out of it unregisters it.
struct Registration {
    number: u64,
    ready: bool,
    shared: Arc<Shared>,
}

impl Registration {
    /// Takes the pods known now; later ones come as orders.
    fn new(
        number: u64,
        orders: mpsc::Sender<Order>,
        shared: Arc<Shared>,
    ) -> (Self, Vec<(String, Option<Enrolled>)>) {
        let mut state = shared.state();
        state.proxies.push((number, orders));
        let pods = state.pods.iter().map(|(uid, pod)| (uid.clone(), pod.clone())).collect();
        drop(state);
        info!(proxy = number, "a proxy connected");
        (Self { number, ready: false, shared }, pods)
    }

    fn snapshot_taken(&mut self) {
        self.ready = true;
        self.shared.ready.send_modify(|ready| *ready += 1);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.shared.state().proxies.retain(|(number, _)| *number != self.number);
        if self.ready {
            self.shared.ready.send_modify(|ready| *ready -= 1);
        }
        info!(proxy = self.number, "a proxy disconnected");
    }
}

/// The socket of a connection with what its task needs.
struct Peer {
    socket: Seqpacket,
    registration: Registration,
}
