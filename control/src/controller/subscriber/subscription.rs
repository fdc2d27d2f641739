//! One type of one stream: what is subscribed to, and what the client was brought to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::wish::{Asking, Keys, Wish};
use super::{Content, Event, KEYS_MAX, Push, Violation};
use crate::controller::world::{Edition, Resource, ResourceType};
use crate::proto::discovery::DeltaDiscoveryRequest;

/// The key that stands for every resource.
const WILDCARD: &str = "*";

#[derive(Debug)]
pub(super) struct Subscription {
    kind: ResourceType,
    /// Whether everything is subscribed to, besides the keys.
    wildcard: bool,
    keys: Keys,
    /// Keys that do not count, since the client came back with them.
    kept: usize,
    /// Keys that the next response must answer.
    asked: Keys,
    /// Keys that came since `sent`.
    added: Keys,
    /// Keys that went since `sent`.
    dropped: Keys,
    state: State,
    /// Nonce of the response that waits for its acknowledgement.
    waiting: Option<String>,
}

#[derive(Debug)]
enum State {
    /// Nothing was sent yet; the client holds these versions by name.
    New(Held),
    /// The client was brought to this edition by key, and then turned to everything.
    Widened(Arc<Edition>),
    /// The client was brought to this edition.
    Sent(Arc<Edition>),
}

/// Versions by name, as a client reports what it holds.
type Held = BTreeMap<String, String>;

/// What a response is to carry: removals and the rest.
type Due = (BTreeSet<Arc<str>>, Content);

/// Resources that may have to be sent, by name; whether they must be, since a key asks for them.
type Candidates = BTreeMap<Arc<str>, bool>;

impl Subscription {
    /// Takes the first request of a type. No name, or `*`, is everything; names, or `*` unsubscribed, are on demand.
    pub(super) fn new(kind: ResourceType, request: DeltaDiscoveryRequest) -> Result<Self, Violation> {
        let subscribed = &request.resource_names_subscribe;
        let wide = subscribed.is_empty() || subscribed.iter().any(|key| key == WILDCARD);
        let wildcard = wide && !request.resource_names_unsubscribe.iter().any(|key| key == WILDCARD);
        let mut subscription = Self {
            kind,
            wildcard,
            keys: Keys::new(),
            kept: 0,
            asked: Keys::new(),
            added: Keys::new(),
            dropped: Keys::new(),
            state: State::New(request.initial_resource_versions),
            waiting: None,
        };
        subscription.subscribe(&request.resource_names_subscribe)?;
        subscription.unsubscribe(&request.resource_names_unsubscribe);
        if !wildcard && subscription.keys.is_empty() {
            subscription.keep_held();
        }
        Ok(subscription)
    }

    /// A client on demand that comes back and names no key goes on to be told of what it holds, as the stock node
    /// proxy expects. What it holds does not count as keys: it may hold all the endpoints of the services it asked for.
    fn keep_held(&mut self) {
        let State::New(held) = &self.state else { return };
        self.keys.extend(held.keys().map(|name| name.as_str().into()));
        self.kept = self.keys.len();
    }

    pub(super) fn handle_request(&mut self, request: DeltaDiscoveryRequest) -> Result<Event, Violation> {
        let has = |names: &[String]| names.iter().any(|key| key == WILDCARD);
        let widened = has(&request.resource_names_subscribe);
        let narrowed = has(&request.resource_names_unsubscribe);
        self.subscribe(&request.resource_names_subscribe)?;
        self.unsubscribe(&request.resource_names_unsubscribe);
        if narrowed && self.wildcard {
            self.wildcard = false;
            if !matches!(self.state, State::New(_)) {
                // The client forgets what it holds, and is sent again what its keys name.
                self.state = State::New(Held::new());
                self.asked = self.keys.clone();
            }
        } else if widened && !narrowed && !self.wildcard {
            self.wildcard = true;
            if let State::Sent(sent) = &self.state {
                self.state = State::Widened(sent.clone());
            }
        }
        if request.response_nonce.is_empty() {
            return Ok(Event::Changed);
        }
        if self.waiting.as_ref() != Some(&request.response_nonce) {
            return Ok(Event::Stale);
        }
        self.waiting = None;
        Ok(match request.error_detail {
            Some(error) => Event::Refused(self.kind, error.message),
            None => Event::Acknowledged(self.kind),
        })
    }

    fn subscribe(&mut self, keys: &[String]) -> Result<(), Violation> {
        for key in keys.iter().filter(|key| *key != WILDCARD) {
            let key: Arc<str> = key.as_str().into();
            if self.keys.insert(key.clone()) && !self.dropped.remove(&key) {
                self.added.insert(key.clone());
            }
            self.asked.insert(key);
        }
        if self.keys.len() > self.kept + KEYS_MAX { Err(Violation::KeysTooMany) } else { Ok(()) }
    }

    fn unsubscribe(&mut self, keys: &[String]) {
        for key in keys {
            self.asked.remove(key.as_str());
            if let Some(key) = self.keys.take(key.as_str())
                && !self.added.remove(&key)
            {
                self.dropped.insert(key);
            }
        }
    }

    pub(super) fn wants_everything(&self) -> bool {
        self.wildcard && !matches!(self.state, State::Sent(_)) && self.waiting.is_none()
    }

    /// How many names the client reported that are not compared yet.
    pub(super) fn held(&self) -> usize {
        match &self.state {
            State::New(held) => held.len(),
            State::Widened(_) | State::Sent(_) => 0,
        }
    }

    /// The response that brings the client to an edition, if one is due.
    pub(super) fn poll(&mut self, edition: &Arc<Edition>, node: Option<&str>, nonce: &str) -> Option<Push> {
        if self.waiting.is_some() {
            return None;
        }
        let node = node.filter(|_| self.kind == ResourceType::Address);
        let due = match &self.state {
            State::New(held) if self.wildcard => Some(self.everything(held, edition)),
            State::New(held) => Some(self.first(held, edition, node)),
            State::Widened(before) => {
                let difference = edition.since(self.kind, before);
                let gone = difference.changes.iter().filter(|change| change.new.is_none());
                let gone = gone.filter_map(|change| change.old.as_ref()).map(|old| old.name.clone());
                let removed = gone.chain(self.missing(edition)).collect();
                Some((removed, Content::Everything(edition.table(self.kind).clone())))
            }
            State::Sent(sent) => self.changes(sent, edition, node),
        };
        self.state = State::Sent(edition.clone());
        for keys in [&mut self.asked, &mut self.added, &mut self.dropped] {
            // Not cleared: the memory of a burst of keys would stay.
            *keys = Keys::new();
        }
        let (removed, content) = due?;
        self.waiting = Some(nonce.to_owned());
        Some(Push { type_url: self.kind.url().to_owned(), nonce: nonce.to_owned(), removed, content })
    }

    /// Everything, to a client that holds some of it.
    fn everything(&self, held: &Held, edition: &Edition) -> Due {
        let table = edition.table(self.kind);
        let gone = held.keys().filter(|name| edition.find(self.kind, name).is_empty());
        let removed = gone.map(|name| name.as_str().into()).chain(self.missing(edition)).collect();
        if held.is_empty() {
            return (removed, Content::Everything(table.clone()));
        }
        let differing = table.iter().filter(|resource| !is_held(held, resource));
        (removed, Content::Resources(differing.cloned().collect()))
    }

    /// What a client's keys name, to a client that holds some of it.
    fn first(&self, held: &Held, edition: &Edition, node: Option<&str>) -> Due {
        let (table, none) = (edition.table(self.kind), Keys::new());
        let (kind, keys) = (self.kind, &self.keys);
        let asking = Asking { wildcard: false, keys, also: &none, except: &none, node };
        let now = Wish::new(edition, kind, asking);
        let mut candidates = Candidates::new();
        self.found(edition, &self.keys, false, &mut candidates);
        for resource in node.into_iter().flat_map(|node| edition.on_node(node)) {
            candidates.insert(resource.name.clone(), false);
        }
        let found = candidates.keys().filter_map(|name| table.get(name));
        let differing = found.filter(|resource| !is_held(held, resource)).cloned().collect();
        // A client may name a key that it waits for among what it holds.
        let gone = held.keys().filter(|name| match table.get(name) {
            Some(resource) => !now.wants(resource),
            None => edition.find(kind, name).is_empty(),
        });
        let removed = gone.map(|name| name.as_str().into()).chain(self.missing(edition)).collect();
        (removed, Content::Resources(differing))
    }

    /// What leads a client from an edition to a newer one, or answers what it asked; `None` if nothing does.
    fn changes(&self, sent: &Arc<Edition>, edition: &Edition, node: Option<&str>) -> Option<Due> {
        let quiet = self.asked.is_empty() && self.dropped.is_empty();
        if quiet && sent.generation() == edition.generation() {
            return None;
        }
        if quiet && self.wildcard {
            let difference = edition.since(self.kind, sent);
            let due = !difference.changes.is_empty();
            return due.then(|| (BTreeSet::new(), Content::Encoded(difference.encoded.clone())));
        }
        let none = Keys::new();
        let (kind, wildcard, keys) = (self.kind, self.wildcard, &self.keys);
        let asked_then = Asking { wildcard, keys, also: &self.dropped, except: &self.added, node };
        let asked_now = Asking { wildcard, keys, also: &none, except: &none, node };
        let (then, now) = (Wish::new(sent, kind, asked_then), Wish::new(edition, kind, asked_now));
        let (before, after) = (sent.table(kind), edition.table(kind));
        let mut removed: BTreeSet<_> = self.missing(edition).collect();
        let mut resources = Vec::new();
        for (name, must) in self.candidates(&then, &now) {
            let old = before.get(&name).filter(|old| then.wants(old));
            let new = after.get(&name).filter(|new| now.wants(new));
            match (old, new) {
                (Some(old), Some(new)) if old.version == new.version && !must => {}
                (_, Some(new)) => resources.push(new.clone()),
                (Some(_), None) => drop(removed.insert(name)),
                (None, None) => {}
            }
        }
        let due = !removed.is_empty() || !resources.is_empty();
        due.then_some((removed, Content::Resources(resources)))
    }

    /// What may differ between two moments: what changed itself, the workloads of services that began or ceased to be
    /// named, and what the keys name that came or went.
    fn candidates(&self, then: &Wish<'_>, now: &Wish<'_>) -> Candidates {
        let mut candidates = Candidates::new();
        let mut endpoints = Vec::new();
        for change in &now.edition.since(self.kind, then.edition).changes {
            let named = |wish: &Wish<'_>, resource: &Option<Arc<Resource>>| {
                resource.as_ref().is_some_and(|resource| wish.names(resource))
            };
            let Some(resource) = change.new.as_ref().or(change.old.as_ref()) else { continue };
            candidates.insert(resource.name.clone(), false);
            if named(then, &change.old) != named(now, &change.new) {
                endpoints.extend(then.edition.endpoints(&resource.name));
                endpoints.extend(now.edition.endpoints(&resource.name));
            }
        }
        candidates.extend(endpoints.into_iter().map(|endpoint| (endpoint.name.clone(), false)));
        self.found(then.edition, &self.dropped, false, &mut candidates);
        self.found(now.edition, &self.asked, true, &mut candidates);
        candidates
    }

    /// What keys name, which must be sent if it was asked for, and the workloads of the services among it. Many keys may
    /// name one service, whose workloads are gone through once.
    fn found(&self, edition: &Edition, keys: &Keys, must: bool, candidates: &mut Candidates) {
        let named = keys.iter().flat_map(|key| edition.find(self.kind, key));
        let named: BTreeSet<_> = named.map(|resource| resource.name.clone()).collect();
        for name in named {
            for endpoint in edition.endpoints(&name) {
                candidates.entry(endpoint.name.clone()).or_insert(false);
            }
            *candidates.entry(name).or_insert(must) |= must;
        }
    }

    /// Keys that were asked for and name nothing.
    fn missing<'a>(&'a self, edition: &'a Edition) -> impl Iterator<Item = Arc<str>> + 'a {
        self.asked.iter().filter(|key| edition.find(self.kind, key).is_empty()).cloned()
    }
}

fn is_held(held: &Held, resource: &Resource) -> bool {
    held.get(&*resource.name).is_some_and(|version| resource.is_version(version))
}
