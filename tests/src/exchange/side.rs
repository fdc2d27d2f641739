//! One side of a scripted connection.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{Order, Script, Side};
use crate::pattern::{CHUNK, Pattern};
use crate::socket::{PATIENCE, is_pause, is_reset, reset};

/// How often a blocked side looks whether its other half has reset the connection.
const LOOK: Duration = Duration::from_millis(50);
/// A slow reader's pause, after each read, for its first reads.
const PAUSE: Duration = Duration::from_millis(3);
const PAUSES: u32 = 100;
/// Mark in the seed of what the server sends.
const DOWN: u64 = 1 << 63;

/// How a side stopped reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Finish {
    /// The peer ended its direction.
    #[default]
    Eof,
    /// The connection was reset.
    Reset,
    /// This side reset it, as its script says.
    OwnReset,
    /// Nothing came for too long.
    Stalled,
}

/// What one side did and saw.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Bytes that the kernel took.
    pub sent: u64,
    /// Its direction was ended in order.
    pub ended: bool,
    /// Writing failed with a reset.
    pub write_reset: bool,
    /// Bytes that came, all of them right unless `corrupt_at` says where not.
    pub received: u64,
    /// Where the first wrong bytes are.
    pub corrupt_at: Option<u64>,
    /// How reading ended.
    pub finish: Finish,
}

/// Tells the server which connection this is.
pub(super) fn announce(mut stream: TcpStream, script: &Script) -> io::Result<TcpStream> {
    stream.write_all(&script.id.to_be_bytes())?;
    Ok(stream)
}

/// Which script the client announced; `None` when the connection ended before it could.
pub(super) fn announced(mut stream: &TcpStream, scripts: &[Script]) -> Option<usize> {
    let mut id = [0; 8];
    stream.read_exact(&mut id).ok()?;
    let id = u64::from_be_bytes(id);
    Some(scripts.iter().position(|script| script.id == id).unwrap_or_else(|| panic!("no script {id}")))
}

/// Plays one side to its end.
pub(super) fn play(stream: TcpStream, script: &Script, side: Side) -> Seen {
    stream.set_read_timeout(Some(LOOK)).unwrap();
    stream.set_write_timeout(Some(LOOK)).unwrap();
    let half = Half { stream: &stream, script, side, cut: AtomicBool::new(false) };
    let first = match script.order {
        Order::ClientFirst => Some(Side::Client),
        Order::ServerFirst => Some(Side::Server),
        Order::Together => None,
    };
    let mut seen = Seen::default();
    match first {
        Some(first) if first == side => {
            half.send(&mut seen);
            half.receive(&mut seen);
        }
        Some(_) => {
            half.receive(&mut seen);
            if seen.finish == Finish::Eof {
                half.send(&mut seen);
            }
        }
        None => {
            let mut written = Seen::default();
            thread::scope(|scope| {
                scope.spawn(|| half.send(&mut written));
                half.receive(&mut seen);
            });
            seen =
                Seen { sent: written.sent, ended: written.ended, write_reset: written.write_reset, ..seen };
        }
    }
    if half.cut.into_inner() {
        seen.finish = Finish::OwnReset;
        reset(stream);
    }
    seen
}

struct Half<'a> {
    stream: &'a TcpStream,
    script: &'a Script,
    side: Side,
    /// This side has come to its reset.
    cut: AtomicBool,
}

impl Half<'_> {
    /// Where this side resets, when it counts what it sends (or reads).
    fn cut_at(&self, sending: bool) -> Option<u64> {
        self.script.reset.filter(|r| r.by == self.side && r.sending == sending).map(|r| r.at)
    }

    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    /// How many bytes this side sends, and the seeds of what it sends and reads.
    fn plan(&self) -> (u64, u64, u64) {
        let Script { id, up, down, .. } = *self.script;
        match self.side {
            Side::Client => (up, id, id | DOWN),
            Side::Server => (down, id | DOWN, id),
        }
    }

    fn send(&self, seen: &mut Seen) {
        let (total, seed, _) = self.plan();
        let end = self.cut_at(true).map_or(total, |at| at.min(total));
        let (mut pattern, mut stream, mut progress) = (Pattern::new(seed), self.stream, Instant::now());
        while seen.sent < end && !self.is_cut() {
            let len = usize::try_from(end - seen.sent).unwrap_or(CHUNK).min(CHUNK);
            match stream.write(pattern.peek(len)) {
                Ok(len) => {
                    pattern.advance(len);
                    seen.sent += len as u64;
                    progress = Instant::now();
                }
                Err(error) if is_pause(&error) && progress.elapsed() < PATIENCE => {}
                Err(error) => {
                    seen.write_reset = is_reset(&error);
                    return;
                }
            }
        }
        if self.cut_at(true).is_some_and(|at| seen.sent >= at) {
            self.cut.store(true, Ordering::Release);
        }
        if !self.is_cut() {
            seen.ended = self.stream.shutdown(Shutdown::Write).is_ok();
        }
    }

    fn receive(&self, seen: &mut Seen) {
        let (_, _, seed) = self.plan();
        let (mut pattern, mut stream, mut progress) = (Pattern::new(seed), self.stream, Instant::now());
        let mut buffer = vec![0; CHUNK];
        let mut pauses = if self.script.slow == Some(self.side) { PAUSES } else { 0 };
        while !self.is_cut() {
            if self.cut_at(false).is_some_and(|at| seen.received >= at) {
                self.cut.store(true, Ordering::Release);
                return;
            }
            match stream.read(&mut buffer) {
                Ok(0) => {
                    seen.finish = Finish::Eof;
                    return;
                }
                Ok(len) => {
                    if !pattern.check(&buffer[..len]) {
                        seen.corrupt_at.get_or_insert(seen.received);
                    }
                    seen.received += len as u64;
                    progress = Instant::now();
                }
                Err(error) if is_pause(&error) && progress.elapsed() < PATIENCE => continue,
                Err(error) => {
                    seen.finish = if is_reset(&error) { Finish::Reset } else { Finish::Stalled };
                    return;
                }
            }
            if pauses > 0 {
                pauses -= 1;
                thread::sleep(PAUSE);
            }
        }
    }
}
