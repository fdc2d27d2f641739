//! The Huffman code of HPACK (RFC 7541, section 5.2 and appendix B).
//!
//! The code is canonical: among codes of one length, values ascend with their symbols. So the lengths alone define
//! it, and the tables below are computed from them at compile time.

#[cfg(test)]
mod tests;

const SYMBOLS: usize = 257;
const EOS: u16 = 256;
const LENGTH_MIN: usize = 5;
const LENGTH_MAX: usize = 30;

/// Length in bits of the code of each octet, and of EOS last (RFC 7541, appendix B).
#[rustfmt::skip]
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28,
    28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6,
    6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6,
    6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22,
    20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23,
    22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22,
    23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22,
    25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

/// The codes of one length.
#[derive(Copy, Clone)]
struct Span {
    /// The first code that is longer than this length, left-aligned in 32 bits; 2^32 does not fit, hence 64.
    end: u64,
    /// The first code of this length.
    first: u32,
    /// Where its symbol stands in `Tables::symbols`.
    place: u16,
}

struct Tables {
    /// Code of each symbol, right-aligned.
    codes: [u32; SYMBOLS],
    /// Symbols by length, then by value.
    symbols: [u16; SYMBOLS],
    /// Spans by length; those below [`LENGTH_MIN`] are empty.
    spans: [Span; LENGTH_MAX + 1],
}

static TABLES: Tables = tables();

const fn tables() -> Tables {
    let mut tables = Tables {
        codes: [0; SYMBOLS],
        symbols: [0; SYMBOLS],
        spans: [Span { end: 0, first: 0, place: 0 }; LENGTH_MAX + 1],
    };
    let (mut code, mut place, mut length) = (0u32, 0usize, LENGTH_MIN);
    while length <= LENGTH_MAX {
        tables.spans[length].first = code;
        tables.spans[length].place = place as u16;
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == length {
                tables.codes[symbol] = code;
                tables.symbols[place] = symbol as u16;
                code += 1;
                place += 1;
            }
            symbol += 1;
        }
        tables.spans[length].end = (code as u64) << (32 - length);
        code <<= 1;
        length += 1;
    }
    tables
}

// The code is complete: EOS is the last and all ones.
const _: () = assert!(TABLES_ARE_COMPLETE);
const TABLES_ARE_COMPLETE: bool = {
    let tables = tables();
    tables.codes[EOS as usize] == (1 << LENGTH_MAX) - 1 && tables.spans[LENGTH_MAX].end == 1 << 32
};

/// The text is not a Huffman code: it holds EOS, or its padding is longer than seven bits or not all ones
/// (RFC 7541, section 5.2).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct HuffmanError;

/// Bytes that [`encode`] appends for `text`.
pub fn encoded_len(text: &[u8]) -> usize {
    let bits: usize = text.iter().map(|octet| usize::from(LENGTHS[usize::from(*octet)])).sum();
    bits.div_ceil(8)
}

/// Appends the code of `text`, padded with ones.
pub fn encode(text: &[u8], out: &mut Vec<u8>) {
    let (mut bits, mut count) = (0u64, 0u32);
    for octet in text {
        let symbol = usize::from(*octet);
        bits = bits << LENGTHS[symbol] | u64::from(TABLES.codes[symbol]);
        count += u32::from(LENGTHS[symbol]);
        while count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    if count > 0 {
        out.push((bits << (8 - count)) as u8 | 0xff >> count);
    }
}

/// Appends the text that `code` stands for. At most 8/5 of its length is appended.
pub fn decode(code: &[u8], out: &mut Vec<u8>) -> Result<(), HuffmanError> {
    let mut octets = code.iter();
    // The next `count` bits of the code are the low ones of `bits`.
    let (mut bits, mut count) = (0u64, 0usize);
    loop {
        while count <= 56 {
            let Some(octet) = octets.next() else { break };
            bits = bits << 8 | u64::from(*octet);
            count += 8;
        }
        // Ones behind the end make the padding read as the start of EOS.
        let window = if count >= 32 {
            (bits >> (count - 32)) as u32
        } else {
            (bits << (32 - count)) as u32 | u32::MAX.checked_shr(count as u32).unwrap_or(0)
        };
        let (symbol, length) = lookup(window);
        if symbol == EOS || length > count {
            // Only padding is left, or the code is wrong. Fewer than 32 bits remain when the code ran out.
            return if count < 8 && window == u32::MAX { Ok(()) } else { Err(HuffmanError) };
        }
        out.push(symbol as u8);
        count -= length;
    }
}

/// The symbol that a left-aligned window begins with, and its length.
fn lookup(window: u32) -> (u16, usize) {
    for length in LENGTH_MIN..=LENGTH_MAX {
        let span = &TABLES.spans[length];
        if u64::from(window) < span.end {
            let place = usize::from(span.place) + ((window >> (32 - length)) - span.first) as usize;
            return (TABLES.symbols[place], length);
        }
    }
    (EOS, LENGTH_MAX)
}
