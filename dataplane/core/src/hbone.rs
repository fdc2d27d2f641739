//! One HBONE tunnel: an HTTP/2 session (RFC 9113) that carries CONNECT streams and nothing else, in both roles.
//!
//! The session decides what every byte means, what must be answered, who may send how much, and whose fault an error
//! is. It has no socket, no clock and no task: bytes, time and buffers come from the caller. Payload passes through
//! uncopied in both directions. It does not push, prioritise, keep trailers, or serve other methods.

mod check;
mod control;
mod data;
mod end;
mod fields;
mod flood;
mod head;
mod keepalive;
mod pace;
mod receive;
mod types;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;

pub use crate::h2::{ErrorCode, StreamId};
pub use types::{
    ConnectRequest, ConnectResponse, Event, Flood, OpenError, RequestHead, SessionConfig, SessionError,
};

use crate::h2::flow::{ReceiveWindow, SendWindow, WINDOW_DEFAULT};
use crate::h2::hpack::{Decoder, Encoder};
use crate::h2::settings::{PeerSettings, id};
use crate::h2::stream::{RecentResets, Streams};
use crate::h2::{STREAM_ID_MAX, frame};
use end::{Drain, Ended};
use flood::Floods;
use head::Block;
use keepalive::{Keepalive, Tick};
use pace::Pace;
pub use pace::SMALL_DATA;
use receive::Reader;

#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Role {
    Client,
    Server,
}

/// The HTTP/2 session of one tunnel.
///
/// Order of calls, once for each turn of the caller's loop:
/// 1. [`receive`](Self::receive) until it returns `None`, acting on each event. After an `Err` only step 4 remains.
///    While sealed output waits on the socket, the caller stops reading the socket, and so calls `receive` no more:
///    that is what bounds the answers a peer can provoke.
/// 2. [`open`](Self::open), [`respond`](Self::respond), [`consumed`](Self::consumed), [`reset`](Self::reset) as the
///    applications move, and [`handle_timeout`](Self::handle_timeout) when [`poll_timeout`](Self::poll_timeout) says.
/// 3. [`poll_writable`](Self::poll_writable) until it returns `None`, to wake streams whose windows were empty.
/// 4. [`take_output`](Self::take_output), and seal it. Then for each stream with bytes to send:
///    [`sendable`](Self::sendable), [`data`](Self::data), and seal header and payload. HEADERS thus precede the DATA of
///    their stream.
/// 5. [`take_output`](Self::take_output) again if [`has_output`](Self::has_output): `data` may queue a PING.
///
/// Peers built on the `h2` crate end a session with ENHANCE_YOUR_CALM when too many DATA frames below 256 bytes are
/// unread at once. So the caller collects the small writes of a stream in one turn into one DATA frame, and while
/// [`holds_small`](Self::holds_small) it sends frames below 256 bytes only to end a stream. It tries held streams again
/// in the turn after the next `receive`, in rotation.
///
/// Every delivered byte holds credit until [`consumed`](Self::consumed) or [`reset`](Self::reset). A caller that drops
/// bytes of a stream calls `reset`, even when both directions have ended; it is always allowed.
///
/// A stream identifier is never reused, and every method takes one that is gone: nothing is sendable on it, and nothing
/// happens.
///
/// Invariants, checked after every call in debug builds:
/// - the connection's outstanding bytes are those of its streams;
/// - bytes that hold connection credit without being outstanding or returned are those of the DATA frame being read;
/// - `streams()` counts exactly the streams that are not closed in both directions;
/// - a closed stream is kept only while its bytes are outstanding.
pub struct HboneSession {
    role: Role,
    config: SessionConfig,
    now_ms: u64,
    reader: Reader,
    block: Block,
    output: Vec<u8>,
    streams: Streams,
    open_count: usize,
    resets: RecentResets,
    /// What we may send on the connection.
    send_window: SendWindow,
    /// What the peer may send on the connection.
    receive_window: ReceiveWindow,
    peer: PeerSettings,
    settings_unacknowledged: bool,
    decoder: Decoder,
    encoder: Encoder,
    writable: VecDeque<StreamId>,
    /// Where the next wake-up of all streams starts.
    wake_start: usize,
    /// The newest stream that the client opened.
    newest: u32,
    /// A server ignores new streams above this.
    accept_max: u32,
    /// The newest of our streams that a peer which is going away still processes.
    peer_last: Option<u32>,
    drain: Drain,
    keepalive: Keepalive,
    pace: Pace,
    floods: Floods,
    ended: Option<Ended>,
}

impl HboneSession {
    /// A client. Its preface, SETTINGS and WINDOW_UPDATE are queued at once.
    pub fn client(config: SessionConfig, now_ms: u64) -> Self {
        Self::new(Role::Client, config, now_ms)
    }

    /// A server. Its SETTINGS and WINDOW_UPDATE are queued at once; it expects the client's preface first.
    pub fn server(config: SessionConfig, now_ms: u64) -> Self {
        Self::new(Role::Server, config, now_ms)
    }

    fn new(role: Role, config: SessionConfig, now_ms: u64) -> Self {
        let config = config.normalized();
        let mut session = Self {
            role,
            now_ms,
            reader: Reader::new(role),
            block: Block::default(),
            output: Vec::new(),
            streams: Streams::default(),
            open_count: 0,
            resets: RecentResets::default(),
            send_window: SendWindow::new(WINDOW_DEFAULT),
            receive_window: ReceiveWindow::new(config.connection_window, now_ms),
            peer: PeerSettings::new(),
            settings_unacknowledged: true,
            decoder: Decoder::new(),
            encoder: Encoder::new(),
            writable: VecDeque::new(),
            wake_start: 0,
            newest: 0,
            accept_max: STREAM_ID_MAX,
            peer_last: None,
            drain: Drain::Serving,
            keepalive: Keepalive::new(config.ping_interval_ms, config.ping_timeout_ms, now_ms),
            pace: Pace::default(),
            floods: Floods::new(config.streams_max, now_ms),
            ended: None,
            config,
        };
        session.put_hello();
        session.check();
        session
    }

    /// The connection preface of either role (RFC 9113, section 3.4).
    fn put_hello(&mut self) {
        let config = &self.config;
        let first = match self.role {
            Role::Client => {
                self.output.extend_from_slice(frame::PREFACE);
                (id::ENABLE_PUSH, 0)
            }
            Role::Server => (id::MAX_CONCURRENT_STREAMS, config.streams_max),
        };
        let entries = [
            first,
            (id::INITIAL_WINDOW_SIZE, config.stream_window_initial),
            (id::MAX_FRAME_SIZE, config.frame_size_max),
            (id::MAX_HEADER_LIST_SIZE, config.header_list_max),
        ];
        frame::put_settings(&mut self.output, &entries);
        if config.connection_window > WINDOW_DEFAULT {
            frame::put_window_update(&mut self.output, 0, config.connection_window - WINDOW_DEFAULT);
        }
    }

    /// Whether [`take_output`](Self::take_output) has something to move.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Moves every queued frame to the end of `out`.
    pub fn take_output(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.output);
        self.output.clear();
        // A burst of answers does not pin memory for the life of a tunnel.
        self.output.shrink_to(4096);
    }

    /// Whether the stream exists and at least one direction has not ended.
    pub fn is_open(&self, stream: StreamId) -> bool {
        self.streams.find(stream).is_some_and(|stream| !stream.is_closed())
    }

    /// The number of open streams.
    pub fn streams(&self) -> usize {
        self.open_count
    }

    /// How many streams may be open at once: the peer's current limit for a client, our own for a server.
    pub fn streams_max(&self) -> usize {
        match self.role {
            Role::Client => self.peer.streams_max as usize,
            Role::Server => self.config.streams_max as usize,
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due next, on the caller's clock.
    pub fn poll_timeout(&self) -> Option<u64> {
        if self.ended.is_some() { None } else { self.keepalive.deadline() }
    }

    /// Sends a liveness PING if one is due. An answer that is overdue ends the session.
    pub fn handle_timeout(&mut self, now_ms: u64) -> Result<(), SessionError> {
        if self.ended.is_some() {
            return Ok(());
        }
        self.now_ms = now_ms;
        match self.keepalive.tick(now_ms) {
            Tick::Wait => {}
            Tick::Send(opaque) => frame::put_ping(&mut self.output, false, &opaque),
            Tick::Dead => return Err(self.fail(SessionError::PingTimeout)),
        }
        self.check();
        Ok(())
    }
}
