//! A client and a server over a link that splits, delays and cuts, on a virtual clock.
//!
//! The oracle: on each stream and in each direction, what arrives is a prefix of what was sent, and all of it if the
//! direction ended in order. Each session also checks that the other stays within its windows. An endpoint sends on a
//! stream that was not sendable only after `poll_writable` named it, so that a lost wake-up stops the run.
//! `HALO_SEED=<n>` replays one seed.

use super::*;
use crate::h2::stream::ReceiveState;
use std::collections::{BTreeMap, VecDeque};

/// A xorshift generator: the test needs repeatable choices, not good ones.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound.max(1)
    }

    fn one_in(&mut self, odds: usize) -> bool {
        self.below(odds) == 0
    }

    fn choose<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// The byte at a place of what `from_client` sends on a stream.
fn pattern(stream: StreamId, from_client: bool, place: usize) -> u8 {
    (stream.0 as usize * 31 + usize::from(from_client) * 7 + place) as u8
}

#[derive(Default)]
struct Flow {
    to_send: usize,
    sent: usize,
    end_sent: bool,
    blocked: bool,
    received: usize,
    unconsumed: usize,
    end_received: bool,
    reset: bool,
}

struct Endpoint {
    session: HboneSession,
    is_client: bool,
    flows: BTreeMap<StreamId, Flow>,
    to_open: usize,
    /// Bytes of a flow at most: fewer where a window is so small that each takes a round trip.
    len_max: usize,
    /// Output and when it arrives.
    link: VecDeque<(u64, Vec<u8>)>,
    refused_above: Option<StreamId>,
}

impl Endpoint {
    fn new(is_client: bool, random: &mut Random) -> Self {
        let stream_window_initial = random.choose(&[1, 100, 5_000, 65_535, 300_000]);
        let config = SessionConfig {
            streams_max: random.choose(&[1, 3, 10, 100]),
            stream_window_initial,
            stream_window_max: stream_window_initial.saturating_mul(random.choose(&[1, 4])),
            connection_window: random.choose(&[65_535, 100_000, 1_000_000]),
            frame_size_max: random.choose(&[16_384, 1 << 20]),
            header_list_max: 16_384,
            ping_interval_ms: random.choose(&[50, 10_000]),
            ping_timeout_ms: 10_000,
        };
        let role = if is_client { Role::Client } else { Role::Server };
        Self {
            session: HboneSession::new(role, config, 0),
            is_client,
            flows: BTreeMap::new(),
            to_open: if is_client { random.below(40) } else { 0 },
            len_max: 40_000.min(stream_window_initial as usize * 100),
            link: VecDeque::new(),
            refused_above: None,
        }
    }

    fn flow(&self, random: &mut Random) -> Flow {
        let bound = random.choose(&[1, 10, 3_000, 40_000]).min(self.len_max);
        Flow { to_send: random.below(bound), ..Flow::default() }
    }

    /// Gives bytes to the session in random pieces, and acts on the events.
    fn deliver(&mut self, bytes: &[u8], now: u64, random: &mut Random) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let bound = random.choose(&[1, 20, 1_000, 100_000]);
            let (mut piece, tail) = rest.split_at((1 + random.below(bound)).min(rest.len()));
            rest = tail;
            loop {
                match self.session.receive(&mut piece, now) {
                    Ok(Some(event)) => self.act(event, random),
                    Ok(None) => break,
                    Err(error) => panic!("client {}: {error}", self.is_client),
                }
            }
            assert!(piece.is_empty());
        }
    }

    fn act(&mut self, event: Event<'_>, random: &mut Random) {
        match event {
            Event::Request { stream, request, end_stream } => {
                assert!(request.method_is_connect && !end_stream);
                self.answer(stream, random);
            }
            Event::Response { stream, response, end_stream } => {
                let flow = self.flows.get_mut(&stream).unwrap();
                flow.end_received |= end_stream;
                assert_eq!(end_stream, response.status != 200);
            }
            Event::Data { stream, bytes } => {
                let flow = self.flows.get_mut(&stream).unwrap();
                assert!(!flow.reset && !flow.end_received);
                for byte in bytes {
                    assert_eq!(*byte, pattern(stream, !self.is_client, flow.received));
                    flow.received += 1;
                }
                flow.unconsumed += bytes.len();
            }
            Event::End { stream } => {
                let flow = self.flows.get_mut(&stream).unwrap();
                assert!(!flow.end_received && !flow.reset);
                flow.end_received = true;
            }
            Event::Reset { stream, .. } => self.flows.get_mut(&stream).unwrap().reset = true,
            Event::Settings => {}
            Event::GoAway { last_stream, code } => {
                assert_eq!(code, ErrorCode::NoError);
                self.refused_above = Some(last_stream);
                self.to_open = 0;
                self.flows.retain(|stream, _| *stream <= last_stream);
            }
        }
    }

    fn answer(&mut self, stream: StreamId, random: &mut Random) {
        let mut flow = self.flow(random);
        match random.below(10) {
            0 => {
                self.session.respond(stream, &response(503), true);
                flow.end_sent = true;
                flow.to_send = 0;
            }
            1 => {
                self.session.reset(stream, ErrorCode::Cancel);
                flow.reset = true;
            }
            _ => self.session.respond(stream, &response(200), false),
        }
        self.flows.insert(stream, flow);
    }

    fn turn(&mut self, now: u64, random: &mut Random) {
        while self.to_open > 0 && !random.one_in(4) {
            match self.session.open(&connect_request()) {
                Ok(stream) => {
                    self.flows.insert(stream, self.flow(random));
                    self.to_open -= 1;
                }
                Err(OpenError::StreamLimit) => break,
                Err(error) => panic!("{error}"),
            }
        }
        for (stream, flow) in &mut self.flows {
            let taken = if random.one_in(3) { flow.unconsumed } else { random.below(flow.unconsumed + 1) };
            self.session.consumed(*stream, taken, now);
            flow.unconsumed -= taken;
        }
        while let Some(stream) = self.session.poll_writable() {
            assert!(self.session.sendable(stream) > 0);
            self.flows.get_mut(&stream).unwrap().blocked = false;
        }
        let mut out = Vec::new();
        self.session.take_output(&mut out);
        for (stream, flow) in &mut self.flows {
            send(&mut self.session, (*stream, flow), self.is_client, (&mut out, random));
        }
        // Only for a while: a stream that is stuck must stay so.
        if now < 1_000 && random.one_in(200) {
            let open = self.flows.iter_mut().find(|(_, flow)| !flow.reset && !flow.end_sent);
            if let Some((stream, flow)) = open {
                self.session.reset(*stream, ErrorCode::ConnectError);
                flow.reset = true;
            }
        }
        self.session.take_output(&mut out);
        let delay = random.choose(&[0, 1, 5, 30]);
        let arrives = self.link.back().map_or(0, |(at, _)| *at).max(now + delay);
        self.link.push_back((arrives, out));
        self.session.handle_timeout(now).unwrap();
    }

    fn is_done(&self) -> bool {
        self.to_open == 0 && self.flows.values().all(|flow| flow.reset || flow.end_sent && flow.end_received)
    }
}

/// Sends a random amount on one stream.
fn send(
    session: &mut HboneSession,
    (stream, flow): (StreamId, &mut Flow),
    is_client: bool,
    (out, random): (&mut Vec<u8>, &mut Random),
) {
    let answered = session.streams.find(stream).is_some_and(|found| found.receive != ReceiveState::NoHead);
    if flow.blocked || flow.reset || flow.end_sent || !answered {
        return;
    }
    let sendable = session.sendable(stream);
    let left = flow.to_send - flow.sent;
    let count = left.min(sendable).min(1 + random.below(20_000));
    let end = count == left && random.one_in(2);
    if count > 0 || end {
        out.extend_from_slice(&session.data(stream, count, end));
        out.extend((flow.sent..flow.sent + count).map(|place| pattern(stream, is_client, place)));
        flow.sent += count;
        flow.end_sent = end;
    } else {
        flow.blocked = left > 0;
    }
}

fn run(seed: u64) {
    let random = &mut Random::new(seed);
    let mut ends = [Endpoint::new(true, random), Endpoint::new(false, random)];
    let len_max = ends[0].len_max.min(ends[1].len_max);
    ends.iter_mut().for_each(|end| end.len_max = len_max);
    let cut = if random.one_in(8) { random.below(2_000) as u64 } else { u64::MAX };
    let drain = if random.one_in(4) { random.below(300) as u64 } else { u64::MAX };
    for now in 0..cut.min(60_000) {
        if now == drain {
            ends[1].session.begin_drain();
        }
        for here in 0..2 {
            while let Some((_, bytes)) = ends[1 - here].link.pop_front_if(|(at, _)| *at <= now) {
                ends[here].deliver(&bytes, now, random);
            }
            ends[here].turn(now, random);
        }
        let quiet = ends.iter().all(|end| end.link.iter().all(|(_, bytes)| bytes.is_empty()));
        if quiet && ends.iter().all(Endpoint::is_done) {
            return check_finished(ends, now > drain.saturating_add(500));
        }
    }
    assert!(cut != u64::MAX, "the run is stuck");
}

/// Nothing is lost, and nothing is left behind.
fn check_finished(ends: [Endpoint; 2], drained: bool) {
    let [client, server] = ends;
    assert_eq!((client.session.streams(), server.session.streams()), (0, 0));
    for (stream, sent) in &client.flows {
        let Some(received) = server.flows.get(stream) else {
            assert!(sent.reset, "{stream:?} never arrived");
            continue;
        };
        if !sent.reset && !received.reset {
            assert_eq!(sent.sent, received.received);
            assert_eq!(received.sent, sent.received);
            assert_eq!((sent.sent, received.sent), (sent.to_send, received.to_send));
        }
    }
    if drained {
        assert!(client.refused_above.is_some_and(|last| last.0 < STREAM_ID_MAX));
    }
}

#[test]
fn a_pair_over_a_bad_link_loses_nothing() {
    let seeds = match std::env::var("HALO_SEED") {
        Ok(seed) => seed.parse().map(|seed| seed..seed + 1).unwrap(),
        Err(_) => 0..256,
    };
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| run(seed));
        assert!(outcome.is_ok(), "failed; replay with HALO_SEED={seed}");
    }
}
