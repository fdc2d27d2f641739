//! The rustls configurations of one certificate.

use std::fmt;
use std::sync::Arc;

use halo_core::certificate::Certificate;
use halo_core::id::Identity;
use halo_core::options::TlsMode;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};

use super::error::TlsError;
use super::recent;
use super::revocation::RevocationLists;
use super::verify::{ClientVerifier, ServerVerifier, Trust};

/// The one application protocol of a tunnel (RFC 7540, section 3.3).
const ALPN: &[u8] = b"h2";

/// What handshakes go by beside the certificate.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    /// Versions and key exchange.
    pub mode: TlsMode,
    /// Trust domains that count as the same as the certificate's own.
    pub aliases: Box<[Arc<str>]>,
    /// What is revoked.
    pub revocations: Option<Arc<RevocationLists>>,
}

/// What both roles' configurations are made from.
struct Base<'a> {
    provider: Arc<CryptoProvider>,
    versions: &'static [&'static SupportedProtocolVersion],
    trust: &'a Arc<Trust>,
}

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
        Self::build(certificate, Terms::default(), Arc::new(DefaultTimeProvider))
    }

    /// Like [`TlsConfig::new`], on other terms than the default ones.
    pub fn on_terms(certificate: &Certificate, terms: Terms) -> Result<Self, TlsError> {
        Self::build(certificate, terms, Arc::new(DefaultTimeProvider))
    }

    /// Like [`TlsConfig::new`], with the clock that peers' validity is judged by.
    pub fn with_clock(certificate: &Certificate, clock: Arc<dyn TimeProvider>) -> Result<Self, TlsError> {
        Self::build(certificate, Terms::default(), clock)
    }

    fn build(
        certificate: &Certificate,
        terms: Terms,
        clock: Arc<dyn TimeProvider>,
    ) -> Result<Self, TlsError> {
        let Terms { mode, aliases, revocations: lists } = terms;
        let provider = Arc::new(provider(mode));
        let trusted = certificate.roots.iter().map(Vec::as_slice);
        let trust = Arc::new(Trust {
            id: recent::trust_id(trusted, lists.as_ref().map(|lists| lists.id())),
            roots: roots(certificate)?,
            lists,
            domain: certificate.identity.trust_domain.clone(),
            aliases,
            algorithms: provider.signature_verification_algorithms,
        });
        let base = Base { provider, versions: versions(mode), trust: &trust };
        let client = client(certificate, &base, clock.clone())?;
        let server = server(certificate, &base, clock)?;
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

/// The protocol versions of a mode. The exchange that [`TlsMode::pqc_only`] asks for exists in TLS 1.3 alone.
fn versions(mode: TlsMode) -> &'static [&'static SupportedProtocolVersion] {
    static NEW: &[&SupportedProtocolVersion] = &[&TLS13];
    static BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
    if mode.tls12 && !mode.pqc_only { BOTH } else { NEW }
}

fn provider(mode: TlsMode) -> CryptoProvider {
    let mut provider = CryptoProvider {
        // The order is a preference, and the stock proxy's.
        cipher_suites: vec![
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        ],
        ..aws_lc_rs::default_provider()
    };
    if mode.pqc_only {
        provider.kx_groups = vec![kx_group::X25519MLKEM768];
    }
    provider
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
    base: &Base<'_>,
    clock: Arc<dyn TimeProvider>,
) -> Result<ClientConfig, TlsError> {
    // Each handshake brings its own list of identities; this configuration alone accepts nobody.
    let verifier = ServerVerifier { trust: base.trust.clone(), accepted: Arc::new([]) };
    let (chain, key) = chain_and_key(certificate);
    let mut config = ClientConfig::builder_with_details(base.provider.clone(), clock)
        .with_protocol_versions(base.versions)
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
    base: &Base<'_>,
    clock: Arc<dyn TimeProvider>,
) -> Result<ServerConfig, TlsError> {
    let verifier = ClientVerifier { trust: base.trust.clone() };
    let (chain, key) = chain_and_key(certificate);
    let mut config = ServerConfig::builder_with_details(base.provider.clone(), clock)
        .with_protocol_versions(base.versions)
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
