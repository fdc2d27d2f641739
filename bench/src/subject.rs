//! What carries the traffic between the pods: nothing, Halo, Envoy sidecars, or a peer that takes Halo's place.
//!
//! Each subject gets a lab of its own with the same topology, so that all of them are up side by side and take turns.

pub(crate) mod envoy;
mod halo;
mod nodes;
mod none;
pub(crate) mod peer;
mod programs;
#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::halo::lab::process::Process;
use ::halo::lab::topology::Topology;
use ::halo::lab::{Lab, LabError, Result};

use crate::model::{Load, SubjectInfo};
use envoy::{Envoy, Mode};
use peer::{Peer, PeerOptions};

/// Time that a carrier's processes get between SIGTERM and SIGKILL.
const STOP_MAX: Duration = Duration::from_secs(2);

/// What every subject is started with.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Worker threads, or shards, of every proxy process; `None` leaves each its own default.
    pub(crate) workers: Option<usize>,
    /// The Halo program: see [`halo_binary`].
    pub(crate) halo: PathBuf,
    /// The Envoy program, for those that need it: see [`envoy::find`].
    pub(crate) envoy: Option<PathBuf>,
}

/// One subject.
pub(crate) trait Subject: Send {
    /// Its names and its version.
    fn info(&self) -> SubjectInfo;

    /// Why it cannot carry this load; `None` if it can.
    fn unfit(&self, load: &Load) -> Option<String>;

    /// Starts its proxies for all pods of the topology, and returns when traffic between any two of them passes through
    /// them.
    fn start(&self, lab: Arc<Lab>, topology: Arc<Topology>) -> Result<Box<dyn Carrier>>;
}

/// A subject that carries traffic. Dropping it ends its processes.
pub(crate) trait Carrier: Send + Sync {
    /// The proxies' processes.
    fn processes(&self) -> Vec<Arc<Process>>;

    /// Operations that each process's rings have completed since it started, in the order of [`Self::processes`]; `None`
    /// where it does not count them. It costs the process something to say so.
    fn operations(&self) -> Vec<Option<u64>> {
        vec![None; self.processes().len()]
    }

    /// Takes a pod out of the mesh while it runs and brings it back; an error where pods have proxies of their own.
    fn cycle(&self, pod: &str) -> Result<()>;
}

/// Every subject: no mesh, Halo, both kinds of Envoy sidecars, and the peers in their order.
pub(crate) fn all(settings: &Settings, peers: &[PeerOptions]) -> Vec<Box<dyn Subject>> {
    let mut subjects: Vec<Box<dyn Subject>> = vec![
        Box::new(none::NoMesh),
        Box::new(halo::Halo::new(settings)),
        Box::new(Envoy::new(Mode::Tcp, settings)),
        Box::new(Envoy::new(Mode::Http, settings)),
    ];
    for peer in peers {
        subjects.push(Box::new(Peer::new(peer, settings)));
    }
    subjects
}

/// The optimised `halo` program that belongs to this one: `HALO_BINARY`, or its neighbour if that is not older, or what
/// the workspace builds now.
///
/// # Errors
/// It does not build, with the command to try.
pub(crate) fn halo_binary() -> Result<PathBuf> {
    programs::halo_binary()
}

/// Processes that end when this is dropped.
#[derive(Debug, Default)]
struct Running(Vec<Arc<Process>>);

impl Drop for Running {
    fn drop(&mut self) {
        for process in &self.0 {
            process.terminate();
        }
        for process in &self.0 {
            process.stop(STOP_MAX);
        }
    }
}

/// Says what was being done when an I/O error came up.
fn failed(doing: impl Display, cause: impl Into<io::Error>) -> LabError {
    LabError::Io { doing: doing.to_string(), cause: cause.into() }
}
