use super::*;
use proptest::prelude::*;

fn decoded(code: &[u8]) -> Result<Vec<u8>, HuffmanError> {
    let mut out = Vec::new();
    decode(code, &mut out).map(|()| out)
}

#[test]
fn the_examples_of_the_rfc_decode_and_encode() {
    // RFC 7541, appendix C.4 and C.6.
    let examples: &[(&[u8], &[u8])] = &[
        (b"www.example.com", &[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff]),
        (b"no-cache", &[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]),
        (b"custom-key", &[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f]),
        (b"custom-value", &[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf]),
        (b"302", &[0x64, 0x02]),
        (b"private", &[0xae, 0xc3, 0x77, 0x1a, 0x4b]),
        (b"gzip", &[0x9b, 0xd9, 0xab]),
        (b"", &[]),
    ];
    for (text, code) in examples {
        assert_eq!(decoded(code).as_deref(), Ok(*text));
        let mut out = Vec::new();
        encode(text, &mut out);
        assert_eq!(out, *code);
        assert_eq!(encoded_len(text), code.len());
    }
}

#[test]
fn padding_that_is_not_ones_is_refused() {
    // 'a' is 00011; the rest must be 111.
    assert_eq!(decoded(&[0b0001_1111]), Ok(b"a".to_vec()));
    assert_eq!(decoded(&[0b0001_1110]), Err(HuffmanError));
    assert_eq!(decoded(&[0b0001_1011]), Err(HuffmanError));
}

#[test]
fn padding_of_eight_bits_or_more_is_refused() {
    assert_eq!(decoded(&[0b0001_1111, 0xff]), Err(HuffmanError));
    assert_eq!(decoded(&[0xff]), Err(HuffmanError));
    assert_eq!(decoded(&[0xff; 3]), Err(HuffmanError));
}

#[test]
fn eos_is_refused() {
    assert_eq!(decoded(&[0xff; 4]), Err(HuffmanError));
    assert_eq!(decoded(&[0xff; 9]), Err(HuffmanError));
}

proptest! {
    #[test]
    fn any_text_survives_a_round_trip(text in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut code = Vec::new();
        encode(&text, &mut code);
        prop_assert_eq!(code.len(), encoded_len(&text));
        prop_assert_eq!(decoded(&code), Ok(text));
    }

    #[test]
    fn what_decodes_is_the_only_code_of_its_text(code in prop::collection::vec(any::<u8>(), 0..60)) {
        if let Ok(text) = decoded(&code) {
            let mut again = Vec::new();
            encode(&text, &mut again);
            prop_assert_eq!(again, code);
        }
    }
}
