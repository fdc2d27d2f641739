//! The serving certificate, issued by the control plane's own authority and renewed while it runs, and what a client's
//! certificate says.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert, VerifierBuilderError, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;
use tracing::{error, info};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::ca::{CaError, EmbeddedCa};
use crate::controller::auth::Peer;

/// Life of a serving certificate.
const LIFE: Duration = Duration::from_secs(24 * 3600);
/// A certificate with less life left than this is renewed.
const RENEW: Duration = Duration::from_secs(12 * 3600);
/// Pause between two looks at the certificate, by the wall clock of which its life is counted.
const LOOK: Duration = Duration::from_secs(60);

/// Why the server cannot speak TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The authority issues no certificate.
    #[error("serving certificate: {0}")]
    Ca(#[from] CaError),
    /// The TLS library does not take the certificate.
    #[error("serving certificate: {0}")]
    Certificate(#[from] rustls::Error),
    /// The TLS library does not take the root that clients' certificates are verified by.
    #[error("root of clients' certificates: {0}")]
    Root(#[from] VerifierBuilderError),
}

/// The certificate in use, kept fresh.
#[derive(Debug)]
pub(crate) struct ServingCertificate {
    authority: EmbeddedCa,
    names: Vec<String>,
    provider: Arc<CryptoProvider>,
    /// With when it was made and when it ends.
    current: RwLock<(Arc<CertifiedKey>, SystemTime, SystemTime)>,
}

impl ServingCertificate {
    /// Has a first certificate issued for these names, each a DNS name or an IP address.
    pub(crate) fn new(authority: EmbeddedCa, names: Vec<String>) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let current = RwLock::new(issue(&authority, &names, &provider, SystemTime::now())?);
        Ok(Self { authority, names, provider, current })
    }

    /// What accepts TLS connections with the certificate in use at the time. A client may show a certificate of the
    /// same authority, or none.
    pub(crate) fn acceptor(self: &Arc<Self>) -> Result<TlsAcceptor, TlsError> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(self.authority.root_der().to_vec()))?;
        let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), self.provider.clone());
        let clients = clients.allow_unauthenticated().build()?;
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        // Streams last, so a resumption saves nothing; a client's certificate is looked at every time.
        config.send_tls13_tickets = 0;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Renews the certificate in time, for ever.
    pub(crate) async fn renew(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            let now = SystemTime::now();
            let (made, not_after) = {
                let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
                (current.1, current.2)
            };
            if !is_stale(made, not_after, now) {
                continue;
            }
            match issue(&self.authority, &self.names, &self.provider, now) {
                Ok(next) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
                    info!("the serving certificate was renewed");
                }
                Err(error) => error!(%error, "the serving certificate cannot be renewed"),
            }
        }
    }
}

/// Whether a certificate must be renewed: too little of its life is left, or the clock was put back to before it was
/// made, when it is not valid yet.
fn is_stale(made: SystemTime, not_after: SystemTime, now: SystemTime) -> bool {
    not_after <= now + RENEW || made > now
}

fn issue(
    authority: &EmbeddedCa,
    names: &[String],
    provider: &CryptoProvider,
    now: SystemTime,
) -> Result<(Arc<CertifiedKey>, SystemTime, SystemTime), TlsError> {
    let issued = authority.server_certificate(names, LIFE, now)?;
    let chain = issued.chain.into_iter().map(CertificateDer::from).collect();
    let key = PrivatePkcs8KeyDer::from(issued.key.pkcs8_der()).clone_key();
    let certified = CertifiedKey::from_der(chain, key.into(), provider)?;
    Ok((Arc::new(certified), now, issued.not_after))
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).0.clone())
    }
}

/// Whose a verified certificate is; `None` if it carries no workload's identity.
pub(crate) fn peer(certificate: &CertificateDer<'_>) -> Option<Peer> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    // A SPIFFE certificate has exactly one URI (X.509-SVID, section 2).
    let uri = uris.next()?;
    let identity = uris.next().is_none().then(|| uri.parse().ok()).flatten()?;
    let not_after_s = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    let not_after = UNIX_EPOCH.checked_add(Duration::from_secs(not_after_s))?;
    Some(Peer { identity, not_after })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_late_in_its_life_and_when_the_clock_was_put_back() {
        let made = UNIX_EPOCH + LIFE * 100;
        let not_after = made + LIFE;
        assert!(!is_stale(made, not_after, made));
        assert!(is_stale(made, not_after, not_after - RENEW));
        assert!(is_stale(made, not_after, made - LIFE));
    }
}
