//! Writing header blocks (RFC 7541, section 6).

use super::table::STATIC;
use crate::h2::huffman;

/// Encodes header blocks without a dynamic table: static entries and literals without indexing, each string in
/// Huffman code where that is shorter.
///
/// A tunnel carries one header block per connection of an application, and half of it (`forwarded`, `traceparent`)
/// differs every time. A table would save about a hundred bytes of it, for memory in every tunnel at both ends, a
/// search per field, and a session state that any reordering of blocks destroys. So the encoder gives the table up
/// with its first block, which also lets the peer choose any SETTINGS_HEADER_TABLE_SIZE at any time (RFC 7541,
/// section 4.2).
#[derive(Debug, Default)]
pub struct Encoder {
    table_given_up: bool,
}

impl Encoder {
    /// An encoder whose first block gives up the dynamic table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a block in `out`. Blocks are sent in the order they are started.
    pub fn begin(&mut self, out: &mut Vec<u8>) {
        if !self.table_given_up {
            self.table_given_up = true;
            // A dynamic table size update to 0.
            out.push(0x20);
        }
    }

    /// Appends a field to the block in `out`. The name is in lower case.
    pub fn field(&self, out: &mut Vec<u8>, name: &str, value: &str) {
        debug_assert!(!name.bytes().any(|octet| octet.is_ascii_uppercase()), "{name:?} is not in lower case");
        if let Some(place) = STATIC.iter().position(|entry| *entry == (name, value)) {
            return integer(out, 0x80, 7, place + 1);
        }
        match STATIC.iter().position(|(entry, _)| *entry == name) {
            Some(place) => integer(out, 0x00, 4, place + 1),
            None => {
                out.push(0x00);
                string(out, name);
            }
        }
        string(out, value);
    }
}

/// Appends an integer behind the bits of `pattern` (RFC 7541, section 5.1).
fn integer(out: &mut Vec<u8>, pattern: u8, prefix: u32, value: usize) {
    let mask = (1usize << prefix) - 1;
    if value < mask {
        return out.push(pattern | value as u8);
    }
    out.push(pattern | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Appends a string in the shorter of its two forms (RFC 7541, section 5.2).
fn string(out: &mut Vec<u8>, text: &str) {
    let coded = huffman::encoded_len(text.as_bytes());
    if coded < text.len() {
        integer(out, 0x80, 7, coded);
        huffman::encode(text.as_bytes(), out);
    } else {
        integer(out, 0x00, 7, text.len());
        out.extend_from_slice(text.as_bytes());
    }
}
