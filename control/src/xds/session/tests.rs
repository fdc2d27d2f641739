mod model;
mod script;

use halo_core::net::NetworkAddress;
use halo_core::service::{Service, ServiceKey, Visibility};
use halo_core::snapshot::Snapshot;
use halo_core::workload::{Gateway, GatewayDestination, Workload};

use self::script::play;
use super::*;
use crate::proto::discovery::{Any, DeltaDiscoveryResponse};

fn address(text: &str) -> NetworkAddress {
    let (network, ip) = text.split_once('/').unwrap();
    NetworkAddress { network: network.into(), ip: ip.parse().unwrap() }
}

fn service_key(text: &str) -> ServiceKey {
    ServiceKey::parse(text).unwrap_or_else(|| panic!("{text:?} is no service"))
}

/// A question in the script's words: an address if the part behind the slash is one.
fn question(text: &str) -> Question {
    match text.split_once('/') {
        Some((_, ip)) if ip.parse::<std::net::IpAddr>().is_ok() => Question::Address(address(text)),
        _ => Question::Service(service_key(text)),
    }
}

fn gateway(text: &str) -> Gateway {
    let destination = match question(text) {
        Question::Address(address) => GatewayDestination::Address(address),
        Question::Service(key) => GatewayDestination::Service(key),
        Question::Certificate(_) => unreachable!(),
    };
    Gateway { destination, hbone_mtls_port: 15008 }
}

fn service(key: ServiceKey) -> Service {
    Service {
        name: "".into(),
        key,
        vips: vec![],
        cidr_vips: vec![],
        ports: Default::default(),
        subject_alt_names: vec![],
        waypoint: None,
        weighted_waypoints: vec![],
        load_balancer: None,
        ip_families: None,
        canonical: false,
        visibility: Visibility::Public,
    }
}

fn resource(name: &str, version: &str, value: Option<Vec<u8>>) -> Resource {
    Resource {
        name: name.into(),
        version: version.into(),
        resource: value.map(|value| Any { type_url: String::new(), value: value.into() }),
        aliases: vec![],
    }
}

#[test]
fn everything_is_subscribed_acknowledged_and_kept_over_streams() {
    play(
        Scope::Wildcard,
        "
        connect
        > address first
        > policy first
        < address n1
            w c1//Pod/a/x@1 ip=/10.0.0.1
            s a/h@1
        = +w c1//Pod/a/x
        = +s a/h
        > address ack n1
        missing istio.security.Authorization
        < policy n2
            p a/allow@7
        = +p a/allow
        > policy ack n2
        missing
        < address n3
            w c1//Pod/a/y@1
            gone c1//Pod/a/x
            gone a/h
            gone a/never-seen
        = +w c1//Pod/a/y
        = -w c1//Pod/a/x
        = -s a/h
        > address ack n3
        disconnect
        connect
        > address first have=c1//Pod/a/y@1
        > policy first have=a/allow@7
        missing
        ",
    );
}

#[test]
fn what_is_refused_is_named_and_what_was_in_force_stays() {
    play(
        Scope::Wildcard,
        "
        connect
        > address first
        > policy first
        < address n1
            w c1//Pod/a/x@1
            bad c1//Pod/a/y@1
            w c1//Pod/a/z@1
            bad c1//Pod/a/v@1
        = +w c1//Pod/a/x
        = +w c1//Pod/a/z
        > address nack n1 c1//Pod/a/y: the resource is not set; c1//Pod/a/v: the resource is not set
        missing istio.security.Authorization
        < address n2
            bad c1//Pod/a/x@2
        > address nack n2 c1//Pod/a/x: the resource is not set
        < policy n3
        > policy ack n3
        disconnect
        connect
        > address first have=c1//Pod/a/x@1,c1//Pod/a/z@1
        > policy first
        < address n4
            w c1//Pod/a/x@3
            w c1//Pod/a/y@3
            gone c1//Pod/a/z
        = +w c1//Pod/a/x
        = +w c1//Pod/a/y
        = -w c1//Pod/a/z
        > address ack n4
        missing
        ",
    );
}

/// The server does not send again what was refused until it changes.
#[test]
fn a_refused_workload_does_not_keep_a_node_from_starting() {
    let session = play(
        Scope::Wildcard,
        "
        connect
        > address first
        > policy first
        < policy n1
        > policy ack n1
        < address n2
            w c1//Pod/a/x@1
            bad c1//Pod/a/y@1
        = +w c1//Pod/a/x
        > address nack n2 c1//Pod/a/y: the resource is not set
        missing
        refused c1//Pod/a/y: the resource is not set
        < address n3
            w c1//Pod/a/x@2
        = +w c1//Pod/a/x
        > address ack n3
        refused c1//Pod/a/y: the resource is not set
        < address n4
            gone c1//Pod/a/y
        > address ack n4
        refused
        ",
    );
    assert!(session.synced());
}

#[test]
fn a_refused_policy_is_missing_until_it_is_accepted_or_removed() {
    for end in ["p a/deny@2", "gone a/deny"] {
        let accepted = if end.starts_with('p') { "= +p a/deny" } else { "" };
        play(
            Scope::Wildcard,
            &format!(
                "
                connect
                > address first
                > policy first
                < address n1
                > address ack n1
                < policy n2
                    p a/allow@1
                    bad a/deny@1
                = +p a/allow
                > policy nack n2 a/deny: the resource is not set
                missing istio.security.Authorization
                < policy n3
                    p a/other@1
                = +p a/other
                > policy ack n3
                missing istio.security.Authorization
                refused a/deny: the resource is not set
                < policy n4
                    {end}
                {accepted}
                > policy ack n4
                missing
                refused
                < policy n5
                    bad a/other@2
                > policy nack n5 a/other: the resource is not set
                missing
                refused a/other: the resource is not set
                "
            ),
        );
    }
}

/// A removal that happens while there is no stream is never told: the server does not know that the client saw it.
#[test]
fn what_a_new_streams_first_response_does_not_send_again_is_not_refused_any_more() {
    play(
        Scope::Wildcard,
        "
        connect
        > address first
        > policy first
        < address n1
        > address ack n1
        < policy n2
            bad a/deny@1
        > policy nack n2 a/deny: the resource is not set
        disconnect
        connect
        > address first
        > policy first
        missing istio.security.Authorization
        refused a/deny: the resource is not set
        < policy n3
        > policy ack n3
        missing
        refused
        ",
    );
}

#[test]
fn a_name_that_makes_something_else_removes_what_it_made() {
    play(
        Scope::Wildcard,
        "
        connect
        > address first
        > policy first
        < address n1
            w one@1 uid=u1
            s two@1 key=a/h
            w@1 uid=u9
        = +w u1
        = +s a/h
        = +w u9
        > address ack n1
        < address n2
            w one@2 uid=u2
            s two@2 key=a/h2
        = -w u1
        = +w u2
        = -s a/h
        = +s a/h2
        > address ack n2
        < address n3
            w two@3 uid=u3
            gone u2
            gone u9
        = -s a/h2
        = +w u3
        = -w u2
        = -w u9
        > address ack n3
        < policy n4
            p one@1 key=a/p
        = +p a/p
        > policy ack n4
        < policy n5
            p one@2 key=a/q
        = -p a/p
        = +p a/q
        > policy ack n5
        ",
    );
}

#[test]
fn a_stream_that_does_not_say_what_is_held_takes_away_what_it_is_not_sent() {
    play(
        Scope::Wildcard,
        "
        connect
        > address first
        > policy first
        < address n1
            w c1//Pod/a/x@1
            w c1//Pod/a/y@1
        = +w c1//Pod/a/x
        = +w c1//Pod/a/y
        > address ack n1
        < policy n2
            p a/p@1
        = +p a/p
        > policy ack n2
        disconnect
        too-large
        connect
        > address first
        > policy first
        < address n1
            w c1//Pod/a/y@1
        = -w c1//Pod/a/x
        = +w c1//Pod/a/y
        > address ack n1
        < address n2
        > address ack n2
        < policy n3
        = -p a/p
        > policy ack n3
        disconnect
        connect
        > address first have=c1//Pod/a/y@1
        > policy first
        ",
    );
}

#[test]
fn a_response_of_a_type_that_nobody_asked_for_is_acknowledged_and_counted() {
    let session = play(
        Scope::Wildcard,
        "
        connect
        > address first
        > policy first
        < strange n1
            w c1//Pod/a/x@1
        > strange ack n1
        ",
    );
    assert_eq!(session.counters().unknown_types, 1);
}

#[test]
fn replies_of_a_stream_that_has_ended_are_not_sent_on_the_next() {
    play(
        Scope::Wildcard,
        "
        connect
        > address first
        > policy first
        < address n1
            w c1//Pod/a/x@1
        = +w c1//Pod/a/x
        disconnect
        connect
        > address first have=c1//Pod/a/x@1
        > policy first
        ",
    );
}

#[test]
fn a_key_is_subscribed_once_and_answered_by_name_alias_address_or_removal() {
    let session = play(
        Scope::OnDemand { keys_max: 10 },
        "
        connect
        > address first unsub=*
        > policy first
        missing istio.security.Authorization
        ask a/h
        > address sub=a/h
        ask a/h
        ask n1/10.0.0.1
        ask n1/10.0.0.2
        ask n1/10.0.0.9
        ask n1/10.9.9.9
        > address sub=n1/10.0.0.1,n1/10.0.0.2,n1/10.0.0.9,n1/10.9.9.9
        < address n1
            s a/h@1 vip=n1/10.0.0.9
            w c1//Pod/a/x@1 ip=n1/10.0.0.1
            w c1//Pod/a/y@1 alias=n1/10.0.0.2
            gone n1/10.9.9.9
        = +s a/h
        = answered a/h
        = answered n1/10.0.0.9
        = +w c1//Pod/a/x
        = answered n1/10.0.0.1
        = +w c1//Pod/a/y
        = answered n1/10.0.0.2
        = answered n1/10.9.9.9
        > address ack n1
        ask a/h
        < address n2
            gone a/h
        = -s a/h
        > address ack n2
        ",
    );
    let counters = session.counters();
    assert_eq!((counters.demands, counters.demands_answered, counters.demands_refused), (7, 5, 0));
}

#[test]
fn what_is_held_answers_a_question_at_once() {
    play(
        Scope::OnDemand { keys_max: 10 },
        "
        connect
        > address first unsub=*
        > policy first
        ask a/h
        > address sub=a/h
        < address n1
            s a/h@1 vip=n1/10.0.0.9
            w c1//Pod/a/x@1 ip=n1/10.0.0.1 serves=a/h
        = +s a/h
        = answered a/h
        = +w c1//Pod/a/x
        > address ack n1
        ask n1/10.0.0.1
        = answered n1/10.0.0.1
        > address sub=n1/10.0.0.1
        ",
    );
}

#[test]
fn a_refused_resource_answers_nothing() {
    play(
        Scope::OnDemand { keys_max: 10 },
        "
        connect
        > address first unsub=*
        > policy first
        ask a/h
        > address sub=a/h
        < address n1
            bad a/h@1
        > address nack n1 a/h: the resource is not set
        < address n2
            s a/h@2
        = +s a/h
        = answered a/h
        > address ack n2
        ",
    );
}

#[test]
fn a_workload_that_shares_its_nodes_address_answers_no_question_about_that() {
    play(
        Scope::OnDemand { keys_max: 10 },
        "
        connect
        > address first unsub=*
        > policy first
        ask n1/10.0.0.1
        ask a/h
        > address sub=a/h,n1/10.0.0.1
        < address n1
            w c1//Pod/a/x@1 ip=n1/10.0.0.1 mode=host serves=a/h
            s a/h@1
        = +w c1//Pod/a/x
        = +s a/h
        = answered a/h
        > address ack n1
        < address n2
            gone n1/10.0.0.1
        = answered n1/10.0.0.1
        > address ack n2
        ",
    );
}

#[test]
fn every_key_is_subscribed_again_on_the_next_stream() {
    play(
        Scope::OnDemand { keys_max: 10 },
        "
        ask a/h
        connect
        > address first sub=a/h unsub=*
        > policy first
        < address n1
            s a/h@1
        = +s a/h
        = answered a/h
        > address ack n1
        disconnect
        ask n1/10.0.0.1
        connect
        > address first sub=a/h,n1/10.0.0.1 unsub=* have=a/h@1
        > policy first
        ",
    );
}

#[test]
fn a_key_beyond_the_bound_takes_the_place_of_the_one_not_asked_about_for_longest() {
    let session = play(
        Scope::OnDemand { keys_max: 2 },
        "
        connect
        > address first unsub=*
        > policy first
        ask a/h1
        ask a/h2
        > address sub=a/h1,a/h2
        < address n1
            s a/h1@1
            w c1//Pod/a/x@1 serves=a/h1
            gone a/h2
        = +s a/h1
        = answered a/h1
        = +w c1//Pod/a/x
        = answered a/h2
        > address ack n1
        ask a/h1
        ask a/h3
        = unanswered a/h2
        > address unsub=a/h2
        > address sub=a/h3
        ask a/h4
        = unanswered a/h1
        = -s a/h1
        = -w c1//Pod/a/x
        > address unsub=a/h1,c1//Pod/a/x
        > address sub=a/h4
        ask a/h3
        ask a/h1
        > address unsub=a/h4
        > address sub=a/h1
        ",
    );
    assert_eq!((session.counters().demands_evicted, session.counters().demands_refused), (3, 0));
}

#[test]
fn what_the_nodes_pods_lead_to_is_not_given_up_for_a_question() {
    let session = play(
        Scope::OnDemand { keys_max: 2 },
        "
        connect
        > address first unsub=*
        > policy first
        ask a/h
        pods a/x
        > address sub=a/h,c1//Pod/a/x
        < address n1
            w c1//Pod/a/x@1 serves=a/h
            s a/h@1
        = +w c1//Pod/a/x
        = +s a/h
        = answered a/h
        > address ack n1
        ask a/other
        ask a/h
        ask a/more
        pods
        = unanswered a/h
        = -s a/h
        = -w c1//Pod/a/x
        > address unsub=a/h,c1//Pod/a/x
        ",
    );
    assert_eq!(session.counters().demands_refused, 2);
}

#[test]
fn all_keys_fit_into_a_streams_first_request() {
    use prost::Message;
    let mut session = Session::new(Node::default(), "c1".into(), Scope::OnDemand { keys_max: KEYS_MAX });
    let demands = session.demands.as_mut().unwrap();
    for number in 0..5000 {
        let host = format!("{number:01000}");
        assert_eq!(demands.ask(Question::Service(ServiceKey::new("a", &host))).0, Asked::Taken);
    }
    demands.check();
    session.connected();
    let first = session.poll_request().unwrap();
    assert!(first.resource_names_subscribe.len() > 2000);
    assert!(first.resource_names_subscribe.contains(&format!("a/{:01000}", 4999)));
    assert!(first.encoded_len() < REQUEST_LEN_MAX * 3 / 4);
}

#[test]
fn many_keys_are_subscribed_in_several_requests_but_for_the_streams_first() {
    let mut session = Session::new(Node::default(), "c1".into(), Scope::OnDemand { keys_max: KEYS_MAX });
    // A key more than two requests hold; asked past the session, which would check all of them each time.
    let demands = session.demands.as_mut().unwrap();
    for number in 0..=2 * KEYS_PER_REQUEST {
        demands.ask(Question::Service(ServiceKey::new("a", &format!("h{number}"))));
    }
    session.connected();
    let first = session.poll_request().unwrap();
    assert_eq!(first.resource_names_subscribe.len(), 2 * KEYS_PER_REQUEST + 1);
    assert_eq!(first.resource_names_unsubscribe, ["*"]);
    let _policies = session.poll_request().unwrap();
    let demands = session.demands.as_mut().unwrap();
    for number in 0..=2 * KEYS_PER_REQUEST {
        demands.ask(Question::Service(ServiceKey::new("b", &format!("h{number}"))));
    }
    let requests = std::iter::from_fn(|| session.poll_request());
    let counts: Vec<_> = requests.map(|request| request.resource_names_subscribe.len()).collect();
    assert_eq!(counts, [KEYS_PER_REQUEST, KEYS_PER_REQUEST, 1]);
}

#[test]
fn a_key_that_control_planes_do_not_take_is_refused() {
    let mut session = Session::new(Node::default(), "c1".into(), Scope::OnDemand { keys_max: 10 });
    assert!(session.demand(Question::Service(ServiceKey::new("a", &"h".repeat(1023)))).is_empty());
    assert_eq!(session.counters().demands_refused, 1);
}

#[test]
fn a_pod_brings_what_its_workload_leads_to_and_takes_it_along() {
    play(
        Scope::OnDemand { keys_max: 10 },
        "
        connect
        > address first unsub=*
        > policy first
        pods a/x
        > address sub=c1//Pod/a/x
        < address n1
            w c1//Pod/a/x@1 ip=n1/10.0.0.1 serves=a/h waypoint=a/w gateway=n2/192.0.2.1
        = +w c1//Pod/a/x
        > address ack n1
        > address sub=a/h,a/w,n2/192.0.2.1
        < address n2
            s a/h@1
            s a/w@1
            gone n2/192.0.2.1
        = +s a/h
        = answered a/h
        = +s a/w
        = answered a/w
        = answered n2/192.0.2.1
        > address ack n2
        < address n3
            w c1//Pod/a/x@2 ip=n1/10.0.0.1 serves=a/h waypoint=a/w
        = +w c1//Pod/a/x
        = unanswered n2/192.0.2.1
        > address ack n3
        > address unsub=n2/192.0.2.1
        ask a/w
        pods
        = unanswered a/h
        = -s a/h
        = -w c1//Pod/a/x
        > address unsub=a/h,c1//Pod/a/x
        ",
    );
}

#[test]
fn what_two_pods_lead_to_stays_until_both_have_gone() {
    play(
        Scope::OnDemand { keys_max: 10 },
        "
        pods a/x a/y
        connect
        > address first sub=c1//Pod/a/x,c1//Pod/a/y unsub=*
        > policy first
        < address n1
            w c1//Pod/a/x@1 serves=a/h
            w c1//Pod/a/y@1 serves=a/h
        = +w c1//Pod/a/x
        = +w c1//Pod/a/y
        > address ack n1
        > address sub=a/h
        pods a/y
        silent
        pods
        = -w c1//Pod/a/y
        = -w c1//Pod/a/x
        > address unsub=a/h,c1//Pod/a/x,c1//Pod/a/y
        ",
    );
}

#[test]
fn endpoints_go_with_the_service_that_brought_them() {
    play(
        Scope::OnDemand { keys_max: 10 },
        "
        connect
        > address first unsub=*
        > policy first
        pods a/x
        > address sub=c1//Pod/a/x
        < address n1
            w c1//Pod/a/x@1 waypoint=a/w
        = +w c1//Pod/a/x
        > address ack n1
        > address sub=a/w
        < address n2
            s a/w@1 vip=n1/10.0.0.9
            w c1//Pod/a/w-1@1 ip=n1/10.0.0.2 serves=a/w
            w c1//Pod/a/w-2@1 ip=n1/10.0.0.3 serves=a/w
        = +s a/w
        = answered a/w
        = +w c1//Pod/a/w-1
        = +w c1//Pod/a/w-2
        > address ack n2
        ask n1/10.0.0.3
        = answered n1/10.0.0.3
        > address sub=n1/10.0.0.3
        pods
        = unanswered a/w
        = -w c1//Pod/a/x
        = -s a/w
        = -w c1//Pod/a/w-1
        > address unsub=a/w,c1//Pod/a/w-1,c1//Pod/a/x
        ",
    );
}

#[test]
fn a_nack_names_a_bounded_number_of_resources() {
    let mut session = Session::new(Node::default(), "c1".into(), Scope::Wildcard);
    session.connected();
    let _ = (session.poll_request(), session.poll_request());
    session.handle_response(
        DeltaDiscoveryResponse {
            type_url: ADDRESS_TYPE.into(),
            resources: (0..NACK_NAMES_MAX + 7)
                .map(|number| resource(&format!("r{number}"), "1", None))
                .collect(),
            ..DeltaDiscoveryResponse::default()
        }
        .into(),
    );
    let text = session.poll_request().unwrap().error_detail.unwrap().message;
    assert!(text.ends_with("; r99: the resource is not set; and 7 more"), "{text}");
}

/// One text, whether as the name, the uid in the snapshot, or the uid in its indexes.
#[test]
fn a_name_shares_its_text_with_the_workload_also_after_updates() {
    let mut session = Session::new(Node::default(), "c1".into(), Scope::Wildcard);
    let mut snapshot = Snapshot::default();
    for version in ["1", "2", "3"] {
        let uid = "c1//Pod/a/x";
        let workload = Workload { uid: uid.into(), ..Workload::default() };
        let push = session.handle_response(
            DeltaDiscoveryResponse {
                type_url: ADDRESS_TYPE.into(),
                resources: vec![resource(uid, version, Some(wire::encode_workload(&workload)))],
                ..DeltaDiscoveryResponse::default()
            }
            .into(),
        );
        push.edits.into_iter().for_each(|edit| edit.apply(&mut snapshot));
        let held = session.addresses.held.name(uid).unwrap();
        assert!(Arc::ptr_eq(held, &snapshot.workloads.get(uid).unwrap().uid));
    }
}
