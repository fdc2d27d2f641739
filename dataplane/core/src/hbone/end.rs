//! How streams and sessions end: RST_STREAM, stream errors, drain, GOAWAY (RFC 9113, sections 5.4, 6.4 and 6.8).

use super::{ErrorCode, Event, Flood, HboneSession, Role, SessionError, StreamId};
use crate::h2::{STREAM_ID_MAX, frame};

/// The PING that follows the first GOAWAY of a drain. Its answer shows that the client knows.
const DRAIN_PING: [u8; 8] = *b"drain\0\0\0";

/// How far a graceful shutdown is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Drain {
    /// None has begun.
    Serving,
    /// The peer is told not to open streams; those on the way are still accepted.
    Announced,
    /// New streams are ignored.
    Final,
}

/// Why nothing is received any more.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Ended {
    Closed,
    Failed(SessionError),
}

/// A connection error that is the peer's fault (RFC 9113, section 5.4.1).
pub(super) fn peer_error(code: ErrorCode, rule: &'static str) -> SessionError {
    SessionError::Peer { code, rule }
}

impl HboneSession {
    /// Ends the stream in both directions with RST_STREAM. Frames of the peer that cross it are swallowed, and the
    /// credit of bytes that are not consumed returns. If both directions have ended there is no RST_STREAM; a stream
    /// that is gone stays gone.
    pub fn reset(&mut self, stream: StreamId, code: ErrorCode) {
        if self.discard(stream) {
            frame::put_reset(&mut self.output, stream, code);
            self.resets.remember(stream);
        }
        self.check();
    }

    /// The peer broke a rule that ends one stream (RFC 9113, section 5.4.2). The event is for a stream that the caller
    /// knows.
    pub(super) fn stream_error(
        &mut self,
        stream: StreamId,
        code: ErrorCode,
    ) -> Result<Option<Event<'static>>, SessionError> {
        self.floods.charge(Flood::StreamErrors, self.now_ms)?;
        frame::put_reset(&mut self.output, stream, code);
        self.resets.remember(stream);
        Ok(self.discard(stream).then_some(Event::Reset { stream, code }))
    }

    /// Removes a stream and returns the credit of its bytes. True if it was open.
    pub(super) fn discard(&mut self, id: StreamId) -> bool {
        let Some(stream) = self.streams.remove(id) else { return false };
        self.receive_window.consume(stream.receive_window.outstanding() as usize);
        self.update_connection();
        let open = !stream.is_closed();
        self.open_count -= usize::from(open);
        open
    }

    /// One direction of a stream has just ended. If the other had too, the stream is closed, and stays only while its
    /// bytes are outstanding.
    pub(super) fn settle(&mut self, id: StreamId) {
        let Some(stream) = self.streams.find(id).filter(|stream| stream.is_closed()) else { return };
        self.open_count -= 1;
        if stream.receive_window.outstanding() == 0 {
            self.streams.remove(id);
        }
    }

    /// Begins a graceful shutdown. A server announces it with GOAWAY(2^31-1) and PING, and goes on accepting streams
    /// until the PING is answered, or [`finish_drain`](Self::finish_drain): then a second GOAWAY names the last stream
    /// that it serves. A client opens no more streams and says so at once. Open streams run on in both roles.
    pub fn begin_drain(&mut self) {
        if self.ended.is_some() || self.drain != Drain::Serving {
            return;
        }
        if self.role == Role::Client {
            return self.finish_drain();
        }
        self.drain = Drain::Announced;
        frame::put_goaway(&mut self.output, STREAM_ID_MAX, ErrorCode::NoError);
        frame::put_ping(&mut self.output, false, &DRAIN_PING);
        self.check();
    }

    /// Takes the second step of a drain without waiting for the peer.
    pub fn finish_drain(&mut self) {
        if self.ended.is_some() || self.drain == Drain::Final {
            return;
        }
        self.drain = Drain::Final;
        if self.role == Role::Server {
            self.accept_max = self.newest;
        }
        self.put_final_goaway(ErrorCode::NoError);
        self.check();
    }

    pub(super) fn drain_acknowledged(&mut self, opaque: &[u8]) {
        if self.drain == Drain::Announced && opaque == DRAIN_PING {
            self.finish_drain();
        }
    }

    /// Whether a drain is complete: the peer knows that no new stream is taken, and none is open.
    pub fn is_drained(&self) -> bool {
        self.drain == Drain::Final && self.streams() == 0
    }

    /// Ends the session: queues a final GOAWAY, after which nothing is received. The caller sends what is queued and
    /// closes the connection.
    pub fn close(&mut self, code: ErrorCode) {
        if self.ended.is_none() {
            self.ended = Some(Ended::Closed);
            self.put_final_goaway(code);
        }
    }

    /// Ends the session for an error, and returns it.
    pub(super) fn fail(&mut self, error: SessionError) -> SessionError {
        self.ended = Some(Ended::Failed(error));
        self.put_final_goaway(error.code());
        error
    }

    /// GOAWAY with the newest stream of the peer that was processed. Servers open none, so a client's is 0.
    fn put_final_goaway(&mut self, code: ErrorCode) {
        let last = if self.role == Role::Server { self.newest.min(self.accept_max) } else { 0 };
        frame::put_goaway(&mut self.output, last, code);
    }
}
