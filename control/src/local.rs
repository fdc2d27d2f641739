//! The local source: workloads, services and policies from a YAML file of the stock node proxy's format.
//!
//! A file is taken whole or refused whole, with the line, the field and the reason; a refused file leaves the state
//! before it in force. Unknown keys are refused, so that a misspelt policy field never widens a policy. A reference to
//! a service that the file does not have is fine: services and workloads may come in any order.

mod convert;
mod raw;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use halo_core::policy::Policy;
use halo_core::service::{Service, ServiceKey};
use halo_core::workload::Workload;

use crate::edit::MeshEdit;

/// Why a file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, {field}: {reason}")]
pub struct LocalError {
    /// Line, from 1; 0 where the text as a whole is wrong.
    pub line: u64,
    /// Path of the field, for example `workloads[2].protocol`.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What a workload gets where the file is silent. An identity needs a trust domain and a service account, and a pod is
/// matched to its workload by them; files are often written without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// Trust domain.
    pub trust_domain: Arc<str>,
    /// Cluster.
    pub cluster: Arc<str>,
}

/// The service account of a workload whose file names none, as Kubernetes has it.
const SERVICE_ACCOUNT: &str = "default";

/// What a file says, by key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalState {
    /// By uid.
    pub workloads: BTreeMap<Arc<str>, Arc<Workload>>,
    /// By key.
    pub services: BTreeMap<ServiceKey, Arc<Service>>,
    /// By `namespace/name`.
    pub policies: BTreeMap<Arc<str>, Arc<Policy>>,
}

impl LocalState {
    /// Reads a file's text. A text with nothing in it is refused: it is what a writer leaves for a moment who writes in
    /// place, and a mesh that is meant to be empty is written `{}`.
    pub fn parse(text: &str, defaults: &Defaults) -> Result<Self, LocalError> {
        let file = raw::parse(text)?;
        convert::convert(file, defaults)
    }

    /// The edits that lead from `self` to `next`: only what differs.
    pub fn diff(&self, next: &Self) -> Vec<MeshEdit> {
        let mut edits = Vec::new();
        let workloads = (&self.workloads, &next.workloads);
        differences(workloads, &mut edits, MeshEdit::Workload, MeshEdit::RemoveWorkload);
        let services = (&self.services, &next.services);
        differences(services, &mut edits, MeshEdit::Service, MeshEdit::RemoveService);
        let policies = (&self.policies, &next.policies);
        differences(policies, &mut edits, MeshEdit::Policy, MeshEdit::RemovePolicy);
        edits
    }
}

type ByKey<K, V> = BTreeMap<K, Arc<V>>;

fn differences<K: Ord + Clone, V: PartialEq>(
    (old, new): (&ByKey<K, V>, &ByKey<K, V>),
    edits: &mut Vec<MeshEdit>,
    insert: fn(Arc<V>) -> MeshEdit,
    remove: fn(K) -> MeshEdit,
) {
    edits.extend(old.keys().filter(|key| !new.contains_key(*key)).cloned().map(remove));
    let changed = new.iter().filter(|(key, value)| old.get(*key) != Some(*value));
    edits.extend(changed.map(|(_, value)| insert(value.clone())));
}
