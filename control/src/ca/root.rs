//! The root of the embedded authority, and the directory that the nodes share it through.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use zeroize::Zeroizing;

use super::{BACKDATE, CaError, Facts};

const CERTIFICATE: &str = "root-cert.pem";
const KEY: &str = "root-key.pem";
const LOCK: &str = ".lock";
/// Life of a root: ten years.
const LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A root that can sign.
#[derive(Debug)]
pub(super) struct Root {
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    not_after: SystemTime,
}

impl Root {
    pub(super) fn generate(trust_domain: &str, now: SystemTime) -> Result<Self, CaError> {
        let (certificate, key) = make(trust_domain, now)?;
        Self::from_parts(certificate.der().clone(), key)
    }

    fn from_parts(der: CertificateDer<'static>, key: KeyPair) -> Result<Self, CaError> {
        let not_after = Facts::of(&der)?.not_after();
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        Ok(Self { der, issuer, not_after })
    }

    pub(super) fn der(&self) -> &[u8] {
        &self.der
    }

    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    pub(super) fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

fn make(trust_domain: &str, now: SystemTime) -> Result<(rcgen::Certificate, KeyPair), CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    params.distinguished_name.push(DnType::CommonName, "Halo root");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + LIFE).into();
    Ok((params.self_signed(&key)?, key))
}

/// Loads the directory's root, or makes it. Processes that come together take turns.
pub(super) fn open(directory: &Path, trust_domain: &str, now: SystemTime) -> Result<Root, CaError> {
    fs::create_dir_all(directory).map_err(|error| file_error(directory, error))?;
    let lock = directory.join(LOCK);
    let held =
        options(0o600).create(true).truncate(false).open(&lock).map_err(|error| file_error(&lock, error))?;
    held.lock().map_err(|error| file_error(&lock, error))?;
    // The lock ends with the file, at the end of this function.
    match load(directory, now)? {
        Some(root) => Ok(root),
        None => create(directory, trust_domain, now),
    }
}

/// The root that is there. The certificate is written last, so without it nobody has used the key yet.
fn load(directory: &Path, now: SystemTime) -> Result<Option<Root>, CaError> {
    let (certificate_path, key_path) = (directory.join(CERTIFICATE), directory.join(KEY));
    let wrong = |path: &Path, reason| CaError::Root { path: path.display().to_string(), reason };
    let pem = match fs::read(&certificate_path) {
        Ok(pem) => pem,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(file_error(&certificate_path, error)),
    };
    let der = CertificateDer::from_pem_slice(&pem)
        .map_err(|_| wrong(&certificate_path, "not a PEM certificate"))?;
    let key_pem =
        fs::read_to_string(&key_path).map(Zeroizing::new).map_err(|error| file_error(&key_path, error))?;
    let key = KeyPair::from_pem(&key_pem).map_err(|_| wrong(&key_path, "not a PEM private key"))?;
    let facts = Facts::of(&der).map_err(|_| wrong(&certificate_path, "not an X.509 certificate"))?;
    if !facts.is_ca {
        return Err(wrong(&certificate_path, "not the certificate of an authority"));
    }
    if facts.not_after() <= now {
        return Err(wrong(&certificate_path, "expired; remove it and root-key.pem to make a new root"));
    }
    if !holds_key(&der, &key) {
        return Err(wrong(&key_path, "not the key of root-cert.pem"));
    }
    Root::from_parts(der, key).map(Some)
}

fn holds_key(der: &CertificateDer<'_>, key: &KeyPair) -> bool {
    use x509_parser::prelude::{FromDer, X509Certificate};
    X509Certificate::from_der(der).is_ok_and(|(_, certificate)| {
        *certificate.public_key().subject_public_key.data == *key.public_key_raw()
    })
}

fn create(directory: &Path, trust_domain: &str, now: SystemTime) -> Result<Root, CaError> {
    let (certificate, key) = make(trust_domain, now)?;
    let key_pem = Zeroizing::new(key.serialize_pem());
    replace(directory, KEY, key_pem.as_bytes(), 0o600)?;
    replace(directory, CERTIFICATE, certificate.pem().as_bytes(), 0o644)?;
    Root::from_parts(certificate.der().clone(), key)
}

/// Writes a file beside its place and moves it there, so that no reader sees half of it and no crash leaves half.
fn replace(directory: &Path, name: &str, content: &[u8], mode: u32) -> Result<(), CaError> {
    let draft = directory.join(format!(".{name}.new"));
    let place = directory.join(name);
    let write = || -> io::Result<()> {
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = options(mode).create_new(true).open(&draft)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&draft, &place)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|error| file_error(&place, error))
}

fn options(mode: u32) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(mode);
    options
}

fn file_error(path: &Path, error: io::Error) -> CaError {
    CaError::File { path: path.display().to_string(), error }
}
