//! Why TLS with a peer failed, grouped by who is to blame.

use halo_core::outcome::Reason;
use rustls::{AlertDescription, CertificateError, Error};

/// What is wrong with a peer's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificateFault {
    /// Its validity has ended.
    #[error("it has expired")]
    Expired,
    /// Its validity has not begun.
    #[error("it is not valid yet")]
    NotYetValid,
    /// It does not chain to our roots.
    #[error("no trusted root issued it")]
    UnknownIssuer,
    /// Its extended key usage does not cover the peer's role.
    #[error("it may not be used in this role")]
    Purpose,
    /// It, or a certificate that it was issued by, is revoked.
    #[error("it, or one that it was issued by, has been revoked")]
    Revoked,
    /// The revocation list of its issuer is not signed by that issuer.
    #[error("the revocation list of its issuer is not that issuer's")]
    RevocationList,
    /// It names no workload: no URI SAN is a workload's SPIFFE ID.
    #[error("it names no workload identity")]
    NoIdentity,
    /// It is malformed, badly signed, or the peer does not hold its key.
    #[error("it or its signature is malformed")]
    Invalid,
}

/// Why a handshake or a record failed. A failure is final: the machine that returned it answers every later call with
/// the same error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// Our own certificate, its key or its roots cannot be used.
    #[error("our own certificate, key or roots cannot be used")]
    OwnCertificate,
    /// The peer presented no certificate.
    #[error("the peer presented no certificate")]
    PeerNoCertificate,
    /// The peer's certificate is refused.
    #[error("the peer's certificate is refused: {0}")]
    PeerCertificate(CertificateFault),
    /// The peer belongs to another trust domain.
    #[error("the peer belongs to another trust domain")]
    PeerTrustDomain,
    /// The peer is in the right trust domain, but is not a workload that was asked for.
    #[error("the peer is not the workload that was asked for")]
    PeerIdentity,
    /// The peer ended the connection with this alert.
    #[error("the peer ended the connection with alert {0:?}")]
    PeerAlert(AlertDescription),
    /// The peer shares no version, suite, group or application protocol with us.
    #[error("the peer shares no protocol version or parameter with us")]
    PeerUnsupported,
    /// The peer broke the protocol or a record was tampered with; the alert is what it is told.
    #[error("the peer broke the protocol: {0:?}")]
    PeerProtocol(AlertDescription),
    /// Something was to be sealed after our own close_notify or fatal alert.
    #[error("the sending direction is closed")]
    SendClosed,
    /// A local operation failed that cannot: randomness, key derivation, sealing, or calls out of order.
    #[error("a local cryptographic operation failed")]
    Local,
}

impl TlsError {
    /// The reason that metrics and logs show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::OwnCertificate => Reason::NoCertificate,
            Self::PeerNoCertificate => Reason::PeerNoCertificate,
            Self::PeerCertificate(CertificateFault::Revoked)
            | Self::PeerAlert(AlertDescription::CertificateRevoked) => Reason::CertRevoked,
            Self::PeerCertificate(_) => Reason::PeerBadCertificate,
            Self::PeerTrustDomain => Reason::PeerTrustDomain,
            Self::PeerIdentity => Reason::PeerIdentity,
            Self::PeerAlert(_)
            | Self::PeerUnsupported
            | Self::PeerProtocol(_)
            | Self::SendClosed
            | Self::Local => Reason::TlsFailed,
        }
    }

    /// The fatal alert that tells the peer of an error in the record phase; none where the peer already knows.
    pub(super) fn alert(&self) -> Option<AlertDescription> {
        match self {
            Self::PeerAlert(_) | Self::SendClosed => None,
            Self::PeerProtocol(alert) => Some(*alert),
            Self::PeerNoCertificate => Some(AlertDescription::CertificateRequired),
            Self::PeerCertificate(CertificateFault::Revoked) => Some(AlertDescription::CertificateRevoked),
            Self::PeerCertificate(_) | Self::PeerTrustDomain | Self::PeerIdentity => {
                Some(AlertDescription::CertificateUnknown)
            }
            Self::PeerUnsupported => Some(AlertDescription::HandshakeFailure),
            Self::OwnCertificate | Self::Local => Some(AlertDescription::InternalError),
        }
    }
}

/// Takes blame out of a rustls error. Our own verifiers' verdicts travel inside [`CertificateError::Other`].
impl From<&Error> for TlsError {
    fn from(error: &Error) -> Self {
        match error {
            Error::NoCertificatesPresented => Self::PeerNoCertificate,
            Error::InvalidCertificate(error) => certificate(error),
            Error::AlertReceived(alert) => Self::PeerAlert(*alert),
            Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Self::PeerUnsupported,
            Error::DecryptError => Self::PeerProtocol(AlertDescription::BadRecordMac),
            Error::PeerSentOversizedRecord => Self::PeerProtocol(AlertDescription::RecordOverflow),
            Error::InvalidMessage(_) => Self::PeerProtocol(AlertDescription::DecodeError),
            Error::InappropriateMessage { .. }
            | Error::InappropriateHandshakeMessage { .. }
            | Error::PeerMisbehaved(_) => Self::PeerProtocol(AlertDescription::UnexpectedMessage),
            // The remaining causes, and those of later releases, are local: randomness, time, encryption, misuse.
            _ => Self::Local,
        }
    }
}

fn certificate(error: &CertificateError) -> TlsError {
    let fault = match error {
        CertificateError::Other(cause) => {
            return match cause.0.downcast_ref::<TlsError>() {
                Some(verdict) => *verdict,
                None => TlsError::PeerCertificate(CertificateFault::Invalid),
            };
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => CertificateFault::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            CertificateFault::NotYetValid
        }
        CertificateError::UnknownIssuer => CertificateFault::UnknownIssuer,
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            CertificateFault::Purpose
        }
        CertificateError::Revoked => CertificateFault::Revoked,
        _ => CertificateFault::Invalid,
    };
    TlsError::PeerCertificate(fault)
}
