//! What a person sees: one line a step, a few facts below it, tables at the end. On a terminal the running step shows
//! and colours help; in a pipe it is plain text; with `--json` only the object is printed.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use console::{Style, Term};

use super::report::{Done, Report, Step};
use super::stage::Stage;

const NAME_WIDTH: usize = 13;
const TOOK_WIDTH: usize = 7;
const LABEL_WIDTH: usize = 11;

/// The page.
#[derive(Debug)]
pub(super) struct Page {
    json: bool,
    live: bool,
    tabled: AtomicBool,
    term: Mutex<Term>,
}

impl Page {
    pub(super) fn new(json: bool) -> Self {
        let term = Term::stdout();
        Self { json, live: term.is_term() && !json, tabled: AtomicBool::new(false), term: Mutex::new(term) }
    }

    /// Says in one sentence why nothing was tried.
    pub(super) fn refuse(&self, problem: &str) {
        if self.json {
            self.line(&serde_json::json!({"ok": false, "error": problem, "steps": []}).to_string());
        } else {
            // Nowhere else to say it when even that fails.
            let _ = writeln!(std::io::stderr(), "halo demo: {problem}");
        }
    }

    pub(super) fn title(&self, run: &str) {
        let title = self.style(Style::new().bold(), "Halo: a mesh of two nodes on this machine");
        self.text(&format!("\n{title}  {}\n", self.dim(&format!("run {run}"))));
    }

    /// A step begins.
    pub(super) fn begin(&self, step: Step) {
        if self.live {
            let name = self.style(Style::new().cyan(), &format!("{:NAME_WIDTH$}", step.name()));
            self.write(&format!("  … {name} {:TOOK_WIDTH$}  {}", "", self.dim(step.doing())));
        }
    }

    /// A step is over.
    pub(super) fn finish(&self, done: &Done) {
        if self.live {
            let term = self.term.lock().unwrap_or_else(PoisonError::into_inner);
            // A terminal that cannot clear a line shows it twice, which is readable.
            let _ = term.clear_line();
        }
        let mark = match done.ok {
            true => self.style(Style::new().green(), "✓"),
            false => self.style(Style::new().red().bold(), "✗"),
        };
        let name = self.style(Style::new().bold(), &format!("{:NAME_WIDTH$}", done.step.name()));
        let took = self.dim(&format!("{:>TOOK_WIDTH$}", seconds(done.took)));
        self.text(&format!("  {mark} {name} {took}  {}", done.line));
        for (label, text) in &done.details {
            let label = self.dim(&format!("{label:LABEL_WIDTH$}"));
            self.text(&format!("    {:NAME_WIDTH$} {:TOOK_WIDTH$}  {label} {text}", "", ""));
        }
        for (node, tail) in done.logs.iter().filter(|(_, tail)| !tail.is_empty()) {
            self.text(&self.dim(&format!("\n      the log of {node} ends:")));
            for line in tail.lines() {
                self.text(&format!("      {}", self.dim(line)));
            }
        }
    }

    /// The tables, once.
    pub(super) fn tables(&self, report: &Report) {
        if self.tabled.swap(true, Ordering::Relaxed) {
            return;
        }
        for table in report.tables() {
            self.text("");
            for line in table.to_string().lines() {
                self.text(format!("  {line}").trim_end());
            }
        }
    }

    /// Says what can be tried while the mesh stands.
    pub(super) fn hold(&self, stage: &Stage) {
        let title = self.style(Style::new().bold(), "The mesh is up until Ctrl-C. To try:");
        self.text(&format!("\n  {title}\n"));
        for (what, command) in stage.suggestions() {
            self.text(&format!("    {}\n      {command}", self.dim(&format!("# {what}"))));
        }
        self.text("");
    }

    /// The end: tables and a verdict, or the object.
    pub(super) fn end(&self, report: &Report) {
        if self.json {
            self.line(&report.json().to_string());
            return;
        }
        self.tables(report);
        let took = seconds(report.took());
        self.text(&match (report.interrupted, report.is_ok()) {
            (true, _) => format!("\n  Interrupted after {took}; everything is cleaned up.\n"),
            (false, true) => {
                format!("\n  {} in {took}\n", self.style(Style::new().green(), "All steps passed"))
            }
            (false, false) => {
                format!("\n  {}\n", self.style(Style::new().red(), "A step failed; see ✗ above."))
            }
        });
    }

    fn style(&self, style: Style, text: &str) -> String {
        // The console crate leaves colours out when this is no terminal, or NO_COLOR is set.
        style.apply_to(text).to_string()
    }

    fn dim(&self, text: &str) -> String {
        self.style(Style::new().dim(), text)
    }

    /// A line of the page, not of the object.
    fn text(&self, text: &str) {
        if !self.json {
            self.line(text);
        }
    }

    fn line(&self, text: &str) {
        self.write(&format!("{text}\n"));
    }

    fn write(&self, text: &str) {
        let mut term = self.term.lock().unwrap_or_else(PoisonError::into_inner);
        // A reader that has gone away must not keep the cleanup from running.
        let _ = term.write_all(text.as_bytes()).and_then(|()| term.flush());
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}
