//! One connected proxy: its hello, its snapshot, then one order at a time, each acknowledged before the next.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use halo_core::zds::{self, Request, WorkloadInfo, ZdsError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::{Enrolled, Peer, PodInfo, Registration, Shared};
use crate::seqpacket::Seqpacket;

/// How long a proxy may take to read a message, and how long to acknowledge it.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// Pause after a failed accept, so that a lack of descriptors does not spin.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Orders that wait for one proxy.
const ORDERS_MAX: usize = 256;

/// What one proxy is told, with where its answer goes.
#[derive(Debug)]
pub(super) enum Order {
    Add { pod: PodInfo, netns: Arc<OwnedFd>, answer: oneshot::Sender<Result<(), String>> },
    Del { uid: String, answer: oneshot::Sender<Result<(), String>> },
}

/// Why a connection was given up.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the proxy closed the connection")]
    Closed,
    #[error("the proxy did not {0} within 5 s")]
    Slow(&'static str),
    #[error("the proxy broke the protocol: {0}")]
    Protocol(#[from] ZdsError),
    #[error("the proxy sent a message that was not asked for")]
    Unasked,
}

/// Serves a proxy until it goes, breaks the protocol or is too slow.
pub(super) async fn serve(socket: Seqpacket, number: u64, shared: Arc<Shared>) {
    match run(socket, number, shared).await {
        Ok(()) | Err(ConnectionError::Closed) => debug!(proxy = number, "connection ended"),
        Err(error) => warn!(proxy = number, %error, "the connection to a proxy was given up"),
    }
}

async fn run(socket: Seqpacket, number: u64, shared: Arc<Shared>) -> Result<(), ConnectionError> {
    hello(&socket).await?;
    let (orders, mut queue) = mpsc::channel(ORDERS_MAX);
    let (registration, pods) = Registration::new(number, orders, shared);
    let mut peer = Peer { socket, registration };
    replay(&mut peer, pods).await?;
    loop {
        tokio::select! {
            order = queue.recv() => match order {
                Some(order) => obey(&peer, order).await?,
                None => return Ok(()),
            },
            // A proxy speaks only when spoken to, so anything that arrives now ends the connection.
            message = peer.socket.receive() => {
                return Err(message?.map_or(ConnectionError::Closed, |_| ConnectionError::Unasked));
            }
        }
    }
}

async fn hello(socket: &Seqpacket) -> Result<(), ConnectionError> {
    let message = timeout(ANSWER_DEADLINE, socket.receive()).await;
    let message = message.map_err(|_| ConnectionError::Slow("say hello"))??.ok_or(ConnectionError::Closed)?;
    Ok(zds::decode_hello(&message.bytes)?)
}

/// Gives every known pod, then says that this is all. A pod that the proxy refuses does not stop the others.
async fn replay(peer: &mut Peer, pods: Vec<(String, Option<Enrolled>)>) -> Result<(), ConnectionError> {
    for (uid, pod) in pods {
        let answer = match pod {
            Some((info, netns)) => exchange(&peer.socket, &add(&info), Some(&netns)).await?,
            None => exchange(&peer.socket, &Request::Keep { uid: uid.as_str().into() }, None).await?,
        };
        if let Err(error) = &answer {
            warn!(proxy = peer.registration.number, uid, error, "the proxy refused a pod of its snapshot");
        }
        peer.registration.shared.answered(&uid, &answer);
    }
    if let Err(error) = exchange(&peer.socket, &Request::SnapshotSent, None).await? {
        warn!(proxy = peer.registration.number, error, "the proxy refused the end of its snapshot");
    }
    peer.registration.snapshot_taken();
    Ok(())
}

async fn obey(peer: &Peer, order: Order) -> Result<(), ConnectionError> {
    let (result, answer) = match order {
        Order::Add { pod, netns, answer } => (exchange(&peer.socket, &add(&pod), Some(&netns)).await, answer),
        Order::Del { uid, answer } => {
            (exchange(&peer.socket, &Request::Del { uid: uid.into() }, None).await, answer)
        }
    };
    // Whoever gave the order may have stopped waiting; the proxy has obeyed all the same.
    let told = result.as_ref().map_or_else(|error| Err(error.to_string()), Clone::clone);
    drop(answer.send(told));
    result.map(drop)
}

fn add(pod: &PodInfo) -> Request {
    let info = WorkloadInfo {
        name: pod.name.as_str().into(),
        namespace: pod.namespace.as_str().into(),
        service_account: pod.service_account.as_str().into(),
        dns_search: pod.dns_search.as_slice().into(),
    };
    Request::Add { uid: pod.uid.as_str().into(), info }
}

/// One message and its acknowledgement; the inner error is the proxy's text.
async fn exchange(
    socket: &Seqpacket,
    request: &Request,
    netns: Option<&OwnedFd>,
) -> Result<Result<(), String>, ConnectionError> {
    let bytes = zds::encode_request(request);
    let send = socket.send(&bytes, netns.map(AsFd::as_fd));
    timeout(ANSWER_DEADLINE, send).await.map_err(|_| ConnectionError::Slow("read a message"))??;
    let message = timeout(ANSWER_DEADLINE, socket.receive()).await;
    let message = message.map_err(|_| ConnectionError::Slow("acknowledge a message"))??;
    let message = message.ok_or(ConnectionError::Closed)?;
    Ok(zds::decode_response(&message.bytes)?.map_or(Ok(()), Err))
}
