//! Connections that follow scripts: how much each side sends, who ends first, who reads slowly, who resets and when.
//! Both sides are ours, so what one sent is compared with what the other saw.
//!
//! The rule that [`judge`] applies: a reader that sees a clean end has every byte that the writer sent before its own
//! clean end. Anything less must show as a reset.

mod side;

use std::net::{SocketAddr, TcpListener};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use halo::lab::netns::Netns;
use socket2::SockRef;

use crate::socket;
pub use side::{Finish, Seen};

/// Who ends its direction first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The client sends all and ends its direction; then the server answers.
    ClientFirst,
    /// The server sends all and ends its direction; then the client sends.
    ServerFirst,
    /// Both send and read at once.
    Together,
}

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Who connected.
    Client,
    /// Who accepted.
    Server,
}

/// A reset on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reset {
    /// Who resets.
    pub by: Side,
    /// Whether it counts what it sent, or what it read.
    pub sending: bool,
    /// After this many bytes.
    pub at: u64,
}

/// What happens on one connection.
#[derive(Debug, Clone)]
pub struct Script {
    /// Names the connection, and seeds its bytes.
    pub id: u64,
    /// Bytes that the client sends.
    pub up: u64,
    /// Bytes that the server sends.
    pub down: u64,
    /// Who ends first.
    pub order: Order,
    /// Who pauses between reads.
    pub slow: Option<Side>,
    /// Who resets.
    pub reset: Option<Reset>,
}

impl Script {
    /// A connection without trouble.
    pub fn new(id: u64, up: u64, down: u64, order: Order) -> Self {
        Self { id, up, down, order, slow: None, reset: None }
    }
}

/// What both sides saw of one connection.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The client; nothing when it could not connect.
    pub client: Option<Seen>,
    /// Why it could not.
    pub refused: Option<String>,
    /// The server; nothing when it never learned which connection it was.
    pub server: Option<Seen>,
}

/// Runs the scripts, `parallel` at a time, from `client` to `target`, where `listener` accepts.
pub fn run(
    scripts: &[Script],
    client: &Netns,
    target: SocketAddr,
    listener: &TcpListener,
    parallel: usize,
) -> Vec<Report> {
    let reports: Vec<Mutex<Report>> = scripts.iter().map(|_| Mutex::default()).collect();
    let (next, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    SockRef::from(listener).set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                let Ok(stream) = socket::accept(listener) else { continue };
                scope.spawn(|| {
                    let Some(index) = side::announced(&stream, scripts) else { return };
                    let seen = side::play(stream, &scripts[index], Side::Server);
                    reports[index].lock().unwrap().server = Some(seen);
                });
            }
        });
        let worker = || {
            while let Some(script) = scripts.get(next.fetch_add(1, Ordering::Relaxed)) {
                let index = scripts.iter().position(|s| s.id == script.id).unwrap();
                match socket::connect(client, target).and_then(|s| side::announce(s, script)) {
                    Ok(stream) => {
                        let seen = side::play(stream, script, Side::Client);
                        reports[index].lock().unwrap().client = Some(seen);
                    }
                    Err(error) => reports[index].lock().unwrap().refused = Some(error.to_string()),
                }
            }
        };
        let workers: Vec<_> = (0..parallel).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            worker.join().unwrap();
        }
        done.store(true, Ordering::Release);
    });
    reports.into_iter().map(|report| report.into_inner().unwrap()).collect()
}

/// Judges every connection; panics with those that lost something.
pub fn judge_all(scripts: &[Script], reports: &[Report]) {
    let verdicts =
        scripts.iter().zip(reports).map(|(script, report)| (script, report, judge(script, report)));
    let faults: Vec<_> = verdicts
        .filter_map(|(script, report, verdict)| {
            Some(format!("{}\n  {script:?}\n  {report:?}", verdict.err()?))
        })
        .collect();
    let shown = &faults[..faults.len().min(5)];
    assert!(faults.is_empty(), "{} of {} connections:\n{}", faults.len(), scripts.len(), shown.join("\n"));
}

/// Whether nothing was lost on this connection.
pub fn judge(script: &Script, report: &Report) -> Result<(), String> {
    let allowed = script.reset.is_some();
    let Some(client) = &report.client else {
        return Err(format!("the client could not connect: {:?}", report.refused));
    };
    let Some(server) = &report.server else {
        // A reset may overtake the connection's first bytes.
        return if allowed { Ok(()) } else { Err("the server never saw the connection".into()) };
    };
    direction("to the server", client, server, allowed)?;
    direction("to the client", server, client, allowed)?;
    if !allowed && (client.sent, server.sent) != (script.up, script.down) {
        return Err(format!("sent {} and {} bytes", client.sent, server.sent));
    }
    Ok(())
}

fn direction(name: &str, writer: &Seen, reader: &Seen, reset_allowed: bool) -> Result<(), String> {
    if let Some(at) = reader.corrupt_at {
        return Err(format!("{name}: wrong bytes after {at}"));
    }
    match reader.finish {
        // It reset the connection itself and reads no more.
        Finish::OwnReset => Ok(()),
        Finish::Eof if writer.ended && writer.sent == reader.received => Ok(()),
        // The kernel reports a reset once: here to the half of the program that was writing.
        Finish::Eof if reader.write_reset && reset_allowed => Ok(()),
        Finish::Eof => Err(format!("{name}: a clean end after {} of {} bytes", reader.received, writer.sent)),
        Finish::Reset if reset_allowed => Ok(()),
        Finish::Reset => Err(format!("{name}: a reset after {} of {} bytes", reader.received, writer.sent)),
        Finish::Stalled => Err(format!("{name}: silence after {} of {} bytes", reader.received, writer.sent)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(sent: u64, received: u64, finish: Finish) -> Seen {
        Seen { sent, ended: true, received, finish, ..Seen::default() }
    }

    #[test]
    fn a_clean_end_with_fewer_bytes_is_a_loss_even_where_a_reset_is_expected() {
        let mut script = Script::new(1, 10, 20, Order::Together);
        let report = |server: Seen| Report {
            client: Some(seen(10, 20, Finish::Eof)),
            refused: None,
            server: Some(server),
        };
        assert!(judge(&script, &report(seen(20, 10, Finish::Eof))).is_ok());
        assert!(judge(&script, &report(seen(20, 9, Finish::Eof))).is_err());
        assert!(judge(&script, &report(seen(20, 9, Finish::Reset))).is_err());
        script.reset = Some(Reset { by: Side::Client, sending: true, at: 9 });
        assert!(judge(&script, &report(seen(20, 9, Finish::Eof))).is_err());
        assert!(judge(&script, &report(seen(20, 9, Finish::Reset))).is_ok());
        assert!(judge(&script, &report(seen(20, 9, Finish::Stalled))).is_err());
    }
}
