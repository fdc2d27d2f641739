//! Runs one load in one room and measures it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use halo::lab::{LabError, Result};

use crate::model::{Figures, Load, Way};
use crate::plan::RATE_CONNECTIONS;
use crate::pod::remote::Client;
use crate::pod::tally::{latency, merge};
use crate::pod::{Answer, Measured, Order, Work};
use crate::room::Room;
use crate::usage::SystemCalls;

/// Part of a measurement's length that a load runs before it is measured.
const WARM: f64 = 0.3;
/// How long system calls are counted, seconds. Counting slows what it counts, so it has a window of its own.
const COUNTED: f64 = 0.4;
/// What a client may take to answer besides the time that it measures.
const ANSWER_MAX: Duration = Duration::from_secs(45);
/// Rest of the proxies before their memory at rest is looked at, seconds.
const REST: f64 = 0.5;
/// Size of the messages beside which something else goes on.
const MESSAGE: usize = 1024;

/// How a run is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    /// Length of the measurement, seconds.
    pub(crate) seconds: f64,
    /// Count system calls too.
    pub(crate) system_calls: bool,
}

/// Runs a load and measures it. The room is at rest before and after.
pub(crate) fn run(room: &Room, load: &Load, manner: Manner) -> Result<Figures> {
    match load {
        Load::Idle { connections: 0 } => {
            thread::sleep(Duration::from_secs_f64(REST));
            measure(room, &[], manner)
        }
        Load::Cold => {
            let targets = room.raw();
            let shift = |n: usize| [&targets[n % targets.len()..], &targets[..n % targets.len()]].concat();
            let works = (0..room.clients.len()).map(|n| Work::Visit { targets: shift(n) });
            let fleet: Vec<_> = room.clients.iter().zip(works).collect();
            measure(room, &fleet, Manner { system_calls: false, ..manner })
        }
        Load::Noisy { per_second, streams } => noisy(room, (*per_second, *streams), manner),
        Load::Churn { per_second } => churn(room, *per_second, manner),
        _ => {
            let fleet: Vec<_> = room.clients.iter().zip(works(room, load)).collect();
            measure(room, &fleet, manner)
        }
    }
}

/// The work of every client, which share the load's connections.
fn works(room: &Room, load: &Load) -> Vec<Work> {
    let clients = room.clients.len();
    let share = |total: usize, n: usize| total / clients + usize::from(n < total % clients);
    (0..clients)
        .map(|n| match *load {
            Load::Bulk { way, streams } => {
                Work::Bulk { targets: room.raw(), way, streams: share(streams, n) }
            }
            Load::Requests { bytes, connections } => Work::Requests {
                targets: room.http(),
                bytes,
                connections: share(connections, n),
                per_second: None,
            },
            Load::Rate { bytes, connections, per_second } => Work::Requests {
                targets: room.http(),
                bytes,
                connections: share(connections, n),
                per_second: u32::try_from(share(per_second as usize, n)).ok(),
            },
            Load::Connects { concurrency } => {
                Work::Connects { targets: room.raw(), concurrency: share(concurrency, n) }
            }
            Load::Idle { connections } => {
                Work::Idle { targets: room.raw(), connections: share(connections, n) }
            }
            Load::Cold | Load::Noisy { .. } | Load::Churn { .. } => Work::Visit { targets: Vec::new() },
        })
        .collect()
}

/// Two neighbours on the same nodes: one is measured, the other moves bulk.
fn noisy(room: &Room, (per_second, streams): (u32, usize), manner: Manner) -> Result<Figures> {
    let (Some(neighbour), Some(target)) = (room.clients.get(1), room.raw().get(1).copied()) else {
        return Err(missing("a second pair of pods"));
    };
    neighbour.prepare(Work::Bulk { targets: vec![target], way: Way::Up, streams })?;
    let measured = measure(room, &[steady(room, per_second)?], manner);
    neighbour.finish()?;
    measured
}

/// One pair is measured while the other servers leave the mesh and come back, one after another.
fn churn(room: &Room, per_second: u32, manner: Manner) -> Result<Figures> {
    let (over, cycles) = (AtomicBool::new(false), AtomicU64::new(0));
    let names = room.server_names();
    let fleet = [steady(room, per_second)?];
    thread::scope(|scope| {
        let come_and_go = || -> Result<()> {
            for name in names.iter().skip(1).cycle() {
                if over.load(Ordering::Relaxed) {
                    return Ok(());
                }
                room.cycle(name)?;
                cycles.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        };
        let churning = scope.spawn(come_and_go);
        let measured = measure(room, &fleet, manner);
        over.store(true, Ordering::Relaxed);
        churning.join().unwrap_or_else(|_| Err(missing("the thread that moves pods")))?;
        measured
    })
}

/// The pair that is measured beside something else.
fn steady(room: &Room, per_second: u32) -> Result<(&Client, Work)> {
    let (client, target) =
        room.clients.first().zip(room.http().first().copied()).ok_or_else(|| missing("pods"))?;
    let connections = RATE_CONNECTIONS;
    Ok((
        client,
        Work::Requests { targets: vec![target], bytes: MESSAGE, connections, per_second: Some(per_second) },
    ))
}

fn missing(what: &str) -> LabError {
    LabError::Process { process: "the benchmark".into(), problem: format!("{what} are missing") }
}

/// Prepares, warms up, measures and ends what the clients of a fleet do.
fn measure(room: &Room, fleet: &[(&Client, Work)], manner: Manner) -> Result<Figures> {
    for (client, work) in fleet {
        client.send(&Order::Prepare(work.clone()))?;
    }
    let prepared: Vec<_> = fleet.iter().map(|(client, _)| ready(client)).collect();
    let result = prepared.into_iter().collect::<Result<()>>().and_then(|()| measured(room, fleet, manner));
    for (client, _) in fleet {
        client.send(&Order::Finish)?;
    }
    let finished: Vec<_> = fleet.iter().map(|(client, _)| ready(client)).collect();
    finished.into_iter().collect::<Result<()>>()?;
    result
}

fn ready(client: &Client) -> Result<()> {
    match client.receive(ANSWER_MAX)? {
        Answer::Ready => Ok(()),
        other => {
            Err(LabError::Process { process: client.process.name().into(), problem: format!("{other:?}") })
        }
    }
}

fn measured(room: &Room, fleet: &[(&Client, Work)], manner: Manner) -> Result<Figures> {
    let visits = fleet.iter().any(|(_, work)| matches!(work, Work::Visit { .. }));
    let idle = fleet.iter().all(|(_, work)| matches!(work, Work::Idle { .. }));
    let seconds = if idle { REST } else { manner.seconds };
    if !visits && !idle {
        thread::sleep(Duration::from_secs_f64(manner.seconds * WARM));
    }
    let (before, begin) = (room.look(), Instant::now());
    let total = collect(fleet, seconds)?;
    let elapsed = begin.elapsed().as_secs_f64();
    let (proxies, clients, servers) = before.since();
    let mut figures = Figures {
        seconds: if total.seconds > 0.0 { total.seconds } else { elapsed },
        operations: total.operations,
        bytes: total.bytes,
        errors: total.errors,
        first_error: total.first_error.clone(),
        latency: latency(&total.latency_ns),
        proxies,
        clients,
        servers,
    };
    if manner.system_calls && !idle {
        count_system_calls(room, fleet, &mut figures)?;
    }
    Ok(figures)
}

/// Counts system calls in a window of its own, and scales them to what was done in the measured one.
fn count_system_calls(room: &Room, fleet: &[(&Client, Work)], figures: &mut Figures) -> Result<()> {
    let counters: Vec<_> = room.proxies().iter().map(|process| SystemCalls::count(process.pid())).collect();
    if counters.iter().all(Option::is_none) {
        return Ok(());
    }
    let begin = Instant::now();
    let total = collect(fleet, COUNTED)?;
    let counted: Vec<_> = counters.into_iter().map(|counter| counter.and_then(SystemCalls::finish)).collect();
    // The counters run a little longer than the window.
    let inside = COUNTED / begin.elapsed().as_secs_f64().max(COUNTED);
    let done = |operations: u64, bytes: u64| if operations > 0 { operations } else { bytes };
    let (then, now) = (done(total.operations, total.bytes), done(figures.operations, figures.bytes));
    if then == 0 {
        return Ok(());
    }
    for (spent, calls) in figures.proxies.iter_mut().zip(counted) {
        spent.system_calls = calls.map(|calls| (calls as f64 * inside * now as f64 / then as f64) as u64);
    }
    Ok(())
}

/// Lets every client measure at once.
fn collect(fleet: &[(&Client, Work)], seconds: f64) -> Result<Measured> {
    for (client, _) in fleet {
        client.send(&Order::Measure(seconds))?;
    }
    if fleet.is_empty() {
        thread::sleep(Duration::from_secs_f64(seconds));
        return Ok(Measured { seconds, ..Measured::default() });
    }
    let limit = ANSWER_MAX + Duration::from_secs_f64(seconds);
    let parts: Vec<_> = fleet.iter().map(|(client, _)| client.measured(limit)).collect();
    Ok(merge(&parts.into_iter().collect::<Result<Vec<_>>>()?))
}
