use super::*;

fn add() -> Request {
    let info = WorkloadInfo {
        name: "n".into(),
        namespace: "s".into(),
        service_account: "a".into(),
        ..Default::default()
    };
    Request::Add { uid: "u1".into(), info }
}

#[test]
fn messages_have_the_bytes_of_the_wire() {
    let golden: [(Request, &[u8]); 4] = [
        (add(), b"\x0a\x0f\x0a\x02u1\x12\x09\x0a\x01n\x12\x01s\x1a\x01a"),
        (Request::Del { uid: "u1".into() }, b"\x12\x04\x12\x02u1"),
        (Request::SnapshotSent, b"\x1a\x00"),
        (Request::Keep { uid: "u1".into() }, b"\x2a\x04\x0a\x02u1"),
    ];
    for (request, bytes) in golden {
        assert_eq!(encode_request(&request), bytes, "{request:?}");
        let descriptors = usize::from(matches!(request, Request::Add { .. }));
        assert_eq!(decode_request(bytes, descriptors), Ok(request));
    }
    assert_eq!(encode_hello(), b"\x08\x01");
    assert_eq!(decode_hello(b"\x08\x01"), Ok(()));
    assert_eq!(encode_ack(None), b"\x0a\x00");
    assert_eq!(encode_ack(Some("bad")), b"\x0a\x05\x0a\x03bad");
    assert_eq!(decode_response(b"\x0a\x00"), Ok(None));
    assert_eq!(decode_response(b"\x0a\x05\x0a\x03bad"), Ok(Some("bad".into())));
}

#[test]
fn a_search_list_is_carried_unless_the_proxys_buffer_is_too_small_for_it() {
    let with = |search: Vec<String>| {
        let Request::Add { uid, info } = add() else { unreachable!() };
        Request::Add { uid, info: WorkloadInfo { dns_search: search.into(), ..info } }
    };
    let fits = with(vec!["shop.svc.cluster.local".into(), "corp.example".into()]);
    assert_eq!(decode_request(&encode_request(&fits), 1), Ok(fits));
    let long = with(vec!["x".repeat(200); 6]);
    assert_eq!(encode_request(&long), encode_request(&add()));
    assert_eq!(encode_request(&with(vec!["y".into()]))[..2], *b"\x0a\x13");
}

#[test]
fn a_request_cut_anywhere_is_refused() {
    let bytes = encode_request(&add());
    for end in 0..bytes.len() {
        let result = decode_request(&bytes[..end], 1);
        let expected = if end == 0 { ZdsError::UnknownType } else { ZdsError::Malformed };
        assert_eq!(result, Err(expected), "cut at {end}");
    }
    assert_eq!(decode_request(b"\xff\xff\xff", 0), Err(ZdsError::Malformed));
    assert_eq!(decode_request(b"\x2a\x04\x0a\x02\xff\xfe", 0), Err(ZdsError::Malformed));
}

#[test]
fn add_takes_exactly_one_descriptor_and_any_other_request_none() {
    let others = [Request::Keep { uid: "u".into() }, Request::Del { uid: "u".into() }, Request::SnapshotSent];
    for found in [1, 2] {
        for request in &others {
            let result = decode_request(&encode_request(request), found);
            assert_eq!(result, Err(ZdsError::Descriptors { found, expected: 0 }), "{request:?}");
        }
    }
    for found in [0, 2] {
        let result = decode_request(&encode_request(&add()), found);
        assert_eq!(result, Err(ZdsError::Descriptors { found, expected: 1 }));
    }
}

#[test]
fn an_unknown_type_is_refused() {
    // Number 4 is unused, and number 6 is of no version that we know.
    for bytes in [&b"\x22\x00"[..], b"\x32\x04\x0a\x02u1", b""] {
        assert_eq!(decode_request(bytes, 0), Err(ZdsError::UnknownType), "{bytes:?}");
    }
    assert_eq!(decode_response(b"\x12\x00"), Err(ZdsError::UnknownType));
    assert_eq!(decode_hello(b""), Err(ZdsError::Version { version: 0 }));
    assert_eq!(decode_hello(b"\x08\x02"), Err(ZdsError::Version { version: 2 }));
}

#[test]
fn an_unknown_field_is_ignored() {
    // Number 4 of the workload info was the trust domain.
    let bytes = b"\x0a\x12\x0a\x02u1\x12\x0c\x0a\x01n\x12\x01s\x1a\x01a\x22\x01t";
    assert_eq!(decode_request(bytes, 1), Ok(add()));
}

#[test]
fn a_request_without_uid_or_info_is_refused() {
    assert_eq!(decode_request(b"\x0a\x02\x12\x00", 1), Err(ZdsError::EmptyUid));
    assert_eq!(decode_request(b"\x12\x00", 0), Err(ZdsError::EmptyUid));
    assert_eq!(decode_request(b"\x2a\x00", 0), Err(ZdsError::EmptyUid));
    // A del in the place where the other requests have their uid.
    assert_eq!(decode_request(b"\x12\x04\x0a\x02u1", 0), Err(ZdsError::EmptyUid));
    let missing = ZdsError::MissingInfo { uid: "u1".into() };
    assert_eq!(decode_request(b"\x0a\x04\x0a\x02u1", 1), Err(missing));
}

#[test]
fn a_long_error_is_cut_to_the_agents_buffer() {
    let text = "é".repeat(2000);
    let bytes = encode_ack(Some(&text));
    assert!(bytes.len() <= DATAGRAM_MAX);
    let cut = decode_response(&bytes).unwrap().unwrap();
    assert!(text.starts_with(&cut) && cut.len() > 1000);
}

proptest::proptest! {
    #[test]
    fn what_is_read_can_be_written_and_nothing_panics(
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..40),
        descriptors in 0..3usize,
    ) {
        let _ = (decode_hello(&bytes), decode_response(&bytes));
        if let Ok(request) = decode_request(&bytes, descriptors) {
            proptest::prop_assert_eq!(decode_request(&encode_request(&request), descriptors), Ok(request));
        }
    }

    #[test]
    fn a_damaged_request_is_refused_or_read_and_never_panics(place in 0..17usize, byte in proptest::prelude::any::<u8>()) {
        let mut bytes = encode_request(&add());
        bytes[place] = byte;
        if let Ok(request) = decode_request(&bytes, 1) {
            let is_add = matches!(request, Request::Add { .. });
            proptest::prop_assert!(is_add, "one descriptor belongs to an add only");
        }
    }
}
