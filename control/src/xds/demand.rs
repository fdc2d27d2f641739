//! Which keys a node that holds only part of the mesh subscribes, and when a question about one is answered.
//!
//! A key is wanted by whoever asked about it, until others are asked about and there is no room, and by the pods whose
//! workload leads to it, as long as they are there. A resource is wanted by the keys that it goes by, and an endpoint by its services too; what nobody wants any
//! more is unsubscribed and forgotten together with what was said about it, since nobody would tell of its changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem;
use std::sync::Arc;

use halo_core::demand::Question;
use halo_core::net::NetworkAddress;
use halo_core::service::Service;
use halo_core::workload::{Gateway, GatewayDestination, NetworkMode, Workload};

use crate::edit::MeshEdit;

/// Bytes of a key that somebody asks about: control planes refuse longer ones, and with them the stream.
const KEY_LEN_MAX: usize = 1024;
/// Bytes of all keys that questions may subscribe. A stream's first request carries all of them.
pub(super) const KEYS_LEN_MAX: usize = 2 << 20;

/// A subscription.
#[derive(Debug, Default)]
struct Key {
    /// The questions that it answers; none for a workload's uid.
    questions: Vec<Question>,
    /// The turn in which somebody asked last.
    asked: Option<u64>,
    /// How many pods lead to it.
    pods: usize,
    answered: bool,
}

/// A resource that is held.
#[derive(Debug)]
struct Resource {
    /// Every key that it goes by.
    keys: Vec<Arc<str>>,
    /// The workload that it is, if it is one.
    workload: Option<Arc<Workload>>,
    /// The service that it is, if it has ranges of addresses.
    ranges: Option<Arc<Service>>,
}

/// What asking came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// The key is subscribed, or was already.
    Taken,
    /// There are too many keys, or it is no key that a control plane takes.
    Refused,
}

/// What a resource is.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Workload(Arc<Workload>),
    Service(Arc<Service>),
}

/// Keys, what they led to, and what is to be said about them on the stream.
#[derive(Debug, Default)]
pub(super) struct Demands {
    keys_max: usize,
    /// The node that pods and questions are of, if it has a name.
    node: Arc<str>,
    keys: HashMap<Arc<str>, Key>,
    /// Bytes of the keys.
    keys_len: usize,
    /// The keys that somebody asked about, in the order of the last time.
    turns: BTreeMap<u64, Arc<str>>,
    /// Questions so far.
    turn: u64,
    /// Keys that were given up for others.
    evicted: u64,
    /// The workloads of the node's pods, by uid, with the keys that they lead to beside it.
    pods: BTreeMap<Arc<str>, Vec<Arc<str>>>,
    /// Resources by name.
    held: HashMap<Arc<str>, Resource>,
    /// The names of the resources that go by a key, subscribed or not.
    by_key: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// The names of the workloads that serve a service, by its key.
    by_service: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Keys that nobody wants any more, and what they led to is to be looked at.
    dropped: Vec<Arc<str>>,
    /// The names of what has arrived, for which there may be no key.
    arrived: Vec<Arc<str>>,
    subscribe: BTreeSet<Arc<str>>,
    unsubscribe: BTreeSet<Arc<str>>,
}

impl Demands {
    pub(super) fn new(keys_max: usize, node: Arc<str>) -> Self {
        Self { keys_max, node, ..Self::default() }
    }

    /// A stream begins, on which nothing is subscribed yet.
    pub(super) fn restart(&mut self) {
        self.unsubscribe.clear();
        self.subscribe = self.keys.keys().cloned().collect();
    }

    /// Keys to unsubscribe, up to a number of them.
    pub(super) fn take_unsubscribe(&mut self, max: usize) -> Vec<String> {
        take(&mut self.unsubscribe, max)
    }

    /// Keys to subscribe, up to a number of them. A key to be unsubscribed before is not among them.
    pub(super) fn take_subscribe(&mut self, max: usize) -> Vec<String> {
        take(&mut self.subscribe, max)
    }

    /// Subscribes to what a question is about, for which keys that nobody has asked about for longest may be given up.
    /// The edits say what is known already.
    pub(super) fn ask(&mut self, question: Question) -> (Asked, Vec<MeshEdit>) {
        let Some(text) = text(&question) else {
            return (Asked::Taken, Vec::new());
        };
        let mut edits = Vec::new();
        if !self.keys.contains_key(&text) && !self.make_room(&text, &mut edits) {
            return (Asked::Refused, edits);
        }
        self.turn += 1;
        let turn = self.turn;
        self.turns.insert(turn, text.clone());
        let known = self.by_key.contains_key(&text);
        let key = self.key(&text);
        let before = key.asked.replace(turn);
        key.answered |= known;
        if !key.questions.contains(&question) {
            key.questions.push(question.clone());
            edits.extend(key.answered.then_some(MeshEdit::Answered(question)));
        }
        before.map(|turn| self.turns.remove(&turn));
        (Asked::Taken, edits)
    }

    /// Gives keys up until there is room for another. The pods' keys stay.
    fn make_room(&mut self, text: &str, edits: &mut Vec<MeshEdit>) -> bool {
        if text.len() > KEY_LEN_MAX {
            return false;
        }
        while self.keys.len() >= self.keys_max || self.keys_len + text.len() > KEYS_LEN_MAX {
            let Some((_, oldest)) = self.turns.pop_first() else { return false };
            self.evicted += 1;
            if let Some(key) = self.keys.get_mut(&oldest) {
                key.asked = None;
            }
            self.give_up(&oldest, edits);
        }
        true
    }

    /// Keys that were given up for others.
    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    /// The pods that the node has now, by the uids of their workloads.
    pub(super) fn set_pods(&mut self, uids: &BTreeSet<Arc<str>>, edits: &mut Vec<MeshEdit>) {
        let gone: Vec<_> = self.pods.keys().filter(|uid| !uids.contains(*uid)).cloned().collect();
        for uid in uids {
            if self.pods.contains_key(uid) {
                continue;
            }
            self.pods.insert(uid.clone(), Vec::new());
            self.key(uid).pods += 1;
            let names = self.by_key.get(uid).into_iter().flatten();
            let mut known = names.filter_map(|name| self.held.get(name)?.workload.clone());
            if let Some(workload) = known.find(|workload| workload.uid == *uid) {
                self.lead(&workload, edits);
            }
        }
        for uid in gone {
            for key in self.pods.remove(&uid).unwrap_or_default() {
                self.release(&key, edits);
            }
            self.release(&uid, edits);
        }
    }

    /// A resource is there.
    pub(super) fn arrived(
        &mut self,
        name: &Arc<str>,
        aliases: &[String],
        value: &Value,
        edits: &mut Vec<MeshEdit>,
    ) {
        let before = self.forget(name);
        let mut keys = vec![name.clone()];
        keys.extend(aliases.iter().map(|alias| Arc::from(alias.as_str())));
        let mut ranges = None;
        let workload = match value {
            Value::Workload(workload) => {
                workload_keys(workload, &mut keys);
                Some(workload.clone())
            }
            Value::Service(service) => {
                keys.push(service.key.to_string().into());
                keys.extend(service.vips.iter().map(|vip| vip.to_string().into()));
                self.in_ranges(service, &mut keys);
                ranges = (!service.cidr_vips.is_empty()).then(|| service.clone());
                None
            }
        };
        self.goes_by(name, &mut keys, edits);
        for service in workload.iter().flat_map(|workload| workload.services.keys()) {
            self.by_service.entry(service.to_string().into()).or_default().insert(name.clone());
        }
        self.held.insert(name.clone(), Resource { keys, workload: workload.clone(), ranges });
        self.arrived.push(name.clone());
        if let Some(before) = before {
            self.stop_leading(&before, edits);
        }
        if let Some(workload) = workload.filter(|workload| self.pods.contains_key(&workload.uid)) {
            self.lead(&workload, edits);
        }
    }

    /// A resource that is held was sent again, which may be the answer to a key.
    pub(super) fn seen(&mut self, name: &str, aliases: &[String], edits: &mut Vec<MeshEdit>) {
        let Some((name, held)) = self.held.get_key_value(name) else { return };
        let (name, mut keys, ranges) = (name.clone(), held.keys.clone(), held.ranges.clone());
        keys.extend(aliases.iter().map(|alias| Arc::from(alias.as_str())));
        if let Some(service) = ranges {
            self.in_ranges(&service, &mut keys);
        }
        self.goes_by(&name, &mut keys, edits);
        if let Some(held) = self.held.get_mut(&name) {
            held.keys = keys;
        }
    }

    /// Answers the keys that a resource goes by.
    fn goes_by(&mut self, name: &Arc<str>, keys: &mut Vec<Arc<str>>, edits: &mut Vec<MeshEdit>) {
        keys.sort_unstable();
        keys.dedup();
        for key in keys.iter() {
            self.answer(key, edits);
            self.by_key.entry(key.clone()).or_default().insert(name.clone());
        }
    }

    /// What a resource was goes by another name now, under which it has arrived.
    pub(super) fn superseded(&mut self, name: &str, edits: &mut Vec<MeshEdit>) {
        if let Some(workload) = self.forget(name) {
            self.stop_leading(&workload, edits);
        }
    }

    /// There is nothing by a key, which may mean that a resource has gone.
    pub(super) fn removed(&mut self, key: &str, name: Option<&str>, edits: &mut Vec<MeshEdit>) {
        self.answer(key, edits);
        if let Some(workload) = name.and_then(|name| self.forget(name)) {
            self.stop_leading(&workload, edits);
        }
    }

    /// Forgets the resources that only keys led to which nobody wants any more, and gives their names. Those are among
    /// them that were on their way when their key was unsubscribed: nobody would tell of their changes. To be called
    /// after the other calls, once what belongs together is there.
    pub(super) fn settle(&mut self) -> Vec<Arc<str>> {
        let dropped = mem::take(&mut self.dropped);
        let mut keys = dropped.clone();
        let mut unwanted = Vec::new();
        let mut names: BTreeSet<_> = mem::take(&mut self.arrived).into_iter().collect();
        // Control planes send the workloads of the client's own node unasked, for pods that are about to be there.
        names.retain(|name| !self.is_own(name));
        loop {
            for name in names.into_iter().filter(|name| self.held.contains_key(name)).collect::<Vec<_>>() {
                if self.wanted(&name) {
                    continue;
                }
                let gone = self.held.get(&name).map(|held| held.keys.clone()).unwrap_or_default();
                self.forget(&name);
                // A control plane may have subscribed the node to what a key led to.
                self.unsubscribe.insert(name.clone());
                unwanted.push(name);
                // Endpoints of a service that has gone may have no other claim.
                keys.extend(gone);
            }
            let Some(key) = keys.pop() else { break };
            let maps = [&self.by_key, &self.by_service].into_iter();
            names = maps.filter_map(|map| map.get(&key)).flatten().cloned().collect();
        }
        // The name of what is wanted for another reason stays subscribed: without it, some control planes would not
        // tell of changes.
        let gone =
            dropped.into_iter().filter(|key| !self.keys.contains_key(key) && !self.held.contains_key(key));
        self.unsubscribe.extend(gone);
        unwanted
    }

    fn key(&mut self, text: &Arc<str>) -> &mut Key {
        let (subscribe, len) = (&mut self.subscribe, &mut self.keys_len);
        self.keys.entry(text.clone()).or_insert_with(|| {
            subscribe.insert(text.clone());
            *len += text.len();
            Key::default()
        })
    }

    fn answer(&mut self, key: &str, edits: &mut Vec<MeshEdit>) {
        let Some(key) = self.keys.get_mut(key).filter(|key| !key.answered) else {
            return;
        };
        key.answered = true;
        edits.extend(key.questions.iter().cloned().map(MeshEdit::Answered));
    }

    /// Makes a pod's keys those that its workload leads to.
    fn lead(&mut self, workload: &Workload, edits: &mut Vec<MeshEdit>) {
        let services = workload.services.keys().cloned().map(Question::Service);
        let gateways = [workload.waypoint.as_deref(), workload.network_gateway.as_deref()];
        let gateways = gateways.into_iter().flatten().map(gateway);
        let mut leads = Vec::new();
        for question in services.chain(gateways) {
            let Some(text) = text(&question) else { continue };
            if leads.contains(&text) {
                continue;
            }
            let known = self.by_key.contains_key(&text);
            let key = self.key(&text);
            key.pods += 1;
            if !key.questions.contains(&question) {
                key.questions.push(question.clone());
                if key.answered || known {
                    edits.push(MeshEdit::Answered(question));
                }
            }
            key.answered |= known;
            leads.push(text);
        }
        // What it leads to still has been taken again by now.
        for key in self.pods.insert(workload.uid.clone(), leads).unwrap_or_default() {
            self.release(&key, edits);
        }
    }

    /// A resource is not a workload any more, which may go by another name now.
    fn stop_leading(&mut self, workload: &Workload, edits: &mut Vec<MeshEdit>) {
        let others = self.by_key.get(&workload.uid).into_iter().flatten();
        let mut others = others.filter_map(|name| self.held.get(name)?.workload.as_ref());
        if others.any(|other| other.uid == workload.uid) {
            return;
        }
        let leads = self.pods.get_mut(&workload.uid).map(mem::take);
        for key in leads.unwrap_or_default() {
            self.release(&key, edits);
        }
    }

    /// A pod does not lead to a key any more.
    fn release(&mut self, text: &Arc<str>, edits: &mut Vec<MeshEdit>) {
        let Some(key) = self.keys.get_mut(text) else { return };
        key.pods -= 1;
        self.give_up(text, edits);
    }

    /// Gives a key up if nobody wants it any more.
    fn give_up(&mut self, text: &Arc<str>, edits: &mut Vec<MeshEdit>) {
        let Some(key) = self.keys.get_mut(text).filter(|key| key.asked.is_none() && key.pods == 0) else {
            return;
        };
        if key.answered {
            edits.extend(key.questions.drain(..).map(MeshEdit::Unanswered));
        }
        self.keys.remove(text);
        self.keys_len -= text.len();
        self.subscribe.remove(text);
        self.dropped.push(text.clone());
    }

    fn is_own(&self, name: &str) -> bool {
        let workload = self.held.get(name).and_then(|held| held.workload.as_ref());
        !self.node.is_empty() && workload.is_some_and(|workload| workload.node == self.node)
    }

    fn wanted(&self, name: &str) -> bool {
        let Some(held) = self.held.get(name) else { return false };
        let mut services = held.workload.iter().flat_map(|workload| workload.services.keys());
        held.keys.iter().any(|key| self.keys.contains_key(key))
            || services.any(|service| {
                let text = service.to_string();
                self.keys.contains_key(text.as_str()) || self.by_key.contains_key(text.as_str())
            })
    }

    /// Forgets a resource. Gives the workload that it was.
    fn forget(&mut self, name: &str) -> Option<Arc<Workload>> {
        let Resource { keys, workload, .. } = self.held.remove(name)?;
        for key in &keys {
            leave(&mut self.by_key, key, name);
        }
        for service in workload.iter().flat_map(|workload| workload.services.keys()) {
            leave(&mut self.by_service, &service.to_string(), name);
        }
        workload
    }

    /// Adds the keys whose address lies in one of the service's ranges.
    fn in_ranges(&self, service: &Service, keys: &mut Vec<Arc<str>>) {
        if service.cidr_vips.is_empty() {
            return;
        }
        let within = |address: &NetworkAddress| {
            service
                .cidr_vips
                .iter()
                .any(|vip| vip.network == address.network && vip.cidr.contains(&address.ip))
        };
        let about = |question: &Question| matches!(question, Question::Address(address) if within(address));
        let concerned = self.keys.iter().filter(|(_, key)| key.questions.iter().any(about));
        keys.extend(concerned.map(|(text, _)| text.clone()));
    }

    /// Checks what holds between the parts.
    #[cfg(debug_assertions)]
    pub(super) fn check(&self) {
        for (text, key) in &self.keys {
            assert!(key.asked.is_some() || key.pods > 0, "nobody wants {text}");
            assert!(key.asked.is_none_or(|turn| self.turns.get(&turn) == Some(text)), "{text} has no turn");
            let pods = self.pods.iter().map(|(uid, leads)| leads.iter().chain([uid]));
            let pods: usize = pods.map(|keys| keys.filter(|key| *key == text).count()).sum();
            assert_eq!(key.pods, pods, "{text}");
        }
        assert_eq!(self.keys_len, self.keys.keys().map(|text| text.len()).sum::<usize>());
        let asked = self.keys.values().filter(|key| key.asked.is_some()).count();
        assert_eq!(self.turns.len(), asked, "turns of keys that nobody asked about");
        assert!(self.subscribe.iter().all(|key| self.keys.contains_key(key)), "a subscription of no key");
        for names in self.by_key.values().chain(self.by_service.values()) {
            assert!(!names.is_empty() && names.iter().all(|name| self.held.contains_key(name)));
        }
    }
}

/// The key that a question subscribes.
fn text(question: &Question) -> Option<Arc<str>> {
    match question {
        Question::Address(address) => Some(address.to_string().into()),
        Question::Service(key) => Some(key.to_string().into()),
        Question::Certificate(_) => None,
    }
}

fn gateway(gateway: &Gateway) -> Question {
    match &gateway.destination {
        GatewayDestination::Service(key) => Question::Service(key.clone()),
        GatewayDestination::Address(address) => Question::Address(address.clone()),
    }
}

fn workload_keys(workload: &Workload, keys: &mut Vec<Arc<str>>) {
    keys.push(workload.uid.clone());
    let address = |ip| NetworkAddress { network: workload.network.clone(), ip };
    // Nobody finds a workload by an address that it shares with its node; something else may answer to that.
    if workload.network_mode == NetworkMode::Standard {
        keys.extend(workload.addresses.iter().map(|ip| address(*ip).to_string().into()));
    }
    if !workload.hostname.is_empty() {
        keys.push(format!("{}/{}", workload.namespace, workload.hostname).into());
    }
}

fn take(from: &mut BTreeSet<Arc<str>>, max: usize) -> Vec<String> {
    let mut taken = Vec::new();
    while taken.len() < max
        && let Some(key) = from.pop_first()
    {
        taken.push(key.to_string());
    }
    taken
}

fn leave(map: &mut HashMap<Arc<str>, BTreeSet<Arc<str>>>, key: &str, name: &str) {
    if let Some(names) = map.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            map.remove(key);
        }
    }
}
