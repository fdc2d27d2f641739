//! The applications of the benchmark, as processes in the pods: one server and one client a pod.
//!
//! Both live while their standard input is open. A server says `listening` once it does. A client takes one JSON
//! [`Order`] a line and answers each with one JSON [`Answer`].

mod client;
mod http;
mod load;
mod pace;
mod raw;
pub(crate) mod remote;
mod requests;
mod server;
mod streams;
pub(crate) mod tally;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use halo::node::raise_descriptor_limit;
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, LocalOptions};

use crate::model::Way;
use crate::talk::{input, say};

/// Where a server takes HTTP/1.1: `POST` with a body is answered with a body of the same length.
pub(crate) const HTTP_PORT: u16 = 8080;
/// Where a server takes raw streams. The first byte says what follows: see [`RawKind`].
pub(crate) const RAW_PORT: u16 = 9000;

/// What a client of [`RAW_PORT`] wants, by its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RawKind {
    /// The server says one byte, so that the client knows that the stream has arrived; then the client sends until it
    /// closes, and the server reads.
    Up = b'U',
    /// The server sends until the client closes.
    Down = b'D',
    /// The server answers each byte with one byte, until the client closes.
    Echo = b'E',
}

/// What a client does next. Prepare, measure any number of times, finish.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// Opens the connections and lets the load run, unmeasured. Answered once every connection has carried something.
    Prepare(Work),
    /// Measures what runs for so many seconds; [`Work::Visit`] is measured to its end instead.
    Measure(f64),
    /// Ends the load and closes its connections.
    Finish,
}

/// What a client does. `targets` are servers' addresses without their port's meaning: the port is the one to use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Work {
    /// Bulk on raw connections.
    Bulk {
        /// Raw ports of servers; connections take turns.
        targets: Vec<SocketAddr>,
        /// Direction.
        way: Way,
        /// Connections.
        streams: usize,
    },
    /// HTTP requests; open loop where `per_second` is given, else closed loop.
    Requests {
        /// HTTP ports of servers; connections take turns.
        targets: Vec<SocketAddr>,
        /// Body of a request and of its answer.
        bytes: usize,
        /// Connections.
        connections: usize,
        /// Requests due per second over all connections.
        per_second: Option<u32>,
    },
    /// Connections that carry one byte each way and are closed.
    Connects {
        /// Raw ports of servers; connections take turns.
        targets: Vec<SocketAddr>,
        /// Connections in flight.
        concurrency: usize,
    },
    /// One connection to each target, one after the other, each with one byte each way. Preparing opens nothing.
    Visit {
        /// Raw ports of servers.
        targets: Vec<SocketAddr>,
    },
    /// Connections that have carried one byte each way and then do nothing.
    Idle {
        /// Raw ports of servers; connections take turns.
        targets: Vec<SocketAddr>,
        /// Connections.
        connections: usize,
    },
}

/// What came of an order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// Prepared, or finished.
    Ready,
    /// Measured.
    Measured(Measured),
    /// The order could not be followed; why.
    Failed(String),
}

/// What a client counted while it measured.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// How long, seconds.
    pub(crate) seconds: f64,
    /// Answers, or connections; for idle, the connections that are open at the end.
    pub(crate) operations: u64,
    /// Payload bytes, both ways. What a bulk upload has moved is what its socket has accepted.
    pub(crate) bytes: u64,
    /// Operations that failed.
    pub(crate) errors: u64,
    /// The first failure's words.
    pub(crate) first_error: Option<String>,
    /// Latencies: the recorded values, ns, and how often each occurred, ascending. Empty for bulk and idle.
    pub(crate) latency_ns: Vec<(u64, u64)>,
}

/// Pause after a failure, so that nothing that refuses is hammered.
const PAUSE: Duration = Duration::from_millis(10);

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub(crate) enum Program {
    /// A server of HTTP and of raw streams
    Serve {
        /// Where to listen
        #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
        address: IpAddr,
    },
    /// A client that takes orders from its standard input
    Client,
}

/// Runs a program until its standard input ends. Fails when it cannot be set up; why goes to standard error.
pub(crate) fn run(program: &Program) -> ExitCode {
    let done = raise_descriptor_limit().and_then(|()| match program {
        Program::Serve { address } => local(serve(*address))?,
        Program::Client => local(follow())?,
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a future on this thread, with the tasks that it spawns.
fn local<F: Future>(future: F) -> io::Result<F::Output> {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    Ok(runtime.block_on(future))
}

async fn serve(address: IpAddr) -> io::Result<()> {
    let (_lines, ended) = input()?;
    let http = server::listen((address, HTTP_PORT).into())?;
    let raw = server::listen((address, RAW_PORT).into())?;
    say("listening")?;
    tokio::select! {
        () = server::run(http, raw) => {}
        _ = ended => {}
    }
    Ok(())
}

async fn follow() -> io::Result<()> {
    let (mut lines, mut ended) = input()?;
    let mut client = client::Client::default();
    loop {
        let answer = async {
            let line = lines.recv().await?;
            Some(match serde_json::from_str(&line) {
                Ok(order) => client.follow(order).await,
                Err(error) => Answer::Failed(format!("`{line}` is no order: {error}")),
            })
        };
        tokio::select! {
            Some(answer) = answer => say(&serde_json::to_string(&answer)?)?,
            _ = &mut ended => return Ok(()),
        }
    }
}
