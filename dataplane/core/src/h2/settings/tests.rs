use super::*;

fn apply(entries: &[(u16, u32)], from_server: bool) -> Result<PeerSettings, ErrorCode> {
    let mut payload = Vec::new();
    for (id, value) in entries {
        payload.extend_from_slice(&id.to_be_bytes());
        payload.extend_from_slice(&value.to_be_bytes());
    }
    let mut settings = PeerSettings::new();
    settings.apply(&payload, from_server).map(|()| settings)
}

#[test]
fn values_out_of_range_have_the_code_of_the_rfc() {
    let cases: &[(u16, u32, bool, Option<ErrorCode>)] = &[
        (id::ENABLE_PUSH, 0, false, None),
        (id::ENABLE_PUSH, 1, false, None),
        (id::ENABLE_PUSH, 2, false, Some(ErrorCode::ProtocolError)),
        (id::ENABLE_PUSH, 0, true, None),
        (id::ENABLE_PUSH, 1, true, Some(ErrorCode::ProtocolError)),
        (id::INITIAL_WINDOW_SIZE, WINDOW_MAX, false, None),
        (id::INITIAL_WINDOW_SIZE, WINDOW_MAX + 1, false, Some(ErrorCode::FlowControlError)),
        (id::MAX_FRAME_SIZE, FRAME_SIZE_MIN, false, None),
        (id::MAX_FRAME_SIZE, FRAME_SIZE_MIN - 1, false, Some(ErrorCode::ProtocolError)),
        (id::MAX_FRAME_SIZE, FRAME_SIZE_MAX, false, None),
        (id::MAX_FRAME_SIZE, FRAME_SIZE_MAX + 1, false, Some(ErrorCode::ProtocolError)),
        (id::ENABLE_CONNECT_PROTOCOL, 1, true, None),
        (id::ENABLE_CONNECT_PROTOCOL, 2, true, Some(ErrorCode::ProtocolError)),
        (id::HEADER_TABLE_SIZE, u32::MAX, false, None),
        (0xabcd, u32::MAX, false, None),
    ];
    for (id, value, from_server, error) in cases {
        assert_eq!(apply(&[(*id, *value)], *from_server).err(), *error, "setting {id} = {value}");
    }
}

#[test]
fn later_entries_win_and_absent_ones_keep_their_value() {
    let settings = apply(&[(id::INITIAL_WINDOW_SIZE, 1), (id::INITIAL_WINDOW_SIZE, 2)], false).unwrap();
    assert_eq!(settings.window_initial, 2);
    assert_eq!(settings.frame_size_max, FRAME_SIZE_MIN);
}

#[test]
fn the_stream_limit_is_a_guess_until_settings_arrive_and_unlimited_if_they_do_not_say() {
    assert_eq!(PeerSettings::new().streams_max, STREAMS_UNTIL_KNOWN);
    assert_eq!(apply(&[], false).unwrap().streams_max, u32::MAX);
    assert_eq!(apply(&[(id::MAX_CONCURRENT_STREAMS, 0)], false).unwrap().streams_max, 0);
}
