//! One client's delta stream, as a machine without I/O: requests and editions go in, responses come out.
//!
//! For each type it keeps what the client subscribes to, the edition that the client was brought to, and whether a
//! response waits for its acknowledgement. It never copies the world: what the client holds follows from the edition it
//! was brought to and its keys. While a response waits, changes gather and go out as one.
//!
//! Order of calls: any of the `handle_*`, then `poll_response` until `None`.

mod subscription;
#[cfg(test)]
pub(crate) mod tests;
mod wish;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use crate::controller::world::{Edition, Resource, ResourceType, Table};
use crate::proto::discovery::{DeltaDiscoveryRequest, Node};
use subscription::Subscription;

/// Keys that one subscriber may subscribe to in one type.
pub(crate) const KEYS_MAX: usize = 1 << 16;
/// Bytes of one key.
pub(crate) const KEY_LEN_MAX: usize = 1024;
/// Bytes of the id of a client's node.
const NODE_ID_LEN_MAX: usize = 1024;
/// Bytes of the name of a Kubernetes node (RFC 1123 subdomain).
const NODE_NAME_LEN_MAX: usize = 253;
/// Names that a client holds which are compared on the spot.
const HELD_COSTLY: usize = 10_000;
/// Types without resources that wait for their empty answer.
const UNKNOWN_MAX: usize = 16;
/// Metadata that names the node a client runs on.
const NODE_NAME: &str = "NODE_NAME";

/// What a request meant, apart from what follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The first request for a type.
    Subscribed(ResourceType),
    /// Other keys, or nothing that matters.
    Changed,
    /// The response that waited is in force at the client.
    Acknowledged(ResourceType),
    /// The client refused the response that waited, in part at least. It is not sent again until it changes.
    Refused(ResourceType, String),
    /// It answers a response that does not wait.
    Stale,
    /// A type that this control plane has nothing of.
    Unknown(String),
}

/// How a client broke the protocol; its stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    /// Nobody knows whom to answer.
    #[error("the first request of a stream must name its node")]
    NodeMissing,
    /// It would be part of every line that is logged.
    #[error("the node's id has {0} bytes, more than {NODE_ID_LEN_MAX}")]
    NodeIdTooLong(usize),
    /// No node has such a name.
    #[error("the node's name in its metadata has {0} bytes, more than {NODE_NAME_LEN_MAX}")]
    NodeNameTooLong(usize),
    /// Too many keys.
    #[error("a stream may subscribe to {KEYS_MAX} keys of a type; subscribe to `*` instead")]
    KeysTooMany,
    /// A key that no resource can have.
    #[error("a key of {0} bytes is longer than {KEY_LEN_MAX}")]
    KeyTooLong(usize),
    /// Too many types at once.
    #[error("more than {UNKNOWN_MAX} types that this control plane does not have")]
    TypesTooMany,
}

/// What a response carries, besides removals.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// Every resource of a type.
    Everything(Table),
    /// Fields that are encoded already, removals among them.
    Encoded(Bytes),
    /// These resources.
    Resources(Vec<Arc<Resource>>),
}

/// A response to send.
#[derive(Debug, Clone)]
pub(crate) struct Push {
    pub(crate) type_url: String,
    pub(crate) nonce: String,
    /// Names and keys that there are no resources of.
    pub(crate) removed: BTreeSet<Arc<str>>,
    pub(crate) content: Content,
}

/// The machine.
#[derive(Debug)]
pub(crate) struct Subscriber {
    client: Option<Client>,
    edition: Arc<Edition>,
    subscriptions: [Option<Subscription>; ResourceType::ALL.len()],
    unknown: Vec<String>,
    /// Responses so far; the next one's nonce.
    responses: u64,
}

/// Who subscribes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Client {
    pub(crate) id: String,
    /// The node it runs on, if it says so.
    pub(crate) node: Option<Arc<str>>,
}

impl Client {
    fn of(node: Node) -> Result<Self, Violation> {
        let name = node.metadata.as_ref().and_then(|metadata| metadata.fields.get(NODE_NAME));
        let name = name.and_then(|value| match &value.kind {
            Some(prost_types::value::Kind::StringValue(name)) if !name.is_empty() => {
                Some(name.as_str().into())
            }
            _ => None,
        });
        let name_len = name.as_ref().map_or(0, |name: &Arc<str>| name.len());
        match (node.id.len(), name_len) {
            (len, _) if len > NODE_ID_LEN_MAX => Err(Violation::NodeIdTooLong(len)),
            (_, len) if len > NODE_NAME_LEN_MAX => Err(Violation::NodeNameTooLong(len)),
            _ => Ok(Self { id: node.id, node: name }),
        }
    }
}

impl Subscriber {
    /// A stream that begins while this edition is in force.
    pub(crate) fn new(edition: Arc<Edition>) -> Self {
        Self { client: None, edition, subscriptions: [None, None], unknown: Vec::new(), responses: 0 }
    }

    /// Who subscribes, once a request said so.
    pub(crate) fn client(&self) -> Option<&Client> {
        self.client.as_ref()
    }

    /// Takes a request.
    pub(crate) fn handle_request(&mut self, mut request: DeltaDiscoveryRequest) -> Result<Event, Violation> {
        if self.client.is_none() {
            let node = request.node.take().filter(|node| !node.id.is_empty());
            self.client = Some(Client::of(node.ok_or(Violation::NodeMissing)?)?);
        }
        let mut lens = request.resource_names_subscribe.iter().map(String::len);
        if let Some(long) = lens.find(|len| *len > KEY_LEN_MAX) {
            return Err(Violation::KeyTooLong(long));
        }
        // Another control plane may have had resources of such names; this one has none.
        request.initial_resource_versions.retain(|name, _| name.len() <= KEY_LEN_MAX);
        let Some(kind) = ResourceType::of(&request.type_url) else {
            return self.handle_unknown(request);
        };
        match &mut self.subscriptions[kind as usize] {
            Some(subscription) => subscription.handle_request(request),
            none => {
                *none = Some(Subscription::new(kind, request)?);
                Ok(Event::Subscribed(kind))
            }
        }
    }

    /// A type that there is nothing of is answered once, so that the client does not wait for it.
    fn handle_unknown(&mut self, request: DeltaDiscoveryRequest) -> Result<Event, Violation> {
        if !request.response_nonce.is_empty() {
            return Ok(Event::Changed);
        }
        if self.unknown.len() == UNKNOWN_MAX {
            return Err(Violation::TypesTooMany);
        }
        self.unknown.push(request.type_url.clone());
        Ok(Event::Unknown(request.type_url))
    }

    /// Takes the edition in force.
    pub(crate) fn handle_edition(&mut self, edition: Arc<Edition>) {
        self.edition = edition;
    }

    /// Whether there is a mesh to answer from.
    pub(crate) fn is_known(&self) -> bool {
        self.edition.is_known()
    }

    /// Whether a client's report of what it holds is kept for its first response.
    pub(crate) fn is_laden(&self) -> bool {
        self.subscriptions.iter().flatten().any(|subscription| subscription.held() > 0)
    }

    /// Whether the next response takes long to make: a client holds much, and all of it is compared.
    pub(crate) fn is_costly(&self, everything: bool) -> bool {
        let costly = |subscription: &Subscription| {
            subscription.held() > HELD_COSTLY && (everything || !subscription.wants_everything())
        };
        self.edition.is_known() && self.subscriptions.iter().flatten().any(costly)
    }

    /// Whether the next response of some type carries everything, or what of it a client does not hold, which is worth
    /// a place in a queue.
    pub(crate) fn wants_everything(&self) -> bool {
        let mut subscriptions = self.subscriptions.iter().flatten();
        self.edition.is_known() && subscriptions.any(Subscription::wants_everything)
    }

    /// The next response, if one is due. Types of which everything is wanted are passed over unless `everything`.
    pub(crate) fn poll_response(&mut self, everything: bool) -> Option<Push> {
        if let Some(type_url) = self.unknown.pop() {
            let nonce = self.next_nonce();
            return Some(Push {
                type_url,
                nonce,
                removed: BTreeSet::new(),
                content: Content::Encoded(Bytes::new()),
            });
        }
        if !self.edition.is_known() {
            return None;
        }
        let nonce = self.next_nonce();
        let node = self.client.as_ref().and_then(|client| client.node.as_deref());
        let subscriptions = self.subscriptions.iter_mut().flatten();
        let mut allowed = subscriptions.filter(|subscription| everything || !subscription.wants_everything());
        let push = allowed.find_map(|subscription| subscription.poll(&self.edition, node, &nonce));
        if push.is_none() {
            self.responses -= 1;
        }
        push
    }

    fn next_nonce(&mut self) -> String {
        self.responses += 1;
        format!("{}/{}", self.edition.generation(), self.responses)
    }
}
