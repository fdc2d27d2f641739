//! The applications of the benchmark, as processes in the pods: one server and one client a pod.
//!
//! Both live while their standard input is open. A server says `listening` once it does. A client takes one JSON
//! [`Order`] a line and answers each with one JSON [`Answer`].

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::model::Way;

/// Where a server takes HTTP/1.1: `POST` with a body is answered with a body of the same length.
pub(crate) const HTTP_PORT: u16 = 8080;
/// Where a server takes raw streams. The first byte says what follows: see [`RawKind`].
pub(crate) const RAW_PORT: u16 = 9000;

/// What a client of [`RAW_PORT`] wants, by its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RawKind {
    /// The client sends until it closes; the server reads.
    Up = b'U',
    /// The server sends until the client closes.
    Down = b'D',
    /// The server answers each byte with one byte, until the client closes.
    Echo = b'E',
}

/// What a client does next. Prepare, measure any number of times, finish.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// Opens the connections and lets the load run, unmeasured. Answered once every connection has carried something.
    Prepare(Work),
    /// Measures what runs for so many seconds; [`Work::Visit`] is measured to its end instead.
    Measure(f64),
    /// Ends the load and closes its connections.
    Finish,
}

/// What a client does. `targets` are servers' addresses without their port's meaning: the port is the one to use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Work {
    /// Bulk on raw connections.
    Bulk {
        /// Raw ports of servers; connections take turns.
        targets: Vec<SocketAddr>,
        /// Direction.
        way: Way,
        /// Connections.
        streams: usize,
    },
    /// HTTP requests; open loop where `per_second` is given, else closed loop.
    Requests {
        /// HTTP ports of servers; connections take turns.
        targets: Vec<SocketAddr>,
        /// Body of a request and of its answer.
        bytes: usize,
        /// Connections.
        connections: usize,
        /// Requests due per second over all connections.
        per_second: Option<u32>,
    },
    /// Connections that carry one byte each way and are closed.
    Connects {
        /// Raw ports of servers; connections take turns.
        targets: Vec<SocketAddr>,
        /// Connections in flight.
        concurrency: usize,
    },
    /// One connection to each target, one after the other, each with one byte each way. Preparing opens nothing.
    Visit {
        /// Raw ports of servers.
        targets: Vec<SocketAddr>,
    },
    /// Connections that have carried one byte each way and then do nothing.
    Idle {
        /// Raw ports of servers; connections take turns.
        targets: Vec<SocketAddr>,
        /// Connections.
        connections: usize,
    },
}

/// What came of an order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// Prepared, or finished.
    Ready,
    /// Measured.
    Measured(Measured),
    /// The order could not be followed; why.
    Failed(String),
}

/// What a client counted while it measured.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// How long, seconds.
    pub(crate) seconds: f64,
    /// Answers, or connections.
    pub(crate) operations: u64,
    /// Payload bytes, both ways.
    pub(crate) bytes: u64,
    /// Operations that failed.
    pub(crate) errors: u64,
    /// The first failure's words.
    pub(crate) first_error: Option<String>,
    /// Latencies: the recorded values, ns, and how often each occurred, ascending. Empty for bulk and idle.
    pub(crate) latency_ns: Vec<(u64, u64)>,
}
