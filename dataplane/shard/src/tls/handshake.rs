//! The handshake of one tunnel, in either role.
//!
//! Received bytes are presented to rustls one record at a time, so that it never opens a record of application data:
//! whatever follows the handshake stays in the caller's buffer for the [`Records`](super::Records).

use std::net::Ipv4Addr;
use std::sync::Arc;

use halo_core::id::Identity;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::{AlertDescription, Error, ProtocolVersion};

use super::config::TlsConfig;
use super::connection::{Connection, Sink, Step};
use super::error::TlsError;
use super::records::{AnyRecords, FrontRecord, RecordsKind, front_record};
use super::revocation::PeerChain;
use super::sealed::Sealed;
use super::unbuffered::Unbuffered;
use super::verify::{self, Trust};

/// What a handshake is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// More bytes from the peer.
    NeedInput,
    /// Nothing: call [`Handshake::finish`].
    Done,
}

/// A handshake in progress. Call [`Handshake::advance`] at once (a client speaks first) and after each read, send what
/// it appends, and call [`Handshake::finish`] once it is done. Deadlines are the caller's.
///
/// A client is done as soon as it has sent its certificate: a server that refuses it says so in the first record.
pub struct Handshake {
    connection: Connection,
    trust: Arc<Trust>,
    /// Bytes at the front of `input` that rustls has been shown and may still want.
    presented: usize,
    /// What was presented last cannot be a record.
    malformed: bool,
    outcome: Option<Result<(), TlsError>>,
}

impl Handshake {
    /// Begins a handshake with a server that must be one of `accepted`.
    pub fn client(config: &TlsConfig, accepted: Arc<[Identity]>) -> Result<Self, TlsError> {
        // rustls insists on a name. An address is never sent as SNI, and our verifier ignores it.
        let name = ServerName::from(Ipv4Addr::UNSPECIFIED);
        let connection = UnbufferedClientConnection::new(config.client(accepted), name)
            .map_err(|error| TlsError::from(&error))?;
        Ok(Self::new(Connection::Client(Box::new(connection)), config))
    }

    /// Begins a handshake with a client that must belong to our own trust domain.
    pub fn server(config: &TlsConfig) -> Result<Self, TlsError> {
        let connection =
            UnbufferedServerConnection::new(config.server()).map_err(|error| TlsError::from(&error))?;
        Ok(Self::new(Connection::Server(Box::new(connection)), config))
    }

    fn new(connection: Connection, config: &TlsConfig) -> Self {
        Self { connection, trust: config.trust(), presented: 0, malformed: false, outcome: None }
    }

    /// Goes as far as the bytes in `input` allow: drops from its front what is used up, and appends to `out` what must
    /// be sent.
    ///
    /// On an error an alert for the peer may have been appended to `out`; the caller still sends it. The error is
    /// final.
    pub fn advance(&mut self, input: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<Progress, TlsError> {
        loop {
            if let Some(outcome) = self.outcome {
                return outcome.map(|()| Progress::Done);
            }
            match self.step(input, out) {
                Ok(Step::Again) => {}
                Ok(Step::Traffic) if !self.connection.common().is_handshaking() => {
                    // A peer's last flight ends at a record boundary (RFC 8446, section 5.1); rustls checks that.
                    let aligned = self.presented == 0;
                    let violation = TlsError::PeerProtocol(AlertDescription::UnexpectedMessage);
                    self.outcome = Some(if aligned { Ok(()) } else { Err(violation) });
                }
                Ok(Step::Blocked | Step::Traffic) => {
                    if self.malformed {
                        self.outcome = Some(Err(TlsError::PeerProtocol(AlertDescription::RecordOverflow)));
                    } else if !self.present(input) {
                        return Ok(Progress::NeedInput);
                    }
                }
                Ok(Step::Closed) => {
                    self.outcome = Some(Err(TlsError::PeerAlert(AlertDescription::CloseNotify)));
                }
                Err(error) => {
                    self.outcome = Some(Err(TlsError::from(&error)));
                    let mut sink = Sink { out, plaintext: &mut Vec::new() };
                    self.connection.take_alert(&mut input[..self.presented], &mut sink);
                }
            }
        }
    }

    fn step(&mut self, input: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<Step, Error> {
        let mut plaintext = Vec::new();
        let mut sink = Sink { out, plaintext: &mut plaintext };
        let (discard, step) = self.connection.step(&mut input[..self.presented], &mut sink);
        debug_assert!(plaintext.is_empty(), "a handshake record is never application data");
        input.drain(..discard);
        self.presented -= discard;
        step
    }

    /// Shows rustls one more record. What cannot be a record is shown at once, for rustls to refuse.
    fn present(&mut self, input: &[u8]) -> bool {
        match front_record(&input[self.presented..]) {
            FrontRecord::Whole(len) => {
                self.presented += len;
                true
            }
            FrontRecord::Malformed => {
                self.presented = input.len();
                self.malformed = true;
                true
            }
            FrontRecord::Partial => false,
        }
    }

    /// The peer's chain, for checks later in the connection's life. Empty before [`Progress::Done`].
    pub fn peer_chain(&self) -> PeerChain {
        let presented = self.connection.common().peer_certificates().unwrap_or_default();
        PeerChain::new(presented, &self.trust.roots.roots)
    }

    /// The key exchange that was agreed on.
    #[cfg(test)]
    pub(super) fn group(&self) -> Option<rustls::NamedGroup> {
        self.connection.common().negotiated_key_exchange_group().map(|group| group.name())
    }

    /// Ends the handshake: the records of the connection and the peer's first workload identity. Bytes left in `input`
    /// are the first records.
    ///
    /// Fails with [`TlsError::Local`] before [`Progress::Done`].
    pub fn finish(self, kind: RecordsKind) -> Result<(AnyRecords, Identity), TlsError> {
        self.outcome.unwrap_or(Err(TlsError::Local))?;
        let leaf = self.connection.common().peer_certificates().and_then(|chain| chain.first());
        let identities = verify::identities(leaf.ok_or(TlsError::PeerNoCertificate)?)?;
        let identity = identities.into_iter().next().ok_or(TlsError::Local)?;
        // Our own record layer is of TLS 1.3.
        let sealed = self.connection.common().protocol_version() == Some(ProtocolVersion::TLSv1_3);
        let records = match kind {
            RecordsKind::Sealed if sealed => AnyRecords::Sealed(Sealed::new(self.connection)?),
            RecordsKind::Sealed | RecordsKind::Rustls => AnyRecords::Rustls(Unbuffered::new(self.connection)),
        };
        Ok((records, identity))
    }
}
