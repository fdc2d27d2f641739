//! Our end of the pods' processes: starts servers and waits until they listen, gives orders to clients.

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ChildStdin;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use halo::lab::process::{Process, Spec};
use halo::lab::topology::Pod;
use halo::lab::{Lab, LabError, Result};

use super::{Answer, Measured, Order};

/// A server that does not listen by then is broken.
const LISTEN_MAX: Duration = Duration::from_secs(15);
/// A server that runs in a pod, until it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    /// Its process.
    pub(crate) process: Arc<Process>,
    // Its life: the server ends when this closes.
    _input: ChildStdin,
}

impl Server {
    /// Starts a server on all addresses of the pod and waits until it listens. `program` is `halo-bench`.
    pub(crate) fn start(lab: &Lab, pod: &Pod, program: &Path) -> Result<Self> {
        let process = lab.spawn(spec(pod, program, "server", &["serve"]))?;
        let (input, lines) = process.pipes()?;
        match lines.recv_timeout(LISTEN_MAX) {
            Ok(line) if line == "listening" => Ok(Self { process, _input: input }),
            answer => {
                process.ensure_running()?;
                Err(fault(&process, format!("said {answer:?} instead of that it listens")))
            }
        }
    }
}

/// A client that runs in a pod and does what it is told, until it is dropped.
#[derive(Debug)]
pub(crate) struct Client {
    /// Its process.
    pub(crate) process: Arc<Process>,
    talk: Mutex<Talk>,
}

#[derive(Debug)]
struct Talk {
    orders: ChildStdin,
    answers: Receiver<String>,
    /// Orders whose answers have not come. All but the last are of no interest any more: somebody gave up waiting.
    open: usize,
}

impl Client {
    /// Starts a client. `program` is `halo-bench`.
    pub(crate) fn start(lab: &Lab, pod: &Pod, program: &Path) -> Result<Self> {
        let process = lab.spawn(spec(pod, program, "client", &["client"]))?;
        let (orders, answers) = process.pipes()?;
        let talk = Talk { orders, answers, open: 0 };
        Ok(Self { talk: Mutex::new(talk), process })
    }

    /// Gives an order, whose answer is the next that [`Self::receive`] returns.
    pub(crate) fn send(&self, order: &Order) -> Result<()> {
        let line = serde_json::to_string(order)
            .map_err(|error| fault(&self.process, format!("cannot be given {order:?}: {error}")))?;
        let mut talk = self.talk();
        writeln!(talk.orders, "{line}").or_else(|error| {
            self.process.ensure_running()?;
            Err(fault(&self.process, format!("takes no orders: {error}")))
        })?;
        talk.open += 1;
        Ok(())
    }

    /// Waits up to `limit` for the answer to the latest order. Answers to earlier ones, for which somebody has given up
    /// to wait, are dropped.
    pub(crate) fn receive(&self, limit: Duration) -> Result<Answer> {
        let (mut talk, deadline) = (self.talk(), Instant::now() + limit);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = talk.answers.recv_timeout(left) else {
                self.process.ensure_running()?;
                return Err(fault(&self.process, format!("does not answer within {limit:?}")));
            };
            talk.open = talk.open.saturating_sub(1);
            if talk.open == 0 {
                return serde_json::from_str(&line)
                    .map_err(|error| fault(&self.process, format!("answered {line:?}: {error}")));
            }
        }
    }

    fn talk(&self) -> MutexGuard<'_, Talk> {
        self.talk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits up to `limit` for the answer to [`Order::Measure`].
    pub(crate) fn measured(&self, limit: Duration) -> Result<Measured> {
        match self.receive(limit)? {
            Answer::Measured(measured) => Ok(measured),
            Answer::Failed(problem) => Err(fault(&self.process, problem)),
            other @ Answer::Ready => Err(fault(&self.process, format!("answered {other:?}"))),
        }
    }

    /// Waits up to `limit` for the answer to [`Order::Prepare`] or [`Order::Finish`].
    pub(crate) fn ready(&self, limit: Duration) -> Result<()> {
        match self.receive(limit)? {
            Answer::Ready => Ok(()),
            Answer::Failed(problem) => Err(fault(&self.process, problem)),
            other @ Answer::Measured(_) => Err(fault(&self.process, format!("answered {other:?}"))),
        }
    }
}

fn spec(pod: &Pod, program: &Path, role: &str, arguments: &[&str]) -> Spec {
    Spec {
        name: format!("{}-{role}", pod.name),
        program: program.to_owned(),
        arguments: std::iter::once(&"pod").chain(arguments).map(OsString::from).collect(),
        environment: Vec::new(),
        netns: Arc::clone(&pod.netns),
        piped: true,
    }
}

fn fault(process: &Process, problem: String) -> LabError {
    LabError::Process { process: process.name().into(), problem }
}
