//! The node proxy's end of ZDS: it stays connected to the node's CNI agent and does what [`ZdsSession`] decides.
//!
//! A request is answered before the next one is read. One that breaks the protocol is refused in its answer and changes
//! nothing; only a lost connection ends a connection, and then the pods that run stay up.

mod pods;
#[cfg(test)]
mod tests;

use std::future::pending;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use halo_core::zds::{self, Effect, NamespaceId, Request, ZdsError, ZdsSession};
use nix::sys::stat::fstat;
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use crate::pods::{PodTotals, PodView, Pods};
use crate::readiness::{Part, Readiness};
use crate::seqpacket::{Datagram, Seqpacket};
use crate::shards::Shards;
use pods::{Operations, PodPlaces};

/// First pause between two attempts to connect.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
/// Longest pause between two attempts to connect.
const BACKOFF_MAX: Duration = Duration::from_secs(15);

/// Where the client shows how its pods fare.
pub(crate) struct Shown {
    pub(crate) view: watch::Sender<Pods>,
    pub(crate) readiness: Readiness,
    pub(crate) totals: Arc<PodTotals>,
}

/// The client, with the pods it has taken on.
pub(crate) struct ZdsClient<S> {
    path: PathBuf,
    session: ZdsSession,
    places: PodPlaces,
    operations: Operations<S>,
    view: watch::Sender<Pods>,
    readiness: Readiness,
    /// Why there is no connection to the agent, once that is known.
    apart: Option<String>,
    started: Instant,
    /// Requests that could be read, over all connections.
    requests: u64,
}

impl<S: Shards> ZdsClient<S> {
    /// A client without pods, not connected yet.
    pub(crate) fn new(path: PathBuf, shards: S, shown: Shown) -> Self {
        let Shown { view, readiness, totals } = shown;
        Self {
            path,
            session: ZdsSession::new(),
            places: PodPlaces::default(),
            operations: Operations::new(shards, totals),
            view,
            readiness,
            apart: None,
            started: Instant::now(),
            requests: 0,
        }
    }

    /// Serves the agent for ever.
    pub(crate) async fn run(mut self) {
        let mut backoff = BACKOFF_MIN;
        loop {
            match self.connect().await {
                Ok(socket) => {
                    info!(path = %self.path.display(), "connected to the CNI agent");
                    self.apart = None;
                    self.session.connected();
                    let requests = self.requests;
                    let end = self.serve(&socket).await;
                    // An agent that only accepts and closes, or talks nonsense, is not worth a new attempt at once.
                    if self.requests > requests {
                        backoff = BACKOFF_MIN;
                    }
                    warn!(reason = %end, "the connection to the CNI agent is lost; pods stay up");
                    self.apart = Some(format!("the connection is lost: {end}"));
                    self.session.disconnected();
                    // Answers cannot leave any more, and the session makes none; what is left concerns pods.
                    drop(self.perform(None).await);
                }
                Err(error) => self.unreachable(&error),
            }
            self.wait(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Takes note of a failed attempt; it is told once for as long as the reason stays the same.
    fn unreachable(&mut self, error: &io::Error) {
        let why = Some(format!("it cannot be reached: {error}"));
        if self.apart != why {
            warn!(path = %self.path.display(), %error, "the CNI agent cannot be reached and is tried again");
            self.apart = why;
        }
    }

    async fn connect(&self) -> io::Result<Seqpacket> {
        let socket = Seqpacket::connect(&self.path)?;
        socket.send(&zds::encode_hello(), None).await?;
        Ok(socket)
    }

    /// Waits without a connection, while starts still end.
    async fn wait(&mut self, pause: Duration) {
        let until = Instant::now() + pause;
        self.report();
        loop {
            tokio::select! {
                () = sleep_until(until) => return,
                ended = self.operations.next() => {
                    let now_ms = self.now_ms();
                    ended.report(&mut self.session, now_ms);
                    drop(self.perform(None).await);
                }
            }
        }
    }

    /// Answers requests until the connection ends; says why it did.
    async fn serve(&mut self, socket: &Seqpacket) -> io::Error {
        loop {
            if let Err(error) = self.perform(Some(socket)).await {
                return error;
            }
            let timeout =
                self.session.poll_timeout().map(|due_ms| self.started + Duration::from_millis(due_ms));
            tokio::select! {
                // While a pod starts, nothing is read: its end alone lets the answer leave. A lost connection is
                // noticed when it does.
                message = socket.receive(), if !self.session.is_busy() => match message {
                    Ok(Some(message)) => self.handle(message),
                    Ok(None) => return io::ErrorKind::ConnectionAborted.into(),
                    Err(error) => return error,
                },
                ended = self.operations.next() => {
                    let now_ms = self.now_ms();
                    ended.report(&mut self.session, now_ms);
                }
                () = wait_for(timeout) => {
                    let now_ms = self.now_ms();
                    self.session.handle_timeout(now_ms);
                }
            }
        }
    }

    fn handle(&mut self, message: Datagram) {
        let mut descriptors = message.descriptors;
        let request = match message.bytes_truncated {
            true => Err(ZdsError::Malformed),
            false => zds::decode_request(&message.bytes, descriptors.len()),
        };
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                warn!(%error, cut = message.descriptors_truncated, "a request of the CNI agent is refused");
                return self.session.handle_error(&error);
            }
        };
        self.requests += 1;
        debug!(?request, "request of the CNI agent");
        let mut namespace = None;
        if let (Request::Add { uid, .. }, Some(netns)) = (&request, descriptors.pop()) {
            namespace = identify(&netns);
            if let Some(namespace) = namespace {
                self.places.insert(uid.clone(), namespace, netns);
            }
        }
        self.session.handle(request, namespace);
    }

    /// Does what the session decided, in order.
    async fn perform(&mut self, socket: Option<&Seqpacket>) -> io::Result<()> {
        while let Some(effect) = self.session.poll_effect() {
            match effect {
                Effect::Start { uid, info, namespace, attempt } => {
                    match self.places.pod(&uid, &info, namespace) {
                        Some(pod) => self.operations.start(pod, attempt),
                        None => {
                            let error = Err("its network namespace is not held any more".to_owned());
                            let now_ms = self.now_ms();
                            self.session.started(&uid, attempt, error, now_ms);
                        }
                    }
                }
                Effect::Stop { uid, namespace } => {
                    self.places.remove(&uid, Some(namespace));
                    self.operations.stop(uid);
                }
                Effect::Forget { uid } => self.places.remove(&uid, None),
                Effect::Ack { error } => {
                    if let Some(socket) = socket {
                        self.report();
                        socket.send(&zds::encode_ack(error.as_deref()), None).await?;
                    }
                }
            }
        }
        self.report();
        Ok(())
    }

    /// Shows the pods as they are now, and whether the node may be called ready.
    fn report(&self) {
        let shown = |info: &zds::WorkloadInfo, state| PodView { info: info.clone(), state, resident: false };
        let pods = self.session.pods();
        let mut view: Pods = pods.map(|(uid, info, state)| (uid.clone(), shown(info, state))).collect();
        let failed = |view: &Pods| view.values().filter(|pod| pod.state == zds::PodState::Pending).count();
        let why = match failed(&view) {
            0 => {
                let why = self.apart.as_deref().unwrap_or("it is connected");
                format!("no complete snapshot from the CNI agent at {}: {why}", self.path.display())
            }
            count => format!("{count} pods could not be started and are tried again"),
        };
        self.readiness.set(Part::WorkloadProxyManager, (!self.session.is_ready()).then_some(why));
        self.view.send_if_modified(|current| {
            let residents = current.iter().filter(|(_, pod)| pod.resident);
            view.extend(residents.map(|(uid, pod)| (uid.clone(), pod.clone())));
            let changed = *current != view;
            *current = view;
            changed
        });
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

async fn wait_for(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// Which namespace a descriptor is; `None` for anything else. Whether it is one of the network is seen when it is
/// entered, and is then an error of the pod.
fn identify(netns: &std::os::fd::OwnedFd) -> Option<NamespaceId> {
    let of_nsfs = fstatfs(netns).ok()?.filesystem_type() == NSFS_MAGIC;
    let stat = fstat(netns).ok()?;
    of_nsfs.then_some(NamespaceId { device: stat.st_dev, inode: stat.st_ino })
}
