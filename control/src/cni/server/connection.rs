//! One connected proxy: its hello, its snapshot, then one order at a time, each acknowledged before the next.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::{Enrolled, Peer, PodInfo, Registration, Shared};
use crate::cni::message::{Add, Del, Hello, Info, Keep, Payload, Request, Response, SnapshotSent, VERSION_1};
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
    #[error("the proxy sent a message that is not a ZDS {0}")]
    Malformed(&'static str),
    #[error("the proxy sent a message that was not asked for")]
    Unasked,
    #[error("the proxy speaks version {0} of ZDS, not 1")]
    Version(i32),
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
    let hello = Hello::decode(&*message.bytes).map_err(|_| ConnectionError::Malformed("hello"))?;
    if hello.version == VERSION_1 { Ok(()) } else { Err(ConnectionError::Version(hello.version)) }
}

/// Gives every known pod, then says that this is all. A pod that the proxy refuses does not stop the others.
async fn replay(peer: &mut Peer, pods: Vec<(String, Option<Enrolled>)>) -> Result<(), ConnectionError> {
    for (uid, pod) in pods {
        let answer = match pod {
            Some((info, netns)) => exchange(&peer.socket, add(&info), Some(&netns)).await?,
            None => exchange(&peer.socket, Payload::Keep(Keep { uid: uid.clone() }), None).await?,
        };
        if let Err(error) = &answer {
            warn!(proxy = peer.registration.number, uid, error, "the proxy refused a pod of its snapshot");
        }
        peer.registration.shared.answered(&uid, &answer);
    }
    if let Err(error) = exchange(&peer.socket, Payload::SnapshotSent(SnapshotSent {}), None).await? {
        warn!(proxy = peer.registration.number, error, "the proxy refused the end of its snapshot");
    }
    peer.registration.snapshot_taken();
    Ok(())
}

async fn obey(peer: &Peer, order: Order) -> Result<(), ConnectionError> {
    let (result, answer) = match order {
        Order::Add { pod, netns, answer } => (exchange(&peer.socket, add(&pod), Some(&netns)).await, answer),
        Order::Del { uid, answer } => (exchange(&peer.socket, Payload::Del(Del { uid }), None).await, answer),
    };
    // Whoever gave the order may have stopped waiting; the proxy has obeyed all the same.
    let told = result.as_ref().map_or_else(|error| Err(error.to_string()), Clone::clone);
    drop(answer.send(told));
    result.map(drop)
}

fn add(pod: &PodInfo) -> Payload {
    let info = Info {
        name: pod.name.clone(),
        namespace: pod.namespace.clone(),
        service_account: pod.service_account.clone(),
    };
    Payload::Add(Add { uid: pod.uid.clone(), info: Some(info) })
}

/// One message and its acknowledgement; the inner error is the proxy's text.
async fn exchange(
    socket: &Seqpacket,
    payload: Payload,
    netns: Option<&OwnedFd>,
) -> Result<Result<(), String>, ConnectionError> {
    let bytes = Request { payload: Some(payload) }.encode_to_vec();
    let send = socket.send(&bytes, netns.map(AsFd::as_fd));
    timeout(ANSWER_DEADLINE, send).await.map_err(|_| ConnectionError::Slow("read a message"))??;
    let message = timeout(ANSWER_DEADLINE, socket.receive()).await;
    let message = message.map_err(|_| ConnectionError::Slow("acknowledge a message"))??;
    let message = message.ok_or(ConnectionError::Closed)?;
    let response = Response::decode(&*message.bytes).map_err(|_| ConnectionError::Malformed("response"))?;
    let ack = response.ack.ok_or(ConnectionError::Malformed("response"))?;
    if ack.error.is_empty() { Ok(Ok(())) } else { Ok(Err(ack.error)) }
}
