//! Runs of the benchmark as a person starts them: watched, signalled, and looked after for what they leave behind.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Output};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Where runs keep their directories.
const RUNS: &str = "/run/halo-lab";
/// Where namespaces have their names.
const NAMES: &str = "/run/netns";
/// Nothing here takes longer on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The ids of the runs that a process owns.
fn runs_of(pid: u32) -> BTreeSet<String> {
    let owner = |path: PathBuf| fs::read_to_string(path.join("owner")).unwrap_or_default();
    let owned = |path: PathBuf| owner(path).split(' ').next() == Some(pid.to_string().as_str());
    let entries = fs::read_dir(RUNS).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| owned(entry.path()));
    ours.map(|entry| entry.file_name().to_string_lossy().trim_start_matches('.').to_owned()).collect()
}

/// Namespaces and directories of these runs.
pub(crate) fn left_of(runs: &BTreeSet<String>) -> Vec<String> {
    let names = fs::read_dir(NAMES).into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let of_run = |name: &String| runs.iter().any(|run| name.starts_with(&format!("halo-{run}-")));
    let directories = runs.iter().filter(|run| Path::new(RUNS).join(run).exists()).cloned();
    names.filter(of_run).chain(directories).collect()
}

/// Lets a comparison run, with a signal once it says these words; what it said, and the runs that it owned.
pub(crate) fn watch(mut child: Child, signal: Option<(&str, Signal)>) -> (Output, BTreeSet<String>) {
    let mut runs = BTreeSet::new();
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let printed = thread::spawn(move || {
        let mut text = Vec::new();
        stdout.read_to_end(&mut text).unwrap();
        text
    });
    let (pid, mut said, mut pending) = (child.id(), String::new(), signal);
    let mut reader = BufReader::new(&mut stderr);
    while reader.read_line(&mut said).unwrap() > 0 {
        runs.extend(runs_of(pid));
        if let Some((_, signal)) = pending.take_if(|(words, _)| said.contains(*words)) {
            kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
        }
    }
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "it does not end: {said}");
        thread::sleep(Duration::from_millis(10));
    }
    let output =
        Output { status: child.wait().unwrap(), stdout: printed.join().unwrap(), stderr: said.into_bytes() };
    (output, runs)
}

/// What it said.
pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
