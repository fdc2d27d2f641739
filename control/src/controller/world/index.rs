//! What finds addresses by anything but their name: aliases, services and nodes.

use std::net::IpAddr;
use std::sync::Arc;

use imbl::{HashMap, OrdMap, OrdSet};
use ipnet::IpNet;

use super::resource::{Resource, range_alias};

/// Names that go by one alias: nearly always one.
type Names = Arc<[Arc<str>]>;

/// The indexes of one generation. Cloning costs O(1), a change O(log n).
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    aliases: HashMap<Arc<str>, Names>,
    /// By name of a service.
    endpoints: HashMap<Arc<str>, OrdSet<Arc<str>>>,
    /// By name of a node.
    nodes: HashMap<Arc<str>, OrdSet<Arc<str>>>,
    /// How many virtual ranges there are, by family (IPv6 or not) and length of prefix.
    range_lens: OrdMap<(bool, u8), usize>,
}

impl Index {
    pub(super) fn insert(&mut self, resource: &Resource) {
        for alias in &resource.aliases {
            let names = self.aliases.entry(alias.clone()).or_default();
            if !names.contains(&resource.name) {
                *names = names.iter().chain([&resource.name]).cloned().collect();
            }
        }
        for service in resource.services() {
            self.endpoints.entry(service.clone()).or_default().insert(resource.name.clone());
        }
        if let Some(node) = resource.node() {
            self.nodes.entry(node.clone()).or_default().insert(resource.name.clone());
        }
        for range in resource.ranges() {
            *self.range_lens.entry(range_len(range.cidr)).or_default() += 1;
        }
    }

    pub(super) fn remove(&mut self, resource: &Resource) {
        for alias in &resource.aliases {
            let Some(names) = self.aliases.get_mut(alias) else { continue };
            *names = names.iter().filter(|name| **name != resource.name).cloned().collect();
            if names.is_empty() {
                self.aliases.remove(alias);
            }
        }
        for service in resource.services() {
            remove_from(&mut self.endpoints, service, &resource.name);
        }
        if let Some(node) = resource.node() {
            remove_from(&mut self.nodes, node, &resource.name);
        }
        for range in resource.ranges() {
            let len = range_len(range.cidr);
            match self.range_lens.get_mut(&len) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(self.range_lens.remove(&len)),
            }
        }
    }

    /// The text that is held already for a service's name.
    pub(super) fn service_name(&self, name: String) -> Arc<str> {
        match self.endpoints.get_key_value(name.as_str()) {
            Some((held, _)) => held.clone(),
            None => name.into(),
        }
    }

    /// Names of what goes by an alias, and of the services whose range holds it if it is an address.
    pub(super) fn aliased(&self, key: &str) -> impl Iterator<Item = &Arc<str>> {
        let exact = self.aliases.get(key).into_iter();
        let address = split_address(key).filter(|_| !self.range_lens.is_empty());
        let ranges = address.into_iter().flat_map(move |(network, ip)| {
            let family = self.range_lens.keys().filter(move |(v6, _)| *v6 == ip.is_ipv6());
            family.filter_map(move |(_, len)| {
                let range = IpNet::new(ip, *len).ok()?;
                self.aliases.get(&*range_alias(network, range))
            })
        });
        exact.chain(ranges).flat_map(|names| names.iter())
    }

    /// Names of the workloads that serve a service, whether or not there is such a service.
    pub(super) fn endpoints(&self, service: &str) -> impl Iterator<Item = &Arc<str>> {
        self.endpoints.get(service).into_iter().flatten()
    }

    /// Names of the workloads on a node.
    pub(super) fn on_node(&self, node: &str) -> impl Iterator<Item = &Arc<str>> {
        self.nodes.get(node).into_iter().flatten()
    }
}

/// A key of the form `network/ip`.
pub(crate) fn split_address(key: &str) -> Option<(&str, IpAddr)> {
    let (network, ip) = key.rsplit_once('/')?;
    Some((network, ip.parse().ok()?))
}

fn range_len(range: IpNet) -> (bool, u8) {
    (range.addr().is_ipv6(), range.prefix_len())
}

fn remove_from(map: &mut HashMap<Arc<str>, OrdSet<Arc<str>>>, key: &str, name: &Arc<str>) {
    if let Some(names) = map.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            map.remove(key);
        }
    }
}
