//! The report as a file: the model itself, and beside it what a reader would otherwise compute again.

use std::path::Path;

use serde::Serialize;

use super::FileError;
use crate::goals::{self, Goal, Tally};
use crate::model::{Case, Report};
use crate::statistics::{self, Metric, Summary};

/// What is written. Reading takes the report alone.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    report: &'a Report,
    tally: Tally,
    goals: Vec<Goal>,
    results: Vec<CaseResult<'a>>,
}

#[derive(Serialize)]
struct CaseResult<'a> {
    case: &'a str,
    metrics: Vec<MetricResult<'a>>,
}

#[derive(Serialize)]
struct MetricResult<'a> {
    metric: &'static str,
    unit: &'static str,
    lower_is_better: bool,
    subjects: Vec<SubjectResult<'a>>,
}

#[derive(Serialize)]
struct SubjectResult<'a> {
    subject: &'a str,
    value: Option<Summary>,
    /// Halo's value as a multiple of this subject's, within each round.
    halo_to_this: Option<Summary>,
}

/// The report, its goals, and each metric with its ratios, on one line: curves are long.
pub(crate) fn render(report: &Report) -> Result<String, serde_json::Error> {
    let goals = goals::evaluate(report);
    let results = report.cases.iter().map(|case| case_result(report, case)).collect();
    let document = Document { report, tally: goals::tally(&goals), goals, results };
    let mut text = serde_json::to_string(&document)?;
    text.push('\n');
    Ok(text)
}

fn case_result<'a>(report: &'a Report, case: &'a Case) -> CaseResult<'a> {
    let metrics = Metric::ALL.into_iter().filter_map(|metric| {
        let result = |name: &'a str| SubjectResult {
            subject: name,
            value: statistics::absolute(case, name, metric),
            halo_to_this: statistics::halo_to(case, name, metric),
        };
        let subjects: Vec<_> = report.subjects.iter().map(|subject| result(&subject.name)).collect();
        subjects.iter().any(|subject| subject.value.is_some()).then(|| MetricResult {
            metric: metric.label(),
            unit: metric.unit(&case.load),
            lower_is_better: metric.lower_is_better(),
            subjects,
        })
    });
    CaseResult { case: &case.id, metrics: metrics.collect() }
}

/// Reads a report that [`render`] has written. What follows from the model is ignored.
pub(crate) fn load(path: &Path) -> Result<Report, FileError> {
    let text = std::fs::read_to_string(path).map_err(|error| FileError::new(path, error))?;
    serde_json::from_str(&text).map_err(|error| FileError::new(path, error))
}
