//! Log lines: their form, the thread that writes them, and the levels, which may change while the process runs.
//!
//! Lines go to standard output in the stock node proxy's two forms. A filter is a list such as `info,access=debug`:
//! levels by the beginning of a target, and one for all others.

mod events;
mod line;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::sync::Arc;

use halo_core::access::{self, AccessLevel, AccessLine};
use tracing::{Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

use crate::config::LogFormat;
use events::Events;
use writer::{LogQueue, Losses, Output, Standard};

/// Why log levels, or logging, cannot be had as asked.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The text is no list of levels.
    #[error("`{text}` is no log filter: {cause}; write for example `info` or `info,access=debug`")]
    Filter {
        /// What was given.
        text: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The thread that writes lines did not start.
    #[error("the log thread cannot start: {0}")]
    Thread(#[from] io::Error),
    /// Another part of the process has taken the logging already, or has ended it.
    #[error("logging is not in our hands: {0}")]
    Taken(String),
}

/// The log of the process. Dropping it waits, for a second at most, until the last lines are written.
#[derive(Debug)]
pub struct Log {
    queue: LogQueue,
    control: LogControl,
}

impl Log {
    /// Starts logging to standard output for the whole process.
    ///
    /// # Errors
    /// [`LogError`]; nothing is set then.
    pub fn start(filter: &str, format: LogFormat) -> Result<Self, LogError> {
        let (log, subscriber) = Self::to(Standard(io::stdout()), filter, format)?;
        subscriber.try_init().map_err(|error| LogError::Taken(error.to_string()))?;
        Ok(log)
    }

    pub(crate) fn to(
        out: impl Output,
        filter: &str,
        format: LogFormat,
    ) -> Result<(Self, impl Subscriber + Send + Sync), LogError> {
        let initial = parse(if filter.trim().is_empty() { "info" } else { filter })?;
        let queue = LogQueue::start(out, format)?;
        let (filter, handle) = reload::Layer::new(initial.clone());
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(queue.clone())
            .event_format(Events(format))
            .fmt_fields(Events(format));
        let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter));
        let losses = queue.losses().clone();
        let control = LogControl { handle, access: AccessLevel::default(), initial, losses };
        control.tell_shards(&control.initial);
        Ok((Self { queue, control }, subscriber))
    }

    /// The levels.
    pub fn control(&self) -> LogControl {
        self.control.clone()
    }

    /// Takes lines of the access log, a batch at a time; answers `false` when there is no room. It never blocks.
    pub fn access_lines(&self) -> impl Fn(Vec<AccessLine>) -> bool + Send + Sync + use<> {
        let queue = self.queue.clone();
        move |lines| queue.access(lines)
    }

    /// Waits, for a second at most, until what was said so far is written.
    pub fn flusher(&self) -> impl Fn() + Send + use<> {
        let queue = self.queue.clone();
        move || queue.flush()
    }

    /// Lines of the control thread that were lost because nobody read fast enough, since the start.
    pub fn dropped(&self) -> u64 {
        self.control.losses.dropped()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.queue.flush();
    }
}

/// The log levels, now and to come. Copies act on the same levels.
#[derive(Debug, Clone)]
pub struct LogControl {
    handle: reload::Handle<Targets, Registry>,
    access: AccessLevel,
    initial: Targets,
    losses: Arc<Losses>,
}

impl LogControl {
    /// What the log has lost since the start.
    pub(crate) fn losses(&self) -> &Losses {
        &self.losses
    }

    /// The levels in force, for example `access=debug,info`.
    pub fn level(&self) -> String {
        self.handle.with_current(ToString::to_string).unwrap_or_default()
    }

    /// Adds to the levels in force: a level for everything, or levels of targets, `target=level` or `target:level`.
    ///
    /// # Errors
    /// [`LogError::Filter`] if the text is none; the levels then stay as they are.
    pub fn set(&self, directives: &str) -> Result<(), LogError> {
        parse(directives)?;
        let together = [self.level(), equal_signs(directives)];
        let together: Vec<_> = together.iter().map(String::as_str).filter(|text| !text.is_empty()).collect();
        self.apply(parse(&together.join(","))?)
    }

    /// Goes back to the levels of the start.
    ///
    /// # Errors
    /// [`LogError::Taken`] if logging has ended.
    pub fn reset(&self) -> Result<(), LogError> {
        self.apply(self.initial.clone())
    }

    /// What the shards read to know which access lines are wanted.
    pub fn access(&self) -> AccessLevel {
        self.access.clone()
    }

    fn apply(&self, levels: Targets) -> Result<(), LogError> {
        self.tell_shards(&levels);
        self.handle.reload(levels).map_err(|error| LogError::Taken(error.to_string()))
    }

    fn tell_shards(&self, levels: &Targets) {
        let loudest_first = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG];
        let wanted = loudest_first.iter().filter(|level| levels.would_enable(access::TARGET, level)).count();
        debug_assert_eq!(loudest_first.len(), access::Event::ALL.len());
        self.access.set(u8::try_from(wanted).unwrap_or(u8::MAX));
    }
}

fn parse(text: &str) -> Result<Targets, LogError> {
    let directives = equal_signs(text);
    let refused = |cause: String| LogError::Filter { text: text.to_owned(), cause };
    if directives.is_empty() {
        return Err(refused("it is empty".to_owned()));
    }
    directives.parse().map_err(|error: tracing_subscriber::filter::ParseError| refused(error.to_string()))
}

/// Writes `target:level` as `target=level`, and leaves out what is empty. Two colons are part of a target.
fn equal_signs(directives: &str) -> String {
    let directives = directives.split(',').map(str::trim).filter(|directive| !directive.is_empty());
    let directives = directives.map(|directive| match directive.rsplit_once(':') {
        Some((target, level)) if !directive.contains('=') && !target.is_empty() && !target.ends_with(':') => {
            format!("{target}={level}")
        }
        _ => directive.to_owned(),
    });
    directives.collect::<Vec<_>>().join(",")
}
