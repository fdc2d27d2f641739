//! Our end of the pods' processes: starts servers and waits until they listen, gives orders to clients.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ChildStdin;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::load::{LoadPlan, LoadReport};
use super::pod::{Ask, Order, Outcome};
use super::process::{Process, Spec};
use super::topology::Pod;
use super::{Doing, Lab, LabError, Result};

/// A process that says nothing for longer than its order can take is broken.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// A server that runs in a pod.
#[derive(Debug)]
pub struct Server {
    /// Its process.
    pub process: Arc<Process>,
    // Its life: the server ends when this closes.
    _input: ChildStdin,
}

impl Server {
    /// Starts an HTTP server which answers as the pod's name.
    pub fn http(lab: &Lab, pod: &Pod, port: u16) -> Result<Self> {
        Self::start(lab, pod, &["serve", &any(pod, port), &pod.name])
    }

    /// Starts a server that sends its banner first.
    pub fn greeter(lab: &Lab, pod: &Pod, port: u16, banner: &str) -> Result<Self> {
        Self::start(lab, pod, &["greet", &any(pod, port), banner])
    }

    fn start(lab: &Lab, pod: &Pod, arguments: &[&str]) -> Result<Self> {
        let process = lab.spawn(spec(lab, pod, "server", arguments))?;
        let (input, lines) = process.pipes()?;
        match lines.recv_timeout(SILENCE_MAX) {
            Ok(line) if line.starts_with("listening ") => Ok(Self { process, _input: input }),
            answer => {
                process.ensure_running()?;
                Err(fault(&process, format!("said {answer:?} instead of where it listens")))
            }
        }
    }
}

/// A client that runs in a pod and does what it is told.
#[derive(Debug)]
pub struct Client {
    /// Its process.
    pub process: Arc<Process>,
    talk: Mutex<(ChildStdin, Receiver<String>)>,
}

impl Client {
    /// Starts a client; `role` tells the clients of a pod apart.
    pub fn start(lab: &Lab, pod: &Pod, role: &str) -> Result<Self> {
        let process = lab.spawn(spec(lab, pod, role, &["client"]))?;
        let (input, output) = process.pipes()?;
        Ok(Self { talk: Mutex::new((input, output)), process })
    }

    /// Gives an order and waits for its outcome.
    pub fn order(&self, order: &Order) -> Result<Outcome> {
        let extra = match order {
            Order::Load(plan) => Duration::from_secs_f64(plan.seconds),
            _ => Duration::ZERO,
        };
        let mut talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        let (input, output) = &mut *talk;
        let line = serde_json::to_string(order).map_err(std::io::Error::from).doing("write an order")?;
        if let Err(error) = writeln!(input, "{line}") {
            self.process.ensure_running()?;
            return Err(fault(&self.process, format!("takes no orders: {error}")));
        }
        let Ok(answer) = output.recv_timeout(SILENCE_MAX + extra) else {
            self.process.ensure_running()?;
            return Err(fault(&self.process, format!("does not answer `{line}`")));
        };
        serde_json::from_str(&answer)
            .map_err(|error| fault(&self.process, format!("answered {answer:?}: {error}")))
    }

    /// One request on a connection of its own.
    pub fn get(&self, ask: &Ask) -> Result<Outcome> {
        self.order(&Order::Get(ask.clone()))
    }

    /// Opens a connection under a name, with a first request.
    pub fn open(&self, name: &str, ask: &Ask) -> Result<Outcome> {
        self.order(&Order::Open(name.into(), ask.clone()))
    }

    /// Another request on an open connection.
    pub fn again(&self, name: &str, ask: &Ask) -> Result<Outcome> {
        self.order(&Order::Again(name.into(), ask.clone()))
    }

    /// Waits until the peer ends an open connection.
    pub fn await_close(&self, name: &str) -> Result<Outcome> {
        self.order(&Order::AwaitClose(name.into()))
    }

    /// Ends an open connection.
    pub fn close(&self, name: &str) -> Result<Outcome> {
        self.order(&Order::Close(name.into()))
    }

    /// Connects and waits for the server's first line.
    pub fn hear(&self, target: SocketAddr) -> Result<Outcome> {
        self.order(&Order::Hear(target))
    }

    /// Sends load.
    pub fn load(&self, plan: &LoadPlan) -> Result<LoadReport> {
        match self.order(&Order::Load(plan.clone()))? {
            Outcome::Loaded(report) => Ok(report),
            other => Err(fault(&self.process, format!("load ended in {other:?}"))),
        }
    }
}

/// Every address of a pod, in all of its families.
fn any(pod: &Pod, port: u16) -> String {
    if pod.addresses.v6.is_some() { format!("[::]:{port}") } else { format!("0.0.0.0:{port}") }
}

fn spec(lab: &Lab, pod: &Pod, role: &str, arguments: &[&str]) -> Spec {
    Spec {
        name: format!("{}-{role}", pod.name),
        program: lab.binary().to_owned(),
        arguments: std::iter::once(&"demo-pod").chain(arguments).map(|&a| a.into()).collect(),
        environment: Vec::new(),
        netns: pod.netns.clone(),
        piped: true,
    }
}

fn fault(process: &Process, problem: String) -> LabError {
    LabError::Process { process: process.name().into(), problem }
}
