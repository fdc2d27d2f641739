use std::net::Ipv4Addr;

use hickory_proto::op::{MessageType, OpCode};
use hickory_proto::rr::Name;
use hickory_proto::rr::rdata::{A, CNAME, SOA};

use super::*;

const ENTRIES_MAX: usize = 100;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn question(host: &str) -> Question {
    Question::new(name(host), RecordType::A)
}

fn message(code: ResponseCode) -> Message {
    let mut message = Message::new(1, MessageType::Response, OpCode::Query);
    message.metadata.response_code = code;
    message
}

fn address(host: &str, ttl_s: u32) -> Record {
    Record::from_rdata(name(host), ttl_s, RData::A(A(Ipv4Addr::LOCALHOST)))
}

fn zone(ttl_s: u32, minimum_s: u32) -> Record {
    let data = SOA::new(name("ns."), name("admin."), 1, 1, 1, 1, minimum_s);
    Record::from_rdata(name("zone."), ttl_s, RData::SOA(data))
}

fn with(records: &[Record]) -> Message {
    let mut message = message(ResponseCode::NoError);
    message.answers = records.to_vec();
    message
}

#[test]
fn an_answer_lives_as_long_as_its_shortest_record_and_grows_old() {
    let mut cache = Cache::default();
    cache.insert(&question("Web."), &with(&[address("web.", 60), address("web.", 10)]), 1_000, ENTRIES_MAX);
    let found = cache.get(&question("wEB."), 4_999).unwrap();
    assert_eq!(found.answers.iter().map(|record| record.ttl).collect::<Vec<_>>(), [57, 7]);
    assert!(cache.get(&question("web."), 10_999).is_some());
    assert!(cache.get(&question("web."), 11_000).is_none());
    let other = Question { dnssec: true, ..question("web.") };
    assert!(cache.get(&other, 1_000).is_none(), "another question");
    cache.handle_timeout(11_000);
    assert!(cache.is_empty());
}

#[test]
fn nothing_is_remembered_for_as_long_as_the_zone_says() {
    for (ttl_s, minimum_s, life_s) in [(30, 5, 5), (5, 30, 5), (90_000, 90_000, NOTHING_S_MAX)] {
        for code in [ResponseCode::NXDomain, ResponseCode::NoError] {
            let mut cache = Cache::default();
            let mut answer = message(code);
            answer.authorities = vec![zone(ttl_s, minimum_s)];
            cache.insert(&question("no."), &answer, 0, ENTRIES_MAX);
            let end_ms = u64::from(life_s) * 1000;
            assert_eq!(cache.get(&question("no."), end_ms - 1).unwrap().metadata.response_code, code);
            assert!(cache.get(&question("no."), end_ms).is_none());
        }
    }
}

#[test]
fn an_alias_that_leads_to_nothing_counts_as_nothing() {
    let alias = Record::from_rdata(name("web."), 60, RData::CNAME(CNAME(name("gone."))));
    let mut answer = with(&[alias]);
    let mut cache = Cache::default();
    cache.insert(&question("web."), &answer, 0, ENTRIES_MAX);
    assert!(cache.is_empty(), "the zone does not say for how long");
    answer.authorities = vec![zone(20, 20)];
    cache.insert(&question("web."), &answer, 0, ENTRIES_MAX);
    assert!(cache.get(&question("web."), 19_999).is_some() && cache.get(&question("web."), 20_000).is_none());
}

#[test]
fn failures_cut_answers_and_those_that_end_at_once_are_not_kept() {
    let mut cache = Cache::default();
    for code in [ResponseCode::ServFail, ResponseCode::Refused] {
        let mut answer = message(code);
        answer.answers = vec![address("web.", 60)];
        cache.insert(&question("web."), &answer, 0, ENTRIES_MAX);
    }
    cache.insert(&question("web."), &with(&[address("web.", 0)]), 0, ENTRIES_MAX);
    cache.insert(&question("web."), &message(ResponseCode::NXDomain), 0, ENTRIES_MAX);
    let mut cut = with(&[address("web.", 60)]);
    cut.metadata.truncation = true;
    cache.insert(&question("web."), &cut, 0, ENTRIES_MAX);
    let large: Vec<_> = (0..300).map(|_| address("web.", 60)).collect();
    cache.insert(&question("web."), &with(&large), 0, ENTRIES_MAX);
    assert!(cache.is_empty());
}

#[test]
fn a_full_cache_forgets_what_would_end_first_and_a_new_answer_replaces_the_old() {
    let mut cache = Cache::default();
    cache.insert(&question("soon."), &with(&[address("soon.", 5)]), 0, ENTRIES_MAX);
    for number in 0..ENTRIES_MAX {
        let host = format!("h{number}.");
        cache.insert(&question(&host), &with(&[address(&host, 60)]), 0, ENTRIES_MAX);
        cache.insert(&question(&host), &with(&[address(&host, 50)]), 0, ENTRIES_MAX);
    }
    assert_eq!(cache.len(), ENTRIES_MAX);
    assert!(cache.get(&question("soon."), 0).is_none());
    assert_eq!(cache.get(&question("h7."), 0).unwrap().answers[0].ttl, 50);
}

#[test]
fn a_bound_that_has_shrunk_is_kept_to_and_none_at_all_keeps_nothing() {
    let mut cache = Cache::default();
    for number in 0..10 {
        let host = format!("h{number}.");
        cache.insert(&question(&host), &with(&[address(&host, 60 + number)]), 0, ENTRIES_MAX);
    }
    cache.insert(&question("new."), &with(&[address("new.", 60)]), 0, 3);
    assert_eq!(cache.len(), 3);
    assert!(cache.get(&question("new."), 0).is_some() && cache.get(&question("h9."), 0).is_some());
    cache.insert(&question("more."), &with(&[address("more.", 60)]), 0, 0);
    assert!(cache.is_empty());
}

#[test]
fn what_has_ended_goes_before_what_is_still_good() {
    let mut cache = Cache::default();
    cache.insert(&question("soon."), &with(&[address("soon.", 5)]), 0, ENTRIES_MAX);
    cache.insert(&question("late."), &with(&[address("late.", 60)]), 0, ENTRIES_MAX);
    cache.insert(&question("next."), &message(ResponseCode::ServFail), 5_000, ENTRIES_MAX);
    assert_eq!(cache.len(), 1, "also when nothing is kept");
}
