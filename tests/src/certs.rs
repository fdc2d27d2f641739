//! Certificates for peers that are not Halo, from the lab's own root or from others.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use halo_control::ca::EmbeddedCa;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Makes the root of the directory, if the first node has not done so yet.
pub fn make_root(directory: &Path, trust_domain: &str) {
    EmbeddedCa::in_directory(directory, trust_domain, SystemTime::now()).unwrap();
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
    pub fn of(directory: &Path) -> Self {
        let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap();
        let (pem, key) = (read("root-cert.pem"), KeyPair::from_pem(&read("root-key.pem")).unwrap());
        Self { issuer: Issuer::from_ca_cert_pem(&pem, key).unwrap(), pem }
    }

    /// A root that nobody in the lab trusts, with the same name as the lab's.
    pub fn foreign() -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "cluster.local");
        params.distinguished_name.push(DnType::CommonName, "Halo root");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::from_ca_cert_pem(&pem, key).unwrap(), pem }
    }

    /// A certificate for a SPIFFE ID, for an hour, for both roles.
    pub fn issue(&self, spiffe_id: &str) -> Leaf {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(spiffe_id.try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let now = SystemTime::now();
        params.not_before = (now - Duration::from_secs(60)).into();
        params.not_after = (now + Duration::from_secs(3600)).into();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Leaf { certificate: certificate.pem(), key: key.serialize_pem(), root: self.pem.clone() }
    }
}

impl Leaf {
    /// Writes the three files `cert.pem`, `key.pem` and `root.pem`.
    pub fn write(&self, directory: &Path) -> PathBuf {
        fs::create_dir_all(directory).unwrap();
        let files = [("cert.pem", &self.certificate), ("key.pem", &self.key), ("root.pem", &self.root)];
        for (name, text) in files {
            fs::write(directory.join(name), text).unwrap();
        }
        directory.to_owned()
    }

    /// The certificate and its key, for rustls.
    pub fn der(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let certificate = CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap();
        (vec![certificate], PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap())
    }
}
