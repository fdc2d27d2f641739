//! One CONNECT stream as the tasks that relay it see it: an inbox, and signals.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use halo_core::counters::Counters;
use halo_core::hbone::{ConnectResponse, ErrorCode, SMALL_DATA, StreamId};
use halo_core::limits::DATA_PAYLOAD_MAX;
use halo_core::outcome::Reason;

use super::Tunnel;
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

    /// Whether the peer ended its direction.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.get()
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

/// One stream of a tunnel and the tunnel it is on.
#[derive(Clone)]
pub(crate) struct StreamOf {
    pub(crate) tunnel: Rc<Tunnel>,
    pub(crate) stream: Rc<Stream>,
}

impl StreamOf {
    /// Waits until the stream may send, and says how much; 0 once the peer takes no more.
    ///
    /// # Errors
    /// The reason of a cut.
    pub(crate) async fn room(&self, counters: &Counters, wanted: usize) -> Result<usize, Reason> {
        loop {
            self.alive()?;
            if self.stream.is_stopped() {
                return Ok(0);
            }
            match self.tunnel.room(&self.stream, wanted) {
                0 => {
                    counters.reads_paused.increment();
                    self.stream.writable.wait().await;
                }
                room => return Ok(room),
            }
        }
    }

    /// Seals all of `bytes` as the windows allow, or as much as the peer takes.
    ///
    /// # Errors
    /// The reason of a cut.
    pub(crate) async fn write(&self, counters: &Counters, mut bytes: &[u8]) -> Result<(), Reason> {
        while !bytes.is_empty() && !self.stream.is_stopped() {
            let wanted = bytes.len().min(DATA_PAYLOAD_MAX);
            let (now, later) = bytes.split_at(self.room(counters, wanted).await?);
            self.tunnel.send(&self.stream, now, false);
            bytes = later;
        }
        Ok(())
    }

    /// After a payload of `length` bytes: if it was small, waits until it has left.
    ///
    /// # Errors
    /// The reason of a cut.
    pub(crate) async fn settle(&self, length: usize) -> Result<(), Reason> {
        while length < SMALL_DATA && !self.stream.is_stopped() && self.tunnel.wake_when_sent(&self.stream) {
            self.alive()?;
            self.stream.writable.wait().await;
        }
        Ok(())
    }

    /// The reason of the cut, if there was one.
    ///
    /// # Errors
    /// That reason.
    pub(crate) fn alive(&self) -> Result<(), Reason> {
        self.stream.failed().map_or(Ok(()), Err)
    }
}
