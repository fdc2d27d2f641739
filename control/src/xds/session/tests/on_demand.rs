//! What is asked for, one by one.

use super::*;

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
fn a_pods_workload_under_a_new_name_leads_where_it_led() {
    play(
        Scope::OnDemand { keys_max: 10 },
        "
        connect
        > address first unsub=*
        > policy first
        pods a/x
        > address sub=c1//Pod/a/x
        < address n1
            w one@1 uid=c1//Pod/a/x serves=a/h
        = +w c1//Pod/a/x
        > address ack n1
        > address sub=a/h
        < address n2
            s a/h@1
        = +s a/h
        = answered a/h
        > address ack n2
        < address n3
            w two@1 uid=c1//Pod/a/x serves=a/h
            gone one
        = +w c1//Pod/a/x
        > address ack n3
        silent
        < address n4
            w two@2 uid=other
        = -w c1//Pod/a/x
        = +w other
        = unanswered a/h
        = -w other
        = -s a/h
        > address ack n4
        > address unsub=a/h,two
        ",
    );
}

/// The script's node is `own`.
#[test]
fn what_crosses_its_unsubscription_is_taken_back_but_for_the_own_nodes() {
    play(
        Scope::OnDemand { keys_max: 10 },
        "
        connect
        > address first unsub=*
        > policy first
        pods a/x
        > address sub=c1//Pod/a/x
        < address n1
            w c1//Pod/a/x@1 serves=a/h
        = +w c1//Pod/a/x
        > address ack n1
        > address sub=a/h
        pods
        = -w c1//Pod/a/x
        > address unsub=a/h,c1//Pod/a/x
        < address n2
            w c1//Pod/a/y@1 ip=n1/10.0.0.1 serves=a/h
            s a/h@1
            w c1//Pod/a/z@1 ip=n1/10.0.0.2 node=own
            w c1//Pod/a/v@1 ip=n1/10.0.0.3 node=other
        = +w c1//Pod/a/y
        = +s a/h
        = +w c1//Pod/a/z
        = +w c1//Pod/a/v
        = -s a/h
        = -w c1//Pod/a/v
        = -w c1//Pod/a/y
        > address ack n2
        > address unsub=a/h,c1//Pod/a/v,c1//Pod/a/y
        pods a/z
        > address sub=c1//Pod/a/z
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
