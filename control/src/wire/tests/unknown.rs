//! Parts of a policy that are not known here.

use halo_core::id::Identity;
use halo_core::policy::{Match, Policy};
use halo_core::rbac::{self, Verdict};
use halo_core::snapshot::Snapshot;
use halo_core::workload::Workload;
use proptest::prelude::*;
use prost::Message;

use super::arbitrary;
use crate::proto::security as raw;
use crate::wire::{Interner, PolicyRead, decode_policy, encode_policy};

/// Field 40, a number.
const NUMBER: &[u8] = &[0xc0, 0x02, 0x07];
/// Field 41, bytes.
const TEXT: &[u8] = &[0xca, 0x02, 0x02, b'h', b'i'];
/// Field 42, eight bytes.
const FIXED: &[u8] = &[0xd1, 0x02, 0, 0, 0, 0, 0, 0, 0, 0];
/// Field 43, a group with field 1 in it.
const GROUP: &[u8] = &[0xdb, 0x02, 0x08, 0x01, 0xdc, 0x02];

/// A field that holds a message.
fn holding(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    prost::encode_length_delimiter(content.len(), &mut bytes).unwrap();
    bytes.extend_from_slice(content);
    bytes
}

fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn read(bytes: &[u8]) -> PolicyRead {
    decode_policy(bytes, &mut Interner::default()).unwrap()
}

/// For each rule and clause whether its matches are marked.
fn marks(read: &PolicyRead) -> Vec<Vec<Vec<bool>>> {
    let clause = |clause: &Vec<Match>| clause.iter().map(|one| one.unintelligible).collect();
    read.policy.rules.iter().map(|rule| rule.iter().map(clause).collect()).collect()
}

#[test]
fn an_unknown_field_marks_all_that_the_message_around_it_holds() {
    let port = raw::Match { destination_ports: vec![80], ..Default::default() }.encode_to_vec();
    let one = holding(2, &port);
    let clause = holding(1, &joined(&[&one, &one]));
    let rule = holding(5, &joined(&[&clause, &clause]));
    let name = holding(1, b"p");
    for unknown in [NUMBER, TEXT, FIXED, GROUP] {
        let bad_one = holding(2, &joined(&[&port, unknown]));
        let in_match = holding(5, &holding(1, &joined(&[&one, &bad_one])));
        let in_clause = holding(5, &joined(&[&clause, &holding(1, &joined(&[unknown, &one]))]));
        let in_rule = holding(5, &joined(&[&clause, unknown]));
        let plain = vec![vec![false; 2]; 2];
        for (bytes, marked, place) in [
            (joined(&[&rule, &in_match]), vec![vec![false, true]], "rules[1].clauses[0].matches[1]"),
            (joined(&[&rule, &in_clause]), vec![vec![false; 2], vec![true]], "rules[1].clauses[1]"),
            (joined(&[&rule, &in_rule]), vec![vec![true; 2]], "rules[1]"),
        ] {
            let read = read(&joined(&[&name, &bytes]));
            assert_eq!(marks(&read), [plain.clone(), marked]);
            assert_eq!(read.not_understood.len(), 1);
            let text = &read.not_understood[0];
            assert!(text.starts_with(&format!("{place} has the unknown field 4")), "{text}");
        }
        let in_policy = read(&joined(&[&name, unknown, &rule]));
        assert_eq!(marks(&in_policy), [vec![vec![true; 2]; 2]]);
        assert!(in_policy.not_understood[0].starts_with("the policy has the unknown field 4"));
    }
}

#[test]
fn what_holds_nothing_is_marked_by_a_match_of_its_own() {
    let empty_clause = holding(1, &[]);
    for (bytes, expected) in [
        (NUMBER.to_vec(), vec![vec![vec![true]]]),
        (holding(5, NUMBER), vec![vec![vec![true]]]),
        (holding(5, &holding(1, NUMBER)), vec![vec![vec![true]]]),
        (holding(5, &joined(&[&empty_clause, NUMBER])), vec![vec![vec![true]]]),
        (holding(5, &empty_clause), vec![vec![vec![]]]),
    ] {
        assert_eq!(marks(&read(&bytes)), expected, "{bytes:?}");
    }
}

#[test]
fn an_unknown_part_of_a_value_marks_its_match() {
    for (kind, value) in [
        (1, joined(&[&holding(1, b"web"), NUMBER])),
        (4, joined(&[&holding(2, b"web"), TEXT])),
        (3, holding(9, b"regex")),
        (3, holding(4, NUMBER)),
        (5, joined(&[&holding(1, &[10, 0, 0, 0]), &[0x10, 8], FIXED])),
        (12, joined(&[&holding(1, b"web"), NUMBER])),
    ] {
        let bytes = holding(5, &holding(1, &holding(2, &holding(kind, &value))));
        let read = read(&bytes);
        assert_eq!(marks(&read), [[[true]]], "{kind}");
        assert!(read.not_understood[0].starts_with("rules[0].clauses[0].matches[0]."));
    }
}

#[test]
fn fields_that_say_nothing_to_a_node_are_known() {
    let extension = holding(7, b"\x0a\x01x");
    let in_match = holding(13, b"\x0a\x01x");
    let bytes = joined(&[&extension, &holding(5, &holding(1, &holding(2, &in_match)))]);
    let read = read(&bytes);
    assert_eq!((marks(&read), read.not_understood.len()), (vec![vec![vec![false]]], 0));
}

#[test]
fn a_value_that_cannot_be_read_is_told_with_its_place() {
    let address = raw::Address { address: vec![10, 0].into(), length: 8 };
    let one = raw::Match {
        source_ips: vec![address],
        destination_ports: vec![65536],
        principals: vec![raw::StringMatch { match_type: None }],
        ..Default::default()
    };
    let clause = raw::Clause { matches: vec![raw::Match::default(), one] };
    let rules = vec![raw::Rule { clauses: vec![clause] }];
    let read = read(&raw::Authorization { rules, ..Default::default() }.encode_to_vec());
    assert_eq!(
        read.not_understood,
        [
            "rules[0].clauses[0].matches[1].principals: a comparison of no known kind",
            "rules[0].clauses[0].matches[1].source_ips: a range is 2 bytes, [0a, 00]; expected an address of 4 or 16 bytes",
            "rules[0].clauses[0].matches[1].destination_ports: a port is 65536; expected a port up to 65535",
        ]
    );
}

#[test]
fn only_the_first_few_are_told_and_all_are_marked() {
    let bad = holding(2, NUMBER);
    let clause: Vec<u8> = std::iter::repeat_n(bad, 50).flatten().collect();
    let read = read(&holding(5, &holding(1, &clause)));
    assert_eq!(marks(&read), [[[true; 50]]]);
    assert_eq!(read.not_understood.len(), 5);
}

/// Whether a policy alone admits a connection.
fn admits(policy: Policy, identity: &Identity) -> bool {
    let workload = Workload { namespace: policy.namespace.clone(), ..Workload::default() };
    let named = [policy.key()].into();
    let workload = Workload { authorization_policies: named, ..workload };
    let mut snapshot = Snapshot::default();
    snapshot.policies.insert(std::sync::Arc::new(policy));
    let connection = rbac::Connection {
        source: "10.0.0.1:40000".parse().unwrap(),
        identity: Some(identity),
        destination: "10.0.0.2:80".parse().unwrap(),
        workload: &workload,
    };
    matches!(rbac::check(&snapshot, &connection), Verdict::Allow { .. })
}

/// A policy's bytes with an unknown field after all that the message at `place` has.
fn with_unknown(policy: &raw::Authorization, place: &[usize]) -> Vec<u8> {
    let after = |own: &[usize]| if own == place { NUMBER } else { &[] };
    let mut bytes = raw::Authorization { rules: vec![], ..policy.clone() }.encode_to_vec();
    for (r, rule) in policy.rules.iter().enumerate() {
        let mut in_rule = vec![];
        for (c, clause) in rule.clauses.iter().enumerate() {
            let mut in_clause = vec![];
            for (m, one) in clause.matches.iter().enumerate() {
                in_clause.extend(holding(2, &joined(&[&one.encode_to_vec(), after(&[r, c, m])])));
            }
            in_rule.extend(holding(1, &joined(&[&in_clause, after(&[r, c])])));
        }
        bytes.extend(holding(5, &joined(&[&in_rule, after(&[r])])));
    }
    bytes.extend(after(&[]));
    bytes
}

proptest! {
    #[test]
    fn what_is_written_here_is_known_here(mut policy in arbitrary::policy()) {
        policy.rules.iter_mut().flatten().flatten().for_each(|one| one.unintelligible = false);
        prop_assert_eq!(read(&encode_policy(&policy)), PolicyRead { policy, not_understood: vec![] });
    }

    #[test]
    fn an_unknown_field_never_admits_what_was_refused(
        policy in arbitrary::policy(),
        place in proptest::collection::vec(0usize..2, 0..4),
    ) {
        let policy = Policy { dry_run: false, ..policy };
        let message = raw::Authorization::decode(&encode_policy(&policy)[..]).unwrap();
        let bytes = with_unknown(&message, &place);
        let found = read(&bytes);
        let identity = Identity::new("td", "web", "front");
        let (before, after) = (admits(policy.clone(), &identity), admits(found.policy.clone(), &identity));
        prop_assert!(before || !after, "{found:?}");
        let there = with_unknown(&message, &[9]) != bytes;
        prop_assert_eq!(there, !found.not_understood.is_empty() && found.policy.is_not_understood()
            && found.not_understood.iter().any(|text| text.ends_with("has the unknown field 40")));
        if there && place.is_empty() {
            // Not a single connection is understood any more.
            prop_assert!(!after);
        }
        if there && place.len() == 3 {
            prop_assert!(found.policy.rules[place[0]][place[1]][place[2]].unintelligible);
        }
    }
}
