//! Certificate authorities: the embedded one, which issues workload certificates without any other component, and one
//! elsewhere ([`client`]).
//!
//! The embedded one's root lives in memory, or in a directory that the nodes share; there the first process to come makes it, under a
//! lock, and all others load it. Whoever can read the directory's key can be any workload, so the key is readable by
//! its owner only.

pub mod client;
mod root;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use halo_core::certificate::{Certificate, PrivateKey};
use halo_core::id::Identity;
use rcgen::string::Ia5String;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::grpc::UpstreamError;
use root::Root;

/// How far back a certificate's life reaches, for peers whose clock is behind.
const BACKDATE: Duration = Duration::from_secs(60);

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
pub struct EmbeddedCa(Arc<Root>);

impl EmbeddedCa {
    /// Makes a root that lives as long as the process.
    pub fn in_memory(trust_domain: &str, now: SystemTime) -> Result<Self, CaError> {
        Ok(Self(Arc::new(Root::generate(trust_domain, now)?)))
    }

    /// Loads the root of a directory, or makes it if there is none. The directory is made if it is missing.
    pub fn in_directory(directory: &Path, trust_domain: &str, now: SystemTime) -> Result<Self, CaError> {
        Ok(Self(Arc::new(root::open(directory, trust_domain, now)?)))
    }

    /// The root certificate, X.509 DER.
    pub fn root_der(&self) -> &[u8] {
        self.0.der()
    }

    fn sign(&self, identity: Identity, ttl: Duration, now: SystemTime) -> Result<Certificate, CaError> {
        let end = (now + ttl).min(self.0.not_after());
        if end <= now {
            return Err(CaError::Expired);
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        // With an empty subject the SAN extension is critical (RFC 5280, section 4.2.1.6).
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity.to_string())?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = (now - BACKDATE).into();
        params.not_after = end.into();
        let leaf = params.signed_by(&key, self.0.issuer())?;
        let facts = Facts::of(leaf.der())?;
        Ok(Certificate {
            identity,
            chain: vec![leaf.der().to_vec()],
            key: PrivateKey::from_pkcs8_der(key.serialize_der()),
            roots: vec![self.0.der().to_vec()],
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
