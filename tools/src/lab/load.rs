//! A closed-loop load: each connection sends its next request when it has the last answer.

use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::http::Connection;

/// A request that takes longer is an error.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Pause of a connection after an error, so that a refusing peer is not hammered.
const PAUSE: Duration = Duration::from_millis(10);

/// How much to send.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadPlan {
    /// Where to.
    pub target: SocketAddr,
    /// Connections, each kept open.
    pub connections: usize,
    /// For how long, seconds.
    pub seconds: f64,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct LoadReport {
    /// Answers per second.
    pub rps: f64,
    /// Median latency, microseconds.
    pub p50_us: u64,
    /// 99th percentile, microseconds.
    pub p99_us: u64,
    /// Requests and connections that failed.
    pub errors: u64,
    /// Answers.
    pub requests: u64,
}

#[derive(Debug)]
struct Tally {
    latency_us: Histogram<u64>,
    errors: u64,
}

impl Tally {
    fn new() -> io::Result<Self> {
        let latency_us = Histogram::new_with_bounds(1, 60_000_000, 3).map_err(io::Error::other)?;
        Ok(Self { latency_us, errors: 0 })
    }
}

/// Runs the load to its end.
pub fn run(plan: &LoadPlan) -> io::Result<LoadReport> {
    let (started, length) = (Instant::now(), Duration::from_secs_f64(plan.seconds));
    let mut total = Tally::new()?;
    let tallies: Vec<io::Result<Tally>> = thread::scope(|scope| {
        let connection = || drive(plan.target, started + length);
        let threads: Vec<_> = (0..plan.connections).map(|_| scope.spawn(connection)).collect();
        let panicked = |_| Err(io::Error::other("a connection's thread panicked"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    });
    for tally in tallies {
        let tally = tally?;
        total.latency_us.add(&tally.latency_us).map_err(io::Error::other)?;
        total.errors += tally.errors;
    }
    let latency = &total.latency_us;
    Ok(LoadReport {
        rps: latency.len() as f64 / started.elapsed().as_secs_f64().max(f64::MIN_POSITIVE),
        p50_us: latency.value_at_quantile(0.5),
        p99_us: latency.value_at_quantile(0.99),
        errors: total.errors,
        requests: latency.len(),
    })
}

fn drive(target: SocketAddr, end: Instant) -> io::Result<Tally> {
    let mut tally = Tally::new()?;
    let mut connection = None;
    while Instant::now() < end {
        let started = Instant::now();
        match request(&mut connection, target) {
            Ok(()) => {
                let took = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
                tally.latency_us.saturating_record(took);
            }
            Err(_) => {
                tally.errors += 1;
                connection = None;
                thread::sleep(PAUSE);
            }
        }
    }
    Ok(tally)
}

fn request(connection: &mut Option<Connection>, target: SocketAddr) -> io::Result<()> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(Connection::open(target, ANSWER_MAX)?),
    };
    match connection.request("GET", "/load", &[])?.status() {
        Some(200) => Ok(()),
        _ => Err(io::Error::other("an answer other than 200")),
    }
}
