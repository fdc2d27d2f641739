//! The parts of a scale run: what each does and the figures that come of it.

use std::thread;
use std::time::{Duration, Instant};

use halo::lab::node::NodeProxy;
use halo::lab::process::{Process, wait_for};
use halo::lab::{LabError, Result};

use super::figures::Figure;
use super::figures::Unit::{Bytes, Cores, Count, Microseconds, Ratio};
use super::stage::{Feed, Memory, Stage, received};
use super::subscribers::Order;
use super::{Plan, clock};
use crate::crowd::Crowd;
use crate::model::Latency;
use crate::pod::remote::Client;
use crate::pod::tally::latency;
use crate::pod::{HTTP_PORT, Measured, Order as Load, Work};
use crate::usage::Usage;

/// Goals for a mesh of the full size: what a node may hold, in all and for each workload, and what a change may cost it.
const NODE_MAX: f64 = (200 << 20) as f64;
const WORKLOAD_MAX: f64 = 1024.0;
const CHANGE_US_MAX: f64 = 1000.0;
/// "No step": the most that changes may make of the median latency, and of the 99th percentile.
const STEP_MAX: (f64, f64) = (1.1, 1.25);
/// A client's answer, besides the time that it measures.
const ANSWER_MAX: Duration = Duration::from_secs(45);
/// How often the node is looked at that is to adopt a change.
const LOOK: Duration = Duration::from_micros(500);
/// How long a change may take to be adopted, or received by every subscriber.
const CHANGE_MAX: Duration = Duration::from_secs(60);
/// Size of a request, connections that carry them, and requests a second.
const REQUEST: usize = 1024;
const CONNECTIONS: usize = 8;
/// Until the node tells of a tunnel that carries requests.
const TUNNEL_MAX: Duration = Duration::from_secs(10);
const REQUESTS_PER_SECOND: u32 = 500;

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// The figures of a process's memory.
fn memory(part: &'static str, who: &str, memory: Memory) -> [Figure; 3] {
    [
        Figure::new(part, format!("{who}, resident"), memory.resident as f64, Bytes),
        Figure::new(part, format!("{who}, Pss"), memory.proportional as f64, Bytes),
        Figure::new(part, format!("{who}, peak"), memory.peak as f64, Bytes),
    ]
}

/// A node that starts: how long until it is ready, and what it holds then.
pub(super) fn node(
    plan: &Plan,
    stage: &Stage,
    feed: &Feed,
    empty: Memory,
) -> Result<(NodeProxy, Vec<Figure>)> {
    let part = "node";
    let mut figures = vec![Figure::new(part, "controller ready", us(feed.ready), Microseconds)];
    let controller = Memory::at_rest(&feed.controller.process, !plan.tiny)?;
    figures.extend(memory(part, "controller", controller));
    let (node, ready) = stage.node(&feed.controller)?;
    figures.push(Figure::new(part, "fresh node ready", us(ready), Microseconds));
    let known = metric(&node, "halo_workloads")?;
    let expected = f64::from(plan.workloads) + stage.topology.pods.len() as f64;
    if known != expected {
        let problem = format!("is ready with {known} of {expected} workloads");
        return Err(fault(&node.process, problem));
    }
    let rest = Memory::at_rest(&node.process, !plan.tiny)?;
    let share = rest.resident.saturating_sub(empty.resident) as f64 / f64::from(plan.workloads);
    let [resident, proportional, peak] = memory(part, "node", rest);
    let judged = |figure: Figure, limit| if plan.is_full() { figure.at_most(limit) } else { figure };
    figures.extend([judged(resident, NODE_MAX), proportional, peak]);
    figures.push(Figure::new(part, "node without a mesh, resident", empty.resident as f64, Bytes));
    figures.push(judged(Figure::new(part, "node, a workload", share, Bytes), WORKLOAD_MAX));
    Ok((node, figures))
}

/// What a node holds that knows a mesh of nothing but its pods.
pub(super) fn empty(plan: &Plan, stage: &Stage) -> Result<Memory> {
    let feed = stage.feed(0, 0)?;
    let (node, _) = stage.node(&feed.controller)?;
    Memory::at_rest(&node.process, !plan.tiny)
}

/// Changes one at a time: how soon each is in force, and what it costs.
pub(super) fn changes(plan: &Plan, feed: &Feed, node: &NodeProxy) -> Result<Vec<Figure>> {
    let part = "changes";
    let mut figures = adoption(plan, feed, node)?;
    // The load of changes alone, against what both processes do at rest.
    let seconds = plan.seconds / 4.0;
    let pids = [node.process.pid(), feed.controller.process.pid()];
    let spent = |before: &[Usage]| {
        let after = Usage::of(&pids);
        [0, 1].map(|n: usize| after[n].since(before[n], None, ("", pids[n])).cpu_s)
    };
    let begin = Usage::of(&pids);
    thread::sleep(Duration::from_secs_f64(seconds));
    let rest = spent(&begin);
    let (edits, publishing) = (metric(node, EDITS)?, metric(node, PUBLISHING)?);
    let begin = Usage::of(&pids);
    feed.begin(plan, seconds)?;
    let changed = feed.changed(seconds)?;
    let busy = spent(&begin);
    let count = changed.count as f64;
    let longest = Duration::from_nanos(changed.longest_ns);
    figures.push(Figure::new(part, "controller, slowest change", us(longest), Microseconds));
    let cost = |n: usize| (busy[n] - rest[n]).max(0.0) * 1e6 / count.max(1.0);
    let (edits, publishing) = (metric(node, EDITS)? - edits, metric(node, PUBLISHING)? - publishing);
    let goal = |figure: Figure| if plan.is_full() { figure.at_most(CHANGE_US_MAX) } else { figure };
    figures.push(goal(Figure::new(part, "node, CPU for a change", cost(0), Microseconds)));
    let published = publishing / 1000.0 / edits.max(1.0);
    figures.push(goal(Figure::new(part, "node, to publish one", published, Microseconds)));
    figures.push(Figure::new(part, "controller, CPU for a change", cost(1), Microseconds));
    Ok(figures)
}

/// From a change at the controller to every shard of the node deciding by it.
fn adoption(plan: &Plan, feed: &Feed, node: &NodeProxy) -> Result<Vec<Figure>> {
    let mut times = Vec::new();
    for _ in 0..plan.single {
        let before = metric(node, ADOPTED)?;
        let changed = feed.change()?;
        let deadline = Instant::now() + CHANGE_MAX;
        while metric(node, ADOPTED)? <= before {
            if Instant::now() > deadline {
                return Err(fault(&node.process, format!("has not adopted a change within {CHANGE_MAX:?}")));
            }
            thread::sleep(LOOK);
        }
        times.push((clock::now_ns() - changed.began_ns) as f64 / 1000.0);
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    let named = |name, value| Figure::new("changes", name, value, Microseconds);
    Ok(vec![named("change to adoption, median", at(0.5)), named("change to adoption, slowest", at(1.0))])
}

/// Requests through the node, with changes and without, by turns.
pub(super) fn traffic(plan: &Plan, stage: &Stage, feed: &Feed, node: &NodeProxy) -> Result<Vec<Figure>> {
    let (client, server) = stage.applications(node)?;
    let target = (stage.server()?.address, HTTP_PORT).into();
    let work = Work::Requests {
        targets: vec![target],
        bytes: REQUEST,
        connections: CONNECTIONS,
        per_second: Some(REQUESTS_PER_SECOND),
    };
    client.send(&Load::Prepare(work))?;
    client.ready(ANSWER_MAX)?;
    // What it tells of may be a moment old.
    let tunnels = wait_for("a tunnel", TUNNEL_MAX, || match metric(node, "halo_shard_tunnels") {
        Ok(tunnels) if tunnels >= 1.0 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    tunnels.map_err(|_| fault(&node.process, "carries requests without a tunnel".into()))?;
    let seconds = plan.seconds / f64::from(plan.turns);
    let (mut quiet, mut busy, mut changes) = (Vec::new(), Vec::new(), 0);
    let adopted = metric(node, ADOPTED)?;
    for turn in 0..plan.turns {
        // What disturbs the machine for a while so disturbs both.
        for with_changes in if turn % 2 == 0 { [false, true] } else { [true, false] } {
            if with_changes {
                feed.begin(plan, seconds)?;
                busy.push(measured(&client, seconds)?);
                changes += feed.changed(seconds)?.count;
            } else {
                quiet.push(measured(&client, seconds)?);
            }
        }
    }
    let adopted = metric(node, ADOPTED)? - adopted;
    client.send(&Load::Finish)?;
    client.ready(ANSWER_MAX)?;
    drop((client, server));
    Ok(steps(plan, (&quiet, &busy), (changes as f64, adopted)))
}

fn measured(client: &Client, seconds: f64) -> Result<Measured> {
    client.send(&Load::Measure(seconds))?;
    client.measured(ANSWER_MAX + Duration::from_secs_f64(seconds))
}

/// What changes make of the latency: ratios within each turn, then their median, as the machine is not the same for long.
fn steps(
    plan: &Plan,
    (quiet, busy): (&[Measured], &[Measured]),
    (changes, adopted): (f64, f64),
) -> Vec<Figure> {
    let part = "traffic";
    let failed = |all: &[Measured]| all.iter().map(|one| one.errors).sum::<u64>() as f64;
    let mut figures = vec![
        Figure::new(part, "changes", changes, Count),
        Figure::new(part, "generations adopted", adopted, Count),
        Figure::new(part, "requests failed", failed(quiet) + failed(busy), Count).at_most(0.0),
    ];
    let told = |all: &[Measured]| -> Vec<Latency> {
        all.iter().filter_map(|one| latency(&one.latency_ns)).collect()
    };
    let (quiet, busy) = (told(quiet), told(busy));
    let mut compare = |name: &str, of: fn(&Latency) -> f64, limit| {
        let without = median(quiet.iter().map(of));
        let with = median(busy.iter().map(of));
        let ratio = median(quiet.iter().zip(&busy).map(|(quiet, busy)| of(busy) / of(quiet)));
        figures.push(Figure::new(part, format!("{name} without changes"), without, Microseconds));
        figures.push(Figure::new(part, format!("{name} with changes"), with, Microseconds));
        let ratio = Figure::new(part, format!("{name}, with ÷ without"), ratio, Ratio);
        figures.push(if plan.is_full() { ratio.at_most(limit) } else { ratio });
    };
    compare("p50", |latency| latency.p50, STEP_MAX.0);
    compare("p99", |latency| latency.p99, STEP_MAX.1);
    figures
}

/// The median, or 0 of nothing.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Many subscribers at once: the whole mesh to all of them, then changes.
pub(super) fn subscribers(plan: &Plan, stage: &Stage, feed: &Feed) -> Result<Vec<Figure>> {
    let part = "subscribers";
    let process = &feed.controller.process;
    let pids = [process.pid()];
    let cpu = || Usage::of(&pids)[0];
    let before = Memory::at_rest(process, !plan.tiny)?;
    let (began, spent) = (Instant::now(), cpu());
    let talk = stage.subscribers(plan.subscribers, &feed.controller)?;
    let whole = received(&talk, Order::Await { seconds_max: plan.fill_max.as_secs_f64() }, plan.fill_max)?;
    let took = began.elapsed();
    let filled = cpu().since(spent, None, ("", pids[0]));
    let mut figures = vec![
        Figure::new(part, "subscribers", plan.subscribers as f64, Count),
        Figure::new(part, "whole mesh to all", us(took), Microseconds),
        Figure::new(part, "bytes of the mesh to each", whole.bytes as f64 / plan.subscribers as f64, Bytes),
        Figure::new(part, "controller, cores meanwhile", filled.cpu_s / took.as_secs_f64(), Cores),
    ];
    let during = Memory::of(process);
    let rest = Memory::at_rest(process, !plan.tiny)?;
    let share = rest.resident.saturating_sub(before.resident) as f64 / plan.subscribers as f64;
    figures.push(Figure::new(part, "controller, peak", during.peak as f64, Bytes));
    figures.push(Figure::new(part, "controller, resident", rest.resident as f64, Bytes));
    figures.push(Figure::new(part, "controller, a subscriber", share, Bytes));
    let (mut medians, mut lasts) = (Vec::new(), Vec::new());
    let spent = cpu();
    for _ in 0..plan.single {
        received(&talk, Order::Expect, CHANGE_MAX)?;
        let changed = feed.change()?;
        let awaited = Order::Await { seconds_max: CHANGE_MAX.as_secs_f64() };
        let at_ns = received(&talk, awaited, CHANGE_MAX)?.at_ns;
        let since = |at_ns: u64| at_ns.saturating_sub(changed.began_ns) as f64 / 1000.0;
        medians.push(since(at_ns[at_ns.len() / 2]));
        lasts.push(since(at_ns[at_ns.len() - 1]));
    }
    let spent = cpu().since(spent, None, ("", pids[0])).cpu_s;
    for (name, times) in [("a change to half of them", medians), ("a change to all of them", lasts)] {
        figures.push(Figure::new(part, name, median(times.into_iter()), Microseconds));
    }
    let each = spent * 1e6 / plan.single as f64;
    figures.push(Figure::new(part, "controller, CPU for a change to all", each, Microseconds));
    Ok(figures)
}

/// `halo controller` with the same mesh in a file, and a node that follows it.
pub(super) fn file(plan: &Plan, stage: &Stage) -> Result<Vec<Figure>> {
    let part = "file";
    let crowd = Crowd::new(plan.workloads, plan.services);
    let residents: Vec<_> = stage.residents().iter().map(super::feed::Resident::workload).collect();
    let text = crowd.state_file(&residents);
    let mut figures = vec![Figure::new(part, "state file", text.len() as f64, Bytes)];
    let (controller, ready) = stage.control_from(&text)?;
    figures.push(Figure::new(part, "controller ready", us(ready), Microseconds));
    figures.extend(memory(part, "controller", Memory::at_rest(&controller.process, !plan.tiny)?));
    let (node, ready) = stage.node(&controller)?;
    figures.push(Figure::new(part, "fresh node ready", us(ready), Microseconds));
    let known = metric(&node, "halo_workloads")?;
    figures.push(Figure::new(part, "workloads on the node", known, Count));
    figures.extend(memory(part, "node", Memory::at_rest(&node.process, !plan.tiny)?));
    Ok(figures)
}

/// The oldest generation that a shard decides by.
const ADOPTED: &str = "halo_shard_generation";
const EDITS: &str = "halo_published_edits_total";
const PUBLISHING: &str = "halo_publish_nanoseconds_total";

/// One of the node's metrics.
fn metric(node: &NodeProxy, name: &str) -> Result<f64> {
    let text = node.metrics()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = line.and_then(|value| value.trim().parse().ok());
    value.ok_or_else(|| fault(&node.process, format!("tells no {name}")))
}

pub(super) fn fault(process: &Process, problem: String) -> LabError {
    LabError::Process { process: process.name().into(), problem }
}
