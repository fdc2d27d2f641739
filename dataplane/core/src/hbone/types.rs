//! What goes into a session and what comes out of it.

use crate::h2::flow::{WINDOW_DEFAULT, WINDOW_MAX};
use crate::h2::settings::{FRAME_SIZE_MAX, FRAME_SIZE_MIN};
use crate::h2::{ErrorCode, StreamId};
use crate::limits::Limits;

/// The limits of one session. Values outside what RFC 9113 allows are moved to its nearest bound.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Streams that a client may have open: SETTINGS_MAX_CONCURRENT_STREAMS of a server. A client ignores it.
    pub streams_max: u32,
    /// First receive window of a stream, in bytes: SETTINGS_INITIAL_WINDOW_SIZE.
    pub stream_window_initial: u32,
    /// A stream's receive window never grows past this.
    pub stream_window_max: u32,
    /// Receive window of the connection, in bytes; 65 535 at least (RFC 9113, section 6.9.2).
    pub connection_window: u32,
    /// Largest frame payload that we accept, 16 384 to 16 777 215 bytes: SETTINGS_MAX_FRAME_SIZE.
    pub frame_size_max: u32,
    /// Largest header list that we accept, in bytes with 32 for each field: SETTINGS_MAX_HEADER_LIST_SIZE.
    pub header_list_max: u32,
    /// Between two liveness PINGs; 0 sends none.
    pub ping_interval_ms: u64,
    /// How long the answer to a liveness PING may take.
    pub ping_timeout_ms: u64,
}

impl From<&Limits> for SessionConfig {
    fn from(limits: &Limits) -> Self {
        Self {
            streams_max: limits.inbound_streams_max,
            stream_window_initial: limits.stream_window_initial,
            stream_window_max: limits.stream_window_max,
            connection_window: limits.connection_window,
            frame_size_max: limits.frame_size_max,
            header_list_max: limits.header_list_max,
            ping_interval_ms: limits.ping_interval_ms,
            ping_timeout_ms: limits.ping_timeout_ms,
        }
    }
}

impl SessionConfig {
    pub(super) fn normalized(mut self) -> Self {
        self.stream_window_initial = self.stream_window_initial.min(WINDOW_MAX);
        self.stream_window_max = self.stream_window_max.clamp(self.stream_window_initial, WINDOW_MAX);
        self.connection_window = self.connection_window.clamp(WINDOW_DEFAULT, WINDOW_MAX);
        self.frame_size_max = self.frame_size_max.clamp(FRAME_SIZE_MIN, FRAME_SIZE_MAX);
        self
    }

    /// Bytes that one header block may have on the wire. A block is hardly ever longer than its list.
    pub(super) fn header_block_max(&self) -> usize {
        self.header_list_max.max(FRAME_SIZE_MIN) as usize
    }
}

/// A CONNECT request to send (RFC 9113, section 8.5).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConnectRequest {
    /// `:authority`, as `host:port`.
    pub authority: String,
    /// Further fields, names in lower case.
    pub headers: Vec<(String, String)>,
}

/// The answer to a CONNECT, to send or as received.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConnectResponse {
    /// `:status`, 100 to 999.
    pub status: u16,
    /// Further fields, names in lower case. Octets of received values that are not UTF-8 read as U+FFFD.
    pub headers: Vec<(String, String)>,
}

/// A request as received. It is well formed (RFC 9113, section 8.3.1), but it need not be a CONNECT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestHead {
    /// Whether `:method` is CONNECT; a CONNECT has an authority.
    pub method_is_connect: bool,
    /// `:authority`, not checked further.
    pub authority: Option<String>,
    /// Fields in order of arrival, names in lower case. Octets of values that are not UTF-8 read as U+FFFD.
    pub headers: Vec<(String, String)>,
}

/// What the peer did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event<'a> {
    /// A client opened a stream. The server answers with `respond` or `reset`.
    Request {
        /// The new stream.
        stream: StreamId,
        /// Its request.
        request: RequestHead,
        /// The client will send no DATA; no `End` follows.
        end_stream: bool,
    },
    /// The server answered. Interim responses (1xx) are not reported.
    Response {
        /// The stream that was opened.
        stream: StreamId,
        /// Its final response.
        response: ConnectResponse,
        /// The server will send no DATA; no `End` follows.
        end_stream: bool,
    },
    /// Payload, part of a DATA frame or all of it; never empty.
    Data {
        /// The stream.
        stream: StreamId,
        /// A slice of the input. Each byte of it holds credit until `consumed` or `reset`.
        bytes: &'a [u8],
    },
    /// The peer's direction ended in order (END_STREAM, possibly after trailers, which are dropped).
    End {
        /// The stream.
        stream: StreamId,
    },
    /// The stream is gone, in both directions: the peer reset it, or broke a rule that ends the stream alone.
    Reset {
        /// The stream.
        stream: StreamId,
        /// Why.
        code: ErrorCode,
    },
    /// The peer's SETTINGS were applied; `streams_max` may have changed.
    Settings,
    /// The peer goes away. Streams above `last_stream` that we opened are gone and were never processed; there is no
    /// `Reset` for them.
    GoAway {
        /// The newest of our streams that the peer still processes.
        last_stream: StreamId,
        /// Why.
        code: ErrorCode,
    },
}

/// Why a stream cannot be opened.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// The peer's limit of concurrent streams is reached.
    #[error("the peer's limit of concurrent streams is reached")]
    StreamLimit,
    /// The peer, or this side, is going away, or the session has ended.
    #[error("the session is going away")]
    GoingAway,
    /// Every stream identifier has been used (RFC 9113, section 5.1.1).
    #[error("the session has used every stream identifier")]
    Exhausted,
    /// The header list is larger than the peer accepts (SETTINGS_MAX_HEADER_LIST_SIZE).
    #[error("the request's headers are larger than the peer accepts")]
    TooLarge,
}

/// Why a session ended. The variants say who is to blame: a peer that broke the protocol, a peer that asks for too
/// much, a peer or path that is dead.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SessionError {
    /// The peer broke a rule of RFC 9113 or RFC 7541.
    #[error("the peer broke HTTP/2: {rule}")]
    Peer {
        /// The code of our GOAWAY.
        code: ErrorCode,
        /// The rule.
        rule: &'static str,
    },
    /// The peer exceeded a limit that is ours.
    #[error("the peer floods the session with {0}")]
    Flood(Flood),
    /// The peer did not answer a PING in time.
    #[error("the peer did not answer PING in time")]
    PingTimeout,
}

impl SessionError {
    /// The code of the GOAWAY that was queued.
    pub fn code(self) -> ErrorCode {
        match self {
            Self::Peer { code, .. } => code,
            Self::Flood(_) => ErrorCode::EnhanceYourCalm,
            Self::PingTimeout => ErrorCode::NoError,
        }
    }
}

/// What a peer sends too much of (RFC 9113, section 10.5).
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Flood {
    /// Streams reset before they were answered (CVE-2023-44487).
    #[error("streams that it resets at once")]
    Resets,
    /// Frames that we must answer with RST_STREAM.
    #[error("stream errors")]
    StreamErrors,
    /// PING.
    #[error("PING")]
    Pings,
    /// SETTINGS, or entries in one of them.
    #[error("SETTINGS")]
    Settings,
    /// Frames without effect: empty DATA, PRIORITY, unknown types, interim responses.
    #[error("frames without effect")]
    Idle,
    /// Bytes or CONTINUATIONs of one header block (CVE-2024-27316).
    #[error("header blocks")]
    HeaderBlock,
    /// Frames that must be answered, while it does not read the answers.
    #[error("frames to answer while it reads nothing")]
    Output,
}
