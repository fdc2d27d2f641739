//! The node's own pods, as certificates, readiness, metrics and admin see them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use halo_core::id::Identity;
use halo_core::resolve;
use halo_core::snapshot::Snapshot;
use halo_core::zds::{PodState, WorkloadInfo};

/// Every pod that the CNI agent enrolled, and the process's own, by uid.
pub type Pods = BTreeMap<Arc<str>, PodView>;

/// One pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodView {
    /// Who it is.
    pub info: WorkloadInfo,
    /// How far it is.
    pub state: PodState,
    /// Whether it is a pod of this process, which no agent names.
    pub resident: bool,
}

/// The identity of a pod: its workload's, or until the mesh knows the workload, one in the configured trust domain.
pub(crate) fn identity(snapshot: &Snapshot, pod: &WorkloadInfo, trust_domain: &str) -> Identity {
    let account = &pod.service_account;
    match resolve::local_workload(snapshot, &pod.namespace, &pod.name, account) {
        Some(workload) => workload.identity(),
        None => Identity::new(trust_domain, &pod.namespace, account),
    }
}

/// Totals of pods since start.
#[derive(Debug, Default)]
pub(crate) struct PodTotals {
    started: AtomicU64,
    stopped: AtomicU64,
}

impl PodTotals {
    pub(crate) fn count_started(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_stopped(&self) {
        self.stopped.fetch_add(1, Ordering::Relaxed);
    }

    /// Pods started, and pods stopped.
    pub(crate) fn totals(&self) -> (u64, u64) {
        (self.started.load(Ordering::Relaxed), self.stopped.load(Ordering::Relaxed))
    }
}
