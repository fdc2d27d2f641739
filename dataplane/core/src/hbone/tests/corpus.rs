//! Malformed input and the error that each piece of it must end in.

use super::*;
use crate::h2::settings::id;

/// What a piece of input must lead to.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// GOAWAY with this code.
    Session(ErrorCode),
    /// RST_STREAM with this code, and the session goes on.
    Stream(u32, ErrorCode),
    /// No error at all.
    Nothing,
}

use ErrorCode::*;
use Outcome::*;

fn observe(session: &mut HboneSession, bytes: &[u8]) -> Outcome {
    let result = feed(session, bytes).map(|_| ());
    let frames = output(session);
    let code = |payload: &[u8]| {
        ErrorCode::from_wire(u32::from_be_bytes(payload[payload.len() - 4..].try_into().unwrap()))
    };
    if let Err(error) = result {
        let (header, payload) = frames.last().unwrap();
        assert_eq!((header.kind, code(payload)), (kind::GOAWAY, error.code()));
        return Session(error.code());
    }
    match frames.iter().find(|(header, _)| header.kind == kind::RST_STREAM) {
        Some((header, payload)) => Stream(header.stream, code(payload)),
        None => Nothing,
    }
}

/// The same outcome is expected of the bytes in one piece and one by one.
fn check(make: fn() -> HboneSession, cases: Vec<(&str, Vec<u8>, Outcome)>) {
    for (name, bytes, expected) in cases {
        assert_eq!(observe(&mut make(), &bytes), expected, "{name}");
        let mut session = make();
        let (last, front) = bytes.split_last().unwrap();
        let early = front.iter().find_map(|byte| feed(&mut session, &[*byte]).err());
        let outcome = early.map_or_else(|| observe(&mut session, &[*last]), |error| Session(error.code()));
        assert_eq!(outcome, expected, "{name}, byte by byte");
    }
}

fn ended(stream: u32) -> Vec<u8> {
    frame(kind::DATA, flag::END_STREAM, stream, b"x")
}

#[test]
fn the_preface_and_the_first_frame_are_checked() {
    let server = || HboneSession::server(config(), 0);
    let after = |bytes: Vec<u8>| [PREFACE.to_vec(), bytes].concat();
    check(
        server,
        vec![
            ("HTTP/1.1", b"GET / HTTP/1.1\r\n".to_vec(), Session(ProtocolError)),
            ("a late difference", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX".to_vec(), Session(ProtocolError)),
            ("PING first", after(frame(kind::PING, 0, 0, &[0; 8])), Session(ProtocolError)),
            (
                "an acknowledgement first",
                after(frame(kind::SETTINGS, flag::ACK, 0, &[])),
                Session(ProtocolError),
            ),
            ("an unknown frame first", after(frame(0x77, 0, 0, &[])), Session(ProtocolError)),
            ("HEADERS first", after(headers(1, CONNECT)), Session(ProtocolError)),
        ],
    );
    let client = || HboneSession::client(config(), 0);
    check(client, vec![("HTTP/1.1", b"HTTP/1.1 400 Bad Request\r\n".to_vec(), Session(FrameSizeError))]);
}

#[test]
fn sizes_and_streams_of_control_frames_are_checked() {
    let zero = |kind: u8, stream: u32, len: usize| frame(kind, 0, stream, &vec![0; len]);
    let too_large = FrameHeader { length: 16_385, kind: 0x77, flags: 0, stream: 0 }.encode().to_vec();
    let entries = |count: usize| frame(kind::SETTINGS, 0, 0, &[0, 0x77, 0, 0, 0, 0].repeat(count));
    check(
        server_with_stream,
        vec![
            ("a frame over the limit", too_large, Session(FrameSizeError)),
            ("SETTINGS on a stream", zero(kind::SETTINGS, 1, 0), Session(ProtocolError)),
            ("SETTINGS of five bytes", zero(kind::SETTINGS, 0, 5), Session(FrameSizeError)),
            ("SETTINGS of 64 entries", entries(64), Nothing),
            ("SETTINGS of 65 entries", entries(65), Session(EnhanceYourCalm)),
            (
                "an acknowledgement with payload",
                frame(kind::SETTINGS, 1, 0, &[0; 6]),
                Session(FrameSizeError),
            ),
            ("an acknowledgement of nothing", frame(kind::SETTINGS, 1, 0, &[]), Session(ProtocolError)),
            ("push enabled with 2", setting(id::ENABLE_PUSH, 2), Session(ProtocolError)),
            ("a window of 2^31", setting(id::INITIAL_WINDOW_SIZE, 1 << 31), Session(FlowControlError)),
            ("a frame size of 16383", setting(id::MAX_FRAME_SIZE, 16_383), Session(ProtocolError)),
            ("an unknown setting", setting(0xabcd, 1), Nothing),
            ("PING on a stream", zero(kind::PING, 1, 8), Session(ProtocolError)),
            ("PING of seven bytes", zero(kind::PING, 0, 7), Session(FrameSizeError)),
            ("PING acknowledged unasked", frame(kind::PING, flag::ACK, 0, &[7; 8]), Nothing),
            ("GOAWAY on a stream", zero(kind::GOAWAY, 1, 8), Session(ProtocolError)),
            ("GOAWAY of seven bytes", zero(kind::GOAWAY, 0, 7), Session(FrameSizeError)),
            ("RST_STREAM on the connection", zero(kind::RST_STREAM, 0, 4), Session(ProtocolError)),
            ("RST_STREAM on an idle stream", zero(kind::RST_STREAM, 3, 4), Session(ProtocolError)),
            ("RST_STREAM of three bytes", zero(kind::RST_STREAM, 1, 3), Session(FrameSizeError)),
            ("PRIORITY on the connection", zero(kind::PRIORITY, 0, 5), Session(ProtocolError)),
            ("PRIORITY on an idle stream", zero(kind::PRIORITY, 9, 5), Nothing),
            ("PRIORITY of four bytes", zero(kind::PRIORITY, 1, 4), Stream(1, FrameSizeError)),
            ("PUSH_PROMISE", zero(kind::PUSH_PROMISE, 1, 4), Session(ProtocolError)),
            ("an unknown frame", zero(0x77, 1, 100), Nothing),
        ],
    );
}

#[test]
fn windows_are_checked() {
    let max = 0x7fff_ffff;
    let over_stream = frame(kind::DATA, 0, 1, &[0; 16_384]).repeat(7);
    let over_connection = [headers(3, CONNECT), frame(kind::DATA, 0, 3, &[0; 16_384]).repeat(6)].concat();
    check(
        server_with_stream,
        vec![
            ("nothing added to the connection", window_update(0, 0), Session(ProtocolError)),
            ("nothing added to a stream", window_update(1, 0), Stream(1, ProtocolError)),
            ("the reserved bit does not count", window_update(1, 1 << 31), Stream(1, ProtocolError)),
            ("an idle stream", window_update(3, 1), Session(ProtocolError)),
            ("a pushed stream", window_update(2, 1), Session(ProtocolError)),
            ("the connection overflows", window_update(0, max), Session(FlowControlError)),
            ("a stream overflows", window_update(1, max), Stream(1, FlowControlError)),
            ("three bytes", frame(kind::WINDOW_UPDATE, 0, 1, &[0; 3]), Session(FrameSizeError)),
            (
                "a setting overflows a stream",
                [window_update(1, max - 65_535), setting(id::INITIAL_WINDOW_SIZE, 65_536)].concat(),
                Session(FlowControlError),
            ),
            ("DATA over the stream's window", over_stream.clone(), Stream(1, FlowControlError)),
            (
                "DATA over the connection's window",
                [over_stream[..6 * 16_393].to_vec(), over_connection, frame(kind::DATA, 0, 3, &[0; 4_000])]
                    .concat(),
                Session(FlowControlError),
            ),
        ],
    );
}

#[test]
fn data_is_checked() {
    check(
        server_with_stream,
        vec![
            ("on the connection", frame(kind::DATA, 0, 0, b"x"), Session(ProtocolError)),
            ("on an idle stream", frame(kind::DATA, 0, 3, b"x"), Session(ProtocolError)),
            ("on a stream of the server", frame(kind::DATA, 0, 2, b"x"), Session(ProtocolError)),
            ("after END_STREAM", [ended(1), ended(1)].concat(), Stream(1, StreamClosed)),
            (
                "after the peer's own RST_STREAM",
                [frame(kind::RST_STREAM, 0, 1, &[0; 4]), ended(1)].concat(),
                Stream(1, StreamClosed),
            ),
            ("padded without a length", frame(kind::DATA, flag::PADDED, 1, &[]), Session(FrameSizeError)),
            (
                "padding as long as the frame",
                frame(kind::DATA, flag::PADDED, 1, &[1]),
                Session(ProtocolError),
            ),
            ("padding that fills the frame", frame(kind::DATA, flag::PADDED, 1, &[2, 0, 0]), Nothing),
        ],
    );
    let unanswered = || {
        let mut session = ready(Role::Client, config());
        session.open(&connect_request()).unwrap();
        output(&mut session);
        session
    };
    check(unanswered, vec![("before the response", ended(1), Stream(1, ProtocolError))]);
}

#[test]
fn header_blocks_are_checked() {
    let raw = |flags: u8, stream: u32, payload: &[u8]| frame(kind::HEADERS, flags, stream, payload);
    let part = frame(kind::CONTINUATION, 0, 3, b"");
    let done = frame(kind::CONTINUATION, flag::END_HEADERS, 3, b"");
    let open = raw(0, 3, &block(CONNECT));
    let all = flag::END_HEADERS;
    let list = "x".repeat(100);
    let long: Vec<_> = (0..140).map(|_| ("a", list.as_str())).collect();
    let entry = [0x40, 1, b'a', 0x7f, 0x81, 0x1c];
    let bomb = [&block(CONNECT)[..], &entry, &[b'x'; 3_840], &[0xbe; 12_000]].concat();
    check(
        server_with_stream,
        vec![
            ("on the connection", headers(0, CONNECT), Session(ProtocolError)),
            ("on an even stream", headers(2, CONNECT), Session(ProtocolError)),
            ("padding longer than the frame", raw(all | flag::PADDED, 3, &[9, 0]), Session(ProtocolError)),
            ("padded without a length", raw(all | flag::PADDED, 3, &[]), Session(FrameSizeError)),
            ("a priority cut short", raw(all | flag::PRIORITY, 3, &[0; 4]), Session(FrameSizeError)),
            (
                "with a priority",
                raw(all | flag::PRIORITY, 3, &[&[0; 5], &block(CONNECT)[..]].concat()),
                Nothing,
            ),
            ("an index that does not exist", raw(all, 3, &[0xff, 0x7f]), Session(CompressionError)),
            ("cut within a field", raw(all, 3, &[0, 5, b'a']), Session(CompressionError)),
            (
                "interrupted by PING",
                [open.clone(), frame(kind::PING, 0, 0, &[0; 8])].concat(),
                Session(ProtocolError),
            ),
            (
                "interrupted by an unknown frame",
                [open.clone(), frame(0x77, 0, 3, &[])].concat(),
                Session(ProtocolError),
            ),
            (
                "continued on another stream",
                [open.clone(), frame(kind::CONTINUATION, 4, 5, &[])].concat(),
                Session(ProtocolError),
            ),
            ("continued without a start", done.clone(), Session(ProtocolError)),
            ("continued after its end", [headers(3, CONNECT), done.clone()].concat(), Session(ProtocolError)),
            ("32 CONTINUATIONs", [open.clone(), part.repeat(31), done.clone()].concat(), Nothing),
            ("33 CONTINUATIONs", [open.clone(), part.repeat(32), done].concat(), Session(EnhanceYourCalm)),
            (
                "a block over the limit",
                [open, frame(kind::CONTINUATION, 0, 3, &[0; 16_384])].concat(),
                Session(EnhanceYourCalm),
            ),
            ("a list over the limit", headers(3, &[CONNECT, &long].concat()), Stream(3, EnhanceYourCalm)),
            ("a list that unfolds over the limit", raw(all, 3, &bomb), Stream(3, EnhanceYourCalm)),
        ],
    );
}

#[test]
fn requests_are_checked() {
    let end = flag::END_HEADERS | flag::END_STREAM;
    let trailers = |fields| frame(kind::HEADERS, end, 1, &block(fields));
    check(
        server_with_stream,
        vec![
            ("no authority", headers(3, &CONNECT[..1]), Stream(3, ProtocolError)),
            ("a path", headers(3, &[CONNECT, &[(":path", "/")]].concat()), Stream(3, ProtocolError)),
            ("an upper-case name", headers(3, &[CONNECT, &[("A", "b")]].concat()), Stream(3, ProtocolError)),
            ("a line break", headers(3, &[CONNECT, &[("a", "b\nc")]].concat()), Stream(3, ProtocolError)),
            ("no fields", headers(3, &[]), Stream(3, ProtocolError)),
            ("trailers without END_STREAM", headers(1, &[("a", "b")]), Stream(1, ProtocolError)),
            ("trailers with a pseudo-header", trailers(OK), Stream(1, ProtocolError)),
            ("trailers after END_STREAM", [ended(1), trailers(&[])].concat(), Stream(1, StreamClosed)),
            (
                "a stream that is closed",
                [frame(kind::RST_STREAM, 0, 1, &[0; 4]), headers(1, CONNECT)].concat(),
                Session(StreamClosed),
            ),
            (
                "a stream that was skipped",
                [headers(9, CONNECT), headers(5, CONNECT)].concat(),
                Session(StreamClosed),
            ),
        ],
    );
}

#[test]
fn responses_are_checked() {
    let end = flag::END_HEADERS | flag::END_STREAM;
    let client = || {
        let mut session = ready(Role::Client, config());
        session.open(&connect_request()).unwrap();
        output(&mut session);
        session
    };
    check(
        client,
        vec![
            ("on a stream that is not open", headers(3, OK), Session(ProtocolError)),
            ("on a stream of the server", headers(2, OK), Session(ProtocolError)),
            ("no status", headers(1, &[("a", "b")]), Stream(1, ProtocolError)),
            ("a status that is no number", headers(1, &[(":status", "2x0")]), Stream(1, ProtocolError)),
            ("a request", headers(1, CONNECT), Stream(1, ProtocolError)),
            (
                "an interim response that ends",
                frame(kind::HEADERS, end, 1, &block(&[(":status", "100")])),
                Stream(1, ProtocolError),
            ),
            ("two final responses", [headers(1, OK), headers(1, OK)].concat(), Stream(1, ProtocolError)),
            ("push enabled by a server", setting(id::ENABLE_PUSH, 1), Session(ProtocolError)),
            ("PUSH_PROMISE", frame(kind::PUSH_PROMISE, 4, 1, &[0, 0, 0, 2, 0x88]), Session(ProtocolError)),
        ],
    );
}

#[test]
fn arbitrary_bytes_never_panic() {
    use proptest::prelude::*;
    let kinds = prop_oneof![0u8..10, any::<u8>()];
    let one = (kinds, any::<u8>(), 0u32..8, prop::collection::vec(any::<u8>(), 0..64))
        .prop_map(|(kind, flags, stream, payload)| frame(kind, flags, stream, &payload));
    proptest!(|(frames in prop::collection::vec(one, 0..40), client: bool)| {
        let mut session = if client { client_with_stream() } else { server_with_stream() };
        for bytes in frames {
            if feed(&mut session, &bytes).is_err() {
                break;
            }
        }
    });
}
