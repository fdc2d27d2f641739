//! What a comparison says while it runs: one line that changes, on a terminal; a line a run, elsewhere.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use console::Term;

use crate::model::{Case, Outcome, Place, Report};
use crate::report;

/// The page, and how far the comparison is.
pub(crate) struct Progress {
    out: Term,
    state: Term,
    clock: Mutex<Clock>,
}

/// How long it takes: what was planned, and how long what is done took.
#[derive(Debug)]
struct Clock {
    started: Instant,
    planned: f64,
    done: f64,
}

impl Clock {
    /// What is left, at the pace so far.
    fn left(&self) -> Duration {
        let (elapsed, rest) = (self.started.elapsed().as_secs_f64(), (self.planned - self.done).max(0.0));
        let pace = if self.done > 0.0 { elapsed / self.done } else { 1.0 };
        Duration::from_secs_f64((rest * pace).clamp(0.0, 1e6))
    }
}

impl Progress {
    pub(crate) fn new() -> Self {
        let clock = Clock { started: Instant::now(), planned: 0.0, done: 0.0 };
        Self { out: Term::stdout(), state: Term::stderr(), clock: Mutex::new(clock) }
    }

    /// Says why nothing is compared.
    pub(crate) fn refuse(&self, problem: &str) {
        self.say(&format!("halo-bench: {problem}"));
    }

    /// Prints the names of the cases.
    pub(crate) fn list(&self, cases: &[Case]) {
        for case in cases {
            self.line(&self.out, &case.id);
        }
    }

    /// The comparison begins; it is thought to take so long, seconds.
    pub(crate) fn begin(&self, planned: f64) {
        *self.clock() = Clock { started: Instant::now(), planned, done: 0.0 };
    }

    /// A subject is being started.
    pub(crate) fn starting(&self, place: Place, subject: &str) {
        self.now(&format!("{place}: starting {subject}"));
    }

    /// A run begins.
    pub(crate) fn running(&self, (round, rounds): (usize, usize), case: &str, subject: &str) {
        self.now(&format!("round {} of {rounds}: {case}, {subject}", round + 1));
    }

    /// A run ended, which was thought to take so long.
    pub(crate) fn ran(&self, seconds: f64, case: &str, subject: &str, outcome: &Outcome) {
        self.clock().done += seconds;
        match outcome {
            Outcome::Failed(why) => {
                self.say(&format!("{case}, {subject}: failed: {why}"));
            }
            Outcome::Done(figures) if figures.errors > 0 => {
                let first = figures.first_error.as_deref().unwrap_or("unknown");
                self.say(&format!("{case}, {subject}: {} errors; the first: {first}", figures.errors));
            }
            Outcome::Done(_) | Outcome::Skipped(_) => {}
        }
    }

    /// All rounds are done.
    pub(crate) fn end(&self) {
        self.clear();
    }

    /// A signal came.
    pub(crate) fn interrupted(&self) {
        self.say("interrupted: everything is taken away, and what was measured is kept");
    }

    /// Says something that stays.
    pub(crate) fn say(&self, what: &str) {
        self.clear();
        self.line(&self.state, what);
    }

    /// Prints the tables.
    pub(crate) fn results(&self, report: &Report, baseline: Option<&Report>) {
        self.clear();
        self.line(&self.out, &report::table::render(report));
        if let Some(old) = baseline {
            self.line(&self.out, &report::baseline::compare_baseline(old, report).render());
        }
    }

    /// Prints where the report is.
    pub(crate) fn written(&self, files: &[PathBuf]) {
        for path in files {
            self.line(&self.out, &format!("written: {}", path.display()));
        }
    }

    fn now(&self, what: &str) {
        let left = self.clock().left().as_secs();
        let text = format!("{what} ({}:{:02} left)", left / 60, left % 60);
        if self.state.is_term() {
            self.clear();
            let width = usize::from(self.state.size().1).saturating_sub(1);
            let text: String = text.chars().take(width).collect();
            // A terminal that went away stops nothing.
            let _ = self.state.write_str(&text);
        } else {
            self.line(&self.state, &text);
        }
    }

    fn clear(&self) {
        if self.state.is_term() {
            let _ = self.state.clear_line();
        }
    }

    fn line(&self, term: &Term, text: &str) {
        let _ = term.write_line(text);
    }

    fn clock(&self) -> std::sync::MutexGuard<'_, Clock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_follows_the_pace() {
        let started = Instant::now().checked_sub(Duration::from_secs(30)).unwrap();
        let left = Clock { started, planned: 40.0, done: 10.0 }.left().as_secs_f64();
        assert!((89.0..92.0).contains(&left), "{left}");
        assert_eq!(Clock { started, planned: 5.0, done: 10.0 }.left(), Duration::ZERO);
    }
}
