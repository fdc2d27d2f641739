//! Runs one load in one room and measures it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use halo::lab::{LabError, Result};

use crate::model::{Figures, Load, Way};
use crate::plan::RATE_CONNECTIONS;
use crate::pod::remote::Client;
use crate::pod::tally::{latency, merge};
use crate::pod::{Measured, Order, Work};
use crate::room::{Room, pids};
use crate::usage::{Reading, SystemCalls};

/// Part of a measurement's length that a load runs before it is measured.
const WARM: f64 = 0.3;
/// How long system calls are counted, seconds. Counting slows what it counts, so it has a window of its own.
const COUNTED: f64 = 0.4;
/// What a client may take to answer besides the time that it measures.
const ANSWER_MAX: Duration = Duration::from_secs(45);
/// Rest of the proxies before their memory at rest is looked at, seconds.
const REST: f64 = 0.5;
/// In as many seconds a noisy neighbour must have moved something.
const NOISE: f64 = 0.5;
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

/// Two neighbours on the same nodes: the requests of one are measured, while the other moves bulk. The bytes are those of
/// both.
fn noisy(room: &Room, (per_second, streams): (u32, usize), manner: Manner) -> Result<Figures> {
    let (Some(neighbour), Some(target)) = (room.clients.get(1), room.raw().get(1).copied()) else {
        return Err(missing("a second pair of pods"));
    };
    let noise = Work::Bulk { targets: vec![target], way: Way::Up, streams };
    let figures = measure(room, &[steady(room, per_second)?, (neighbour, noise)], manner)?;
    let requests = 2 * MESSAGE as u64 * figures.operations;
    // Without noise nothing is shown. A moment may pass without any.
    let told = figures.bytes > requests || manner.seconds < NOISE;
    if told { Ok(figures) } else { Err(missing("bytes of the noisy neighbour")) }
}

/// One pair is measured while the other servers leave the mesh and come back, one after another.
fn churn(room: &Room, per_second: u32, manner: Manner) -> Result<Figures> {
    let (over, cycles) = (AtomicBool::new(false), AtomicU64::new(0));
    let names = room.server_names();
    let fleet = [steady(room, per_second)?];
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
    let measured = thread::scope(|scope| {
        let churning = scope.spawn(come_and_go);
        let measured = {
            let _over = Over(&over);
            measure(room, &fleet, manner)
        };
        let churned = churning.join().unwrap_or_else(|_| Err(missing("the thread that moves pods")));
        measured.and_then(|figures| churned.map(|()| figures))
    })?;
    if cycles.load(Ordering::Relaxed) == 0 { Err(missing("pods that come and go")) } else { Ok(measured) }
}

/// Says that something is over when it is dropped, be it by a panic, for which the other thread would wait for ever.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
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

/// Prepares, warms up, measures and ends what the clients of a fleet do. Whatever fails, every client is told to end,
/// so that the next load finds the room at rest. That a proxy has ended explains more than what its clients say, and it
/// spends nothing any more, so it fails the run in any case.
fn measure(room: &Room, fleet: &[(&Client, Work)], manner: Manner) -> Result<Figures> {
    room.ensure_running()?;
    let prepared = all(fleet, |work| Order::Prepare(work.clone()));
    let measured = prepared.and_then(|()| measured(room, fleet, manner));
    let finished = all(fleet, |_| Order::Finish);
    room.ensure_running()?;
    measured.and_then(|figures| finished.map(|()| figures))
}

/// Gives every client an order, all at once, and waits for every answer; the first error.
fn all(fleet: &[(&Client, Work)], order: impl Fn(&Work) -> Order) -> Result<()> {
    let sent: Vec<_> = fleet.iter().map(|(client, work)| client.send(&order(work))).collect();
    let answer =
        |((client, _), sent): (&(&Client, Work), Result<()>)| sent.and_then(|()| client.ready(ANSWER_MAX));
    let answers: Vec<_> = fleet.iter().zip(sent).map(answer).collect();
    answers.into_iter().collect()
}

fn measured(room: &Room, fleet: &[(&Client, Work)], manner: Manner) -> Result<Figures> {
    let visits = fleet.iter().any(|(_, work)| matches!(work, Work::Visit { .. }));
    let idle = fleet.iter().all(|(_, work)| matches!(work, Work::Idle { .. }));
    let seconds = if idle { REST } else { manner.seconds };
    if !visits && !idle {
        thread::sleep(Duration::from_secs_f64(manner.seconds * WARM));
    }
    // To tell its operations costs a proxy CPU time, hence outside of where that is taken, and memory, which is what
    // idle connections are about.
    let operations = || if idle { Vec::new() } else { room.operations() };
    let (told, before, begin) = (operations(), room.look(), Instant::now());
    let total = collect(fleet, seconds)?;
    let elapsed = begin.elapsed().as_secs_f64();
    // Visits are all that happens, and some of what they cost comes after them.
    let steady_s = (!visits && !idle).then_some(total.seconds);
    let (proxies, clients, servers) = before.since(steady_s);
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
    for (spent, pair) in figures.proxies.iter_mut().zip(told.into_iter().zip(operations())) {
        spent.ring_operations = since(pair, steady_s).map(|count| count.round() as u64);
    }
    if manner.system_calls && !idle {
        count_system_calls(room, fleet, &mut figures)?;
    }
    Ok(figures)
}

/// Counts system calls in a window of its own, and scales them to what was done in the measured one.
fn count_system_calls(room: &Room, fleet: &[(&Client, Work)], figures: &mut Figures) -> Result<()> {
    let Some(mut calls) = SystemCalls::count(&pids(&room.proxies())) else { return Ok(()) };
    let before = calls.read();
    let total = collect(fleet, COUNTED)?;
    let counted = before.into_iter().zip(calls.read());
    let done = |operations: u64, bytes: u64| if operations > 0 { operations } else { bytes } as f64;
    let (then, now) = (done(total.operations, total.bytes), done(figures.operations, figures.bytes));
    if then == 0.0 {
        return Ok(());
    }
    for (spent, pair) in figures.proxies.iter_mut().zip(counted) {
        spent.system_calls =
            since(pair, Some(total.seconds)).map(|calls| (calls * now / then).round() as u64);
    }
    Ok(())
}

/// What has come between two readings, where there are both.
fn since((then, now): (Option<Reading>, Option<Reading>), steady_s: Option<f64>) -> Option<f64> {
    Some(now?.since(then?, steady_s))
}

/// Lets every client measure at once.
fn collect(fleet: &[(&Client, Work)], seconds: f64) -> Result<Measured> {
    if fleet.is_empty() {
        thread::sleep(Duration::from_secs_f64(seconds));
        return Ok(Measured { seconds, ..Measured::default() });
    }
    let order = Order::Measure(seconds);
    let sent: Vec<_> = fleet.iter().map(|(client, _)| client.send(&order)).collect();
    let limit = ANSWER_MAX + Duration::from_secs_f64(seconds);
    let part =
        |((client, _), sent): (&(&Client, Work), Result<()>)| sent.and_then(|()| client.measured(limit));
    let parts: Vec<_> = fleet.iter().zip(sent).map(part).collect();
    Ok(merge(&parts.into_iter().collect::<Result<Vec<_>>>()?))
}
