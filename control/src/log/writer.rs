//! The thread that writes log lines, and makes those of the access log. It alone waits for whoever reads them: a full queue costs lines, which are counted,
//! and never the time of a thread that has something to say.

use std::fmt;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use halo_core::access::{self, AccessLine, Value};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing_subscriber::fmt::MakeWriter;

use super::line::Line;
use crate::config::LogFormat;

/// Messages that may wait.
const QUEUE_MAX: usize = 1024;
/// Messages that one write takes.
const BATCH_MAX: usize = 64;

enum Message {
    Text(Vec<u8>),
    Access(Vec<AccessLine>),
    /// Answered once all before it is written.
    Flush(SyncSender<()>),
}

/// Where lines go in.
#[derive(Debug, Clone)]
pub(super) struct LogQueue {
    queue: SyncSender<Message>,
    losses: Arc<Losses>,
    flush_max: Duration,
}

/// What was lost since the start.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    dropped: AtomicU64,
    failed: AtomicU64,
}

impl Losses {
    /// Lines of the process that found the queue full.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Writes of several lines that failed.
    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Relaxed)
    }
}

/// Where lines go.
pub(crate) trait Output: Write + Send + 'static {
    /// How long the end of the process waits for the last lines to be written.
    const FLUSH_MAX: Duration = Duration::from_secs(1);

    /// Waits until there is room, after a write that found none.
    fn wait(&self) -> io::Result<()> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

/// Standard output. Whoever started the process may have made it one that does not wait.
pub(super) struct Standard(pub(super) io::Stdout);

impl Write for Standard {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.write(text)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Output for Standard {
    fn wait(&self) -> io::Result<()> {
        let mut room = [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)];
        match poll(&mut room, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl LogQueue {
    /// Starts the thread.
    pub(super) fn start<O: Output>(out: O, format: LogFormat) -> io::Result<Self> {
        let (queue, messages) = mpsc::sync_channel(QUEUE_MAX);
        let losses = Arc::<Losses>::default();
        let writer = Writer { out, format, losses: losses.clone() };
        thread::Builder::new().name("log".into()).spawn(move || writer.run(&messages))?;
        Ok(Self { queue, losses, flush_max: O::FLUSH_MAX })
    }

    fn text(&self, text: Vec<u8>) {
        if self.queue.try_send(Message::Text(text)).is_err() {
            self.losses.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Takes lines of the access log; `false` when there is no room.
    pub(super) fn access(&self, lines: Vec<AccessLine>) -> bool {
        self.queue.try_send(Message::Access(lines)).is_ok()
    }

    /// What was lost since the start.
    pub(super) fn losses(&self) -> &Arc<Losses> {
        &self.losses
    }

    /// Waits until what was said so far is written, as long as the output allows.
    pub(super) fn flush(&self) {
        let (done, written) = mpsc::sync_channel(1);
        let deadline = Instant::now() + self.flush_max;
        while self.queue.try_send(Message::Flush(done.clone())).is_err() {
            if Instant::now() >= deadline {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
        // Whoever reads the lines may have gone; then so be it.
        let _ = written.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

/// The thread that writes.
struct Writer<O> {
    out: O,
    format: LogFormat,
    losses: Arc<Losses>,
}

impl<O: Output> Writer<O> {
    fn run(mut self, messages: &Receiver<Message>) {
        let (mut batch, mut text) = (Vec::new(), String::new());
        while let Ok(first) = messages.recv() {
            let mut flushed = Vec::new();
            for message in std::iter::once(first).chain(messages.try_iter().take(BATCH_MAX - 1)) {
                match message {
                    Message::Text(line) => batch.extend_from_slice(&line),
                    Message::Access(lines) => {
                        text.clear();
                        for line in &lines {
                            // Writing to a text cannot fail.
                            let _ = access(&mut text, line, self.format);
                        }
                        batch.extend_from_slice(text.as_bytes());
                    }
                    Message::Flush(done) => flushed.push(done),
                }
            }
            // The log is no place to say that nothing can be said there.
            if self.write(&batch).is_err() {
                self.losses.failed.fetch_add(1, Relaxed);
            }
            batch.clear();
            for done in flushed {
                let _ = done.try_send(());
            }
        }
    }

    /// Writes all of a text, and waits for room where there is none.
    fn write(&mut self, mut text: &[u8]) -> io::Result<()> {
        while !text.is_empty() {
            match self.out.write(text) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => text = text.get(count..).unwrap_or_default(),
                Err(error) => self.recover(error)?,
            }
        }
        loop {
            match self.out.flush() {
                Ok(()) => return Ok(()),
                Err(error) => self.recover(error)?,
            }
        }
    }

    /// Makes good what is no failure.
    fn recover(&self, error: io::Error) -> io::Result<()> {
        match error.kind() {
            io::ErrorKind::Interrupted => Ok(()),
            io::ErrorKind::WouldBlock => self.out.wait(),
            _ => Err(error),
        }
    }
}

#[cfg(test)]
impl Output for io::Sink {}

fn access(out: &mut String, line: &AccessLine, format: LogFormat) -> fmt::Result {
    let mut text = Line::begin(out, format, line.time, line.event.level())?;
    text.scope(access::TARGET)?;
    text.message(format_args!("{}", line.event.message()))?;
    line.fields(|name, value| match value {
        Value::Text(value) => text.text(name, value),
        Value::Shown(value) => text.shown(name, format_args!("{value}")),
        Value::Number(value) => text.bare(name, value),
    })?;
    text.end()
}

impl<'a> MakeWriter<'a> for LogQueue {
    type Writer = OneLine<'a>;

    fn make_writer(&'a self) -> OneLine<'a> {
        OneLine { queue: self, text: Vec::new() }
    }
}

/// Collects one line, and hands it over at its end.
pub(super) struct OneLine<'a> {
    queue: &'a LogQueue,
    text: Vec<u8>,
}

impl Write for OneLine<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for OneLine<'_> {
    fn drop(&mut self) {
        self.queue.text(std::mem::take(&mut self.text));
    }
}
