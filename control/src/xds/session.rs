//! The delta discovery protocol from the client's side, for workloads with services and for policies, without I/O.
//!
//! It decides which request goes out next and what a response changes. What it was told outlives the stream: a new one
//! says which versions are held, so that only what differs is sent again. A response is taken resource by resource;
//! what is refused leaves in force what was there, and is named in the NACK.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use halo_core::demand::Question;
use prost::Message;
use prost_types::value::Kind;

use super::demand::{Asked, Demands, KEYS_LEN_MAX, Value};
use super::held::{Held, Thing};
use super::refused::{Refused, listed};
use super::response::Response;
use crate::edit::MeshEdit;
use crate::proto::discovery::{DeltaDiscoveryRequest, Node, Resource, Status};
use crate::proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use crate::wire::{self, Address, Interner, PolicyRead};

#[cfg(test)]
mod tests;

/// Keys that questions may subscribe. Control planes bound what one stream subscribes, ours to 65 536, and what the
/// node's pods lead to comes on top.
pub(crate) const KEYS_MAX: usize = 60_000;
/// Bytes of a request that gRPC servers take unless they are told otherwise.
const REQUEST_LEN_MAX: usize = 4 << 20;
/// Bytes that a key costs in a request besides its own.
const KEY_OVERHEAD: usize = 3;
// A stream's first request carries every key, those of the node's pods among them. A server would take away what it
// knows to be held and finds no key of the first request for, so the keys cannot be spread over several.
const _: () = assert!(KEYS_LEN_MAX + KEYS_MAX * KEY_OVERHEAD <= REQUEST_LEN_MAX * 3 / 4);
/// Keys that a request subscribes or unsubscribes, but for a stream's first.
const KEYS_PER_REQUEST: usize = 5000;
/// Refused resources that a NACK names, which is some 15 KiB at most.
const NACK_NAMES_MAX: usize = 50;
/// Shared texts are swept when there are this many more than twice those that were left by the last sweep.
const SWEEP_MARGIN: usize = 10_000;

/// Which part of the mesh is subscribed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All of it.
    Wildcard,
    /// All policies, and of workloads and services what was asked about and what the node's pods lead to, up to a
    /// number of keys.
    OnDemand {
        /// Keys that questions may subscribe.
        keys_max: usize,
    },
}

/// Totals since start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SessionCounters {
    /// Resources that were refused.
    pub rejected: u64,
    /// Questions that were asked.
    pub demands: u64,
    /// Questions that were refused, for want of room.
    pub demands_refused: u64,
    /// Subscriptions that were given up for want of room, since nobody had asked about them for longest.
    pub demands_evicted: u64,
    /// Answers to questions.
    pub demands_answered: u64,
    /// Responses of a type that was not asked for.
    pub unknown_types: u64,
}

/// What a response comes to.
#[derive(Debug, Default)]
pub(crate) struct Push {
    /// What it changes.
    pub(crate) edits: Vec<MeshEdit>,
    /// Resources that were refused: the name and why.
    pub(crate) rejected: Vec<(String, String)>,
    /// Policies that are taken although a part of them is not understood: the key, and what and where.
    pub(crate) not_understood: Vec<(Arc<str>, String)>,
}

#[derive(Debug)]
struct Reply {
    type_url: String,
    nonce: String,
    error: Option<String>,
}

/// What one type's subscription has come to.
#[derive(Debug, Default)]
struct Subscription {
    held: Held,
    refused: Refused,
    /// Whether the stream has had the type's first request.
    opened: bool,
    /// Whether the stream's first response is still to come.
    unanswered: bool,
    /// Whether the type has been delivered, ever.
    synced: bool,
    /// Whether the stream's first response says all there is, since the server was not told what is held.
    whole: bool,
}

impl Subscription {
    /// A response begins. Gives the names that it takes away by not naming them.
    fn unnamed(&mut self, response: &Response) -> Vec<Arc<str>> {
        if std::mem::take(&mut self.unanswered) {
            // What is not held in the server's version is sent again; what is not sent again is not there any more.
            self.refused.clear();
        }
        if !std::mem::take(&mut self.whole) {
            return Vec::new();
        }
        let names: Vec<_> = response.names().collect();
        self.held.except(&names.iter().map(String::as_str).collect())
    }

    /// Names and keys that a response says there is nothing by, each with the name that is meant. To be read before the
    /// response changes anything: a name that is not held must not be taken for the key of what the response brings,
    /// nor for that of another once the name has been removed.
    fn meant(&self, response: &mut Response) -> Vec<(String, Option<Arc<str>>)> {
        let removed = std::mem::take(&mut response.removed);
        if removed.is_empty() {
            return Vec::new();
        }
        let sent: HashSet<_> = response.names().collect();
        let meant = |text: String| {
            let name = self.held.meant(&text).filter(|name| **name == *text || !sent.contains(&**name));
            (text, name)
        };
        removed.into_iter().map(meant).collect()
    }

    /// There is nothing by a name or key. Gives what is to be taken away.
    fn remove(&mut self, text: &str, meant: Option<&str>) -> Option<Thing> {
        self.refused.removed(text);
        let name = meant?;
        self.refused.removed(name);
        self.held.remove(name)
    }
}

/// The client of one control plane.
///
/// Order of calls: [`Session::connected`] at the start of a stream, then [`Session::poll_request`] until it gives
/// nothing, and again after every other call. Each response goes to [`Session::handle_response`], and what it changes
/// is put in force before `poll_request` is called again: the next request may be its ACK. [`Session::disconnected`] at
/// the stream's end. [`Session::demand`] and [`Session::set_pods`] may come at any time, with a stream or without.
#[derive(Debug)]
pub(crate) struct Session {
    node: Node,
    cluster: Arc<str>,
    connected: bool,
    addresses: Subscription,
    policies: Subscription,
    /// What is asked for, unless everything is.
    demands: Option<Demands>,
    /// Whether the next stream does not say what is held.
    silent: bool,
    replies: VecDeque<Reply>,
    interner: Interner,
    /// Shared texts that the last sweep left.
    swept: usize,
    counters: SessionCounters,
}

impl Session {
    pub(crate) fn new(node: Node, cluster: Arc<str>, scope: Scope) -> Self {
        let demands = match scope {
            Scope::Wildcard => None,
            Scope::OnDemand { keys_max } => Some(Demands::new(keys_max, node_name(&node))),
        };
        Self {
            node,
            cluster,
            connected: false,
            addresses: Subscription::default(),
            policies: Subscription::default(),
            demands,
            silent: false,
            replies: VecDeque::new(),
            interner: Interner::default(),
            swept: 0,
            counters: SessionCounters::default(),
        }
    }

    /// A stream is there.
    pub(crate) fn connected(&mut self) {
        self.disconnected();
        self.connected = true;
    }

    /// The stream has ended.
    pub(crate) fn disconnected(&mut self) {
        self.connected = false;
        self.replies.clear();
        self.addresses.opened = false;
        self.policies.opened = false;
    }

    /// The server refused the stream's first request for its size. The next stream does not say what is held: it begins
    /// as if nothing were, and what its first responses do not name is taken away. Such servers answer the first request
    /// with all there is to it.
    pub(crate) fn too_large(&mut self) {
        self.silent = true;
    }

    /// Types that have not been delivered yet.
    ///
    /// Workloads and services have been with their first response, also if some of it was refused: one bad object must
    /// not keep every node that starts from serving. Where they are asked for piece by piece, there may be none to wait
    /// for. Policies have been once no refused one is left: it may be the one that denies.
    pub(crate) fn missing(&self) -> impl Iterator<Item = &'static str> {
        let addresses = !self.addresses.synced && self.demands.is_none();
        let types = [(ADDRESS_TYPE, addresses), (AUTHORIZATION_TYPE, !self.policies.synced)];
        types.into_iter().filter(|(_, missing)| *missing).map(|(type_url, _)| type_url)
    }

    /// What is refused of each type, where something is.
    pub(crate) fn refused(&self) -> impl Iterator<Item = (&'static str, &Refused)> {
        let types = [(AUTHORIZATION_TYPE, &self.policies.refused), (ADDRESS_TYPE, &self.addresses.refused)];
        types.into_iter().filter(|(_, refused)| !refused.is_empty())
    }

    /// Whether each type has been delivered once.
    pub(crate) fn synced(&self) -> bool {
        self.missing().next().is_none()
    }

    pub(crate) fn counters(&self) -> SessionCounters {
        self.counters
    }

    /// The next request, if there is one to send.
    pub(crate) fn poll_request(&mut self) -> Option<DeltaDiscoveryRequest> {
        if !self.connected {
            return None;
        }
        if !self.addresses.opened {
            return Some(self.first(ADDRESS_TYPE));
        }
        if !self.policies.opened {
            return Some(self.first(AUTHORIZATION_TYPE));
        }
        if let Some(reply) = self.replies.pop_front() {
            return Some(DeltaDiscoveryRequest {
                type_url: reply.type_url,
                response_nonce: reply.nonce,
                error_detail: reply.error.map(|message| Status { code: 0, message }),
                ..DeltaDiscoveryRequest::default()
            });
        }
        let demands = self.demands.as_mut()?;
        // A key that is given up and wanted again has to be said twice, so that it is sent again.
        let resource_names_unsubscribe = demands.take_unsubscribe(KEYS_PER_REQUEST);
        let resource_names_subscribe = match resource_names_unsubscribe.as_slice() {
            [] => demands.take_subscribe(KEYS_PER_REQUEST),
            _ => Vec::new(),
        };
        let request = DeltaDiscoveryRequest {
            type_url: ADDRESS_TYPE.into(),
            resource_names_subscribe,
            resource_names_unsubscribe,
            ..DeltaDiscoveryRequest::default()
        };
        let said = request.resource_names_subscribe.len() + request.resource_names_unsubscribe.len();
        (said > 0).then_some(request)
    }

    /// A type's first request of the stream.
    fn first(&mut self, type_url: &str) -> DeltaDiscoveryRequest {
        let mut request = DeltaDiscoveryRequest {
            node: Some(self.node.clone()),
            type_url: type_url.into(),
            ..DeltaDiscoveryRequest::default()
        };
        let addresses = type_url == ADDRESS_TYPE;
        let subscription = if addresses { &mut self.addresses } else { &mut self.policies };
        subscription.opened = true;
        subscription.held.restart();
        subscription.unanswered = true;
        subscription.whole = self.silent;
        if !self.silent {
            request.initial_resource_versions = subscription.held.versions();
        }
        if let Some(demands) = self.demands.as_mut().filter(|_| addresses) {
            demands.restart();
            // All of them: a server takes back what is held and no key of the first request leads to.
            request.resource_names_subscribe = demands.take_subscribe(usize::MAX);
            // A first request without names would be a wish for everything.
            request.resource_names_unsubscribe = vec!["*".into()];
        }
        // Policies are the second.
        self.silent &= addresses;
        request
    }

    /// Takes a response. The edits come into force before the next request is polled.
    pub(crate) fn handle_response(&mut self, mut response: Response) -> Push {
        let mut push = Push::default();
        match response.type_url.as_str() {
            ADDRESS_TYPE => {
                let removed = self.addresses.meant(&mut response);
                for name in self.addresses.unnamed(&response) {
                    self.remove_address(&name, Some(&name), &mut push.edits);
                }
                for bytes in response.resources {
                    let (name, taken) = one(bytes, |resource| self.take_address(resource, &mut push.edits));
                    self.addresses.refused.note(&name, &taken);
                    push.note(name, taken);
                }
                for (text, name) in removed {
                    self.remove_address(&text, name.as_deref(), &mut push.edits);
                }
                self.drop_unwanted(&mut push.edits);
                self.addresses.synced = true;
            }
            AUTHORIZATION_TYPE => {
                let removed = self.policies.meant(&mut response);
                for name in self.policies.unnamed(&response) {
                    push.edits.extend(self.policies.held.remove(&name).map(Thing::removal));
                }
                for bytes in response.resources {
                    let (name, taken) = one(bytes, |resource| self.take_policy(resource, &mut push));
                    self.policies.refused.note(&name, &taken);
                    push.note(name, taken);
                }
                for (text, name) in removed {
                    push.edits.extend(self.policies.remove(&text, name.as_deref()).map(Thing::removal));
                }
                self.policies.synced |= self.policies.refused.is_empty();
            }
            _ => self.counters.unknown_types += 1,
        }
        let error = refusal(&push.rejected);
        self.replies.push_back(Reply { type_url: response.type_url, nonce: response.nonce, error });
        self.counters.rejected += push.rejected.len() as u64;
        self.sweep();
        self.settled(&push.edits);
        push
    }

    /// Asks about a key, if not everything is subscribed anyway. The edits say what is known already.
    pub(crate) fn demand(&mut self, question: Question) -> Vec<MeshEdit> {
        let Some(demands) = self.demands.as_mut().filter(|_| !matches!(question, Question::Certificate(_)))
        else {
            return Vec::new();
        };
        self.counters.demands += 1;
        let (asked, mut edits) = demands.ask(question);
        self.counters.demands_evicted = demands.evicted();
        if asked == Asked::Refused {
            self.counters.demands_refused += 1;
        }
        self.drop_unwanted(&mut edits);
        self.settled(&edits);
        edits
    }

    /// The pods that the node has, by namespace and name. What they lead to is asked for before anybody asks.
    pub(crate) fn set_pods<'a>(&mut self, pods: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<MeshEdit> {
        let mut edits = Vec::new();
        if let Some(demands) = &mut self.demands {
            let cluster = &self.cluster;
            let uid = |(namespace, name)| Arc::from(format!("{cluster}//Pod/{namespace}/{name}"));
            let uids: BTreeSet<Arc<str>> = pods.map(uid).collect();
            demands.set_pods(&uids, &mut edits);
        }
        self.drop_unwanted(&mut edits);
        self.settled(&edits);
        edits
    }

    fn take_address(&mut self, resource: &Resource, edits: &mut Vec<MeshEdit>) -> Result<(), String> {
        let raw = resource.resource.as_ref().ok_or("the resource is not set")?;
        if self.addresses.held.is_current(&resource.name, &resource.version) {
            if let Some(demands) = &mut self.demands {
                demands.seen(&resource.name, &resource.aliases, edits);
            }
            return Ok(());
        }
        let decoded =
            wire::decode_address(&raw.value, &mut self.interner).map_err(|error| error.to_string())?;
        let held = &mut self.addresses.held;
        let known = held.name(&resource.name).cloned();
        let (thing, value) = match decoded {
            Address::Workload(mut workload) => {
                // One text serves as the name here and as the uid wherever the workload is.
                if let Some(name) = known.as_ref().filter(|name| ***name == *workload.uid) {
                    workload.uid = name.clone();
                }
                (Thing::Workload(workload.uid.clone()), Value::Workload(Arc::new(workload)))
            }
            Address::Service(service) => {
                (Thing::Service(service.key.clone()), Value::Service(Arc::new(service)))
            }
        };
        let name = known.unwrap_or_else(|| match &thing {
            Thing::Workload(uid) if **uid == *resource.name => uid.clone(),
            thing if resource.name.is_empty() => thing.name(),
            _ => resource.name.as_str().into(),
        });
        let owner = held.owner(&thing).filter(|owner| *owner != name);
        edits.extend(held.accept(&name, &resource.version, &thing).map(Thing::removal));
        edits.push(match &value {
            Value::Workload(workload) => MeshEdit::Workload(workload.clone()),
            Value::Service(service) => MeshEdit::Service(service.clone()),
        });
        if let Some(demands) = &mut self.demands {
            demands.arrived(&name, &resource.aliases, &value, edits);
            if let Some(owner) = owner {
                demands.superseded(&owner, edits);
            }
        }
        Ok(())
    }

    fn remove_address(&mut self, text: &str, name: Option<&str>, edits: &mut Vec<MeshEdit>) {
        edits.extend(self.addresses.remove(text, name).map(Thing::removal));
        if let Some(demands) = &mut self.demands {
            demands.removed(text, name, edits);
        }
    }

    /// Takes away what nobody wants any more.
    fn drop_unwanted(&mut self, edits: &mut Vec<MeshEdit>) {
        let Some(demands) = &mut self.demands else { return };
        for name in demands.settle() {
            edits.extend(self.addresses.held.remove(&name).map(Thing::removal));
        }
    }

    fn take_policy(&mut self, resource: &Resource, push: &mut Push) -> Result<(), String> {
        let raw = resource.resource.as_ref().ok_or("the resource is not set")?;
        if self.policies.held.is_current(&resource.name, &resource.version) {
            return Ok(());
        }
        let PolicyRead { policy, not_understood } =
            wire::decode_policy(&raw.value, &mut self.interner).map_err(|error| error.to_string())?;
        let key = policy.key();
        if !not_understood.is_empty() {
            push.not_understood.push((key.clone(), not_understood.join("; ")));
        }
        let thing = Thing::Policy(key);
        let name = if resource.name.is_empty() { thing.name() } else { resource.name.as_str().into() };
        push.edits.extend(self.policies.held.accept(&name, &resource.version, &thing).map(Thing::removal));
        push.edits.push(MeshEdit::Policy(Arc::new(policy)));
        Ok(())
    }

    fn sweep(&mut self) {
        if self.interner.len() > 2 * self.swept + SWEEP_MARGIN {
            self.interner.sweep();
            self.swept = self.interner.len();
        }
    }

    /// Counts answers, and checks in debug builds what holds between calls.
    fn settled(&mut self, edits: &[MeshEdit]) {
        let answers = edits.iter().filter(|edit| matches!(edit, MeshEdit::Answered(_)));
        self.counters.demands_answered += answers.count() as u64;
        #[cfg(debug_assertions)]
        {
            self.addresses.held.check();
            self.policies.held.check();
            if let Some(demands) = &self.demands {
                demands.check();
            }
        }
    }
}

impl Push {
    /// Adds what a resource came to.
    fn note(&mut self, name: String, taken: Result<(), String>) {
        if let Err(reason) = taken {
            self.rejected.push((name, reason));
        }
    }
}

/// Takes one resource of a response; gives its name and what came of it. One that cannot be read has no name.
fn one(bytes: Bytes, take: impl FnOnce(&Resource) -> Result<(), String>) -> (String, Result<(), String>) {
    match Resource::decode(bytes) {
        Ok(resource) => {
            let taken = take(&resource);
            (resource.name, taken)
        }
        Err(error) => (String::new(), Err(format!("the resource cannot be read: {error}"))),
    }
}

/// The node's name, as control planes find it.
fn node_name(node: &Node) -> Arc<str> {
    let value = node.metadata.as_ref().and_then(|metadata| metadata.fields.get("NODE_NAME"));
    match value.and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(name)) => name.as_str().into(),
        _ => Arc::default(),
    }
}

/// What a NACK says.
fn refusal(rejected: &[(String, String)]) -> Option<String> {
    let names = rejected.iter().map(|(name, reason)| (name.as_str(), reason.as_str()));
    (!rejected.is_empty()).then(|| listed(names, rejected.len(), NACK_NAMES_MAX))
}
