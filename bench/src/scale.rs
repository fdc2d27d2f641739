//! `halo-bench scale`: a large mesh, told by a real controller to a real node.
//!
//! Two nodes of the lab: one with the controller, one with a node proxy and two pods. The mesh is made up: see
//! [`crate::crowd`]. Each part prints what it has found, with the goals.

mod clock;
mod edit;
pub(crate) mod feed;
mod figures;
mod parts;
mod stage;
pub(crate) mod subscribers;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use console::Term;
use halo::lab::Result;
use serde::Serialize;

use crate::compare::{about, preflight};
use crate::guard::{self, Ended, INTERRUPTED};
use crate::room::Labs;
use crate::subject;
use figures::{Figure, Findings};
use stage::Stage;

/// The parts, in the order in which they run.
const PARTS: [&str; 6] = ["node", "changes", "traffic", "subscribers", "file", "edit"];
/// The file of the report.
const REPORT: &str = "scale.json";

/// How large a mesh, and what is done with it.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Workloads
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    workloads: Option<u32>,
    /// Services
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    services: Option<u32>,
    /// Subscribers to one controller
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    subscribers: Option<u16>,
    /// Length of the measurements with changes, seconds
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=3600))]
    seconds: Option<u16>,
    /// A small mesh for a moment, to see that all parts run
    #[arg(long)]
    tiny: bool,
    /// Only these parts, separated by commas: node, changes, traffic, subscribers, file, edit
    #[arg(long, value_delimiter = ',', value_parser = clap::builder::PossibleValuesParser::new(PARTS))]
    only: Vec<String>,
    /// Write scale.json into this directory
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Print the JSON instead of the table
    #[arg(long)]
    json: bool,
}

/// What is done.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Plan {
    pub(crate) workloads: u32,
    pub(crate) services: u32,
    pub(crate) subscribers: usize,
    /// Changes a second.
    pub(crate) per_second: u32,
    /// Length of a measurement with changes, and as long without.
    pub(crate) seconds: f64,
    /// Turns that a measurement is cut into.
    pub(crate) turns: u32,
    /// Changes that are made one at a time.
    pub(crate) single: usize,
    /// How long all subscribers may take to have the mesh.
    #[serde(skip)]
    pub(crate) fill_max: Duration,
    pub(crate) tiny: bool,
}

impl Plan {
    /// The size that the goals are about.
    const FULL: (u32, u32) = (200_000, 20_000);

    fn full() -> Self {
        let (workloads, services) = Self::FULL;
        Self {
            workloads,
            services,
            subscribers: 1000,
            per_second: 100,
            seconds: 60.0,
            turns: 6,
            single: 50,
            fill_max: Duration::from_secs(1800),
            tiny: false,
        }
    }

    pub(crate) fn tiny() -> Self {
        Self {
            workloads: 400,
            services: 40,
            subscribers: 4,
            seconds: 0.4,
            turns: 2,
            single: 2,
            fill_max: Duration::from_secs(60),
            tiny: true,
            ..Self::full()
        }
    }

    fn new(options: &Options) -> Self {
        let plan = if options.tiny { Self::tiny() } else { Self::full() };
        Self {
            workloads: options.workloads.unwrap_or(plan.workloads),
            services: options.services.unwrap_or(plan.services),
            subscribers: options.subscribers.map_or(plan.subscribers, usize::from),
            seconds: options.seconds.map_or(plan.seconds, f64::from),
            ..plan
        }
    }

    /// Whether the goals are about a mesh of this size.
    fn is_full(&self) -> bool {
        (self.workloads, self.services) == Self::FULL
    }
}

/// The programs that run on the stage.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    halo: PathBuf,
    bench: PathBuf,
}

/// Runs the parts, prints what they found and writes the report.
pub(crate) fn run(options: &Options) -> ExitCode {
    scale(options).unwrap_or_else(|problem| {
        say(&Term::stderr(), &format!("halo-bench: {problem}"));
        ExitCode::FAILURE
    })
}

fn scale(options: &Options) -> std::result::Result<ExitCode, String> {
    preflight::machine()?;
    preflight::output(&options.out)?;
    let halo = subject::halo_binary().map_err(text)?;
    let programs = Programs { halo, bench: std::env::current_exe().map_err(text)? };
    let plan = Plan::new(options);
    let findings =
        Findings { about: about::about(None), plan: plan.clone(), figures: Vec::new(), failures: Vec::new() };
    let (labs, found) = (Arc::new(Labs::default()), Arc::new(Mutex::new(findings)));
    let run = Run { plan, programs, wanted: options.only.clone(), labs: labs.clone(), found: found.clone() };
    let told = || say(&Term::stderr(), "interrupted: everything is taken away, and what was found is kept");
    let ended = guard::run(&labs, move || run.parts(), told).map_err(text)?;
    labs.shut();
    let found = found.lock().unwrap_or_else(PoisonError::into_inner);
    let json = found.json().map_err(text)?;
    say(&Term::stdout(), if options.json { json.trim_end() } else { "" });
    if !options.json {
        say(&Term::stdout(), &found.table());
    }
    write(&options.out.join(REPORT), &json)?;
    Ok(match ended {
        Ended::Done if found.failures.is_empty() => ExitCode::SUCCESS,
        Ended::Done | Ended::Defect => ExitCode::FAILURE,
        Ended::Interrupted => ExitCode::from(INTERRUPTED),
    })
}

fn write(path: &Path, json: &str) -> std::result::Result<(), String> {
    // Beside it first, so that a report that is there stays whole until the new one is.
    let draft = path.with_extension("new");
    let written = std::fs::write(&draft, json).and_then(|()| std::fs::rename(&draft, path));
    written.map_err(|error| format!("{}: {error}", path.display()))?;
    say(&Term::stderr(), &format!("written: {}", path.display()));
    Ok(())
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

fn say(term: &Term, line: &str) {
    // A terminal that went away stops nothing.
    let _ = term.write_line(line);
}

/// One run of the parts.
struct Run {
    plan: Plan,
    programs: Programs,
    wanted: Vec<String>,
    labs: Arc<Labs>,
    found: Arc<Mutex<Findings>>,
}

impl Run {
    fn wants(&self, parts: &[&str]) -> bool {
        self.wanted.is_empty() || self.wanted.iter().any(|wanted| parts.contains(&wanted.as_str()))
    }

    fn parts(&self) {
        if self.wants(&PARTS[..4]) {
            self.attempt("made-up mesh", || self.made_up());
        }
        if self.wants(&["file"]) {
            self.attempt("file", || {
                self.begin("file");
                let stage = self.stage()?;
                self.add(parts::file(&self.plan, &stage)?);
                Ok(())
            });
        }
        if self.wants(&["edit"]) {
            self.attempt("edit", || {
                say(&Term::stderr(), "a mesh of two pods: edit");
                self.add(edit::edit(&self.plan, &self.stage()?)?);
                Ok(())
            });
        }
    }

    /// The parts whose controller makes its mesh up.
    fn made_up(&self) -> Result<()> {
        let plan = &self.plan;
        let with_node = self.wants(&PARTS[..3]);
        let empty = if with_node {
            self.begin("a node without a mesh");
            let stage = self.stage()?;
            Some(parts::empty(plan, &stage)?)
        } else {
            None
        };
        self.begin("the controller");
        let stage = self.stage()?;
        let feed = stage.feed(plan.workloads, plan.services)?;
        if let Some(empty) = empty {
            self.begin("node");
            let (node, figures) = parts::node(plan, &stage, &feed, empty)?;
            if self.wants(&["node"]) {
                self.add(figures);
            }
            if self.wants(&["changes"]) {
                self.begin("changes");
                self.attempt("changes", || parts::changes(plan, &feed, &node).map(|found| self.add(found)));
            }
            if self.wants(&["traffic"]) {
                self.begin("traffic");
                self.attempt("traffic", || {
                    parts::traffic(plan, &stage, &feed, &node).map(|found| self.add(found))
                });
            }
            node.process.stop(Duration::from_secs(10));
        }
        if self.wants(&["subscribers"]) {
            self.begin("subscribers");
            self.add(parts::subscribers(plan, &stage, &feed)?);
        }
        Ok(())
    }

    fn stage(&self) -> Result<Stage> {
        Stage::open(&self.labs, &self.programs)
    }

    /// Runs something; that it failed is found too, unless it was ended by a signal.
    fn attempt(&self, what: &str, work: impl FnOnce() -> Result<()>) {
        if let Err(error) = work()
            && !self.labs.is_shut()
        {
            say(&Term::stderr(), &format!("{what}: {error}"));
            self.found().failures.push(format!("{what}: {error}"));
        }
    }

    fn begin(&self, what: &str) {
        let Plan { workloads, services, .. } = self.plan;
        say(&Term::stderr(), &format!("{workloads} workloads, {services} services: {what}"));
    }

    fn add(&self, figures: Vec<Figure>) {
        self.found().figures.extend(figures);
    }

    fn found(&self) -> std::sync::MutexGuard<'_, Findings> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
