//! A session fed arbitrary bytes, in both roles and in arbitrary pieces. The invariants of the session are asserted
//! after each call, and it must never panic.

use halo_core::hbone::{
    ConnectRequest, ConnectResponse, ErrorCode, Event, HboneSession, SessionConfig, StreamId,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

fn config() -> SessionConfig {
    SessionConfig {
        streams_max: 4,
        stream_window_initial: 1_000,
        stream_window_max: 10_000,
        connection_window: 65_535,
        frame_size_max: 16_384,
        header_list_max: 4_096,
        ping_interval_ms: 10,
        ping_timeout_ms: 20,
    }
}

/// Acts on events as a shard would; `choice` varies it.
fn act(session: &mut HboneSession, event: Event<'_>, choice: u8) {
    match event {
        Event::Request { stream, .. } => {
            let status = if choice & 1 == 0 { 200 } else { 503 };
            session.respond(stream, &ConnectResponse { status, headers: Vec::new() }, choice & 3 == 3);
        }
        Event::Data { stream, bytes } if choice & 4 == 0 => session.consumed(stream, bytes.len(), 0),
        Event::Data { stream, .. } if choice & 8 != 0 => session.reset(stream, ErrorCode::Cancel),
        Event::End { stream } if session.is_open(stream) => send(session, stream, choice),
        _ => {}
    }
}

fn send(session: &mut HboneSession, stream: StreamId, choice: u8) {
    let len = session.sendable(stream).min(usize::from(choice));
    if len > 0 {
        session.data(stream, len, choice & 16 == 0);
    }
}

/// Feeds pieces; the first byte of each says how long it is and what happens behind it.
fn feed(mut session: HboneSession, hello: &[&[u8]], mut data: &[u8]) {
    for mut bytes in hello.iter().copied() {
        while let Ok(Some(_)) = session.receive(&mut bytes, 0) {}
    }
    let request = ConnectRequest { authority: "10.0.0.1:80".to_string(), headers: Vec::new() };
    let is_client = hello.len() == 1;
    let mut out = Vec::new();
    let mut now = 0;
    while let Some((choice, rest)) = data.split_first() {
        let (mut piece, rest) = rest.split_at(rest.len().min(usize::from(*choice) + 1));
        data = rest;
        now += u64::from(choice >> 6);
        if is_client && choice & 1 == 1 {
            let _ = session.open(&request);
        }
        loop {
            match session.receive(&mut piece, now) {
                Ok(Some(event)) => act(&mut session, event, *choice),
                Ok(None) => break,
                Err(error) => {
                    assert!(session.has_output(), "no GOAWAY for {error}");
                    return;
                }
            }
        }
        assert!(piece.is_empty());
        while let Some(stream) = session.poll_writable() {
            send(&mut session, stream, *choice);
        }
        if choice & 32 != 0 {
            session.begin_drain();
        }
        if session.handle_timeout(now).is_err() {
            return;
        }
        session.take_output(&mut out);
        out.clear();
    }
}

/// Runs one input as a server and as a client.
pub fn run(data: &[u8]) {
    feed(HboneSession::server(config(), 0), &[PREFACE, SETTINGS], data);
    feed(HboneSession::client(config(), 0), &[SETTINGS], data);
}
