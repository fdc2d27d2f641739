//! The mesh as the control plane serves it, and the place where a source of the mesh's state plugs in.
//!
//! A source hands [`World::apply`] what changed. The world encodes each resource once, keeps what finds it, and
//! publishes one immutable [`Edition`] for each batch that changes anything. It knows no subscriber.

mod index;
mod resource;
mod table;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use halo_core::id::Identity;
use tokio::sync::watch;

use crate::edit::MeshEdit;
use index::Index;
pub(crate) use index::split_address;
pub use resource::{Nature, Resource, ResourceType};
pub use table::{Change, Table};

/// Number of `removed_resources` in a `DeltaDiscoveryResponse`.
const REMOVED_FIELD: u32 = 6;
/// Differences to earlier editions that an edition keeps for the next subscriber that asks: subscribers are rarely more
/// than a few editions behind one another.
const DIFFERENCES_MAX: usize = 8;

/// A handle to the world. Cheap to clone.
#[derive(Debug, Clone)]
pub struct World(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    editions: watch::Sender<Arc<Edition>>,
    /// Held while an edition is made of the one before.
    applying: Mutex<()>,
}

impl Default for World {
    fn default() -> Self {
        Self(Arc::new(Shared { editions: watch::Sender::new(Arc::default()), applying: Mutex::default() }))
    }
}

impl World {
    /// Applies what changed as one edition, and gives the generation in force. Content that is there already is no
    /// change, and a batch without a change makes no edition; except the first batch, which says that the source has
    /// been read, even if there is nothing in it. Edits that are no part of what the mesh is are left out.
    pub fn apply(&self, edits: Vec<MeshEdit>) -> u64 {
        let _turn = self.0.applying.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.edition();
        let mut next = current.next();
        let mut changed = !current.is_known();
        for edit in edits {
            changed |= next.apply(edit);
        }
        if !changed {
            return current.generation;
        }
        let generation = next.generation;
        self.0.editions.send_replace(Arc::new(next));
        generation
    }

    /// The edition in force.
    pub fn edition(&self) -> Arc<Edition> {
        self.0.editions.borrow().clone()
    }

    /// Reports every new edition.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Edition>> {
        self.0.editions.subscribe()
    }
}

/// One generation of the world.
#[derive(Debug, Default)]
pub struct Edition {
    generation: u64,
    addresses: Table,
    policies: Table,
    index: Index,
    differences: Mutex<Vec<(ResourceType, u64, Arc<Difference>)>>,
}

/// What differs between two editions, for one type.
#[derive(Debug)]
pub struct Difference {
    /// Resource by resource.
    pub changes: Vec<Change>,
    /// The same as fields of a `DeltaDiscoveryResponse`: what is removed, then what is new or other.
    pub encoded: Bytes,
}

impl Edition {
    /// Grows by one with every edition; 0 before the source has been read.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether the source has been read. Before, nothing is known, which is not the same as an empty mesh.
    pub fn is_known(&self) -> bool {
        self.generation > 0
    }

    /// All resources of a type.
    pub fn table(&self, kind: ResourceType) -> &Table {
        match kind {
            ResourceType::Address => &self.addresses,
            ResourceType::Authorization => &self.policies,
        }
    }

    /// What a subscription's key names: the resource of this name, those with this alias, and the services with a
    /// virtual range that holds this address.
    pub fn find(&self, kind: ResourceType, key: &str) -> Vec<Arc<Resource>> {
        let table = self.table(kind);
        let mut found: Vec<_> = table.get(key).cloned().into_iter().collect();
        if kind == ResourceType::Address {
            found.extend(self.index.aliased(key).filter_map(|name| table.get(name)).cloned());
        }
        found
    }

    /// The workloads that serve the service of this name.
    pub fn endpoints(&self, service: &str) -> impl Iterator<Item = &Arc<Resource>> {
        self.index.endpoints(service).filter_map(|name| self.addresses.get(name))
    }

    /// The workloads on a node.
    pub fn on_node(&self, node: &str) -> impl Iterator<Item = &Arc<Resource>> {
        self.index.on_node(node).filter_map(|name| self.addresses.get(name))
    }

    /// Whether a workload of this identity runs on a node.
    pub fn runs_on(&self, node: &str, identity: &Identity) -> bool {
        self.on_node(node).any(
            |resource| matches!(&resource.nature, Nature::Workload { identity: its, .. } if its == identity),
        )
    }

    /// The node that a cluster's pod runs on.
    pub fn node_of_pod(&self, cluster: &str, namespace: &str, pod: &str) -> Option<Arc<str>> {
        self.addresses.get(&format!("{cluster}//Pod/{namespace}/{pod}"))?.node().cloned()
    }

    /// What differs from an older edition. Made once for all who ask for the same difference.
    pub fn since(&self, kind: ResourceType, old: &Self) -> Arc<Difference> {
        let mut kept = self.differences.lock().unwrap_or_else(PoisonError::into_inner);
        let held = kept.iter().find(|(of, from, _)| (*of, *from) == (kind, old.generation));
        if let Some((_, _, difference)) = held {
            return difference.clone();
        }
        let difference = Arc::new(Difference::new(self.table(kind).since(old.table(kind))));
        if kept.len() == DIFFERENCES_MAX {
            kept.remove(0);
        }
        kept.push((kind, old.generation, difference.clone()));
        difference
    }

    fn next(&self) -> Self {
        Self {
            generation: self.generation + 1,
            addresses: self.addresses.clone(),
            policies: self.policies.clone(),
            index: self.index.clone(),
            differences: Mutex::default(),
        }
    }

    /// Applies one edit; says whether it changed anything.
    fn apply(&mut self, edit: MeshEdit) -> bool {
        match edit {
            MeshEdit::Workload(workload) => {
                let resource = Resource::workload(&workload, |name| self.index.service_name(name));
                self.insert_address(resource)
            }
            MeshEdit::Service(service) => self.insert_address(Resource::service(&service)),
            MeshEdit::RemoveWorkload(uid) => {
                self.remove_address(&uid, |nature| matches!(nature, Nature::Workload { .. }))
            }
            MeshEdit::RemoveService(key) => {
                self.remove_address(&key.to_string(), |nature| matches!(nature, Nature::Service { .. }))
            }
            MeshEdit::Policy(policy) => {
                let resource = Resource::policy(&policy);
                let same = is_same(&self.policies, &resource);
                if !same {
                    self.policies.insert(Arc::new(resource));
                }
                !same
            }
            MeshEdit::RemovePolicy(key) => self.policies.remove(&key).is_some(),
            // Certificates, and what a node learns by asking, are a node's own.
            _ => false,
        }
    }

    fn insert_address(&mut self, resource: Resource) -> bool {
        if is_same(&self.addresses, &resource) {
            return false;
        }
        let resource = Arc::new(resource);
        if let Some(old) = self.addresses.insert(resource.clone()) {
            self.index.remove(&old);
        }
        self.index.insert(&resource);
        true
    }

    /// Removes what has this name, if it is what it is meant to be: names of workloads are free texts.
    fn remove_address(&mut self, name: &str, is_meant: impl Fn(&Nature) -> bool) -> bool {
        if !self.addresses.get(name).is_some_and(|resource| is_meant(&resource.nature)) {
            return false;
        }
        let removed = self.addresses.remove(name);
        if let Some(old) = &removed {
            self.index.remove(old);
        }
        removed.is_some()
    }
}

fn is_same(table: &Table, resource: &Resource) -> bool {
    table.get(&resource.name).is_some_and(|held| held.version == resource.version)
}

impl Difference {
    fn new(changes: Vec<Change>) -> Self {
        let encoded = match changes.as_slice() {
            [Change { new: Some(only), .. }] => only.encoded.clone(),
            several => {
                let mut encoded = Vec::new();
                for change in several.iter().filter(|change| change.new.is_none()) {
                    if let Some(old) = &change.old {
                        prost::encoding::string::encode(REMOVED_FIELD, &old.name.to_string(), &mut encoded);
                    }
                }
                for new in several.iter().filter_map(|change| change.new.as_ref()) {
                    encoded.extend_from_slice(&new.encoded);
                }
                encoded.into()
            }
        };
        Self { changes, encoded }
    }
}
