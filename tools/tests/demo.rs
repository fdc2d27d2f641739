//! `halo demo` as a person uses it, and how it ends when it is not left to end. Needs root and fails without it.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use halo::lab::process::wait_for;
use halo::lab::run::{self, ProcessId};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);

/// A demo in the background, which a failing test does not leave running.
struct Demo {
    child: Option<Child>,
    pid: i32,
}

impl Demo {
    fn start() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_halo"));
        command.args(["demo", "--json", "--seconds", "120"]).stdout(Stdio::piped());
        let child = command.spawn().unwrap();
        Self { pid: i32::try_from(child.id()).unwrap(), child: Some(child) }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid), signal).unwrap();
    }

    fn end(mut self) -> Output {
        self.child.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The directory of the demo's run, once all of its pods' programs are recorded: 2 servers and 3 clients.
fn standing(demo: &Demo) -> PathBuf {
    let owner = format!("{} ", demo.pid);
    wait_for("the stage standing", PATIENCE, || {
        let runs: Vec<_> = fs::read_dir("/run/halo-lab").map_err(|e| e.to_string())?.flatten().collect();
        let lines = |dir: &PathBuf, file| fs::read_to_string(dir.join(file)).unwrap_or_default();
        let dirs: Vec<PathBuf> = runs.iter().map(|entry| entry.path()).collect();
        let ours = dirs.iter().find(|dir| lines(dir, "owner").starts_with(&owner));
        let ours = ours.filter(|dir| lines(dir, "processes").lines().count() > 4);
        ours.cloned().ok_or_else(|| format!("{dirs:?}"))
    })
    .unwrap()
}

fn processes(dir: &Path) -> Vec<ProcessId> {
    let text = fs::read_to_string(dir.join("processes")).unwrap();
    let pids = text.lines().map(|line| line.split(' ').next().unwrap().parse().unwrap());
    pids.filter_map(ProcessId::of).collect()
}

fn namespaces(dir: &Path) -> usize {
    let prefix = format!("halo-{}-", dir.file_name().unwrap().to_str().unwrap());
    let names = fs::read_dir("/run/netns").unwrap().flatten();
    names.filter(|entry| entry.file_name().to_str().unwrap().starts_with(&prefix)).count()
}

fn object(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}"))
}

#[test]
fn interrupt_cleans_up_without_waiting_for_the_step() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let demo = Demo::start();
        let dir = standing(&demo);
        assert_eq!(namespaces(&dir), 6);
        let started = Instant::now();
        demo.signal(signal);
        let output = demo.end();
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        assert_eq!(output.status.code(), Some(130));
        let object = object(&output);
        assert_eq!((&object["ok"], &object["interrupted"]), (&Value::from(false), &Value::from(true)));
        let cleanup = &object["steps"][9];
        assert_eq!((&cleanup["name"], &cleanup["ok"]), (&"cleanup".into(), &true.into()), "{object}");
        assert!(!dir.exists() && namespaces(&dir) == 0);
    }
}

#[test]
fn killed_demo_is_swept_and_its_programs_end() {
    let demo = Demo::start();
    let dir = standing(&demo);
    let processes = processes(&dir);
    assert!(processes.len() >= 5, "{processes:?}");
    demo.signal(Signal::SIGKILL);
    demo.end();
    run::sweep().unwrap();
    assert!(!dir.exists() && namespaces(&dir) == 0);
    wait_for("the programs ending", PATIENCE, || match processes.iter().any(|p| p.is_running()) {
        true => Err(format!("{processes:?}")),
        false => Ok(()),
    })
    .unwrap();
}

#[test]
fn without_root_one_sentence_tells_the_remedy() {
    // The test's own directory may be closed to other users.
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let program = dir.path().join("halo");
    fs::copy(env!("CARGO_BIN_EXE_halo"), &program).unwrap();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let output = Command::new(program).arg("demo").uid(65534).gid(65534).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "halo demo: building network namespaces needs root; run `sudo halo demo`\n");
}
