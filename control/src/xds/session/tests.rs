mod model;
mod on_demand;
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
fn what_is_held_in_the_same_version_changes_nothing() {
    play(
        Scope::Wildcard,
        "
        connect
        > address first
        > policy first
        < address n1
            w one@1 uid=u1
            s a/h@1
            w c1//Pod/a/x@
        = +w u1
        = +s a/h
        = +w c1//Pod/a/x
        > address ack n1
        < policy n2
            p a/p@1
        = +p a/p
        > policy ack n2
        < address n3
            w one@1 uid=u1
            s a/h@1
            w c1//Pod/a/x@
        = +w c1//Pod/a/x
        > address ack n3
        < policy n4
            p a/p@1
        > policy ack n4
        < address n5
            w two@1 uid=u1
            s a/h@2
        = +w u1
        = +s a/h
        > address ack n5
        < address n6
            w one@1 uid=u1
        = +w u1
        > address ack n6
        ",
    );
}

#[test]
fn what_is_sent_again_in_the_same_version_answers_a_key() {
    play(
        Scope::OnDemand { keys_max: 10 },
        "
        connect
        > address first unsub=*
        > policy first
        ask a/h
        > address sub=a/h
        < address n1
            s a/h@1
        = +s a/h
        = answered a/h
        > address ack n1
        ask n1/10.0.0.9
        > address sub=n1/10.0.0.9
        < address n2
            s a/h@1 alias=n1/10.0.0.9
        = answered n1/10.0.0.9
        > address ack n2
        ",
    );
}

/// The old name was refused, so that nothing is held by it.
#[test]
fn a_removal_is_of_what_there_was_before_the_response() {
    play(
        Scope::Wildcard,
        "
        connect
        > address first
        > policy first
        < address n1
            bad c1//Pod/a/x@1
            w one@1 uid=u1
        = +w u1
        > address nack n1 c1//Pod/a/x: the resource is not set
        < address n2
            w new@1 uid=c1//Pod/a/x
            w one@2 uid=u2
            gone c1//Pod/a/x
            gone u1
        = +w c1//Pod/a/x
        = -w u1
        = +w u2
        > address ack n2
        refused
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
    assert!(text.ends_with("; r49: the resource is not set; and 7 more"), "{text}");
}

#[test]
fn a_policy_that_is_not_understood_is_in_force_and_told_of_once_for_each_version() {
    let mut session = Session::new(Node::default(), "c1".into(), Scope::Wildcard);
    session.connected();
    let _ = (session.poll_request(), session.poll_request());
    // A name, a namespace and the unknown field 40.
    let bytes = b"\x0a\x01p\x12\x04shop\xc0\x02\x07".to_vec();
    let mut push = |version: &str| {
        let response = DeltaDiscoveryResponse {
            type_url: AUTHORIZATION_TYPE.into(),
            resources: vec![resource("shop/p", version, Some(bytes.clone()))],
            ..DeltaDiscoveryResponse::default()
        };
        session.handle_response(response.into())
    };
    for version in ["1", "2"] {
        let first = push(version);
        assert_eq!((first.edits.len(), first.rejected.len()), (1, 0));
        let expected = ("shop/p".into(), "the policy has the unknown field 40".to_owned());
        assert_eq!(first.not_understood, [expected]);
        assert!(push(version).not_understood.is_empty());
    }
}

#[test]
fn a_nack_is_short_however_long_the_names() {
    let mut session = Session::new(Node::default(), "c1".into(), Scope::Wildcard);
    session.connected();
    let _ = (session.poll_request(), session.poll_request());
    let name = |number: usize| format!("{number}{}", "x".repeat(100_000));
    let response = DeltaDiscoveryResponse {
        type_url: ADDRESS_TYPE.into(),
        resources: (0..200).map(|number| resource(&name(number), "1", None)).collect(),
        ..DeltaDiscoveryResponse::default()
    };
    session.handle_response(response.into());
    let text = session.poll_request().unwrap().error_detail.unwrap().message;
    assert!(text.len() < 16 << 10, "{} bytes", text.len());
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
