//! The scale run, tiny: as root it builds its stage, runs every part with a real controller and a real node, and leaves
//! nothing behind, whether it comes to its end or is interrupted.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "support/runs.rs"]
mod runs;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;

use runs::{left_of, said, watch};

/// A directory for a report, which goes with the test.
struct Out(PathBuf);

impl Out {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("halo-bench-scale-{name}-{}", std::process::id())))
    }

    fn report(&self) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.0.join("scale.json")).unwrap()).unwrap()
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn scale(out: &Out, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_halo-bench"));
    command.args(["scale", "--tiny"]).args(arguments).arg("--out").arg(&out.0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn value(report: &Value, part: &str, name: &str) -> f64 {
    let figures = report["figures"].as_array().unwrap().iter();
    let mut found = figures.filter(|figure| figure["part"] == part && figure["name"] == name);
    found.next().unwrap_or_else(|| panic!("no {name} of {part} in {report}"))["value"].as_f64().unwrap()
}

#[test]
fn every_part_finds_its_figures_and_leaves_nothing() {
    let out = Out::new("whole");
    let (output, runs) = watch(scale(&out, &[]), None);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!((runs.is_empty(), left_of(&runs)), (false, Vec::new()));
    let report = out.report();
    for (part, name) in [
        ("node", "fresh node ready"),
        ("node", "node, resident"),
        ("node", "controller, Pss"),
        ("changes", "change to adoption, median"),
        ("changes", "node, to publish one"),
        ("traffic", "p50, with ÷ without"),
        ("subscribers", "whole mesh to all"),
        ("subscribers", "bytes of the mesh to each"),
        ("subscribers", "a change to all of them"),
        ("file", "fresh node ready"),
    ] {
        assert!(value(&report, part, name) > 0.0, "{part}: {name}");
    }
    assert_eq!(value(&report, "traffic", "requests failed"), 0.0);
    assert!(
        value(&report, "traffic", "changes") >= 20.0
            && value(&report, "file", "workloads on the node") == 402.0
    );
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.contains("fresh node ready") && printed.contains("≤ 0"), "{printed}");
}

#[test]
fn an_interrupted_run_leaves_nothing_and_keeps_what_it_found() {
    let out = Out::new("interrupted");
    let child = scale(&out, &["--only", "node,traffic", "--seconds", "600"]);
    let (output, runs) = watch(child, Some(("services: traffic", Signal::SIGINT)));
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    assert_eq!((runs.is_empty(), left_of(&runs)), (false, Vec::new()));
    let report = out.report();
    assert!(value(&report, "node", "fresh node ready") > 0.0);
    assert_eq!(report["failures"], serde_json::json!([]), "what the interruption broke is no failure");
}

#[test]
fn a_part_that_there_is_not_is_refused() {
    let (output, _) = watch(scale(&Out::new("refused"), &["--only", "nothing"]), None);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("subscribers"), "{}", said(&output));
}
