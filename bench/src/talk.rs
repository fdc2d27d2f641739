//! Orders and answers, one JSON value a line, between us and a program of ours in another namespace.
//!
//! The program lives while its standard input is open, takes an order a line from it, and answers each with a line.

use std::io::{self, BufRead, Write};
use std::process::ChildStdin;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use halo::lab::process::Process;
use halo::lab::{LabError, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::oneshot;

/// Our end.
#[derive(Debug)]
pub(crate) struct Talk {
    /// The program.
    pub(crate) process: Arc<Process>,
    pipes: Mutex<Pipes>,
}

#[derive(Debug)]
struct Pipes {
    orders: ChildStdin,
    answers: Receiver<String>,
    /// Orders whose answers have not come. All but the last are of no interest any more: somebody gave up waiting.
    open: usize,
}

impl Talk {
    /// With a program that was started with pipes.
    pub(crate) fn new(process: Arc<Process>) -> Result<Self> {
        let (orders, answers) = process.pipes()?;
        Ok(Self { process, pipes: Mutex::new(Pipes { orders, answers, open: 0 }) })
    }

    /// Gives an order, whose answer is the next that [`Self::receive`] returns.
    pub(crate) fn send(&self, order: &impl Serialize) -> Result<()> {
        let line =
            serde_json::to_string(order).map_err(|error| self.fault(format!("cannot be told: {error}")))?;
        let mut pipes = self.pipes();
        writeln!(pipes.orders, "{line}").or_else(|error| {
            self.process.ensure_running()?;
            Err(self.fault(format!("takes no orders: {error}")))
        })?;
        pipes.open += 1;
        Ok(())
    }

    /// Waits up to `limit` for the answer to the latest order. Answers to earlier ones, for which somebody has given up
    /// to wait, are dropped.
    pub(crate) fn receive<T: DeserializeOwned>(&self, limit: Duration) -> Result<T> {
        let (mut pipes, deadline) = (self.pipes(), Instant::now() + limit);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = pipes.answers.recv_timeout(left) else {
                self.process.ensure_running()?;
                return Err(self.fault(format!("does not answer within {limit:?}")));
            };
            pipes.open = pipes.open.saturating_sub(1);
            if pipes.open == 0 {
                return serde_json::from_str(&line)
                    .map_err(|error| self.fault(format!("answered {line:?}: {error}")));
            }
        }
    }

    /// The program did something wrong.
    pub(crate) fn fault(&self, problem: String) -> LabError {
        LabError::Process { process: self.process.name().into(), problem }
    }

    fn pipes(&self) -> MutexGuard<'_, Pipes> {
        self.pipes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The program's end: the lines of standard input, as they come, and its end.
pub(crate) fn input() -> io::Result<(UnboundedReceiver<String>, oneshot::Receiver<()>)> {
    let (lines, received) = unbounded_channel();
    let (end, ended) = oneshot::channel();
    let read = move || {
        for line in io::stdin().lock().lines().map_while(std::result::Result::ok) {
            let _ = lines.send(line);
        }
        let _ = end.send(());
    };
    thread::Builder::new().name("input".into()).spawn(read)?;
    Ok((received, ended))
}

/// The program's end: one line.
pub(crate) fn say(line: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{line}")?;
    output.flush()
}
