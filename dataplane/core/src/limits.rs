//! Every bound of a shard, with the relations between bounds asserted where both are constants.

/// Plaintext bytes of one full TLS record (RFC 8446, section 5.1).
pub const RECORD_PLAINTEXT_MAX: usize = 16_384;
/// Bytes of an HTTP/2 frame header (RFC 9113, section 4.1).
pub const FRAME_HEADER_LEN: usize = 9;
/// Largest DATA payload in one frame: with its header it fills four TLS records.
pub const DATA_PAYLOAD_MAX: usize = 4 * RECORD_PLAINTEXT_MAX - FRAME_HEADER_LEN;
/// Largest read from an application: four frames.
pub const APP_READ_MAX: usize = 4 * DATA_PAYLOAD_MAX;
/// First read from an application, which most requests fit.
pub const APP_READ_FIRST: usize = 2 * 1024;
/// Smallest read from an application, for connections that are quiet.
pub const APP_READ_MIN: usize = 512;
/// Read from a tunnel's socket.
pub const TUNNEL_READ: usize = 256 * 1024;
/// Sealed bytes that may wait on one tunnel before its streams stop reading their applications.
pub const TUNNEL_PENDING_MAX: usize = 256 * 1024;

const _: () = assert!(DATA_PAYLOAD_MAX + FRAME_HEADER_LEN == 4 * RECORD_PLAINTEXT_MAX);
const _: () = assert!(APP_READ_MIN < APP_READ_FIRST && APP_READ_FIRST < APP_READ_MAX);
const _: () = assert!(TUNNEL_PENDING_MAX >= APP_READ_MAX);

/// The bounds of a shard that configuration may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// TCP connect, in both directions.
    pub connect_ms_max: u64,
    /// TLS handshake, in both roles.
    pub handshake_ms_max: u64,
    /// From CONNECT sent to its answer. It covers the far side's own TCP connect, so it is the longer of the two.
    pub connect_answer_ms_max: u64,
    /// How long one direction may stay silent after the other has ended.
    pub half_close_ms_max: u64,
    /// How long a captured connection waits for the control plane to deliver its own workload or certificate.
    pub lookup_ms_max: u64,
    /// Streams that one tunnel carries at once, unless the peer allows fewer.
    pub streams_per_tunnel_max: u32,
    /// Streams that a peer may have open on one tunnel to us (SETTINGS_MAX_CONCURRENT_STREAMS).
    pub inbound_streams_max: u32,
    /// Largest header list that we accept, bytes (SETTINGS_MAX_HEADER_LIST_SIZE).
    pub header_list_max: u32,
    /// A tunnel without streams is closed after this.
    pub tunnel_idle_ms_max: u64,
    /// Between liveness probes (HTTP/2 PING) of a tunnel.
    pub ping_interval_ms: u64,
    /// A tunnel whose PING is not answered for this long is dead.
    pub ping_timeout_ms: u64,
    /// First flow-control window of a stream we receive on; it grows while the application keeps up.
    pub stream_window_initial: u32,
    /// A stream's window never grows past this.
    pub stream_window_max: u32,
    /// Receive window of a whole tunnel.
    pub connection_window: u32,
    /// Largest frame payload that we accept from a peer.
    pub frame_size_max: u32,
    /// Concurrent connections of one pod on one shard.
    pub connections_per_pod_max: usize,
    /// Mark on every packet from a pod's network namespace.
    pub packet_mark: u32,
    /// How long connections may run on after drain begins.
    pub drain_ms_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect_ms_max: 10_000,
            handshake_ms_max: 10_000,
            connect_answer_ms_max: 20_000,
            half_close_ms_max: 300_000,
            lookup_ms_max: 5_000,
            streams_per_tunnel_max: 100,
            inbound_streams_max: 200,
            header_list_max: 16 * 1024,
            tunnel_idle_ms_max: 300_000,
            ping_interval_ms: 10_000,
            ping_timeout_ms: 20_000,
            stream_window_initial: 64 * 1024,
            stream_window_max: 4 * 1024 * 1024,
            connection_window: 16 * 1024 * 1024,
            frame_size_max: 1024 * 1024,
            connections_per_pod_max: 50_000,
            packet_mark: crate::net::PACKET_MARK,
            drain_ms_max: 5_000,
        }
    }
}
