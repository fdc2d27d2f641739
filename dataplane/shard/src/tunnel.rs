//! One HBONE tunnel: a TLS connection, its HTTP/2 session and its streams, with one writer.
//!
//! Whoever has something to send seals it into the tunnel's out-buffer and wakes the writer. The writer runs after
//! every stream that was ready in this turn of the loop, and sends all of it in one operation; while a send is in
//! flight the out-buffer fills again. Nothing writes per frame.
//!
//! Tasks: `io::read` opens records and hands payloads to streams, `io::write` sends, `io::keep_alive` probes. A tunnel
//! ends once, by [`Tunnel::fail`] or [`Tunnel::close`]; every stream on it then ends with the reason.

pub(crate) mod dial;
mod inbox;
mod io;
mod stream;
mod transport;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use halo_core::hbone::{
    ConnectRequest, ConnectResponse, ErrorCode, HboneSession, OpenError, SMALL_DATA, StreamId,
};
use halo_core::id::Identity;
use halo_core::limits::{APP_READ_MAX, DATA_PAYLOAD_MAX, TUNNEL_PENDING_MAX};
use halo_core::outcome::Reason;
use halo_core::pool::TunnelId;

use crate::inbound;
use crate::pod::Pod;
use crate::shard::Shard;
use crate::timer::{Deadline, Timers};
use crate::tls::{AnyRecords, PeerChain, Records, TlsError};
use crate::wake::Signal;

use transport::Closer;

pub(crate) use stream::{Arrival, Stream, StreamOf};
pub(crate) use transport::Transport;

/// How long a tunnel that is closing may take to send what it still has.
pub(crate) const CLOSE_MS_MAX: u64 = 5_000;

/// What the reads of a tunnel's applications hold together, bytes, while there are few of them. It is also about what one
/// tunnel takes of a turn of the loop, which others wait for.
const READS_MAX: usize = 2 * APP_READ_MAX;

/// Which end of the tunnel we are, and what follows from it.
pub(crate) enum Side {
    /// We dialled: the pool decides its life.
    Outbound(TunnelId),
    /// We accepted: requests are admitted in this context.
    Inbound(Rc<inbound::Peer>),
    /// We opened it within a stream of another tunnel, for one connection alone. The number is the shard's.
    Inner(u64),
}

/// A TLS connection that finished its handshake.
pub(crate) struct Secured {
    pub(crate) transport: Transport,
    pub(crate) records: AnyRecords,
    /// Who the peer proved to be.
    pub(crate) identity: Identity,
    /// The certificates that proved it.
    pub(crate) peer: PeerChain,
    /// Bytes behind the handshake: the first records.
    pub(crate) leftover: Vec<u8>,
}

/// One tunnel.
pub(crate) struct Tunnel {
    pub(crate) pod: Rc<Pod>,
    pub(crate) identity: Identity,
    pub(crate) peer: PeerChain,
    pub(crate) side: Side,
    core: RefCell<Core>,
    write_ready: Signal,
    /// Set after each send, for the reader, which pauses while too much is waiting.
    written: Signal,
    closer: Closer,
    timers: Rc<Timers>,
    /// Cuts a connection that does not finish closing. Armed where closing begins: the writer may be stuck by then.
    close_deadline: RefCell<Option<Deadline>>,
    ended: Cell<Option<Reason>>,
    closing: Cell<bool>,
    /// Nothing more is sent: FIN has followed the last bytes, or they could not be sent.
    sent: Cell<bool>,
    /// Takes no new streams, and closes with its last one.
    retired: Cell<bool>,
}

struct Core {
    session: HboneSession,
    records: AnyRecords,
    /// Sealed bytes that wait for the writer.
    out: Vec<u8>,
    /// What `out` is replaced with when it is sent.
    spare: Vec<u8>,
    /// Control frames on their way into a record.
    control: Vec<u8>,
    /// `out` holds DATA.
    data_waits: bool,
    /// The operation in flight sends DATA.
    data_leaves: bool,
    streams: BTreeMap<StreamId, Rc<Stream>>,
    /// Streams that wait for the out-buffer to empty.
    blocked: Vec<Rc<Stream>>,
    /// Streams that wait until the peer may be sent small frames again, in the order of their turns.
    held: Vec<Rc<Stream>>,
}

/// What a new tunnel starts from.
pub(crate) struct Start {
    pub(crate) pod: Rc<Pod>,
    pub(crate) side: Side,
    pub(crate) session: HboneSession,
}

impl Core {
    /// Seals the session's queued frames, and the record layer's own, into the out-buffer.
    fn seal_control(&mut self) -> Result<(), TlsError> {
        self.records.take_output(&mut self.out)?;
        if !self.session.has_output() {
            return Ok(());
        }
        self.session.take_output(&mut self.control);
        let sealed = self.records.seal(&[&self.control], &mut self.out);
        self.control.clear();
        sealed
    }

    /// Frees what a tunnel that is quiet does not need.
    fn release(&mut self) {
        for buffer in [&mut self.out, &mut self.spare, &mut self.control] {
            if buffer.is_empty() {
                *buffer = Vec::new();
            }
        }
    }
}

impl Tunnel {
    /// Starts the tunnel's tasks. The session's first frames leave with the first turn.
    pub(crate) fn start(shard: &Rc<Shard>, secured: Secured, start: Start) -> Rc<Self> {
        let Secured { transport, records, identity, peer, leftover } = secured;
        let tunnel = Rc::new(Self {
            pod: start.pod,
            identity,
            peer,
            side: start.side,
            core: RefCell::new(Core {
                session: start.session,
                records,
                out: Vec::new(),
                spare: Vec::new(),
                control: Vec::new(),
                data_waits: false,
                data_leaves: false,
                streams: BTreeMap::new(),
                blocked: Vec::new(),
                held: Vec::new(),
            }),
            write_ready: Signal::default(),
            written: Signal::default(),
            closer: transport.closer(),
            timers: shard.timers.clone(),
            close_deadline: RefCell::default(),
            ended: Cell::new(None),
            closing: Cell::new(false),
            sent: Cell::new(false),
            retired: Cell::new(false),
        });
        io::start(shard, &tunnel, transport, leftover);
        tunnel.flush();
        tunnel
    }

    /// Opens a stream with CONNECT (client role).
    ///
    /// # Errors
    /// The session's reason; nothing was sent, so another tunnel may be tried.
    pub(crate) fn open(&self, request: &ConnectRequest) -> Result<Rc<Stream>, OpenError> {
        let mut core = self.core.borrow_mut();
        if self.ended.get().is_some() || self.closing.get() {
            return Err(OpenError::GoingAway);
        }
        let id = core.session.open(request)?;
        let stream = Rc::new(Stream::new(id));
        core.streams.insert(id, stream.clone());
        drop(core);
        self.flush();
        Ok(stream)
    }

    /// Answers a request, which then carries bytes (server role).
    pub(crate) fn respond(&self, stream: &Stream, response: &ConnectResponse) {
        self.core.borrow_mut().session.respond(stream.id, response, false);
        self.flush();
    }

    /// Answers a request with a status that ends it, and wants no more of what the client sends (RFC 9113, 8.1).
    pub(crate) fn refuse(&self, stream: &Stream, status: u16) {
        let mut core = self.core.borrow_mut();
        if core.session.is_open(stream.id) {
            let response = ConnectResponse { status, headers: Vec::new() };
            core.session.respond(stream.id, &response, true);
            core.session.reset(stream.id, ErrorCode::NoError);
        }
        drop(core);
        self.finish(stream);
    }

    /// How much of a payload of `wanted` bytes the stream may send at once: 0 while a flow-control window or the
    /// out-buffer is full, or while the payload is small and the peer has had its fill of small frames. The stream is
    /// then woken through its `writable` signal.
    pub(crate) fn room(&self, stream: &Rc<Stream>, wanted: usize) -> usize {
        let mut core = self.core.borrow_mut();
        if core.out.len() >= TUNNEL_PENDING_MAX {
            core.blocked.push(stream.clone());
            return 0;
        }
        let room = core.session.sendable(stream.id).min(wanted);
        if (1..SMALL_DATA).contains(&room) && core.session.holds_small() {
            core.held.push(stream.clone());
            return 0;
        }
        room
    }

    /// How much to read from the stream's application at once: the stream's window, and the size up to which reads may
    /// grow. Many streams share what waits to be sealed, so that a peer that stops costs no more for each of them.
    pub(crate) fn reading(&self, stream: &Stream) -> (usize, usize) {
        let core = self.core.borrow();
        let share = (READS_MAX / core.streams.len().max(1)).clamp(DATA_PAYLOAD_MAX, APP_READ_MAX);
        (core.session.window(stream.id), share)
    }

    /// Seals one DATA frame into the out-buffer. `payload` is at most what [`Tunnel::room`] answered in this turn, and at
    /// most [`DATA_PAYLOAD_MAX`].
    pub(crate) fn send(&self, stream: &Stream, payload: &[u8], end: bool) {
        let mut core = self.core.borrow_mut();
        if self.ended.get().is_some() || !core.session.is_open(stream.id) {
            return;
        }
        debug_assert!(payload.len() <= DATA_PAYLOAD_MAX);
        let core = &mut *core;
        core.session.take_output(&mut core.control);
        core.data_waits = true;
        let header = core.session.data(stream.id, payload.len(), end);
        let sealed = core.records.take_output(&mut core.out);
        let sealed =
            sealed.and_then(|()| core.records.seal(&[&core.control, &header, payload], &mut core.out));
        core.control.clear();
        self.sealed(sealed);
    }

    /// Waits, by entering the stream in the list that the writer wakes, until what is sealed has been sent.
    pub(crate) fn wake_when_sent(&self, stream: &Rc<Stream>) -> bool {
        let mut core = self.core.borrow_mut();
        let pending = !core.out.is_empty();
        if pending {
            core.blocked.push(stream.clone());
        }
        pending
    }

    /// Gives the peer credit for bytes that the application took.
    pub(crate) fn consumed(&self, stream: &Stream, bytes: usize) {
        self.core.borrow_mut().session.consumed(stream.id, bytes, crate::ring::now_ms());
        self.flush();
    }

    /// Resets the stream, so that the peer can tell a cut from an end.
    pub(crate) fn reset(&self, stream: &Stream) {
        self.core.borrow_mut().session.reset(stream.id, ErrorCode::ConnectError);
        stream.fail(Reason::Reset);
        self.flush();
    }

    /// Forgets a stream whose two directions are done, and returns the credit of what nobody will read.
    pub(crate) fn finish(&self, stream: &Stream) {
        let mut core = self.core.borrow_mut();
        core.streams.remove(&stream.id);
        let unread = stream.discard();
        if unread > 0 {
            core.session.consumed(stream.id, unread, crate::ring::now_ms());
        }
        if core.session.is_open(stream.id) {
            core.session.reset(stream.id, ErrorCode::Cancel);
        }
        drop(core);
        self.flush();
        self.close_when_empty();
    }

    /// Announces that no new streams are wanted; what runs goes on (two-step GOAWAY).
    pub(crate) fn drain(&self) {
        self.core.borrow_mut().session.begin_drain();
        self.flush();
        self.close_when_empty();
    }

    /// Lets the streams that run end, and closes with the last of them.
    pub(crate) fn retire(&self) {
        self.retired.set(true);
        self.close_when_empty();
    }

    /// Closes the tunnel in order: GOAWAY, close_notify, FIN.
    pub(crate) fn close(&self) {
        if self.closing.replace(true) || self.ended.get().is_some() {
            return;
        }
        self.limit_closing();
        self.core.borrow_mut().session.close(ErrorCode::NoError);
        self.flush();
        let mut core = self.core.borrow_mut();
        let core = &mut *core;
        // A record layer that cannot seal its last record has failed before; FIN follows either way.
        let _ = core.records.close_notify(&mut core.out);
        self.write_ready.notify();
    }

    /// Ends the tunnel and with `reason` all streams that still need it. What is already sealed, such as a GOAWAY or an alert, is
    /// still sent if the peer takes it.
    pub(crate) fn fail(&self, reason: Reason) {
        if self.ended.get().is_some() {
            return;
        }
        self.ended.set(Some(reason));
        if !self.closing.replace(true) {
            self.limit_closing();
        }
        let streams = {
            let mut core = self.core.borrow_mut();
            core.blocked.clear();
            core.held.clear();
            let mut streams = std::mem::take(&mut core.streams);
            if !core.data_waits && !core.data_leaves {
                // Both sides have ended these, and our part of them has left. They need the tunnel no more, and what has
                // come on them is still delivered.
                streams.retain(|id, stream| core.session.is_open(*id) || !stream.has_ended());
            }
            streams
        };
        self.written.notify();
        for stream in streams.values() {
            stream.fail(reason);
        }
        self.write_ready.notify();
    }

    /// Cuts a tunnel whose peer is no longer who it proved to be. Its streams are reset and it is told to go, so that
    /// nobody takes the cut for an end.
    pub(crate) fn revoke(&self) {
        let mut guard = self.core.borrow_mut();
        let core = &mut *guard;
        for (id, stream) in &core.streams {
            core.session.reset(*id, ErrorCode::ConnectError);
            stream.fail(Reason::CertRevoked);
        }
        core.session.close(ErrorCode::NoError);
        drop(guard);
        self.flush();
        self.fail(Reason::CertRevoked);
    }

    /// Ends the tunnel at once, for a peer that is gone: nothing more is sent.
    pub(crate) fn abort(&self, reason: Reason) {
        self.fail(reason);
        self.closer.abort();
    }

    fn limit_closing(&self) {
        let closer = self.closer.clone();
        let deadline = self.timers.after(CLOSE_MS_MAX, move || closer.abort());
        self.close_deadline.replace(Some(deadline));
    }

    /// Why the tunnel ended, once it has.
    pub(crate) fn ended(&self) -> Option<Reason> {
        self.ended.get()
    }

    /// Whether the tunnel is closing or closed.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Whether a tunnel that closes has sent all it had.
    pub(crate) fn is_sent(&self) -> bool {
        self.sent.get()
    }

    /// How many streams the peer allows at once, as far as it has said.
    pub(crate) fn streams_max(&self) -> usize {
        self.core.borrow().session.streams_max()
    }

    /// Seals queued control frames and wakes the writer.
    fn flush(&self) {
        let sealed = self.core.borrow_mut().seal_control();
        if sealed.is_err() || !self.core.borrow().out.is_empty() {
            self.sealed(sealed);
        }
    }

    /// Wakes the writer after sealing. A record layer that fails ends the tunnel with the next read or write.
    fn sealed(&self, result: Result<(), TlsError>) {
        if result.is_err() {
            self.closer.abort();
        }
        self.write_ready.notify();
    }

    fn close_when_empty(&self) {
        let empty = {
            let core = self.core.borrow();
            let unused = core.streams.is_empty() && core.session.streams() == 0;
            unused && (self.retired.get() || core.session.is_drained())
        };
        if empty {
            self.close();
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
