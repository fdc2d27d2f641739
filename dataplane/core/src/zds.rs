//! ZDS, the protocol by which the node agent hands pods to the node proxy (package `istio.workload.zds`): its codec.
//!
//! One datagram of a SEQPACKET socket is one bare protobuf message; direction and order say which. The proxy says hello
//! once and then answers every request with one acknowledgement, in order. What the requests do is decided by
//! [`session::ZdsSession`]; sockets and descriptors belong to the caller.

use std::sync::Arc;

use prost::Message;

mod message;
pub mod session;
#[cfg(test)]
mod tests;

use message::{Payload, Reply};
pub use session::{Effect, NamespaceId, PodState, ZdsSession};

/// The receive buffer of either side: no message may be longer.
pub const DATAGRAM_MAX: usize = 1024;
/// Longest error text in an acknowledgement, so that the message fits the peer's buffer with its tags and lengths.
const ERROR_TEXT_MAX: usize = DATAGRAM_MAX - 16;

/// Who a pod is, as the agent tells it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WorkloadInfo {
    /// Pod name.
    pub name: Arc<str>,
    /// Pod namespace.
    pub namespace: Arc<str>,
    /// Service account.
    pub service_account: Arc<str>,
    /// The search list of the pod's resolver; empty where the agent does not say. Other agents never do, and other
    /// proxies pass it over.
    pub dns_search: Arc<[String]>,
}

/// What the agent asks for. A uid is the pod's Kubernetes uid and never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Serve this pod; one descriptor, the pod's network namespace, comes with the message.
    Add {
        /// The pod.
        uid: Arc<str>,
        /// Who it is.
        info: WorkloadInfo,
    },
    /// The pod still exists, and the agent has no descriptor for it.
    Keep {
        /// The pod.
        uid: Arc<str>,
    },
    /// The pod is gone.
    Del {
        /// The pod.
        uid: Arc<str>,
    },
    /// Every pod that exists has been named.
    SnapshotSent,
}

/// How a message breaks the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ZdsError {
    /// The bytes are not the message that is due.
    #[error("the message is not valid protobuf or is cut short")]
    Malformed,
    /// A request or response of a type that this version does not know, or of none.
    #[error("the message has no payload of a known type")]
    UnknownType,
    /// A request without a uid.
    #[error("the request has an empty uid")]
    EmptyUid,
    /// An `add` that does not say who the pod is.
    #[error("the request to add {uid} has no workload info")]
    MissingInfo {
        /// The pod.
        uid: Arc<str>,
    },
    /// Too few or too many descriptors for this request.
    #[error("the request came with {found} descriptors, expected {expected}")]
    Descriptors {
        /// How many came.
        found: usize,
        /// How many belong to the request.
        expected: usize,
    },
    /// An `add` whose descriptor could not be identified.
    #[error("the descriptor of {uid} is not a network namespace")]
    NotNamespace {
        /// The pod.
        uid: Arc<str>,
    },
    /// A `keep` after the snapshot.
    #[error("keep of {uid} after the snapshot")]
    KeepAfterSnapshot {
        /// The pod.
        uid: Arc<str>,
    },
    /// A second snapshot on one connection.
    #[error("the snapshot was already sent on this connection")]
    SecondSnapshot,
    /// A hello in a version other than V1.
    #[error("version {version} is not supported")]
    Version {
        /// The version's number.
        version: i32,
    },
}

/// Reads a request that came with this many descriptors.
pub fn decode_request(bytes: &[u8], descriptors: usize) -> Result<Request, ZdsError> {
    let request = message::WorkloadRequest::decode(bytes).map_err(|_| ZdsError::Malformed)?;
    let request = match request.payload.ok_or(ZdsError::UnknownType)? {
        Payload::Add(add) => {
            let uid = uid(&add.uid)?;
            let Some(info) = add.workload_info else { return Err(ZdsError::MissingInfo { uid }) };
            Request::Add { uid, info: info.into() }
        }
        Payload::Keep(keep) => Request::Keep { uid: uid(&keep.uid)? },
        Payload::Del(del) => Request::Del { uid: uid(&del.uid)? },
        Payload::SnapshotSent(_) => Request::SnapshotSent,
    };
    let expected = usize::from(matches!(request, Request::Add { .. }));
    if descriptors != expected {
        return Err(ZdsError::Descriptors { found: descriptors, expected });
    }
    Ok(request)
}

/// Writes the proxy's first message.
pub fn encode_hello() -> Vec<u8> {
    message::ZdsHello { version: message::VERSION_V1 }.encode_to_vec()
}

/// Writes the answer to one request: `None` is success. A long text is cut to what the agent's buffer holds.
pub fn encode_ack(error: Option<&str>) -> Vec<u8> {
    let error = error.unwrap_or_default();
    let cut = (0..=error.len().min(ERROR_TEXT_MAX)).rfind(|place| error.is_char_boundary(*place));
    let error = error[..cut.unwrap_or(0)].to_owned();
    message::WorkloadResponse { payload: Some(Reply::Ack(message::Ack { error })) }.encode_to_vec()
}

/// Reads the proxy's first message; the agent's half.
pub fn decode_hello(bytes: &[u8]) -> Result<(), ZdsError> {
    let hello = message::ZdsHello::decode(bytes).map_err(|_| ZdsError::Malformed)?;
    match hello.version {
        message::VERSION_V1 => Ok(()),
        version => Err(ZdsError::Version { version }),
    }
}

/// Writes a request; the agent's half. An `Add` is to be sent with one descriptor. A search list with which it would not
/// fit the proxy's buffer is left out.
pub fn encode_request(request: &Request) -> Vec<u8> {
    let bytes = encode(request);
    match request {
        Request::Add { uid, info } if bytes.len() > DATAGRAM_MAX => {
            let info = WorkloadInfo { dns_search: Arc::default(), ..info.clone() };
            encode(&Request::Add { uid: uid.clone(), info })
        }
        _ => bytes,
    }
}

fn encode(request: &Request) -> Vec<u8> {
    let payload = match request {
        Request::Add { uid, info } => {
            let workload_info = Some(info.into());
            Payload::Add(message::AddWorkload { uid: uid.to_string(), workload_info })
        }
        Request::Keep { uid } => Payload::Keep(message::KeepWorkload { uid: uid.to_string() }),
        Request::Del { uid } => Payload::Del(message::DelWorkload { uid: uid.to_string() }),
        Request::SnapshotSent => Payload::SnapshotSent(message::SnapshotSent {}),
    };
    message::WorkloadRequest { payload: Some(payload) }.encode_to_vec()
}

/// Reads the answer to one request; the agent's half. `Some` is the text of a failure.
pub fn decode_response(bytes: &[u8]) -> Result<Option<String>, ZdsError> {
    let response = message::WorkloadResponse::decode(bytes).map_err(|_| ZdsError::Malformed)?;
    let Reply::Ack(ack) = response.payload.ok_or(ZdsError::UnknownType)?;
    Ok(Some(ack.error).filter(|error| !error.is_empty()))
}

fn uid(text: &str) -> Result<Arc<str>, ZdsError> {
    if text.is_empty() { Err(ZdsError::EmptyUid) } else { Ok(text.into()) }
}

impl From<message::WorkloadInfo> for WorkloadInfo {
    fn from(info: message::WorkloadInfo) -> Self {
        Self {
            name: info.name.into(),
            namespace: info.namespace.into(),
            service_account: info.service_account.into(),
            dns_search: info.dns_search.into(),
        }
    }
}

impl From<&WorkloadInfo> for message::WorkloadInfo {
    fn from(info: &WorkloadInfo) -> Self {
        Self {
            name: info.name.to_string(),
            namespace: info.namespace.to_string(),
            service_account: info.service_account.to_string(),
            dns_search: info.dns_search.to_vec(),
        }
    }
}
