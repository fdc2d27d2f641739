//! An HBONE client: a session on a link.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use halo_core::hbone::{ConnectRequest, ErrorCode, Event, HboneSession, SessionConfig, StreamId};

use crate::link::{Arrived, Link};
use crate::rig::{DEADLINE, Rig};

/// An event, or the connection's end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Answer(StreamId, u16),
    Data(StreamId, Vec<u8>),
    End(StreamId),
    Reset(StreamId, ErrorCode),
    GoAway(u32),
    /// close_notify.
    Closed,
    /// RST, or FIN without close_notify.
    Cut,
}

/// A client of the pod.
pub(crate) struct Peer {
    link: Link,
    pub(crate) session: HboneSession,
    /// Whether received bytes are credited at once.
    pub(crate) credits: bool,
    begun: Instant,
    seen: VecDeque<Seen>,
}

impl Peer {
    /// Opens a tunnel.
    pub(crate) fn dial(rig: &Rig) -> Self {
        Self::on(Link::dial(rig))
    }

    /// Opens a tunnel on a connection.
    pub(crate) fn on(link: Link) -> Self {
        let config = SessionConfig {
            streams_max: 0,
            stream_window_initial: 64 * 1024,
            stream_window_max: 256 * 1024,
            connection_window: 1024 * 1024,
            frame_size_max: 16_384,
            header_list_max: 16 * 1024,
            ping_interval_ms: 0,
            ping_timeout_ms: 0,
        };
        let session = HboneSession::client(config, 0);
        Self { link, session, credits: true, begun: Instant::now(), seen: VecDeque::new() }
    }

    /// Opens a tunnel with one stream to a port, which must be admitted.
    pub(crate) fn connect(rig: &Rig, authority: impl ToString) -> (Self, StreamId) {
        let mut peer = Self::dial(rig);
        let (stream, status) = peer.ask(authority);
        assert_eq!(status, 200);
        (peer, stream)
    }

    /// Asks for a stream, and waits for the status of its answer.
    pub(crate) fn ask(&mut self, authority: impl ToString) -> (StreamId, u16) {
        let stream = self.request(authority);
        (stream, self.answer(stream))
    }

    /// Asks for a stream.
    pub(crate) fn request(&mut self, authority: impl ToString) -> StreamId {
        let request = ConnectRequest { authority: authority.to_string(), headers: Vec::new() };
        let stream = self.session.open(&request).unwrap();
        self.flush();
        stream
    }

    /// Waits for the status of the answer.
    pub(crate) fn answer(&mut self, stream: StreamId) -> u16 {
        self.until("an answer", |seen| match seen {
            Seen::Answer(id, status) if *id == stream => Some(*status),
            _ => None,
        })
    }

    /// Sends as much of `bytes` as the windows allow now, and says how much that was.
    pub(crate) fn send_some(&mut self, stream: StreamId, bytes: &[u8]) -> usize {
        let length = self.session.sendable(stream).min(bytes.len());
        if length > 0 {
            let header = self.session.data(stream, length, false);
            self.link.seal(&[&header, &bytes[..length]]);
            self.flush();
        }
        length
    }

    /// Sends all of `bytes`, waiting for credit where it must.
    pub(crate) fn send(&mut self, stream: StreamId, mut bytes: &[u8]) {
        let begin = Instant::now();
        while !bytes.is_empty() {
            let sent = self.send_some(stream, bytes);
            bytes = &bytes[sent..];
            if sent == 0 {
                self.pump_since(begin, "credit");
            }
        }
    }

    /// Ends our direction of the stream.
    pub(crate) fn end(&mut self, stream: StreamId) {
        let header = self.session.data(stream, 0, true);
        self.link.seal(&[&header]);
        self.flush();
    }

    /// Sends the last bytes of the stream and closes the tunnel, all at once.
    pub(crate) fn send_last_and_close(&mut self, stream: StreamId, bytes: &[u8]) {
        let header = self.session.data(stream, bytes.len(), true);
        self.link.seal(&[&header, bytes]);
        self.session.close(ErrorCode::NoError);
        let mut goaway = Vec::new();
        self.session.take_output(&mut goaway);
        self.link.seal(&[&goaway]);
        self.link.close();
        assert!(self.link.flush(DEADLINE), "the shard does not read");
    }

    /// Reads exactly so many bytes of the stream.
    pub(crate) fn read(&mut self, stream: StreamId, length: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < length {
            let more = self.until("payload", |seen| match seen {
                Seen::Data(id, bytes) if *id == stream => Some(std::mem::take(bytes)),
                Seen::Reset(id, _) if *id == stream => panic!("{seen:?} instead of payload"),
                _ => None,
            });
            all.extend(more);
        }
        assert_eq!(all.len(), length, "more than was asked for");
        all
    }

    /// Counts the bytes of the stream that have arrived and not been read.
    pub(crate) fn received(&self, stream: StreamId) -> usize {
        let of_stream = |seen: &Seen| match seen {
            Seen::Data(id, bytes) if *id == stream => bytes.len(),
            _ => 0,
        };
        self.seen.iter().map(of_stream).sum()
    }

    /// Sends a message to an echo, and waits until it is back.
    pub(crate) fn echo(&mut self, stream: StreamId, message: &[u8]) {
        self.send(stream, message);
        assert!(self.read(stream, message.len()) == message, "the echo differs");
    }

    /// Waits for what `wanted` picks, and passes over everything before it.
    pub(crate) fn until<T>(&mut self, what: &str, mut wanted: impl FnMut(&mut Seen) -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            while let Some(mut seen) = self.seen.pop_front() {
                if let Some(found) = wanted(&mut seen) {
                    return found;
                }
                assert!(!matches!(seen, Seen::Closed | Seen::Cut), "{seen:?} instead of {what}");
            }
            self.pump_since(begin, what);
        }
    }

    /// Takes in what arrives until the deadline of a wait for `what`. The shard's own PINGs do not extend it.
    fn pump_since(&mut self, begin: Instant, what: &str) {
        let left = DEADLINE.saturating_sub(begin.elapsed());
        assert!(!left.is_zero() && self.pump(left), "no {what} in time");
    }

    /// Waits for exactly this, and passes over everything before it.
    pub(crate) fn until_seen(&mut self, expected: &Seen) {
        self.until(&format!("{expected:?}"), |seen| (seen == expected).then_some(()));
    }

    /// Takes in what arrives; false when nothing did for so long.
    pub(crate) fn pump(&mut self, patience: Duration) -> bool {
        match self.link.receive(patience) {
            Arrived::Quiet => return false,
            Arrived::Closed => self.seen.push_back(Seen::Closed),
            Arrived::Cut => self.seen.push_back(Seen::Cut),
            Arrived::Bytes(bytes) => self.take(&bytes),
        }
        self.flush();
        true
    }

    fn take(&mut self, mut input: &[u8]) {
        let now_ms = self.begun.elapsed().as_millis() as u64;
        while let Some(event) = self.session.receive(&mut input, now_ms).expect("the shard speaks HTTP/2") {
            let seen = match event {
                Event::Response { stream, response, end_stream } => {
                    self.seen.push_back(Seen::Answer(stream, response.status));
                    if !end_stream {
                        continue;
                    }
                    Seen::End(stream)
                }
                Event::Data { stream, bytes } => {
                    if self.credits {
                        self.session.consumed(stream, bytes.len(), now_ms);
                    }
                    Seen::Data(stream, bytes.to_vec())
                }
                Event::End { stream } => Seen::End(stream),
                Event::Reset { stream, code } => Seen::Reset(stream, code),
                Event::GoAway { last_stream, .. } => Seen::GoAway(last_stream.0),
                Event::Settings | Event::Request { .. } => continue,
            };
            self.seen.push_back(seen);
        }
    }

    fn flush(&mut self) {
        let mut control = Vec::new();
        self.session.take_output(&mut control);
        if !control.is_empty() {
            self.link.seal(&[&control]);
        }
        assert!(self.link.flush(DEADLINE), "the shard does not read");
    }
}
