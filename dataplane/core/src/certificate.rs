//! A workload's certificate with its private key and the roots it trusts, as the certificate authority issued them.

use std::fmt;

use zeroize::Zeroizing;

use crate::id::Identity;

/// A private key, PKCS#8 DER. It is wiped when dropped and never printed.
#[derive(Clone)]
pub struct PrivateKey(Zeroizing<Vec<u8>>);

impl PrivateKey {
    /// Takes a PKCS#8 DER document.
    pub fn from_pkcs8_der(der: Vec<u8>) -> Self {
        Self(Zeroizing::new(der))
    }

    /// The PKCS#8 DER document, for a TLS library.
    pub fn pkcs8_der(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("PrivateKey(..)")
    }
}

/// Certificates that their issuers have withdrawn.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Revocations {
    /// Certificate revocation lists, X.509 DER; each speaks of what its own issuer has issued.
    pub lists: Vec<Vec<u8>>,
}

/// A certificate in use for one identity, shared by every pod of that identity on the node.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The identity in the leaf's URI SAN.
    pub identity: Identity,
    /// Leaf first, then intermediates; X.509 DER.
    pub chain: Vec<Vec<u8>>,
    /// The leaf's key.
    pub key: PrivateKey,
    /// Trusted roots, X.509 DER.
    pub roots: Vec<Vec<u8>>,
    /// The leaf's serial number, big-endian bytes.
    pub serial: Vec<u8>,
    /// Start of the leaf's validity, seconds since the Unix epoch.
    pub not_before_s: u64,
    /// End of the leaf's validity, seconds since the Unix epoch.
    pub not_after_s: u64,
}
