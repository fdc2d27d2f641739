//! Why a control plane cannot be used, in one line each.

/// Why there is no channel, or why a call cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// The address is not one.
    #[error("{address:?} is not an address; expected https://host:port or http://host:port")]
    Address {
        /// The address.
        address: String,
    },
    /// Nobody answers there.
    #[error("{address} cannot be reached: {reason}")]
    Unreachable {
        /// The address.
        address: String,
        /// What happened at each of its IP addresses.
        reason: String,
    },
    /// Somebody answers there, too slowly.
    #[error("{address}: {step} took longer than {seconds} s")]
    Timeout {
        /// The address.
        address: String,
        /// What took so long.
        step: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// The server is not who it should be.
    #[error("{address}: the server is not trusted: {reason}")]
    Untrusted {
        /// The address.
        address: String,
        /// What is wrong with its certificate.
        reason: String,
    },
    /// The TLS handshake failed for another reason.
    #[error("{address}: TLS handshake failed: {reason}")]
    Tls {
        /// The address.
        address: String,
        /// The reason.
        reason: String,
    },
    /// The connection is there, and HTTP/2 does not work over it.
    #[error("{address}: HTTP/2 failed: {reason}")]
    Http {
        /// The address.
        address: String,
        /// The reason.
        reason: String,
    },
    /// There is no root to believe.
    #[error("roots of trust: {source_name}: {reason}")]
    Roots {
        /// Where they should come from.
        source_name: String,
        /// What is wrong there.
        reason: String,
    },
    /// The certificate that the node should show is not usable.
    #[error("client certificate: {path}: {reason}")]
    ClientCertificate {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The token that the node should show is not usable.
    #[error("token: {source_name}: {reason}")]
    Token {
        /// Where it should come from.
        source_name: String,
        /// What is wrong there.
        reason: String,
    },
    /// A header is not one.
    #[error("the header {name:?} has a name or value that HTTP/2 cannot carry")]
    Header {
        /// Its name.
        name: String,
    },
}
