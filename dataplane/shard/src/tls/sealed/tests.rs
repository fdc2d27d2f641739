//! Rules of our own record layer that take crafted records to see. The peer's side is crafted with the same keys.

use proptest::prelude::*;

use super::*;
use crate::tls::tests::pair::{carry, connected, open_all};
use crate::tls::{AnyRecords, RecordsKind};

fn pair() -> (Sealed, Sealed) {
    match connected(RecordsKind::Sealed, RecordsKind::Sealed) {
        (AnyRecords::Sealed(client), AnyRecords::Sealed(server)) => (client, server),
        _ => panic!("not sealed"),
    }
}

fn record(from: &mut Sealed, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    from.send.seal(kind, content.len(), &mut wire, |out| out.extend_from_slice(content)).unwrap();
    wire
}

fn refused(to: &mut Sealed, mut wire: Vec<u8>) -> AlertDescription {
    match open_all(to, &mut wire) {
        Err(TlsError::PeerProtocol(alert)) => alert,
        other => panic!("{other:?}"),
    }
}

#[test]
fn padding_is_stripped() {
    let (mut client, mut server) = pair();
    // Seen from outside, padding is content that ends in zeros with the real type before them.
    let mut wire = record(&mut client, 0, &[b"data".as_slice(), &[APPLICATION_DATA], &[0; 100]].concat());
    assert_eq!(open_all(&mut server, &mut wire).unwrap(), (b"data".to_vec(), false));
    let wire = record(&mut client, 0, &[0; 50]);
    assert_eq!(refused(&mut server, wire), AlertDescription::UnexpectedMessage);
}

#[test]
fn the_largest_record_is_accepted_and_one_byte_more_is_not() {
    let (mut client, mut server) = pair();
    let mut content = vec![1; RECORD_PLAINTEXT_MAX];
    let mut wire = record(&mut client, APPLICATION_DATA, &content);
    assert_eq!(open_all(&mut server, &mut wire).unwrap().0.len(), RECORD_PLAINTEXT_MAX);
    content.push(APPLICATION_DATA);
    // 16 384 bytes, a type and one zero of padding.
    let header = [APPLICATION_DATA, 3, 3, 0x40, 0x12];
    let mut body = [&content[..], &[0]].concat();
    let nonce = client.send.nonce().unwrap();
    let tag = client.send.key.seal_in_place_separate_tag(nonce, Aad::from(header), &mut body).unwrap();
    let wire = [&header[..], &body, tag.as_ref()].concat();
    assert_eq!(refused(&mut server, wire), AlertDescription::RecordOverflow);
}

#[test]
fn a_record_too_short_for_a_tag_is_refused() {
    let (_, mut server) = pair();
    let wire = [&[APPLICATION_DATA, 3, 3, 0, 16][..], &[0; 16]].concat();
    assert_eq!(refused(&mut server, wire), AlertDescription::BadRecordMac);
}

#[test]
fn empty_records_are_accepted_up_to_a_bound_in_a_row() {
    let (mut client, mut server) = pair();
    for _ in 0..3 {
        for _ in 0..QUIET_RECORDS_MAX {
            let mut wire = record(&mut client, APPLICATION_DATA, b"");
            assert_eq!(open_all(&mut server, &mut wire).unwrap(), (Vec::new(), false));
        }
        carry(&mut client, &mut server, b"data resets the count");
    }
    for _ in 0..QUIET_RECORDS_MAX {
        open_all(&mut server, &mut record(&mut client, APPLICATION_DATA, b"")).unwrap();
    }
    let wire = record(&mut client, APPLICATION_DATA, b"");
    assert_eq!(refused(&mut server, wire), AlertDescription::UnexpectedMessage);
}

#[test]
fn key_updates_are_bounded_in_a_row() {
    let (mut client, mut server) = pair();
    for _ in 0..QUIET_RECORDS_MAX {
        let mut wire = Vec::new();
        client.update(&mut wire).unwrap();
        open_all(&mut server, &mut wire).unwrap();
    }
    let mut wire = Vec::new();
    client.update(&mut wire).unwrap();
    assert_eq!(refused(&mut server, wire), AlertDescription::UnexpectedMessage);
}

#[test]
fn a_requested_key_update_is_answered_once_and_before_the_next_data() {
    for through_seal in [true, false] {
        let (mut client, mut server) = pair();
        for _ in 0..3 {
            let mut wire = record(&mut client, HANDSHAKE, &key_update(true));
            client.send = client.schedule.next_send().unwrap();
            open_all(&mut server, &mut wire).unwrap();
        }
        let mut wire = Vec::new();
        if through_seal {
            server.seal(&[b"data"], &mut wire).unwrap();
            assert_eq!(wire.len(), 2 * OVERHEAD + 5 + 4);
        } else {
            server.take_output(&mut wire).unwrap();
            server.take_output(&mut wire).unwrap();
            assert_eq!(wire.len(), OVERHEAD + 5);
        }
        open_all(&mut client, &mut wire).unwrap();
        assert!(!client.answer_due, "an answer asks for nothing");
        carry(&mut server, &mut client, b"under the new key");
        carry(&mut client, &mut server, b"under the new key");
    }
}

#[test]
fn an_unrequested_key_update_is_not_answered() {
    let (mut client, mut server) = pair();
    let mut wire = Vec::new();
    client.update(&mut wire).unwrap();
    open_all(&mut server, &mut wire).unwrap();
    server.take_output(&mut wire).unwrap();
    assert!(wire.is_empty());
    carry(&mut client, &mut server, b"under the new key");
}

#[test]
fn a_key_is_changed_before_it_has_sealed_the_limit() {
    let (mut client, mut server) = pair();
    client.records_max = 10;
    for _ in 0..100 {
        carry(&mut client, &mut server, &[3; 40_000]);
        assert!(client.send.sequence < client.records_max);
    }
}

#[test]
fn a_peer_that_has_used_its_key_up_is_asked_once_to_change_it() {
    let (mut client, mut server) = pair();
    server.records_max = 8;
    let mut asked = Vec::new();
    for _ in 0..8 {
        server.take_output(&mut asked).unwrap();
        assert!(asked.is_empty());
        carry(&mut client, &mut server, b"data");
    }
    server.take_output(&mut asked).unwrap();
    assert_eq!(asked.len(), OVERHEAD + 5);
    let mut again = Vec::new();
    server.take_output(&mut again).unwrap();
    assert!(again.is_empty());
    open_all(&mut client, &mut asked).unwrap();
    carry(&mut client, &mut server, b"under a new key");
    assert!(server.receive.sequence < server.records_max);
    assert!(!server.asked);
}

#[test]
fn a_message_split_over_records_must_not_be_interrupted() {
    let (mut client, mut server) = pair();
    let message = key_update(false);
    let mut wire = record(&mut client, HANDSHAKE, &message[..2]);
    wire.extend(record(&mut client, HANDSHAKE, &message[2..]));
    client.send = client.schedule.next_send().unwrap();
    open_all(&mut server, &mut wire).unwrap();
    carry(&mut client, &mut server, b"under the new key");
    let mut wire = record(&mut client, HANDSHAKE, &message[..2]);
    wire.extend(record(&mut client, APPLICATION_DATA, b"data"));
    assert_eq!(refused(&mut server, wire), AlertDescription::UnexpectedMessage);
}

#[test]
fn rustls_reads_a_key_update_split_over_records() {
    let (client, mut server) = connected(RecordsKind::Sealed, RecordsKind::Rustls);
    let AnyRecords::Sealed(mut client) = client else { panic!("not sealed") };
    let message = key_update(true);
    for piece in [&message[..1], &message[1..3], &message[3..]] {
        open_all(&mut server, &mut record(&mut client, HANDSHAKE, piece)).unwrap();
        let mut wire = Vec::new();
        server.seal(&[b"between the pieces"], &mut wire).unwrap();
        open_all(&mut client, &mut wire).unwrap();
    }
    client.send = client.schedule.next_send().unwrap();
    carry(&mut client, &mut server, b"under the new key");
    carry(&mut server, &mut client, b"the answer comes before this");
}

#[test]
fn a_server_refuses_a_ticket_and_a_client_ignores_it() {
    let ticket = [4, 0, 0, 2, 1, 1];
    let (mut client, mut server) = pair();
    open_all(&mut client, &mut record(&mut server, HANDSHAKE, &ticket)).unwrap();
    let wire = record(&mut client, HANDSHAKE, &ticket);
    assert_eq!(refused(&mut server, wire), AlertDescription::UnexpectedMessage);
}

#[test]
fn alerts_keep_their_rules() {
    let (mut client, mut server) = pair();
    let cancelled = [LEVEL_WARNING, u8::from(AlertDescription::UserCanceled)];
    open_all(&mut server, &mut record(&mut client, ALERT, &cancelled)).unwrap();
    // The level is ignored: an error alert of level warning ends the connection.
    let mut wire = record(&mut client, ALERT, &[LEVEL_WARNING, 47]);
    let error = TlsError::PeerAlert(AlertDescription::IllegalParameter);
    assert_eq!(open_all(&mut server, &mut wire), Err(error));
    for content in [&[][..], &[2], &[2, 40, 2, 40]] {
        let (mut client, mut server) = pair();
        let wire = record(&mut client, ALERT, content);
        assert_eq!(refused(&mut server, wire), AlertDescription::DecodeError);
    }
}

#[test]
fn an_unknown_content_type_is_refused() {
    for kind in [1, 20, 24, 255] {
        let (mut client, mut server) = pair();
        let wire = record(&mut client, kind, b"data");
        assert_eq!(refused(&mut server, wire), AlertDescription::UnexpectedMessage);
    }
}

/// A record as a peer may craft it: type, content, and whether the sender changes its key behind it.
type Crafted = (u8, Vec<u8>, bool);

/// One handshake message, or several that share a record, whole or cut in two with or without data between.
fn crafted_handshake() -> impl Strategy<Value = Vec<Crafted>> {
    // Lifetime, age, nonce, ticket, no extensions: rustls reads what we skip.
    let ticket = vec![4, 0, 0, 16, 0, 0, 0, 60, 1, 2, 3, 4, 1, 0, 0, 2, 7, 7, 0, 0];
    let message = prop_oneof![
        4 => Just((key_update(false).to_vec(), true)),
        4 => Just((key_update(true).to_vec(), true)),
        4 => Just(([&ticket[..], &key_update(false)].concat(), true)),
        4 => Just(([&ticket[..], &ticket].concat(), false)),
        4 => Just((ticket, false)),
        1 => Just(([key_update(true), key_update(true)].concat(), true)),
        1 => Just((vec![24, 0, 0, 1, 2], true)),
        1 => (5u8..).prop_map(|kind| (vec![kind, 0, 0, 0], false)),
    ];
    let cut = prop_oneof![2 => Just(None), 1 => any::<prop::sample::Index>().prop_map(Some)];
    (message, cut, prop::bool::weighted(0.1)).prop_map(|((content, rekey), cut, interrupt)| {
        let at = cut.map_or(0, |cut| cut.index(content.len()));
        let mut records = vec![(HANDSHAKE, content[at..].to_vec(), rekey)];
        if interrupt {
            records.insert(0, (APPLICATION_DATA, b"data".to_vec(), false));
        }
        // A lone type that begins no message is refused by us at once and by rustls once the message is whole.
        if at > 0 && matches!(content[0], 4 | 24) {
            records.insert(0, (HANDSHAKE, content[..at].to_vec(), false));
        } else {
            records = vec![(HANDSHAKE, content, rekey)];
        }
        records
    })
}

fn crafted() -> impl Strategy<Value = Vec<Crafted>> {
    let alert = prop_oneof![
        Just(vec![LEVEL_WARNING, 0]),
        Just(vec![LEVEL_WARNING, 90]),
        prop::collection::vec(any::<u8>(), 3..5),
        (1u8..90).prop_map(|code| vec![LEVEL_FATAL, code]),
    ];
    let data = prop::collection::vec(any::<u8>(), 0..100);
    prop_oneof![
        6 => data.clone().prop_map(|content| vec![(APPLICATION_DATA, content, false)]),
        6 => crafted_handshake(),
        1 => alert.prop_map(|content| vec![(ALERT, content, false)]),
        1 => (24u8.., data).prop_map(|(kind, content)| vec![(kind, content, false)]),
    ]
}

/// What a receiver makes of `script`: all data, whether the peer closed, and whether it failed.
fn played(mut from: Sealed, mut to: AnyRecords, script: &[(u8, Vec<u8>, bool)]) -> (Vec<u8>, bool, bool) {
    let (mut data, mut closed) = (Vec::new(), false);
    for (kind, content, rekey) in script {
        let mut wire = record(&mut from, *kind, content);
        if *rekey {
            from.send = from.schedule.next_send().unwrap();
        }
        match open_all(&mut to, &mut wire) {
            Ok((more, end)) => {
                data.extend(more);
                closed |= end;
            }
            Err(_) => return (data, closed, true),
        }
        let mut answer = Vec::new();
        to.seal(&[b"answer"], &mut answer).unwrap();
        assert_eq!(open_all(&mut from, &mut answer).unwrap().0, b"answer");
    }
    (data, closed, false)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn both_layers_make_the_same_of_whatever_a_peer_crafts(
        from_server in any::<bool>(),
        script in prop::collection::vec(crafted(), 1..12),
    ) {
        let script = script.concat();
        // rustls bears four of these in a connection, we bear them like any quiet record.
        let cancelled = |record: &&Crafted| record.1 == [LEVEL_WARNING, 90];
        prop_assume!(script.iter().filter(cancelled).count() <= 4);
        let [ours, theirs] = [RecordsKind::Sealed, RecordsKind::Rustls].map(|kind| {
            let (from, to) = if from_server {
                let (to, from) = connected(kind, RecordsKind::Sealed);
                (from, to)
            } else {
                connected(RecordsKind::Sealed, kind)
            };
            let AnyRecords::Sealed(from) = from else { panic!("not sealed") };
            played(from, to, &script)
        });
        prop_assert_eq!(ours, theirs);
    }
}

#[test]
fn sealing_and_opening_allocate_only_to_grow_the_buffer_once() {
    let (mut client, mut server) = pair();
    let data = vec![1; 100_000];
    let mut wire = Vec::new();
    client.seal(&[&data], &mut wire).unwrap();
    let capacity = wire.capacity();
    for _ in 0..10 {
        open_all(&mut server, &mut wire).unwrap();
        wire.clear();
        client.seal(&[&data], &mut wire).unwrap();
        assert_eq!(wire.capacity(), capacity);
    }
}

#[test]
fn nothing_secret_is_printed() {
    let (client, _) = pair();
    assert_eq!(format!("{client:?}"), "Sealed { sent: 0, received: 0, .. }");
}
