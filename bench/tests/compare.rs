//! The whole comparison, tiny: as root it builds its rooms, measures, writes its report and leaves nothing behind,
//! whether it comes to its end, is interrupted, or is killed.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]
#[path = "support/runs.rs"]
mod runs;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;

use runs::{left_of, said, watch};

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

/// All runs of a report: case, subject, figures.
fn figures(report: &Value) -> Vec<(&str, &str, &Value)> {
    let cases = report["cases"].as_array().unwrap().iter();
    let runs = cases.flat_map(|case| case["runs"].as_array().unwrap().iter().map(move |run| (case, run)));
    runs.map(|(case, run)| {
        (case["id"].as_str().unwrap(), run["subject"].as_str().unwrap(), &run["outcome"]["done"])
    })
    .collect()
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
