//! What the embedded authority issues besides workload certificates with a key of its own making: certificates for the
//! keys of others, and a server's.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use halo_core::certificate::PrivateKey;
use halo_core::id::Identity;
use rcgen::string::Ia5String;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::DnsName;

use super::{BACKDATE, CaError, EmbeddedCa, Facts, request};

/// Bytes of a serial number; RFC 5280, section 4.1.2.2 allows 20.
const SERIAL_LEN: usize = 16;
/// Characters in a line of PEM (RFC 7468, section 2).
const PEM_WIDTH: usize = 64;

/// A certificate for a key that the authority has never seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// PEM texts: the leaf, then each intermediate, and last all roots in one text.
    pub chain_pem: Vec<String>,
    /// End of the leaf's life.
    pub not_after: SystemTime,
}

/// A server's certificate with its key.
#[derive(Debug, Clone)]
pub struct ServerCertificate {
    /// Leaf first, then intermediates; X.509 DER.
    pub chain: Vec<Vec<u8>>,
    /// The leaf's key.
    pub key: PrivateKey,
    /// End of the leaf's life.
    pub not_after: SystemTime,
}

impl EmbeddedCa {
    /// Issues a certificate for an identity to the key of a PKCS#10 request in PEM. Of the request only the key counts,
    /// whatever names it asks for. The certificate's life ends `ttl` after `now`, or sooner where the authority's
    /// longest life or its root ends.
    pub fn sign_request(
        &self,
        csr_pem: &str,
        identity: &Identity,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Issued, CaError> {
        let key = request::public_key(csr_pem)?;
        let end = self.root.end(ttl.min(self.life_max), now)?;
        let leaf = svid(identity, now, end)?.signed_by(&key, self.root.issuer())?;
        let mut chain_pem: Vec<_> = self.root.chain_of(leaf.der()).iter().map(|der| pem(der)).collect();
        chain_pem.push(self.roots_pem(now));
        Ok(Issued { chain_pem, not_after: Facts::of(leaf.der())?.not_after() })
    }

    /// Issues a certificate with a new key to a server of these names, each a DNS name or an IP address.
    pub fn server_certificate(
        &self,
        names: &[String],
        ttl: Duration,
        now: SystemTime,
    ) -> Result<ServerCertificate, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = leaf(now, self.root.end(ttl, now)?)?;
        params.subject_alt_names = names.iter().map(|name| server_name(name)).collect::<Result<_, _>>()?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, self.root.issuer())?;
        Ok(ServerCertificate {
            chain: self.root.chain_of(leaf.der()),
            key: PrivateKey::from_pkcs8_der(key.serialize_der()),
            not_after: Facts::of(leaf.der())?.not_after(),
        })
    }

    /// The roots that workloads trust now, the authority's own first; PEM.
    pub fn root_pem(&self) -> String {
        self.roots_pem(SystemTime::now())
    }

    fn roots_pem(&self, now: SystemTime) -> String {
        self.bundle.roots(now).iter().map(|der| pem(der)).collect()
    }
}

/// A workload's certificate, for both ends of a tunnel.
pub(super) fn svid(
    identity: &Identity,
    now: SystemTime,
    end: SystemTime,
) -> Result<CertificateParams, CaError> {
    let mut params = leaf(now, end)?;
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity.to_string())?)];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn leaf(now: SystemTime, end: SystemTime) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    // With an empty subject the SAN extension is critical (RFC 5280, section 4.2.1.6).
    params.distinguished_name = DistinguishedName::new();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.not_before = (now - BACKDATE).into();
    params.not_after = end.into();
    params.serial_number = Some(serial()?.to_vec().into());
    Ok(params)
}

/// A number of its own for every certificate, also where a key comes a second time.
fn serial() -> Result<[u8; SERIAL_LEN], CaError> {
    let mut serial = [0; SERIAL_LEN];
    rand::fill(&mut serial).map_err(|_| rcgen::Error::RingUnspecified)?;
    // Positive, and never zero.
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}

fn server_name(name: &str) -> Result<SanType, CaError> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    DnsName::try_from(name).map_err(|_| CaError::Name { name: name.into() })?;
    Ok(SanType::DnsName(Ia5String::try_from(name)?))
}

/// A certificate in PEM (RFC 7468).
pub(crate) fn pem(der: &[u8]) -> String {
    let base64 = STANDARD.encode(der);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(PEM_WIDTH));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}
