//! The rounds: which subjects run which case in which order, place by place.

use std::path::PathBuf;
use std::sync::Arc;

use halo::lab::LabError;
use halo::node::raise_descriptor_limit;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::progress::Progress;
use super::record::Record;
use super::{Options, about, text};
use crate::drive::{self, Manner};
use crate::model::{Case, ENVOY_HTTP, ENVOY_TCP, Outcome, Place, Report, Run, SubjectInfo};
use crate::plan;
use crate::room::{Labs, Programs, Room};
use crate::subject::peer::PeerOptions;
use crate::subject::{self, Settings, Subject, envoy};

/// Descriptors that the processes may want: two for each idle connection, and some.
const DESCRIPTORS: u64 = 65_536;
/// Length of one measurement of the quick comparison, and of the full one, seconds.
const SECONDS: (f64, f64) = (0.8, 2.0);
/// Rounds of the quick comparison, and of the full one.
const ROUNDS: (usize, usize) = (2, 5);
/// Clients, and servers, where there are many: of the quick comparison, and of the full one.
const MANY: (usize, usize) = (4, 50);

/// A comparison that is ready to run.
pub(super) struct Bench {
    /// What is compared. A subject is asked once who it is: its program runs for that.
    subjects: Vec<(SubjectInfo, Box<dyn Subject>)>,
    cases: Vec<Case>,
    rounds: usize,
    seconds: f64,
    many: usize,
    halo: PathBuf,
    program: PathBuf,
    record: Arc<Record>,
}

impl Bench {
    /// Finds the programs, and builds or installs what is missing, as the options have it.
    pub(super) fn new(options: &Options, cases: Vec<Case>, peers: &[PeerOptions]) -> Result<Self, String> {
        raise_descriptors()?;
        let wanted = |name: &str| options.subjects.is_empty() || options.subjects.iter().any(|s| s == name);
        let sidecars = wanted(ENVOY_TCP) || wanted(ENVOY_HTTP);
        let envoy =
            sidecars.then(|| envoy::find(options.envoy.as_deref(), options.install_envoy)).transpose();
        let workers = options.workers.map(usize::from);
        let envoy = envoy.map_err(text)?;
        let settings = Settings { workers, halo: subject::halo_binary().map_err(text)?, envoy };
        let subjects = subject::all(&settings, peers).into_iter().map(|subject| (subject.info(), subject));
        let subjects: Vec<_> = subjects.filter(|(info, _)| wanted(&info.name)).collect();
        let of = |(quick, full)| if options.quick { quick } else { full };
        let count = |(quick, full)| if options.quick { quick } else { full };
        let rounds = options.rounds.map_or_else(|| count(ROUNDS), usize::from);
        let seconds = options.seconds.unwrap_or_else(|| of(SECONDS));
        let many = options.many.map_or_else(|| count(MANY), usize::from);
        let mut about = about::about(workers);
        (about.rounds, about.seconds) = (rounds, seconds);
        about.notes.push(format!("Cases with many pods have {many} clients and {many} servers."));
        let infos = subjects.iter().map(|(info, _)| info.clone()).collect();
        let report = Report { about, subjects: infos, cases: cases.clone() };
        let program = std::env::current_exe().map_err(text)?;
        let record = Arc::new(Record::new(report, &options.out));
        Ok(Self { subjects, cases, rounds, seconds, many, halo: settings.halo, program, record })
    }

    /// What it measures, while it does.
    pub(super) fn record(&self) -> Arc<Record> {
        self.record.clone()
    }

    /// Runs all rounds, or until the labs are shut.
    pub(super) fn run(&self, labs: &Arc<Labs>, progress: &Progress) {
        let mut places: Vec<Place> = self.cases.iter().map(|case| case.place).collect();
        places.dedup();
        let one: f64 = self.cases.iter().map(|case| plan::seconds(&case.load, self.seconds)).sum();
        progress.begin(one * (self.rounds * self.subjects.len()) as f64);
        for (round, place) in
            (0..self.rounds).flat_map(|round| places.iter().map(move |place| (round, *place)))
        {
            self.place(round, place, labs, progress);
            if labs.is_shut() {
                break;
            }
            if let Err(problem) = self.record.save() {
                progress.say(&format!("what is measured so far cannot be written: {problem}"));
            }
        }
        progress.end();
    }

    /// Runs all cases of a place once.
    fn place(&self, round: usize, place: Place, labs: &Arc<Labs>, progress: &Progress) {
        let rooms = self.open(place, labs, progress);
        for (index, case) in self.cases.iter().enumerate().filter(|(_, case)| case.place == place) {
            let count = rooms.len();
            for at in (0..count).map(|turn| (turn + round + index) % count) {
                if labs.is_shut() {
                    return;
                }
                let (info, subject) = &self.subjects[at];
                progress.running((round, self.rounds), &case.id, &info.title);
                let outcome = self.case(case, subject.as_ref(), (round, &rooms[at]));
                if labs.is_shut() {
                    return;
                }
                progress.ran(plan::seconds(&case.load, self.seconds), &case.id, &info.name, &outcome);
                self.record.add(index, Run { subject: info.name.clone(), round, outcome });
            }
        }
    }

    /// Starts every subject at a place; those that do not start say why.
    fn open(&self, place: Place, labs: &Arc<Labs>, progress: &Progress) -> Vec<Result<Room, LabError>> {
        let programs = Programs { halo: &self.halo, bench: &self.program };
        let open = |(info, subject): &(SubjectInfo, Box<dyn Subject>)| {
            progress.starting(place, &info.title);
            Room::open(subject.as_ref(), (place, self.many), labs, programs)
        };
        self.subjects.iter().map(open).collect()
    }

    /// Runs a case in a subject.
    fn case(
        &self,
        case: &Case,
        subject: &dyn Subject,
        (round, room): (usize, &Result<Room, LabError>),
    ) -> Outcome {
        let room = match (room, subject.unfit(&case.load)) {
            (_, Some(why)) => return Outcome::Skipped(why),
            (Err(error), _) => return Outcome::Failed(format!("it did not start: {error}")),
            (Ok(room), None) => room,
        };
        let system_calls = round == 0 && case.place != Place::ManyPods;
        let manner = Manner { seconds: self.seconds, system_calls };
        match drive::run(room, &case.load, manner) {
            Ok(figures) => Outcome::Done(Box::new(figures)),
            Err(error) => Outcome::Failed(error.to_string()),
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
        raise_descriptor_limit().map_err(|error| format!("raise the descriptor limit: {error}"))
    })
}
