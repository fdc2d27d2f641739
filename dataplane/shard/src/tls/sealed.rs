//! Our own TLS 1.3 record layer: AES-GCM under the traffic secrets of a finished rustls handshake.
//!
//! It seals straight into the caller's out-buffer and opens in place, and allocates nothing per record. rustls still
//! derives every next key. Source: RFC 8446, sections 4.6.3, 5 and 6.

use std::fmt;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use halo_core::limits::RECORD_PLAINTEXT_MAX;
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{AlertDescription, ConnectionTrafficSecrets, Error};
use zeroize::Zeroizing;

use super::connection::Connection;
use super::error::TlsError;
use super::messages::{Messages, key_update};
use super::records::{BODY_MAX, Gather, HEADER_LEN, Opened, QUIET_RECORDS_MAX, Records};

const TAG_LEN: usize = 16;
/// What sealing adds to a record: header, content type, tag.
const OVERHEAD: usize = HEADER_LEN + 1 + TAG_LEN;
/// Records under one AES-GCM key, of any size. Source: rustls' limit, from draft-irtf-cfrg-aead-limits, section 5.1.
const RECORDS_PER_KEY_MAX: u64 = 1 << 24;

/// Record types that are never protected: change_cipher_spec, and alert and handshake before there are keys.
const PLAINTEXT_KINDS: std::ops::RangeInclusive<u8> = 20..=22;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const LEVEL_WARNING: u8 = 1;
const LEVEL_FATAL: u8 = 2;

/// One direction: its key and the number of the next record.
struct Half {
    key: LessSafeKey,
    iv: Zeroizing<[u8; NONCE_LEN]>,
    sequence: u64,
}

impl Half {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, TlsError> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            // Never negotiated.
            _ => return Err(TlsError::Local),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| TlsError::Local)?;
        let iv = iv.as_ref().try_into().map_err(|_| TlsError::Local)?;
        Ok(Self { key: LessSafeKey::new(key), iv: Zeroizing::new(iv), sequence })
    }

    /// The nonce of the next record (RFC 8446, section 5.3). No number is used twice under one key.
    fn nonce(&mut self) -> Result<Nonce, TlsError> {
        let mut nonce = *self.iv;
        for (byte, number) in nonce[NONCE_LEN - 8..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        self.sequence = self.sequence.checked_add(1).ok_or(TlsError::Local)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }

    /// Appends one record of `len` bytes, which `content` appends.
    fn seal(
        &mut self,
        kind: u8,
        len: usize,
        out: &mut Vec<u8>,
        content: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), TlsError> {
        debug_assert!(len <= RECORD_PLAINTEXT_MAX);
        let nonce = self.nonce()?;
        let [high, low] = ((len + 1 + TAG_LEN) as u16).to_be_bytes();
        let header = [APPLICATION_DATA, 3, 3, high, low];
        out.extend_from_slice(&header);
        let start = out.len();
        content(out);
        out.push(kind);
        debug_assert_eq!(out.len(), start + len + 1);
        let sealed = self.key.seal_in_place_separate_tag(nonce, Aad::from(header), &mut out[start..]);
        match sealed {
            Ok(tag) => {
                out.extend_from_slice(tag.as_ref());
                Ok(())
            }
            Err(_) => {
                // Nothing unsealed may reach the wire.
                out.truncate(start - HEADER_LEN);
                Err(TlsError::Local)
            }
        }
    }

    /// Opens a record in place: the length of its plaintext, with content type and padding.
    fn open(&mut self, header: [u8; HEADER_LEN], body: &mut [u8]) -> Result<usize, TlsError> {
        let nonce = self.nonce()?;
        match self.key.open_in_place(nonce, Aad::from(header), body) {
            Ok(plaintext) => Ok(plaintext.len()),
            Err(_) => Err(TlsError::PeerProtocol(AlertDescription::BadRecordMac)),
        }
    }
}

/// Derives the next keys, in either role.
enum Schedule {
    Client(Box<KernelConnection<ClientConnectionData>>),
    Server(Box<KernelConnection<ServerConnectionData>>),
}

impl Schedule {
    fn next_send(&mut self) -> Result<Half, TlsError> {
        let secrets = match self {
            Self::Client(connection) => connection.update_tx_secret(),
            Self::Server(connection) => connection.update_tx_secret(),
        };
        Half::new(secrets.map_err(|_: Error| TlsError::Local)?)
    }

    fn next_receive(&mut self) -> Result<Half, TlsError> {
        let secrets = match self {
            Self::Client(connection) => connection.update_rx_secret(),
            Self::Server(connection) => connection.update_rx_secret(),
        };
        Half::new(secrets.map_err(|_: Error| TlsError::Local)?)
    }
}

/// Our own record layer; see [`Records`].
///
/// Invariants:
/// - no key seals more than `records_max` records, and no record number is used twice under one key;
/// - nothing is sealed after close_notify or a fatal alert;
/// - an answer to a KeyUpdate goes out before the next application data.
pub struct Sealed {
    send: Half,
    receive: Half,
    schedule: Schedule,
    messages: Messages,
    /// Records under one key, in either direction; at least 2.
    pub(super) records_max: u64,
    /// Records without application data since the last one with some.
    quiet: u32,
    /// The peer wants our key changed.
    answer_due: bool,
    /// We have asked the peer to change its key and it has not yet.
    asked: bool,
    send_closed: bool,
    receive_closed: bool,
    failed: Option<TlsError>,
}

impl fmt::Debug for Sealed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Sealed")
            .field("sent", &self.send.sequence)
            .field("received", &self.receive.sequence)
            .finish_non_exhaustive()
    }
}

impl Sealed {
    /// Takes the traffic secrets out of a connection whose handshake is done and sent.
    pub(super) fn new(connection: Connection) -> Result<Self, TlsError> {
        let local = |_: Error| TlsError::Local;
        let (secrets, schedule, tickets) = match connection {
            Connection::Client(connection) => {
                let (secrets, kernel) = connection.dangerous_into_kernel_connection().map_err(local)?;
                (secrets, Schedule::Client(Box::new(kernel)), true)
            }
            Connection::Server(connection) => {
                let (secrets, kernel) = connection.dangerous_into_kernel_connection().map_err(local)?;
                (secrets, Schedule::Server(Box::new(kernel)), false)
            }
        };
        Ok(Self {
            send: Half::new(secrets.tx)?,
            receive: Half::new(secrets.rx)?,
            schedule,
            messages: Messages::new(tickets),
            records_max: RECORDS_PER_KEY_MAX,
            quiet: 0,
            answer_due: false,
            asked: false,
            send_closed: false,
            receive_closed: false,
            failed: None,
        })
    }

    /// The peer has used its key up; it should have changed it by itself, and is asked once.
    fn must_ask(&self) -> bool {
        !self.asked && self.receive.sequence >= self.records_max
    }

    /// Whether the next record must be a KeyUpdate, which is then the last under its key.
    fn update_due(&self) -> bool {
        self.answer_due || self.send.sequence + 1 >= self.records_max || self.must_ask()
    }

    /// Sends KeyUpdate and changes our key.
    fn update(&mut self, out: &mut Vec<u8>) -> Result<(), TlsError> {
        let ask = self.must_ask();
        let message = key_update(ask);
        self.send.seal(HANDSHAKE, message.len(), out, |out| out.extend_from_slice(&message))?;
        self.send = self.schedule.next_send()?;
        self.answer_due = false;
        self.asked |= ask;
        Ok(())
    }

    fn send_alert(&mut self, level: u8, alert: AlertDescription, out: &mut Vec<u8>) -> Result<(), TlsError> {
        self.send_closed = true;
        let content = [level, u8::from(alert)];
        self.send.seal(ALERT, content.len(), out, |out| out.extend_from_slice(&content))
    }

    fn open_front(&mut self, buffer: &mut [u8]) -> Result<Opened, TlsError> {
        let violation = |alert| Err(TlsError::PeerProtocol(alert));
        match buffer.first() {
            None => return Ok(Opened::NeedInput),
            Some(&APPLICATION_DATA) => {}
            // Plaintext is over: change_cipher_spec is allowed during the handshake only.
            Some(kind) if PLAINTEXT_KINDS.contains(kind) => {
                return violation(AlertDescription::UnexpectedMessage);
            }
            Some(_) => return violation(AlertDescription::DecodeError),
        }
        let Some((&mut header, rest)) = buffer.split_first_chunk_mut::<HEADER_LEN>() else {
            return Ok(Opened::NeedInput);
        };
        let body_len = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if body_len > BODY_MAX {
            return violation(AlertDescription::RecordOverflow);
        }
        if body_len < 1 + TAG_LEN {
            return violation(AlertDescription::BadRecordMac);
        }
        let Some(body) = rest.get_mut(..body_len) else { return Ok(Opened::NeedInput) };
        let len = self.receive.open(header, body)?;
        if len > RECORD_PLAINTEXT_MAX + 1 {
            return violation(AlertDescription::RecordOverflow);
        }
        // Padding is zeros behind the content type (RFC 8446, section 5.4).
        let Some(end) = body[..len].iter().rposition(|byte| *byte != 0) else {
            return violation(AlertDescription::UnexpectedMessage);
        };
        let kind = body[end];
        if kind != HANDSHAKE && self.messages.pending() {
            return violation(AlertDescription::UnexpectedMessage);
        }
        let consumed = HEADER_LEN + body_len;
        match kind {
            APPLICATION_DATA if end > 0 => {
                self.quiet = 0;
                Ok(Opened::Data { consumed, plaintext: HEADER_LEN..HEADER_LEN + end })
            }
            _ => self.open_quiet(kind, &body[..end], consumed),
        }
    }

    /// Handles a record without application data.
    fn open_quiet(&mut self, kind: u8, content: &[u8], consumed: usize) -> Result<Opened, TlsError> {
        self.quiet += 1;
        if self.quiet > QUIET_RECORDS_MAX {
            return Err(TlsError::PeerProtocol(AlertDescription::UnexpectedMessage));
        }
        match kind {
            APPLICATION_DATA => {}
            HANDSHAKE => {
                if let Some(update) = self.messages.take(content).map_err(TlsError::PeerProtocol)? {
                    self.receive = self.schedule.next_receive()?;
                    self.asked = false;
                    self.answer_due |= update.requested;
                }
            }
            ALERT => return self.alert_received(content, consumed),
            _ => return Err(TlsError::PeerProtocol(AlertDescription::UnexpectedMessage)),
        }
        Ok(Opened::Skipped { consumed })
    }

    /// TLS 1.3 ignores an alert's level: all but two end the connection (RFC 8446, section 6).
    fn alert_received(&mut self, content: &[u8], consumed: usize) -> Result<Opened, TlsError> {
        let &[_, code] = content else {
            return Err(TlsError::PeerProtocol(AlertDescription::DecodeError));
        };
        match AlertDescription::from(code) {
            AlertDescription::CloseNotify => {
                self.receive_closed = true;
                Ok(Opened::Closed { consumed })
            }
            AlertDescription::UserCanceled => Ok(Opened::Skipped { consumed }),
            alert => Err(TlsError::PeerAlert(alert)),
        }
    }
}

impl Records for Sealed {
    fn seal(&mut self, parts: &[&[u8]], out: &mut Vec<u8>) -> Result<(), TlsError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if self.send_closed {
            return Err(TlsError::SendClosed);
        }
        let mut gather = Gather::new(parts);
        debug_assert!(gather.left > 0, "an empty record is never sent");
        out.reserve(gather.left + gather.left.div_ceil(RECORD_PLAINTEXT_MAX) * OVERHEAD);
        while gather.left > 0 {
            if self.update_due() {
                self.update(out)?;
            }
            let len = gather.left.min(RECORD_PLAINTEXT_MAX);
            self.send.seal(APPLICATION_DATA, len, out, |out| gather.append(len, out))?;
        }
        Ok(())
    }

    fn open(&mut self, buffer: &mut [u8]) -> Result<Opened, TlsError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if self.receive_closed {
            return Ok(Opened::Closed { consumed: buffer.len() });
        }
        self.open_front(buffer).inspect_err(|error| self.failed = Some(*error))
    }

    fn take_output(&mut self, out: &mut Vec<u8>) -> Result<(), TlsError> {
        if !self.send_closed && self.failed.is_none() && self.update_due() {
            self.update(out)?;
        }
        Ok(())
    }

    fn close_notify(&mut self, out: &mut Vec<u8>) -> Result<(), TlsError> {
        if self.send_closed || self.failed.is_some() {
            return Ok(());
        }
        self.send_alert(LEVEL_WARNING, AlertDescription::CloseNotify, out)
    }

    fn alert(&mut self, error: &TlsError, out: &mut Vec<u8>) {
        if let (false, Some(alert)) = (self.send_closed, error.alert()) {
            // The connection is over either way; a peer without an alert sees the bare end of the stream.
            let _ = self.send_alert(LEVEL_FATAL, alert, out);
        }
    }
}

#[cfg(test)]
mod tests;
