//! The TLS handshake: one role fed arbitrary bytes, and both roles over a link that tampers.
//!
//! Neither panics, an error is final, and a handshake that ends well ends with the peer's true identity.

use halo_core::id::Identity;
use halo_shard::tls::{Handshake, Progress, RecordsKind, TlsError};

use crate::input::Input;
use crate::peers;

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.byte();
    match choice & 3 {
        0 => arbitrary(peers::handshakes().0, &mut input),
        1 => arbitrary(peers::handshakes().1, &mut input),
        _ => tampered(&mut input),
    }
}

/// Feeds pieces of the input; the first byte of each says how long it is, and whether it is wrapped in a record.
fn arbitrary(mut handshake: Handshake, input: &mut Input<'_>) {
    let (mut received, mut out) = (Vec::new(), Vec::new());
    let mut result = handshake.advance(&mut received, &mut out);
    while !input.is_empty() && result.is_ok() {
        let choice = input.byte();
        let piece = input.take(usize::from(choice >> 1));
        if choice & 1 == 1 {
            let kind = 20 + (choice >> 1 & 3);
            received.extend_from_slice(&[kind, 3, 3, 0, piece.len() as u8]);
        }
        received.extend_from_slice(piece);
        let before = received.len();
        result = handshake.advance(&mut received, &mut out);
        assert!(received.len() <= before, "input is taken, never made");
    }
    assert_ne!(result, Ok(Progress::Done), "a peer without a certificate was accepted");
    if let Err(error) = result {
        is_final(handshake, error);
    }
}

fn is_final(mut handshake: Handshake, error: TlsError) {
    let mut out = Vec::new();
    assert_eq!(handshake.advance(&mut vec![22, 3, 3, 0, 1, 0], &mut out), Err(error));
    assert!(out.is_empty(), "an alert is sent once");
    assert_eq!(handshake.finish(RecordsKind::Sealed).err(), Some(error));
}

/// One end of a link.
struct End {
    handshake: Handshake,
    received: Vec<u8>,
    result: Result<Progress, TlsError>,
    peer: Identity,
}

impl End {
    fn new(handshake: Handshake, peer: Identity) -> Self {
        Self { handshake, received: Vec::new(), result: Ok(Progress::NeedInput), peer }
    }

    /// Takes what arrived; what it answers, as it comes out of the link.
    fn turn(&mut self, arrived: &[u8], input: &mut Input<'_>) -> Vec<u8> {
        self.received.extend_from_slice(arrived);
        let mut out = Vec::new();
        self.result = self.handshake.advance(&mut self.received, &mut out);
        tamper(&mut out, input);
        out
    }

    fn finish(self, kind: RecordsKind) {
        if self.result == Ok(Progress::Done) {
            let (_, identity) = self.handshake.finish(kind).expect("it was done");
            assert_eq!(identity, self.peer);
        } else if let Err(error) = self.result {
            is_final(self.handshake, error);
        }
    }
}

/// Changes, cuts out or adds up to three bytes.
fn tamper(bytes: &mut Vec<u8>, input: &mut Input<'_>) {
    for _ in 0..input.byte() & 3 {
        if bytes.is_empty() {
            return;
        }
        let at = input.below(bytes.len());
        match input.byte() {
            0 => drop(bytes.remove(at)),
            1 => bytes.insert(at, input.byte()),
            2 => bytes.truncate(at),
            mask => bytes[at] ^= mask,
        }
    }
}

fn tampered(input: &mut Input<'_>) {
    let kind = if input.flag() { RecordsKind::Sealed } else { RecordsKind::Rustls };
    let (client, server) = peers::handshakes();
    let mut client = End::new(client, peers::server());
    let mut server = End::new(server, peers::client());
    let mut to_client = Vec::new();
    // A handshake takes two turns of each; the third carries alerts.
    for _ in 0..3 {
        let to_server = client.turn(&to_client, input);
        to_client = server.turn(&to_server, input);
    }
    client.finish(kind);
    server.finish(kind);
}
