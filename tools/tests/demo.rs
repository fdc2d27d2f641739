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
const STEPS: [&str; 10] = [
    "topology",
    "plaintext",
    "enrol",
    "encrypted",
    "server_first",
    "policy_deny",
    "policy_live",
    "policy_allow",
    "load",
    "cleanup",
];

/// A demo in the background, which a failing test does not leave running.
struct Demo {
    child: Option<Child>,
    pid: i32,
}

impl Demo {
    fn start(shards: u16, seconds: u16) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_halo"));
        let (shards, seconds) = (shards.to_string(), seconds.to_string());
        command.args(["demo", "--json", "--shards", &shards, "--seconds", &seconds]).stdout(Stdio::piped());
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

/// The directory of the demo's run, once all of its processes are recorded: 2 servers, 3 clients and 2 node proxies.
fn standing(demo: &Demo) -> PathBuf {
    let owner = format!("{} ", demo.pid);
    wait_for("the stage standing", PATIENCE, || {
        let runs: Vec<_> = fs::read_dir("/run/halo-lab").map_err(|e| e.to_string())?.flatten().collect();
        let lines = |dir: &PathBuf, file| fs::read_to_string(dir.join(file)).unwrap_or_default();
        let dirs: Vec<PathBuf> = runs.iter().map(|entry| entry.path()).collect();
        let ours = dirs.iter().find(|dir| lines(dir, "owner").starts_with(&owner));
        let ours = ours.filter(|dir| lines(dir, "processes").lines().count() == 7);
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

/// Waits until the load runs through the mesh: every pod takes tunnels, and a client has a thread for each of the
/// load's 16 connections.
fn loading(dir: &Path, processes: &[ProcessId]) {
    wait_for("the load with the mesh", PATIENCE, || {
        let mesh = fs::read_to_string(dir.join("mesh.yaml")).unwrap_or_default();
        let tasks =
            |process: &ProcessId| fs::read_dir(format!("/proc/{}/task", process.pid)).map(Iterator::count);
        let threads = processes.iter().filter_map(|process| tasks(process).ok()).max();
        let loads = mesh.contains("HBONE") && threads >= Some(16);
        if loads { Ok(()) } else { Err(format!("{threads:?} threads")) }
    })
    .unwrap();
}

/// What the root namespace holds that a run could leave behind there.
fn root_namespace() -> Vec<String> {
    let say = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let routing = ["-4", "-6"].map(|family| say("ip", &[family, "rule"]));
    let routes = ["-4", "-6"].map(|family| say("ip", &[family, "route", "show", "table", "100"]));
    [say("nft", &["list", "tables"])].into_iter().chain(routing).chain(routes).collect()
}

fn assert_gone(dir: &Path, processes: &[ProcessId]) {
    let id = dir.file_name().unwrap().to_str().unwrap();
    assert!(!dir.exists() && !dir.with_file_name(format!(".{id}")).exists(), "{}", dir.display());
    assert_eq!(namespaces(dir), 0);
    let left: Vec<_> = processes.iter().filter(|process| process.is_running()).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// One run from its start to its end, which leaves nothing behind.
fn whole_run(shards: u16) -> Value {
    let before = root_namespace();
    let demo = Demo::start(shards, 1);
    let dir = standing(&demo);
    let processes = processes(&dir);
    assert_eq!(processes.len(), 7);
    let output = demo.end();
    let object = object(&output);
    assert_eq!((output.status.code(), &object["ok"]), (Some(0), &Value::from(true)), "{object:#}");
    assert_gone(&dir, &processes);
    assert_eq!(root_namespace(), before);
    object
}

fn assert_complete(object: &Value, shards: usize) {
    let steps = object["steps"].as_array().unwrap();
    let names: Vec<_> = steps.iter().map(|step| step["name"].as_str().unwrap()).collect();
    assert_eq!(names, STEPS);
    assert!(steps.iter().all(|step| step["ok"] == true && step["took_ms"].is_u64()), "{object:#}");
    let [_, plaintext, _, encrypted, .., load, _] = steps.as_slice() else { panic!("{object:#}") };
    assert!(plaintext["marker_seen"].as_u64() > Some(0), "{plaintext}");
    assert_eq!(encrypted["marker_seen"], 0);
    for figures in [&load["mesh"], &load["no_mesh"]] {
        assert!(figures["rps"].as_f64() > Some(0.0), "{figures}");
        let [p50_us, p99_us] = ["p50_us", "p99_us"].map(|name| figures[name].as_u64().unwrap());
        assert!(0 < p50_us && p50_us <= p99_us, "{figures}");
        assert_eq!(figures["errors"], 0);
    }
    let nodes: Vec<_> = load["nodes"].as_array().unwrap().iter().map(|node| &node["shards"]).collect();
    assert!(nodes.iter().all(|node| node.as_array().unwrap().len() == shards), "{load}");
    let cores = core_affinity::get_core_ids().unwrap().len();
    assert!(cores < 2 || nodes[0][0]["core"] != nodes[1][0]["core"], "both nodes on one core: {load}");
}

fn object(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}"))
}

fn five_runs(shards: u16) {
    for _ in 0..5 {
        assert_complete(&whole_run(shards), shards.into());
    }
}

#[test]
fn five_runs_in_a_row_pass_on_one_shard() {
    five_runs(1);
}

#[test]
fn five_runs_in_a_row_pass_on_two_shards() {
    five_runs(2);
}

#[test]
fn interrupt_during_load_cleans_up_and_the_next_run_works() {
    let demo = Demo::start(1, 5);
    let dir = standing(&demo);
    let processes = processes(&dir);
    loading(&dir, &processes);
    demo.signal(Signal::SIGINT);
    let output = demo.end();
    assert_eq!(output.status.code(), Some(130));
    assert_gone(&dir, &processes);
    let object = object(&output);
    assert_eq!((&object["ok"], &object["interrupted"]), (&false.into(), &true.into()), "{object:#}");
    let ok: Vec<_> = object["steps"].as_array().unwrap().iter().map(|step| step["ok"] == true).collect();
    assert_eq!(ok, STEPS.map(|name| name != "load"), "{object:#}");
    whole_run(1);
}

#[test]
fn interrupt_cleans_up_without_waiting_for_the_step() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let demo = Demo::start(1, 120);
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
    let demo = Demo::start(1, 120);
    let dir = standing(&demo);
    let processes = processes(&dir);
    assert!(processes.len() == 7, "{processes:?}");
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
    let run = |arguments: &[&str]| {
        let output = Command::new(&program).args(arguments).uid(65534).gid(65534).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        output
    };
    let remedy = "building network namespaces needs root; run `sudo halo demo`";
    let said = run(&["demo"]);
    assert_eq!(String::from_utf8_lossy(&said.stderr), format!("halo demo: {remedy}\n"));
    let said = object(&run(&["demo", "--json"]));
    assert_eq!((&said["ok"], &said["error"]), (&false.into(), &remedy.into()));
}
