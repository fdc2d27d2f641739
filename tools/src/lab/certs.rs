//! Certificates for peers that are not Halo, from the lab's own root or from others.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use halo_control::ca::EmbeddedCa;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    RevocationReason, RevokedCertParams, SanType, SerialNumber,
};

use super::{Doing, Result};

/// How long a certificate of [`Root::issue`] lives.
const LIFE: Duration = Duration::from_secs(3600);
/// How far back it begins, for clocks that differ.
const SLACK: Duration = Duration::from_secs(60);

/// Makes the root of the directory, if the first node has not done so yet.
pub fn make_root(directory: &Path, trust_domain: &str) -> Result<()> {
    let made = EmbeddedCa::in_directory(directory, trust_domain, SystemTime::now());
    made.map(drop).map_err(io::Error::other).doing(format_args!("make a root in {}", directory.display()))
}

/// A root that can issue.
#[derive(Debug)]
pub struct Root {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key and the root that its owner trusts, all PEM.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// The root.
    pub root: String,
}

impl Root {
    /// The root that the node proxies share.
    pub fn of(directory: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = directory.join(name);
            fs::read_to_string(&path).doing(format_args!("read {}", path.display()))
        };
        let (pem, key) = (read("root-cert.pem")?, read("root-key.pem")?);
        Self::from_pem(pem, &key).map_err(io::Error::other).doing("load the root")
    }

    /// A root that nobody in the lab trusts, with the same name as the lab's.
    pub fn foreign() -> Result<Self> {
        Self::generate().map_err(io::Error::other).doing("make a root")
    }

    fn from_pem(pem: String, key: &str) -> std::result::Result<Self, rcgen::Error> {
        let issuer = Issuer::from_ca_cert_pem(&pem, KeyPair::from_pem(key)?)?;
        Ok(Self { pem, issuer })
    }

    fn generate() -> std::result::Result<Self, rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "cluster.local");
        params.distinguished_name.push(DnType::CommonName, "Halo root");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self::from_pem(params.self_signed(&key)?.pem(), &key.serialize_pem())
    }

    /// A certificate for a SPIFFE ID, for an hour, for both roles.
    pub fn issue(&self, spiffe_id: &str) -> Result<Leaf> {
        self.issue_for(spiffe_id, LIFE)
    }

    /// As [`Root::issue`], with a life of its own.
    pub fn issue_for(&self, spiffe_id: &str, life: Duration) -> Result<Leaf> {
        self.sign(spiffe_id, life).map_err(io::Error::other).doing(format_args!("issue to {spiffe_id}"))
    }

    /// A list, PEM, that revokes the certificates with these serial numbers, big-endian bytes.
    pub fn revoke(&self, serials: &[Vec<u8>]) -> Result<String> {
        self.list(serials).map_err(io::Error::other).doing("make a revocation list")
    }

    fn list(&self, serials: &[Vec<u8>]) -> std::result::Result<String, rcgen::Error> {
        let now = SystemTime::now();
        let revoked = |serial: &Vec<u8>| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: now.into(),
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: (now - SLACK).into(),
            next_update: (now + LIFE).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer)?.pem()
    }

    fn sign(&self, spiffe_id: &str, life: Duration) -> std::result::Result<Leaf, rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(spiffe_id.try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let now = SystemTime::now();
        params.not_before = (now - SLACK).into();
        params.not_after = (now + life).into();
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Leaf { certificate: certificate.pem(), key: key.serialize_pem(), root: self.pem.clone() })
    }
}

impl Leaf {
    /// Writes the three files `cert.pem`, `key.pem` and `root.pem`.
    pub fn write(&self, directory: &Path) -> Result<PathBuf> {
        fs::create_dir_all(directory).doing(format_args!("create {}", directory.display()))?;
        let files = [("cert.pem", &self.certificate), ("key.pem", &self.key), ("root.pem", &self.root)];
        for (name, text) in files {
            let path = directory.join(name);
            fs::write(&path, text).doing(format_args!("write {}", path.display()))?;
        }
        Ok(directory.to_owned())
    }
}
