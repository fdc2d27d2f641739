//! What a client with certain keys holds of an edition.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::sync::Arc;

use crate::controller::world::{Edition, Resource, ResourceType, split_address};

/// Keys of a subscription.
pub(super) type Keys = HashSet<Arc<str>>;

/// The keys of a moment.
pub(super) struct Asking<'a> {
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

/// The keys of a moment, and the edition that they are looked up in.
pub(super) struct Wish<'a> {
    pub(super) edition: &'a Edition,
    kind: ResourceType,
    asking: Asking<'a>,
    /// Names of the services with ranges that a key names. Found by key when it is first asked: a key is looked up in
    /// no time, while a service's ranges would have to be held against every key for each of its endpoints.
    ranged: OnceCell<HashSet<Arc<str>>>,
}

impl<'a> Wish<'a> {
    pub(super) fn new(edition: &'a Edition, kind: ResourceType, asking: Asking<'a>) -> Self {
        Self { edition, kind, asking, ranged: OnceCell::new() }
    }
}

impl Wish<'_> {
    /// Whether a resource is wanted.
    pub(super) fn wants(&self, resource: &Resource) -> bool {
        self.asking.wildcard
            || self.names(resource)
            || self.is_local(resource)
            || self.names_service_of(resource)
    }

    /// Whether a key names a resource of the edition itself.
    pub(super) fn names(&self, resource: &Resource) -> bool {
        self.has(&resource.name)
            || resource.aliases.iter().any(|alias| self.has(alias))
            || !resource.ranges().is_empty() && self.ranged().contains(&resource.name)
    }

    fn ranged(&self) -> &HashSet<Arc<str>> {
        self.ranged.get_or_init(|| {
            let addresses = self.all().filter(|key| split_address(key).is_some());
            let found = addresses.flat_map(|key| self.edition.find(self.kind, key));
            found.filter(|found| !found.ranges().is_empty()).map(|found| found.name.clone()).collect()
        })
    }

    fn is_local(&self, resource: &Resource) -> bool {
        self.asking.node.is_some() && resource.node().map(|node| &**node) == self.asking.node
    }

    fn names_service_of(&self, resource: &Resource) -> bool {
        let table = self.edition.table(self.kind);
        let mut services = resource.services().iter().filter_map(|name| table.get(name));
        services.any(|service| self.names(service))
    }

    fn has(&self, key: &str) -> bool {
        self.asking.also.contains(key) || self.asking.keys.contains(key) && !self.asking.except.contains(key)
    }

    fn all(&self) -> impl Iterator<Item = &Arc<str>> {
        self.asking
            .also
            .iter()
            .chain(self.asking.keys.iter().filter(|key| !self.asking.except.contains(*key)))
    }
}
