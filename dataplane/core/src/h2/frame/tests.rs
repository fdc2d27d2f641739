use super::*;

#[test]
fn a_header_survives_a_round_trip() {
    let header = FrameHeader { length: 0x0001_0203, kind: 9, flags: 0x2d, stream: 0x7fff_fffe };
    assert_eq!(FrameHeader::parse(&header.encode()), header);
}

#[test]
fn the_reserved_bit_of_a_stream_is_dropped() {
    assert_eq!(FrameHeader::parse(&[0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]).stream, 0x7fff_ffff);
}

#[test]
fn a_long_header_block_continues_and_only_its_last_frame_ends_it() {
    let mut out = Vec::new();
    put_header_block(&mut out, StreamId(5), b"abcdefg", 3, true);
    let mut expected = vec![0, 0, 3, kind::HEADERS, flag::END_STREAM, 0, 0, 0, 5];
    expected.extend_from_slice(b"abc");
    expected.extend_from_slice(&[0, 0, 3, kind::CONTINUATION, 0, 0, 0, 0, 5]);
    expected.extend_from_slice(b"def");
    expected.extend_from_slice(&[0, 0, 1, kind::CONTINUATION, flag::END_HEADERS, 0, 0, 0, 5]);
    expected.extend_from_slice(b"g");
    assert_eq!(out, expected);
}

#[test]
fn a_block_that_fills_a_frame_exactly_has_no_empty_continuation() {
    let mut out = Vec::new();
    put_header_block(&mut out, StreamId(1), b"abc", 3, false);
    assert_eq!(out, b"\0\0\x03\x01\x04\0\0\0\x01abc");
}

#[test]
fn control_frames_have_the_bytes_of_the_rfc() {
    let mut out = Vec::new();
    put_settings(&mut out, &[(4, 0x0102_0304)]);
    put_settings_ack(&mut out);
    put_window_update(&mut out, 3, 7);
    put_reset(&mut out, StreamId(3), ErrorCode::Cancel);
    put_ping(&mut out, true, b"01234567");
    put_goaway(&mut out, 9, ErrorCode::EnhanceYourCalm);
    let expected: &[&[u8]] = &[
        &[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 1, 2, 3, 4],
        &[0, 0, 0, 4, 1, 0, 0, 0, 0],
        &[0, 0, 4, 8, 0, 0, 0, 0, 3, 0, 0, 0, 7],
        &[0, 0, 4, 3, 0, 0, 0, 0, 3, 0, 0, 0, 8],
        b"\0\0\x08\x06\x01\0\0\0\x0001234567",
        &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 11],
    ];
    assert_eq!(out, expected.concat());
}

#[test]
fn every_defined_code_survives_a_round_trip_and_others_are_internal_errors() {
    for code in 0..=0xd {
        assert_eq!(ErrorCode::from_wire(code) as u32, code);
    }
    assert_eq!(ErrorCode::from_wire(0xe), ErrorCode::InternalError);
    assert_eq!(ErrorCode::from_wire(u32::MAX), ErrorCode::InternalError);
}
