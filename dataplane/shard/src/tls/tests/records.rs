//! Rules that both record layers keep.

use proptest::prelude::*;
use rustls::AlertDescription;

use super::pair::{KINDS, carry, connected, open_all};
use crate::tls::{AnyRecords, Opened, Records, RecordsKind, TlsError};

const BAD_MAC: TlsError = TlsError::PeerProtocol(AlertDescription::BadRecordMac);

/// Each way round: the layer that sends, the layer that receives.
fn each_pair(mut test: impl FnMut(&mut AnyRecords, &mut AnyRecords)) {
    for from in KINDS {
        for to in KINDS {
            let (mut client, mut server) = connected(from, to);
            test(&mut client, &mut server);
            let (mut client, mut server) = connected(to, from);
            test(&mut server, &mut client);
        }
    }
}

fn sealed(records: &mut AnyRecords, data: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    records.seal(&[data], &mut wire).unwrap();
    wire
}

#[test]
fn parts_are_joined_and_records_are_filled() {
    each_pair(|from, to| {
        let mut wire = vec![0xee; 3];
        let part = vec![5; 20_000];
        from.seal(&[b"", &part, b"x", b"", &part], &mut wire).unwrap();
        assert_eq!(wire[..3], [0xee; 3], "what was in the buffer stays");
        let mut wire = wire.split_off(3);
        assert_eq!(wire.len(), 40_001 + 3 * 22);
        assert_eq!(wire[..5], [23, 3, 3, 0x40, 0x11]);
        let expected = [&part[..], b"x", &part].concat();
        assert_eq!(open_all(to, &mut wire).unwrap(), (expected, false));
    });
}

#[test]
fn a_record_cut_short_waits_for_the_rest() {
    each_pair(|from, to| {
        let mut wire = sealed(from, b"data");
        let whole = wire.clone();
        for len in 0..wire.len() {
            assert_eq!(to.open(&mut wire[..len]), Ok(Opened::NeedInput));
        }
        assert_eq!(wire, whole, "a partial record is left alone");
        assert_eq!(open_all(to, &mut wire).unwrap(), (b"data".to_vec(), false));
    });
}

#[test]
fn every_flipped_bit_is_noticed() {
    for to in KINDS {
        for at in [0, 3, 4, 5, 10, 25] {
            let (mut client, mut server) = connected(RecordsKind::Sealed, to);
            let mut wire = sealed(&mut client, b"data");
            wire[at] ^= 1;
            wire.resize(20_000, 0);
            let error = open_all(&mut server, &mut wire).unwrap_err();
            assert!(matches!(error, TlsError::PeerProtocol(_)), "byte {at}: {error:?}");
            let mut good = sealed(&mut client, b"data");
            assert_eq!(open_all(&mut server, &mut good), Err(error), "the error is final");
            assert_eq!(server.seal(&[b"data"], &mut good), Err(error), "in both directions");
        }
    }
}

#[test]
fn a_replayed_record_is_refused() {
    each_pair(|from, to| {
        let wire = sealed(from, b"data");
        assert!(open_all(to, &mut wire.clone()).is_ok());
        assert_eq!(open_all(to, &mut wire.clone()), Err(BAD_MAC));
    });
}

#[test]
fn reordered_records_are_refused() {
    each_pair(|from, to| {
        let first = sealed(from, b"first");
        let mut wire = sealed(from, b"second");
        wire.extend_from_slice(&first);
        assert_eq!(open_all(to, &mut wire), Err(BAD_MAC));
    });
}

#[test]
fn a_missing_record_is_noticed() {
    each_pair(|from, to| {
        let _lost = sealed(from, b"first");
        assert_eq!(open_all(to, &mut sealed(from, b"second")), Err(BAD_MAC));
    });
}

#[test]
fn a_record_is_not_accepted_by_its_own_sender() {
    each_pair(|from, _| {
        let mut wire = sealed(from, b"data");
        assert_eq!(open_all(from, &mut wire), Err(BAD_MAC));
    });
}

#[test]
fn close_notify_ends_one_direction_only() {
    each_pair(|from, to| {
        let mut wire = sealed(from, b"last");
        from.close_notify(&mut wire).unwrap();
        let len = wire.len();
        from.close_notify(&mut wire).unwrap();
        assert_eq!(wire.len(), len, "it is sent once");
        assert_eq!(from.seal(&[b"more"], &mut wire), Err(TlsError::SendClosed));
        wire.extend_from_slice(b"bytes behind the end");
        assert_eq!(open_all(to, &mut wire).unwrap(), (b"last".to_vec(), true));
        assert_eq!(to.open(&mut wire), Ok(Opened::Closed { consumed: wire.len() }));
        carry(to, from, b"the other way is open");
        let mut wire = Vec::new();
        to.close_notify(&mut wire).unwrap();
        assert_eq!(open_all(from, &mut wire).unwrap(), (Vec::new(), true));
    });
}

#[test]
fn an_alert_tells_the_peer_and_is_not_answered() {
    each_pair(|from, to| {
        let mut wire = sealed(from, b"data");
        wire[9] ^= 1;
        let error = open_all(to, &mut wire).unwrap_err();
        let mut alert = Vec::new();
        to.alert(&error, &mut alert);
        let len = alert.len();
        to.alert(&error, &mut alert);
        to.take_output(&mut alert).unwrap();
        assert_eq!(alert.len(), len, "it is sent once");
        let told = open_all(from, &mut alert).unwrap_err();
        assert_eq!(told, TlsError::PeerAlert(AlertDescription::BadRecordMac));
        let mut answer = Vec::new();
        from.alert(&told, &mut answer);
        assert!(answer.is_empty());
    });
}

#[test]
fn a_change_cipher_spec_after_the_handshake_is_refused() {
    for kind in KINDS {
        let (_, mut server) = connected(RecordsKind::Sealed, kind);
        let mut wire = vec![20, 3, 3, 0, 1, 1];
        let error = open_all(&mut server, &mut wire).unwrap_err();
        assert_eq!(error, TlsError::PeerProtocol(AlertDescription::UnexpectedMessage));
    }
}

#[test]
fn an_oversized_record_is_refused_by_its_header() {
    for kind in KINDS {
        let (_, mut server) = connected(RecordsKind::Sealed, kind);
        let mut wire = vec![23, 3, 3, 0x41, 0x01];
        let error = open_all(&mut server, &mut wire).unwrap_err();
        assert!(matches!(error, TlsError::PeerProtocol(_)), "{error:?}");
    }
}

#[derive(Debug, Clone)]
enum Action {
    Send { from_client: bool, lens: Vec<usize> },
    Deliver { to_client: bool, len: usize },
}

fn action() -> impl Strategy<Value = Action> {
    let lens = prop::collection::vec(prop_oneof![0usize..300, 16_000usize..17_000], 1..4);
    prop_oneof![
        (any::<bool>(), lens).prop_map(|(from_client, lens)| Action::Send { from_client, lens }),
        (any::<bool>(), 1usize..40_000).prop_map(|(to_client, len)| Action::Deliver { to_client, len }),
    ]
}

/// One end of a connection with what it has sent and received.
struct End {
    records: AnyRecords,
    wire: Vec<u8>,
    input: Vec<u8>,
    sent: Vec<u8>,
    received: Vec<u8>,
}

impl End {
    fn new(mut records: AnyRecords, records_max: u64) -> Self {
        if let AnyRecords::Sealed(sealed) = &mut records {
            sealed.records_max = records_max;
        }
        Self { records, wire: vec![], input: vec![], sent: vec![], received: vec![] }
    }

    fn send(&mut self, lens: &[usize]) {
        let parts: Vec<Vec<u8>> = lens.iter().map(|len| vec![(self.sent.len() % 251) as u8; *len]).collect();
        let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let data = slices.concat();
        if data.is_empty() {
            return;
        }
        self.records.take_output(&mut self.wire).unwrap();
        self.records.seal(&slices, &mut self.wire).unwrap();
        self.sent.extend_from_slice(&data);
    }

    fn receive(&mut self, from: &mut Vec<u8>, len: usize) {
        self.input.extend(from.drain(..len.min(from.len())));
        let (data, _) = open_all(&mut self.records, &mut self.input).unwrap();
        self.received.extend_from_slice(&data);
        self.records.take_output(&mut self.wire).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn data_arrives_whole_and_in_order_whatever_the_layers_and_key_updates(
        client_sealed in any::<bool>(),
        server_sealed in any::<bool>(),
        records_max in 2u64..40,
        actions in prop::collection::vec(action(), 1..60),
    ) {
        let kind = |sealed| if sealed { RecordsKind::Sealed } else { RecordsKind::Rustls };
        let (client, server) = connected(kind(client_sealed), kind(server_sealed));
        let (mut client, mut server) = (End::new(client, records_max), End::new(server, records_max));
        for action in actions {
            match action {
                Action::Send { from_client: true, lens } => client.send(&lens),
                Action::Send { from_client: false, lens } => server.send(&lens),
                Action::Deliver { to_client: true, len } => client.receive(&mut server.wire, len),
                Action::Deliver { to_client: false, len } => server.receive(&mut client.wire, len),
            }
        }
        while !client.wire.is_empty() || !server.wire.is_empty() {
            client.receive(&mut server.wire, usize::MAX);
            server.receive(&mut client.wire, usize::MAX);
        }
        prop_assert!(client.received == server.sent);
        prop_assert!(server.received == client.sent);
    }

    #[test]
    fn garbage_never_panics_a_record_layer(
        sealed_layer in any::<bool>(),
        mut wire in prop::collection::vec(any::<u8>(), 0..100),
        header in prop::option::of(0u16..90),
    ) {
        let kind = if sealed_layer { RecordsKind::Sealed } else { RecordsKind::Rustls };
        let (_, mut server) = connected(RecordsKind::Sealed, kind);
        if let Some(len) = header {
            wire.splice(0..0, [23, 3, 3, (len >> 8) as u8, len as u8]);
        }
        let _ = open_all(&mut server, &mut wire);
        let mut out = Vec::new();
        server.alert(&BAD_MAC, &mut out);
        let _ = server.take_output(&mut out);
        let _ = server.close_notify(&mut out);
    }
}
