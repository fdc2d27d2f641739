//! The root of the embedded authority, and the directory that the nodes share it through.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::{BACKDATE, CaError, Facts};

const CERTIFICATE: &str = "root-cert.pem";
const KEY: &str = "root-key.pem";
const LOCK: &str = ".lock";
/// Life of a root: ten years.
const LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Longest chain of a file.
const CHAIN_LEN_MAX: usize = 8;
/// Permissions of a key file that let others than its owner near it.
const OTHERS: u32 = 0o077;

/// An authority that can sign, and the root that workloads trust for it; most often the two are one.
#[derive(Debug)]
pub(super) struct Root {
    /// The signing certificate, its issuer, and so on to the root.
    chain: Vec<Vec<u8>>,
    issuer: Issuer<'static, KeyPair>,
    not_after: SystemTime,
}

impl Root {
    pub(super) fn generate(trust_domain: &str, now: SystemTime) -> Result<Self, CaError> {
        let (certificate, key) = make(trust_domain, now)?;
        Self::from_parts(vec![certificate.der().to_vec()], key)
    }

    fn from_parts(chain: Vec<Vec<u8>>, key: KeyPair) -> Result<Self, CaError> {
        let ends = chain.iter().map(|der| Facts::of(der).map(|facts| facts.not_after()));
        let not_after = ends.collect::<Result<Vec<_>, _>>()?.into_iter().min().ok_or(CaError::Unreadable)?;
        let issuer = Issuer::from_ca_cert_der(&chain[0].as_slice().into(), key)?;
        Ok(Self { chain, issuer, not_after })
    }

    /// The trusted root, X.509 DER.
    pub(super) fn der(&self) -> &[u8] {
        self.chain.last().expect("a chain is never empty")
    }

    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// A leaf with what leads from it to the root, without the root.
    pub(super) fn chain_of(&self, leaf: &[u8]) -> Vec<Vec<u8>> {
        let between = &self.chain[..self.chain.len() - 1];
        [leaf.to_vec()].into_iter().chain(between.iter().cloned()).collect()
    }

    /// When a certificate ends that shall live this long from now.
    pub(super) fn end(&self, life: Duration, now: SystemTime) -> Result<SystemTime, CaError> {
        let end = now.checked_add(life).unwrap_or(self.not_after).min(self.not_after);
        if end > now { Ok(end) } else { Err(CaError::Expired) }
    }

    /// Whether what it signs names it as its certificate does and carries a signature that verifies.
    fn signs(&self) -> bool {
        let leaf = CertificateParams::default().signed_by(self.issuer.key(), &self.issuer);
        let Ok(leaf) = leaf else { return false };
        let parsed = (X509Certificate::from_der(leaf.der()), X509Certificate::from_der(&self.chain[0]));
        let (Ok((_, leaf)), Ok((_, signer))) = parsed else { return false };
        leaf.issuer().as_raw() == signer.subject().as_raw()
            && leaf.verify_signature(Some(signer.public_key())).is_ok()
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

/// Loads the directory's root, or makes it. Processes that come together take turns at making it; a root that is there
/// is whole, and may be where nothing can be written.
pub(super) fn open(directory: &Path, trust_domain: &str, now: SystemTime) -> Result<Root, CaError> {
    if let Some(root) = load(directory, now)? {
        return Ok(root);
    }
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
    let chain = certificates(&pem).ok_or_else(|| wrong(&certificate_path, "not a PEM certificate"))?;
    let key = read_key(&key_path)?;
    check_chain(&chain, now).map_err(|reason| wrong(&certificate_path, reason))?;
    if !holds_key(&chain[0], &key) {
        return Err(wrong(&key_path, "not the key of root-cert.pem"));
    }
    let root = Root::from_parts(chain, key)?;
    if !root.signs() {
        return Err(wrong(&certificate_path, "its key or the form of its subject cannot be used here"));
    }
    Ok(Some(root))
}

/// The certificates of a PEM text, of which there is at least one; X.509 DER.
pub(super) fn certificates(pem: &[u8]) -> Option<Vec<Vec<u8>>> {
    let found = CertificateDer::pem_slice_iter(pem).map(|der| der.map(|der| der.to_vec()));
    found.collect::<Result<Vec<_>, _>>().ok().filter(|found| !found.is_empty())
}

fn read_key(path: &Path) -> Result<KeyPair, CaError> {
    let failed = |error| file_error(path, error);
    let mut file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if mode & OTHERS != 0 {
        return Err(CaError::Exposed { path: path.display().to_string(), mode });
    }
    let mut pem = Zeroizing::new(Vec::new());
    file.read_to_end(&mut pem).map_err(failed)?;
    let key = PrivateKeyDer::from_pem_slice(&pem).ok().and_then(|der| KeyPair::try_from(&der).ok());
    key.ok_or_else(|| CaError::Root { path: path.display().to_string(), reason: "not a PEM private key" })
}

/// Whether each certificate is an authority's that lives, and is signed by the one after it.
fn check_chain(chain: &[Vec<u8>], now: SystemTime) -> Result<(), &'static str> {
    if chain.len() > CHAIN_LEN_MAX {
        return Err("a chain of more than 8 certificates");
    }
    let parse = |der| X509Certificate::from_der(der).map(|(_, certificate)| certificate);
    let parsed = chain.iter().map(|der| parse(der)).collect::<Result<Vec<_>, _>>();
    let parsed = parsed.map_err(|_| "not an X.509 certificate")?;
    for (below, (certificate, der)) in parsed.iter().zip(chain).enumerate() {
        if !certificate.is_ca() {
            return Err("not the certificate of an authority");
        }
        if certificate.key_usage().ok().flatten().is_some_and(|usage| !usage.value.key_cert_sign()) {
            return Err("its key usage does not let it sign certificates");
        }
        let constraint = certificate.basic_constraints().ok().flatten();
        let length = constraint.and_then(|constraint| constraint.value.path_len_constraint);
        if length.is_some_and(|length| (length as usize) < below) {
            return Err("its path length does not let it have the authorities before it");
        }
        if Facts::of(der).map_or(true, |facts| facts.not_after() <= now) {
            return Err("expired; remove it and root-key.pem to make a new root");
        }
    }
    let signed = |pair: &[X509Certificate<'_>]| {
        pair[0].issuer().as_raw() == pair[1].subject().as_raw()
            && pair[0].verify_signature(Some(pair[1].public_key())).is_ok()
    };
    if parsed.windows(2).all(signed) { Ok(()) } else { Err("not a chain: each must be signed by the next") }
}

fn holds_key(der: &[u8], key: &KeyPair) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(_, certificate)| {
        *certificate.public_key().subject_public_key.data == *key.public_key_raw()
    })
}

fn create(directory: &Path, trust_domain: &str, now: SystemTime) -> Result<Root, CaError> {
    let (certificate, key) = make(trust_domain, now)?;
    let key_pem = Zeroizing::new(key.serialize_pem());
    replace(directory, KEY, key_pem.as_bytes(), 0o600)?;
    replace(directory, CERTIFICATE, certificate.pem().as_bytes(), 0o644)?;
    Root::from_parts(vec![certificate.der().to_vec()], key)
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

pub(super) fn file_error(path: &Path, error: io::Error) -> CaError {
    CaError::File { path: path.display().to_string(), error }
}
