//! Our end of the pods' processes: starts servers and waits until they listen, gives orders to clients.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use halo::lab::process::{Process, Spec};
use halo::lab::topology::Pod;
use halo::lab::{Lab, LabError, Result};

use super::{Answer, Measured, Order, Work};

/// A server that does not listen by then is broken.
const LISTEN_MAX: Duration = Duration::from_secs(15);
/// A client that has not prepared a load by then is broken: it gives up by itself well before.
const PREPARE_MAX: Duration = Duration::from_secs(45);
/// What a measurement, or the end of a load, may take besides its own length.
const SILENCE_MAX: Duration = Duration::from_secs(15);

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
        let (input, output) = process.pipes()?;
        match lines(output)?.recv_timeout(LISTEN_MAX) {
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
    talk: Mutex<(ChildStdin, Receiver<String>)>,
}

impl Client {
    /// Starts a client. `program` is `halo-bench`.
    pub(crate) fn start(lab: &Lab, pod: &Pod, program: &Path) -> Result<Self> {
        let process = lab.spawn(spec(pod, program, "client", &["client"]))?;
        let (input, output) = process.pipes()?;
        Ok(Self { talk: Mutex::new((input, lines(output)?)), process })
    }

    /// Gives an order. Each must be met by one [`Self::receive`]; those of several clients may be collected afterwards.
    pub(crate) fn send(&self, order: &Order) -> Result<()> {
        let line = serde_json::to_string(order)
            .map_err(|error| fault(&self.process, format!("cannot be given {order:?}: {error}")))?;
        let mut talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(talk.0, "{line}").or_else(|error| {
            self.process.ensure_running()?;
            Err(fault(&self.process, format!("takes no orders: {error}")))
        })
    }

    /// Waits up to `limit` for the answer to the oldest order without one.
    pub(crate) fn receive(&self, limit: Duration) -> Result<Answer> {
        let talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(line) = talk.1.recv_timeout(limit) else {
            self.process.ensure_running()?;
            return Err(fault(&self.process, format!("does not answer within {limit:?}")));
        };
        serde_json::from_str(&line)
            .map_err(|error| fault(&self.process, format!("answered {line:?}: {error}")))
    }

    /// Gives an order and waits up to `limit` for its answer.
    pub(crate) fn order(&self, order: &Order, limit: Duration) -> Result<Answer> {
        self.send(order)?;
        self.receive(limit)
    }

    /// Opens the connections of a load and lets it run. A load that fails is an error with the client's words.
    pub(crate) fn prepare(&self, work: Work) -> Result<()> {
        self.ready(&Order::Prepare(work), PREPARE_MAX)
    }

    /// Waits up to `limit` for the answer to [`Order::Measure`].
    pub(crate) fn measured(&self, limit: Duration) -> Result<Measured> {
        match self.receive(limit)? {
            Answer::Measured(measured) => Ok(measured),
            other => Err(fault(&self.process, format!("measured {other:?}"))),
        }
    }

    /// Ends the load; its connections are closed when this returns.
    pub(crate) fn finish(&self) -> Result<()> {
        self.ready(&Order::Finish, SILENCE_MAX)
    }

    fn ready(&self, order: &Order, limit: Duration) -> Result<()> {
        match self.order(order, limit)? {
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

/// The lines that a process prints, as they come.
fn lines(output: ChildStdout) -> Result<Receiver<String>> {
    let (sender, receiver) = channel();
    let read = move || {
        for line in BufReader::new(output).lines().map_while(io::Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    };
    let failed = |cause| LabError::Io { doing: "start a thread".into(), cause };
    thread::Builder::new().name("pod-output".into()).spawn(read).map_err(failed)?;
    Ok(receiver)
}
