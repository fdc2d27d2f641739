//! rustls' buffered connections as peers.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::ops::DerefMut;
use std::sync::Arc;

use rustls::{
    AlertDescription, ClientConnection, ConnectionCommon, Error, IoState, ServerConnection, SideData,
};

use super::pair::{KINDS, configs, open_all, pay};
use crate::tls::{AnyRecords, Handshake, Progress, Records, RecordsKind, TlsError};

/// Runs a handshake between a buffered connection and one of our machines.
pub(super) fn handshake<Data: SideData>(
    peer: &mut impl DerefMut<Target = ConnectionCommon<Data>>,
    ours: &mut Handshake,
) -> Result<(), TlsError> {
    let (mut input, mut out) = (Vec::new(), Vec::new());
    loop {
        let progress = ours.advance(&mut input, &mut out);
        let _ = feed(peer, &mut out);
        let progress = progress?;
        while peer.wants_write() {
            peer.write_tls(&mut input).unwrap();
        }
        if progress == Progress::Done && !peer.is_handshaking() {
            // What is left are tickets, which a test without them does not see.
            assert!(input.is_empty());
            return Ok(());
        }
    }
}

/// Gives `wire` to a buffered peer, which takes a little at a time.
fn feed<Data: SideData>(
    peer: &mut impl DerefMut<Target = ConnectionCommon<Data>>,
    wire: &mut Vec<u8>,
) -> Result<IoState, Error> {
    let mut left = &wire[..];
    let mut state = peer.process_new_packets();
    while !left.is_empty() && state.is_ok() {
        peer.read_tls(&mut left).unwrap();
        state = peer.process_new_packets();
    }
    wire.clear();
    state
}

/// Sends `data` to a buffered peer, and the same back.
fn exchange<Data: SideData>(
    peer: &mut impl DerefMut<Target = ConnectionCommon<Data>>,
    ours: &mut AnyRecords,
    data: &[u8],
) {
    let mut wire = Vec::new();
    ours.take_output(&mut wire).unwrap();
    ours.seal(&[data], &mut wire).unwrap();
    let mut received = Vec::new();
    for piece in wire.chunks(4096) {
        feed(peer, &mut piece.to_vec()).unwrap();
        let mut buffer = [0; 40_000];
        while let Ok(len @ 1..) = peer.reader().read(&mut buffer) {
            received.extend_from_slice(&buffer[..len]);
        }
    }
    assert!(received == data);
    wire.clear();
    for piece in data.chunks(16_384) {
        peer.writer().write_all(piece).unwrap();
        while peer.wants_write() {
            peer.write_tls(&mut wire).unwrap();
        }
    }
    let (received, closed) = open_all(ours, &mut wire).unwrap();
    assert!(received == data && !closed);
}

fn sizes() -> Vec<Vec<u8>> {
    [1, 2, 255, 256, 16_383, 16_384, 16_385, 32_768, 100_001].map(|len| vec![len as u8; len]).to_vec()
}

fn our_client(kind: RecordsKind) -> (ServerConnection, AnyRecords) {
    let (client, server) = configs();
    let mut peer = ServerConnection::new(server.server()).unwrap();
    let mut ours = Handshake::client(&client, Arc::new([pay()])).unwrap();
    handshake(&mut peer, &mut ours).unwrap();
    (peer, ours.finish(kind).unwrap().0)
}

fn our_server(kind: RecordsKind) -> (ClientConnection, AnyRecords) {
    let (client, server) = configs();
    let client = client.client(Arc::new([pay()]));
    let mut peer = ClientConnection::new(client, Ipv4Addr::LOCALHOST.into()).unwrap();
    let mut ours = Handshake::server(&server).unwrap();
    handshake(&mut peer, &mut ours).unwrap();
    (peer, ours.finish(kind).unwrap().0)
}

#[test]
fn data_of_any_size_passes_between_us_and_buffered_rustls() {
    for kind in KINDS {
        let (mut peer, mut ours) = our_client(kind);
        sizes().iter().for_each(|data| exchange(&mut peer, &mut ours, data));
        let (mut peer, mut ours) = our_server(kind);
        sizes().iter().for_each(|data| exchange(&mut peer, &mut ours, data));
    }
}

#[test]
fn a_key_update_of_rustls_is_followed_and_answered() {
    for kind in KINDS {
        let (mut peer, mut ours) = our_client(kind);
        for _ in 0..40 {
            peer.refresh_traffic_keys().unwrap();
            exchange(&mut peer, &mut ours, b"first ours, then theirs under a new key");
            exchange(&mut peer, &mut ours, b"now both under new keys");
        }
        let (mut peer, mut ours) = our_server(kind);
        peer.refresh_traffic_keys().unwrap();
        exchange(&mut peer, &mut ours, b"first ours, then theirs under a new key");
        exchange(&mut peer, &mut ours, b"now both under new keys");
    }
}

#[test]
fn our_own_key_updates_are_followed_by_rustls() {
    let (mut peer, mut ours) = our_client(RecordsKind::Sealed);
    let AnyRecords::Sealed(sealed) = &mut ours else { panic!("not sealed") };
    sealed.records_max = 5;
    for _ in 0..20 {
        exchange(&mut peer, &mut ours, &[7; 100_000]);
    }
}

#[test]
fn tickets_are_ignored() {
    for kind in KINDS {
        let (client, server) = configs();
        let mut generous = (*server.server()).clone();
        generous.send_tls13_tickets = 4;
        generous.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
        let mut peer = ServerConnection::new(Arc::new(generous)).unwrap();
        let mut ours = Handshake::client(&client, Arc::new([pay()])).unwrap();
        let (mut input, mut out) = (Vec::new(), Vec::new());
        while ours.advance(&mut input, &mut out).unwrap() != Progress::Done {
            feed(&mut peer, &mut out).unwrap();
            peer.write_tls(&mut input).unwrap();
        }
        feed(&mut peer, &mut out).unwrap();
        while peer.wants_write() {
            peer.write_tls(&mut input).unwrap();
        }
        assert!(input.len() > 400, "{} bytes of tickets", input.len());
        let (mut ours, _) = ours.finish(kind).unwrap();
        assert_eq!(open_all(&mut ours, &mut input).unwrap(), (Vec::new(), false));
        exchange(&mut peer, &mut ours, b"data behind tickets");
    }
}

#[test]
fn close_notify_is_seen_by_rustls_and_from_rustls() {
    for kind in KINDS {
        let (mut peer, mut ours) = our_server(kind);
        let mut wire = Vec::new();
        ours.close_notify(&mut wire).unwrap();
        assert!(feed(&mut peer, &mut wire).unwrap().peer_has_closed());
        peer.writer().write_all(b"still open this way").unwrap();
        peer.send_close_notify();
        while peer.wants_write() {
            peer.write_tls(&mut wire).unwrap();
        }
        assert_eq!(open_all(&mut ours, &mut wire).unwrap(), (b"still open this way".to_vec(), true));
    }
}

#[test]
fn a_fatal_alert_of_ours_is_understood_by_rustls() {
    for kind in KINDS {
        let (mut peer, mut ours) = our_client(kind);
        let mut damaged = Vec::new();
        peer.writer().write_all(b"data").unwrap();
        peer.write_tls(&mut damaged).unwrap();
        damaged[8] ^= 1;
        let error = open_all(&mut ours, &mut damaged).unwrap_err();
        let mut wire = Vec::new();
        ours.alert(&error, &mut wire);
        let told = feed(&mut peer, &mut wire).unwrap_err();
        assert_eq!(told, Error::AlertReceived(AlertDescription::BadRecordMac));
    }
}
