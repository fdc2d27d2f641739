//! The mesh as one generation of immutable data: what a decision reads.
//!
//! A snapshot is built by the control thread and shared with the shards by reference. Its maps are persistent: cloning
//! one is O(1) and an update O(log n), so a new generation costs what changed, not what exists.

use std::net::IpAddr;
use std::sync::Arc;

use imbl::{HashMap, HashSet, OrdMap, OrdSet};

use crate::certificate::{Certificate, Revocations};
use crate::demand::Question;
use crate::id::Identity;
use crate::net::NetworkAddress;
use crate::policy::{Policy, Scope};
use crate::service::{CidrVip, Service, ServiceKey};
use crate::workload::{NetworkMode, PortMap, Workload};

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

/// A namespace and a name within it.
type InNamespace = (Arc<str>, Arc<str>);

/// Workloads by uid, by address, by name and by the services that they serve.
#[derive(Debug, Clone, Default)]
pub struct Workloads {
    by_uid: HashMap<Arc<str>, Arc<Workload>>,
    by_address: HashMap<NetworkAddress, OrdSet<Arc<str>>>,
    by_service: HashMap<ServiceKey, OrdMap<Arc<str>, Endpoint>>,
    by_name: HashMap<InNamespace, OrdSet<Arc<str>>>,
    by_hostname: HashMap<InNamespace, OrdSet<Arc<str>>>,
}

/// A workload in its role for one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// The workload's own ports for this service.
    pub ports: PortMap,
}

impl Workloads {
    /// Adds a workload, or replaces the one with the same uid.
    pub fn insert(&mut self, workload: Arc<Workload>) {
        self.remove(&workload.uid);
        for address in addresses(&workload) {
            self.by_address.entry(address).or_default().insert(workload.uid.clone());
        }
        for (service, ports) in &workload.services {
            let endpoint = Endpoint { workload: workload.clone(), ports: ports.clone() };
            self.by_service.entry(service.clone()).or_default().insert(workload.uid.clone(), endpoint);
        }
        let name = (workload.namespace.clone(), workload.name.clone());
        self.by_name.entry(name).or_default().insert(workload.uid.clone());
        if !workload.hostname.is_empty() {
            let hostname = (workload.namespace.clone(), workload.hostname.clone());
            self.by_hostname.entry(hostname).or_default().insert(workload.uid.clone());
        }
        self.by_uid.insert(workload.uid.clone(), workload);
    }

    /// Removes the workload with this uid, if there is one.
    pub fn remove(&mut self, uid: &str) -> Option<Arc<Workload>> {
        let workload = self.by_uid.remove(uid)?;
        for address in addresses(&workload) {
            remove_from(&mut self.by_address, &address, uid);
        }
        for service in workload.services.keys() {
            if let Some(endpoints) = self.by_service.get_mut(service) {
                endpoints.remove(uid);
                if endpoints.is_empty() {
                    self.by_service.remove(service);
                }
            }
        }
        remove_from(&mut self.by_name, &(workload.namespace.clone(), workload.name.clone()), uid);
        remove_from(&mut self.by_hostname, &(workload.namespace.clone(), workload.hostname.clone()), uid);
        Some(workload)
    }

    /// The workload with this uid.
    pub fn get(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.by_uid.get(uid)
    }

    /// The workloads that own an address; more than one only while an address moves between pods.
    pub fn at(&self, address: &NetworkAddress) -> impl Iterator<Item = &Arc<Workload>> {
        self.by_address.get(address).into_iter().flatten().filter_map(|uid| self.by_uid.get(uid))
    }

    /// The endpoints of a service, in order of uid, whether or not the service itself is known yet.
    pub fn endpoints(&self, service: &ServiceKey) -> impl Iterator<Item = &Endpoint> {
        self.by_service.get(service).into_iter().flat_map(OrdMap::values)
    }

    /// The pods with this namespace and name; more than one only across clusters.
    pub fn named(&self, namespace: &Arc<str>, name: &Arc<str>) -> impl Iterator<Item = &Arc<Workload>> {
        let uids = self.by_name.get(&(namespace.clone(), name.clone()));
        uids.into_iter().flatten().filter_map(|uid| self.by_uid.get(uid))
    }

    /// Whether both are the same map, without comparing what is in it.
    pub fn same(&self, other: &Self) -> bool {
        self.by_uid.ptr_eq(&other.by_uid)
    }

    /// The workloads of a namespace that DNS knows by this host name.
    pub fn with_hostname(
        &self,
        namespace: &Arc<str>,
        hostname: &Arc<str>,
    ) -> impl Iterator<Item = &Arc<Workload>> {
        let uids = self.by_hostname.get(&(namespace.clone(), hostname.clone()));
        uids.into_iter().flatten().filter_map(|uid| self.by_uid.get(uid))
    }

    /// Every workload, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.by_uid.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_uid.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_uid.is_empty()
    }
}

/// Services by key, by host name, by virtual address and by virtual range.
#[derive(Debug, Clone, Default)]
pub struct Services {
    by_key: HashMap<ServiceKey, Arc<Service>>,
    by_hostname: HashMap<Arc<str>, OrdSet<ServiceKey>>,
    by_vip: HashMap<NetworkAddress, OrdSet<ServiceKey>>,
    by_cidr: OrdMap<(Arc<str>, ipnet::IpNet), OrdSet<ServiceKey>>,
}

impl Services {
    /// Adds a service, or replaces the one with the same key.
    pub fn insert(&mut self, service: Arc<Service>) {
        self.remove(&service.key);
        let key = &service.key;
        self.by_hostname.entry(key.hostname.clone()).or_default().insert(key.clone());
        for vip in &service.vips {
            self.by_vip.entry(vip.clone()).or_default().insert(key.clone());
        }
        for vip in &service.cidr_vips {
            self.by_cidr.entry(cidr_key(vip)).or_default().insert(key.clone());
        }
        self.by_key.insert(key.clone(), service);
    }

    /// Removes the service with this key, if there is one.
    pub fn remove(&mut self, key: &ServiceKey) -> Option<Arc<Service>> {
        let service = self.by_key.remove(key)?;
        remove_from(&mut self.by_hostname, &key.hostname, key);
        for vip in &service.vips {
            remove_from(&mut self.by_vip, vip, key);
        }
        for vip in &service.cidr_vips {
            let range = cidr_key(vip);
            if let Some(keys) = self.by_cidr.get_mut(&range) {
                keys.remove(key);
                if keys.is_empty() {
                    self.by_cidr.remove(&range);
                }
            }
        }
        Some(service)
    }

    /// The service with this key.
    pub fn get(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.by_key.get(key)
    }

    /// Services with this host name, in order of namespace.
    pub fn with_hostname(&self, hostname: &str) -> impl Iterator<Item = &Arc<Service>> {
        self.by_hostname.get(hostname).into_iter().flatten().filter_map(|key| self.by_key.get(key))
    }

    /// Services with exactly this virtual address, in order of key.
    pub fn at(&self, vip: &NetworkAddress) -> impl Iterator<Item = &Arc<Service>> {
        self.by_vip.get(vip).into_iter().flatten().filter_map(|key| self.by_key.get(key))
    }

    /// Services with a virtual range of exactly this prefix, in order of key.
    pub fn in_range(&self, network: &Arc<str>, cidr: ipnet::IpNet) -> impl Iterator<Item = &Arc<Service>> {
        let keys = self.by_cidr.get(&(network.clone(), cidr));
        keys.into_iter().flatten().filter_map(|key| self.by_key.get(key))
    }

    /// Whether any service has a virtual range, so that range lookups can be skipped where none does.
    pub fn has_ranges(&self) -> bool {
        !self.by_cidr.is_empty()
    }

    /// Every service, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.by_key.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }
}

/// Policies by key and by the scope in which they apply.
#[derive(Debug, Clone, Default)]
pub struct Policies {
    by_key: OrdMap<Arc<str>, Arc<Policy>>,
    global: OrdSet<Arc<str>>,
    by_namespace: HashMap<Arc<str>, OrdSet<Arc<str>>>,
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
        self.by_key.insert(key, policy);
    }

    /// Removes the policy with this key, `namespace/name`, if there is one.
    pub fn remove(&mut self, key: &str) -> Option<Arc<Policy>> {
        let policy = self.by_key.remove(key)?;
        self.global.remove(key);
        remove_from(&mut self.by_namespace, &policy.namespace, key);
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

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }
}

/// The addresses that find a workload: none for one that shares its node's addresses.
fn addresses(workload: &Workload) -> impl Iterator<Item = NetworkAddress> {
    let own: &[IpAddr] = match workload.network_mode {
        NetworkMode::Standard => &workload.addresses,
        NetworkMode::HostNetwork => &[],
    };
    own.iter().map(|ip| NetworkAddress { network: workload.network.clone(), ip: *ip })
}

fn cidr_key(vip: &CidrVip) -> (Arc<str>, ipnet::IpNet) {
    (vip.network.clone(), vip.cidr.trunc())
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
