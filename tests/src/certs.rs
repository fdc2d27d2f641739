//! Certificates of the lab, as rustls takes them.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

pub use halo::lab::certs::{Leaf, Root};

/// The certificate and its key, for rustls.
pub fn der(leaf: &Leaf) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let certificate = CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap();
    (vec![certificate], PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap())
}
