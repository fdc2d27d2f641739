use super::*;
use crate::proto::discovery::{DeltaDiscoveryResponse, Resource};

fn response(nonce: &str, resources: usize) -> DeltaDiscoveryResponse {
    let resource = |number| Resource { name: format!("r{number}"), ..Resource::default() };
    DeltaDiscoveryResponse {
        nonce: nonce.into(),
        resources: (0..resources).map(resource).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

fn drain(messages: &mut Messages) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    while let Some(response) = messages.next().unwrap() {
        found.push((response.nonce.clone(), response.names().count()));
    }
    found
}

#[test]
fn messages_are_found_however_their_bytes_are_cut() {
    let sent = [("1", 40), ("2", 0), ("", 0), ("3", 7)];
    let bytes: Vec<u8> =
        sent.iter().flat_map(|(nonce, count)| framed(&response(nonce, *count)).to_vec()).collect();
    for length in [1, 2, 5, 6, 64, bytes.len()] {
        let mut messages = Messages::default();
        let mut found = Vec::new();
        for piece in bytes.chunks(length) {
            messages.push(Bytes::copy_from_slice(piece));
            found.extend(drain(&mut messages));
        }
        assert_eq!(found, sent.map(|(nonce, count)| (nonce.to_owned(), count)), "pieces of {length}");
        assert!(messages.end().is_ok());
    }
}

#[test]
fn a_message_that_has_been_read_holds_no_memory() {
    let mut messages = Messages::default();
    let (bytes, piece) = (framed(&response("1", 1000)), 512);
    for part in 0..bytes.len().div_ceil(piece) {
        messages.push(bytes.slice(part * piece..bytes.len().min((part + 1) * piece)));
    }
    assert!(messages.next().unwrap().is_some());
    assert_eq!((messages.pieces.queue.len(), messages.pieces.len), (0, 0));
    assert!(bytes.is_unique());
}

#[test]
fn what_is_no_message_is_refused_with_the_reason() {
    let refused = |bytes: &[u8]| {
        let mut messages = Messages::default();
        messages.push(Bytes::copy_from_slice(bytes));
        let found = messages.next().and_then(|_| messages.end());
        found.unwrap_err().message().to_owned()
    };
    assert!(refused(&[1, 0, 0, 0, 0]).contains("compressed"));
    assert!(refused(&[0, 255, 0, 0, 0]).contains("is more than"));
    assert!(refused(&[0, 0, 0, 0, 2, 0x12, 9]).contains("cannot be read"));
    assert!(refused(&[0, 0, 0]).contains("ended within"));
    assert!(refused(&[0, 0, 0, 0, 1]).contains("ended within"));
}

#[test]
fn a_server_that_does_not_speak_grpc_is_answered_as_grpc_has_it() {
    let said = |status: u16| {
        let mut response = http::Response::new(Body::empty());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        refusal(&response).map(|status| status.code())
    };
    assert_eq!(
        [200, 401, 503, 500].map(said),
        [None, Some(Code::Unauthenticated), Some(Code::Unavailable), Some(Code::Unknown)]
    );
}
