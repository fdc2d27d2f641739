//! The rustls configurations of one certificate.

use std::fmt;
use std::sync::Arc;

use halo_core::certificate::Certificate;
use halo_core::id::Identity;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::error::TlsError;
use super::recent;
use super::revocation::RevocationLists;
use super::verify::{ClientVerifier, ServerVerifier, Trust};

/// The one application protocol of a tunnel (RFC 7540, section 3.3).
const ALPN: &[u8] = b"h2";

/// The rustls configurations of one certificate, for both roles. It is built once per certificate and shard and then
/// shared; a handshake costs one shallow copy of the client's half.
pub struct TlsConfig {
    identity: Identity,
    client: ClientConfig,
    server: Arc<ServerConfig>,
    trust: Arc<Trust>,
}

impl fmt::Debug for TlsConfig {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("TlsConfig").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl TlsConfig {
    /// Builds both configurations, with nothing revoked. Peers' validity is judged by the system clock.
    ///
    /// Fails with [`TlsError::OwnCertificate`] when the chain is empty or malformed, the key does not fit the leaf, or
    /// no root can be read. The validity of our own leaf is not checked here.
    pub fn new(certificate: &Certificate) -> Result<Self, TlsError> {
        Self::build(certificate, None, Arc::new(DefaultTimeProvider))
    }

    /// Like [`TlsConfig::new`], with what is revoked.
    pub fn with_revocations(
        certificate: &Certificate,
        lists: Option<Arc<RevocationLists>>,
    ) -> Result<Self, TlsError> {
        Self::build(certificate, lists, Arc::new(DefaultTimeProvider))
    }

    /// Like [`TlsConfig::new`], with the clock that peers' validity is judged by.
    pub fn with_clock(certificate: &Certificate, clock: Arc<dyn TimeProvider>) -> Result<Self, TlsError> {
        Self::build(certificate, None, clock)
    }

    fn build(
        certificate: &Certificate,
        lists: Option<Arc<RevocationLists>>,
        clock: Arc<dyn TimeProvider>,
    ) -> Result<Self, TlsError> {
        let provider = Arc::new(provider());
        let trusted = certificate.roots.iter().map(Vec::as_slice);
        let trust = Arc::new(Trust {
            id: recent::trust_id(trusted, lists.as_ref().map(|lists| lists.id())),
            roots: roots(certificate)?,
            lists,
            algorithms: provider.signature_verification_algorithms,
        });
        let client = client(certificate, &provider, &trust, clock.clone())?;
        let server = server(certificate, &provider, &trust, clock)?;
        let identity = certificate.identity.clone();
        Ok(Self { identity, client, server: Arc::new(server), trust })
    }

    /// The identity that this certificate proves.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What peers are judged by.
    pub(super) fn trust(&self) -> Arc<Trust> {
        self.trust.clone()
    }

    /// The client's configuration for a server that must be one of `accepted`.
    pub(super) fn client(&self, accepted: Arc<[Identity]>) -> Arc<ClientConfig> {
        let mut config = self.client.clone();
        let verifier = ServerVerifier { trust: self.trust.clone(), accepted };
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
        Arc::new(config)
    }

    pub(super) fn server(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }
}

fn provider() -> CryptoProvider {
    CryptoProvider {
        // The order is a preference, and the stock proxy's.
        cipher_suites: vec![cipher_suite::TLS13_AES_256_GCM_SHA384, cipher_suite::TLS13_AES_128_GCM_SHA256],
        ..aws_lc_rs::default_provider()
    }
}

/// A root that cannot be read is passed over: it can only make fewer peers acceptable.
fn roots(certificate: &Certificate) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificate.roots.iter().map(|der| CertificateDer::from(der.clone())));
    if roots.is_empty() { Err(TlsError::OwnCertificate) } else { Ok(roots) }
}

fn chain_and_key(certificate: &Certificate) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = certificate.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let key = PrivatePkcs8KeyDer::from(certificate.key.pkcs8_der().to_vec());
    (chain, PrivateKeyDer::Pkcs8(key))
}

fn client(
    certificate: &Certificate,
    provider: &Arc<CryptoProvider>,
    trust: &Arc<Trust>,
    clock: Arc<dyn TimeProvider>,
) -> Result<ClientConfig, TlsError> {
    // Each handshake brings its own list of identities; this configuration alone accepts nobody.
    let verifier = ServerVerifier { trust: trust.clone(), accepted: Arc::new([]) };
    let (chain, key) = chain_and_key(certificate);
    let mut config = ClientConfig::builder_with_details(provider.clone(), clock)
        .with_protocol_versions(&[&TLS13])
        .map_err(|_| TlsError::Local)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(chain, key)
        .map_err(|_| TlsError::OwnCertificate)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    config.enable_secret_extraction = true;
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn server(
    certificate: &Certificate,
    provider: &Arc<CryptoProvider>,
    trust: &Arc<Trust>,
    clock: Arc<dyn TimeProvider>,
) -> Result<ServerConfig, TlsError> {
    let trust_domain = certificate.identity.trust_domain.clone();
    let verifier = ClientVerifier { trust: trust.clone(), trust_domain };
    let (chain, key) = chain_and_key(certificate);
    let mut config = ServerConfig::builder_with_details(provider.clone(), clock)
        .with_protocol_versions(&[&TLS13])
        .map_err(|_| TlsError::Local)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(chain, key)
        .map_err(|_| TlsError::OwnCertificate)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_secret_extraction = true;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}
