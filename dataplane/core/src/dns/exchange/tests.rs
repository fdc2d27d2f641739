use proptest::prelude::*;

use super::*;
use crate::dns::message::{Name, RecordType};

const FIRST: &str = "10.0.0.1:53";
const SECOND: &str = "10.0.0.2:53";

fn asked(servers: &[&str]) -> Exchange {
    let name = Name::from_ascii("Web.Example.").unwrap();
    let servers = servers.iter().map(|server| server.parse().unwrap()).collect();
    Exchange::new(Question::new(name, RecordType::A), servers, 0)
}

/// What makes a false answer of a true one.
type Lie = Box<dyn FnOnce(&mut Message)>;

/// The server's answer to what was sent.
fn reply(send: &Send, change: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut message = Message::from_vec(&send.bytes).unwrap();
    message.metadata.message_type = MessageType::Response;
    message.edns = None;
    change(&mut message);
    message.to_vec().unwrap()
}

fn coded(code: ResponseCode) -> impl FnOnce(&mut Message) {
    move |message| message.metadata.response_code = code
}

fn to(send: &Send) -> String {
    format!("{:?} {}", send.protocol, send.server)
}

fn code(exchange: &Exchange) -> Result<ResponseCode, Failed> {
    exchange.poll_done().expect("it is done").map(|message| message.metadata.response_code)
}

#[test]
fn an_answer_counts_only_with_the_number_and_the_question_that_were_sent() {
    let mut exchange = asked(&[FIRST]);
    let send = exchange.poll_send(0xbeef, 0).unwrap();
    assert_eq!(exchange.poll_send(1, 0), None);
    let other = |text: &str| Name::from_ascii(text).unwrap();
    let lies: [Lie; 7] = [
        Box::new(|message| message.metadata.id = 0xbeee),
        Box::new(|message| message.metadata.message_type = MessageType::Query),
        Box::new(|message| message.metadata.op_code = OpCode::Notify),
        Box::new(move |message| message.queries[0].name = other("evil.example.")),
        Box::new(|message| message.queries[0].query_type = RecordType::AAAA),
        Box::new(|message| message.queries.clear()),
        Box::new(|message| message.queries.push(message.queries[0].clone())),
    ];
    for lie in lies {
        assert!(!exchange.handle_message(&reply(&send, lie)));
        assert!(exchange.poll_done().is_none());
    }
    assert!(exchange.handle_message(&reply(&send, |message| {
        message.queries[0].name = Name::from_ascii("wEB.eXAMPLE.").unwrap();
    })));
    assert_eq!(code(&exchange), Ok(ResponseCode::NoError));
    assert!(!exchange.handle_message(&reply(&send, |_| ())), "only one answer counts");
}

#[test]
fn the_question_says_that_recursion_and_larger_datagrams_are_wanted() {
    let send = asked(&[FIRST]).poll_send(5, 0).unwrap();
    let message = Message::from_vec(&send.bytes).unwrap();
    assert!(message.metadata.recursion_desired && !message.metadata.checking_disabled);
    assert_eq!(message.metadata.id, 5);
    assert!(message.queries[0].name.eq_case(&Name::from_ascii("Web.Example.").unwrap()));
    assert_eq!(message.edns.unwrap().max_payload(), DATAGRAM_MAX as u16);
}

#[test]
fn a_silent_server_makes_room_for_the_next_one_until_the_deadline() {
    let mut exchange = asked(&[FIRST, SECOND]);
    let mut sent = Vec::new();
    let mut now_ms = 0;
    while exchange.poll_done().is_none() {
        if let Some(send) = exchange.poll_send(now_ms as u16, now_ms) {
            sent.push((now_ms, send.server.to_string()));
        }
        now_ms = exchange.poll_timeout().unwrap();
        exchange.handle_timeout(now_ms - 1);
        assert_eq!(exchange.poll_timeout(), Some(now_ms), "not before its time");
        exchange.handle_timeout(now_ms);
    }
    let expected = [(0, FIRST), (TRY_MS, SECOND), (2 * TRY_MS, FIRST)];
    assert_eq!(sent, expected.map(|(at, server)| (at, server.to_owned())));
    assert_eq!(now_ms, DEADLINE_MS);
    assert_eq!(code(&exchange), Err(Failed::NoAnswer));
}

#[test]
fn a_late_answer_to_an_earlier_try_does_not_count() {
    let mut exchange = asked(&[FIRST, SECOND]);
    let first = exchange.poll_send(1, 0).unwrap();
    exchange.handle_timeout(TRY_MS);
    let second = exchange.poll_send(2, TRY_MS).unwrap();
    assert!(!exchange.handle_message(&reply(&first, |_| ())));
    assert!(exchange.handle_message(&reply(&second, |_| ())));
}

#[test]
fn a_cut_answer_is_asked_for_over_tcp_at_the_same_server() {
    let mut exchange = asked(&[FIRST, SECOND]);
    let send = exchange.poll_send(1, 0).unwrap();
    assert!(exchange.handle_message(&reply(&send, |message| message.metadata.truncation = true)));
    let again = exchange.poll_send(2, 1).unwrap();
    assert_eq!(to(&again), format!("Tcp {FIRST}"));
    assert!(exchange.handle_message(&reply(&again, coded(ResponseCode::NXDomain))));
    assert_eq!(code(&exchange), Ok(ResponseCode::NXDomain));
}

#[test]
fn a_connection_that_fails_makes_room_for_the_next_server_over_udp() {
    let mut exchange = asked(&[FIRST, SECOND]);
    let send = exchange.poll_send(1, 0).unwrap();
    exchange.handle_message(&reply(&send, |message| message.metadata.truncation = true));
    exchange.poll_send(2, 1).unwrap();
    exchange.handle_failed();
    assert_eq!(to(&exchange.poll_send(3, 2).unwrap()), format!("Udp {SECOND}"));
}

#[test]
fn a_server_that_fails_is_passed_over_and_its_code_counts_when_none_does_better() {
    for bad in [ResponseCode::ServFail, ResponseCode::Refused] {
        let mut exchange = asked(&[FIRST, SECOND]);
        let send = exchange.poll_send(1, 0).unwrap();
        assert!(exchange.handle_message(&reply(&send, coded(bad))));
        let send = exchange.poll_send(2, 0).unwrap();
        assert_eq!(to(&send), format!("Udp {SECOND}"));
        assert!(exchange.handle_message(&reply(&send, coded(bad))));
        assert_eq!(code(&exchange), Ok(bad));
    }
    let mut exchange = asked(&[FIRST, SECOND]);
    let send = exchange.poll_send(1, 0).unwrap();
    exchange.handle_message(&reply(&send, coded(ResponseCode::Refused)));
    exchange.poll_send(2, 0).unwrap();
    exchange.handle_timeout(DEADLINE_MS);
    assert_eq!(code(&exchange), Ok(ResponseCode::Refused), "better than no answer");
}

#[test]
fn a_server_that_does_not_know_edns_is_asked_once_more_without() {
    let mut exchange = asked(&[FIRST]);
    let send = exchange.poll_send(1, 0).unwrap();
    let short = |message: &mut Message| {
        message.queries.clear();
        message.metadata.response_code = ResponseCode::FormErr;
    };
    assert!(exchange.handle_message(&reply(&send, short)));
    let send = exchange.poll_send(2, 0).unwrap();
    assert_eq!((to(&send), Message::from_vec(&send.bytes).unwrap().edns), (format!("Udp {FIRST}"), None));
    assert!(exchange.handle_message(&reply(&send, coded(ResponseCode::FormErr))));
    assert_eq!(code(&exchange), Ok(ResponseCode::FormErr));
}

#[test]
fn an_answer_that_cannot_be_read_is_a_failure_of_its_server() {
    let mut exchange = asked(&[FIRST, SECOND]);
    let send = exchange.poll_send(1, 0).unwrap();
    assert!(exchange.handle_message(&send.bytes[..8]));
    assert_eq!(exchange.poll_send(2, 0).unwrap().server.to_string(), SECOND);
}

#[test]
fn sockets_that_fail_at_once_do_not_try_for_ever() {
    let mut exchange = asked(&[FIRST, SECOND]);
    let mut tries = 0;
    while exchange.poll_send(1, 0).is_some() {
        tries += 1;
        exchange.handle_failed();
    }
    assert_eq!((tries, code(&exchange)), (4, Err(Failed::NoAnswer)));
    assert_eq!(code(&asked(&[])), Err(Failed::NoServer));
}

proptest! {
    #[test]
    fn whatever_happens_an_exchange_ends_by_its_deadline(
        events in prop::collection::vec((0..6_u8, any::<u16>(), prop::collection::vec(any::<u8>(), 0..40)), 0..60),
    ) {
        let mut exchange = asked(&[FIRST, SECOND]);
        let (mut now_ms, mut last) = (0, None);
        for (kind, number, bytes) in events {
            let send = exchange.poll_send(number, now_ms);
            last = send.or(last);
            prop_assert!(exchange.poll_timeout().is_some() != exchange.poll_done().is_some());
            match (kind, &last) {
                (0, _) => exchange.handle_failed(),
                (1, _) => drop(exchange.handle_message(&bytes)),
                (2, Some(send)) => drop(exchange.handle_message(&reply(send, |message| message.metadata.truncation = true))),
                (3, Some(send)) => drop(exchange.handle_message(&reply(send, coded(ResponseCode::ServFail)))),
                (4, Some(send)) => drop(exchange.handle_message(&[&send.bytes[..2], &bytes[..]].concat())),
                _ => {
                    now_ms += u64::from(number % 1_000);
                    exchange.handle_timeout(now_ms);
                }
            }
        }
        exchange.poll_send(1, now_ms);
        exchange.handle_timeout(now_ms.max(DEADLINE_MS));
        prop_assert!(exchange.poll_done().is_some());
    }
}
