//! The thread that writes log lines, and makes those of the access log. It alone waits for whoever reads them: a full queue costs lines, which are counted,
//! and never the time of a thread that has something to say.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use halo_core::access::{self, AccessLine, Value};
use tracing_subscriber::fmt::MakeWriter;

use super::line::Line;
use crate::config::LogFormat;

/// Messages that may wait.
const QUEUE_MAX: usize = 1024;
/// Messages that one write takes.
const BATCH_MAX: usize = 64;
/// How long the end of the process waits for the last lines to be written.
const FLUSH_MAX: Duration = Duration::from_secs(1);

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
    dropped: Arc<AtomicU64>,
}

impl LogQueue {
    /// Starts the thread.
    pub(super) fn start(out: impl Write + Send + 'static, format: LogFormat) -> io::Result<Self> {
        let (queue, messages) = mpsc::sync_channel(QUEUE_MAX);
        thread::Builder::new().name("log".into()).spawn(move || write(&messages, out, format))?;
        Ok(Self { queue, dropped: Arc::default() })
    }

    fn text(&self, text: Vec<u8>) {
        if self.queue.try_send(Message::Text(text)).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Takes lines of the access log; `false` when there is no room.
    pub(super) fn access(&self, lines: Vec<AccessLine>) -> bool {
        self.queue.try_send(Message::Access(lines)).is_ok()
    }

    /// Lines of the process that found the queue full.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Waits until what was said so far is written, for a second at most.
    pub(super) fn flush(&self) {
        let (done, written) = mpsc::sync_channel(1);
        let deadline = Instant::now() + FLUSH_MAX;
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

fn write(messages: &Receiver<Message>, mut out: impl Write, format: LogFormat) {
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
                        let _ = access(&mut text, line, format);
                    }
                    batch.extend_from_slice(text.as_bytes());
                }
                Message::Flush(done) => flushed.push(done),
            }
        }
        // There is nowhere to say that nothing can be said.
        let _ = out.write_all(&batch).and_then(|()| out.flush());
        batch.clear();
        for done in flushed {
            let _ = done.try_send(());
        }
    }
}

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
