//! Header blocks: requests, responses and trailers (RFC 9113, sections 5.1, 6.2, 6.10 and 8).

use super::end::peer_error;
use super::fields::Fields;
use super::{
    ConnectRequest, ConnectResponse, Drain, ErrorCode, Event, Flood, HboneSession, OpenError, Role,
    SessionError, StreamId,
};
use crate::h2::STREAM_ID_MAX;
use crate::h2::flow::{ReceiveWindow, SendWindow, WINDOW_DEFAULT};
use crate::h2::frame::{self, FrameHeader, flag};
use crate::h2::hpack::FIELD_OVERHEAD;
use crate::h2::stream::{ReceiveState, SendState, Stream};

/// A header block whose last frame has not arrived.
#[derive(Default)]
pub(super) struct Block {
    /// The stream that CONTINUATION must name, while there is a block.
    pub(super) stream: Option<StreamId>,
    pub(super) end_stream: bool,
    pub(super) bytes: Vec<u8>,
    /// Frames that have begun.
    pub(super) frames: u32,
}

type Received = Result<Option<Event<'static>>, SessionError>;

/// The fragment of a HEADERS payload, without padding and priority (RFC 9113, section 6.2).
fn fragment(header: FrameHeader, payload: &[u8]) -> Result<&[u8], SessionError> {
    let short = || peer_error(ErrorCode::FrameSizeError, "HEADERS are shorter than their fields");
    let (mut rest, mut padding) = (payload, 0);
    if header.has(flag::PADDED) {
        let (length, tail) = rest.split_first().ok_or_else(short)?;
        (rest, padding) = (tail, usize::from(*length));
    }
    if header.has(flag::PRIORITY) {
        rest = rest.get(5..).ok_or_else(short)?;
    }
    let length = rest
        .len()
        .checked_sub(padding)
        .ok_or_else(|| peer_error(ErrorCode::ProtocolError, "padding is longer than its frame"))?;
    Ok(&rest[..length])
}

impl HboneSession {
    pub(super) fn headers_frame(&mut self, header: FrameHeader, payload: &[u8]) -> Received {
        let fragment = fragment(header, payload)?;
        let (stream, end_stream) = (StreamId(header.stream), header.has(flag::END_STREAM));
        if header.has(flag::END_HEADERS) {
            self.block.frames = 0;
            return self.block(stream, end_stream, fragment);
        }
        self.block.stream = Some(stream);
        self.block.end_stream = end_stream;
        self.block.bytes.extend_from_slice(fragment);
        Ok(None)
    }

    pub(super) fn continuation_frame(&mut self, header: FrameHeader, payload: &[u8]) -> Received {
        self.block.bytes.extend_from_slice(payload);
        if !header.has(flag::END_HEADERS) {
            return Ok(None);
        }
        let block = std::mem::take(&mut self.block);
        self.block(StreamId(header.stream), block.end_stream, &block.bytes)
    }

    /// Decodes a complete block. Every block is decoded, or the compression state would be lost (RFC 9113,
    /// section 4.3).
    fn block(&mut self, id: StreamId, end_stream: bool, block: &[u8]) -> Received {
        let mut fields = Fields::new(self.config.header_list_max);
        self.decoder
            .decode(block, |name, value| fields.push(name, value))
            .map_err(|_| peer_error(ErrorCode::CompressionError, "a header block cannot be decoded"))?;
        match self.streams.find(id).map(|stream| stream.receive) {
            Some(ReceiveState::NoHead) => self.response(id, end_stream, fields),
            Some(ReceiveState::Open) => self.trailers(id, end_stream, fields),
            Some(ReceiveState::Ended) => self.stream_error(id, ErrorCode::StreamClosed),
            None if self.is_idle(id.0) => self.request(id, end_stream, fields),
            None if self.is_forgiven(id) => Ok(None),
            None if self.role == Role::Client => self.stream_error(id, ErrorCode::StreamClosed),
            None => Err(peer_error(ErrorCode::StreamClosed, "HEADERS come on a stream that is closed")),
        }
    }

    fn request(&mut self, id: StreamId, end_stream: bool, fields: Fields) -> Received {
        self.newest = id.0;
        if id.0 > self.accept_max {
            // It crossed our last GOAWAY, which has told the client that this stream is not processed.
            return Ok(None);
        }
        if self.open_count >= self.config.streams_max as usize {
            return self.stream_error(id, ErrorCode::RefusedStream);
        }
        let request = match fields.into_request() {
            Ok(request) => request,
            Err(code) => return self.stream_error(id, code),
        };
        let receive = if end_stream { ReceiveState::Ended } else { ReceiveState::Open };
        self.insert(id, SendState::Unanswered, receive);
        Ok(Some(Event::Request { stream: id, request, end_stream }))
    }

    fn response(&mut self, id: StreamId, end_stream: bool, fields: Fields) -> Received {
        let response = match fields.into_response() {
            Ok(response) => response,
            Err(code) => return self.stream_error(id, code),
        };
        if response.status < 200 {
            if end_stream {
                return self.stream_error(id, ErrorCode::ProtocolError);
            }
            return self.floods.charge(Flood::Idle, self.now_ms).map(|()| None);
        }
        if let Some(stream) = self.streams.find_mut(id) {
            stream.receive = if end_stream { ReceiveState::Ended } else { ReceiveState::Open };
        }
        self.settle(id);
        Ok(Some(Event::Response { stream: id, response, end_stream }))
    }

    /// Trailers end the peer's direction (RFC 9113, section 8.1), and nothing in a tunnel wants them.
    fn trailers(&mut self, id: StreamId, end_stream: bool, fields: Fields) -> Received {
        match fields.into_trailers() {
            Ok(()) if end_stream => Ok(self.receive_end(id)),
            Ok(()) => self.stream_error(id, ErrorCode::ProtocolError),
            Err(code) => self.stream_error(id, code),
        }
    }

    fn insert(&mut self, id: StreamId, send: SendState, receive: ReceiveState) {
        let mut window = self.config.stream_window_initial;
        if self.role == Role::Server && self.settings_unacknowledged {
            window = window.max(WINDOW_DEFAULT);
        }
        self.open_count += 1;
        self.streams.insert(Stream {
            id,
            send,
            receive,
            send_window: SendWindow::new(self.peer.window_initial),
            receive_window: ReceiveWindow::new(window, self.now_ms),
            starved: self.peer.window_initial == 0,
            queued: false,
        });
    }

    /// Opens a stream with a CONNECT request, which is queued. Only a client opens streams.
    pub fn open(&mut self, request: &ConnectRequest) -> Result<StreamId, OpenError> {
        debug_assert!(self.role == Role::Client, "a server opens no streams");
        let id = if self.newest == 0 { 1 } else { self.newest + 2 };
        let pseudo = ":method".len() + "CONNECT".len() + ":authority".len() + request.authority.len();
        let size = pseudo + 2 * FIELD_OVERHEAD + list_size(&request.headers);
        if self.ended.is_some() || self.drain != Drain::Serving || self.peer_last.is_some() {
            return Err(OpenError::GoingAway);
        } else if id > STREAM_ID_MAX {
            return Err(OpenError::Exhausted);
        } else if self.open_count >= self.streams_max() {
            return Err(OpenError::StreamLimit);
        } else if size > self.peer.header_list_max as usize {
            return Err(OpenError::TooLarge);
        }
        let pseudo = [(":method", "CONNECT"), (":authority", request.authority.as_str())];
        self.newest = id;
        self.insert(StreamId(id), SendState::Open, ReceiveState::NoHead);
        self.put_head(StreamId(id), &pseudo, &request.headers, false);
        self.check();
        Ok(StreamId(id))
    }

    /// Queues the answer to a request. With `end_stream` nothing more is sent on the stream; a caller that does not want
    /// the rest of the request resets it with NO_ERROR (RFC 9113, section 8.1). A stream that is gone, or answered,
    /// is left alone.
    pub fn respond(&mut self, stream: StreamId, response: &ConnectResponse, end_stream: bool) {
        debug_assert!((200..1000).contains(&response.status), "{} is no final status", response.status);
        let found = self.streams.find_mut(stream).filter(|found| found.send == SendState::Unanswered);
        let Some(found) = found else { return };
        found.send = if end_stream { SendState::Ended } else { SendState::Open };
        let status = response.status.to_string();
        self.put_head(stream, &[(":status", status.as_str())], &response.headers, end_stream);
        self.settle(stream);
        self.check();
    }

    fn put_head(
        &mut self,
        stream: StreamId,
        pseudo: &[(&str, &str)],
        headers: &[(String, String)],
        end_stream: bool,
    ) {
        let mut block = Vec::with_capacity(256);
        self.encoder.begin(&mut block);
        for (name, value) in pseudo {
            self.encoder.field(&mut block, name, value);
        }
        for (name, value) in headers {
            self.encoder.field(&mut block, name, value);
        }
        let frame_size_max = self.peer.frame_size_max as usize;
        frame::put_header_block(&mut self.output, stream, &block, frame_size_max, end_stream);
    }
}

/// Size of a header list as SETTINGS_MAX_HEADER_LIST_SIZE counts it (RFC 9113, section 6.5.2).
fn list_size(headers: &[(String, String)]) -> usize {
    headers.iter().map(|(name, value)| name.len() + value.len() + FIELD_OVERHEAD).sum()
}
