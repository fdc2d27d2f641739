//! Who may be at the far end of a tunnel.
//!
//! A client accepts a server whose chain ends in our roots and whose certificate names one of the identities that were
//! asked for; DNS and IP names are ignored. A server accepts a client whose chain ends in our roots and whose
//! certificate names a workload of our own trust domain. A trust domain may have other names, which count as the same. The extended key usage must cover the peer's role, and no
//! certificate of the chain may be revoked.

use std::sync::Arc;

use halo_core::id::{Identity, TrustDomains};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use webpki::CertRevocationList;

use super::error::{CertificateFault, TlsError};
use super::recent::{Chain, Role, TrustId};
use super::revocation::{self, RevocationLists};

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

/// Carries a verdict through rustls.
fn refuse(verdict: TlsError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(verdict))))
}

/// What peers' chains are judged by: the roots that they must lead to, and what is revoked.
#[derive(Debug)]
pub(super) struct Trust {
    pub(super) roots: RootCertStore,
    pub(super) lists: Option<Arc<RevocationLists>>,
    /// Our own trust domain.
    pub(super) domain: Arc<str>,
    /// Trust domains that count as the same as it.
    pub(super) aliases: Box<[Arc<str>]>,
    pub(super) id: TrustId,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl Trust {
    fn domains(&self) -> TrustDomains<'_> {
        TrustDomains { own: &self.domain, aliases: &self.aliases }
    }

    /// Whether one of the `presented` identities is one of the `accepted`.
    fn check_accepted(&self, presented: &[Identity], accepted: &[Identity]) -> Result<(), TlsError> {
        let domains = self.domains();
        let same = |one: &Identity, other: &Identity| domains.same_identity(one, other);
        let same_domain =
            |one: &Identity, other: &Identity| domains.same(&one.trust_domain, &other.trust_domain);
        if presented.iter().any(|identity| accepted.iter().any(|accepted| same(identity, accepted))) {
            return Ok(());
        }
        let known = |identity: &Identity| accepted.iter().any(|accepted| same_domain(identity, accepted));
        if accepted.is_empty() || presented.iter().any(known) {
            Err(TlsError::PeerIdentity)
        } else {
            Err(TlsError::PeerTrustDomain)
        }
    }

    /// Whether one of the `presented` identities belongs to our own trust domain.
    fn check_domain(&self, presented: &[Identity]) -> Result<(), TlsError> {
        let ours = presented.iter().any(|identity| self.domains().contains(&identity.trust_domain));
        if ours { Ok(()) } else { Err(TlsError::PeerTrustDomain) }
    }

    /// Checks validity, usage, signatures and revocation of a chain, unless that was done a moment ago.
    fn check(
        &self,
        role: Role,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        Chain::new(&self.id, role, leaf, intermediates).verified(now, || {
            let usage = match role {
                Role::Client => webpki::KeyUsage::client_auth(),
                Role::Server => webpki::KeyUsage::server_auth(),
            };
            let (algorithms, roots) = (self.algorithms.all, &self.roots.roots);
            let leaf = webpki::EndEntityCert::try_from(leaf).map_err(|error| fault(&error))?;
            let verify = |lists: &[&CertRevocationList<'_>]| {
                let revocation = revocation::options(lists);
                leaf.verify_for_usage(algorithms, roots, intermediates, now, usage, revocation, None)
                    .map(drop)
            };
            let verdict = self.lists.as_ref().map_or_else(|| verify(&[]), |lists| lists.judge(verify));
            verdict.map_err(|error| fault(&error))
        })
    }

    fn verify_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }
}

/// What rustls is to say of a chain, which decides the alert.
fn fault(error: &webpki::Error) -> Error {
    use webpki::Error as Fault;
    let fault = match error {
        Fault::BadDer | Fault::BadDerTime | Fault::TrailingData(_) => CertificateError::BadEncoding,
        Fault::CertNotValidYet { .. } => CertificateError::NotValidYet,
        Fault::CertExpired { .. } | Fault::InvalidCertValidity => CertificateError::Expired,
        Fault::UnknownIssuer => CertificateError::UnknownIssuer,
        Fault::CertRevoked => CertificateError::Revoked,
        Fault::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        Fault::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        Fault::InvalidCrlSignatureForPublicKey | Fault::IssuerNotCrlSigner => {
            return refuse(TlsError::PeerCertificate(CertificateFault::RevocationList));
        }
        _ => return refuse(TlsError::PeerCertificate(CertificateFault::Invalid)),
    };
    Error::InvalidCertificate(fault)
}

/// Decides whether a server is one of the workloads that were asked for.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) trust: Arc<Trust>,
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
        self.trust.check(Role::Server, leaf, intermediates, now)?;
        identities(leaf)
            .and_then(|presented| self.trust.check_accepted(&presented, &self.accepted))
            .map_err(refuse)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, leaf, signature, &self.trust.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.trust.verify_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.algorithms.supported_schemes()
    }
}

/// Decides whether a client is a workload of our own trust domain.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    pub(super) trust: Arc<Trust>,
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
        self.trust.check(Role::Client, leaf, intermediates, now)?;
        identities(leaf).and_then(|presented| self.trust.check_domain(&presented)).map_err(refuse)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, leaf, signature, &self.trust.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.trust.verify_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.algorithms.supported_schemes()
    }
}
