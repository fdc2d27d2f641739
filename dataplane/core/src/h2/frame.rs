//! Frame headers and the control frames that a session sends (RFC 9113, sections 4.1 and 6).
//!
//! Writing appends to the caller's buffer. Reading ends at the frame header: what a payload means depends on the
//! session's state.

use super::{ErrorCode, StreamId};
use crate::limits::FRAME_HEADER_LEN;

#[cfg(test)]
mod tests;

/// What a client sends before its first frame (RFC 9113, section 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types (RFC 9113, section 6).
pub mod kind {
    /// DATA.
    pub const DATA: u8 = 0x0;
    /// HEADERS.
    pub const HEADERS: u8 = 0x1;
    /// PRIORITY.
    pub const PRIORITY: u8 = 0x2;
    /// RST_STREAM.
    pub const RST_STREAM: u8 = 0x3;
    /// SETTINGS.
    pub const SETTINGS: u8 = 0x4;
    /// PUSH_PROMISE.
    pub const PUSH_PROMISE: u8 = 0x5;
    /// PING.
    pub const PING: u8 = 0x6;
    /// GOAWAY.
    pub const GOAWAY: u8 = 0x7;
    /// WINDOW_UPDATE.
    pub const WINDOW_UPDATE: u8 = 0x8;
    /// CONTINUATION.
    pub const CONTINUATION: u8 = 0x9;
    /// A type that no specification defines, so every peer discards it (RFC 9113, section 5.5).
    pub const UNDEFINED: u8 = 0xfe;
}

/// Frame flags (RFC 9113, section 6).
pub mod flag {
    /// On SETTINGS and PING.
    pub const ACK: u8 = 0x1;
    /// On DATA and HEADERS.
    pub const END_STREAM: u8 = 0x1;
    /// On HEADERS and CONTINUATION.
    pub const END_HEADERS: u8 = 0x4;
    /// On DATA and HEADERS.
    pub const PADDED: u8 = 0x8;
    /// On HEADERS.
    pub const PRIORITY: u8 = 0x20;
}

/// The nine bytes before every payload (RFC 9113, section 4.1).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// Bytes of payload.
    pub length: u32,
    /// Frame type, see [`kind`].
    pub kind: u8,
    /// Flags, see [`flag`].
    pub flags: u8,
    /// Stream identifier, 0 for the connection. The reserved bit is dropped.
    pub stream: u32,
}

impl FrameHeader {
    /// Reads a header; any nine bytes are one.
    pub fn parse(bytes: &[u8; FRAME_HEADER_LEN]) -> Self {
        Self {
            length: u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]),
            kind: bytes[3],
            flags: bytes[4],
            stream: u32::from_be_bytes([bytes[5], bytes[6], bytes[7], bytes[8]]) & super::STREAM_ID_MAX,
        }
    }

    /// The bytes of this header. Only the low 24 bits of the length are sent.
    pub fn encode(self) -> [u8; FRAME_HEADER_LEN] {
        let [_, l0, l1, l2] = self.length.to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        [l0, l1, l2, self.kind, self.flags, s0, s1, s2, s3]
    }

    /// Whether all bits of `flag` are set.
    pub fn has(self, flag: u8) -> bool {
        self.flags & flag == flag
    }
}

/// Four bytes of a payload as an integer in network order. The session has checked the length.
pub fn be_u32(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).fold(0, |value, byte| value << 8 | u32::from(*byte))
}

fn put_header(out: &mut Vec<u8>, length: usize, kind_flags: (u8, u8), stream: u32) {
    let (kind, flags) = kind_flags;
    out.extend_from_slice(&FrameHeader { length: length as u32, kind, flags, stream }.encode());
}

/// Appends SETTINGS with these entries (RFC 9113, section 6.5).
pub fn put_settings(out: &mut Vec<u8>, entries: &[(u16, u32)]) {
    put_header(out, entries.len() * 6, (kind::SETTINGS, 0), 0);
    for (id, value) in entries {
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

/// Appends the acknowledgement of SETTINGS.
pub fn put_settings_ack(out: &mut Vec<u8>) {
    put_header(out, 0, (kind::SETTINGS, flag::ACK), 0);
}

/// Appends WINDOW_UPDATE, for the connection when `stream` is 0 (RFC 9113, section 6.9).
pub fn put_window_update(out: &mut Vec<u8>, stream: u32, increment: u32) {
    put_header(out, 4, (kind::WINDOW_UPDATE, 0), stream);
    out.extend_from_slice(&increment.to_be_bytes());
}

/// Appends RST_STREAM (RFC 9113, section 6.4).
pub fn put_reset(out: &mut Vec<u8>, stream: StreamId, code: ErrorCode) {
    put_header(out, 4, (kind::RST_STREAM, 0), stream.0);
    out.extend_from_slice(&(code as u32).to_be_bytes());
}

/// Appends PING, or its acknowledgement (RFC 9113, section 6.7).
pub fn put_ping(out: &mut Vec<u8>, ack: bool, opaque: &[u8; 8]) {
    put_header(out, 8, (kind::PING, if ack { flag::ACK } else { 0 }), 0);
    out.extend_from_slice(opaque);
}

/// Appends GOAWAY without debug data (RFC 9113, section 6.8).
pub fn put_goaway(out: &mut Vec<u8>, last_stream: u32, code: ErrorCode) {
    put_header(out, 8, (kind::GOAWAY, 0), 0);
    out.extend_from_slice(&last_stream.to_be_bytes());
    out.extend_from_slice(&(code as u32).to_be_bytes());
}

/// Appends a header block as HEADERS and as many CONTINUATIONs as `frame_size_max` asks for (RFC 9113, section 6.10).
pub fn put_header_block(
    out: &mut Vec<u8>,
    stream: StreamId,
    block: &[u8],
    frame_size_max: usize,
    end_stream: bool,
) {
    let (mut part, mut rest) = block.split_at(block.len().min(frame_size_max));
    let mut kind = kind::HEADERS;
    let mut flags = if end_stream { flag::END_STREAM } else { 0 };
    loop {
        flags |= if rest.is_empty() { flag::END_HEADERS } else { 0 };
        put_header(out, part.len(), (kind, flags), stream.0);
        out.extend_from_slice(part);
        if rest.is_empty() {
            return;
        }
        (part, rest) = rest.split_at(rest.len().min(frame_size_max));
        (kind, flags) = (kind::CONTINUATION, 0);
    }
}

/// The header of a DATA frame without padding (RFC 9113, section 6.1).
pub fn data_header(stream: StreamId, length: u32, end_stream: bool) -> [u8; FRAME_HEADER_LEN] {
    let flags = if end_stream { flag::END_STREAM } else { 0 };
    FrameHeader { length, kind: kind::DATA, flags, stream: stream.0 }.encode()
}
