//! The mesh as one generation of immutable data: what a decision reads.
//!
//! A snapshot is built by the control thread and shared with the shards by reference. Its maps are persistent: cloning
//! one is O(1) and an update O(log n), so a new generation costs what changed, not what exists.

use std::net::IpAddr;
use std::sync::Arc;

use imbl::{HashMap, HashSet, OrdMap, OrdSet};
use ipnet::IpNet;

use crate::certificate::{Certificate, Revocations};
use crate::demand::Question;
use crate::id::Identity;
use crate::net::NetworkAddress;
use crate::policy::{Policy, Scope};
use crate::service::{CidrVip, Service, ServiceKey};
use crate::workload::{NetworkMode, Workload};

pub use endpoints::Endpoint;
use endpoints::Endpoints;
use index::{Entry, Index};

mod endpoints;
mod index;
#[cfg(test)]
mod tests;

/// What a node proxy is told about its own place in the mesh at start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mesh {
    /// The node's name.
    pub node: Arc<str>,
    /// The network of the node's pods.
    pub network: Arc<str>,
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// Namespace preferred when several services share a name or address.
    pub preferred_namespace: Option<Arc<str>>,
    /// Whether the node holds only the part of the mesh that it asked for, so that what is not found is asked.
    pub on_demand: bool,
    /// Trust domains that count as the same as a workload's own: a mesh that was renamed, or joined with another.
    pub trust_domain_aliases: Box<[Arc<str>]>,
    /// The cluster's DNS domain, for example `cluster.local`.
    pub cluster_domain: Arc<str>,
    /// Whether an application tunnel is reached at the loopback address rather than at the pod's own.
    pub application_tunnels_local: bool,
}

/// One generation of the mesh.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Grows by one with every publication.
    pub generation: u64,
    /// The node's own place.
    pub mesh: Arc<Mesh>,
    /// All workloads.
    pub workloads: Workloads,
    /// All services.
    pub services: Services,
    /// All policies.
    pub policies: Policies,
    /// Certificates of the node's own workloads.
    pub certificates: HashMap<Identity, Arc<Certificate>>,
    /// Questions that the control plane has answered, whether or not there is such a thing.
    pub answered: HashSet<Question>,
    /// Certificates that peers may no longer use.
    pub revocations: Option<Arc<Revocations>>,
}

/// Workloads by uid, by address, by name and by the services that they serve.
#[derive(Debug, Clone, Default)]
pub struct Workloads {
    by_uid: Index<Arc<Workload>>,
    by_address: Index<Arc<Workload>>,
    by_service: Index<Arc<Endpoints>>,
    by_name: Index<Arc<Workload>>,
    by_hostname: Index<Arc<Workload>>,
}

impl Entry for Arc<Workload> {
    type Key = str;

    fn key(&self) -> &str {
        &self.uid
    }
}

impl Workloads {
    /// Adds a workload, or replaces the one with the same uid.
    pub fn insert(&mut self, workload: Arc<Workload>) {
        self.remove(&workload.uid);
        for hash in address_hashes(&workload) {
            self.by_address.insert(hash, workload.clone());
        }
        for (service, ports) in &workload.services {
            let endpoint = Endpoint { workload: workload.clone(), ports: ports.clone() };
            let hash = index::hash(service);
            match self.by_service.get_mut(hash, service) {
                Some(endpoints) => Arc::make_mut(endpoints).insert(endpoint),
                None => self.by_service.insert(hash, Arc::new(Endpoints::new(service.clone(), endpoint))),
            }
        }
        self.by_name.insert(hash_in(&workload.namespace, &workload.name), workload.clone());
        if !workload.hostname.is_empty() {
            self.by_hostname.insert(hash_in(&workload.namespace, &workload.hostname), workload.clone());
        }
        self.by_uid.insert(index::hash(&*workload.uid), workload);
    }

    /// Removes the workload with this uid, if there is one.
    pub fn remove(&mut self, uid: &str) -> Option<Arc<Workload>> {
        let workload = self.by_uid.remove(index::hash(uid), uid)?;
        for hash in address_hashes(&workload) {
            self.by_address.remove(hash, uid);
        }
        for service in workload.services.keys() {
            let hash = index::hash(service);
            let Some(endpoints) = self.by_service.get_mut(hash, service) else { continue };
            let endpoints = Arc::make_mut(endpoints);
            endpoints.remove(uid);
            if endpoints.is_empty() {
                self.by_service.remove(hash, service);
            }
        }
        self.by_name.remove(hash_in(&workload.namespace, &workload.name), uid);
        if !workload.hostname.is_empty() {
            self.by_hostname.remove(hash_in(&workload.namespace, &workload.hostname), uid);
        }
        Some(workload)
    }

    /// The workload with this uid.
    pub fn get(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.by_uid.get(index::hash(uid), uid)
    }

    /// The workloads that own an address, in order of uid; more than one only while an address moves between pods.
    pub fn at(&self, address: &NetworkAddress) -> impl Iterator<Item = &Arc<Workload>> {
        let found = self.by_address.at(address_hash(&address.network, &address.ip)).iter();
        found.filter(|workload| {
            workload.network == address.network && workload.addresses.contains(&address.ip)
        })
    }

    /// The endpoints of a service, in order of uid, whether or not the service itself is known yet.
    pub fn endpoints(&self, service: &ServiceKey) -> impl Iterator<Item = &Endpoint> {
        self.by_service.get(index::hash(service), service).into_iter().flat_map(|found| found.iter())
    }

    /// The pods with this namespace and name; more than one only across clusters.
    pub fn named(&self, namespace: &Arc<str>, name: &Arc<str>) -> impl Iterator<Item = &Arc<Workload>> {
        let found = self.by_name.at(hash_in(namespace, name)).iter();
        found.filter(move |workload| workload.namespace == *namespace && workload.name == *name)
    }

    /// Whether both are the same map, without comparing what is in it.
    pub fn same(&self, other: &Self) -> bool {
        self.by_uid.same(&other.by_uid)
    }

    /// The workloads of an older generation that are gone from this one. It costs what changed between the two.
    pub fn removed_since<'a>(&'a self, older: &'a Self) -> impl Iterator<Item = &'a Arc<Workload>> {
        let replaced = self.by_uid.replaced_since(&older.by_uid);
        replaced.filter(|workload| self.get(&workload.uid).is_none())
    }

    /// The workloads of a namespace that DNS knows by this host name.
    pub fn with_hostname(
        &self,
        namespace: &Arc<str>,
        hostname: &Arc<str>,
    ) -> impl Iterator<Item = &Arc<Workload>> {
        let found = self.by_hostname.at(hash_in(namespace, hostname)).iter();
        found.filter(move |workload| workload.namespace == *namespace && workload.hostname == *hostname)
    }

    /// Every workload, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.by_uid.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_uid.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_uid.len() == 0
    }
}

/// Services by key, by host name, by virtual address and by virtual range.
#[derive(Debug, Clone, Default)]
pub struct Services {
    by_key: Index<Arc<Service>>,
    by_hostname: Index<Arc<Service>>,
    by_vip: Index<Arc<Service>>,
    by_cidr: Index<Arc<Service>>,
}

impl Entry for Arc<Service> {
    type Key = ServiceKey;

    fn key(&self) -> &ServiceKey {
        &self.key
    }
}

impl Services {
    /// Adds a service, or replaces the one with the same key.
    pub fn insert(&mut self, service: Arc<Service>) {
        self.remove(&service.key);
        for vip in &service.vips {
            self.by_vip.insert(address_hash(&vip.network, &vip.ip), service.clone());
        }
        for vip in &service.cidr_vips {
            self.by_cidr.insert(range_hash(&vip.network, vip.cidr), service.clone());
        }
        self.by_hostname.insert(index::hash(&*service.key.hostname), service.clone());
        self.by_key.insert(index::hash(&service.key), service);
    }

    /// Removes the service with this key, if there is one.
    pub fn remove(&mut self, key: &ServiceKey) -> Option<Arc<Service>> {
        let service = self.by_key.remove(index::hash(key), key)?;
        self.by_hostname.remove(index::hash(&*key.hostname), key);
        for vip in &service.vips {
            self.by_vip.remove(address_hash(&vip.network, &vip.ip), key);
        }
        for vip in &service.cidr_vips {
            self.by_cidr.remove(range_hash(&vip.network, vip.cidr), key);
        }
        Some(service)
    }

    /// The service with this key.
    pub fn get(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.by_key.get(index::hash(key), key)
    }

    /// Services with this host name, in order of namespace.
    pub fn with_hostname(&self, hostname: &str) -> impl Iterator<Item = &Arc<Service>> {
        let found = self.by_hostname.at(index::hash(hostname)).iter();
        found.filter(move |service| &*service.key.hostname == hostname)
    }

    /// Services with exactly this virtual address, in order of key.
    pub fn at(&self, vip: &NetworkAddress) -> impl Iterator<Item = &Arc<Service>> {
        self.by_vip
            .at(address_hash(&vip.network, &vip.ip))
            .iter()
            .filter(|service| service.vips.contains(vip))
    }

    /// Services with a virtual range of exactly this prefix, in order of key.
    pub fn in_range(&self, network: &Arc<str>, cidr: IpNet) -> impl Iterator<Item = &Arc<Service>> {
        let of = move |vip: &CidrVip| vip.network == *network && vip.cidr.trunc() == cidr;
        let found = self.by_cidr.at(range_hash(network, cidr)).iter();
        found.filter(move |service| service.cidr_vips.iter().any(of))
    }

    /// Whether any service has a virtual range, so that range lookups can be skipped where none does.
    pub fn has_ranges(&self) -> bool {
        self.by_cidr.len() > 0
    }

    /// Every service, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.by_key.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_key.len() == 0
    }
}

/// Policies by key and by the scope in which they apply.
#[derive(Debug, Clone, Default)]
pub struct Policies {
    by_key: OrdMap<Arc<str>, Arc<Policy>>,
    global: OrdSet<Arc<str>>,
    by_namespace: HashMap<Arc<str>, OrdSet<Arc<str>>>,
    not_understood: usize,
}

impl Policies {
    /// Adds a policy, or replaces the one with the same key.
    pub fn insert(&mut self, policy: Arc<Policy>) {
        let key = policy.key();
        self.remove(&key);
        match policy.scope {
            Scope::Global => {
                self.global.insert(key.clone());
            }
            Scope::Namespace => {
                self.by_namespace.entry(policy.namespace.clone()).or_default().insert(key.clone());
            }
            Scope::WorkloadSelector => {}
        }
        self.not_understood += usize::from(policy.is_not_understood());
        self.by_key.insert(key, policy);
    }

    /// Removes the policy with this key, `namespace/name`, if there is one.
    pub fn remove(&mut self, key: &str) -> Option<Arc<Policy>> {
        let policy = self.by_key.remove(key)?;
        self.global.remove(key);
        remove_from(&mut self.by_namespace, &policy.namespace, key);
        self.not_understood -= usize::from(policy.is_not_understood());
        Some(policy)
    }

    /// The policy with this key, `namespace/name`.
    pub fn get(&self, key: &str) -> Option<&Arc<Policy>> {
        self.by_key.get(key)
    }

    /// Policies that apply to every workload, in order of key.
    pub fn global(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.global.iter().filter_map(|key| self.by_key.get(key))
    }

    /// Policies that apply to every workload of a namespace, in order of key.
    pub fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<Policy>> {
        self.by_namespace.get(namespace).into_iter().flatten().filter_map(|key| self.by_key.get(key))
    }

    /// Every policy, in order of key.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.by_key.values()
    }

    /// Whether both are the same map, without comparing what is in it.
    pub fn same(&self, other: &Self) -> bool {
        self.by_key.ptr_eq(&other.by_key)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// How many of them have a part that was not understood.
    pub fn not_understood(&self) -> usize {
        self.not_understood
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }
}

/// Hashes of the addresses that find a workload: none for one that shares its node's addresses.
fn address_hashes(workload: &Workload) -> impl Iterator<Item = u64> {
    let own: &[IpAddr] = match workload.network_mode {
        NetworkMode::Standard => &workload.addresses,
        NetworkMode::HostNetwork => &[],
    };
    own.iter().map(|ip| address_hash(&workload.network, ip))
}

fn address_hash(network: &str, ip: &IpAddr) -> u64 {
    index::hash(&(network, ip))
}

fn hash_in(namespace: &str, name: &str) -> u64 {
    index::hash(&(namespace, name))
}

fn range_hash(network: &str, cidr: IpNet) -> u64 {
    index::hash(&(network, cidr.trunc()))
}

/// Removes `value` from the set at `key`, and the set once it is empty.
fn remove_from<K, V, Q>(map: &mut HashMap<K, OrdSet<V>>, key: &K, value: &Q)
where
    K: std::hash::Hash + Eq + Clone,
    V: Ord + Clone + std::borrow::Borrow<Q>,
    Q: Ord + ?Sized,
{
    if let Some(set) = map.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            map.remove(key);
        }
    }
}
