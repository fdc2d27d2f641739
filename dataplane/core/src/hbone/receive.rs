//! From bytes to frames (RFC 9113, sections 3.4, 4 and 5.5).
//!
//! Frame headers and control frames that arrive in one piece are read in place; others are collected. DATA is never
//! collected.

use super::end::{Ended, peer_error};
use super::flood::{CONTINUATIONS_MAX, OUTPUT_MAX};
use super::{ErrorCode, Event, Flood, HboneSession, Role, SessionError, StreamId};
use crate::h2::frame::{FrameHeader, PREFACE, flag, kind};
use crate::h2::settings::{ENTRIES_MAX, ENTRY_LEN};
use crate::limits::FRAME_HEADER_LEN;

/// What the next byte belongs to.
#[derive(Copy, Clone, Debug)]
pub(super) enum Reading {
    /// The client's preface.
    Preface,
    /// A frame header.
    Header,
    /// The payload of a frame that is processed whole.
    Control(FrameHeader),
    /// The Pad Length field of a DATA frame.
    PadLength(DataFrame),
    /// The payload and padding of a DATA frame.
    Data(DataFrame),
    /// So many bytes that nobody wants.
    Skip(u32),
}

/// What is still to come of a DATA frame.
#[derive(Copy, Clone, Debug)]
pub(super) struct DataFrame {
    pub(super) stream: StreamId,
    pub(super) remaining: u32,
    pub(super) padding: u32,
    pub(super) end_stream: bool,
}

/// How far the input is read.
pub(super) struct Reader {
    pub(super) reading: Reading,
    header: [u8; FRAME_HEADER_LEN],
    /// Bytes of the preface or of `header` that have arrived.
    arrived: usize,
    payload: Vec<u8>,
}

impl Reader {
    pub(super) fn new(role: Role) -> Self {
        let reading = if role == Role::Server { Reading::Preface } else { Reading::Header };
        Self { reading, header: [0; FRAME_HEADER_LEN], arrived: 0, payload: Vec::new() }
    }

    /// The next frame header, or None if it has not arrived whole.
    fn header(&mut self, input: &mut &[u8]) -> Option<FrameHeader> {
        if self.arrived == 0
            && let Some((header, rest)) = input.split_first_chunk()
        {
            *input = rest;
            return Some(FrameHeader::parse(header));
        }
        let missing = (FRAME_HEADER_LEN - self.arrived).min(input.len());
        let (part, rest) = input.split_at(missing);
        self.header[self.arrived..self.arrived + missing].copy_from_slice(part);
        self.arrived += missing;
        *input = rest;
        (self.arrived == FRAME_HEADER_LEN).then(|| {
            self.arrived = 0;
            FrameHeader::parse(&self.header)
        })
    }

    /// Checks the next bytes of the preface. True once it is complete.
    fn preface(&mut self, input: &mut &[u8]) -> Result<bool, SessionError> {
        let count = (PREFACE.len() - self.arrived).min(input.len());
        let (part, rest) = input.split_at(count);
        if part != &PREFACE[self.arrived..self.arrived + count] {
            return Err(peer_error(ErrorCode::ProtocolError, "the connection preface is wrong"));
        }
        *input = rest;
        self.arrived += count;
        let complete = self.arrived == PREFACE.len();
        if complete {
            self.arrived = 0;
            self.reading = Reading::Header;
        }
        Ok(complete)
    }
}

/// Bytes of a control frame that are looked at; the rest is skipped.
fn kept_len(header: FrameHeader) -> usize {
    match header.kind {
        // Debug data is not wanted.
        kind::GOAWAY => header.length.min(8) as usize,
        // Nor are priorities.
        kind::PRIORITY => 0,
        _ => header.length as usize,
    }
}

impl HboneSession {
    /// Takes bytes from the front of `input` and returns the next event, or None when all input is taken and more is
    /// needed. DATA is delivered as slices of `input`, as it arrives.
    ///
    /// An error is fatal: its GOAWAY is queued, and the caller closes the connection after sending it. After
    /// [`close`](Self::close) all input is discarded.
    pub fn receive<'a>(
        &mut self,
        input: &mut &'a [u8],
        now_ms: u64,
    ) -> Result<Option<Event<'a>>, SessionError> {
        match self.ended {
            Some(Ended::Failed(error)) => return Err(error),
            Some(Ended::Closed) => {
                *input = &[];
                return Ok(None);
            }
            None => self.now_ms = now_ms,
        }
        let result = self.advance(input).map_err(|error| self.fail(error));
        self.check();
        result
    }

    fn advance<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, SessionError> {
        loop {
            let event = match self.reader.reading {
                Reading::Preface => {
                    if !self.reader.preface(input)? {
                        return Ok(None);
                    }
                    None
                }
                Reading::Header => {
                    let Some(header) = self.reader.header(input) else { return Ok(None) };
                    self.begin_frame(header)?
                }
                Reading::Control(header) => {
                    if input.is_empty() && kept_len(header) > 0 {
                        return Ok(None);
                    }
                    self.read_control(header, input)?
                }
                Reading::PadLength(data) => {
                    let Some((padding, rest)) = input.split_first() else { return Ok(None) };
                    *input = rest;
                    self.begin_padding(data, *padding)?;
                    None
                }
                Reading::Data(data) => {
                    if input.is_empty() && (data.remaining > 0 || data.padding > 0) {
                        return Ok(None);
                    }
                    self.read_data(data, input)
                }
                Reading::Skip(count) => {
                    if input.is_empty() && count > 0 {
                        return Ok(None);
                    }
                    let taken = input.len().min(count as usize);
                    *input = &input[taken..];
                    let left = count - taken as u32;
                    self.reader.reading = if left == 0 { Reading::Header } else { Reading::Skip(left) };
                    None
                }
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    /// Decides from a frame's header alone how its payload is read.
    fn begin_frame(&mut self, header: FrameHeader) -> Result<Option<Event<'static>>, SessionError> {
        if header.length > self.config.frame_size_max {
            return Err(peer_error(
                ErrorCode::FrameSizeError,
                "a frame is larger than SETTINGS_MAX_FRAME_SIZE",
            ));
        }
        if !self.peer.known && (header.kind != kind::SETTINGS || header.has(flag::ACK)) {
            return Err(peer_error(ErrorCode::ProtocolError, "the first frame is not SETTINGS"));
        }
        let in_block = self.block.stream.is_some();
        if in_block != (header.kind == kind::CONTINUATION)
            || in_block && self.block.stream != Some(StreamId(header.stream))
        {
            return Err(peer_error(ErrorCode::ProtocolError, "a header block is interrupted or not begun"));
        }
        if header.kind == kind::DATA {
            return self.begin_data(header);
        }
        if header.kind > kind::CONTINUATION {
            self.floods.charge(Flood::Idle, self.now_ms)?;
            self.reader.reading = Reading::Skip(header.length);
            return Ok(None);
        }
        self.check_stream(header)?;
        self.check_size(header)?;
        self.reader.reading = Reading::Control(header);
        Ok(None)
    }

    /// Whether a control frame may name this stream (RFC 9113, section 6).
    fn check_stream(&self, header: FrameHeader) -> Result<(), SessionError> {
        let of_connection = header.stream == 0;
        let idle = self.is_idle(header.stream);
        let allowed = match header.kind {
            kind::SETTINGS | kind::PING | kind::GOAWAY => of_connection,
            kind::WINDOW_UPDATE => of_connection || !idle,
            kind::RST_STREAM => !of_connection && !idle,
            kind::HEADERS if self.role == Role::Server => header.stream % 2 == 1,
            kind::HEADERS => !of_connection && !idle,
            // A client has disabled push, and a client never pushes (RFC 9113, section 8.4).
            kind::PUSH_PROMISE => false,
            _ => !of_connection,
        };
        if allowed {
            return Ok(());
        }
        Err(peer_error(ErrorCode::ProtocolError, "a frame names a stream that it must not"))
    }

    /// Whether a control frame has a size that its type allows, and one that we are ready to collect.
    fn check_size(&mut self, header: FrameHeader) -> Result<(), SessionError> {
        let length = header.length as usize;
        let allowed = match header.kind {
            kind::RST_STREAM | kind::WINDOW_UPDATE => length == 4,
            kind::PING => length == 8,
            kind::GOAWAY => length >= 8,
            kind::SETTINGS if header.has(flag::ACK) => length == 0,
            kind::SETTINGS => length.is_multiple_of(ENTRY_LEN),
            _ => true,
        };
        if !allowed {
            return Err(peer_error(ErrorCode::FrameSizeError, "a control frame has the wrong size"));
        }
        if header.kind == kind::SETTINGS && length > ENTRIES_MAX * ENTRY_LEN {
            return Err(SessionError::Flood(Flood::Settings));
        }
        if matches!(header.kind, kind::HEADERS | kind::CONTINUATION) {
            self.block.frames += 1;
            if self.block.bytes.len() + length > self.config.header_block_max()
                || self.block.frames > CONTINUATIONS_MAX + 1
            {
                return Err(SessionError::Flood(Flood::HeaderBlock));
            }
        }
        Ok(())
    }

    /// Collects a control frame and processes it once it is whole.
    fn read_control(
        &mut self,
        header: FrameHeader,
        input: &mut &[u8],
    ) -> Result<Option<Event<'static>>, SessionError> {
        let kept = kept_len(header);
        let missing = kept - self.reader.payload.len();
        let (part, rest) = input.split_at(missing.min(input.len()));
        *input = rest;
        if part.len() < missing {
            self.reader.payload.extend_from_slice(part);
            return Ok(None);
        }
        self.reader.reading = match header.length - kept as u32 {
            0 => Reading::Header,
            left => Reading::Skip(left),
        };
        let event = if self.reader.payload.is_empty() {
            self.control(header, part)?
        } else {
            let mut payload = std::mem::take(&mut self.reader.payload);
            payload.extend_from_slice(part);
            let event = self.control(header, &payload)?;
            payload.clear();
            payload.shrink_to(4096);
            self.reader.payload = payload;
            event
        };
        if self.output.len() > OUTPUT_MAX {
            return Err(SessionError::Flood(Flood::Output));
        }
        Ok(event)
    }
}
