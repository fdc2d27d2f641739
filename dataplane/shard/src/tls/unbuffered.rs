//! The record layer of rustls' unbuffered connection: the second implementation of [`Records`], against which our own
//! is tested. It copies every record at least twice.
//!
//! rustls sends the answer to a KeyUpdate with its next record, and changes its own key by itself.

use std::fmt;

use halo_core::limits::RECORD_PLAINTEXT_MAX;
use rustls::AlertDescription;

use super::connection::{Connection, Sink, Step, Write};
use super::error::TlsError;
use super::records::{FrontRecord, Gather, HEADER_LEN, Opened, Records, front_record};

/// rustls' own record layer; see [`Records`].
pub struct Unbuffered {
    connection: Connection,
    /// Records that hold the beginning of a handshake message: rustls wants to see them again.
    carry: Vec<u8>,
    /// What rustls had to say while it opened records.
    due: Vec<u8>,
    plaintext: Vec<u8>,
    record: Vec<u8>,
    send_closed: bool,
    receive_closed: bool,
    failed: Option<TlsError>,
}

impl fmt::Debug for Unbuffered {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Unbuffered").finish_non_exhaustive()
    }
}

impl Unbuffered {
    /// Goes on with a connection whose handshake is done and sent.
    pub(super) fn new(connection: Connection) -> Self {
        Self {
            connection,
            carry: Vec::new(),
            due: Vec::new(),
            plaintext: Vec::new(),
            record: Vec::new(),
            send_closed: false,
            receive_closed: false,
            failed: None,
        }
    }

    /// Steps over everything in `carry`: opened data goes to `plaintext`, replies to `due`.
    fn process(&mut self) -> Result<(), TlsError> {
        loop {
            let mut sink = Sink { out: &mut self.due, plaintext: &mut self.plaintext };
            let (discard, step) = self.connection.step(&mut self.carry, &mut sink);
            self.carry.drain(..discard);
            match step {
                Ok(Step::Again) => {}
                Ok(Step::Closed) => {
                    self.receive_closed = true;
                    return Ok(());
                }
                Ok(Step::Blocked | Step::Traffic) => return Ok(()),
                Err(error) => {
                    // The alert that fits waits for `alert`.
                    let mut sink = Sink { out: &mut self.due, plaintext: &mut self.plaintext };
                    self.connection.take_alert(&mut self.carry, &mut sink);
                    return Err(TlsError::from(&error));
                }
            }
        }
    }

    fn open_front(&mut self, buffer: &mut [u8]) -> Result<Opened, TlsError> {
        let front = front_record(buffer);
        let consumed = match front {
            FrontRecord::Partial => return Ok(Opened::NeedInput),
            FrontRecord::Whole(len) => len,
            // rustls sees it, to refuse it with an alert.
            FrontRecord::Malformed => buffer.len(),
        };
        self.carry.extend_from_slice(&buffer[..consumed]);
        self.plaintext.clear();
        self.process()?;
        if front == FrontRecord::Malformed {
            return Err(TlsError::PeerProtocol(AlertDescription::RecordOverflow));
        }
        if self.receive_closed {
            return Ok(Opened::Closed { consumed });
        }
        if self.plaintext.is_empty() {
            return Ok(Opened::Skipped { consumed });
        }
        let plaintext = HEADER_LEN..HEADER_LEN + self.plaintext.len();
        buffer[plaintext.clone()].copy_from_slice(&self.plaintext);
        Ok(Opened::Data { consumed, plaintext })
    }
}

impl Records for Unbuffered {
    fn seal(&mut self, parts: &[&[u8]], out: &mut Vec<u8>) -> Result<(), TlsError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if self.send_closed {
            return Err(TlsError::SendClosed);
        }
        out.append(&mut self.due);
        let mut gather = Gather::new(parts);
        debug_assert!(gather.left > 0, "an empty record is never sent");
        while gather.left > 0 {
            self.record.clear();
            gather.append(gather.left.min(RECORD_PLAINTEXT_MAX), &mut self.record);
            self.connection
                .write(&mut self.carry, out, Write::Data(&self.record))
                .map_err(|error| TlsError::from(&error))?;
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
        if !self.send_closed && self.failed.is_none() {
            out.append(&mut self.due);
        }
        Ok(())
    }

    fn close_notify(&mut self, out: &mut Vec<u8>) -> Result<(), TlsError> {
        if self.send_closed || self.failed.is_some() {
            return Ok(());
        }
        self.send_closed = true;
        out.append(&mut self.due);
        self.connection
            .write(&mut self.carry, out, Write::CloseNotify)
            .map_err(|error| TlsError::from(&error))
    }

    /// rustls has chosen its own alert when it failed; there is none for errors that are not rustls' own.
    fn alert(&mut self, error: &TlsError, out: &mut Vec<u8>) {
        if !self.send_closed && self.failed.as_ref() == Some(error) {
            self.send_closed = true;
            out.append(&mut self.due);
        }
    }
}
