//! Halo of one report against Halo of an earlier one.
//!
//! Absolute figures of two reports differ as their machines do. Beside the plain quotient stands one of ratios: Halo to
//! a subject of the same report that a change of Halo does not touch.

use comfy_table::{CellAlignment, Table};
use console::Style;

use super::format;
use super::table::STYLE;
use crate::model::{Case, ENVOY_HTTP, ENVOY_TCP, HALO, Load, NO_MESH, Report};
use crate::statistics::{self, Metric, Summary};

const BULK: [Metric; 3] = [Metric::ProxyCpu, Metric::Throughput, Metric::Memory];
const OTHERS: [Metric; 5] = [Metric::ProxyCpu, Metric::Rate, Metric::P50, Metric::P99, Metric::Memory];
/// What a figure is normalised by: the first that has it.
const BY: [&str; 3] = [NO_MESH, ENVOY_TCP, ENVOY_HTTP];

/// What changed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Comparison {
    /// Why the reports can hardly be compared, one sentence each.
    pub(crate) warnings: Vec<String>,
    /// Every figure that both reports have of Halo.
    pub(crate) changes: Vec<Change>,
    /// Cases that only the old report has figures of.
    pub(crate) only_old: Vec<String>,
    /// Cases that only the new report has figures of.
    pub(crate) only_new: Vec<String>,
}

/// One figure of Halo in both reports.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Change {
    /// The case's name.
    pub(crate) case: String,
    /// What is compared.
    pub(crate) metric: Metric,
    /// Its unit.
    pub(crate) unit: &'static str,
    /// Of the old report.
    pub(crate) old: Summary,
    /// Of the new report.
    pub(crate) new: Summary,
    /// New ÷ old.
    pub(crate) quotient: f64,
    /// What was normalised by, and Halo's ratio to it, new ÷ old.
    pub(crate) normalised: Option<(&'static str, f64)>,
}

/// Compares Halo in two reports.
pub(crate) fn compare_baseline(old: &Report, new: &Report) -> Comparison {
    let mut changes = Vec::new();
    for case in &new.cases {
        if let Some(earlier) = statistics::case(old, &case.id) {
            changes.extend(metrics(case).iter().filter_map(|metric| change(earlier, case, *metric)));
        }
    }
    let (only_old, only_new) = (not_compared(old, &changes), not_compared(new, &changes));
    Comparison { warnings: warnings(old, new), changes, only_old, only_new }
}

/// Cases in which Halo has figures that the other report has nothing to set beside.
fn not_compared(report: &Report, changes: &[Change]) -> Vec<String> {
    let has_figures = |case: &Case| {
        let sound = statistics::defect(case, HALO).is_none();
        sound && metrics(case).iter().any(|metric| statistics::absolute(case, HALO, *metric).is_some())
    };
    let compared = |case: &Case| changes.iter().any(|change| change.case == case.id);
    let cases = report.cases.iter().filter(|case| has_figures(case) && !compared(case));
    cases.map(|case| case.id.clone()).collect()
}

/// What is compared in a case.
fn metrics(case: &Case) -> &'static [Metric] {
    if matches!(case.load, Load::Bulk { .. }) { &BULK } else { &OTHERS }
}

fn change(old: &Case, new: &Case, metric: Metric) -> Option<Change> {
    let sound = |name| statistics::defect(old, name).is_none() && statistics::defect(new, name).is_none();
    let of = |case| statistics::absolute(case, HALO, metric).filter(|_| sound(HALO));
    let (before, after) = (of(old)?, of(new)?);
    let normalised = BY.into_iter().filter(|by| sound(by)).find_map(|by| {
        let ratio = |case| statistics::ratio(case, HALO, by, metric).map(|ratio| ratio.median);
        Some((by, quotient(ratio(new)?, ratio(old)?)?))
    });
    Some(Change {
        case: new.id.clone(),
        metric,
        unit: metric.unit(&new.load),
        old: before,
        new: after,
        quotient: quotient(after.median, before.median)?,
        normalised,
    })
}

fn quotient(dividend: f64, divisor: f64) -> Option<f64> {
    (divisor > 0.0).then(|| dividend / divisor).filter(|quotient| quotient.is_finite())
}

fn warnings(old: &Report, new: &Report) -> Vec<String> {
    let (a, b) = (&old.about, &new.about);
    let version = |report: &Report, name: &str| {
        report.subjects.iter().find(|subject| subject.name == name).map(|subject| subject.version.clone())
    };
    let mut differ = vec![
        ("host", a.host.clone(), b.host.clone()),
        ("kernel", a.kernel.clone(), b.kernel.clone()),
        ("processor", a.cpu.clone(), b.cpu.clone()),
        ("number of cores", a.cores.to_string(), b.cores.to_string()),
        ("number of workers", format::workers(a.workers), format::workers(b.workers)),
        ("length of a run", format!("{} s", a.seconds), format!("{} s", b.seconds)),
    ];
    for by in BY {
        if let (Some(a), Some(b)) = (version(old, by), version(new, by)) {
            differ.push((by, a, b));
        }
    }
    differ.retain(|(_, a, b)| a != b);
    let differ = differ.into_iter().map(|(what, a, b)| format!("Another {what}: was {a}, is {b}."));
    differ.chain(defects("earlier", old)).chain(defects("new", new)).collect()
}

/// Cases of one report in which Halo has no sound figures.
fn defects(side: &str, report: &Report) -> Vec<String> {
    let of = |case: &Case| {
        let why = statistics::defect(case, HALO)?;
        Some(format!("The {side} report does not tell of {}: {why}.", case.id))
    };
    report.cases.iter().filter_map(of).collect()
}

impl Comparison {
    /// The comparison on a terminal, at most [`super::table::WIDTH`] columns.
    pub(crate) fn render(&self) -> String {
        let mut page = format!("\n  {}\n\n", Style::new().bold().apply_to("Halo against the earlier report"));
        for warning in &self.warnings {
            page.push_str(&format!("  {}\n", Style::new().yellow().apply_to(warning)));
        }
        if !self.changes.is_empty() {
            for line in self.table().to_string().lines() {
                page.push_str(&format!(" {}\n", line.trim_end()));
            }
            page.push_str(
                "\n  Normalised: Halo's ratio to the subject named, which has not changed, new ÷ old.\n",
            );
        }
        for (side, cases) in [("earlier", &self.only_old), ("new", &self.only_new)] {
            for case in cases {
                page.push_str(&format!("  Only the {side} report has figures to compare of {case}.\n"));
            }
        }
        page
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        let header = ["case", "metric", "old", "new", "unit", "new ÷ old", "normalised", "by"];
        table.load_style(STYLE).set_header(header);
        for column in [2, 3, 5, 6] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let mut last = "";
        for change in &self.changes {
            let case = if change.case == last { "" } else { &change.case };
            last = &change.case;
            let (by, normalised) = match change.normalised {
                Some((by, normalised)) => (by, format::ratio(normalised)),
                None => ("", "-".to_owned()),
            };
            table.add_row([
                case,
                change.metric.label(),
                &format::quantity(change.old.median),
                &format::quantity(change.new.median),
                change.unit,
                &format::ratio(change.quotient),
                &normalised,
                by,
            ]);
        }
        table
    }
}
