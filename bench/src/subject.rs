//! What carries the traffic between the pods: nothing, Halo, Envoy sidecars, or a peer that takes Halo's place.
//!
//! Each subject gets a lab of its own with the same topology, so that all of them are up side by side and take turns.

use std::path::PathBuf;
use std::sync::Arc;

use halo::lab::process::Process;
use halo::lab::topology::Topology;
use halo::lab::{Lab, Result};

use crate::model::{Load, SubjectInfo};

/// What every subject is started with.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Worker threads, or shards, of every proxy process.
    pub(crate) workers: usize,
    /// The Envoy program, for those that need it.
    pub(crate) envoy: Option<PathBuf>,
}

/// One subject.
pub(crate) trait Subject {
    /// Its names and its version.
    fn info(&self) -> SubjectInfo;

    /// Why it cannot carry this load; `None` if it can.
    fn unfit(&self, load: &Load) -> Option<String>;

    /// Starts its proxies for all pods of the topology, and returns when traffic between any two of them passes through
    /// them.
    fn start(&self, lab: Arc<Lab>, topology: Arc<Topology>) -> Result<Box<dyn Carrier>>;
}

/// A subject that carries traffic. Dropping it ends its processes.
pub(crate) trait Carrier {
    /// The proxies' processes.
    fn processes(&self) -> Vec<Arc<Process>>;

    /// Takes a pod out of the mesh while it runs and brings it back; an error where pods have proxies of their own.
    fn cycle(&self, pod: &str) -> Result<()>;
}
