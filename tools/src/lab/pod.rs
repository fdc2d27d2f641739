//! The ordinary programs that run in the pods, as processes of their own: an HTTP server, a server that speaks
//! first, and a client. They know nothing of a mesh.
//!
//! Every one of them lives while its standard input is open, so that none outlives the lab, however the lab ends.
//! A server says where it listens with one line; the client takes one JSON [`Order`] a line and answers each with
//! one JSON [`Outcome`].

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use halo_core::net::canonical;
use serde::{Deserialize, Serialize};

use super::http::{self, Connection};
use super::load::{self, LoadPlan, LoadReport};

/// A connection or an answer that takes longer counts as failed.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum Program {
    /// An HTTP/1.1 server that tells who asked.
    Serve {
        /// Where to listen.
        listen: SocketAddr,
        /// The name it answers with.
        name: String,
    },
    /// A server that sends a banner before the client has said anything, then echoes.
    Greet {
        /// Where to listen.
        listen: SocketAddr,
        /// The banner, one line.
        banner: String,
    },
    /// A client that takes orders from its standard input.
    Client,
}

/// What a client does next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// One request on a new connection.
    Get(Ask),
    /// Opens a connection, keeps it under this name and sends a first request.
    Open(String, Ask),
    /// Another request on a kept connection.
    Again(String, Ask),
    /// Waits up to five seconds until the peer ends a kept connection.
    AwaitClose(String),
    /// Ends a kept connection.
    Close(String),
    /// Connects, says nothing and waits for the first line.
    Hear(SocketAddr),
    /// Load.
    Load(LoadPlan),
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Where to connect.
    pub target: SocketAddr,
    /// The path.
    pub path: String,
    /// Headers.
    pub headers: Vec<(String, String)>,
}

impl Ask {
    /// A request for `/`.
    pub fn new(target: impl Into<SocketAddr>) -> Self {
        Self { target: target.into(), path: "/".into(), headers: Vec::new() }
    }

    /// Adds the text that a capture looks for; the server repeats it.
    pub fn marker(mut self, marker: &str) -> Self {
        self.headers.push(("x-marker".into(), marker.into()));
        self
    }
}

/// What came of an order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// An answer.
    Answer {
        /// Its status.
        status: u16,
        /// Its body.
        body: String,
        /// From the first system call to the last byte, microseconds.
        took_us: u64,
    },
    /// The first line that a server said.
    Heard {
        /// The line.
        line: String,
        /// Microseconds.
        took_us: u64,
    },
    /// It did not work.
    Failed {
        /// Why, for a person.
        reason: String,
        /// Microseconds.
        took_us: u64,
    },
    /// The kept connection is closed; by the peer, for [`Order::AwaitClose`].
    Closed {
        /// Microseconds.
        took_us: u64,
    },
    /// The figures of a load.
    Loaded(LoadReport),
}

/// Runs a program until its standard input ends.
pub fn run(program: &Program) -> io::Result<()> {
    match program {
        Program::Serve { listen, name } => {
            let name = name.clone();
            serve(*listen, move |stream| serve_http(&stream, &name))
        }
        Program::Greet { listen, banner } => {
            let banner = banner.clone();
            serve(*listen, move |stream| greet(&stream, &banner))
        }
        Program::Client => follow_orders(),
    }
}

fn serve(
    listen: SocketAddr,
    handle: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static,
) -> io::Result<()> {
    let listener = TcpListener::bind(listen)?;
    thread::Builder::new().name("accept".into()).spawn(move || accept(&listener, &handle))?;
    writeln!(io::stdout(), "listening {listen}")?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

fn accept(listener: &TcpListener, handle: &(impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static)) {
    for stream in listener.incoming().flatten() {
        let handle = handle.clone();
        // A connection that fails concerns its client, who sees it too. When no thread can be had the stream is
        // dropped, which the client sees as well.
        let _ = thread::Builder::new().name("serve".into()).spawn(move || handle(stream));
    }
}

fn serve_http(stream: &TcpStream, name: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // A listener for both families shows IPv4 clients as mapped addresses.
    let client = canonical(stream.peer_addr()?);
    let mut reader = BufReader::new(stream);
    while let Some(request) = http::read(&mut reader)? {
        let marker = request.header("x-marker").unwrap_or("-");
        let path = request.path().unwrap_or("/");
        let body = format!("{name} answers {client} {path} {marker}\n");
        http::answer(&mut &*stream, "200 OK", body.as_bytes())?;
        if request.header("connection").is_some_and(|v| v.eq_ignore_ascii_case("close")) {
            break;
        }
    }
    stream.shutdown(Shutdown::Write)
}

fn greet(mut stream: &TcpStream, banner: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(format!("{banner}\n").as_bytes())?;
    let mut reader = stream;
    io::copy(&mut reader, &mut &*stream)?;
    stream.shutdown(Shutdown::Write)
}

fn follow_orders() -> io::Result<()> {
    let mut kept = HashMap::new();
    for line in io::stdin().lock().lines() {
        let started = Instant::now();
        let outcome =
            serde_json::from_str(&line?).map_err(io::Error::from).and_then(|order| follow(order, &mut kept));
        let outcome = outcome.unwrap_or_else(|error| Outcome::Failed {
            reason: plain_reason(&error),
            took_us: micros(started),
        });
        writeln!(io::stdout(), "{}", serde_json::to_string(&outcome)?)?;
    }
    Ok(())
}

fn follow(order: Order, kept: &mut HashMap<String, Connection>) -> io::Result<Outcome> {
    let started = Instant::now();
    let missing = || io::Error::new(io::ErrorKind::NotFound, "no such kept connection");
    match order {
        Order::Get(ask) => send(&mut Connection::open(ask.target, ANSWER_MAX)?, &ask, started),
        Order::Open(name, ask) => {
            let mut connection = Connection::open(ask.target, ANSWER_MAX)?;
            let outcome = send(&mut connection, &ask, started)?;
            kept.insert(name, connection);
            Ok(outcome)
        }
        Order::Again(name, ask) => send(kept.get_mut(&name).ok_or_else(missing)?, &ask, started),
        Order::AwaitClose(name) => {
            if kept.get_mut(&name).ok_or_else(missing)?.wait_closed() {
                kept.remove(&name);
                return Ok(Outcome::Closed { took_us: micros(started) });
            }
            Err(io::Error::new(io::ErrorKind::TimedOut, "the connection is still open"))
        }
        Order::Close(name) => {
            kept.remove(&name).ok_or_else(missing)?;
            Ok(Outcome::Closed { took_us: micros(started) })
        }
        Order::Hear(target) => hear(target, started),
        Order::Load(plan) => Ok(Outcome::Loaded(load::run(&plan)?)),
    }
}

fn send(connection: &mut Connection, ask: &Ask, started: Instant) -> io::Result<Outcome> {
    let answer = connection.request("GET", &ask.path, &ask.headers)?;
    let status = answer.status().ok_or_else(|| io::Error::other("an answer without a status"))?;
    Ok(Outcome::Answer { status, body: answer.text(), took_us: micros(started) })
}

fn hear(target: SocketAddr, started: Instant) -> io::Result<Outcome> {
    let stream = TcpStream::connect_timeout(&target, ANSWER_MAX)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    let mut line = String::new();
    BufReader::new(stream.take(4096)).read_line(&mut line)?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Outcome::Heard { line: line.trim_end().into(), took_us: micros(started) })
}

fn plain_reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionReset => "connection reset".into(),
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        io::ErrorKind::UnexpectedEof => "closed without an answer".into(),
        io::ErrorKind::WouldBlock => "no answer in time".into(),
        _ => error.to_string(),
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
