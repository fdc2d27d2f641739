//! The mesh from a control plane, over the delta discovery protocol.
//!
//! [`session`] decides without I/O what is requested and what a response changes; [`client`] keeps a stream, puts each
//! response in force as one generation before its ACK leaves, and tells how it fares. What was told stays in force
//! while no control plane is there.

mod backoff;
mod client;
mod demand;
mod held;
mod node;
mod refused;
mod response;
mod session;
mod stream;

use std::sync::Arc;

use halo_core::demand::Question;
use tokio::sync::{mpsc, watch};

pub(crate) use self::client::run;
pub(crate) use self::node::node;
pub use self::session::SessionCounters;
use crate::grpc::Upstream;
use crate::pods::Pods;
use crate::proto::discovery::Node;
use crate::publish::Publisher;

/// How the subscription fares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct XdsStatus {
    /// Whether everything that is subscribed from the start has come whole once; it stays so.
    pub synced: bool,
    /// Whether there is a stream.
    pub connected: bool,
    /// What is wrong or waited for.
    pub error: Option<Arc<str>>,
    /// Totals since start.
    pub counters: XdsCounters,
}

/// Totals since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct XdsCounters {
    /// Ends of streams, and of attempts to have one.
    pub terminations: Terminations,
    /// Responses with workloads and services.
    pub addresses: Received,
    /// Responses with policies.
    pub policies: Received,
    /// Responses of types that were not asked for.
    pub others: Received,
    /// What responses and questions came to.
    pub session: SessionCounters,
}

/// Ends of streams by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Terminations {
    /// There was no connection.
    pub connection_error: u64,
    /// The stream failed.
    pub error: u64,
    /// The stream ended as servers end streams when they restart or shed load.
    pub reconnect: u64,
    /// The server ended the stream in order.
    pub complete: u64,
}

/// Responses of one type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Received {
    /// How many.
    pub messages: u64,
    /// Their bytes, before compression.
    pub bytes: u64,
}

/// What the client needs.
#[derive(Debug)]
pub(crate) struct XdsSetup {
    /// The control plane.
    pub(crate) upstream: Upstream,
    /// What the node says of itself.
    pub(crate) node: Node,
    /// Whether workloads and services are subscribed one by one, as they are asked about.
    pub(crate) on_demand: bool,
    /// Where the mesh is put in force.
    pub(crate) publisher: Publisher,
    /// What shards ask about.
    pub(crate) questions: mpsc::Receiver<Question>,
    /// The node's own pods.
    pub(crate) pods: watch::Receiver<Pods>,
    /// How it fares.
    pub(crate) status: watch::Sender<XdsStatus>,
    /// The cluster that the node's own pods belong to.
    pub(crate) cluster: Arc<str>,
}
