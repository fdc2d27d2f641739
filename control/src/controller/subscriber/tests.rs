mod model;

use super::*;
use crate::controller::world::World;
use crate::controller::world::tests::{service, workload};
use crate::edit::MeshEdit;
use crate::proto::discovery::{DeltaDiscoveryResponse, Status};
use crate::proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use prost::Message;

pub(crate) fn request(subscribe: &[&str], unsubscribe: &[&str]) -> DeltaDiscoveryRequest {
    let node = Node { id: "ztunnel~1.2.3.4~p.ns~ns.svc.cluster.local".into(), ..Node::default() };
    DeltaDiscoveryRequest {
        node: Some(node),
        type_url: ADDRESS_TYPE.into(),
        resource_names_subscribe: subscribe.iter().map(|key| key.to_string()).collect(),
        resource_names_unsubscribe: unsubscribe.iter().map(|key| key.to_string()).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn on_node(mut request: DeltaDiscoveryRequest, node: &str) -> DeltaDiscoveryRequest {
    let value = prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(node.into())) };
    let metadata = prost_types::Struct { fields: [(NODE_NAME.to_owned(), value)].into() };
    request.node.as_mut().unwrap().metadata = Some(metadata);
    request
}

fn holding(mut request: DeltaDiscoveryRequest, held: &[(&str, &str)]) -> DeltaDiscoveryRequest {
    let held = held.iter().map(|(name, version)| (name.to_string(), version.to_string()));
    request.initial_resource_versions = held.collect();
    request
}

fn ack(nonce: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { response_nonce: nonce.into(), ..request(&[], &[]) }
}

/// A response as its client reads it.
pub(crate) fn read(push: &Push) -> DeltaDiscoveryResponse {
    let fields: Vec<u8> = match &push.content {
        Content::Everything(table) => {
            (0..table.segments()).map(|index| table.segment(index)).collect::<Vec<_>>().concat()
        }
        Content::Encoded(encoded) => encoded.to_vec(),
        Content::Resources(resources) => {
            resources.iter().map(|resource| &resource.encoded[..]).collect::<Vec<_>>().concat()
        }
    };
    let mut response = DeltaDiscoveryResponse::decode(fields.as_slice()).unwrap();
    response.removed_resources.extend(push.removed.iter().map(|name| name.to_string()));
    response.nonce = push.nonce.clone();
    response.type_url = push.type_url.clone();
    response
}

struct Bench {
    world: World,
    subscriber: Subscriber,
}

impl Bench {
    fn new(edits: Vec<MeshEdit>) -> Self {
        let world = World::default();
        world.apply(edits);
        let subscriber = Subscriber::new(world.edition());
        Self { world, subscriber }
    }

    fn take(&mut self, request: DeltaDiscoveryRequest) -> Event {
        self.subscriber.handle_request(request).unwrap()
    }

    fn edit(&mut self, edits: Vec<MeshEdit>) {
        self.world.apply(edits);
        self.subscriber.handle_edition(self.world.edition());
    }

    /// The next response: names that it brings and names that it removes, each in order. It is acknowledged.
    fn next(&mut self) -> (Vec<String>, Vec<String>) {
        let response = read(&self.subscriber.poll_response(true).expect("no response is due"));
        self.take(ack(&response.nonce));
        contents(response)
    }

    fn is_quiet(&mut self) -> bool {
        self.subscriber.poll_response(true).is_none()
    }
}

fn contents(response: DeltaDiscoveryResponse) -> (Vec<String>, Vec<String>) {
    let mut brought: Vec<_> = response.resources.into_iter().map(|resource| resource.name).collect();
    brought.sort();
    (brought, response.removed_resources)
}

fn texts(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

fn shop() -> Vec<MeshEdit> {
    vec![
        service("s", &["10.9.0.1"], &[]),
        workload("one", "10.0.0.1", "n1", &["s"]),
        workload("two", "10.0.0.2", "n2", &["s"]),
        workload("lone", "10.0.0.3", "n2", &[]),
    ]
}

const ONE: &str = "one//Pod/a/one";
const TWO: &str = "one//Pod/a/two";
const LONE: &str = "one//Pod/a/lone";

#[test]
fn everything_comes_in_one_response_and_then_what_changes() {
    for subscribe in [&[][..], &["*"]] {
        let mut bench = Bench::new(shop());
        bench.take(request(subscribe, &[]));
        assert!(bench.subscriber.wants_everything());
        assert_eq!(bench.next(), (texts(&["a/s", LONE, ONE, TWO]), texts(&[])));
        assert!(bench.is_quiet() && !bench.subscriber.wants_everything());
        bench.edit(vec![workload("one", "10.0.0.9", "n1", &["s"]), MeshEdit::RemoveWorkload(LONE.into())]);
        assert_eq!(bench.next(), (texts(&[ONE]), texts(&[LONE])));
        assert!(bench.is_quiet());
    }
}

#[test]
fn nothing_is_answered_before_the_source_has_been_read() {
    let world = World::default();
    let mut subscriber = Subscriber::new(world.edition());
    subscriber.handle_request(holding(request(&[], &[]), &[("a/s", "1")])).unwrap();
    assert!(subscriber.poll_response(true).is_none());
    world.apply(shop());
    subscriber.handle_edition(world.edition());
    assert!(subscriber.poll_response(true).is_some());
}

#[test]
fn an_empty_mesh_is_answered_too() {
    let mut bench = Bench::new(Vec::new());
    bench.take(request(&[], &[]));
    assert_eq!(bench.next(), (texts(&[]), texts(&[])));
}

#[test]
fn changes_gather_while_a_response_waits() {
    let mut bench = Bench::new(shop());
    bench.take(request(&[], &[]));
    let nonce = bench.subscriber.poll_response(true).unwrap().nonce;
    bench.edit(vec![workload("one", "10.0.0.9", "n1", &["s"])]);
    bench.edit(vec![MeshEdit::RemoveWorkload(LONE.into())]);
    bench.edit(vec![workload("new", "10.0.0.7", "n1", &[])]);
    bench.edit(vec![MeshEdit::RemoveWorkload("one//Pod/a/new".into())]);
    assert!(bench.is_quiet());
    assert_eq!(bench.take(ack("foreign")), Event::Stale);
    assert!(bench.is_quiet());
    assert_eq!(bench.take(ack(&nonce)), Event::Acknowledged(ResourceType::Address));
    assert_eq!(bench.next(), (texts(&[ONE]), texts(&[LONE])));
    assert!(bench.is_quiet());
}

#[test]
fn a_client_that_comes_back_is_sent_what_differs() {
    let mut bench = Bench::new(shop());
    let edition = bench.world.edition();
    let version = format!("{:016x}", edition.table(ResourceType::Address).get(ONE).unwrap().version);
    let held = [(ONE, version.as_str()), (TWO, "other"), ("gone", "1")];
    bench.take(holding(request(&[], &[]), &held));
    assert!(bench.subscriber.wants_everything(), "it would be compared without a place");
    assert_eq!(bench.next(), (texts(&["a/s", LONE, TWO]), texts(&["gone"])));
}

#[test]
fn a_refused_resource_is_not_sent_again_until_it_changes() {
    let mut bench = Bench::new(shop());
    bench.take(request(&[], &[]));
    let nonce = bench.subscriber.poll_response(true).unwrap().nonce;
    let reason = format!("{ONE}: too odd");
    let mut refusal = ack(&nonce);
    refusal.error_detail = Some(Status { code: 0, message: reason.clone() });
    assert_eq!(bench.take(refusal), Event::Refused(ResourceType::Address, reason));
    assert!(bench.is_quiet());
    bench.edit(vec![workload("one", "10.0.0.9", "n1", &["s"])]);
    assert_eq!(bench.next(), (texts(&[ONE]), texts(&[])));
}

#[test]
fn on_demand_begins_with_the_nodes_own_workloads_and_an_answer_even_if_empty() {
    for (node, expected) in [("n2", texts(&[LONE, TWO])), ("elsewhere", texts(&[]))] {
        let mut bench = Bench::new(shop());
        bench.take(on_node(request(&["*"], &["*"]), node));
        assert_eq!(bench.next(), (expected, texts(&[])));
        assert!(bench.is_quiet());
    }
    let mut bench = Bench::new(shop());
    bench.take(on_node(request(&["*"], &["*"]), "n1"));
    assert_eq!(bench.next(), (texts(&[ONE]), texts(&[])));
    bench.edit(vec![workload("lone", "10.0.0.3", "n1", &[]), workload("two", "10.0.0.9", "n2", &[])]);
    assert_eq!(bench.next(), (texts(&[LONE]), texts(&[])));
    bench.edit(vec![workload("one", "10.0.0.1", "n2", &["s"])]);
    assert_eq!(bench.next(), (texts(&[]), texts(&[ONE])));
}

#[test]
fn a_key_is_a_name_an_address_or_a_services_name_which_brings_its_endpoints() {
    let cases = [
        (ONE, texts(&[ONE])),
        ("/10.0.0.3", texts(&[LONE])),
        ("a/s", texts(&["a/s", ONE, TWO])),
        ("/10.9.0.1", texts(&["a/s", ONE, TWO])),
    ];
    for (key, expected) in cases {
        let mut bench = Bench::new(shop());
        bench.take(request(&["*"], &["*"]));
        bench.next();
        bench.take(request(&[key], &[]));
        assert_eq!(bench.next(), (expected.clone(), texts(&[])), "{key}");
        // Names in the first request do the same.
        let mut bench = Bench::new(shop());
        bench.take(request(&[key], &[]));
        assert_eq!(bench.next(), (expected, texts(&[])), "{key}");
    }
}

#[test]
fn a_key_that_names_nothing_is_answered_as_removed_and_what_it_names_is_sent_when_it_appears() {
    let mut bench = Bench::new(shop());
    bench.take(request(&["*"], &["*"]));
    bench.next();
    bench.take(request(&["/10.0.0.8", "a/t"], &[]));
    assert_eq!(bench.next(), (texts(&[]), texts(&["/10.0.0.8", "a/t"])));
    bench.edit(vec![workload("new", "10.0.0.8", "n1", &["t"])]);
    assert_eq!(bench.next(), (texts(&["one//Pod/a/new"]), texts(&[])));
    bench.edit(vec![service("t", &[], &[]), workload("lone", "10.0.0.3", "n2", &["t"])]);
    assert_eq!(bench.next(), (texts(&["a/t", LONE]), texts(&[])));
    bench.edit(vec![service("r", &[], &["10.0.0.0/24"])]);
    assert_eq!(bench.next(), (texts(&["a/r"]), texts(&[])));
}

#[test]
fn endpoints_follow_the_service_that_was_asked_for() {
    let mut bench = Bench::new(shop());
    bench.take(request(&["/10.9.0.1"], &[]));
    bench.next();
    bench.edit(vec![workload("lone", "10.0.0.3", "n2", &["s"])]);
    assert_eq!(bench.next(), (texts(&[LONE]), texts(&[])));
    bench.edit(vec![workload("one", "10.0.0.1", "n1", &[])]);
    assert_eq!(bench.next(), (texts(&[]), texts(&[ONE])));
    // The address moves to another service: the endpoints change without having changed themselves.
    bench.edit(vec![service("s", &[], &[]), service("t", &["10.9.0.1"], &[])]);
    assert_eq!(bench.next(), (texts(&["a/t"]), texts(&["a/s", LONE, TWO])));
}

#[test]
fn a_key_that_is_asked_for_again_is_answered_again() {
    let mut bench = Bench::new(shop());
    bench.take(request(&["a/s"], &[]));
    bench.next();
    bench.take(request(&["/10.9.0.1"], &[]));
    assert_eq!(bench.next(), (texts(&["a/s"]), texts(&[])), "endpoints that are held were sent again");
    bench.take(request(&["none"], &[]));
    assert_eq!(bench.next(), (texts(&[]), texts(&["none"])));
    bench.take(request(&["none"], &[]));
    assert_eq!(bench.next(), (texts(&[]), texts(&["none"])));
}

#[test]
fn what_no_key_names_any_more_is_removed() {
    let mut bench = Bench::new(shop());
    bench.take(request(&["a/s", "/10.0.0.1"], &[]));
    assert_eq!(bench.next(), (texts(&["a/s", ONE, TWO]), texts(&[])));
    bench.take(request(&[], &["a/s"]));
    assert_eq!(bench.next(), (texts(&[]), texts(&["a/s", TWO])));
    bench.edit(vec![workload("two", "10.0.0.9", "n2", &["s"])]);
    assert!(bench.is_quiet());
}

#[test]
fn a_stock_client_that_comes_back_on_demand_is_told_of_what_it_holds() {
    let mut bench = Bench::new(shop());
    bench.take(holding(request(&["*"], &["*"]), &[(ONE, "old"), ("gone", "1"), ("/10.0.0.3", "")]));
    assert_eq!(bench.next(), (texts(&[LONE, ONE]), texts(&["gone"])));
    bench.edit(vec![MeshEdit::RemoveWorkload(ONE.into())]);
    assert_eq!(bench.next(), (texts(&[]), texts(&[ONE])));
}

#[test]
fn what_a_client_comes_back_with_counts_neither_as_keys_nor_for_its_length() {
    let mut bench = Bench::new(shop());
    let long = "n".repeat(KEY_LEN_MAX + 1);
    let names: Vec<_> = (0..=KEYS_MAX).map(|number| format!("a/{number}")).collect();
    let mut held: Vec<_> = names.iter().map(|name| (name.as_str(), "1")).collect();
    held.push((&long, "1"));
    bench.take(holding(request(&["*"], &["*"]), &held));
    assert_eq!(bench.next().1.len(), names.len());
    bench.take(request(&[ONE], &[]));
    assert_eq!(bench.next(), (texts(&[ONE]), texts(&[])));
}

#[test]
fn many_keys_and_many_endpoints_of_a_range_are_judged_in_time() {
    const MANY: usize = 20_000;
    let mut edits = vec![service("s", &[], &["10.9.0.0/16"])];
    edits.extend((0..MANY).map(|number| workload(&format!("w{number}"), "10.0.0.1", "n", &["s"])));
    let mut bench = Bench::new(edits);
    let keys: Vec<_> = (0..MANY).map(|number| format!("/10.9.{}.{}", number / 256, number % 256)).collect();
    bench.take(request(&["*"], &["*"]));
    bench.next();
    bench.take(request(&["/10.9.0.0"], &[]));
    assert_eq!(bench.next().0.len(), MANY + 1);
    bench.take(request(&keys.iter().map(String::as_str).collect::<Vec<_>>(), &[]));
    assert_eq!(bench.next(), (texts(&["a/s"]), texts(&[])));
}

#[test]
fn turning_to_everything_and_back_is_followed() {
    let mut bench = Bench::new(shop());
    bench.take(request(&[LONE], &[]));
    bench.next();
    bench.take(request(&["*"], &[]));
    bench.edit(vec![MeshEdit::RemoveWorkload(LONE.into())]);
    assert_eq!(bench.next(), (texts(&["a/s", ONE, TWO]), texts(&[LONE])));
    bench.take(request(&["a/s"], &["*"]));
    assert_eq!(bench.next(), (texts(&["a/s", ONE, TWO]), texts(&[LONE])));
    bench.edit(vec![workload("new", "10.0.0.8", "n1", &[])]);
    assert!(bench.is_quiet());
}

#[test]
fn a_type_that_waits_for_its_place_does_not_hold_back_the_other() {
    let mut bench = Bench::new(shop());
    bench.take(holding(request(&[], &[]), &[(ONE, "old")]));
    let keys = DeltaDiscoveryRequest { type_url: AUTHORIZATION_TYPE.into(), ..request(&["a/p"], &[]) };
    bench.take(keys);
    assert!(bench.subscriber.is_laden() && bench.subscriber.wants_everything());
    assert_eq!(bench.subscriber.poll_response(false).unwrap().type_url, AUTHORIZATION_TYPE);
    assert!(bench.subscriber.poll_response(false).is_none());
    assert_eq!(bench.next().0, texts(&["a/s", LONE, ONE, TWO]));
    assert!(!bench.subscriber.is_laden());
}

#[test]
fn types_are_answered_each_for_itself_and_an_unknown_one_is_answered_empty() {
    let mut bench = Bench::new(shop());
    bench.take(request(&[], &[]));
    let waiting = bench.subscriber.poll_response(true).unwrap();
    assert_eq!(waiting.type_url, ADDRESS_TYPE);
    bench.take(DeltaDiscoveryRequest { type_url: AUTHORIZATION_TYPE.into(), ..request(&[], &[]) });
    assert_eq!(bench.subscriber.poll_response(true).unwrap().type_url, AUTHORIZATION_TYPE);
    let unknown = DeltaDiscoveryRequest { type_url: "odd".into(), ..request(&[], &[]) };
    assert_eq!(bench.take(unknown), Event::Unknown("odd".into()));
    let answer = bench.subscriber.poll_response(true).unwrap();
    assert_eq!((answer.type_url.as_str(), contents(read(&answer))), ("odd", (texts(&[]), texts(&[]))));
    assert!(bench.is_quiet());
    bench.take(DeltaDiscoveryRequest { type_url: "odd".into(), ..ack(&answer.nonce) });
    assert!(bench.is_quiet());
}

#[test]
fn nonsense_ends_the_stream_with_its_reason() {
    let world = World::default();
    let fresh = || Subscriber::new(world.edition());
    let nameless = DeltaDiscoveryRequest { node: None, ..request(&[], &[]) };
    assert_eq!(fresh().handle_request(nameless), Err(Violation::NodeMissing));
    let mut named = request(&[], &[]);
    named.node.as_mut().unwrap().id = "i".repeat(NODE_ID_LEN_MAX + 1);
    assert_eq!(fresh().handle_request(named), Err(Violation::NodeIdTooLong(NODE_ID_LEN_MAX + 1)));
    let named = on_node(request(&[], &[]), &"n".repeat(NODE_NAME_LEN_MAX + 1));
    assert_eq!(fresh().handle_request(named), Err(Violation::NodeNameTooLong(NODE_NAME_LEN_MAX + 1)));
    let long = "k".repeat(KEY_LEN_MAX + 1);
    assert_eq!(fresh().handle_request(request(&[&long], &[])), Err(Violation::KeyTooLong(long.len())));
    let keys: Vec<_> = (0..=KEYS_MAX).map(|number| format!("a/{number}")).collect();
    let keys: Vec<_> = keys.iter().map(String::as_str).collect();
    assert_eq!(fresh().handle_request(request(&keys, &[])), Err(Violation::KeysTooMany));
    let mut subscriber = fresh();
    for number in 0..UNKNOWN_MAX {
        let unknown = DeltaDiscoveryRequest { type_url: number.to_string(), ..request(&[], &[]) };
        assert!(subscriber.handle_request(unknown).is_ok());
    }
    let unknown = DeltaDiscoveryRequest { type_url: "more".into(), ..request(&[], &[]) };
    assert_eq!(subscriber.handle_request(unknown), Err(Violation::TypesTooMany));
}
