//! A client and a server over a link in memory.

use std::sync::Arc;

use halo_core::id::Identity;

use super::authority::Authority;
use crate::tls::{AnyRecords, Handshake, Opened, Progress, Records, RecordsKind, TlsConfig, TlsError};

pub(crate) const KINDS: [RecordsKind; 2] = [RecordsKind::Sealed, RecordsKind::Rustls];

pub(crate) fn cart() -> Identity {
    Identity::new("cluster.local", "shop", "cart")
}

pub(crate) fn pay() -> Identity {
    Identity::new("cluster.local", "shop", "pay")
}

/// Configurations of `cart` and `pay` under one root.
pub(crate) fn configs() -> (TlsConfig, TlsConfig) {
    let authority = Authority::new("root");
    let config = |identity| TlsConfig::new(&authority.issue(&identity)).unwrap();
    (config(cart()), config(pay()))
}

/// What became of a handshake: both results, and the bytes on their way when neither side could go on.
pub(crate) struct Ended {
    pub(crate) client: Result<Progress, TlsError>,
    pub(crate) server: Result<Progress, TlsError>,
    pub(crate) to_client: Vec<u8>,
    pub(crate) to_server: Vec<u8>,
}

/// Runs a handshake to its end over a link that delivers `chunk()` bytes at a time.
pub(crate) fn run(client: &mut Handshake, server: &mut Handshake, mut chunk: impl FnMut() -> usize) -> Ended {
    let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
    let (mut client_input, mut server_input) = (Vec::new(), Vec::new());
    loop {
        let client_result = client.advance(&mut client_input, &mut to_server);
        let server_result = server.advance(&mut server_input, &mut to_client);
        let going = |result: &_| *result == Ok(Progress::NeedInput);
        let to_go = (going(&client_result) && !to_client.is_empty())
            || (going(&server_result) && !to_server.is_empty());
        if !to_go {
            client_input.append(&mut to_client);
            server_input.append(&mut to_server);
            return Ended {
                client: client_result,
                server: server_result,
                to_client: client_input,
                to_server: server_input,
            };
        }
        deliver(&mut to_client, &mut client_input, chunk());
        deliver(&mut to_server, &mut server_input, chunk());
    }
}

fn deliver(from: &mut Vec<u8>, to: &mut Vec<u8>, len: usize) {
    to.extend(from.drain(..len.min(from.len())));
}

/// A handshake between `client` and `server` in which the client asks for `accepted`.
pub(crate) fn attempt(client: &TlsConfig, server: &TlsConfig, accepted: &[Identity]) -> Ended {
    let mut client = Handshake::client(client, Arc::from(accepted)).unwrap();
    let mut server = Handshake::server(server).unwrap();
    run(&mut client, &mut server, || usize::MAX)
}

/// The records of `cart` as a client and `pay` as a server.
pub(crate) fn connected(client_kind: RecordsKind, server_kind: RecordsKind) -> (AnyRecords, AnyRecords) {
    connected_over(client_kind, server_kind, || usize::MAX)
}

/// Like [`connected`], over a link that delivers `chunk()` bytes at a time.
pub(crate) fn connected_over(
    client_kind: RecordsKind,
    server_kind: RecordsKind,
    chunk: impl FnMut() -> usize,
) -> (AnyRecords, AnyRecords) {
    let (client, server) = configs();
    let mut client = Handshake::client(&client, Arc::new([pay()])).unwrap();
    let mut server = Handshake::server(&server).unwrap();
    let ended = run(&mut client, &mut server, chunk);
    assert_eq!(ended.client, Ok(Progress::Done));
    assert_eq!(ended.server, Ok(Progress::Done));
    assert!(ended.to_client.is_empty() && ended.to_server.is_empty());
    let (client, seen_by_client) = client.finish(client_kind).unwrap();
    let (server, seen_by_server) = server.finish(server_kind).unwrap();
    assert_eq!((seen_by_client, seen_by_server), (pay(), cart()));
    (client, server)
}

/// Everything that whole records in `input` hold; they are dropped from it. The flag says whether the peer closed.
pub(crate) fn open_all(records: &mut impl Records, input: &mut Vec<u8>) -> Result<(Vec<u8>, bool), TlsError> {
    let mut data = Vec::new();
    loop {
        match records.open(input)? {
            Opened::NeedInput => return Ok((data, false)),
            Opened::Data { consumed, plaintext } => {
                data.extend_from_slice(&input[plaintext]);
                input.drain(..consumed);
            }
            Opened::Skipped { consumed } => {
                input.drain(..consumed);
            }
            Opened::Closed { consumed } => {
                input.drain(..consumed);
                return Ok((data, true));
            }
        }
    }
}

/// Sends `data` from one to the other and checks that it arrives.
pub(crate) fn carry(from: &mut impl Records, to: &mut impl Records, data: &[u8]) {
    let mut wire = Vec::new();
    from.take_output(&mut wire).unwrap();
    from.seal(&[data], &mut wire).unwrap();
    let (received, closed) = open_all(to, &mut wire).unwrap();
    assert!(received == data && !closed, "{} bytes arrived of {}", received.len(), data.len());
    assert!(wire.is_empty());
}
