//! What configuration chooses about connections, beside their bounds.

/// The choices, with the defaults of the stock node proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// How tunnels are secured.
    pub tls: TlsMode,
    /// Keepalive of TCP connections; `None` leaves it off.
    pub keepalive: Option<Keepalive>,
    /// How long sent bytes may stay unacknowledged, seconds (TCP_USER_TIMEOUT); `None` leaves that to the kernel.
    pub user_timeout_s: Option<u32>,
    /// Whether applications see their clients' own addresses.
    pub original_source: OriginalSource,
    /// Whether other sockets may be bound to the ports of ours in a pod (SO_REUSEPORT): those of other shards, and of
    /// the process that is to replace this one.
    pub port_reuse: bool,
    /// Whether the two ends of a tunnel tell each other about their workloads in answers to CONNECT.
    pub response_baggage: bool,
    /// Whether pods have a SOCKS5 listener.
    pub socks5: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tls: TlsMode::default(),
            keepalive: Some(Keepalive::default()),
            user_timeout_s: None,
            original_source: OriginalSource::Auto,
            port_reuse: true,
            response_baggage: true,
            socks5: false,
        }
    }
}

/// How tunnels are secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TlsMode {
    /// Keys are exchanged by X25519MLKEM768 alone, which holds against quantum computers. TLS 1.2 does not have it.
    pub pqc_only: bool,
    /// Peers that do not speak TLS 1.3 may use TLS 1.2, with ECDHE and AES-GCM.
    pub tls12: bool,
}

/// When a silent connection is probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe, seconds.
    pub time_s: u32,
    /// Between two probes, seconds.
    pub interval_s: u32,
    /// Probes without an answer after which the connection is dead.
    pub retries: u32,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self { time_s: 180, interval_s: 180, retries: 9 }
    }
}

impl Keepalive {
    /// How long a peer may stay away, seconds: until the last probe has had its interval.
    pub fn total_s(&self) -> u32 {
        self.time_s.saturating_add(self.retries.saturating_mul(self.interval_s))
    }
}

/// Whether the connection to an application comes from its client's own address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OriginalSource {
    /// Where the kernel lets it.
    Auto,
    /// Always: what cannot be bound to the client's address fails.
    Always,
    /// Never: applications see the pod's own address.
    Never,
}
