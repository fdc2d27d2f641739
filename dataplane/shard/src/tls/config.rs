//! The rustls configurations of one certificate.

use std::fmt;
use std::sync::Arc;

use halo_core::certificate::Certificate;
use halo_core::id::Identity;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::error::TlsError;
use super::recent::{self, RootsId};
use super::verify::{ClientVerifier, ServerVerifier};

/// The one application protocol of a tunnel (RFC 7540, section 3.3).
const ALPN: &[u8] = b"h2";

/// The rustls configurations of one certificate, for both roles. It is built once per certificate and shard and then
/// shared; a handshake costs one shallow copy of the client's half.
pub struct TlsConfig {
    identity: Identity,
    client: ClientConfig,
    server: Arc<ServerConfig>,
    roots: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

/// The roots that peers' chains must lead to.
struct Trust {
    store: Arc<RootCertStore>,
    id: RootsId,
}

impl fmt::Debug for TlsConfig {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("TlsConfig").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl TlsConfig {
    /// Builds both configurations. Peers' validity is judged by the system clock.
    ///
    /// Fails with [`TlsError::OwnCertificate`] when the chain is empty or malformed, the key does not fit the leaf, or
    /// no root can be read. The validity of our own leaf is not checked here.
    pub fn new(certificate: &Certificate) -> Result<Self, TlsError> {
        Self::with_clock(certificate, Arc::new(DefaultTimeProvider))
    }

    /// Like [`TlsConfig::new`], with the clock that peers' validity is judged by.
    pub fn with_clock(certificate: &Certificate, clock: Arc<dyn TimeProvider>) -> Result<Self, TlsError> {
        let provider = Arc::new(provider());
        let algorithms = provider.signature_verification_algorithms;
        let roots = Trust {
            id: recent::roots_id(certificate.roots.iter().map(Vec::as_slice)),
            store: Arc::new(roots(certificate)?),
        };
        let client = client(certificate, &provider, &roots, clock.clone())?;
        let server = server(certificate, &provider, &roots, clock)?;
        let identity = certificate.identity.clone();
        Ok(Self { identity, client, server: Arc::new(server), roots, algorithms })
    }

    /// The identity that this certificate proves.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The client's configuration for a server that must be one of `accepted`.
    pub(super) fn client(&self, accepted: Arc<[Identity]>) -> Arc<ClientConfig> {
        let mut config = self.client.clone();
        let verifier = ServerVerifier {
            roots: self.roots.store.clone(),
            roots_id: self.roots.id,
            algorithms: self.algorithms,
            accepted,
        };
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
    roots: &Trust,
    clock: Arc<dyn TimeProvider>,
) -> Result<ClientConfig, TlsError> {
    // Each handshake brings its own list of identities; this configuration alone accepts nobody.
    let verifier = ServerVerifier {
        roots: roots.store.clone(),
        roots_id: roots.id,
        algorithms: provider.signature_verification_algorithms,
        accepted: Arc::new([]),
    };
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
    roots: &Trust,
    clock: Arc<dyn TimeProvider>,
) -> Result<ServerConfig, TlsError> {
    let verifier = ClientVerifier {
        chain: WebPkiClientVerifier::builder_with_provider(roots.store.clone(), provider.clone())
            .build()
            .map_err(|_| TlsError::OwnCertificate)?,
        roots_id: roots.id,
        trust_domain: certificate.identity.trust_domain.clone(),
    };
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
