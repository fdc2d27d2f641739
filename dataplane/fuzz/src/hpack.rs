//! Header blocks of arbitrary bytes on one decoder; what decodes must survive the encoder and a second decoder.

use halo_core::h2::hpack::{Decoder, Encoder};

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut decoder = Decoder::new();
    for block in data.split(|byte| *byte == 0xfe) {
        let mut fields = Vec::new();
        let result = decoder.decode(block, |name, value| {
            if let (Ok(name), Ok(value)) = (std::str::from_utf8(name), std::str::from_utf8(value)) {
                fields.push((name.to_ascii_lowercase(), value.to_string()));
            }
        });
        if result.is_err() {
            return;
        }
        let (mut encoder, mut again, mut encoded) = (Encoder::new(), Vec::new(), Vec::new());
        encoder.begin(&mut encoded);
        for (name, value) in &fields {
            encoder.field(&mut encoded, name, value);
        }
        let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
        Decoder::new()
            .decode(&encoded, |name, value| again.push((text(name), text(value))))
            .expect("our own block decodes");
        assert_eq!(fields, again);
    }
}
