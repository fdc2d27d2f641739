//! What a shard tells about itself when asked: the live view behind `config_dump` and the tools.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::id::Identity;
use crate::labels::Labels;
use crate::outcome::ResponseFlag;
use crate::workload::Workload;

/// Which way a connection goes, seen from the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From another workload to the pod.
    Inbound,
    /// From the pod to another workload.
    Outbound,
}

/// How a connection travels between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Plain TCP.
    Tcp,
    /// A stream in a mutual TLS tunnel.
    Hbone,
    /// A tunnel of its own within a stream of the tunnel to another network's gateway.
    DoubleHbone,
}

/// One live connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionReport {
    /// The pod it belongs to.
    pub pod: Arc<str>,
    /// Which way it goes.
    pub direction: Direction,
    /// The client's address.
    pub source: SocketAddr,
    /// What the client asked for: the original destination, or the CONNECT authority.
    pub original_destination: String,
    /// The address that the proxy connected to.
    pub destination: SocketAddr,
    /// How it travels.
    pub transport: Transport,
    /// Identity of the client, where mutual TLS proved it.
    pub source_identity: Option<Identity>,
    /// Identity of the server, where mutual TLS proved it.
    pub destination_identity: Option<Identity>,
    /// Host name of the service that was addressed.
    pub service: Option<Arc<str>>,
    /// Bytes from the client side.
    pub bytes_received: u64,
    /// Bytes back to the client side.
    pub bytes_sent: u64,
}

/// How long one phase of connections took, since the shard started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LatencyReport {
    /// The phase: `dial` (TCP and TLS of a tunnel), `answer` (CONNECT to its answer), `connect` (to an application).
    pub name: &'static str,
    /// How often it was measured.
    pub count: u64,
    /// Median, µs.
    pub p50_us: u64,
    /// 99th percentile, µs.
    pub p99_us: u64,
    /// Longest, µs.
    pub max_us: u64,
}

/// What a shard is asked about itself. Neither is small, and nobody wants both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// Live connections, for people.
    Connections,
    /// Series, for metrics.
    Series,
}

/// The connections with the same labels, since the series began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeriesReport {
    /// The labels, but for the response flag.
    pub labels: Arc<Labels>,
    /// Connections that began.
    pub opened: u64,
    /// Connections that ended, by the number of their response flag.
    pub closed: [u64; ResponseFlag::ALL.len()],
    /// Bytes from the client side.
    pub bytes_received: u64,
    /// Bytes back to the client side.
    pub bytes_sent: u64,
    /// Whether there is reason to show it still: its workloads are in the mesh, or it was used a short while ago.
    pub is_live: bool,
}

impl SeriesReport {
    /// Adds what another shard has counted under the same labels.
    pub fn merge(&mut self, other: &Self) {
        self.opened += other.opened;
        for (total, more) in self.closed.iter_mut().zip(other.closed) {
            *total += more;
        }
        self.bytes_received += other.bytes_received;
        self.bytes_sent += other.bytes_sent;
        self.is_live |= other.is_live;
    }
}

/// A total of each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ByDirection {
    /// Of connections that pods open.
    pub outbound: u64,
    /// Of connections and tunnels to pods.
    pub inbound: u64,
}

impl ByDirection {
    /// The total of one direction.
    pub fn of(&mut self, direction: Direction) -> &mut u64 {
        match direction {
            Direction::Outbound => &mut self.outbound,
            Direction::Inbound => &mut self.inbound,
        }
    }
}

/// Bounds of the buckets of [`DnsSeries`], s.
pub const DNS_BUCKETS_S: [f64; 6] = [0.0005, 0.001, 0.01, 0.1, 1.0, 5.0];

/// What pods of one canonical service asked of DNS in one way, since the shard started.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DnsSeries {
    /// The type of the records, in lower case, for example `aaaa`; `unknown` for one without a name.
    pub query_type: &'static str,
    /// `udp` or `tcp`.
    pub protocol: &'static str,
    /// Canonical service of the pods; empty while the mesh does not know them.
    pub canonical_service: Arc<str>,
    /// Its revision.
    pub canonical_revision: Arc<str>,
    /// Queries.
    pub requests: u64,
    /// Those that the mesh does not answer itself, whether servers or the cache answered.
    pub forwarded: u64,
    /// Those of them that were not answered.
    pub failed: u64,
    /// Forwarded queries by the time until their answer: how many took at most as long as each of [`DNS_BUCKETS_S`] and
    /// longer than the one before. Those that took longer than all are in none.
    pub buckets: [u64; DNS_BUCKETS_S.len()],
    /// That time in all, s.
    pub duration_s: f64,
}

/// How often a pod's connections had a host looked up, since the pod was added.
#[derive(Debug, Clone, PartialEq)]
pub struct HostSeries {
    /// The pod's own workload, while the mesh knows it.
    pub source: Option<Arc<Workload>>,
    /// The host.
    pub hostname: Arc<str>,
    /// Lookups, successful or not.
    pub lookups: u64,
}

/// One shard, at one moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ShardReport {
    /// Its number, from 0.
    pub shard: usize,
    /// The core it is pinned to.
    pub core: Option<usize>,
    /// The kernel interface it runs on, for example `io_uring single_issuer+coop_taskrun` or `epoll`.
    pub ring: &'static str,
    /// Generation of the snapshot it decides by.
    pub generation: u64,
    /// CPU time of its thread, ns.
    pub cpu_ns: u64,
    /// Pods whose listeners it holds.
    pub pods: usize,
    /// Open tunnels, both roles.
    pub tunnels: usize,
    /// Totals since start, by name, in a fixed order.
    pub counters: Vec<(&'static str, u64)>,
    /// Latencies by phase, in a fixed order.
    pub latencies: Vec<LatencyReport>,
    /// Sockets that clients have open.
    pub sockets: ByDirection,
    /// Handshakes refused and tunnels cut because a certificate is revoked.
    pub crl_rejections: ByDirection,
    /// How many connections there are.
    pub connections_open: usize,
    /// Live connections, if they were asked for.
    pub connections: Vec<ConnectionReport>,
    /// Series, if they were asked for.
    pub series: Vec<SeriesReport>,
    /// DNS queries of pods.
    pub dns: Vec<DnsSeries>,
    /// Hosts that were looked up for connections to them.
    pub hosts: Vec<HostSeries>,
}
