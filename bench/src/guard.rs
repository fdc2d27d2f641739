//! Runs what takes long so that a signal ends it and leaves nothing behind.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::room::Labs;

/// Exit code after Ctrl-C, as shells expect it.
pub(crate) const INTERRUPTED: u8 = 130;
/// How long it may take to notice that everything is taken away.
const END_MAX: Duration = Duration::from_secs(30);

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// All of it is done.
    Done,
    /// A signal came.
    Interrupted,
    /// The program itself failed.
    Defect,
}

/// Works on a thread of its own, while this one waits for it or for a signal. After a signal, of which `interrupted`
/// tells, everything is taken away, on which whatever runs fails at once.
pub(crate) fn run(
    labs: &Arc<Labs>,
    work: impl FnOnce() + Send + 'static,
    interrupted: impl FnOnce(),
) -> io::Result<Ended> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let (done, mut finished) = oneshot::channel();
        thread::Builder::new().name("rounds".into()).spawn(move || {
            work();
            // Nobody may wait any more after a signal.
            let _ = done.send(());
        })?;
        tokio::select! {
            finished = &mut finished => return Ok(if finished.is_ok() { Ended::Done } else { Ended::Defect }),
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        interrupted();
        labs.shut();
        tokio::select! {
            _ = timeout(END_MAX, finished) => {}
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        Ok(Ended::Interrupted)
    })
}
