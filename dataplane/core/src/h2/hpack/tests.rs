use super::*;
use proptest::prelude::*;

type Fields = Vec<(String, String)>;
/// A block, its fields, and the size of the table after it.
type Step<'a> = (&'a str, &'a [(&'a str, &'a str)], usize);

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pairs = digits.chunks_exact(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, HpackError> {
    let mut fields = Fields::new();
    let text = |octets: &[u8]| String::from_utf8(octets.to_vec()).unwrap();
    decoder.decode(block, |name, value| fields.push((text(name), text(value)))).map(|()| fields)
}

fn fields(pairs: &[(&str, &str)]) -> Fields {
    pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

/// Checks a series of blocks on one decoder.
fn check_series(series: &[Step<'_>]) {
    let mut decoder = Decoder::new();
    for (block, expected, table_size) in series {
        assert_eq!(decode(&mut decoder, &hex(block)), Ok(fields(expected)), "block {block}");
        assert_eq!(decoder.table_size(), *table_size, "table after {block}");
    }
}

const REQUEST_1: &[(&str, &str)] =
    &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")];
const REQUEST_2: &[(&str, &str)] = &[
    (":method", "GET"),
    (":scheme", "http"),
    (":path", "/"),
    (":authority", "www.example.com"),
    ("cache-control", "no-cache"),
];
const REQUEST_3: &[(&str, &str)] = &[
    (":method", "GET"),
    (":scheme", "https"),
    (":path", "/index.html"),
    (":authority", "www.example.com"),
    ("custom-key", "custom-value"),
];

#[test]
fn rfc_7541_c_2_literals_and_indexed() {
    let one = |block: &str| decode(&mut Decoder::new(), &hex(block)).unwrap();
    assert_eq!(
        one("400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572"),
        fields(&[("custom-key", "custom-header")])
    );
    assert_eq!(one("040c 2f73 616d 706c 652f 7061 7468"), fields(&[(":path", "/sample/path")]));
    assert_eq!(one("1008 7061 7373 776f 7264 0673 6563 7265 74"), fields(&[("password", "secret")]));
    assert_eq!(one("82"), fields(&[(":method", "GET")]));
}

#[test]
fn rfc_7541_c_3_requests_without_huffman() {
    check_series(&[
        ("8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d", REQUEST_1, 57),
        ("8286 84be 5808 6e6f 2d63 6163 6865", REQUEST_2, 110),
        ("8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65", REQUEST_3, 164),
    ]);
}

#[test]
fn rfc_7541_c_4_requests_with_huffman() {
    check_series(&[
        ("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff", REQUEST_1, 57),
        ("8286 84be 5886 a8eb 1064 9cbf", REQUEST_2, 110),
        ("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf", REQUEST_3, 164),
    ]);
}

const LOCATION: (&str, &str) = ("location", "https://www.example.com");
const PRIVATE: (&str, &str) = ("cache-control", "private");
const DATE_21: (&str, &str) = ("date", "Mon, 21 Oct 2013 20:13:21 GMT");
const DATE_22: (&str, &str) = ("date", "Mon, 21 Oct 2013 20:13:22 GMT");
const COOKIE: (&str, &str) = ("set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1");

/// The tables of appendix C.5 and C.6 hold 256 octets: a size update that the examples leave out comes first.
fn check_responses(first: &str, second: &str, third: &str) {
    check_series(&[
        (&format!("3fe101 {first}"), &[(":status", "302"), PRIVATE, DATE_21, LOCATION], 222),
        (second, &[(":status", "307"), PRIVATE, DATE_21, LOCATION], 222),
        (third, &[(":status", "200"), PRIVATE, DATE_22, LOCATION, ("content-encoding", "gzip"), COOKIE], 215),
    ]);
}

#[test]
fn rfc_7541_c_5_responses_without_huffman_and_with_eviction() {
    check_responses(
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120
         474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "4803 3330 37c1 c0bf",
        "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738
         666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33
         3630 303b 2076 6572 7369 6f6e 3d31",
    );
}

#[test]
fn rfc_7541_c_6_responses_with_huffman_and_with_eviction() {
    check_responses(
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718
         63c7 8f0b 97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7
         b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
    );
}

#[test]
fn blocks_that_cannot_be_decoded_are_refused() {
    let cases: &[(&str, HpackError)] = &[
        ("80", HpackError::Index),
        ("be", HpackError::Index),
        ("7f 00 00", HpackError::Index),
        ("ff", HpackError::Truncated),
        ("ff80", HpackError::Truncated),
        ("ff 8080 8080 80 00", HpackError::Integer),
        ("ff ffff ffff 7f", HpackError::Integer),
        ("ff ffff ffff 0f", HpackError::Integer),
        ("00", HpackError::Truncated),
        ("00 01", HpackError::Truncated),
        ("00 0161", HpackError::Truncated),
        ("00 0161 02 62", HpackError::Truncated),
        ("00 81ff 00", HpackError::Huffman),
        ("04 81fe", HpackError::Huffman),
        ("3f e2 1f", HpackError::TableSize),
        ("82 20", HpackError::TableSize),
        ("20 82 20", HpackError::TableSize),
    ];
    for (block, error) in cases {
        assert_eq!(decode(&mut Decoder::new(), &hex(block)), Err(*error), "block {block}");
    }
}

#[test]
fn a_field_larger_than_the_table_empties_it() {
    let mut decoder = Decoder::new();
    decode(&mut decoder, &hex("3f 09 40 0161 0162")).unwrap();
    assert_eq!(decoder.table_size(), 34);
    decode(&mut decoder, &hex("40 0161 0a 62626262626262626262")).unwrap();
    assert_eq!(decoder.table_size(), 0);
    assert_eq!(decode(&mut decoder, &hex("be")), Err(HpackError::Index));
}

#[test]
fn a_literal_may_take_its_name_from_the_entry_that_it_evicts() {
    let mut decoder = Decoder::new();
    decode(&mut decoder, &hex("3f 09 40 0161 0162")).unwrap();
    assert_eq!(decode(&mut decoder, &hex("7e 0163")).unwrap(), fields(&[("a", "c")]));
    assert_eq!(decode(&mut decoder, &hex("be")).unwrap(), fields(&[("a", "c")]));
}

#[test]
fn the_encoder_gives_up_the_table_once_and_never_fills_it() {
    let (mut encoder, mut decoder, mut block) = (Encoder::new(), Decoder::new(), Vec::new());
    encoder.begin(&mut block);
    encoder.field(&mut block, "baggage", "k8s.cluster.name=Kubernetes");
    assert_eq!(block[0], 0x20);
    decode(&mut decoder, &block).unwrap();
    assert_eq!(decoder.table_size(), 0);
    block.clear();
    encoder.begin(&mut block);
    encoder.field(&mut block, ":status", "200");
    assert_eq!(block, [0x88]);
}

/// The plainest encoder that the decoder must understand: literals in full, with the representation, the Huffman form
/// and the indexing chosen at random. It keeps a model of the table to refer to.
#[derive(Clone, Debug)]
enum Piece {
    Literal { name: String, value: String, indexed: bool, name_coded: bool, value_coded: bool },
    Repeat(usize),
}

fn piece() -> impl Strategy<Value = Piece> {
    let text = "[ -~]{0,40}";
    prop_oneof![
        4 => (text, text, any::<[bool; 3]>()).prop_map(|(name, value, [indexed, name_coded, value_coded])| {
            Piece::Literal { name, value, indexed, name_coded, value_coded }
        }),
        1 => any::<usize>().prop_map(Piece::Repeat),
    ]
}

fn plain_integer(out: &mut Vec<u8>, pattern: u8, prefix: u32, value: usize) {
    let mask = (1 << prefix) - 1;
    if value < mask {
        out.push(pattern | value as u8);
        return;
    }
    out.push(pattern | mask as u8);
    let mut rest = value - mask;
    while rest > 127 {
        out.push((rest % 128) as u8 + 128);
        rest /= 128;
    }
    out.push(rest as u8);
}

fn plain_string(out: &mut Vec<u8>, text: &str, coded: bool) {
    let mut octets = Vec::new();
    if coded {
        crate::h2::huffman::encode(text.as_bytes(), &mut octets);
    } else {
        octets.extend_from_slice(text.as_bytes());
    }
    plain_integer(out, if coded { 0x80 } else { 0 }, 7, octets.len());
    out.extend_from_slice(&octets);
}

/// Encodes one piece and returns its field; `model` is the dynamic table, newest first.
fn plain_encode(out: &mut Vec<u8>, piece: &Piece, model: &mut Fields) -> (String, String) {
    match piece {
        Piece::Repeat(choice) => {
            let place = choice % (61 + model.len());
            plain_integer(out, 0x80, 7, place + 1);
            if place < 61 {
                let (name, value) = table::STATIC[place];
                (name.to_string(), value.to_string())
            } else {
                model[place - 61].clone()
            }
        }
        Piece::Literal { name, value, indexed, name_coded, value_coded } => {
            out.push(if *indexed { 0x40 } else { 0x10 });
            plain_string(out, name, *name_coded);
            plain_string(out, value, *value_coded);
            let field = (name.clone(), value.clone());
            if *indexed {
                model.insert(0, field.clone());
                let cost = |field: &(String, String)| field.0.len() + field.1.len() + FIELD_OVERHEAD;
                while model.iter().map(cost).sum::<usize>() > TABLE_SIZE {
                    model.pop();
                }
            }
            field
        }
    }
}

proptest! {
    #[test]
    fn the_decoder_reads_what_a_plain_encoder_writes(
        blocks in prop::collection::vec(prop::collection::vec(piece(), 0..40), 1..6)
    ) {
        let (mut decoder, mut model) = (Decoder::new(), Fields::new());
        for pieces in &blocks {
            let mut block = Vec::new();
            let expected: Fields =
                pieces.iter().map(|piece| plain_encode(&mut block, piece, &mut model)).collect();
            prop_assert_eq!(decode(&mut decoder, &block), Ok(expected));
        }
    }

    #[test]
    fn the_decoder_reads_what_the_encoder_writes(
        blocks in prop::collection::vec(
            prop::collection::vec(("[a-z:-]{1,20}", "[ -~]{0,200}"), 0..12), 1..4)
    ) {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
        for expected in blocks {
            let mut block = Vec::new();
            encoder.begin(&mut block);
            for (name, value) in &expected {
                encoder.field(&mut block, name, value);
            }
            prop_assert_eq!(decode(&mut decoder, &block), Ok(expected));
        }
    }

    #[test]
    fn arbitrary_blocks_never_panic(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 1..4)) {
        let mut decoder = Decoder::new();
        for block in blocks {
            let _ = decoder.decode(&block, |_, _| {});
        }
    }
}
