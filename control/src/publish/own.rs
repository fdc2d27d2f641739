//! The identities of the node's own workloads, kept up to date by the edits themselves: a mesh of 200 000 workloads that
//! changes a hundred times a second is never searched for the few that are here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use halo_core::id::Identity;
use halo_core::snapshot::Snapshot;
use halo_core::workload::{Protocol, Workload};

use crate::edit::MeshEdit;

/// Workloads on this node that speak HBONE, by uid, and how many there are of each identity.
#[derive(Debug, Default)]
pub(super) struct OwnWorkloads {
    node: Arc<str>,
    by_uid: BTreeMap<Arc<str>, Identity>,
    counts: BTreeMap<Identity, usize>,
    changed: bool,
}

impl OwnWorkloads {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let mut own = Self { node: snapshot.mesh.node.clone(), ..Self::default() };
        snapshot.workloads.iter().for_each(|workload| own.put(workload));
        own
    }

    /// Takes note of a change.
    pub(super) fn note(&mut self, edit: &MeshEdit) {
        match edit {
            MeshEdit::Workload(workload) => self.put(workload),
            MeshEdit::RemoveWorkload(uid) => self.remove(uid),
            _ => {}
        }
    }

    /// The identities, if they have changed since the last call.
    pub(super) fn changed(&mut self) -> Option<BTreeSet<Identity>> {
        std::mem::take(&mut self.changed).then(|| self.counts.keys().cloned().collect())
    }

    fn put(&mut self, workload: &Workload) {
        let speaks = workload.protocol == Protocol::Hbone || workload.native_tunnel;
        if !speaks || self.node.is_empty() || workload.node != self.node {
            return self.remove(&workload.uid);
        }
        let identity = workload.identity();
        if self.by_uid.get(&workload.uid) == Some(&identity) {
            return;
        }
        self.remove(&workload.uid);
        let count = self.counts.entry(identity.clone()).or_insert(0);
        *count += 1;
        self.changed |= *count == 1;
        self.by_uid.insert(workload.uid.clone(), identity);
    }

    fn remove(&mut self, uid: &str) {
        let Some(identity) = self.by_uid.remove(uid) else { return };
        if let Some(count) = self.counts.get_mut(&identity) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&identity);
                self.changed = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use halo_core::snapshot::Mesh;

    use super::*;

    fn workload(uid: &str, account: &str, node: &str, protocol: Protocol) -> Arc<Workload> {
        Arc::new(Workload {
            uid: uid.into(),
            namespace: "shop".into(),
            service_account: account.into(),
            trust_domain: "td".into(),
            node: node.into(),
            protocol,
            ..Workload::default()
        })
    }

    fn accounts(own: &mut OwnWorkloads) -> Option<Vec<String>> {
        let changed = own.changed()?;
        Some(changed.iter().map(|identity| identity.service_account.to_string()).collect())
    }

    #[test]
    fn an_identity_is_there_from_its_first_workload_on_the_node_to_its_last() {
        let mesh = Arc::new(Mesh { node: "here".into(), ..Mesh::default() });
        let mut snapshot = Snapshot { mesh, ..Snapshot::default() };
        snapshot.workloads.insert(workload("0", "first", "here", Protocol::Hbone));
        let mut own = OwnWorkloads::of(&snapshot);
        assert_eq!(accounts(&mut own), Some(vec!["first".into()]));
        let put = |workload| MeshEdit::Workload(workload);
        own.note(&put(workload("1", "cart", "here", Protocol::Hbone)));
        own.note(&put(workload("2", "cart", "here", Protocol::Hbone)));
        own.note(&put(workload("3", "far", "there", Protocol::Hbone)));
        own.note(&put(workload("4", "plain", "here", Protocol::Tcp)));
        assert_eq!(accounts(&mut own), Some(vec!["cart".into(), "first".into()]));
        own.note(&put(workload("1", "cart", "here", Protocol::Hbone)));
        own.note(&MeshEdit::RemoveWorkload("1".into()));
        assert_eq!(accounts(&mut own), None, "another workload has the identity still");
        // It moves to another node, and one that was outside the mesh joins it.
        own.note(&put(workload("2", "cart", "there", Protocol::Hbone)));
        let native =
            Workload { native_tunnel: true, ..(*workload("4", "plain", "here", Protocol::Tcp)).clone() };
        own.note(&put(Arc::new(native)));
        assert_eq!(accounts(&mut own), Some(vec!["first".into(), "plain".into()]));
        own.note(&MeshEdit::RemoveWorkload("unknown".into()));
        own.note(&put(workload("0", "second", "here", Protocol::Hbone)));
        assert_eq!(accounts(&mut own), Some(vec!["plain".into(), "second".into()]));
    }

    #[test]
    fn a_node_without_a_name_has_no_workloads() {
        let mut own = OwnWorkloads::of(&Snapshot::default());
        own.note(&MeshEdit::Workload(workload("1", "cart", "", Protocol::Hbone)));
        assert_eq!(accounts(&mut own), None);
    }
}
