//! Why a connection ended, and everything that follows from it: response flag, status, metric label, log level.
//!
//! [`Reason`] lists each cause once. [`Reason::outcome`] is total and the only place that maps a cause to what
//! operators and peers see; the flag names the phase that failed.

/// The response flag of a connection, as metrics and logs show it (Istio's `response_flags`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResponseFlag {
    /// No error.
    None,
    /// A policy refused it.
    Deny,
    /// The upstream could not be reached, or was lost.
    Connect,
    /// The TLS handshake failed.
    TlsFailure,
    /// The HTTP/2 session failed.
    H2HandshakeFailure,
    /// The dial timed out; a NetworkPolicy may block port 15008.
    NetworkPolicy,
    /// Our own certificate is not available.
    IdentityError,
    /// A certificate is revoked.
    CertRevoked,
}

impl ResponseFlag {
    /// Every flag, in the order of its number.
    pub const ALL: [Self; 8] = [
        Self::None,
        Self::Deny,
        Self::Connect,
        Self::TlsFailure,
        Self::H2HandshakeFailure,
        Self::NetworkPolicy,
        Self::IdentityError,
        Self::CertRevoked,
    ];

    /// The text in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::CertRevoked => "CERT_REVOKED",
        }
    }
}

/// How loud a log line about an outcome is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// A normal end.
    Info,
    /// Refused, as it should be.
    Warn,
    /// Something is broken.
    Error,
}

/// What follows from a [`Reason`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Flag in metrics and logs.
    pub flag: ResponseFlag,
    /// HTTP status an inbound CONNECT is answered with while it is not yet answered.
    pub status: u16,
    /// Metric label and stable name of the reason.
    pub label: &'static str,
    /// What to tell a person.
    pub text: &'static str,
    /// Log level.
    pub level: Level,
    /// Whether nothing has been sent yet, so that another tunnel or endpoint may be tried.
    pub retry: bool,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = ($label:literal, $flag:ident, $status:literal, $level:ident, $retry:literal, $text:literal),)*) => {
        /// Why a connection ended. Grouped by who is to blame: nobody, the client, policy, the control plane, the
        /// peer, the upstream, a local limit.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason, in the order of its number.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            /// What follows from this reason.
            pub fn outcome(self) -> Outcome {
                match self {
                    $(Reason::$name => Outcome {
                        flag: ResponseFlag::$flag,
                        status: $status,
                        label: $label,
                        text: $text,
                        level: Level::$level,
                        retry: $retry,
                    },)*
                }
            }

            /// The name of the counter of connections that ended for this reason, `closed_<label>`.
            pub fn counter(self) -> &'static str {
                match self {
                    $(Reason::$name => concat!("closed_", $label),)*
                }
            }
        }
    };
}

reasons! {
    /// Both directions ended in order.
    Complete = ("complete", None, 200, Info, false, "connection complete"),
    /// The proxy is shutting down and the drain deadline passed.
    Drained = ("drained", Connect, 503, Warn, false, "connection closed due to connection drain"),
    /// The workload that owned the connection is gone.
    WorkloadGone = ("workload_gone", Connect, 503, Warn, false, "the workload was removed while the connection was open"),
    /// A connection to one of the proxy's own ports.
    OwnPort = ("own_port", Connect, 503, Warn, false, "attempted recursive call to the proxy itself"),
    /// The request is not CONNECT.
    NotConnect = ("not_connect", Connect, 400, Warn, false, "the HBONE request is not a CONNECT"),
    /// The authority is neither an address nor a host with a port.
    BadAuthority = ("bad_authority", Connect, 400, Warn, false, "the CONNECT authority is not host:port"),
    /// The client of the SOCKS5 listener does not speak the protocol, or asks for what the proxy does not do.
    BadProxyRequest = ("bad_proxy_request", Connect, 400, Warn, false, "the SOCKS5 request is not one to connect, or was not made in time"),
    /// The authority names an address that is not this workload's.
    NotForUs = ("not_for_us", Connect, 400, Warn, false, "ip mismatch: the CONNECT authority is not an address of this workload"),
    /// The authority names a service or port that this workload does not serve.
    UnknownService = ("unknown_service", Connect, 503, Warn, false, "the CONNECT authority names a service or port that this workload does not serve"),
    /// The application wants to be told an address, and the service that the authority names has none.
    NoServiceAddress = ("no_service_address", Connect, 503, Warn, false, "the application tunnel needs an address, and the service in the CONNECT authority has none"),
    /// A DENY policy matched.
    PolicyDeny = ("policy_deny", Deny, 401, Warn, false, "connection closed due to policy rejection: explicitly denied"),
    /// ALLOW policies apply and none matched.
    PolicyNoAllow = ("policy_no_allow", Deny, 401, Warn, false, "connection closed due to policy rejection: allow policies exist, but none allowed"),
    /// A policy change withdrew the permission of an open connection.
    PolicyChange = ("policy_change", Deny, 401, Warn, false, "connection closed due to policy change"),
    /// The peer proxy answered CONNECT with 401.
    PolicyAtPeer = ("policy_at_peer", Connect, 401, Warn, false, "http status: 401, the destination's policy refused the connection"),
    /// The control plane has not delivered the local workload.
    SourceUnknown = ("source_unknown", Connect, 503, Warn, false, "failed to fetch information about local workload: the control plane has not delivered it"),
    /// The control plane has not said what the destination, or its waypoint, is.
    DestinationUnknown = ("destination_unknown", Connect, 503, Warn, false, "failed to look up the destination: the control plane has not answered in time"),
    /// The destination is in the mesh, but no endpoint may be used.
    NoHealthyUpstream = ("no_healthy_upstream", Connect, 503, Warn, false, "no healthy upstream: the service has no usable endpoint"),
    /// The route needs a waypoint that cannot be resolved.
    UnknownWaypoint = ("unknown_waypoint", Connect, 503, Warn, false, "unknown waypoint: the destination names a waypoint that is not known or has no usable endpoint"),
    /// The destination is on another network whose gateway cannot be resolved.
    UnknownGateway = ("unknown_gateway", Connect, 503, Warn, false, "unknown network gateway: the destination is on another network, and its gateway is not known or has no usable endpoint"),
    /// Our own certificate has not been issued, or has expired.
    NoCertificate = ("no_certificate", IdentityError, 503, Error, false, "identity error: no valid certificate for the workload"),
    /// The TLS peer sent no certificate.
    PeerNoCertificate = ("peer_no_certificate", TlsFailure, 503, Warn, false, "tls error: the peer presented no certificate"),
    /// The TLS peer's certificate does not chain to our roots, is expired, or is not well formed.
    PeerBadCertificate = ("peer_bad_certificate", TlsFailure, 503, Warn, false, "tls error: the peer's certificate is not valid for this mesh"),
    /// A certificate of the TLS peer's chain is revoked, or the peer says so of ours.
    CertRevoked = ("cert_revoked", CertRevoked, 503, Warn, false, "tls error: a certificate of the connection has been revoked"),
    /// The TLS peer belongs to another trust domain.
    PeerTrustDomain = ("peer_trust_domain", TlsFailure, 503, Warn, false, "tls error: the peer belongs to another trust domain"),
    /// The TLS peer is not who was asked for.
    PeerIdentity = ("peer_identity", TlsFailure, 503, Warn, false, "tls error: the peer is not the workload that was asked for"),
    /// Any other TLS failure.
    TlsFailed = ("tls_failed", TlsFailure, 503, Warn, false, "tls error: the handshake failed or a record is not valid"),
    /// The TLS handshake took too long.
    TlsTimeout = ("tls_timeout", TlsFailure, 503, Warn, false, "tls error: the peer did not finish the handshake in time"),
    /// The peer broke HTTP/2.
    H2Failed = ("h2_failed", H2HandshakeFailure, 503, Warn, false, "http2 handshake failed: the peer broke the protocol"),
    /// The peer did not answer CONNECT in time.
    AnswerTimeout = ("answer_timeout", Connect, 503, Warn, false, "connection failed: the peer did not answer CONNECT in time"),
    /// The peer answered CONNECT with a status other than 200 and 401.
    PeerStatus = ("peer_status", Connect, 503, Warn, false, "http status: the peer refused CONNECT"),
    /// The peer proxy answered CONNECT with 503: it could not reach the application, or does not serve it now.
    PeerUnavailable = ("peer_unavailable", Connect, 503, Warn, true, "http status: 503, the peer could not reach the destination"),
    /// The TCP connection was refused or is unreachable.
    ConnectFailed = ("connect_failed", Connect, 503, Warn, true, "connection failed: the upstream refused or is unreachable"),
    /// The TCP connection to an application did not open in time.
    ConnectTimeout = ("connect_timeout", Connect, 503, Warn, true, "connection failed: the upstream did not answer in time"),
    /// The TCP connection to port 15008 did not open in time.
    HboneTimeout = ("hbone_timeout", NetworkPolicy, 503, Warn, true, "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008"),
    /// DNS knows no address of the upstream's host.
    HostUnresolved = ("host_unresolved", Connect, 503, Warn, true, "connection failed: DNS has no address for the upstream's host"),
    /// The tunnel was lost before the stream was answered.
    TunnelLost = ("tunnel_lost", Connect, 503, Warn, true, "connection failed: the tunnel to the peer was lost"),
    /// One side reset the connection; the reset was carried to the other.
    Reset = ("reset", None, 503, Info, false, "io error: the connection was reset"),
    /// One direction ended and the other stayed silent past the limit.
    HalfCloseTimeout = ("half_close_timeout", Connect, 503, Warn, false, "the connection stayed half closed past the limit"),
    /// A shard limit was reached.
    LimitReached = ("limit_reached", Connect, 503, Warn, false, "a connection limit of this node proxy was reached"),
    /// A local socket operation failed, for example for want of file descriptors.
    LocalSocket = ("local_socket", Connect, 503, Error, false, "io error: a local socket could not be made"),
    /// A connection task failed; a defect in this program.
    Defect = ("defect", Connect, 503, Error, false, "internal error: the connection's task failed; please report this"),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reasons_number_is_its_place_in_the_list() {
        for (place, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, place);
        }
    }

    #[test]
    fn a_flags_number_is_its_place_in_the_list() {
        for (place, flag) in ResponseFlag::ALL.iter().enumerate() {
            assert_eq!(*flag as usize, place);
        }
    }

    #[test]
    fn labels_are_distinct() {
        let mut labels: Vec<_> = Reason::ALL.iter().map(|reason| reason.outcome().label).collect();
        labels.sort_unstable();
        let count = labels.len();
        labels.dedup();
        assert_eq!(labels.len(), count);
    }
}
