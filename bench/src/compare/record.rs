//! What has been measured so far, so that nothing of it is lost: it is written after every place, and at the end,
//! however that comes.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::guard::Ended;
use crate::model::{Outcome, Report, Run};
use crate::report;

/// The report as it grows.
#[derive(Debug)]
pub(super) struct Record {
    report: Mutex<Report>,
    /// Runs that were planned.
    planned: usize,
    out: PathBuf,
}

impl Record {
    /// An empty report, whose cases have no runs.
    pub(super) fn new(report: Report, out: &Path) -> Self {
        let planned = report.about.rounds * report.subjects.len() * report.cases.len();
        Self { report: Mutex::new(report), planned, out: out.to_owned() }
    }

    /// Adds a run of a case.
    pub(super) fn add(&self, case: usize, run: Run) {
        self.lock().cases[case].runs.push(run);
    }

    /// Writes what there is.
    pub(super) fn save(&self) -> Result<(), String> {
        let report = self.so_far(Some("The comparison was still running when this was written"));
        report::write(&report, &self.out).map(drop).map_err(|error| error.to_string())
    }

    /// What there is at the end, with a note where it is not everything.
    pub(super) fn finish(&self, ended: Ended) -> Report {
        self.so_far(match ended {
            Ended::Done => None,
            Ended::Interrupted => Some("The comparison was interrupted"),
            Ended::Defect => Some("The comparison ended early by a defect of its own"),
        })
    }

    /// A copy. Where something cut it short, cases without any run are left out.
    fn so_far(&self, cut: Option<&str>) -> Report {
        let mut report = self.lock().clone();
        let runs = runs(&report);
        if let Some(why) = cut.filter(|_| runs < self.planned) {
            report.cases.retain(|case| !case.runs.is_empty());
            let planned = self.planned;
            report
                .about
                .notes
                .insert(0, format!("{why}: {runs} of {planned} runs; cases without any are left out."));
        }
        report
    }

    fn lock(&self) -> MutexGuard<'_, Report> {
        // A report is whole between any two of its runs.
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many runs a report has.
pub(super) fn runs(report: &Report) -> usize {
    report.cases.iter().map(|case| case.runs.len()).sum()
}

/// Whether a run of it failed.
pub(super) fn has_failed(report: &Report) -> bool {
    let mut runs = report.cases.iter().flat_map(|case| &case.runs);
    runs.any(|run| matches!(run.outcome, Outcome::Failed(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn what_was_cut_short_says_so_and_keeps_its_runs() {
        let whole = fixture::report();
        let mut empty = whole.clone();
        empty.cases.iter_mut().for_each(|case| case.runs.clear());
        let record = Record::new(empty, Path::new("/nowhere"));
        record.add(1, whole.cases[1].runs[0].clone());
        let cut = record.finish(Ended::Interrupted);
        assert_eq!((cut.cases.len(), &cut.cases[0].id), (1, &whole.cases[1].id));
        assert!(cut.about.notes[0].contains("interrupted: 1 of 475 runs"), "{}", cut.about.notes[0]);
        assert_eq!(record.finish(Ended::Done).cases.len(), whole.cases.len());
        for (index, case) in whole.cases.iter().enumerate() {
            case.runs.iter().skip(usize::from(index == 1)).for_each(|run| record.add(index, run.clone()));
        }
        assert!(record.finish(Ended::Interrupted) == whole, "nothing is missing, so nothing is said");
        assert!(has_failed(&whole) && !has_failed(&cut));
    }
}
