use proptest::prelude::*;

use super::*;

/// Greeting and request of a client.
fn client(kind: u8, address: &[u8], port: u16) -> Vec<u8> {
    let mut bytes = vec![5, 2, 2, 0, 5, 1, 0, kind];
    bytes.extend(address);
    bytes.extend(port.to_be_bytes());
    bytes
}

/// Hands `bytes` over, at most `piece` at a time: what comes of it, how much was taken, and what was answered.
fn negotiate(bytes: &[u8], piece: usize) -> (Result<Option<Authority>, Refused>, usize, Vec<u8>) {
    let (mut negotiation, mut out, mut taken) = (Negotiation::new(), Vec::new(), 0);
    loop {
        let length = negotiation.wants().min(piece).min(bytes.len() - taken);
        if length == 0 {
            return (Ok(None), taken, out);
        }
        let handled = negotiation.handle(&bytes[taken..taken + length], &mut out);
        taken += length;
        if handled != Ok(None) {
            assert_eq!(negotiation.wants(), 0, "it is over");
            return (handled, taken, out);
        }
    }
}

fn domain(name: &str) -> Vec<u8> {
    [&[name.len() as u8], name.as_bytes()].concat()
}

#[test]
fn addresses_and_hosts_are_read_to_the_last_byte_and_not_beyond() {
    let v6: Ipv6Addr = "fd00::7".parse().unwrap();
    let mapped: Ipv6Addr = "::ffff:10.0.0.7".parse().unwrap();
    for (kind, address, expected) in [
        (1, vec![10, 0, 0, 7], "10.0.0.7:80"),
        (4, v6.octets().to_vec(), "[fd00::7]:80"),
        (4, mapped.octets().to_vec(), "10.0.0.7:80"),
        (3, domain("Pay.Shop.svc."), "pay.shop.svc:80"),
        (3, domain("10.0.0.7"), "10.0.0.7:80"),
        (3, domain("fd00::7"), "[fd00::7]:80"),
    ] {
        let mut bytes = client(kind, &address, 80);
        let length = bytes.len();
        bytes.extend(b"GET / HTTP/1.1");
        let (found, taken, out) = negotiate(&bytes, usize::MAX);
        assert_eq!(found.unwrap().unwrap().to_string(), expected);
        assert_eq!((taken, &out[..]), (length, &[5, 0][..]));
    }
}

#[test]
fn what_is_not_understood_is_answered_in_the_words_of_the_protocol() {
    let v4 = [10, 0, 0, 7];
    let mut bind = client(1, &v4, 80);
    bind[5] = 2;
    let refused = |reply: Reply| [&[5, 0][..], &reply.encode()].concat();
    for (bytes, error, answer) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), Refused::Version, vec![]),
        (vec![4, 1, 0, 80], Refused::Version, vec![]),
        (vec![5, 1, 2], Refused::Method, vec![5, 0xff]),
        (vec![5, 0], Refused::Method, vec![5, 0xff]),
        (bind, Refused::Command, refused(Reply::Command)),
        (client(9, &[1], 80), Refused::Destination, refused(Reply::AddressType)),
        (client(1, &v4, 0), Refused::Destination, refused(Reply::Failed)),
        (client(3, &domain(""), 80), Refused::Destination, refused(Reply::Failed)),
        (client(3, &domain("a b"), 80), Refused::Destination, refused(Reply::Failed)),
        (client(3, &[2, 0xff, 0xfe], 80), Refused::Destination, refused(Reply::Failed)),
    ] {
        let (found, _, out) = negotiate(&bytes, usize::MAX);
        assert_eq!((found, out), (Err(error), answer), "{bytes:?}");
    }
}

#[test]
fn a_client_is_told_what_kind_of_failure_it_was() {
    for (reason, reply) in [
        (Reason::PolicyAtPeer, Reply::NotAllowed),
        (Reason::PolicyDeny, Reply::NotAllowed),
        (Reason::OwnPort, Reply::NotAllowed),
        (Reason::ConnectFailed, Reply::Refused),
        (Reason::NoHealthyUpstream, Reply::Unreachable),
        (Reason::TlsFailed, Reply::Failed),
    ] {
        assert_eq!(Reply::of(reason), reply, "{reason:?}");
    }
    let told = Reason::ALL.iter().filter(|reason| Reply::of(**reason) == Reply::Succeeded);
    assert_eq!(told.count(), 0, "a failure is never told as a success");
}

proptest! {
    #[test]
    fn the_pieces_that_bytes_come_in_make_no_difference(
        kind in prop_oneof![Just(1u8), Just(3), Just(4), any::<u8>()],
        address in prop::collection::vec(any::<u8>(), 0..40),
        port: u16,
        piece in 1usize..9,
    ) {
        let bytes = client(kind, &address, port);
        prop_assert_eq!(negotiate(&bytes, piece), negotiate(&bytes, usize::MAX));
    }

    #[test]
    fn no_bytes_make_it_panic_or_want_more_than_the_protocol_has(
        bytes in prop::collection::vec(prop_oneof![Just(5u8), Just(0), Just(1), Just(3), any::<u8>()], 0..700),
    ) {
        let (found, taken, _) = negotiate(&bytes, usize::MAX);
        prop_assert!(taken <= 257 + 262);
        prop_assert!(found != Ok(None) || taken == bytes.len());
    }
}
