//! What a large snapshot holds of memory, and what an update of it costs.

use std::sync::Arc;

use serde::Serialize;

use super::Case;
use crate::crowd::Crowd;
use crate::usage;

/// The mesh that is measured, and the one of a run that is only to run.
const FULL: (u32, u32) = (200_000, 20_000);
const TINY: (u32, u32) = (2_000, 200);
/// The update of the large snapshot.
pub(super) const UPDATE: &str = "snapshot, replace 1 of 200 000";

/// Resident memory of a snapshot.
#[derive(Debug, Serialize)]
pub(super) struct Memory {
    pub(super) workloads: u32,
    pub(super) services: u32,
    /// All of it.
    pub(super) bytes: u64,
}

impl Memory {
    /// With each workload's share of everything else.
    pub(super) fn bytes_per_workload(&self) -> f64 {
        self.bytes as f64 / f64::from(self.workloads)
    }
}

/// Builds a large snapshot and tells by how much the process grew. Memory that was freed before would be used again and
/// not counted, so nothing else may have been measured yet. The case replaces a workload in it.
pub(super) fn measure(tiny: bool) -> (Memory, Case) {
    let (workloads, services) = if tiny { TINY } else { FULL };
    let crowd = Crowd::new(workloads, services);
    let before = usage::resident_bytes();
    let mut snapshot = Arc::new(crowd.snapshot());
    let bytes = usage::resident_bytes().saturating_sub(before);
    let mut number = 0;
    let run = move || {
        number = (number + 77_773) % workloads;
        let workload = Arc::new(crowd.workload(number));
        let mut next = (*snapshot).clone();
        next.workloads.insert(workload);
        // The last generation goes here, as it does once every shard has adopted the next.
        snapshot = Arc::new(next);
        snapshot.workloads.len() as u64
    };
    (Memory { workloads, services, bytes }, Case::new(UPDATE, 5_000, 0, run))
}
