//! Our end of the pods' processes: starts servers and waits until they listen, gives orders to clients.

use std::ffi::OsString;
use std::path::Path;
use std::process::ChildStdin;
use std::sync::Arc;
use std::time::Duration;

use halo::lab::process::{Process, Spec};
use halo::lab::topology::Pod;
use halo::lab::{Lab, LabError, Result};

use super::{Answer, Measured, Order};
use crate::talk::Talk;

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
pub(crate) struct Client(Talk);

impl Client {
    /// Starts a client. `program` is `halo-bench`.
    pub(crate) fn start(lab: &Lab, pod: &Pod, program: &Path) -> Result<Self> {
        Talk::new(lab.spawn(spec(pod, program, "client", &["client"]))?).map(Self)
    }

    /// Its process.
    pub(crate) fn process(&self) -> &Arc<Process> {
        &self.0.process
    }

    /// Gives an order, whose answer is the next that [`Self::receive`] returns.
    pub(crate) fn send(&self, order: &Order) -> Result<()> {
        self.0.send(order)
    }

    /// Waits up to `limit` for the answer to the latest order.
    pub(crate) fn receive(&self, limit: Duration) -> Result<Answer> {
        self.0.receive(limit)
    }

    /// Waits up to `limit` for the answer to [`Order::Measure`].
    pub(crate) fn measured(&self, limit: Duration) -> Result<Measured> {
        match self.receive(limit)? {
            Answer::Measured(measured) => Ok(measured),
            Answer::Failed(problem) => Err(self.0.fault(problem)),
            other @ Answer::Ready => Err(self.0.fault(format!("answered {other:?}"))),
        }
    }

    /// Waits up to `limit` for the answer to [`Order::Prepare`] or [`Order::Finish`].
    pub(crate) fn ready(&self, limit: Duration) -> Result<()> {
        match self.receive(limit)? {
            Answer::Ready => Ok(()),
            Answer::Failed(problem) => Err(self.0.fault(problem)),
            other @ Answer::Measured(_) => Err(self.0.fault(format!("answered {other:?}"))),
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
