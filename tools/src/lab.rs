//! A small machine room on one host: nodes and pods as network namespaces joined by veth, ordinary processes inside
//! them, a packet capture between them, and the mesh's own files and sockets. The demo and the end-to-end tests
//! build on it.
//!
//! Everything carries the run's id in its name. [`Lab::cleanup`] (also run on drop, hence on panic) takes all of it
//! away; a run that died without it is swept by the next [`Lab::new`]. Nothing here blocks for ever: whatever waits
//! has a deadline.

pub mod admin;
pub mod agent;
pub mod capture;
pub mod certs;
pub mod client;
pub mod controller;
pub mod cores;
pub mod http;
pub mod load;
pub mod mesh;
pub mod netns;
pub mod node;
pub mod pod;
pub mod process;
pub mod run;
pub mod topology;

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use netns::Netns;
use process::{Process, Spec};
use run::Run;

/// Time a process gets between SIGTERM and SIGKILL.
const STOP_MAX: Duration = Duration::from_secs(2);

/// Why the lab could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A system call failed.
    #[error("{doing}: {cause}")]
    Io {
        /// What was being done.
        doing: String,
        /// The operating system's words.
        cause: io::Error,
    },
    /// A program that the lab uses failed.
    #[error("`{command}` failed: {stderr}")]
    Command {
        /// The command line.
        command: String,
        /// What it printed.
        stderr: String,
    },
    /// A process of the lab ended, stayed silent or said something unexpected.
    #[error("{process}: {problem}")]
    Process {
        /// Its name in the lab.
        process: String,
        /// What it did.
        problem: String,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {limit:?}; last seen: {seen}")]
    Late {
        /// What was awaited.
        what: String,
        /// How long.
        limit: Duration,
        /// The last observation.
        seen: String,
    },
    /// The redirect rules could not be set.
    #[error(transparent)]
    Redirect(#[from] halo_control::redirect::RedirectError),
    /// The lab is being cleaned up.
    #[error("the lab is closed")]
    Closed,
}

/// Result of the lab's operations.
pub type Result<T> = std::result::Result<T, LabError>;

/// Names what was being done when an I/O error came up.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl Display) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl Display) -> Result<T> {
        self.map_err(|cause| LabError::Io { doing: what.to_string(), cause: cause.into() })
    }
}

/// One run of the lab.
#[derive(Debug)]
pub struct Lab {
    run: Run,
    binary: PathBuf,
    room: Mutex<Room>,
}

#[derive(Debug, Default)]
struct Room {
    closed: bool,
    processes: Vec<Arc<Process>>,
}

/// What a cleanup took away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cleaned {
    /// Processes that were still running.
    pub processes: usize,
    /// Namespaces.
    pub namespaces: usize,
}

impl Lab {
    /// Opens a lab, after sweeping what dead runs left behind. `binary` is the `halo` program: see
    /// [`process::halo_binary`].
    pub fn new(binary: PathBuf) -> Result<Self> {
        run::sweep()?;
        Ok(Self { run: Run::create()?, binary, room: Mutex::default() })
    }

    /// The run's id, part of every name.
    pub fn run_id(&self) -> &str {
        self.run.id()
    }

    /// The run's directory for sockets, files and logs. It goes with the run.
    pub fn dir(&self) -> &Path {
        self.run.dir()
    }

    /// The `halo` program.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Creates the namespace `halo-<run id>-<name>` with its loopback up.
    pub fn namespace(&self, name: &str) -> Result<Arc<Netns>> {
        let room = self.room();
        if room.closed {
            return Err(LabError::Closed);
        }
        Netns::create(&format!("{}{name}", self.run.prefix())).map(Arc::new)
    }

    /// Starts a process, which lives until it is stopped or the lab is cleaned up.
    pub fn spawn(&self, spec: Spec) -> Result<Arc<Process>> {
        let mut room = self.room();
        if room.closed {
            return Err(LabError::Closed);
        }
        let process = Arc::new(Process::spawn(spec, &self.run)?);
        room.processes.push(process.clone());
        Ok(process)
    }

    /// Stops every process, removes every namespace and the directory. Later calls do nothing; nothing can be started
    /// afterwards.
    pub fn cleanup(&self) -> Result<Cleaned> {
        let processes = {
            let mut room = self.room();
            room.closed = true;
            std::mem::take(&mut room.processes)
        };
        let running = processes.iter().filter(|p| p.is_running()).count();
        for process in &processes {
            process.terminate();
        }
        for process in processes.iter().rev() {
            process.stop(STOP_MAX);
        }
        Ok(Cleaned { processes: running, namespaces: self.run.remove()? })
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // What cannot be removed now is swept by the next run.
        let _ = self.cleanup();
    }
}
