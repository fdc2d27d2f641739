//! What a comparison is made of: loads, cases, runs and their figures, as they are kept in the JSON report.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One whole comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Where, when and how it was made.
    pub(crate) about: About,
    /// What was compared, in the order of columns. The first is [`NO_MESH`].
    pub(crate) subjects: Vec<SubjectInfo>,
    /// Every case with all its runs.
    pub(crate) cases: Vec<Case>,
}

/// Where, when and how a comparison was made.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct About {
    /// RFC 3339.
    pub(crate) date: String,
    /// Name of the host.
    pub(crate) host: String,
    /// Release of the kernel.
    pub(crate) kernel: String,
    /// Model of the processor.
    pub(crate) cpu: String,
    /// Usable cores.
    pub(crate) cores: usize,
    /// Memory of the machine, bytes.
    pub(crate) memory_bytes: u64,
    /// The commit, with `-dirty` where the tree differs from it; empty outside a repository.
    pub(crate) commit: String,
    /// The command line.
    pub(crate) command: String,
    /// Rounds; every case runs once a round in every subject.
    pub(crate) rounds: usize,
    /// Length of one measurement, seconds.
    pub(crate) seconds: f64,
    /// Worker threads, or shards, of every proxy process; 0 where each has as many as it chooses by itself.
    pub(crate) workers: usize,
    /// What a reader must know to judge the figures, one sentence each.
    pub(crate) notes: Vec<String>,
}

/// The name of the subject without proxies.
pub(crate) const NO_MESH: &str = "no-mesh";
/// The name of Halo.
pub(crate) const HALO: &str = "halo";
/// The name of Envoy sidecars as TCP proxies with mutual TLS.
pub(crate) const ENVOY_TCP: &str = "envoy-tcp";
/// The name of Envoy sidecars as HTTP proxies with mutual TLS.
pub(crate) const ENVOY_HTTP: &str = "envoy-http";

/// One of the things that are compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SubjectInfo {
    /// Its short name: one of the constants, or a peer's.
    pub(crate) name: String,
    /// What it is, for a heading.
    pub(crate) title: String,
    /// Its version as it says it itself; empty for [`NO_MESH`].
    pub(crate) version: String,
}

/// Nodes and pods that a case runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Place {
    /// Two nodes with one client pod and one server pod.
    TwoNodes,
    /// One node that carries both pods.
    OneNode,
    /// Two nodes, many client pods on one and many server pods on the other.
    ManyPods,
}

/// Which way bulk data flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Way {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// What the applications do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum Load {
    /// Streams that send as fast as they can.
    Bulk {
        /// Direction.
        way: Way,
        /// Connections.
        streams: usize,
    },
    /// Closed loop: each connection sends the next request when it has the answer. HTTP/1.1, bodies of `bytes` each
    /// way.
    Requests {
        /// Size of a request's and of an answer's body.
        bytes: usize,
        /// Connections.
        connections: usize,
    },
    /// Open loop: requests are due at a fixed rate, and latency counts from when one was due, so that a stall is paid
    /// by everything that it held up (coordinated omission).
    Rate {
        /// Size of a request's and of an answer's body.
        bytes: usize,
        /// Connections.
        connections: usize,
        /// Requests per second over all connections.
        per_second: u32,
    },
    /// Connections that are opened, carry one byte each way and are closed; so many at a time.
    Connects {
        /// Connections in flight.
        concurrency: usize,
    },
    /// Every client opens one connection to every server, which it has never reached before.
    Cold,
    /// Connections that are opened and then do nothing. Memory is measured while they are open.
    Idle {
        /// Connections; 0 measures the proxies at rest.
        connections: usize,
    },
    /// The open loop of [`Load::Rate`] between one pair of pods while another pair of the same nodes moves bulk.
    Noisy {
        /// Requests per second of the pair that is measured.
        per_second: u32,
        /// Streams of the noisy pair.
        streams: usize,
    },
    /// The open loop of [`Load::Rate`] while other pods join and leave the mesh all the time.
    Churn {
        /// Requests per second of the pair that is measured.
        per_second: u32,
    },
}

/// One load on one topology.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Case {
    /// Its name, unique in a report: `two-nodes/requests-1KiB-32`.
    pub(crate) id: String,
    /// Where.
    pub(crate) place: Place,
    /// What.
    pub(crate) load: Load,
    /// All runs.
    pub(crate) runs: Vec<Run>,
}

/// One run of a case in one subject.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    /// The subject's name.
    pub(crate) subject: String,
    /// Which round, from 0. Runs of one round are close in time, and ratios are made within it.
    pub(crate) round: usize,
    /// What came of it.
    pub(crate) outcome: Outcome,
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// It ran.
    Done(Box<Figures>),
    /// It does not apply to the subject, or the machine does not allow it; why.
    Skipped(String),
    /// It went wrong; how.
    Failed(String),
}

/// What was measured in one run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// How long it was measured, seconds.
    pub(crate) seconds: f64,
    /// What was done: answers, connections, or 0 for bulk.
    pub(crate) operations: u64,
    /// Payload bytes, both ways.
    pub(crate) bytes: u64,
    /// Operations that failed.
    pub(crate) errors: u64,
    /// The first failure's words.
    pub(crate) first_error: Option<String>,
    /// Latency of the operations; none for bulk and idle.
    pub(crate) latency: Option<Latency>,
    /// What each proxy process spent while it was measured. Empty without a mesh.
    pub(crate) proxies: Vec<Spent>,
    /// What all load clients together spent.
    pub(crate) clients: Spent,
    /// What all servers together spent.
    pub(crate) servers: Spent,
}

/// Latency of a run's operations, µs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Latency {
    /// Median.
    pub(crate) p50: f64,
    /// 90th percentile.
    pub(crate) p90: f64,
    /// 99th percentile.
    pub(crate) p99: f64,
    /// 99.9th percentile.
    pub(crate) p999: f64,
    /// The slowest.
    pub(crate) max: f64,
    /// The whole curve: quantile (0 to 1) and µs, ascending, at most some hundred points.
    pub(crate) curve: Vec<(f64, f64)>,
}

/// What a process, or several together, spent in a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Spent {
    /// The process's name.
    pub(crate) name: String,
    /// CPU time of all threads, seconds.
    pub(crate) cpu_s: f64,
    /// Context switches of all threads, voluntary and not.
    pub(crate) switches: u64,
    /// Proportional memory (Pss) at the end of the run, bytes.
    pub(crate) memory_bytes: u64,
    /// Largest resident memory since the process started, bytes.
    pub(crate) memory_peak_bytes: u64,
    /// System calls, where they could be counted.
    pub(crate) system_calls: Option<u64>,
    /// Operations that a proxy's rings completed: accepts, reads and writes. Of proxies that count them.
    #[serde(default)]
    pub(crate) ring_operations: Option<u64>,
}

impl Figures {
    /// CPU seconds of all proxy processes.
    pub(crate) fn proxy_cpu_s(&self) -> f64 {
        self.proxies.iter().map(|spent| spent.cpu_s).sum()
    }

    /// Memory of all proxy processes at the end of the run, bytes.
    pub(crate) fn proxy_memory_bytes(&self) -> u64 {
        self.proxies.iter().map(|spent| spent.memory_bytes).sum()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TwoNodes => "two-nodes",
            Self::OneNode => "one-node",
            Self::ManyPods => "many-pods",
        })
    }
}

/// `64 B`, `1KiB`, `8KiB`: how case names write sizes.
fn size(bytes: usize) -> String {
    if bytes >= 1024 && bytes.is_multiple_of(1024) {
        format!("{}KiB", bytes / 1024)
    } else {
        format!("{bytes}B")
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bulk { way: Way::Up, streams } => write!(f, "bulk-up-{streams}"),
            Self::Bulk { way: Way::Down, streams } => write!(f, "bulk-down-{streams}"),
            Self::Requests { bytes, connections } => write!(f, "requests-{}-{connections}", size(*bytes)),
            Self::Rate { per_second, .. } => write!(f, "rate-{per_second}"),
            Self::Connects { concurrency } => write!(f, "connects-{concurrency}"),
            Self::Cold => f.write_str("cold"),
            Self::Idle { connections } => write!(f, "idle-{connections}"),
            Self::Noisy { streams, .. } => write!(f, "noisy-{streams}"),
            Self::Churn { .. } => f.write_str("churn"),
        }
    }
}

impl Case {
    /// A case without runs.
    pub(crate) fn new(place: Place, load: Load) -> Self {
        Self { id: format!("{place}/{load}"), place, load, runs: Vec::new() }
    }
}
