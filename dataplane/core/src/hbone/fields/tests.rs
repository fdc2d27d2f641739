use super::*;

fn list(fields: &[(&str, &str)]) -> Fields {
    let mut list = Fields::new(1000);
    for (name, value) in fields {
        list.push(name.as_bytes(), value.as_bytes());
    }
    list
}

const METHOD: (&str, &str) = (":method", "CONNECT");
const AUTHORITY: (&str, &str) = (":authority", "10.0.0.1:80");

#[test]
fn a_connect_has_an_authority_and_neither_scheme_nor_path() {
    let head = list(&[METHOD, AUTHORITY, ("baggage", "a=b")]).into_request().unwrap();
    assert!(head.method_is_connect);
    assert_eq!(head.authority.as_deref(), Some("10.0.0.1:80"));
    assert_eq!(head.headers, [("baggage".to_string(), "a=b".to_string())]);
    for fields in [
        &[METHOD][..],
        &[METHOD, (":authority", "")],
        &[METHOD, AUTHORITY, (":scheme", "http")],
        &[METHOD, AUTHORITY, (":path", "/")],
        &[METHOD, AUTHORITY, (":protocol", "websocket")],
        &[METHOD, AUTHORITY, (":status", "200")],
        &[AUTHORITY],
        &[],
    ] {
        assert_eq!(list(fields).into_request(), Err(ErrorCode::ProtocolError), "{fields:?}");
    }
}

#[test]
fn another_method_needs_scheme_and_path_and_is_reported_as_such() {
    let get = [(":method", "GET"), (":scheme", "http"), (":path", "/")];
    let head = list(&get).into_request().unwrap();
    assert!(!head.method_is_connect);
    for left_out in 0..get.len() {
        let mut fields = get.to_vec();
        fields.remove(left_out);
        assert!(list(&fields).into_request().is_err(), "{fields:?}");
    }
    assert!(list(&[(":method", "GET"), (":scheme", "http"), (":path", "")]).into_request().is_err());
}

#[test]
fn malformed_fields_are_protocol_errors() {
    for field in [
        ("Upper", "x"),
        ("", "x"),
        ("sp ace", "x"),
        ("co:lon", "x"),
        ("del\x7f", "x"),
        ("é", "x"),
        ("connection", "close"),
        ("keep-alive", "1"),
        ("proxy-connection", "x"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        ("a", " x"),
        ("a", "x\t"),
        ("a", "x\r\ny: z"),
        ("a", "x\ny"),
        ("a", "x\0"),
        (":unknown", "x"),
        METHOD,
    ] {
        let fields = [METHOD, AUTHORITY, field];
        assert_eq!(list(&fields).into_request(), Err(ErrorCode::ProtocolError), "{field:?}");
    }
    assert!(list(&[METHOD, AUTHORITY, ("te", "trailers"), ("a", ""), ("b", "x y")]).into_request().is_ok());
}

#[test]
fn pseudo_headers_come_before_regular_ones() {
    assert_eq!(list(&[METHOD, ("a", "b"), AUTHORITY]).into_request(), Err(ErrorCode::ProtocolError));
}

#[test]
fn a_response_has_a_status_of_three_digits_and_nothing_of_a_request() {
    assert_eq!(list(&[(":status", "200"), ("a", "b")]).into_response().unwrap().status, 200);
    for fields in [
        &[][..],
        &[(":status", "")],
        &[(":status", "20")],
        &[(":status", "099")],
        &[(":status", "2000")],
        &[(":status", "+20")],
        &[(":status", "200"), (":status", "200")],
        &[(":status", "200"), METHOD],
        &[(":status", "200"), AUTHORITY],
    ] {
        assert_eq!(list(fields).into_response(), Err(ErrorCode::ProtocolError), "{fields:?}");
    }
}

#[test]
fn trailers_have_no_pseudo_headers() {
    assert_eq!(list(&[("a", "b")]).into_trailers(), Ok(()));
    assert_eq!(list(&[(":status", "200")]).into_trailers(), Err(ErrorCode::ProtocolError));
}

#[test]
fn a_list_over_the_limit_asks_for_calm() {
    let value = "x".repeat(1000 - 32 - 1);
    assert_eq!(list(&[("a", &value)]).into_trailers(), Ok(()));
    assert_eq!(list(&[("ab", &value)]).into_trailers(), Err(ErrorCode::EnhanceYourCalm));
}

#[test]
fn octets_outside_utf_8_are_replaced() {
    let mut fields = list(&[METHOD, AUTHORITY]);
    fields.push(b"a", b"x\xffy");
    assert_eq!(fields.into_request().unwrap().headers[0].1, "x\u{fffd}y");
}
