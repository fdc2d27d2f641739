//! The rules of a session, one by one.

use super::*;
use crate::h2::settings::id;

#[test]
fn a_client_says_hello_at_once() {
    let mut session = HboneSession::client(config(), 0);
    let mut bytes = Vec::new();
    session.take_output(&mut bytes);
    assert!(bytes.starts_with(PREFACE));
    assert!(!session.has_output());
    assert_eq!(bytes[24..33], [0, 0, 24, 4, 0, 0, 0, 0, 0]);
    assert!(bytes.ends_with(&window_update(0, 200_000 - 65_535)));
}

#[test]
fn a_hello_that_comes_byte_by_byte_is_the_same() {
    let mut session = HboneSession::server(config(), 0);
    let hello = [PREFACE.to_vec(), setting(id::INITIAL_WINDOW_SIZE, 7), headers(1, CONNECT)].concat();
    let events: Vec<_> =
        hello.iter().flat_map(|byte| feed(&mut session, std::slice::from_ref(byte)).unwrap()).collect();
    assert_eq!(events.len(), 2);
    assert!(matches!(events[1], Event::Request { stream: StreamId(1), end_stream: false, .. }));
    session.respond(StreamId(1), &response(200), false);
    assert_eq!(session.sendable(StreamId(1)), 7);
}

#[test]
fn an_authority_with_its_headers_arrives_as_sent() {
    let (mut client, mut server) = (ready(Role::Client, config()), ready(Role::Server, config()));
    let stream = client.open(&connect_request()).unwrap();
    let mut bytes = Vec::new();
    client.take_output(&mut bytes);
    let request = RequestHead {
        method_is_connect: true,
        authority: Some("10.0.0.1:80".to_string()),
        headers: connect_request().headers,
    };
    assert_eq!(feed(&mut server, &bytes).unwrap(), [Event::Request { stream, request, end_stream: false }]);
    server.respond(stream, &response(401), true);
    bytes.clear();
    server.take_output(&mut bytes);
    let events = feed(&mut client, &bytes).unwrap();
    assert_eq!(events, [Event::Response { stream, response: response(401), end_stream: true }]);
}

#[test]
fn another_method_is_reported_and_not_an_error() {
    let mut session = ready(Role::Server, config());
    let get = [(":method", "GET"), (":scheme", "https"), (":path", "/")];
    let bytes = headers(1, &get);
    let events = feed(&mut session, &bytes).unwrap();
    let Event::Request { request, .. } = &events[0] else { panic!("{events:?}") };
    assert!(!request.method_is_connect);
}

#[test]
fn payload_is_delivered_as_slices_of_the_input() {
    let mut session = server_with_stream();
    let bytes = frame(kind::DATA, flag::END_STREAM, 1, b"abcdef");
    let (first, second) = bytes.split_at(12);
    let events = feed(&mut session, first).unwrap();
    let Event::Data { bytes: part, .. } = events[0] else { panic!("{events:?}") };
    assert_eq!(part.as_ptr(), first[9..].as_ptr());
    assert_eq!(part, b"abc");
    assert_eq!(
        feed(&mut session, second).unwrap(),
        [Event::Data { stream: StreamId(1), bytes: b"def" }, Event::End { stream: StreamId(1) }]
    );
}

#[test]
fn padding_is_stripped_and_its_credit_returns() {
    let mut session = server_with_stream();
    let payload = [&[200][..], b"x", &[0; 200]].concat();
    let bytes = frame(kind::DATA, flag::PADDED, 1, &payload);
    for _ in 0..2_000 {
        assert_eq!(feed(&mut session, &bytes).unwrap(), [Event::Data { stream: StreamId(1), bytes: b"x" }]);
        session.consumed(StreamId(1), 1, 0);
    }
    let updates = codes(&mut session, kind::WINDOW_UPDATE);
    for stream in [0, 1] {
        let returned: u32 = updates.iter().filter(|(id, _)| *id == stream).map(|(_, bytes)| bytes).sum();
        assert!(returned > 250_000, "{returned} on {stream}");
    }
}

#[test]
fn trailers_end_a_stream_and_are_dropped() {
    let mut session = server_with_stream();
    let trailers =
        frame(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 1, &block(&[("grpc-status", "0")]));
    assert_eq!(feed(&mut session, &trailers).unwrap(), [Event::End { stream: StreamId(1) }]);
}

#[test]
fn interim_responses_are_skipped() {
    let mut session = ready(Role::Client, config());
    let stream = session.open(&connect_request()).unwrap();
    assert_eq!(feed(&mut session, &headers(1, &[(":status", "103")])).unwrap(), []);
    assert_eq!(
        feed(&mut session, &headers(1, OK)).unwrap(),
        [Event::Response { stream, response: response(200), end_stream: false }]
    );
}

#[test]
fn a_stream_over_the_limit_is_refused_and_the_others_go_on() {
    let mut session = ready(Role::Server, config());
    for stream in [1, 3, 5, 7] {
        assert_eq!(feed(&mut session, &headers(stream, CONNECT)).unwrap().len(), 1);
    }
    assert_eq!(feed(&mut session, &headers(9, CONNECT)).unwrap(), []);
    assert_eq!(codes(&mut session, kind::RST_STREAM), [(9, ErrorCode::RefusedStream as u32)]);
    session.reset(StreamId(1), ErrorCode::Cancel);
    assert_eq!(feed(&mut session, &headers(11, CONNECT)).unwrap().len(), 1);
    assert_eq!(session.streams(), 4);
}

#[test]
fn a_client_keeps_to_the_limit_of_the_server() {
    let mut session = ready(Role::Client, config());
    assert_eq!(session.streams_max(), u32::MAX as usize);
    feed(&mut session, &setting(id::MAX_CONCURRENT_STREAMS, 1)).unwrap();
    let stream = session.open(&connect_request()).unwrap();
    assert_eq!(session.open(&connect_request()), Err(OpenError::StreamLimit));
    session.reset(stream, ErrorCode::Cancel);
    assert_eq!(session.open(&connect_request()), Ok(StreamId(3)));
}

#[test]
fn a_request_larger_than_the_peer_accepts_is_not_sent() {
    let mut session = ready(Role::Client, config());
    feed(&mut session, &setting(id::MAX_HEADER_LIST_SIZE, 100)).unwrap();
    assert_eq!(session.open(&connect_request()), Err(OpenError::TooLarge));
}

#[test]
fn stream_identifiers_run_out() {
    let mut session = ready(Role::Client, config());
    session.newest = STREAM_ID_MAX - 2;
    assert_eq!(session.open(&connect_request()), Ok(StreamId(STREAM_ID_MAX)));
    assert_eq!(session.open(&connect_request()), Err(OpenError::Exhausted));
}

#[test]
fn a_request_in_many_frames_is_one_block() {
    let mut session = ready(Role::Server, config());
    let bytes = block(CONNECT);
    let (first, second) = bytes.split_at(5);
    assert_eq!(feed(&mut session, &frame(kind::HEADERS, flag::END_STREAM, 1, first)).unwrap(), []);
    assert_eq!(feed(&mut session, &frame(kind::CONTINUATION, 0, 1, &second[..3])).unwrap(), []);
    let last = frame(kind::CONTINUATION, flag::END_HEADERS, 1, &second[3..]);
    let events = feed(&mut session, &last).unwrap();
    assert!(matches!(events[0], Event::Request { stream: StreamId(1), end_stream: true, .. }));
}

#[test]
fn frames_that_cross_a_reset_are_swallowed_and_their_credit_returns() {
    let mut session = server_with_stream();
    session.reset(StreamId(1), ErrorCode::Cancel);
    assert!(!session.is_open(StreamId(1)));
    let bytes = [
        frame(kind::DATA, 0, 1, &[0; 10_000]),
        window_update(1, 5),
        frame(kind::DATA, flag::END_STREAM, 1, &[]),
        frame(kind::RST_STREAM, 0, 1, &[0; 4]),
    ]
    .concat();
    for _ in 0..100 {
        assert_eq!(feed(&mut session, &bytes).unwrap(), []);
    }
    assert_eq!(codes(&mut session, kind::RST_STREAM), [(1, ErrorCode::Cancel as u32)]);
}

#[test]
fn a_reset_in_the_middle_of_a_frame_swallows_the_rest_of_it() {
    let mut session = server_with_stream();
    let bytes = frame(kind::DATA, flag::PADDED, 1, &[&[5][..], &[1; 100], &[0; 5]].concat());
    assert_eq!(feed(&mut session, &bytes[..50]).unwrap().len(), 1);
    session.reset(StreamId(1), ErrorCode::Cancel);
    assert_eq!(feed(&mut session, &bytes[50..]).unwrap(), []);
    assert_eq!(session.receive_window.undelivered(), 0);
    assert_eq!(session.receive_window.outstanding(), 0);
}

#[test]
fn a_stale_stream_does_nothing() {
    let mut session = client_with_stream();
    let stream = StreamId(1);
    feed(&mut session, &frame(kind::DATA, 0, 1, b"abc")).unwrap();
    session.reset(stream, ErrorCode::Cancel);
    output(&mut session);
    assert_eq!(session.sendable(stream), 0);
    session.consumed(stream, 3, 0);
    session.reset(stream, ErrorCode::Cancel);
    session.respond(stream, &response(200), false);
    assert!(!session.has_output());
}

#[test]
fn a_closed_stream_holds_credit_until_its_bytes_are_consumed() {
    let mut session = server_with_stream();
    feed(&mut session, &frame(kind::DATA, flag::END_STREAM, 1, b"abc")).unwrap();
    session.data(StreamId(1), 0, true);
    assert!(!session.is_open(StreamId(1)));
    assert_eq!((session.streams(), session.streams.len()), (0, 1));
    session.consumed(StreamId(1), 2, 0);
    assert_eq!(session.receive_window.outstanding(), 1);
    session.consumed(StreamId(1), 1, 0);
    assert_eq!(session.streams.len(), 0);
}

#[test]
fn reset_of_a_closed_stream_returns_its_credit_and_sends_nothing() {
    let mut session = server_with_stream();
    feed(&mut session, &frame(kind::DATA, flag::END_STREAM, 1, b"abc")).unwrap();
    session.data(StreamId(1), 0, true);
    session.reset(StreamId(1), ErrorCode::Cancel);
    assert_eq!(session.receive_window.outstanding(), 0);
    assert!(!session.has_output());
}

#[test]
fn a_smaller_initial_window_may_make_a_window_negative() {
    let mut session = client_with_stream();
    let stream = StreamId(1);
    session.data(stream, 10_000, false);
    feed(&mut session, &setting(id::INITIAL_WINDOW_SIZE, 100)).unwrap();
    assert_eq!(session.sendable(stream), 0);
    feed(&mut session, &window_update(1, 9_900)).unwrap();
    assert_eq!((session.sendable(stream), session.poll_writable()), (0, None));
    feed(&mut session, &window_update(1, 1)).unwrap();
    assert_eq!((session.sendable(stream), session.poll_writable()), (1, Some(stream)));
    assert_eq!(session.poll_writable(), None);
}

#[test]
fn an_empty_connection_window_wakes_every_stream_once() {
    let mut session = ready(Role::Client, config());
    feed(&mut session, &setting(id::INITIAL_WINDOW_SIZE, 1_000_000)).unwrap();
    for stream in [1, 3, 5] {
        session.open(&connect_request()).unwrap();
        feed(&mut session, &headers(stream, OK)).unwrap();
    }
    while session.sendable(StreamId(1)) > 0 {
        session.data(StreamId(1), session.sendable(StreamId(1)), false);
    }
    assert_eq!(session.poll_writable(), None);
    feed(&mut session, &window_update(0, 10)).unwrap();
    let mut woken: Vec<_> = std::iter::from_fn(|| session.poll_writable()).collect();
    woken.sort();
    assert_eq!(woken, [StreamId(1), StreamId(3), StreamId(5)]);
    feed(&mut session, &window_update(0, 10)).unwrap();
    assert_eq!(session.poll_writable(), None);
}

#[test]
fn sendable_never_exceeds_the_largest_frame_of_the_peer() {
    let mut session = client_with_stream();
    assert_eq!(session.sendable(StreamId(1)), 16_384);
    feed(&mut session, &setting(id::MAX_FRAME_SIZE, 40_000)).unwrap();
    assert_eq!(session.sendable(StreamId(1)), 40_000);
}

#[test]
fn a_server_sends_nothing_before_it_answers() {
    let mut session = ready(Role::Server, config());
    feed(&mut session, &headers(1, CONNECT)).unwrap();
    assert_eq!(session.sendable(StreamId(1)), 0);
    session.respond(StreamId(1), &response(200), false);
    assert!(session.sendable(StreamId(1)) > 0);
}

#[test]
fn a_stream_of_a_client_that_does_not_know_our_settings_has_the_default_window() {
    let small = SessionConfig { stream_window_initial: 10, stream_window_max: 10, ..config() };
    let mut session = HboneSession::server(small, 0);
    let hello = [PREFACE.to_vec(), frame(kind::SETTINGS, 0, 0, &[]), headers(1, CONNECT)].concat();
    feed(&mut session, &hello).unwrap();
    session.respond(StreamId(1), &response(200), false);
    assert_eq!(feed(&mut session, &frame(kind::DATA, 0, 1, &[0; 1_000])).unwrap().len(), 1);
    feed(&mut session, &frame(kind::SETTINGS, flag::ACK, 0, &[])).unwrap();
    output(&mut session);
    let late = frame(kind::DATA, 0, 1, &[0]);
    let reset = Event::Reset { stream: StreamId(1), code: ErrorCode::FlowControlError };
    assert_eq!(feed(&mut session, &late).unwrap(), [reset]);
}

#[test]
fn a_window_grows_while_the_application_keeps_up() {
    let bytes = frame(kind::DATA, 0, 1, &[0; 10_000]);
    for (pause_ms, target) in [(1, 1_000_000), (10, 400_000), (100, 100_000)] {
        let mut session = server_with_stream();
        for turn in 0..300 {
            feed_at(&mut session, &bytes, turn * pause_ms).unwrap();
            session.consumed(StreamId(1), 10_000, turn * pause_ms);
        }
        let window = &session.streams.find(StreamId(1)).unwrap().receive_window;
        assert_eq!(window.target(), target, "10 000 bytes each {pause_ms} ms");
    }
}

#[test]
fn a_drain_serves_what_was_accepted_and_ignores_the_rest() {
    let mut session = server_with_stream();
    session.begin_drain();
    let frames = output(&mut session);
    assert_eq!(frames[0].1, [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    assert_eq!(feed(&mut session, &headers(3, CONNECT)).unwrap().len(), 1, "announced, but not final");
    feed(&mut session, &frame(kind::PING, flag::ACK, 0, &frames[1].1)).unwrap();
    assert_eq!(output(&mut session)[0].1, [0, 0, 0, 3, 0, 0, 0, 0]);
    let late = [headers(5, CONNECT), frame(kind::DATA, 0, 5, b"abc"), window_update(5, 1)].concat();
    assert_eq!(feed(&mut session, &late).unwrap(), []);
    assert_eq!(feed(&mut session, &frame(kind::DATA, 0, 1, b"abc")).unwrap().len(), 1);
    session.respond(StreamId(3), &response(200), false);
    assert_eq!(session.sendable(StreamId(3)), 16_384);
}

#[test]
fn a_drain_is_complete_once_the_client_knows_and_no_stream_is_open() {
    let mut session = server_with_stream();
    session.begin_drain();
    session.reset(StreamId(1), ErrorCode::Cancel);
    assert!(!session.is_drained(), "a request may be on its way until the client has answered");
    session.finish_drain();
    assert!(session.is_drained());
}

#[test]
fn a_drain_can_be_finished_without_the_peer() {
    let mut session = server_with_stream();
    session.begin_drain();
    session.finish_drain();
    session.finish_drain();
    session.begin_drain();
    let lasts: Vec<_> = output(&mut session).into_iter().filter(|(h, _)| h.kind == kind::GOAWAY).collect();
    assert_eq!(lasts.len(), 2);
    assert_eq!(lasts[1].1, [0, 0, 0, 1, 0, 0, 0, 0]);
}

#[test]
fn a_goaway_removes_the_streams_above_its_last() {
    let mut session = client_with_stream();
    session.open(&connect_request()).unwrap();
    let goaway = frame(kind::GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0, b'd', b'e', b'b', b'u', b'g']);
    let event = Event::GoAway { last_stream: StreamId(1), code: ErrorCode::NoError };
    assert_eq!(feed(&mut session, &goaway).unwrap(), [event]);
    assert!(session.is_open(StreamId(1)) && !session.is_open(StreamId(3)));
    assert_eq!(session.open(&connect_request()), Err(OpenError::GoingAway));
    assert_eq!(feed(&mut session, &frame(kind::DATA, 0, 1, b"abc")).unwrap().len(), 1);
}

#[test]
fn a_client_that_drains_opens_nothing_more() {
    let mut session = client_with_stream();
    session.begin_drain();
    assert_eq!(session.open(&connect_request()), Err(OpenError::GoingAway));
    assert!(session.sendable(StreamId(1)) > 0);
}

#[test]
fn close_discards_all_input() {
    let mut session = server_with_stream();
    session.close(ErrorCode::NoError);
    assert_eq!(feed(&mut session, b"anything at all").unwrap(), []);
    assert_eq!(session.poll_timeout(), None);
    assert_eq!(output(&mut session)[0].1, [0, 0, 0, 1, 0, 0, 0, 0]);
}

#[test]
fn a_ping_is_answered_with_its_own_bytes() {
    let mut session = server_with_stream();
    feed(&mut session, &frame(kind::PING, 0, 0, b"01234567")).unwrap();
    let frames = output(&mut session);
    assert_eq!((frames[0].0.flags, &frames[0].1[..]), (flag::ACK, &b"01234567"[..]));
}

#[test]
fn a_peer_that_does_not_answer_ping_is_dead() {
    let mut session = server_with_stream();
    assert_eq!(session.poll_timeout(), Some(10_000));
    session.handle_timeout(9_999).unwrap();
    assert!(!session.has_output());
    session.handle_timeout(10_000).unwrap();
    assert_eq!(session.poll_timeout(), Some(30_000));
    assert_eq!(session.handle_timeout(30_000), Err(SessionError::PingTimeout));
    assert_eq!(output(&mut session).last().unwrap().0.kind, kind::GOAWAY);
    assert_eq!(session.receive(&mut &b"x"[..], 30_000), Err(SessionError::PingTimeout));
}

#[test]
fn small_frames_are_held_until_the_peer_has_answered() {
    let mut session = client_with_stream();
    for _ in 0..200 {
        if !session.holds_small() {
            session.data(StreamId(1), 1, false);
        }
    }
    assert!(session.holds_small());
    let pings: Vec<_> = output(&mut session).into_iter().filter(|(h, _)| h.kind == kind::PING).collect();
    assert_eq!(pings.len(), 1);
    feed(&mut session, &frame(kind::PING, flag::ACK, 0, &pings[0].1)).unwrap();
    assert!(!session.holds_small());
}

type FloodCase<'a> = (Flood, &'a dyn Fn(u32) -> Vec<u8>);

fn flood(session: &mut HboneSession, bytes: impl Fn(u32) -> Vec<u8>) -> Option<SessionError> {
    let mut sink = Vec::new();
    (0..100_000).find_map(|turn| {
        sink.clear();
        session.take_output(&mut sink);
        feed(session, &bytes(turn)).err()
    })
}

#[test]
fn floods_end_the_session_with_enhance_your_calm() {
    let reset = |turn: u32| {
        let id = 2 * turn + 3;
        [headers(id, CONNECT), frame(kind::RST_STREAM, 0, id, &[0, 0, 0, 8])].concat()
    };
    let malformed = |turn: u32| headers(2 * turn + 3, &[(":method", "CONNECT")]);
    let cases: [FloodCase<'_>; 8] = [
        (Flood::Resets, &reset),
        (Flood::StreamErrors, &malformed),
        (Flood::Pings, &|_| frame(kind::PING, 0, 0, &[0; 8])),
        (Flood::Settings, &|_| frame(kind::SETTINGS, 0, 0, &[])),
        (Flood::Idle, &|_| frame(kind::DATA, 0, 1, &[])),
        (Flood::Idle, &|_| frame(kind::DATA, flag::PADDED, 1, &[1, 0])),
        (Flood::Idle, &|_| frame(0x77, 0, 9, b"abc")),
        (Flood::Idle, &|_| frame(kind::PRIORITY, 0, 1, &[0; 5])),
    ];
    for (kind, bytes) in cases {
        let error = flood(&mut server_with_stream(), bytes);
        assert_eq!(error, Some(SessionError::Flood(kind)));
        assert_eq!(error.unwrap().code(), ErrorCode::EnhanceYourCalm);
    }
    let interim = |_| headers(1, &[(":status", "100")]);
    let mut client = ready(Role::Client, config());
    client.open(&connect_request()).unwrap();
    assert_eq!(flood(&mut client, interim), Some(SessionError::Flood(Flood::Idle)));
}

#[test]
fn answers_that_nobody_reads_are_bounded() {
    let mut session = server_with_stream();
    let pings = frame(kind::PING, 0, 0, &[0; 8]).repeat(1_000);
    let error = (0..100u64).find_map(|second| feed_at(&mut session, &pings, second * 1_000).err());
    assert_eq!(error, Some(SessionError::Flood(Flood::Output)));
}

#[test]
fn resets_of_answered_streams_are_no_flood() {
    let mut session = ready(Role::Server, config());
    for stream in (1..20_001).step_by(2) {
        feed(&mut session, &headers(stream, CONNECT)).unwrap();
        session.respond(StreamId(stream), &response(200), false);
        feed(&mut session, &frame(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8])).unwrap();
        output(&mut session);
    }
    assert_eq!(session.streams.len(), 0);
}
