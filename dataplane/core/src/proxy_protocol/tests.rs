use proptest::prelude::*;

use super::*;
use crate::fixture::socket;

fn written(source: &str, destination: &str, identity: Option<&Identity>) -> Vec<u8> {
    let mut out = vec![];
    write(&mut out, socket(source), socket(destination), identity);
    out
}

#[test]
fn a_header_of_ipv4_is_these_bytes() {
    let expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\x0a\x00\x00\x01\x0a\x60\x00\x01\x9c\x40\x00\x50";
    assert_eq!(written("10.0.0.1:40000", "10.96.0.1:80", None), expected);
}

#[test]
fn an_identity_follows_the_addresses_as_tlv_d0() {
    let identity = Identity::new("td", "shop", "cart");
    let bytes = written("[fd00::1]:40000", "[fd00::2]:80", Some(&identity));
    assert_eq!(bytes[12..16], [0x21, 0x21, 0x00, 36 + 3 + 27]);
    assert_eq!(&bytes[16 + 36..], b"\xd0\x00\x1bspiffe://td/ns/shop/sa/cart");
}

#[test]
fn addresses_of_two_families_are_both_ipv6() {
    let bytes = written("10.0.0.1:40000", "[fd00::2]:80", None);
    assert_eq!((bytes[13], bytes.len()), (0x21, 16 + 36));
    assert_eq!(bytes[16..32], *b"\0\0\0\0\0\0\0\0\0\0\xff\xff\x0a\0\0\x01");
    let read = read(&bytes).unwrap().unwrap();
    assert_eq!(read.addresses, Some((socket("10.0.0.1:40000"), socket("[fd00::2]:80"))));
}

#[test]
fn an_identity_that_no_header_can_hold_is_left_out() {
    for (len, sent) in [(1000, true), (65_000, true), (66_000, false)] {
        let identity = Identity::new("td", "shop", &"a".repeat(len));
        let bytes = written("10.0.0.1:40000", "10.96.0.1:80", Some(&identity));
        let read = read(&bytes).unwrap().unwrap();
        assert_eq!((read.identity.is_some(), read.len), (sent, bytes.len()));
    }
}

#[test]
fn a_sender_that_speaks_for_itself_and_a_foreign_family_tell_no_addresses() {
    for head in [[0x20, 0x00], [0x20, 0x11], [0x21, 0x00], [0x21, 0x31], [0x21, 0x12]] {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend(head);
        bytes.extend([0, 2, 7, 7, b'x']);
        assert_eq!(read(&bytes), Ok(Some(Header { addresses: None, identity: None, len: 18 })));
    }
}

#[test]
fn bytes_that_are_no_header_are_told_apart_from_a_header_that_has_not_come_yet() {
    let bytes = written("10.0.0.1:40000", "10.96.0.1:80", Some(&Identity::new("td", "shop", "cart")));
    for len in 0..bytes.len() {
        assert_eq!(read(&bytes[..len]), Ok(None), "{len}");
    }
    let with = |place: usize, value: u8| {
        let mut bytes = bytes.clone();
        bytes[place] = value;
        bytes
    };
    assert_eq!(read(b"GET / HTTP/1.1"), Err(HeaderError::Signature));
    assert_eq!(read(b"\r\n\r\nx"), Err(HeaderError::Signature));
    assert_eq!(read(&with(12, 0x11)), Err(HeaderError::Command(0x11)));
    assert_eq!(read(&with(12, 0x22)), Err(HeaderError::Command(0x22)));
    // The length ends within the addresses, and within the TLV.
    assert_eq!(read(&with(15, 11)), Err(HeaderError::Length));
    assert_eq!(read(&with(15, 14)), Err(HeaderError::Length));
    assert_eq!(read(&with(30, 0xff)), Err(HeaderError::Length));
    assert_eq!(read(&with(40, 0xff)), Err(HeaderError::Identity));
}

#[test]
fn other_tlvs_are_passed_over() {
    let mut bytes = written("10.0.0.1:40000", "10.96.0.1:80", None);
    bytes.extend(b"\x04\0\x02zz\xd1\0\x01q\xd0\0\x01a\xd0\0\x01b");
    bytes[15] = 12 + 5 + 4 + 4 + 4;
    assert_eq!(read(&bytes).unwrap().unwrap().identity, Some("a"));
}

proptest! {
    #[test]
    fn a_header_is_read_as_it_was_written(
        source: SocketAddr,
        destination: SocketAddr,
        names in proptest::option::of(("[a-z.]{0,20}", "[a-z]{1,20}", "[a-z]{1,20}")),
        rest in proptest::collection::vec(any::<u8>(), 0..20),
    ) {
        let identity = names.map(|(domain, namespace, name)| Identity::new(&domain, &namespace, &name));
        let mut bytes = vec![];
        write(&mut bytes, source, destination, identity.as_ref());
        let len = bytes.len();
        bytes.extend(rest);
        let text = identity.map(|identity| identity.to_string());
        let addresses = Some((crate::net::canonical(source), crate::net::canonical(destination)));
        prop_assert_eq!(read(&bytes), Ok(Some(Header { addresses, identity: text.as_deref(), len })));
    }

    #[test]
    fn no_bytes_upset_the_reader(
        valid: bool,
        family in prop_oneof![Just(0x11u8), Just(0x21u8), any::<u8>()],
        length in 0u16..80,
        rest in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut bytes = if valid { SIGNATURE.to_vec() } else { vec![] };
        if valid {
            bytes.extend([PROXY, family]);
            bytes.extend(length.to_be_bytes());
        }
        bytes.extend(rest);
        if let Ok(Some(header)) = read(&bytes) {
            prop_assert!(header.len <= bytes.len());
            // What follows a header does not change it.
            prop_assert_eq!(read(&bytes[..header.len]), Ok(Some(header)));
        }
    }
}
