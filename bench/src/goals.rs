//! What Halo is to reach, as ratios to what it replaces, and whether a report shows that it does.
//!
//! The value of a goal is the median of Halo's ratio to a reference within each round. A case with failing operations
//! proves nothing, however fast it failed.

use serde::Serialize;

use crate::model::{Case, ENVOY_HTTP, ENVOY_TCP, HALO, Report};
use crate::statistics::{self, Metric, Summary};

/// What is demanded of one case.
struct Demand {
    title: &'static str,
    case: &'static str,
    metric: Metric,
    /// Largest ratio to Envoy sidecars as TCP proxies.
    envoy: f64,
    /// Largest ratio to the stock proxy.
    stock: f64,
}

const fn demand(title: &'static str, case: &'static str, metric: Metric, limits: (f64, f64)) -> Demand {
    Demand { title, case, metric, envoy: limits.0, stock: limits.1 }
}

const BULK: &str = "Bulk, CPU";
const REQUESTS: &str = "1 KiB requests, CPU";

const DEMANDS: [Demand; 14] = [
    demand(BULK, "two-nodes/bulk-up-1", Metric::ProxyCpu, (0.45, 0.60)),
    demand(BULK, "two-nodes/bulk-up-8", Metric::ProxyCpu, (0.45, 0.60)),
    demand(BULK, "two-nodes/bulk-down-1", Metric::ProxyCpu, (0.45, 0.60)),
    demand(BULK, "two-nodes/bulk-down-8", Metric::ProxyCpu, (0.45, 0.60)),
    demand(REQUESTS, "two-nodes/requests-1KiB-32", Metric::ProxyCpu, (0.30, 0.45)),
    demand(REQUESTS, "two-nodes/requests-1KiB-128", Metric::ProxyCpu, (0.30, 0.45)),
    demand(REQUESTS, "two-nodes/requests-1KiB-512", Metric::ProxyCpu, (0.30, 0.45)),
    demand("One connection, p50 added", "two-nodes/requests-1KiB-1", Metric::AddedP50, (0.5, 0.7)),
    demand("5 000 requests/s, p99 added", "two-nodes/rate-5000", Metric::AddedP99, (0.4, 0.6)),
    demand("New connections, CPU", "two-nodes/connects-8", Metric::ProxyCpu, (0.12, 0.50)),
    demand("Cold handshake, CPU", "many-pods/cold", Metric::ProxyCpu, (0.9, 0.8)),
    demand("Memory at rest", "two-nodes/idle-0", Metric::Memory, (0.2, 0.9)),
    demand("Memory, 5 000 connections", "two-nodes/idle-5000", Metric::Memory, (0.3, 0.6)),
    demand("Memory, 10 000 connections", "two-nodes/idle-10000", Metric::Memory, (0.3, 0.6)),
];

/// Rounds from which on least and largest tell something.
const ROUNDS_MIN: usize = 3;

/// One goal, judged against each reference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Goal {
    /// What it is about.
    pub(crate) title: &'static str,
    /// The case that shows it.
    pub(crate) case: &'static str,
    /// The metric's label.
    pub(crate) metric: &'static str,
    /// Against Envoy as TCP proxy, the stock proxy, and Envoy as HTTP proxy, in this order.
    pub(crate) judged: Vec<Judged>,
}

/// A goal against one reference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Judged {
    /// The reference's name.
    pub(crate) reference: String,
    /// Largest ratio of Halo's figure to the reference's; `None` where it is told for information.
    pub(crate) limit: Option<f64>,
    /// What came of it.
    pub(crate) verdict: Verdict,
}

/// What came of a goal.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// The median ratio is within the limit.
    Met(Summary),
    /// It is not.
    Missed(Summary),
    /// There is no limit.
    Informative(Summary),
    /// The report does not tell; why.
    NotMeasured(String),
}

impl Verdict {
    /// Halo's ratio to the reference.
    pub(crate) fn ratio(&self) -> Option<&Summary> {
        match self {
            Self::Met(ratio) | Self::Missed(ratio) | Self::Informative(ratio) => Some(ratio),
            Self::NotMeasured(_) => None,
        }
    }
}

impl Judged {
    /// Whether single rounds come to another verdict than the median does.
    pub(crate) fn is_close(&self) -> bool {
        let within = |ratio: &Summary, limit| ratio.min <= limit && ratio.max > limit;
        self.limit.zip(self.verdict.ratio()).is_some_and(|(limit, ratio)| within(ratio, limit))
    }
}

/// How many goals were met, missed and not measured, of those with a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(crate) struct Tally {
    /// Within their limit.
    pub(crate) met: usize,
    /// Beyond their limit.
    pub(crate) missed: usize,
    /// Unknown.
    pub(crate) not_measured: usize,
}

/// Judges all goals.
pub(crate) fn evaluate(report: &Report) -> Vec<Goal> {
    let stock = statistics::stock(report);
    DEMANDS.iter().map(|demand| evaluate_one(report, demand, stock)).collect()
}

fn evaluate_one(report: &Report, demand: &Demand, stock: Option<&str>) -> Goal {
    let judged = |reference: &str, limit| Judged {
        reference: reference.to_owned(),
        limit,
        verdict: judge(report, demand, reference, limit),
    };
    let against_stock = match stock {
        Some(stock) => judged(stock, Some(demand.stock)),
        None => Judged {
            reference: "stock".to_owned(),
            limit: Some(demand.stock),
            verdict: Verdict::NotMeasured("no stock proxy was compared".to_owned()),
        },
    };
    Goal {
        title: demand.title,
        case: demand.case,
        metric: demand.metric.label(),
        judged: vec![judged(ENVOY_TCP, Some(demand.envoy)), against_stock, judged(ENVOY_HTTP, None)],
    }
}

fn judge(report: &Report, demand: &Demand, reference: &str, limit: Option<f64>) -> Verdict {
    let Some(case) = statistics::case(report, demand.case) else {
        return Verdict::NotMeasured(format!("{} was not run", demand.case));
    };
    if let Some(why) = [HALO, reference].into_iter().find_map(|subject| statistics::defect(case, subject)) {
        return Verdict::NotMeasured(format!("{}: {why}", case.id));
    }
    if demand.metric.is_added()
        && let Some(name) = [HALO, reference].into_iter().find(|name| is_hidden(case, name, demand.metric))
    {
        let (id, metric) = (&case.id, demand.metric.label());
        return Verdict::NotMeasured(format!(
            "{id}: noise hides the {metric} of {name}, which is below zero"
        ));
    }
    match (statistics::ratio(case, HALO, reference, demand.metric), limit) {
        (None, _) => {
            let (id, metric) = (&case.id, demand.metric.label());
            Verdict::NotMeasured(format!("{id} against {reference}: no round has the {metric} of both"))
        }
        (Some(ratio), None) => Verdict::Informative(ratio),
        (Some(ratio), Some(limit)) if ratio.median <= limit => Verdict::Met(ratio),
        (Some(ratio), Some(_)) => Verdict::Missed(ratio),
    }
}

/// Whether a subject was faster than no mesh, which is not the subject's merit.
fn is_hidden(case: &Case, subject: &str, metric: Metric) -> bool {
    statistics::absolute(case, subject, metric).is_some_and(|added| added.median < 0.0)
}

/// Counts verdicts.
pub(crate) fn tally(goals: &[Goal]) -> Tally {
    let mut tally = Tally::default();
    for judged in goals.iter().flat_map(|goal| &goal.judged).filter(|judged| judged.limit.is_some()) {
        match judged.verdict {
            Verdict::Met(_) => tally.met += 1,
            Verdict::Missed(_) => tally.missed += 1,
            Verdict::NotMeasured(_) | Verdict::Informative(_) => tally.not_measured += 1,
        }
    }
    tally
}

/// What qualifies the verdicts: why something was not measured, and where rounds are missing. The same words about
/// several goals are said once.
pub(crate) fn remarks(goals: &[Goal], rounds: usize) -> Vec<String> {
    let mut remarks: Vec<String> = Vec::new();
    if rounds < ROUNDS_MIN {
        remarks.push(format!("Fewer than {ROUNDS_MIN} rounds: the spread says little"));
    }
    for goal in goals {
        for judged in &goal.judged {
            let remark = match &judged.verdict {
                Verdict::NotMeasured(why) => format!("Not measured: {why}"),
                Verdict::Met(ratio) | Verdict::Missed(ratio) | Verdict::Informative(ratio)
                    if ratio.runs < rounds =>
                {
                    let (case, reference, runs) = (goal.case, &judged.reference, ratio.runs);
                    format!("{case} against {reference}: {runs} of {rounds} rounds have both")
                }
                _ => continue,
            };
            if !remarks.contains(&remark) {
                remarks.push(remark);
            }
        }
    }
    remarks
}

#[cfg(test)]
mod tests;
