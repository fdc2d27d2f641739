//! The embedded certificate authority: it issues workload certificates without any other component.
//!
//! Its root lives in memory, or in a directory that the nodes share; there the first process to come makes it, under a
//! lock, and all others load it. Whoever can read the directory's key can be any workload, so the key is readable by
//! its owner only.

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

use root::Root;

/// How far back a certificate's life reaches, for peers whose clock is behind.
const BACKDATE: Duration = Duration::from_secs(60);

/// Why the authority cannot start or issue.
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
