//! One CONNECT stream as the tasks that relay it see it: an inbox, and signals.

use std::cell::{Cell, RefCell};

use halo_core::hbone::{ConnectResponse, ErrorCode, StreamId};
use halo_core::outcome::Reason;

use super::inbox::Inbox;
use crate::buffers::Buffers;
use crate::wake::Signal;

/// One stream of a tunnel.
pub(crate) struct Stream {
    pub(crate) id: StreamId,
    inbox: RefCell<Inbox>,
    ended: Cell<bool>,
    stopped: Cell<bool>,
    failed: Cell<Option<Reason>>,
    answer: RefCell<Option<ConnectResponse>>,
    arrived: Signal,
    /// Set when the stream may send again, and when it fails or is stopped.
    pub(crate) writable: Signal,
}

/// What came in on a stream.
pub(crate) enum Arrival {
    /// Payload, to be passed on and then credited.
    Bytes(Vec<u8>),
    /// The peer will send no more.
    End,
}

impl Stream {
    pub(crate) fn new(id: StreamId) -> Self {
        Self {
            id,
            inbox: RefCell::default(),
            ended: Cell::new(false),
            stopped: Cell::new(false),
            failed: Cell::new(None),
            answer: RefCell::default(),
            arrived: Signal::default(),
            writable: Signal::default(),
        }
    }

    /// Takes payload in. Flow control bounds how much can wait here.
    pub(crate) fn deliver(&self, bytes: &[u8], buffers: &Buffers) {
        self.inbox.borrow_mut().push(bytes, buffers);
        self.arrived.notify();
    }

    /// Takes back a piece of payload that the application has.
    pub(crate) fn give(&self, piece: Vec<u8>, buffers: &Buffers) {
        self.inbox.borrow_mut().give(piece, buffers);
    }

    /// The peer ended its direction.
    pub(crate) fn end(&self) {
        self.ended.set(true);
        self.arrived.notify();
    }

    /// The peer reset the stream. One that has sent its end and then resets without an error wants no more of ours, and
    /// what it sent stands (RFC 9113, 8.1).
    pub(crate) fn reset(&self, code: ErrorCode) {
        match code {
            ErrorCode::NoError if self.ended.get() => {
                self.stopped.set(true);
                self.arrived.notify();
                self.writable.notify();
            }
            ErrorCode::RefusedStream => self.fail(Reason::TunnelLost),
            _ => self.fail(Reason::Reset),
        }
    }

    /// Whether the peer takes no more of what we send.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.get()
    }

    /// Wakes the task that waits in [`Stream::changed`].
    pub(crate) fn touch(&self) {
        self.arrived.notify();
    }

    /// Waits until something came of the peer, or somebody calls [`Stream::touch`]. For the task that has seen the end.
    pub(crate) async fn changed(&self) {
        self.arrived.wait().await;
    }

    /// The peer answered CONNECT.
    pub(crate) fn answered(&self, response: ConnectResponse) {
        self.answer.replace(Some(response));
        self.arrived.notify();
    }

    /// The stream is cut; the first reason stands.
    pub(crate) fn fail(&self, reason: Reason) {
        if self.failed.get().is_none() {
            self.failed.set(Some(reason));
        }
        self.arrived.notify();
        self.writable.notify();
    }

    /// Why the stream was cut, if it was.
    pub(crate) fn failed(&self) -> Option<Reason> {
        self.failed.get()
    }

    /// Waits for the answer to CONNECT.
    pub(crate) async fn answer(&self) -> Result<ConnectResponse, Reason> {
        loop {
            if let Some(answer) = self.answer.take() {
                return Ok(answer);
            }
            if let Some(reason) = self.failed.get() {
                return Err(reason);
            }
            self.arrived.wait().await;
        }
    }

    /// Waits for payload or its end.
    ///
    /// # Errors
    /// The reason of the cut; payload that was waiting is dropped with it.
    pub(crate) async fn arrival(&self) -> Result<Arrival, Reason> {
        loop {
            if let Some(reason) = self.failed.get() {
                return Err(reason);
            }
            if let Some(piece) = self.inbox.borrow_mut().pop() {
                return Ok(Arrival::Bytes(piece));
            }
            if self.ended.get() {
                return Ok(Arrival::End);
            }
            self.arrived.wait().await;
        }
    }

    /// Drops what waits in the inbox and says how many bytes it was.
    pub(crate) fn discard(&self) -> usize {
        self.inbox.borrow_mut().clear()
    }
}
