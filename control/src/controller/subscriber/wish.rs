//! What a client with certain keys holds of an edition.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::controller::world::{Edition, Resource, ResourceType, split_address};

/// Keys of a subscription.
pub(super) type Keys = HashSet<Arc<str>>;

/// The keys of a moment, and the edition that they are looked up in.
pub(super) struct Wish<'a> {
    pub(super) edition: &'a Edition,
    pub(super) kind: ResourceType,
    /// Whether everything is wanted.
    pub(super) wildcard: bool,
    pub(super) keys: &'a Keys,
    /// Keys besides `keys`.
    pub(super) also: &'a Keys,
    /// Keys of `keys` that do not count.
    pub(super) except: &'a Keys,
    /// The client's own node, whose workloads it is sent unasked.
    pub(super) node: Option<&'a str>,
}

impl Wish<'_> {
    /// Whether a resource is wanted.
    pub(super) fn wants(&self, resource: &Resource) -> bool {
        self.wildcard || self.names(resource) || self.is_local(resource) || self.names_service_of(resource)
    }

    /// Whether a key names a resource itself.
    pub(super) fn names(&self, resource: &Resource) -> bool {
        self.has(&resource.name)
            || resource.aliases.iter().any(|alias| self.has(alias))
            || resource.ranges().iter().any(|range| {
                let holds =
                    |(network, ip): (&str, IpAddr)| *network == *range.network && range.cidr.contains(&ip);
                self.all().any(|key| split_address(key).is_some_and(holds))
            })
    }

    fn is_local(&self, resource: &Resource) -> bool {
        self.node.is_some() && resource.node().map(|node| &**node) == self.node
    }

    fn names_service_of(&self, resource: &Resource) -> bool {
        let table = self.edition.table(self.kind);
        let mut services = resource.services().iter().filter_map(|name| table.get(name));
        services.any(|service| self.names(service))
    }

    fn has(&self, key: &str) -> bool {
        self.also.contains(key) || self.keys.contains(key) && !self.except.contains(key)
    }

    fn all(&self) -> impl Iterator<Item = &Arc<str>> {
        self.also.iter().chain(self.keys.iter().filter(|key| !self.except.contains(*key)))
    }
}
