//! The contract of a record layer, and what its implementations share.

use std::ops::Range;

use halo_core::limits::RECORD_PLAINTEXT_MAX;

use super::error::TlsError;
use super::sealed::Sealed;
use super::unbuffered::Unbuffered;

/// Bytes of a record header (RFC 8446, section 5.1).
pub(super) const HEADER_LEN: usize = 5;
/// Largest body of a protected record (RFC 8446, section 5.2).
pub(super) const BODY_MAX: usize = RECORD_PLAINTEXT_MAX + 256;
/// Records in a row without application data that a peer may send. Source: the bound that BoringSSL and rustls put on
/// empty records and on key updates.
pub(super) const QUIET_RECORDS_MAX: u32 = 32;

/// Which record layer a finished handshake hands over to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RecordsKind {
    /// Our own: seals into and opens in the caller's buffers.
    #[default]
    Sealed,
    /// rustls' unbuffered connection: slower, kept as the second implementation.
    Rustls,
}

/// What the record at the front of a buffer came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// The buffer holds fewer bytes than one record.
    NeedInput,
    /// Application data.
    Data {
        /// Bytes at the front of the buffer that are done once the plaintext has been used.
        consumed: usize,
        /// Where the plaintext lies in the buffer; never empty.
        plaintext: Range<usize>,
    },
    /// A record without application data; call [`Records::take_output`].
    Skipped {
        /// Bytes at the front of the buffer that are done.
        consumed: usize,
    },
    /// The peer's close_notify: it sends no more. Whatever follows in the buffer is to be ignored.
    Closed {
        /// Bytes at the front of the buffer that are done.
        consumed: usize,
    },
}

/// Seals and opens the records of one connection after its handshake, in buffers of the caller.
///
/// The receiving loop is: read; [`open`](Records::open) until [`Opened::NeedInput`]; [`take_output`](Records::take_output);
/// send what that appended. A byte stream that ends without [`Opened::Closed`] was cut short, perhaps by an attacker:
/// only the caller sees that end, and it must not treat it as the peer's own.
///
/// Every error is final. After one, [`alert`](Records::alert) tells the peer.
pub trait Records {
    /// Seals the concatenation of `parts` as application data and appends it to `out`, in records of 16 384 bytes and
    /// one rest. `parts` must hold at least one byte: an empty record is never sent.
    ///
    /// Fails with [`TlsError::SendClosed`] after [`close_notify`](Records::close_notify) or [`alert`](Records::alert).
    fn seal(&mut self, parts: &[&[u8]], out: &mut Vec<u8>) -> Result<(), TlsError>;

    /// Opens the record at the front of `buffer`, in place.
    fn open(&mut self, buffer: &mut [u8]) -> Result<Opened, TlsError>;

    /// Appends to `out` the handshake messages that are due: the answer to a KeyUpdate, or our own KeyUpdate near the
    /// limit of records under one AES-GCM key. Nothing is due after our own close_notify or alert.
    fn take_output(&mut self, out: &mut Vec<u8>) -> Result<(), TlsError>;

    /// Appends close_notify: we send no more, and may still receive. A second call does
    /// nothing, nor does one after an error, which calls for [`alert`](Records::alert).
    fn close_notify(&mut self, out: &mut Vec<u8>) -> Result<(), TlsError>;

    /// Appends the fatal alert that fits `error`, unless the peer already knows or our direction is closed.
    fn alert(&mut self, error: &TlsError, out: &mut Vec<u8>);
}

/// One of the two record layers.
#[derive(Debug)]
pub enum AnyRecords {
    /// Our own.
    Sealed(Sealed),
    /// rustls' unbuffered connection.
    Rustls(Unbuffered),
}

impl Records for AnyRecords {
    #[inline]
    fn seal(&mut self, parts: &[&[u8]], out: &mut Vec<u8>) -> Result<(), TlsError> {
        match self {
            Self::Sealed(records) => records.seal(parts, out),
            Self::Rustls(records) => records.seal(parts, out),
        }
    }

    #[inline]
    fn open(&mut self, buffer: &mut [u8]) -> Result<Opened, TlsError> {
        match self {
            Self::Sealed(records) => records.open(buffer),
            Self::Rustls(records) => records.open(buffer),
        }
    }

    fn take_output(&mut self, out: &mut Vec<u8>) -> Result<(), TlsError> {
        match self {
            Self::Sealed(records) => records.take_output(out),
            Self::Rustls(records) => records.take_output(out),
        }
    }

    fn close_notify(&mut self, out: &mut Vec<u8>) -> Result<(), TlsError> {
        match self {
            Self::Sealed(records) => records.close_notify(out),
            Self::Rustls(records) => records.close_notify(out),
        }
    }

    fn alert(&mut self, error: &TlsError, out: &mut Vec<u8>) {
        match self {
            Self::Sealed(records) => records.alert(error, out),
            Self::Rustls(records) => records.alert(error, out),
        }
    }
}

/// The concatenation of several slices, taken piece by piece from its front.
pub(super) struct Gather<'a> {
    parts: std::slice::Iter<'a, &'a [u8]>,
    current: &'a [u8],
    /// Bytes not yet taken.
    pub(super) left: usize,
}

impl<'a> Gather<'a> {
    pub(super) fn new(parts: &'a [&'a [u8]]) -> Self {
        let left = parts.iter().map(|part| part.len()).sum();
        Self { parts: parts.iter(), current: &[], left }
    }

    /// Appends the next `len` bytes to `out`; `len` is at most `left`.
    pub(super) fn append(&mut self, mut len: usize, out: &mut Vec<u8>) {
        debug_assert!(len <= self.left);
        self.left -= len;
        while len > 0 {
            if self.current.is_empty() {
                let Some(part) = self.parts.next() else { return };
                self.current = part;
            }
            let (front, rest) = self.current.split_at(len.min(self.current.len()));
            out.extend_from_slice(front);
            self.current = rest;
            len -= front.len();
        }
    }
}

/// What lies at the front of a buffer of received bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FrontRecord {
    /// Less than a record.
    Partial,
    /// A record of this many bytes, header included.
    Whole(usize),
    /// Nothing that can become a record.
    Malformed,
}

/// Finds the end of the record at the front of `buffer`, of any type.
pub(super) fn front_record(buffer: &[u8]) -> FrontRecord {
    let &[kind, major, _, high, low, ..] = buffer else { return FrontRecord::Partial };
    let body = usize::from(u16::from_be_bytes([high, low]));
    // change_cipher_spec, alert, handshake, application_data; every version has 3 as its first byte.
    if !(20..=23).contains(&kind) || major != 3 || body > BODY_MAX {
        FrontRecord::Malformed
    } else if buffer.len() < HEADER_LEN + body {
        FrontRecord::Partial
    } else {
        FrontRecord::Whole(HEADER_LEN + body)
    }
}
