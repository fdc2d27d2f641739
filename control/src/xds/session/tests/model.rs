//! A server that keeps what each stream holds, and the rule that a client's history leaves no trace: whatever happened,
//! it ends where a new one starts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use halo_core::policy::Policy;
use proptest::prelude::*;

use super::*;
use crate::proto::discovery::DeltaDiscoveryResponse;

/// Names of each type.
const SLOTS: u8 = 5;

#[derive(Debug, Clone, Copy)]
enum Op {
    /// A name means a workload or service: what it is, and how it is connected to the others.
    Put {
        slot: u8,
        shape: u8,
        link: u8,
    },
    /// A name means something that no client can read.
    Spoil {
        slot: u8,
        policy: bool,
    },
    Remove {
        slot: u8,
    },
    /// What a name means goes by another one from now on.
    Rename {
        slot: u8,
    },
    PutPolicy {
        slot: u8,
        other_key: bool,
    },
    RemovePolicy {
        slot: u8,
    },
    /// The server tells its client what has changed.
    Tell,
    /// The server tells it, and the stream breaks before it arrives. The next may leave unsaid what is held.
    Lose {
        silent: bool,
    },
    Ask {
        slot: u8,
        by_address: bool,
    },
    Pods {
        set: u8,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let slot = || 0..SLOTS;
    prop_oneof![
        5 => (slot(), 0..5_u8, slot()).prop_map(|(slot, shape, link)| Op::Put { slot, shape, link }),
        1 => (slot(), any::<bool>()).prop_map(|(slot, policy)| Op::Spoil { slot, policy }),
        2 => slot().prop_map(|slot| Op::Remove { slot }),
        2 => slot().prop_map(|slot| Op::Rename { slot }),
        2 => (slot(), any::<bool>()).prop_map(|(slot, other_key)| Op::PutPolicy { slot, other_key }),
        1 => slot().prop_map(|slot| Op::RemovePolicy { slot }),
        4 => Just(Op::Tell),
        1 => any::<bool>().prop_map(|silent| Op::Lose { silent }),
        2 => (slot(), any::<bool>()).prop_map(|(slot, by_address)| Op::Ask { slot, by_address }),
        2 => (0..1_u8 << SLOTS).prop_map(|set| Op::Pods { set }),
    ]
}

#[derive(Debug, Clone, PartialEq)]
enum Content {
    Workload(Workload),
    Service(Service),
    Policy(Policy),
    Spoilt,
}

impl Content {
    /// What a subscription finds it by, beside its name.
    fn keys(&self) -> Vec<String> {
        match self {
            Self::Workload(workload) => {
                let mut keys: Vec<_> = workload.addresses.iter().map(|ip| format!("n1/{ip}")).collect();
                keys.push(workload.uid.to_string());
                keys
            }
            Self::Service(service) => {
                let mut keys: Vec<_> = service.vips.iter().map(ToString::to_string).collect();
                keys.push(service.key.to_string());
                keys
            }
            Self::Policy(_) | Self::Spoilt => vec![],
        }
    }
}

fn uid(slot: u8) -> String {
    format!("c1//Pod/a/w{slot}")
}

fn hostname(slot: u8) -> ServiceKey {
    ServiceKey::new("a", &format!("h{slot}"))
}

fn pod_address(slot: u8) -> NetworkAddress {
    address(&format!("n1/10.0.0.{slot}"))
}

fn virtual_address(slot: u8) -> NetworkAddress {
    address(&format!("n1/10.1.0.{slot}"))
}

fn workload(uid: String, slot: u8, link: u8) -> Workload {
    let mut workload = Workload {
        uid: uid.into(),
        network: "n1".into(),
        addresses: vec![pod_address(slot).ip].into(),
        // What the wire gives for what is not set.
        trust_domain: "cluster.local".into(),
        service_account: "default".into(),
        cluster_id: "Kubernetes".into(),
        ..Workload::default()
    };
    match link % 3 {
        0 => drop(workload.services.insert(hostname(link), [(80, 8080)].into())),
        1 => workload.waypoint = Some(Box::new(gateway(&hostname(link).to_string()))),
        _ => workload.network_gateway = Some(Box::new(gateway(&virtual_address(link).to_string()))),
    }
    workload
}

fn content(slot: u8, shape: u8, link: u8) -> Content {
    match shape {
        0 | 1 => Content::Workload(workload(uid(slot), slot, link)),
        // The name is not the key.
        2 => Content::Workload(workload(format!("other-{slot}"), slot, link)),
        3 => Content::Service(service(hostname(slot))),
        _ => Content::Service(Service { vips: vec![virtual_address(slot)], ..service(hostname(slot)) }),
    }
}

fn policy_name(slot: u8) -> String {
    format!("a/p{slot}")
}

type Resources = BTreeMap<String, (String, Content)>;

/// One stream's subscription of one type.
#[derive(Debug, Default)]
struct Stream {
    /// What the client holds, as far as the server knows.
    known: BTreeMap<String, String>,
    /// `None` is everything.
    keys: Option<BTreeSet<String>>,
    /// Keys that the client waits for.
    fresh: BTreeSet<String>,
    told: bool,
}

#[derive(Debug, Default)]
struct Server {
    resources: BTreeMap<&'static str, Resources>,
    versions: u64,
    /// Slots whose resources go by their other name.
    renamed: BTreeSet<u8>,
    streams: BTreeMap<String, Stream>,
    nonces: BTreeSet<String>,
    sent: u64,
}

impl Server {
    /// The name of a slot's resource, which is the key of some shapes.
    fn name(&self, slot: u8) -> String {
        match (self.renamed.contains(&slot), slot.is_multiple_of(2)) {
            (true, _) => format!("name-{slot}"),
            (false, true) => uid(slot),
            (false, false) => hostname(slot).to_string(),
        }
    }

    fn rename(&mut self, slot: u8) {
        let name = self.name(slot);
        let content = self.resources.entry(ADDRESS_TYPE).or_default().remove(&name);
        if !self.renamed.remove(&slot) {
            self.renamed.insert(slot);
        }
        if let Some((_, content)) = content {
            self.put(ADDRESS_TYPE, self.name(slot), content);
        }
    }

    fn put(&mut self, type_url: &'static str, name: String, content: Content) {
        self.versions += 1;
        let version = self.versions.to_string();
        self.resources.entry(type_url).or_default().insert(name, (version, content));
    }

    fn get(&self, type_url: &'static str, name: &str) -> Option<&Content> {
        self.resources.get(type_url)?.get(name).map(|(_, content)| content)
    }

    fn remove(&mut self, type_url: &'static str, name: &str) {
        self.resources.entry(type_url).or_default().remove(name);
    }

    fn handle(&mut self, request: DeltaDiscoveryRequest) {
        if !request.response_nonce.is_empty() {
            assert!(
                self.nonces.remove(&request.response_nonce),
                "{} answers nothing",
                request.response_nonce
            );
            return;
        }
        let mut gone = request.resource_names_unsubscribe;
        let stream = match self.streams.get_mut(&request.type_url) {
            Some(stream) => stream,
            None => {
                assert!(request.node.is_some());
                let keys = (gone == ["*"]).then(BTreeSet::new);
                gone.clear();
                let known = request.initial_resource_versions;
                self.streams.entry(request.type_url).or_insert(Stream { known, keys, ..Stream::default() })
            }
        };
        for key in gone {
            stream.keys.as_mut().unwrap().remove(&key);
            stream.fresh.remove(&key);
            // The client has forgotten the resource of that name.
            stream.known.remove(&key);
        }
        for key in request.resource_names_subscribe {
            stream.keys.as_mut().unwrap().insert(key.clone());
            stream.fresh.insert(key);
        }
    }

    /// What the stream is to be told of a type now, if anything.
    fn tell(&mut self, type_url: &'static str) -> Option<DeltaDiscoveryResponse> {
        let resources = self.resources.entry(type_url).or_default();
        let stream = self.streams.get_mut(type_url)?;
        let wanted = wanted(resources, stream.keys.as_ref());
        let mut response = DeltaDiscoveryResponse { type_url: type_url.into(), ..Default::default() };
        for key in std::mem::take(&mut stream.fresh) {
            let found = found(resources, &key);
            found.iter().for_each(|name| drop(stream.known.remove(name)));
            if found.is_empty() {
                response.removed_resources.push(key);
            }
        }
        for name in &wanted {
            let (version, content) = &resources[name];
            if stream.known.insert(name.clone(), version.clone()).as_ref() != Some(version) {
                response.resources.push(raw(name, version, content));
            }
        }
        let gone: Vec<_> = stream.known.keys().filter(|name| !wanted.contains(*name)).cloned().collect();
        for name in gone {
            stream.known.remove(&name);
            response.removed_resources.push(name);
        }
        if response.resources.is_empty() && response.removed_resources.is_empty() && stream.told {
            return None;
        }
        stream.told = true;
        self.sent += 1;
        response.nonce = format!("n{}", self.sent);
        self.nonces.insert(response.nonce.clone());
        Some(response)
    }

    /// Replaces what cannot be read: an old client keeps what it had of it, a new one has nothing.
    fn heal(&mut self) {
        for slot in 0..SLOTS {
            let name = self.name(slot);
            if self.get(ADDRESS_TYPE, &name) == Some(&Content::Spoilt) {
                self.put(ADDRESS_TYPE, name, content(slot, 0, 0));
            }
            if self.get(AUTHORIZATION_TYPE, &policy_name(slot)) == Some(&Content::Spoilt) {
                self.remove(AUTHORIZATION_TYPE, &policy_name(slot));
            }
        }
    }
}

/// The names of what a key stands for: a resource, and a service's endpoints.
fn found(resources: &Resources, key: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (name, (_, content)) in resources {
        if name != key && !content.keys().iter().any(|own| own == key) {
            continue;
        }
        names.insert(name.clone());
        if let Content::Service(service) = content {
            let serves = |content: &Content| matches!(content, Content::Workload(workload) if workload.services.contains_key(&service.key));
            let endpoints = resources.iter().filter(|(_, (_, other))| serves(other));
            names.extend(endpoints.map(|(name, _)| name.clone()));
        }
    }
    names
}

fn wanted(resources: &Resources, keys: Option<&BTreeSet<String>>) -> BTreeSet<String> {
    match keys {
        None => resources.keys().cloned().collect(),
        Some(keys) => keys.iter().flat_map(|key| found(resources, key)).collect(),
    }
}

fn raw(name: &str, version: &str, content: &Content) -> Resource {
    let bytes = match content {
        Content::Workload(workload) => Some(wire::encode_workload(workload)),
        Content::Service(service) => Some(wire::encode_service(service)),
        Content::Policy(policy) => Some(wire::encode_policy(policy)),
        Content::Spoilt => None,
    };
    let mut raw = resource(name, version, bytes);
    raw.aliases = content.keys();
    raw
}

struct Client {
    session: Session,
    snapshot: Snapshot,
}

impl Client {
    fn new(scope: Scope) -> Self {
        let session = Session::new(Node::default(), "c1".into(), scope);
        Self { session, snapshot: Snapshot::default() }
    }

    fn apply(&mut self, edits: Vec<MeshEdit>) {
        edits.into_iter().for_each(|edit| edit.apply(&mut self.snapshot));
    }

    fn connect(&mut self, server: &mut Server) {
        server.streams.clear();
        server.nonces.clear();
        self.session.connected();
    }

    fn ask(&mut self, slot: u8, by_address: bool) {
        let question = match by_address {
            true => Question::Address(if slot.is_multiple_of(2) {
                pod_address(slot)
            } else {
                virtual_address(slot)
            }),
            false => Question::Service(hostname(slot)),
        };
        let edits = self.session.demand(question);
        self.apply(edits);
    }

    fn set_pods(&mut self, set: u8) {
        let names: Vec<_> =
            (0..SLOTS).filter(|slot| set & (1 << slot) != 0).map(|slot| format!("w{slot}")).collect();
        let edits = self.session.set_pods(names.iter().map(|name| ("a", name.as_str())));
        self.apply(edits);
    }

    fn request(&mut self, server: &mut Server) {
        while let Some(request) = self.session.poll_request() {
            server.handle(request);
        }
    }

    /// Both sides say what they have to say, until neither has.
    fn settle(&mut self, server: &mut Server) {
        for _ in 0..100 {
            self.request(server);
            let responses: Vec<_> =
                [ADDRESS_TYPE, AUTHORIZATION_TYPE].into_iter().filter_map(|url| server.tell(url)).collect();
            if responses.is_empty() {
                assert!(server.nonces.is_empty(), "{:?} were not acknowledged", server.nonces);
                return;
            }
            for response in responses {
                let push = self.session.handle_response(response.into());
                self.apply(push.edits);
            }
        }
        panic!("they never fall silent");
    }

    fn things(&self) -> BTreeMap<String, Content> {
        let snapshot = &self.snapshot;
        let workloads =
            snapshot.workloads.iter().map(|w| (w.uid.to_string(), Content::Workload((**w).clone())));
        let services = snapshot.services.iter().map(|s| (s.key.to_string(), Content::Service((**s).clone())));
        workloads.chain(services).collect()
    }

    fn policies(&self) -> impl PartialEq + Debug {
        self.snapshot.policies.iter().cloned().collect::<Vec<_>>()
    }

    fn answered(&self) -> BTreeSet<Question> {
        self.snapshot.answered.iter().cloned().collect()
    }
}

/// A client that lives through all of it, and one that starts at its end; with the server.
fn live(scope: Scope, ops: &[Op]) -> (Client, Client, Server) {
    let (mut server, mut client) = (Server::default(), Client::new(scope));
    let (mut asked, mut pods) = (Vec::new(), 0);
    client.connect(&mut server);
    for op in ops {
        match *op {
            Op::Put { slot, shape, link } => {
                server.put(ADDRESS_TYPE, server.name(slot), content(slot, shape, link));
            }
            Op::Spoil { slot, policy: false } => server.put(ADDRESS_TYPE, server.name(slot), Content::Spoilt),
            Op::Spoil { slot, policy: true } => {
                server.put(AUTHORIZATION_TYPE, policy_name(slot), Content::Spoilt);
            }
            Op::Remove { slot } => server.remove(ADDRESS_TYPE, &server.name(slot)),
            Op::Rename { slot } => server.rename(slot),
            Op::PutPolicy { slot, other_key } => {
                let key = if other_key { format!("q{slot}") } else { format!("p{slot}") };
                let policy = Content::Policy(script::policy("a", &key));
                server.put(AUTHORIZATION_TYPE, policy_name(slot), policy);
            }
            Op::RemovePolicy { slot } => server.remove(AUTHORIZATION_TYPE, &policy_name(slot)),
            Op::Tell => client.settle(&mut server),
            Op::Lose { silent } => {
                client.request(&mut server);
                let _ = (server.tell(ADDRESS_TYPE), server.tell(AUTHORIZATION_TYPE));
                client.session.disconnected();
                if silent {
                    client.session.too_large();
                }
                client.connect(&mut server);
            }
            Op::Ask { slot, by_address } => {
                client.ask(slot, by_address);
                asked.push((slot, by_address));
            }
            Op::Pods { set } => {
                client.set_pods(set);
                pods = set;
            }
        }
    }
    server.heal();
    client.settle(&mut server);
    let mut fresh = Client::new(scope);
    fresh.connect(&mut server);
    asked.into_iter().for_each(|(slot, by_address)| fresh.ask(slot, by_address));
    fresh.set_pods(pods);
    fresh.settle(&mut server);
    (client, fresh, server)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_client_of_everything_ends_where_a_new_one_starts(ops in proptest::collection::vec(op(), 0..40)) {
        let (client, fresh, _) = live(Scope::Wildcard, &ops);
        assert_eq!(client.things(), fresh.things());
        assert_eq!(client.policies(), fresh.policies());
    }

    /// It may hold more, as a control plane goes on telling of what it has told once; but nothing that is not so.
    #[test]
    fn a_client_on_demand_has_all_that_a_new_one_has(mut ops in proptest::collection::vec(op(), 0..40)) {
        // A name that is another resource's key stays subscribed, and leads this server to what nobody wants.
        ops.retain(|op| !matches!(op, Op::Rename { .. }));
        let (client, fresh, server) = live(Scope::OnDemand { keys_max: 100 }, &ops);
        let mut held = client.things();
        for (key, thing) in fresh.things() {
            assert_eq!(held.remove(&key), Some(thing), "{key}");
        }
        let there = server.resources.get(ADDRESS_TYPE).cloned().unwrap_or_default();
        for (key, thing) in held {
            assert!(there.values().any(|(_, content)| *content == thing), "{key} is not so any more");
        }
        assert_eq!(client.policies(), fresh.policies());
        assert_eq!(client.answered(), fresh.answered());
    }
}
