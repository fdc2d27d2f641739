use std::net::Ipv4Addr;

use hickory_proto::rr::rdata::{A, TXT};
use proptest::prelude::*;

use super::*;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

/// A query as a client writes it.
fn wire(host: &str, change: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries = vec![Wire::query(name(host), RecordType::A)];
    change(&mut message);
    message.to_vec().unwrap()
}

fn refused(bytes: &[u8]) -> (u16, ResponseCode, MessageType) {
    let Err(Refused::With(answer)) = Query::read(bytes) else { panic!("not refused") };
    let answer = Message::from_vec(&answer).unwrap();
    (answer.metadata.id, answer.metadata.response_code, answer.metadata.message_type)
}

fn addresses(host: &str, count: u32) -> Vec<Record> {
    let one = |number: u32| RData::A(A(Ipv4Addr::from(0x0a00_0000 + number)));
    (0..count).map(|number| Record::from_rdata(name(host), 30, one(number))).collect()
}

#[test]
fn what_is_no_query_of_one_question_is_refused_with_the_code_that_says_why() {
    let response = MessageType::Response;
    for (bytes, code) in [
        (wire("a.", |message| message.metadata.op_code = OpCode::Update), ResponseCode::NotImp),
        (wire("a.", |message| message.metadata.op_code = OpCode::Notify), ResponseCode::NotImp),
        (wire("a.", |message| message.metadata.message_type = response), ResponseCode::FormErr),
        (wire("a.", |message| message.queries.clear()), ResponseCode::FormErr),
        (
            wire("a.", |message| message.queries = vec![Wire::query(name("b."), RecordType::A); 2]),
            ResponseCode::FormErr,
        ),
        (wire("a.", |_| ())[..15].to_vec(), ResponseCode::FormErr),
    ] {
        assert_eq!(refused(&bytes), (7, code, response));
    }
    assert_eq!(Query::read(&wire("a.", |_| ())[..11]), Err(Refused::Silently));
    assert_eq!(Query::read(&[]), Err(Refused::Silently));
}

#[test]
fn a_reply_echoes_the_question_in_its_own_case_and_what_the_client_said_of_itself() {
    let bytes = wire("WeB.Shop.", |message| {
        let mut edns = Edns::new();
        edns.set_max_payload(100).set_dnssec_ok(true);
        message.edns = Some(edns);
        message.metadata.checking_disabled = true;
    });
    let query = Query::read(&bytes).unwrap();
    assert_eq!(query.extension, Some(Extension { payload: 512, version: 0, dnssec: true }));
    assert!(query.question.dnssec && query.question.unchecked && query.question.recursion);
    let reply = Reply::own(addresses("WeB.Shop.", 2), vec![]).write(&query, Protocol::Udp).unwrap();
    let reply = Message::from_vec(&reply).unwrap();
    let head = reply.metadata;
    assert_eq!((head.id, head.response_code), (7, ResponseCode::NoError));
    assert!(head.authoritative && head.recursion_available && head.recursion_desired && !head.truncation);
    assert!(
        reply.queries[0].name.eq_case(&name("WeB.Shop."))
            && reply.answers[0].name.eq_case(&name("WeB.Shop."))
    );
    let edns = reply.edns.unwrap();
    assert_eq!((edns.max_payload(), edns.version(), edns.flags().dnssec_ok), (512, 0, true));
    let plain = Query::read(&wire("a.", |_| ())).unwrap();
    let reply = Reply::own(vec![], vec![]).write(&plain, Protocol::Udp).unwrap();
    assert_eq!(Message::from_vec(&reply).unwrap().edns, None);
}

#[test]
fn a_forwarded_reply_is_not_ours_and_keeps_code_sections_and_the_clients_case() {
    let query = Query::read(&wire("WeB.", |_| ())).unwrap();
    let mut message = Message::new(99, MessageType::Response, OpCode::Query);
    message.metadata.authoritative = true;
    message.metadata.response_code = ResponseCode::NXDomain;
    message.metadata.authentic_data = true;
    message.answers = addresses("web.", 1);
    message.additionals = addresses("other.", 1);
    let reply = Reply::forwarded(message, &query.question).write(&query, Protocol::Udp).unwrap();
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!((reply.metadata.id, reply.metadata.response_code), (7, ResponseCode::NXDomain));
    assert!(
        !reply.metadata.authoritative && reply.metadata.authentic_data && reply.metadata.recursion_available
    );
    assert!(reply.answers[0].name.eq_case(&name("WeB.")));
    assert_eq!(reply.additionals.len(), 1);
}

#[test]
fn what_does_not_fit_a_datagram_is_cut_and_marked_and_comes_whole_over_tcp() {
    let query = Query::read(&wire("web.", |_| ())).unwrap();
    let reply = Reply::own(addresses("web.", 100), addresses("x.", 5));
    let datagram = reply.clone().write(&query, Protocol::Udp).unwrap();
    assert!(datagram.len() <= DATAGRAM_MIN);
    let cut = Message::from_vec(&datagram).unwrap();
    assert!(cut.metadata.truncation && !cut.answers.is_empty() && cut.answers.len() < 100);
    let whole = Message::from_vec(&reply.write(&query, Protocol::Tcp).unwrap()).unwrap();
    assert!(!whole.metadata.truncation);
    assert_eq!((whole.answers.len(), whole.additionals.len()), (100, 5));
}

#[test]
fn additional_records_are_left_out_before_anything_is_marked_as_cut() {
    let query = Query::read(&wire("web.", |_| ())).unwrap();
    let reply = Reply::own(addresses("web.", 20), addresses("x.", 20));
    let bytes = reply.write(&query, Protocol::Udp).unwrap();
    let reply = Message::from_vec(&bytes).unwrap();
    assert!(!reply.metadata.truncation);
    assert_eq!((reply.answers.len(), reply.additionals.len()), (20, 0));
}

#[test]
fn a_client_is_believed_its_payload_size_up_to_what_packets_carry() {
    let sized = |payload| {
        let bytes = wire("a.", |message| {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            message.edns = Some(edns);
        });
        Query::read(&bytes).unwrap().reply_max(Protocol::Udp)
    };
    assert_eq!([sized(0), sized(700), sized(65_535)], [512, 700, DATAGRAM_MAX]);
}

#[test]
fn a_record_too_large_for_any_datagram_leaves_an_empty_reply_that_is_marked() {
    let query = Query::read(&wire("web.", |_| ())).unwrap();
    let text = TXT::new(vec!["x".repeat(250); 10]);
    let answers = vec![Record::from_rdata(name("web."), 30, RData::TXT(text))];
    let bytes = Reply::own(answers, vec![]).write(&query, Protocol::Udp).unwrap();
    let reply = Message::from_vec(&bytes).unwrap();
    assert!(reply.metadata.truncation && reply.answers.is_empty());
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_read_or_refused_and_what_was_read_can_be_answered(
        bytes in prop::collection::vec(any::<u8>(), 0..80),
        head in any::<bool>(),
    ) {
        // Half of them with a head that promises one question.
        let mut bytes = bytes;
        if head && bytes.len() >= 12 {
            bytes[2] &= 0x07;
            bytes[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        }
        match Query::read(&bytes) {
            Ok(query) => {
                for protocol in [Protocol::Udp, Protocol::Tcp] {
                    let written = Reply::empty(ResponseCode::ServFail).write(&query, protocol);
                    prop_assert!(written.is_some_and(|reply| reply.len() <= query.reply_max(protocol)));
                }
            }
            Err(Refused::With(answer)) => prop_assert_eq!(&answer[..2], &bytes[..2]),
            Err(Refused::Silently) => prop_assert!(bytes.len() < 12),
        }
    }
}
