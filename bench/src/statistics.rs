//! From figures to what is compared: a metric's value in one run, its spread over the runs, and ratios.
//!
//! A ratio is made of two runs of the same round, which are close in time, and only then summed up over the rounds. A
//! figure that does not exist, be it for a run that failed or a division by zero, is `None` and takes no part.

use crate::model::{
    Case, ENVOY_HTTP, ENVOY_TCP, Figures, HALO, Latency, Load, NO_MESH, Outcome, Report, Run, Spent,
};

/// Added latencies below this count as this much in a ratio, µs: less is noise of the clock, and may be negative.
pub(crate) const ADDED_US_MIN: f64 = 0.1;
/// Share of failed operations above which a case's figures prove nothing.
pub(crate) const ERRORS_SHARE_MAX: f64 = 0.001;
const MEBIBYTE: f64 = 1024.0 * 1024.0;

/// One thing that can be read off a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Metric {
    /// Payload bits per second.
    Throughput,
    /// Operations per second.
    Rate,
    /// CPU time of all proxies for a unit of work.
    ProxyCpu,
    /// Median latency.
    P50,
    /// 90th percentile.
    P90,
    /// 99th percentile.
    P99,
    /// 99.9th percentile.
    P999,
    /// The slowest operation.
    Max,
    /// Median latency over that without a mesh in the same round.
    AddedP50,
    /// The same at the 90th percentile.
    AddedP90,
    /// The same at the 99th percentile.
    AddedP99,
    /// The same at the 99.9th percentile.
    AddedP999,
    /// Proportional memory of all proxies at the end of the run.
    Memory,
    /// The proxies' largest resident memory.
    MemoryPeak,
    /// Context switches of all proxies for a unit of work.
    Switches,
    /// System calls of all proxies for a unit of work.
    SystemCalls,
    /// Operations of all proxies' rings for a unit of work.
    RingOperations,
    /// CPU time of the load's clients for a unit of work.
    ClientCpu,
    /// CPU time of the servers for a unit of work.
    ServerCpu,
    /// Operations that failed.
    Errors,
}

/// What the work of a load is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Bytes,
    Requests,
    Connections,
    Nothing,
}

impl Work {
    fn of(load: &Load) -> Self {
        match load {
            Load::Bulk { .. } => Self::Bytes,
            Load::Requests { .. } | Load::Rate { .. } | Load::Noisy { .. } | Load::Churn { .. } => {
                Self::Requests
            }
            Load::Connects { .. } | Load::Cold => Self::Connections,
            Load::Idle { .. } => Self::Nothing,
        }
    }

    /// How much of it was done; `None` if none.
    fn done(self, figures: &Figures) -> Option<f64> {
        let amount = match self {
            Self::Bytes => figures.bytes,
            Self::Requests | Self::Connections => figures.operations,
            Self::Nothing => 0,
        };
        (amount > 0).then_some(amount as f64)
    }

    /// Bytes or operations that CPU time is given for.
    fn cpu_unit(self) -> (f64, &'static str) {
        match self {
            Self::Bytes => (1e9, "s/GB"),
            Self::Requests => (1e5, "s/100k requests"),
            Self::Connections => (1e4, "s/10k connects"),
            Self::Nothing => (1.0, "s"),
        }
    }

    /// Bytes or operations that events are given for.
    fn event_unit(self) -> (f64, &'static str) {
        match self {
            Self::Bytes => (1e6, "/MB"),
            Self::Requests => (1e3, "/1000 requests"),
            Self::Connections => (1e3, "/1000 connects"),
            Self::Nothing => (1.0, ""),
        }
    }
}

impl Metric {
    /// All, in the order of the full table.
    pub(crate) const ALL: [Self; 20] = [
        Self::Throughput,
        Self::Rate,
        Self::ProxyCpu,
        Self::P50,
        Self::P90,
        Self::P99,
        Self::P999,
        Self::Max,
        Self::AddedP50,
        Self::AddedP90,
        Self::AddedP99,
        Self::AddedP999,
        Self::Memory,
        Self::MemoryPeak,
        Self::Switches,
        Self::SystemCalls,
        Self::RingOperations,
        Self::ClientCpu,
        Self::ServerCpu,
        Self::Errors,
    ];

    /// What proxies ask of the kernel.
    pub(crate) const OF_KERNEL: [Self; 3] = [Self::SystemCalls, Self::RingOperations, Self::Switches];

    /// What a load is about, the most telling first.
    pub(crate) fn main_of(load: &Load) -> &'static [Self] {
        match load {
            Load::Bulk { .. } => &[Self::ProxyCpu, Self::Throughput],
            Load::Requests { .. } => &[Self::ProxyCpu, Self::Rate, Self::AddedP50, Self::AddedP99],
            Load::Rate { .. } => &[Self::AddedP99, Self::AddedP50, Self::ProxyCpu, Self::P999],
            Load::Connects { .. } => &[Self::ProxyCpu, Self::Rate, Self::AddedP50, Self::AddedP99],
            Load::Cold => &[Self::ProxyCpu, Self::AddedP50, Self::AddedP99],
            Load::Idle { .. } => &[Self::Memory, Self::MemoryPeak],
            // Their CPU time is mostly that of the noise, or of the churn, of which each subject has its own amount.
            Load::Noisy { .. } | Load::Churn { .. } => &[Self::P99, Self::P999, Self::P50],
        }
    }

    /// Its name in a table.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Throughput => "throughput",
            Self::Rate => "rate",
            Self::ProxyCpu => "proxy CPU",
            Self::P50 => "p50",
            Self::P90 => "p90",
            Self::P99 => "p99",
            Self::P999 => "p99.9",
            Self::Max => "slowest",
            Self::AddedP50 => "p50 added",
            Self::AddedP90 => "p90 added",
            Self::AddedP99 => "p99 added",
            Self::AddedP999 => "p99.9 added",
            Self::Memory => "memory",
            Self::MemoryPeak => "memory, peak",
            Self::Switches => "switches",
            Self::SystemCalls => "system calls",
            Self::RingOperations => "ring operations",
            Self::ClientCpu => "client CPU",
            Self::ServerCpu => "server CPU",
            Self::Errors => "errors",
        }
    }

    /// Its unit under a load.
    pub(crate) fn unit(self, load: &Load) -> &'static str {
        let work = Work::of(load);
        match self {
            Self::Throughput => "Gbit/s",
            Self::Rate if work == Work::Connections => "connects/s",
            Self::Rate => "requests/s",
            Self::ProxyCpu | Self::ClientCpu | Self::ServerCpu => work.cpu_unit().1,
            Self::Switches | Self::SystemCalls | Self::RingOperations => work.event_unit().1,
            Self::Memory | Self::MemoryPeak => "MiB",
            Self::Errors => "operations",
            _ => "µs",
        }
    }

    /// Whether a ratio below 1 is good.
    pub(crate) fn lower_is_better(self) -> bool {
        !matches!(self, Self::Throughput | Self::Rate)
    }

    /// Whether it is what a subject adds to the latency without a mesh.
    pub(crate) fn is_added(self) -> bool {
        self.without_baseline().is_some()
    }

    /// For an added latency, the latency.
    fn without_baseline(self) -> Option<Self> {
        match self {
            Self::AddedP50 => Some(Self::P50),
            Self::AddedP90 => Some(Self::P90),
            Self::AddedP99 => Some(Self::P99),
            Self::AddedP999 => Some(Self::P999),
            _ => None,
        }
    }

    /// For a latency, where it stands in the record of one.
    fn latency(self, latency: &Latency) -> Option<f64> {
        match self {
            Self::P50 => Some(latency.p50),
            Self::P90 => Some(latency.p90),
            Self::P99 => Some(latency.p99),
            Self::P999 => Some(latency.p999),
            Self::Max => Some(latency.max),
            _ => None,
        }
    }
}

/// Values of several runs.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(crate) struct Summary {
    /// Of an even number of values, the mean of the middle two.
    pub(crate) median: f64,
    /// The least.
    pub(crate) min: f64,
    /// The largest.
    pub(crate) max: f64,
    /// How many values.
    pub(crate) runs: usize,
}

impl Summary {
    /// Sums up values; those that are no number are left out, and `None` stands for no values.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let upper = values[values.len() / 2];
        let lower = values[(values.len() - 1) / 2];
        Some(Self { median: f64::midpoint(lower, upper), min, max, runs: values.len() })
    }
}

/// A metric's value in one run, in [`Metric::unit`]. `baseline` is the run without a mesh of the same round, which only
/// added latencies need.
pub(crate) fn value(case: &Case, run: &Run, metric: Metric, baseline: Option<&Run>) -> Option<f64> {
    let figures = done(run)?;
    let work = Work::of(&case.load);
    let meshed = !figures.proxies.is_empty();
    let value = match metric {
        Metric::Throughput => {
            quotient(figures.bytes as f64 * 8e-9, figures.seconds).filter(|rate| *rate > 0.0)
        }
        Metric::Rate => quotient(figures.operations as f64, figures.seconds).filter(|rate| *rate > 0.0),
        Metric::ProxyCpu if meshed => cpu(work, figures, figures.proxy_cpu_s()),
        Metric::ClientCpu => cpu(work, figures, figures.clients.cpu_s),
        Metric::ServerCpu => cpu(work, figures, figures.servers.cpu_s),
        Metric::Memory if meshed => Some(figures.proxy_memory_bytes() as f64 / MEBIBYTE),
        Metric::MemoryPeak if meshed => Some(sum(figures, |spent| spent.memory_peak_bytes) / MEBIBYTE),
        Metric::Switches if meshed => events(work, figures, sum(figures, |spent| spent.switches)),
        Metric::SystemCalls if meshed => counted(work, figures, |spent| spent.system_calls),
        Metric::RingOperations if meshed => counted(work, figures, |spent| spent.ring_operations),
        Metric::ProxyCpu
        | Metric::Memory
        | Metric::MemoryPeak
        | Metric::Switches
        | Metric::SystemCalls
        | Metric::RingOperations => None,
        Metric::Errors => Some(figures.errors as f64),
        latency => match latency.without_baseline() {
            None => latency.latency(figures.latency.as_ref()?),
            Some(_) if run.subject == NO_MESH => None,
            Some(of) => Some(value(case, run, of, None)? - value(case, baseline?, of, None)?),
        },
    };
    value.filter(|value| value.is_finite())
}

fn done(run: &Run) -> Option<&Figures> {
    match &run.outcome {
        Outcome::Done(figures) => Some(figures),
        Outcome::Skipped(_) | Outcome::Failed(_) => None,
    }
}

fn sum(figures: &Figures, part: impl Fn(&Spent) -> u64) -> f64 {
    figures.proxies.iter().map(|spent| part(spent) as f64).sum()
}

fn cpu(work: Work, figures: &Figures, seconds: f64) -> Option<f64> {
    Some(seconds * work.cpu_unit().0 / work.done(figures)?)
}

fn events(work: Work, figures: &Figures, count: f64) -> Option<f64> {
    Some(count * work.event_unit().0 / work.done(figures)?)
}

/// Events for a unit of work, where every proxy counts them.
fn counted(work: Work, figures: &Figures, count: impl Fn(&Spent) -> Option<u64>) -> Option<f64> {
    let all = figures.proxies.iter().map(|spent| count(spent).map(|count| count as f64)).sum::<Option<f64>>();
    events(work, figures, all?)
}

/// `None` instead of an infinite or undefined quotient.
fn quotient(dividend: f64, divisor: f64) -> Option<f64> {
    (divisor > 0.0).then(|| dividend / divisor).filter(|quotient| quotient.is_finite())
}

/// The run of a subject in a round that was measured.
fn run_of<'a>(case: &'a Case, subject: &str, round: usize) -> Option<&'a Run> {
    case.runs.iter().find(|run| run.round == round && run.subject == subject && done(run).is_some())
}

/// A metric of a subject in a round.
fn value_in(case: &Case, subject: &str, round: usize, metric: Metric) -> Option<f64> {
    value(case, run_of(case, subject, round)?, metric, run_of(case, NO_MESH, round))
}

/// The rounds of a case, ascending.
fn rounds(case: &Case) -> Vec<usize> {
    let mut rounds: Vec<usize> = case.runs.iter().map(|run| run.round).collect();
    rounds.sort_unstable();
    rounds.dedup();
    rounds
}

/// A metric of a subject over all rounds.
pub(crate) fn absolute(case: &Case, subject: &str, metric: Metric) -> Option<Summary> {
    Summary::of(rounds(case).into_iter().filter_map(|round| value_in(case, subject, round, metric)))
}

/// How many times the reference's value the subject's is, within each round, over all rounds that have both.
pub(crate) fn ratio(case: &Case, subject: &str, reference: &str, metric: Metric) -> Option<Summary> {
    Summary::of(rounds(case).into_iter().filter_map(|round| {
        let of = |name| value_in(case, name, round, metric);
        let (subject, reference) = (of(subject)?, of(reference)?);
        match metric.is_added() {
            true => quotient(subject.max(ADDED_US_MIN), reference.max(ADDED_US_MIN)),
            false => quotient(subject, reference),
        }
    }))
}

/// Halo's ratio to a reference; `None` for Halo itself, and where operations of either failed in numbers.
pub(crate) fn halo_to(case: &Case, reference: &str, metric: Metric) -> Option<Summary> {
    let sound = reference != HALO && defect(case, HALO).is_none() && defect(case, reference).is_none();
    if sound { ratio(case, HALO, reference, metric) } else { None }
}

/// Why a subject has no figures in a case, or figures that prove nothing; `None` if they are sound.
pub(crate) fn defect(case: &Case, subject: &str) -> Option<String> {
    let runs = || case.runs.iter().filter(|run| run.subject == subject);
    let figures: Vec<&Figures> = runs().filter_map(done).collect();
    if figures.is_empty() {
        let why = runs().find_map(|run| match &run.outcome {
            Outcome::Failed(why) => Some(format!("{subject} failed: {why}")),
            Outcome::Skipped(why) => Some(format!("{subject} was skipped: {why}")),
            Outcome::Done(_) => None,
        });
        return Some(why.unwrap_or_else(|| format!("{subject} did not run")));
    }
    let work = Work::of(&case.load);
    if work != Work::Nothing
        && figures.iter().all(|figures| work.done(figures).is_none() && figures.errors == 0)
    {
        return Some(format!("{subject} did nothing while it was measured"));
    }
    let errors: f64 = figures.iter().map(|figures| figures.errors as f64).sum();
    let operations: f64 = figures.iter().map(|figures| figures.operations as f64).sum();
    (errors > 0.0 && errors > ERRORS_SHARE_MAX * (operations + errors)).then(|| {
        let first = figures.iter().find_map(|figures| figures.first_error.as_deref()).unwrap_or("unknown");
        format!("{subject}: {errors:.0} operations failed, the first with: {first}")
    })
}

/// Every case and subject without sound figures, one sentence each.
pub(crate) fn defects(report: &Report) -> Vec<String> {
    let of = |case: &Case| -> Vec<String> {
        let subjects = report.subjects.iter().filter_map(|subject| defect(case, &subject.name));
        subjects.map(|why| format!("{}: {why}", case.id)).collect()
    };
    report.cases.iter().flat_map(of).collect()
}

/// The load's own share, clients and servers, of the CPU time that it and the proxies spent in a subject, over all runs
/// that did something.
pub(crate) fn generator_share(report: &Report, subject: &str) -> Option<f64> {
    let working = report.cases.iter().filter(|case| Work::of(&case.load) != Work::Nothing);
    let runs = working.flat_map(|case| &case.runs).filter(|run| run.subject == subject);
    let spent = |figures: &Figures| (figures.clients.cpu_s + figures.servers.cpu_s, figures.proxy_cpu_s());
    let (own, proxies) =
        runs.filter_map(done).map(spent).fold((0.0, 0.0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
    quotient(own, own + proxies)
}

/// What a load does, for a heading.
pub(crate) fn work(load: &Load) -> &'static str {
    match Work::of(load) {
        Work::Bytes => "Bulk",
        Work::Requests => "Requests",
        Work::Connections => "Connections",
        Work::Nothing => "Idle",
    }
}

/// The case of a report with this name.
pub(crate) fn case<'a>(report: &'a Report, id: &str) -> Option<&'a Case> {
    report.cases.iter().find(|case| case.id == id)
}

/// The name of the first peer of a report: whatever is none of the constants.
pub(crate) fn stock(report: &Report) -> Option<&str> {
    let known = [NO_MESH, HALO, ENVOY_TCP, ENVOY_HTTP];
    report.subjects.iter().map(|subject| subject.name.as_str()).find(|name| !known.contains(name))
}

#[cfg(test)]
mod tests;
