//! What the authority takes from a certificate signing request: the public key, once the request proves that its sender
//! has the private one. Names and extensions are not read; who the sender is has been settled elsewhere.

use rcgen::SubjectPublicKeyInfo;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION,
    OID_PKCS1_SHA1WITHRSA, OID_SHA1_WITH_RSA, OID_SIG_ED25519,
};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo as RequestedKey;

/// Longest request that is read, in bytes of PEM. One with an RSA key of 8192 bits has 4 KiB.
pub const CSR_LEN_MAX: usize = 16 * 1024;
/// Shortest and longest RSA modulus, in bits. The longest is what the cryptography verifies.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// First byte of a point that is not compressed (SEC 1, section 2.3.3).
const UNCOMPRESSED: u8 = 4;

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// It is too long to be read.
    #[error("{len} bytes long; at most {CSR_LEN_MAX} are read")]
    Long {
        /// Its bytes.
        len: usize,
    },
    /// It is not PEM.
    #[error("not PEM of the type CERTIFICATE REQUEST")]
    Pem,
    /// Its bytes are not a request.
    #[error("not a PKCS#10 structure")]
    Structure,
    /// Its key is of a type or curve that is not issued to.
    #[error("its key is none of ECDSA P-256, ECDSA P-384, Ed25519 and RSA")]
    KeyType,
    /// Its RSA key has the wrong size.
    #[error("its RSA key has {bits} bits; {} to {} are accepted", RSA_BITS.start(), RSA_BITS.end())]
    RsaSize {
        /// Bits of the modulus.
        bits: usize,
    },
    /// Its elliptic curve key is not an uncompressed point.
    #[error("its key is not an uncompressed point of its curve")]
    Point,
    /// It is signed with a broken hash.
    #[error("signed with SHA-1; use SHA-256 or better")]
    Sha1,
    /// Its sender has not shown the private key.
    #[error("not signed by its own key, or by an algorithm that is not supported")]
    Signature,
}

/// The key of a request.
pub(super) fn public_key(csr_pem: &str) -> Result<SubjectPublicKeyInfo, RequestError> {
    if csr_pem.len() > CSR_LEN_MAX {
        return Err(RequestError::Long { len: csr_pem.len() });
    }
    let der =
        CertificateSigningRequestDer::from_pem_slice(csr_pem.as_bytes()).map_err(|_| RequestError::Pem)?;
    let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| RequestError::Structure)?;
    if !rest.is_empty() {
        return Err(RequestError::Structure);
    }
    let key = &request.certification_request_info.subject_pki;
    check_key(key)?;
    let signed_by = &request.signature_algorithm.algorithm;
    if [OID_PKCS1_SHA1WITHRSA, OID_SHA1_WITH_RSA].contains(signed_by) {
        return Err(RequestError::Sha1);
    }
    request.verify_signature().map_err(|_| RequestError::Signature)?;
    SubjectPublicKeyInfo::from_der(key.raw).map_err(|_| RequestError::KeyType)
}

fn check_key(key: &RequestedKey<'_>) -> Result<(), RequestError> {
    let kind = &key.algorithm.algorithm;
    let bytes = &key.subject_public_key.data;
    if *kind == OID_SIG_ED25519 {
        return Ok(());
    }
    if *kind == OID_PKCS1_RSAENCRYPTION {
        let Ok(PublicKey::RSA(rsa)) = key.parsed() else { return Err(RequestError::Structure) };
        let bits = bits(rsa.modulus);
        return if RSA_BITS.contains(&bits) { Ok(()) } else { Err(RequestError::RsaSize { bits }) };
    }
    let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let coordinate_len = match curve {
        Some(curve) if *kind == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == OID_EC_P256 => 32,
        Some(curve) if *kind == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == OID_NIST_EC_P384 => 48,
        _ => return Err(RequestError::KeyType),
    };
    let whole = bytes.first() == Some(&UNCOMPRESSED) && bytes.len() == 1 + 2 * coordinate_len;
    if whole { Ok(()) } else { Err(RequestError::Point) }
}

/// Bits of a big-endian number.
fn bits(number: &[u8]) -> usize {
    let significant = &number[number.iter().take_while(|byte| **byte == 0).count()..];
    significant.first().map_or(0, |first| significant.len() * 8 - first.leading_zeros() as usize)
}
