//! The parts of HTTP/2 (RFC 9113) and HPACK (RFC 7541) that a CONNECT tunnel needs, each without I/O.
//!
//! [`frame`] reads and writes frame headers and control frames, [`settings`] the peer's SETTINGS, [`hpack`] and
//! [`huffman`] header blocks, [`flow`] counts windows, [`stream`] holds the open streams. None of them knows what a
//! session is: [`crate::hbone`] puts them together and decides which error belongs to whom.

pub mod flow;
pub mod frame;
pub mod hpack;
pub mod huffman;
pub mod settings;
pub mod stream;

/// An HTTP/2 stream identifier (RFC 9113, section 5.1.1). An identifier is never used twice in a session, so a stale
/// one names nothing.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct StreamId(pub u32);

/// Largest stream identifier, and the last-stream of the first GOAWAY of a drain (RFC 9113, section 6.8).
pub const STREAM_ID_MAX: u32 = 0x7fff_ffff;

/// An HTTP/2 error code (RFC 9113, section 7).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum ErrorCode {
    /// A graceful end.
    NoError = 0x0,
    /// The peer broke the protocol.
    ProtocolError = 0x1,
    /// An unexpected internal error; also any code that RFC 9113 does not define.
    InternalError = 0x2,
    /// The peer sent more than its window.
    FlowControlError = 0x3,
    /// SETTINGS were not acknowledged in time.
    SettingsTimeout = 0x4,
    /// A frame came after the stream was half closed.
    StreamClosed = 0x5,
    /// A frame has an invalid size.
    FrameSizeError = 0x6,
    /// The stream was refused before any processing, so the request may be retried.
    RefusedStream = 0x7,
    /// The stream is no longer needed.
    Cancel = 0x8,
    /// The header compression state is lost.
    CompressionError = 0x9,
    /// The TCP connection behind a CONNECT was reset or closed abnormally.
    ConnectError = 0xa,
    /// The peer generates excessive load.
    EnhanceYourCalm = 0xb,
    /// The transport is not secure enough.
    InadequateSecurity = 0xc,
    /// HTTP/1.1 is required.
    Http11Required = 0xd,
}

impl ErrorCode {
    /// Reads a code from the wire. A code that RFC 9113 does not define reads as [`ErrorCode::InternalError`]
    /// (section 7 allows that).
    pub fn from_wire(code: u32) -> Self {
        match code {
            0x0 => Self::NoError,
            0x1 => Self::ProtocolError,
            0x3 => Self::FlowControlError,
            0x4 => Self::SettingsTimeout,
            0x5 => Self::StreamClosed,
            0x6 => Self::FrameSizeError,
            0x7 => Self::RefusedStream,
            0x8 => Self::Cancel,
            0x9 => Self::CompressionError,
            0xa => Self::ConnectError,
            0xb => Self::EnhanceYourCalm,
            0xc => Self::InadequateSecurity,
            0xd => Self::Http11Required,
            _ => Self::InternalError,
        }
    }
}
