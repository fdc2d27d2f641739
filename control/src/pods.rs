//! The node's own pods, as certificates, readiness, metrics and admin see them.

use std::collections::BTreeMap;
use std::sync::Arc;

use halo_core::id::Identity;
use halo_core::resolve;
use halo_core::snapshot::Snapshot;
use halo_core::zds::{PodState, WorkloadInfo};

/// Every pod that the CNI agent enrolled, by uid.
pub type Pods = BTreeMap<Arc<str>, PodView>;

/// One pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodView {
    /// Who it is.
    pub info: WorkloadInfo,
    /// How far it is.
    pub state: PodState,
}

/// The identity of a pod: its workload's, or until the mesh knows the workload, one in the configured trust domain.
pub(crate) fn identity(snapshot: &Snapshot, pod: &WorkloadInfo, trust_domain: &str) -> Identity {
    let account = &pod.service_account;
    match resolve::local_workload(snapshot, &pod.namespace, &pod.name, account) {
        Some(workload) => workload.identity(),
        None => Identity::new(trust_domain, &pod.namespace, account),
    }
}
