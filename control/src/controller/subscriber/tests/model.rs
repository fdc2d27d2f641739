//! A model client over queues that delay: whatever happens on the way, once all has arrived it holds what a client that
//! comes anew is sent.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;

/// What a client may subscribe to, of a world of a few names.
const KEYS: [&str; 12] = [
    "one//Pod/a/w0",
    "one//Pod/a/w1",
    "one//Pod/a/w2",
    "a/s0",
    "a/s1",
    "a/s2",
    "/10.0.0.0",
    "/10.0.0.1",
    "/10.0.0.2",
    "/10.0.1.1",
    "/10.0.1.2",
    "a/none",
];

#[derive(Debug, Clone)]
enum Step {
    /// The world changes.
    Edit(Vec<Edit>),
    /// The client subscribes to a key, or unsubscribes from it.
    Key(usize, bool),
    /// The client subscribes to everything.
    Widen,
    /// The server takes a request.
    Serve,
    /// The server sends what is due.
    Push,
    /// The client takes a response, and refuses a resource of it or none.
    Take(Option<usize>),
    /// The connection is lost, and the client comes back.
    Reconnect,
}

#[derive(Debug, Clone)]
enum Edit {
    Workload { number: usize, ip: usize, node: usize, services: u8 },
    RemoveWorkload(usize),
    Service { number: usize, vip: Option<usize>, range: bool },
    RemoveService(usize),
}

impl Edit {
    fn edit(&self) -> MeshEdit {
        match self {
            Self::Workload { number, ip, node, services } => {
                let served: Vec<_> = (0..3).filter(|bit| services >> bit & 1 == 1).collect();
                let served: Vec<_> = served.iter().map(|bit| format!("s{bit}")).collect();
                let served: Vec<_> = served.iter().map(String::as_str).collect();
                workload(&format!("w{number}"), &format!("10.0.0.{ip}"), &format!("n{node}"), &served)
            }
            Self::RemoveWorkload(number) => {
                MeshEdit::RemoveWorkload(format!("one//Pod/a/w{number}").as_str().into())
            }
            Self::Service { number, vip, range } => {
                let vip = vip.map(|vip| format!("10.0.1.{vip}"));
                let ranges: &[&str] = if *range { &["10.0.0.0/31"] } else { &[] };
                service(&format!("s{number}"), &vip.iter().map(String::as_str).collect::<Vec<_>>(), ranges)
            }
            Self::RemoveService(number) => {
                MeshEdit::RemoveService(halo_core::service::ServiceKey::new("a", &format!("s{number}")))
            }
        }
    }
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        4 => (0..5usize, 0..4usize, 0..2usize, 0..8u8)
            .prop_map(|(number, ip, node, services)| Edit::Workload { number, ip, node, services }),
        2 => (0..5usize).prop_map(Edit::RemoveWorkload),
        3 => (0..3usize, prop::option::of(0..3usize), any::<bool>())
            .prop_map(|(number, vip, range)| Edit::Service { number, vip, range }),
        1 => (0..3usize).prop_map(Edit::RemoveService),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop::collection::vec(edit(), 1..4).prop_map(Step::Edit),
        8 => (0..KEYS.len(), any::<bool>()).prop_map(|(key, on)| Step::Key(key, on)),
        1 => Just(Step::Widen),
        12 => Just(Step::Serve),
        12 => Just(Step::Push),
        12 => prop::option::weighted(0.2, 0..4usize).prop_map(Step::Take),
        2 => Just(Step::Reconnect),
    ]
}

struct Model {
    world: World,
    subscriber: Subscriber,
    requests: VecDeque<DeltaDiscoveryRequest>,
    responses: VecDeque<DeltaDiscoveryResponse>,
    wildcard: bool,
    keys: BTreeSet<&'static str>,
    held: BTreeMap<String, String>,
    /// What the client was sent and did not take.
    refused: BTreeMap<String, String>,
}

impl Model {
    fn new(wildcard: bool) -> Self {
        let world = World::default();
        world.apply(Vec::new());
        let subscriber = Subscriber::new(world.edition());
        // One key stays, because a client that comes back without one is told of all that it holds.
        let keys = BTreeSet::from(["a/none"]);
        let (requests, responses) = (VecDeque::new(), VecDeque::new());
        let (held, refused) = (BTreeMap::new(), BTreeMap::new());
        let mut model = Self { world, subscriber, requests, responses, wildcard, keys, held, refused };
        model.requests.push_back(model.first());
        model
    }

    fn first(&self) -> DeltaDiscoveryRequest {
        let keys: Vec<_> = self.keys.iter().copied().chain(self.wildcard.then_some("*")).collect();
        on_node(request(&keys, &[]), "n0")
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Edit(edits) => drop(self.world.apply(edits.iter().map(Edit::edit).collect())),
            Step::Key(key, true) => {
                self.keys.insert(KEYS[*key]);
                self.requests.push_back(request(&[KEYS[*key]], &[]));
            }
            Step::Key(key, false) if KEYS[*key] != "a/none" => {
                self.keys.remove(KEYS[*key]);
                self.requests.push_back(request(&[], &[KEYS[*key]]));
            }
            Step::Key(..) => {}
            Step::Widen => {
                self.wildcard = true;
                self.requests.push_back(request(&["*"], &[]));
            }
            Step::Serve => {
                if let Some(request) = self.requests.pop_front() {
                    self.subscriber.handle_request(request).unwrap();
                }
            }
            Step::Push => {
                self.subscriber.handle_edition(self.world.edition());
                self.responses.extend(self.subscriber.poll_response(true).as_ref().map(read));
            }
            Step::Take(refuse) => self.take(*refuse),
            Step::Reconnect => {
                self.requests.clear();
                self.responses.clear();
                // What the client does not hold it is sent again.
                self.refused.clear();
                self.subscriber = Subscriber::new(self.world.edition());
                let mut first = self.first();
                first.initial_resource_versions = self.held.clone();
                self.requests.push_back(first);
            }
        }
    }

    fn take(&mut self, refuse: Option<usize>) {
        let Some(response) = self.responses.pop_front() else { return };
        let refuse = refuse.filter(|index| *index < response.resources.len());
        for name in &response.removed_resources {
            self.held.remove(name);
            self.refused.remove(name);
        }
        for (index, resource) in response.resources.into_iter().enumerate() {
            let (to, from) = match refuse == Some(index) {
                true => (&mut self.refused, &mut self.held),
                false => (&mut self.held, &mut self.refused),
            };
            from.remove(&resource.name);
            to.insert(resource.name, resource.version);
        }
        let mut answer = ack(&response.nonce);
        answer.error_detail = refuse.map(|_| Status { code: 0, message: "refused".into() });
        self.requests.push_back(answer);
    }

    /// Lets everything arrive, and checks that nothing is due then.
    fn settle(&mut self) {
        for _ in 0..100 {
            while !self.requests.is_empty() {
                self.step(&Step::Serve);
            }
            self.step(&Step::Push);
            if self.responses.is_empty() {
                return;
            }
            while !self.responses.is_empty() {
                self.take(None);
            }
        }
        panic!("responses never end");
    }

    /// What a client that comes now is sent.
    fn fresh(&self) -> BTreeMap<String, String> {
        let mut subscriber = Subscriber::new(self.world.edition());
        subscriber.handle_request(self.first()).unwrap();
        let response = read(&subscriber.poll_response(true).unwrap());
        response.resources.into_iter().map(|resource| (resource.name, resource.version)).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_client_ends_with_what_a_new_one_is_sent(wildcard: bool, steps in prop::collection::vec(step(), 1..60)) {
        let mut model = Model::new(wildcard);
        for step in &steps {
            model.step(step);
        }
        model.settle();
        let mut known = model.held.clone();
        known.extend(model.refused.clone());
        prop_assert_eq!(known, model.fresh());
    }
}
