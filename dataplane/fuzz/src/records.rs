//! The record layers after a real handshake: arbitrary bytes, and a valid stream of records that was tampered with.
//!
//! Whatever arrives, a layer hands out a prefix of what the peer sent, or an error; it says that the peer closed only
//! where the peer did.

use halo_shard::tls::{AnyRecords, Opened, Records, RecordsKind, TlsError};

use crate::input::Input;
use crate::peers;

/// Largest message, so that it spans two records now and then.
const MESSAGE_MAX: usize = 20_000;
/// Bytes of a record header, and of one that is sealed and empty.
const HEADER: usize = 5;

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.byte();
    let kind = |bit: u8| if choice & bit == 0 { RecordsKind::Sealed } else { RecordsKind::Rustls };
    let (client, server) = peers::connected(kind(1), kind(2));
    let (from, to) = if choice & 4 == 0 { (client, server) } else { (server, client) };
    if choice & 8 == 0 { tampered(from, to, &mut input) } else { arbitrary(to, &mut input) }
}

/// What a receiver made of its input.
struct Received {
    plaintext: Vec<u8>,
    closed: bool,
    error: Option<TlsError>,
}

/// Presents `wire` in pieces, as reads would, and opens what is whole after each.
fn receive(to: &mut AnyRecords, wire: &[u8], input: &mut Input<'_>) -> Received {
    let mut received = Received { plaintext: Vec::new(), closed: false, error: None };
    let (mut buffer, mut rest) = (Vec::new(), wire);
    while !rest.is_empty() && received.error.is_none() && !received.closed {
        let piece =
            rest.split_at(if input.flag() { rest.len().min(1 + input.below(400)) } else { rest.len() });
        buffer.extend_from_slice(piece.0);
        rest = piece.1;
        open(to, &mut buffer, &mut received);
    }
    received
}

fn open(to: &mut AnyRecords, buffer: &mut Vec<u8>, received: &mut Received) {
    loop {
        let consumed = match to.open(buffer) {
            Ok(Opened::NeedInput) => return,
            Ok(Opened::Data { consumed, plaintext }) => {
                assert!(!plaintext.is_empty() && plaintext.end <= consumed);
                received.plaintext.extend_from_slice(&buffer[plaintext]);
                consumed
            }
            Ok(Opened::Skipped { consumed }) => consumed,
            Ok(Opened::Closed { consumed }) => {
                assert!(consumed <= buffer.len());
                received.closed = true;
                return;
            }
            Err(error) => {
                received.error = Some(error);
                return;
            }
        };
        assert!((HEADER..=buffer.len()).contains(&consumed));
        buffer.drain(..consumed);
    }
}

/// An error is final in both directions, and its alert is sent once.
fn end(mut to: AnyRecords, received: &Received) {
    let mut out = Vec::new();
    if let Some(error) = received.error {
        assert_eq!(to.open(&mut [23, 3, 3, 0, 30]), Err(error));
        assert_eq!(to.seal(&[b"data"], &mut out), Err(error));
        assert!(out.is_empty());
        to.alert(&error, &mut out);
        let length = out.len();
        to.alert(&error, &mut out);
        assert_eq!(out.len(), length);
    } else {
        to.take_output(&mut out).expect("nothing is wrong");
        to.seal(&[b"data"], &mut out).expect("our direction is open");
        to.close_notify(&mut out).expect("our direction is open");
    }
}

/// Bytes that no peer sealed: nothing comes out of them.
fn arbitrary(mut to: AnyRecords, input: &mut Input<'_>) {
    let mut wire = Vec::new();
    while !input.is_empty() {
        let choice = input.byte();
        let body = input.take(usize::from(choice >> 1));
        if choice & 1 == 1 {
            wire.extend_from_slice(&[23, 3, 3, 0, body.len() as u8]);
        }
        wire.extend_from_slice(body);
    }
    let received = receive(&mut to, &wire, &mut Input::new(&wire));
    assert!(received.plaintext.is_empty() && !received.closed, "bytes that nobody sealed were opened");
    end(to, &received);
}

/// A peer's records, one by one, and what is in them.
struct Sent {
    records: Vec<Vec<u8>>,
    plaintext: Vec<u8>,
    closed: bool,
}

fn send(mut from: AnyRecords, input: &mut Input<'_>) -> Sent {
    let mut wire = Vec::new();
    let mut plaintext = Vec::new();
    for _ in 0..1 + input.byte() % 6 {
        let length = if input.flag() { 1 + input.below(MESSAGE_MAX) } else { 1 + input.below(60) };
        let message: Vec<u8> =
            (plaintext.len()..plaintext.len() + length).map(|at| (at % 251) as u8).collect();
        from.take_output(&mut wire).expect("a new connection");
        from.seal(&[&message], &mut wire).expect("a new connection");
        plaintext.extend_from_slice(&message);
    }
    let closed = input.flag();
    if closed {
        from.close_notify(&mut wire).expect("an open direction");
    }
    Sent { records: split(&wire), plaintext, closed }
}

fn split(mut wire: &[u8]) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    while let Some(header) = wire.first_chunk::<HEADER>() {
        let (record, rest) = wire.split_at(HEADER + usize::from(u16::from_be_bytes([header[3], header[4]])));
        records.push(record.to_vec());
        wire = rest;
    }
    assert!(wire.is_empty());
    records
}

/// Reorders, repeats, loses, changes, lengthens, joins and cuts records.
fn tamper(records: &mut Vec<Vec<u8>>, input: &mut Input<'_>) {
    for _ in 0..input.byte() & 3 {
        if records.is_empty() {
            return;
        }
        let (at, other) = (input.below(records.len()), input.below(records.len()));
        match input.byte() % 8 {
            0 => records.swap(at, other),
            1 => records.insert(other, records[at].clone()),
            2 => drop(records.remove(at)),
            3 => records.truncate(at),
            4 => {
                let place = input.below(records[at].len());
                records[at][place] ^= input.byte();
            }
            5 => {
                let place = input.below(records[at].len());
                records[at].truncate(place);
            }
            6 => {
                let added = input.take(8);
                records[at].extend_from_slice(added);
                if input.flag() {
                    lengthen(&mut records[at], added.len());
                }
            }
            _ => {
                let added = records[other].clone();
                records[at].extend_from_slice(&added);
                lengthen(&mut records[at], added.len());
            }
        }
        records.retain(|record| !record.is_empty());
    }
}

/// Makes the header own up to `added` more bytes.
fn lengthen(record: &mut [u8], added: usize) {
    if let [_, _, _, high, low, ..] = record {
        let length = usize::from(u16::from_be_bytes([*high, *low])) + added;
        [*high, *low] = (length as u16).to_be_bytes();
    }
}

fn tampered(from: AnyRecords, mut to: AnyRecords, input: &mut Input<'_>) {
    let mut sent = send(from, input);
    let true_wire = sent.records.concat();
    tamper(&mut sent.records, input);
    let wire = sent.records.concat();
    let received = receive(&mut to, &wire, input);
    assert!(sent.plaintext.starts_with(&received.plaintext), "bytes that were not sent, or not there");
    if received.closed {
        assert!(sent.closed && received.plaintext == sent.plaintext, "a cut was taken for an end");
    }
    if wire.starts_with(&true_wire) {
        assert!(received.plaintext == sent.plaintext, "bytes that were sent are missing");
        assert_eq!(received.closed, sent.closed);
    }
    if wire == true_wire {
        assert_eq!(received.error, None);
    }
    end(to, &received);
}
