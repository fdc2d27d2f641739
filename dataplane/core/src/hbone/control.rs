//! Control frames: SETTINGS, PING, GOAWAY, RST_STREAM, WINDOW_UPDATE, PRIORITY (RFC 9113, section 6).

use super::end::peer_error;
use super::{ErrorCode, Event, Flood, HboneSession, Role, SessionError, StreamId};
use crate::h2::STREAM_ID_MAX;
use crate::h2::flow::WINDOW_DEFAULT;
use crate::h2::frame::{self, FrameHeader, be_u32, flag, kind};
use crate::h2::stream::SendState;

/// Bytes of a PRIORITY payload (RFC 9113, section 6.3).
const PRIORITY_LEN: u32 = 5;

impl HboneSession {
    /// Processes a whole control frame whose stream and size have been checked.
    pub(super) fn control(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
    ) -> Result<Option<Event<'static>>, SessionError> {
        let stream = StreamId(header.stream);
        match header.kind {
            kind::HEADERS => self.headers_frame(header, payload),
            kind::CONTINUATION => self.continuation_frame(header, payload),
            kind::SETTINGS if header.has(flag::ACK) => self.settings_acknowledged(),
            kind::SETTINGS => self.settings_frame(payload).map(Some),
            kind::PING => self.ping_frame(header, payload),
            kind::GOAWAY => Ok(Some(self.goaway_frame(payload))),
            kind::RST_STREAM => self.reset_frame(stream, ErrorCode::from_wire(be_u32(payload))),
            kind::WINDOW_UPDATE => self.window_update_frame(stream, be_u32(payload) & STREAM_ID_MAX),
            kind::PRIORITY if header.length != PRIORITY_LEN && !self.is_idle(stream.0) => {
                self.stream_error(stream, ErrorCode::FrameSizeError)
            }
            _ => self.floods.charge(Flood::Idle, self.now_ms).map(|()| None),
        }
    }

    /// Whether the client has not opened this stream yet. Even streams would be pushed, and nobody pushes.
    pub(super) fn is_idle(&self, stream: u32) -> bool {
        stream.is_multiple_of(2) || stream > self.newest
    }

    fn settings_acknowledged(&mut self) -> Result<Option<Event<'static>>, SessionError> {
        if !self.settings_unacknowledged {
            return Err(peer_error(ErrorCode::ProtocolError, "SETTINGS are acknowledged that were not sent"));
        }
        self.settings_unacknowledged = false;
        // Streams that a client opened before it knew our SETTINGS had the default window until now.
        let excess = WINDOW_DEFAULT.saturating_sub(self.config.stream_window_initial);
        if self.role == Role::Server && excess > 0 {
            for stream in self.streams.iter_mut_from(0) {
                stream.receive_window.shrink(excess);
            }
        }
        Ok(None)
    }

    fn settings_frame(&mut self, payload: &[u8]) -> Result<Event<'static>, SessionError> {
        self.floods.charge(Flood::Settings, self.now_ms)?;
        let before = i64::from(self.peer.window_initial);
        let from_server = self.role == Role::Client;
        self.peer
            .apply(payload, from_server)
            .map_err(|code| peer_error(code, "a setting has a value out of its range"))?;
        let change = i64::from(self.peer.window_initial) - before;
        if change != 0 {
            self.shift_stream_windows(change)?;
        }
        frame::put_settings_ack(&mut self.output);
        Ok(Event::Settings)
    }

    /// A new SETTINGS_INITIAL_WINDOW_SIZE moves every stream's window (RFC 9113, section 6.9.2).
    fn shift_stream_windows(&mut self, change: i64) -> Result<(), SessionError> {
        for stream in self.streams.iter_mut_from(0) {
            stream.send_window.shift(change).map_err(|_| {
                peer_error(ErrorCode::FlowControlError, "SETTINGS_INITIAL_WINDOW_SIZE overflows a window")
            })?;
            if stream.send_window.available() == 0 {
                stream.starved = true;
            } else {
                stream.wake_if_starved(&mut self.writable);
            }
        }
        Ok(())
    }

    fn ping_frame(
        &mut self,
        header: FrameHeader,
        opaque: &[u8],
    ) -> Result<Option<Event<'static>>, SessionError> {
        if header.has(flag::ACK) {
            self.keepalive.acknowledged(opaque);
            self.pace.acknowledged(opaque);
            self.drain_acknowledged(opaque);
            return Ok(None);
        }
        self.floods.charge(Flood::Pings, self.now_ms)?;
        let mut echo = [0; 8];
        echo.copy_from_slice(opaque);
        frame::put_ping(&mut self.output, true, &echo);
        Ok(None)
    }

    fn goaway_frame(&mut self, payload: &[u8]) -> Event<'static> {
        let (last, code) = payload.split_at(4);
        let last = be_u32(last) & STREAM_ID_MAX;
        // A later GOAWAY may only lower the limit (RFC 9113, section 6.8).
        let last = self.peer_last.map_or(last, |before| before.min(last));
        self.peer_last = Some(last);
        if self.role == Role::Client {
            let above: Vec<StreamId> =
                self.streams.iter().map(|stream| stream.id).filter(|id| id.0 > last).collect();
            for id in above {
                self.resets.remember(id);
                self.discard(id);
            }
        }
        Event::GoAway { last_stream: StreamId(last), code: ErrorCode::from_wire(be_u32(code)) }
    }

    fn reset_frame(
        &mut self,
        stream: StreamId,
        code: ErrorCode,
    ) -> Result<Option<Event<'static>>, SessionError> {
        let unanswered = self.streams.find(stream).is_some_and(|stream| stream.send == SendState::Unanswered);
        if unanswered {
            self.floods.charge(Flood::Resets, self.now_ms)?;
        }
        Ok(self.discard(stream).then_some(Event::Reset { stream, code }))
    }

    fn window_update_frame(
        &mut self,
        id: StreamId,
        increment: u32,
    ) -> Result<Option<Event<'static>>, SessionError> {
        if id.0 == 0 {
            if increment == 0 {
                return Err(peer_error(ErrorCode::ProtocolError, "a WINDOW_UPDATE adds nothing"));
            }
            let was_empty = self.send_window.available() == 0;
            self.send_window.shift(i64::from(increment)).map_err(|_| {
                peer_error(ErrorCode::FlowControlError, "a WINDOW_UPDATE overflows the connection's window")
            })?;
            self.pace.granted(self.send_window.available());
            if was_empty {
                self.wake_all();
            }
            return Ok(None);
        }
        let Some(stream) = self.streams.find_mut(id) else { return Ok(None) };
        if increment == 0 {
            return self.stream_error(id, ErrorCode::ProtocolError);
        }
        if stream.send_window.shift(i64::from(increment)).is_err() {
            return self.stream_error(id, ErrorCode::FlowControlError);
        }
        stream.wake_if_starved(&mut self.writable);
        Ok(None)
    }
}
