//! Tests of the session: rules one by one, a corpus of malformed input, a simulated pair, and the `h2` crate.

mod corpus;
mod interop;
mod pair;
mod rules;

use super::*;
use crate::h2::frame::{FrameHeader, PREFACE, flag, kind};

/// Small enough to reach every limit quickly.
fn config() -> SessionConfig {
    SessionConfig {
        streams_max: 4,
        stream_window_initial: 100_000,
        stream_window_max: 1_000_000,
        connection_window: 200_000,
        frame_size_max: 16_384,
        header_list_max: 16_384,
        ping_interval_ms: 10_000,
        ping_timeout_ms: 20_000,
    }
}

/// The bytes of one frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader { length: payload.len() as u32, kind, flags, stream };
    [&header.encode()[..], payload].concat()
}

/// A header block of plain literals.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.extend_from_slice(&[0, name.len() as u8]);
        block.extend_from_slice(name.as_bytes());
        block.push(value.len() as u8);
        block.extend_from_slice(value.as_bytes());
    }
    block
}

const CONNECT: &[(&str, &str)] = &[(":method", "CONNECT"), (":authority", "10.0.0.1:80")];
const OK: &[(&str, &str)] = &[(":status", "200")];

fn headers(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(kind::HEADERS, flag::END_HEADERS, stream, &block(fields))
}

fn connect_request() -> ConnectRequest {
    let headers = vec![("baggage".to_string(), "k8s.cluster.name=Kubernetes".to_string())];
    ConnectRequest { authority: "10.0.0.1:80".to_string(), headers }
}

fn response(status: u16) -> ConnectResponse {
    ConnectResponse { status, headers: Vec::new() }
}

/// All events of `bytes`.
fn feed<'a>(session: &mut HboneSession, bytes: &'a [u8]) -> Result<Vec<Event<'a>>, SessionError> {
    feed_at(session, bytes, 0)
}

fn feed_at<'a>(
    session: &mut HboneSession,
    bytes: &'a [u8],
    now_ms: u64,
) -> Result<Vec<Event<'a>>, SessionError> {
    let mut input = bytes;
    let mut events = Vec::new();
    while let Some(event) = session.receive(&mut input, now_ms)? {
        events.push(event);
    }
    assert!(input.is_empty(), "input is left although nothing more is reported");
    Ok(events)
}

/// The frames that the session has queued.
fn output(session: &mut HboneSession) -> Vec<(FrameHeader, Vec<u8>)> {
    let mut bytes = Vec::new();
    session.take_output(&mut bytes);
    let mut rest = bytes.strip_prefix(PREFACE).unwrap_or(&bytes);
    let mut frames = Vec::new();
    while let Some((header, tail)) = rest.split_first_chunk() {
        let header = FrameHeader::parse(header);
        let (payload, tail) = tail.split_at(header.length as usize);
        frames.push((header, payload.to_vec()));
        rest = tail;
    }
    assert!(rest.is_empty());
    frames
}

/// The codes of the queued frames of a kind, with their streams.
fn codes(session: &mut HboneSession, wanted: u8) -> Vec<(u32, u32)> {
    let frames = output(session).into_iter().filter(|(header, _)| header.kind == wanted);
    let code = |payload: &[u8]| u32::from_be_bytes(payload[payload.len() - 4..].try_into().unwrap());
    frames.map(|(header, payload)| (header.stream, code(&payload))).collect()
}

/// A session whose handshake is done, with nothing queued.
fn ready(role: Role, config: SessionConfig) -> HboneSession {
    let mut session = HboneSession::new(role, config, 0);
    let mut hello = if role == Role::Server { PREFACE.to_vec() } else { Vec::new() };
    hello.extend(frame(kind::SETTINGS, 0, 0, &[]));
    hello.extend(frame(kind::SETTINGS, flag::ACK, 0, &[]));
    assert_eq!(feed(&mut session, &hello).unwrap(), [Event::Settings]);
    output(&mut session);
    session
}

/// A server with stream 1 open and answered.
fn server_with_stream() -> HboneSession {
    let mut session = ready(Role::Server, config());
    feed(&mut session, &headers(1, CONNECT)).unwrap();
    session.respond(StreamId(1), &response(200), false);
    output(&mut session);
    session
}

/// A client with stream 1 open and answered.
fn client_with_stream() -> HboneSession {
    let mut session = ready(Role::Client, config());
    session.open(&connect_request()).unwrap();
    feed(&mut session, &headers(1, OK)).unwrap();
    output(&mut session);
    session
}

fn window_update(stream: u32, increment: u32) -> Vec<u8> {
    frame(kind::WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    frame(kind::SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
}
