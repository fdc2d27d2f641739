//! DATA in both directions, and the windows it spends (RFC 9113, sections 5.2, 6.1 and 6.9).
//!
//! Nothing here allocates, except that the queue of writable streams grows once to the number of streams.

use super::end::peer_error;
use super::receive::{DataFrame, Reading};
use super::{ErrorCode, Event, Flood, HboneSession, SessionError, StreamId};
use crate::h2::frame::{self, FrameHeader, flag, kind};
use crate::h2::stream::{ReceiveState, SendState};
use crate::limits::FRAME_HEADER_LEN;

impl HboneSession {
    /// Accounts for a DATA frame from its header, and decides who gets its payload.
    pub(super) fn begin_data(&mut self, header: FrameHeader) -> Result<Option<Event<'static>>, SessionError> {
        let (id, length) = (StreamId(header.stream), header.length);
        if self.is_idle(header.stream) {
            return Err(peer_error(ErrorCode::ProtocolError, "DATA comes on a stream that is not open"));
        }
        let padded = header.has(flag::PADDED);
        if padded && length == 0 {
            return Err(peer_error(ErrorCode::FrameSizeError, "padded DATA has no room for its padding"));
        }
        if !self.receive_window.debit(length) {
            return Err(peer_error(ErrorCode::FlowControlError, "DATA exceeds the connection's window"));
        }
        let end_stream = header.has(flag::END_STREAM);
        if length == 0 && !end_stream {
            self.floods.charge(Flood::Idle, self.now_ms)?;
        }
        let refused = match self.streams.find_mut(id) {
            None => (!self.is_forgiven(id)).then_some(ErrorCode::StreamClosed),
            Some(stream) => match stream.receive {
                ReceiveState::Ended => Some(ErrorCode::StreamClosed),
                ReceiveState::NoHead => Some(ErrorCode::ProtocolError),
                ReceiveState::Open if stream.receive_window.debit(length) => {
                    let data = DataFrame { stream: id, remaining: length, padding: 0, end_stream };
                    self.reader.reading = if padded { Reading::PadLength(data) } else { Reading::Data(data) };
                    return Ok(None);
                }
                ReceiveState::Open => Some(ErrorCode::FlowControlError),
            },
        };
        self.refund_connection(length);
        self.reader.reading = Reading::Skip(length);
        match refused {
            Some(code) => self.stream_error(id, code),
            None => Ok(None),
        }
    }

    /// Whether frames for a stream that is gone are no error: they crossed our RST_STREAM or GOAWAY.
    pub(super) fn is_forgiven(&self, id: StreamId) -> bool {
        id.0 > self.accept_max || self.resets.contains(id)
    }

    /// The Pad Length of a DATA frame has arrived. Padding spends the windows, and its credit returns at once.
    pub(super) fn begin_padding(&mut self, data: DataFrame, padding: u8) -> Result<(), SessionError> {
        let padding = u32::from(padding);
        if padding >= data.remaining {
            return Err(peer_error(ErrorCode::ProtocolError, "padding is longer than its frame"));
        }
        let remaining = data.remaining - 1 - padding;
        if remaining == 0 && !data.end_stream {
            self.floods.charge(Flood::Idle, self.now_ms)?;
        }
        if let Some(stream) = self.streams.find_mut(data.stream) {
            stream.receive_window.refund(1 + padding);
            if let Some(increment) = stream.receive_window.update(self.now_ms) {
                frame::put_window_update(&mut self.output, data.stream.0, increment);
            }
        }
        self.refund_connection(1 + padding);
        self.reader.reading = Reading::Data(DataFrame { remaining, padding, ..data });
        Ok(())
    }

    /// Delivers what has arrived of a DATA frame; once all has, reports its END_STREAM.
    pub(super) fn read_data<'a>(&mut self, data: DataFrame, input: &mut &'a [u8]) -> Option<Event<'a>> {
        if data.remaining == 0 {
            let taken = input.len().min(data.padding as usize);
            *input = &input[taken..];
            let padding = data.padding - taken as u32;
            if padding > 0 {
                self.reader.reading = Reading::Data(DataFrame { padding, ..data });
                return None;
            }
            self.reader.reading = Reading::Header;
            return data.end_stream.then(|| self.receive_end(data.stream)).flatten();
        }
        let Some(stream) = self.streams.find_mut(data.stream) else {
            // We reset the stream in the middle of the frame.
            self.refund_connection(data.remaining);
            self.reader.reading = Reading::Skip(data.remaining + data.padding);
            return None;
        };
        let (bytes, rest) = input.split_at(input.len().min(data.remaining as usize));
        *input = rest;
        let count = bytes.len() as u32;
        stream.receive_window.deliver(count);
        self.receive_window.deliver(count);
        self.reader.reading = Reading::Data(DataFrame { remaining: data.remaining - count, ..data });
        Some(Event::Data { stream: data.stream, bytes })
    }

    /// The peer has ended its direction. None if the stream is gone.
    pub(super) fn receive_end(&mut self, id: StreamId) -> Option<Event<'static>> {
        let stream = self.streams.find_mut(id)?;
        stream.receive = ReceiveState::Ended;
        self.settle(id);
        Some(Event::End { stream: id })
    }

    /// The application took `count` delivered bytes of the stream: their credit returns to the peer, in batches of half
    /// a window. While the application keeps up, the stream's window grows.
    pub fn consumed(&mut self, stream: StreamId, count: usize, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        let Some(found) = self.streams.find_mut(stream) else { return };
        let taken = found.receive_window.consume(count);
        self.receive_window.consume(taken as usize);
        if found.receive != ReceiveState::Ended {
            found.receive_window.grow(self.config.stream_window_max, now_ms);
            if let Some(increment) = found.receive_window.update(now_ms) {
                frame::put_window_update(&mut self.output, stream.0, increment);
            }
        } else if found.is_closed() && found.receive_window.outstanding() == 0 {
            self.streams.remove(stream);
        }
        self.update_connection();
        self.check();
    }

    fn refund_connection(&mut self, bytes: u32) {
        self.receive_window.refund(bytes);
        self.update_connection();
    }

    /// Returns connection credit once it is half of the window.
    pub(super) fn update_connection(&mut self) {
        if let Some(increment) = self.receive_window.update(self.now_ms) {
            frame::put_window_update(&mut self.output, 0, increment);
        }
    }

    /// Bytes of DATA that may be sent on the stream in one frame now: the least of both windows and the peer's largest
    /// frame. At 0 the stream comes out of [`poll_writable`](Self::poll_writable) once it is more. A server may send
    /// nothing before it has answered.
    pub fn sendable(&self, stream: StreamId) -> usize {
        self.window(stream).min(self.peer.frame_size_max as usize)
    }

    /// As [`sendable`](Self::sendable), but in as many frames as it takes.
    pub fn window(&self, stream: StreamId) -> usize {
        match self.streams.find(stream) {
            Some(found) if found.send == SendState::Open => {
                found.send_window.available().min(self.send_window.available())
            }
            _ => 0,
        }
    }

    /// Debits the windows and returns the header of a DATA frame of `len` bytes, at most
    /// [`sendable`](Self::sendable). `len` is 0 only with `end_stream`: peers count empty frames against us.
    ///
    /// On a stream that cannot send, which is an error of the caller, the header is of a frame type that peers discard
    /// (RFC 9113, section 5.5), so that the payload behind it does no harm.
    pub fn data(&mut self, stream: StreamId, len: usize, end_stream: bool) -> [u8; FRAME_HEADER_LEN] {
        debug_assert!(len > 0 || end_stream, "empty DATA only ends a stream");
        debug_assert!(len <= self.sendable(stream), "{len} bytes do not fit the windows of {stream:?}");
        let length = len as u32;
        let found = self.streams.find_mut(stream).filter(|found| found.send == SendState::Open);
        let Some(found) = found else {
            debug_assert!(false, "{stream:?} cannot send");
            return FrameHeader { length, kind: kind::UNDEFINED, flags: 0, stream: 0 }.encode();
        };
        found.send_window.debit(len);
        self.send_window.debit(len);
        found.starved |= found.send_window.available() == 0;
        if end_stream {
            found.send = SendState::Ended;
            self.settle(stream);
        } else if let Some(opaque) = self.pace.sent(len) {
            frame::put_ping(&mut self.output, false, &opaque);
        }
        self.check();
        frame::data_header(stream, length, end_stream)
    }

    /// Whether the peer may have so many unread DATA frames below 256 bytes that another could make it end the session.
    /// A PING is on its way, and its answer lifts the hold. Frames of 256 bytes and more, and those with END_STREAM,
    /// are never held.
    pub fn holds_small(&self) -> bool {
        self.pace.holds()
    }

    /// A stream whose `sendable` was 0 and no longer is. Each is returned once for each time; None when there is no
    /// more.
    pub fn poll_writable(&mut self) -> Option<StreamId> {
        while self.send_window.available() > 0 {
            let id = self.writable.pop_front()?;
            let Some(stream) = self.streams.find_mut(id) else { continue };
            stream.queued = false;
            if stream.send == SendState::Open && stream.send_window.available() > 0 {
                return Some(id);
            }
        }
        None
    }

    /// The connection's window is no longer empty: every stream that may send has been waiting for that.
    pub(super) fn wake_all(&mut self) {
        for stream in self.streams.iter_mut_from(self.wake_start) {
            stream.wake(&mut self.writable);
        }
        self.wake_start = self.wake_start.wrapping_add(1);
    }
}
