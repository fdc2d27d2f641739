//! Certificate authorities: the embedded one, which issues workload certificates without any other component, and one
//! elsewhere ([`client`]).
//!
//! The embedded one's root lives in memory, or in a directory that the nodes share; there the first process to come
//! makes it, under a lock, and all others load it. Whoever can read the directory's key can be any workload, so the key is readable by
//! its owner only. Beside the root may lie other roots, older or newer, that every workload trusts too.

mod bundle;
pub mod client;
mod issue;
mod request;
mod root;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use halo_core::certificate::{Certificate, PrivateKey};
use halo_core::id::Identity;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::grpc::UpstreamError;
use bundle::Bundle;
pub(crate) use issue::pem;
pub use issue::{Issued, ServerCertificate};
pub use request::{CSR_LEN_MAX, RequestError};
use root::Root;

/// How far back a certificate's life reaches, for peers whose clock is behind.
const BACKDATE: Duration = Duration::from_secs(60);
/// The longest life that a request gets, unless the authority is told otherwise.
const LIFE_MAX: Duration = Duration::from_secs(24 * 3600);

/// Why an authority cannot start or issue.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file of the directory cannot be read or written.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: String,
        /// The operating system's words.
        error: std::io::Error,
    },
    /// The directory's root is not usable.
    #[error("{path}: {reason}")]
    Root {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The root's key is not for its owner alone.
    #[error(
        "{path}: readable by others than its owner (mode {mode:04o}), and whoever reads it can be any workload; \
         run: chmod 600 {path}"
    )]
    Exposed {
        /// The file.
        path: String,
        /// Its permissions.
        mode: u32,
    },
    /// A certificate signing request is refused.
    #[error("certificate signing request: {0}")]
    Request(#[from] RequestError),
    /// A name that a server certificate cannot carry.
    #[error("{name:?} is neither a DNS name nor an IP address")]
    Name {
        /// The name that was given.
        name: Box<str>,
    },
    /// A key or certificate could not be made.
    #[error("certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The root ends before the certificate would.
    #[error("the root certificate has expired")]
    Expired,
    /// A certificate that was just made cannot be read.
    #[error("the new certificate cannot be read back")]
    Unreadable,
    /// There is no connection to the remote authority, or nothing to be let in with.
    #[error("certificate authority: {0}")]
    Upstream(#[from] UpstreamError),
    /// The connection ended before the answer.
    #[error("certificate authority: {address}: the connection was lost: {reason}")]
    Lost {
        /// The authority.
        address: String,
        /// What happened to the connection.
        reason: String,
    },
    /// No answer came in time.
    #[error("certificate authority: {address} did not answer within {seconds} s")]
    Unanswered {
        /// The authority.
        address: String,
        /// The limit.
        seconds: f64,
    },
    /// The remote authority will not issue.
    #[error("certificate authority: {address} refused: {meaning} (gRPC code {code}): {message}")]
    Refused {
        /// The authority.
        address: String,
        /// The gRPC status code.
        code: i32,
        /// What the code means.
        meaning: &'static str,
        /// The authority's words.
        message: String,
    },
    /// The remote authority issued something else than what was asked for.
    #[error("certificate authority: the answer is not usable: {0}")]
    Answer(AnswerError),
}

/// What is wrong with a remote authority's answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// There is nothing in it.
    #[error("it holds no certificate")]
    Empty,
    /// There is a leaf, and nothing to believe others by.
    #[error("it holds a certificate and no roots")]
    NoRoots,
    /// One of its texts is not PEM.
    #[error("part {index} of it is not PEM certificates")]
    NotPem {
        /// Which, from 0.
        index: usize,
    },
    /// One of its certificates is not X.509.
    #[error("certificate {index} of it is not X.509")]
    Unreadable {
        /// Which, from 0.
        index: usize,
    },
    /// The leaf is for a key that this node does not have.
    #[error("the certificate is for another key than the one in the request")]
    ForeignKey,
    /// The leaf is nobody's.
    #[error("the certificate names no SPIFFE ID")]
    NoIdentity,
    /// The leaf is somebody else's.
    #[error("the certificate is for {found}, not {asked}")]
    WrongIdentity {
        /// The first SPIFFE ID in it.
        found: String,
        /// The one in the request.
        asked: String,
    },
    /// The leaf ends before it begins.
    #[error("the certificate's validity ends before it starts")]
    NoLife,
    /// The leaf is of no use any more.
    #[error("the certificate expired {ago_s} s ago; compare the clocks of this node and of the authority")]
    Expired {
        /// For how long.
        ago_s: u64,
    },
}

/// Whoever issues certificates for the node's workloads.
pub trait CertificateAuthority: Clone + Send + Sync + 'static {
    /// Issues a certificate with a new key, whose life ends `ttl` after `now`.
    fn issue(
        &self,
        identity: Identity,
        ttl: Duration,
        now: SystemTime,
    ) -> impl Future<Output = Result<Certificate, CaError>> + Send;
}

/// The embedded authority. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EmbeddedCa {
    root: Arc<Root>,
    bundle: Arc<Bundle>,
    life_max: Duration,
}

impl EmbeddedCa {
    /// Makes a root that lives as long as the process.
    pub fn in_memory(trust_domain: &str, now: SystemTime) -> Result<Self, CaError> {
        let root = Root::generate(trust_domain, now)?;
        let bundle = Bundle::of(root.der());
        Ok(Self { root: Arc::new(root), bundle: Arc::new(bundle), life_max: LIFE_MAX })
    }

    /// Loads the root of a directory, or makes it if there is none. The directory is made if it is missing.
    ///
    /// `root-cert.pem` is the root, or a chain: the certificate of `root-key.pem`, then its issuers, of which workloads
    /// trust the last. `extra-roots.pem`, if it is there, holds more roots to trust; it is followed when it changes.
    pub fn in_directory(directory: &Path, trust_domain: &str, now: SystemTime) -> Result<Self, CaError> {
        let root = root::open(directory, trust_domain, now)?;
        let bundle = Bundle::open(root.der(), directory)?;
        Ok(Self { root: Arc::new(root), bundle: Arc::new(bundle), life_max: LIFE_MAX })
    }

    /// Sets the longest life that [`EmbeddedCa::sign_request`] gives; a day otherwise.
    #[must_use]
    pub fn with_life_max(self, life_max: Duration) -> Self {
        Self { life_max, ..self }
    }

    /// The root certificate, X.509 DER.
    pub fn root_der(&self) -> &[u8] {
        self.root.der()
    }

    fn sign(&self, identity: Identity, ttl: Duration, now: SystemTime) -> Result<Certificate, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let params = issue::svid(&identity, now, self.root.end(ttl, now)?)?;
        let leaf = params.signed_by(&key, self.root.issuer())?;
        let facts = Facts::of(leaf.der())?;
        Ok(Certificate {
            identity,
            chain: self.root.chain_of(leaf.der()),
            key: PrivateKey::from_pkcs8_der(key.serialize_der()),
            roots: self.bundle.roots(now),
            serial: facts.serial,
            not_before_s: facts.not_before_s,
            not_after_s: facts.not_after_s,
        })
    }
}

impl CertificateAuthority for EmbeddedCa {
    async fn issue(
        &self,
        identity: Identity,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Certificate, CaError> {
        self.sign(identity, ttl, now)
    }
}

/// What a certificate says of itself.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) serial: Vec<u8>,
    pub(crate) not_before_s: u64,
    pub(crate) not_after_s: u64,
    is_ca: bool,
}

impl Facts {
    pub(crate) fn of(der: &[u8]) -> Result<Self, CaError> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| CaError::Unreadable)?;
        let validity = certificate.validity();
        Ok(Self {
            serial: certificate.raw_serial().to_vec(),
            not_before_s: u64::try_from(validity.not_before.timestamp()).unwrap_or(0),
            not_after_s: u64::try_from(validity.not_after.timestamp()).unwrap_or(0),
            is_ca: certificate.is_ca(),
        })
    }

    fn not_after(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.not_after_s)
    }
}

/// The authority that a node is configured with.
#[derive(Debug, Clone)]
pub enum Authority {
    /// In this process.
    Embedded(EmbeddedCa),
    /// Elsewhere.
    Remote(client::RemoteCa),
}

impl CertificateAuthority for Authority {
    async fn issue(
        &self,
        identity: Identity,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Certificate, CaError> {
        match self {
            Self::Embedded(ca) => ca.issue(identity, ttl, now).await,
            Self::Remote(ca) => ca.issue(identity, ttl, now).await,
        }
    }
}
