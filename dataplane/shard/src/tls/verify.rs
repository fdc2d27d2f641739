//! Who may be at the far end of a tunnel.
//!
//! A client accepts a server whose chain ends in our roots and whose certificate names one of the identities that were
//! asked for; DNS and IP names are ignored. A server accepts a client whose chain ends in our roots and whose
//! certificate names a workload of our own trust domain. The extended key usage must cover the peer's role.

use std::sync::Arc;

use halo_core::id::Identity;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerMisbehaved,
    RootCertStore, SignatureScheme,
};

use super::error::{CertificateFault, TlsError};
use super::recent::{Chain, Role, RootsId};

/// The workload identities in a certificate's URI SANs, in their order. Other URIs are passed over.
pub(super) fn identities(leaf: &CertificateDer<'_>) -> Result<Vec<Identity>, TlsError> {
    let leaf = webpki::EndEntityCert::try_from(leaf)
        .map_err(|_| TlsError::PeerCertificate(CertificateFault::Invalid))?;
    let identities: Vec<Identity> = leaf.valid_uri_names().filter_map(|uri| uri.parse().ok()).collect();
    if identities.is_empty() {
        return Err(TlsError::PeerCertificate(CertificateFault::NoIdentity));
    }
    Ok(identities)
}

/// Whether one of the `presented` identities is one of the `accepted`.
fn check_accepted(presented: &[Identity], accepted: &[Identity]) -> Result<(), TlsError> {
    if presented.iter().any(|identity| accepted.contains(identity)) {
        return Ok(());
    }
    let domain_known =
        |identity: &Identity| accepted.iter().any(|accepted| accepted.trust_domain == identity.trust_domain);
    if accepted.is_empty() || presented.iter().any(domain_known) {
        Err(TlsError::PeerIdentity)
    } else {
        Err(TlsError::PeerTrustDomain)
    }
}

/// Whether one of the `presented` identities belongs to `trust_domain`.
fn check_trust_domain(presented: &[Identity], trust_domain: &str) -> Result<(), TlsError> {
    if presented.iter().any(|identity| *identity.trust_domain == *trust_domain) {
        Ok(())
    } else {
        Err(TlsError::PeerTrustDomain)
    }
}

/// Carries a verdict through rustls.
fn refuse(verdict: TlsError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(verdict))))
}

/// Decides whether a server is one of the workloads that were asked for.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) roots_id: RootsId,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
    pub(super) accepted: Arc<[Identity]>,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Chain::new(&self.roots_id, Role::Server, leaf, intermediates).verified(now, || {
            let parsed = ParsedCertificate::try_from(leaf)?;
            let algorithms = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)
        })?;
        identities(leaf).and_then(|presented| check_accepted(&presented, &self.accepted)).map_err(refuse)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Decides whether a client is a workload of our own trust domain.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    /// Checks chain, validity, usage and signatures.
    pub(super) chain: Arc<dyn ClientCertVerifier>,
    pub(super) roots_id: RootsId,
    pub(super) trust_domain: Arc<str>,
}

impl ClientCertVerifier for ClientVerifier {
    /// No hints: a client has one certificate, and hints make some clients send none instead of one that is refused
    /// with a reason.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Chain::new(&self.roots_id, Role::Client, leaf, intermediates)
            .verified(now, || self.chain.verify_client_cert(leaf, intermediates, now).map(drop))?;
        identities(leaf)
            .and_then(|presented| check_trust_domain(&presented, &self.trust_domain))
            .map_err(refuse)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
