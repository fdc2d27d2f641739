//! The whole comparison, tiny: as root it builds its rooms, measures, writes its report and leaves nothing behind,
//! whether it comes to its end, is interrupted, or is killed.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Where runs keep their directories.
const RUNS: &str = "/run/halo-lab";
/// Where namespaces have their names.
const NAMES: &str = "/run/netns";
/// Nothing here takes longer on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A directory for a report, which goes with the test.
struct Out(PathBuf);

impl Out {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("halo-bench-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }

    fn report(&self) -> Value {
        for name in ["report.html", "summary.txt"] {
            assert!(fs::metadata(self.0.join(name)).unwrap().len() > 0, "{name}");
        }
        let text = fs::read_to_string(self.0.join("report.json")).unwrap();
        assert_eq!(fs::read_dir(&self.0).unwrap().count(), 3, "no drafts are left");
        serde_json::from_str(&text).unwrap()
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn compare(out: &Path, arguments: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_halo-bench"));
    command.arg("compare").args(arguments.split(' ')).arg("--out").arg(out);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The ids of the runs that a process owns.
fn runs_of(pid: u32) -> BTreeSet<String> {
    let owner = |path: PathBuf| fs::read_to_string(path.join("owner")).unwrap_or_default();
    let owned = |path: PathBuf| owner(path).split(' ').next() == Some(pid.to_string().as_str());
    let entries = fs::read_dir(RUNS).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| owned(entry.path()));
    ours.map(|entry| entry.file_name().to_string_lossy().trim_start_matches('.').to_owned()).collect()
}

/// Namespaces and directories of these runs.
fn left_of(runs: &BTreeSet<String>) -> Vec<String> {
    let names = fs::read_dir(NAMES).into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let of_run = |name: &String| runs.iter().any(|run| name.starts_with(&format!("halo-{run}-")));
    let directories = runs.iter().filter(|run| Path::new(RUNS).join(run).exists()).cloned();
    names.filter(of_run).chain(directories).collect()
}

/// Lets a comparison run, with a signal once it says these words; what it said, and the runs that it owned.
fn watch(mut child: Child, signal: Option<(&str, Signal)>) -> (Output, BTreeSet<String>) {
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

/// All runs of a report: case, subject, figures.
fn figures(report: &Value) -> Vec<(&str, &str, &Value)> {
    let cases = report["cases"].as_array().unwrap().iter();
    let runs = cases.flat_map(|case| case["runs"].as_array().unwrap().iter().map(move |run| (case, run)));
    runs.map(|(case, run)| {
        (case["id"].as_str().unwrap(), run["subject"].as_str().unwrap(), &run["outcome"]["done"])
    })
    .collect()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_comparison_measures_every_subject_and_leaves_nothing() {
    let out = Out::new("whole");
    let arguments = "--rounds 1 --seconds 0.1 --only two-nodes/requests-1KiB-1,two-nodes/bulk-up-1 \
                     --subjects no-mesh,halo --workers 1";
    let (output, runs) = watch(compare(&out.0, arguments), None);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!((runs.len(), left_of(&runs)), (2, Vec::new()));
    let report = out.report();
    let figures = figures(&report);
    assert_eq!(figures.len(), 4, "{figures:?}");
    for (case, subject, done) in figures {
        let did = if case.contains("bulk") { &done["bytes"] } else { &done["operations"] };
        assert!(did.as_u64().unwrap() > 0 && done["errors"] == 0, "{case} {subject}: {done}");
        assert!(done["clients"]["cpu_s"].as_f64().unwrap() > 0.0, "{case} {subject}: {done}");
        let proxies = done["proxies"].as_array().unwrap();
        assert_eq!(proxies.len(), if subject == "halo" { 2 } else { 0 });
        for proxy in proxies {
            assert!(proxy["cpu_s"].as_f64().unwrap() > 0.0, "{case}: {proxy}");
            assert!(proxy["ring_operations"].as_u64().unwrap() > 0, "{case}: {proxy}");
        }
    }
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.contains("ring operations") && printed.contains("report.json"), "{printed}");
}

#[test]
fn every_load_runs_among_many_pods() {
    let out = Out::new("many");
    let arguments = "--rounds 1 --seconds 0.05 --many 2 --only many-pods --subjects no-mesh,halo --workers 1";
    let (output, runs) = watch(compare(&out.0, arguments), None);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(left_of(&runs), Vec::<String>::new());
    let report = out.report();
    let figures = figures(&report);
    for load in ["idle-0", "cold", "requests-1KiB-500", "noisy-8", "churn"] {
        let of_load: Vec<_> = figures.iter().filter(|(case, ..)| case.ends_with(load)).collect();
        assert_eq!(of_load.len(), 2, "{load}");
        assert!(of_load.iter().all(|(_, _, done)| done["errors"] == 0), "{of_load:?}");
    }
    let cold = figures.iter().filter(|(case, ..)| case.ends_with("cold"));
    assert!(
        cold.clone().all(|(_, _, done)| done["operations"] == 4),
        "each of two clients visits two servers"
    );
}

#[test]
fn an_interrupted_comparison_leaves_nothing_and_keeps_what_it_measured() {
    let out = Out::new("interrupted");
    let arguments =
        "--rounds 500 --seconds 0.05 --only two-nodes/requests-1KiB-1 --subjects no-mesh,halo --workers 1";
    let child = compare(&out.0, arguments);
    let (output, runs) =
        watch(child, Some(("round 2 of 500: two-nodes/requests-1KiB-1, Halo", Signal::SIGINT)));
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    assert!(runs.len() >= 4, "{runs:?}");
    assert_eq!(left_of(&runs), Vec::<String>::new());
    let report = out.report();
    let figures = figures(&report);
    assert!(figures.len() >= 2 && figures.iter().all(|(_, _, done)| done["operations"] != 0), "{figures:?}");
    let note = report["about"]["notes"][0].as_str().unwrap();
    assert!(note.contains("interrupted") && note.contains("of 1000 runs"), "{note}");
    assert!(
        !said(&output).contains("failed"),
        "what the interruption broke is no failure: {}",
        said(&output)
    );
}

#[test]
fn what_a_killed_comparison_leaves_the_next_one_sweeps() {
    let out = Out::new("killed");
    let arguments = "--rounds 500 --seconds 0.05 --only two-nodes/idle-0 --subjects no-mesh --workers 1";
    let child = compare(&out.0, arguments);
    let (output, runs) = watch(child, Some(("round 2 of 500: two-nodes/idle-0", Signal::SIGKILL)));
    assert_eq!(output.status.code(), None);
    assert!(!figures(&out.report()).is_empty(), "the first round is kept");
    let arguments = "--rounds 1 --seconds 0.05 --only two-nodes/idle-0 --subjects no-mesh --workers 1";
    let (output, _) = watch(compare(&out.0, arguments), None);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!((runs.is_empty(), left_of(&runs)), (false, Vec::new()));
}

#[test]
fn bad_input_is_told_at_once_in_one_sentence() {
    let out = Out::new("refused");
    for (arguments, words) in [
        ("--subjects halo,hallo", "no subject is named hallo; there are no-mesh, halo, "),
        ("--only two-nodes/nothing", "--list names them"),
        ("--peer stock=/nowhere/proxy", "build it, or correct --peer stock=PATH"),
        ("--baseline /nowhere/report.json", "--baseline wants the report.json of an earlier comparison"),
        ("--envoy /nowhere/envoy --subjects envoy-tcp", "there is no program at /nowhere/envoy"),
        ("--subjects no-mesh", "name another directory with --out"),
    ] {
        let out = if arguments.ends_with("no-mesh") { Path::new("/proc/nowhere") } else { &out.0 };
        let output = compare(out, arguments).wait_with_output().unwrap();
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments}: {said}");
        assert!(said.contains(words) && said.trim().lines().count() == 1, "{arguments}: {said}");
        assert!(!out.join("report.json").exists());
    }
}
