//! `halo demo`: builds a mesh of two nodes on this machine, shows it work, and takes everything away again.
//!
//! The steps run on a thread of their own. The main thread waits for them or for a signal, whichever comes first, and
//! cleans up in either case, so that Ctrl-C never waits for a step.

mod enrol;
mod figures;
mod page;
mod policy;
mod preflight;
mod report;
mod stage;
mod traffic;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::lab::process::halo_binary;
use crate::lab::{Lab, LabError};
use page::Page;
use report::{Facts, Failure, Report, Step};
use stage::Stage;

/// Exit code after Ctrl-C, as shells expect it.
const INTERRUPTED: u8 = 130;

/// What to show.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Print one JSON object at the end instead of a page
    #[arg(long)]
    pub json: bool,
    /// Leave the mesh up until Ctrl-C, and say what to try
    #[arg(long)]
    pub hold: bool,
    /// Shards (threads with a ring of their own) of each node proxy
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub shards: u16,
    /// Length of each of the two load measurements, seconds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=300))]
    pub seconds: u16,
}

/// Runs the demo; the exit code is a failure when a step fails.
pub fn run(options: &Options) -> ExitCode {
    let page = Arc::new(Page::new(options.json));
    let lab = match open() {
        Ok(lab) => Arc::new(lab),
        Err(problem) => {
            page.refuse(&problem);
            return ExitCode::FAILURE;
        }
    };
    page.title(lab.run_id());
    let report = Arc::new(Mutex::new(Report::default()));
    // The stage outlives the cleanup: its programs end because they are told to, not because their input closes.
    let (ended, _stage) = wait(options, &lab, &page, &report).unwrap_or_else(|error| {
        page.refuse(&format!("cannot wait for signals: {error}"));
        (Ended::Failed, None)
    });
    if ended == Ended::Interrupted {
        report.lock().unwrap_or_else(PoisonError::into_inner).interrupted = true;
    }
    clean_up(&lab, &page, &report);
    let report = report.lock().unwrap_or_else(PoisonError::into_inner);
    page.end(&report);
    match ended {
        Ended::Interrupted => ExitCode::from(INTERRUPTED),
        Ended::Done if report.is_ok() => ExitCode::SUCCESS,
        Ended::Done | Ended::Failed => ExitCode::FAILURE,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Done,
    Failed,
    Interrupted,
}

fn open() -> Result<Lab, String> {
    preflight::check()?;
    let text = |error: LabError| error.to_string();
    Lab::new(halo_binary().map_err(text)?).map_err(text)
}

/// Runs the steps, and holds the mesh if asked to, until all is done or a signal comes.
fn wait(
    options: &Options,
    lab: &Arc<Lab>,
    page: &Arc<Page>,
    report: &Arc<Mutex<Report>>,
) -> std::io::Result<(Ended, Option<Stage>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let (done, finished) = oneshot::channel();
        let steps = {
            let (options, lab, page, report) = (options.clone(), lab.clone(), page.clone(), report.clone());
            move || {
                // Nobody waits any more after a signal.
                let _ = done.send(perform(&options, &lab, &page, &report));
            }
        };
        thread::Builder::new().name("steps".into()).spawn(steps)?;
        let stage = tokio::select! {
            stage = finished => stage,
            _ = interrupt.recv() => return Ok((Ended::Interrupted, None)),
            _ = terminate.recv() => return Ok((Ended::Interrupted, None)),
        };
        let Ok(stage) = stage else { return Ok((Ended::Failed, None)) };
        if let (true, Some(stage)) = (options.hold, &stage) {
            page.tables(&report.lock().unwrap_or_else(PoisonError::into_inner));
            page.hold(stage);
            tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () }
        }
        Ok((Ended::Done, stage))
    })
}

/// Runs the steps in order, up to the first that fails. Gives the stage back while it stands.
fn perform(options: &Options, lab: &Arc<Lab>, page: &Page, report: &Mutex<Report>) -> Option<Stage> {
    let mut stage = None;
    for step in Step::ACTS {
        page.begin(step);
        let started = Instant::now();
        let result = act(step, options, lab, &mut stage);
        let failed = result.is_err();
        let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
        if report.interrupted {
            break;
        }
        page.finish(report.add(step, started.elapsed(), result));
        if failed {
            break;
        }
    }
    stage
}

fn act(step: Step, options: &Options, lab: &Arc<Lab>, stage: &mut Option<Stage>) -> Result<Facts, Failure> {
    let Some(stage) = stage else {
        let (built, facts) = Stage::build(options, lab)?;
        *stage = Some(built);
        return Ok(facts);
    };
    let result = match step {
        Step::Topology | Step::Cleanup => Ok(Facts::default()),
        Step::Plaintext => traffic::plaintext(stage),
        Step::Enrol => enrol::enrol(stage),
        Step::Encrypted => traffic::encrypted(stage),
        Step::ServerFirst => traffic::server_first(stage),
        Step::PolicyDeny => policy::deny(stage),
        Step::PolicyLive => policy::live(stage),
        Step::PolicyAllow => policy::allow(stage),
        Step::Load => figures::load(stage),
    };
    result.map_err(|failure| failure.with_logs(&stage.proxies))
}

fn clean_up(lab: &Lab, page: &Page, report: &Mutex<Report>) {
    page.begin(Step::Cleanup);
    let started = Instant::now();
    let result = stage::clean_up(lab);
    let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
    page.finish(report.add(Step::Cleanup, started.elapsed(), result));
}
