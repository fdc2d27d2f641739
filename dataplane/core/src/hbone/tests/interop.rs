//! The `h2` crate as the other side, in both roles, over an in-memory pipe that is read in random pieces.

mod client;
mod server;

use std::pin::Pin;
use std::task::Poll;

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use super::pair::Random;
use super::*;

/// A run that takes longer is stuck.
const RUN_MAX: std::time::Duration = std::time::Duration::from_secs(30);

/// Moves bytes between a session and a pipe.
struct Pump {
    io: DuplexStream,
    session: HboneSession,
    out: Vec<u8>,
    written: usize,
    piece_max: usize,
}

impl Pump {
    fn new(io: DuplexStream, session: HboneSession, piece_max: usize) -> Self {
        Self { io, session, out: Vec::new(), written: 0, piece_max }
    }

    /// Writes what fits and reads one piece into `input`. Returns when something was read, all was written, or the
    /// peer closed: then false.
    async fn turn(&mut self, input: &mut Vec<u8>) -> bool {
        self.session.take_output(&mut self.out);
        input.resize(self.piece_max, 0);
        let (read, open) = std::future::poll_fn(|context| {
            let mut wrote = false;
            while self.written < self.out.len() {
                let rest = &self.out[self.written..];
                match Pin::new(&mut self.io).poll_write(context, rest) {
                    Poll::Ready(Ok(count)) => self.written += count,
                    Poll::Ready(Err(_)) => return Poll::Ready((0, false)),
                    Poll::Pending => break,
                }
                wrote = self.written == self.out.len();
            }
            let mut buffer = ReadBuf::new(input);
            match Pin::new(&mut self.io).poll_read(context, &mut buffer) {
                Poll::Ready(result) => {
                    let count = buffer.filled().len();
                    Poll::Ready((count, result.is_ok() && count > 0))
                }
                Poll::Pending if wrote => Poll::Ready((0, true)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
        }
        input.truncate(read);
        open
    }

    /// Sends up to `len` bytes of `bytes` as one DATA frame, and the end of the stream with the last of them if `end`.
    /// Returns how many bytes were sent, and whether the end was.
    fn send(&mut self, stream: StreamId, bytes: &[u8], end: bool, pace: bool) -> (usize, bool) {
        let count = bytes.len().min(self.session.sendable(stream));
        let end = end && count == bytes.len();
        let held = pace && count < 256 && self.session.holds_small();
        if !end && (count == 0 || held) {
            return (0, false);
        }
        self.session.take_output(&mut self.out);
        self.out.extend_from_slice(&self.session.data(stream, count, end));
        self.out.extend_from_slice(&bytes[..count]);
        (count, end)
    }
}

/// Windows and limits at random.
fn random_config(random: &mut Random) -> SessionConfig {
    let mut choose = |choices: &[u32]| choices[random.below(choices.len())];
    let stream_window_initial = choose(&[10, 1_000, 65_535, 1 << 20]);
    SessionConfig {
        streams_max: choose(&[1, 10, 200]),
        stream_window_initial,
        stream_window_max: choose(&[stream_window_initial, 4 << 20]),
        connection_window: choose(&[65_535, 200_000, 16 << 20]),
        frame_size_max: choose(&[16_384, 1 << 20]),
        header_list_max: 16_384,
        ping_interval_ms: 10_000,
        ping_timeout_ms: 20_000,
    }
}

/// The byte at a place of what a client sends on a stream.
fn pattern(stream: u32, place: usize) -> u8 {
    (stream as usize * 7 + place * 13) as u8
}
