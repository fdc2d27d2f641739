//! Reading header blocks (RFC 7541, section 6).

use super::TABLE_SIZE;
use super::table::Table;
use crate::h2::huffman;

/// A header block cannot be decoded, and with it the compression state of the session is lost: COMPRESSION_ERROR
/// (RFC 9113, section 4.3).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum HpackError {
    /// The block ends within a field.
    Truncated,
    /// An integer is larger than any that a valid block holds (RFC 7541, section 5.1).
    Integer,
    /// An index names no entry (RFC 7541, section 2.3.3).
    Index,
    /// A string is not a Huffman code (RFC 7541, section 5.2).
    Huffman,
    /// A table size update is not at the start of the block, or above the limit (RFC 7541, sections 4.2 and 6.3).
    TableSize,
}

/// Decodes the header blocks of one session, in order: every block must pass through, wanted or not.
pub struct Decoder {
    table: Table,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Decoder {
    /// A decoder with an empty table of [`TABLE_SIZE`].
    pub fn new() -> Self {
        Self { table: Table::new(), name: Vec::new(), value: Vec::new() }
    }

    /// Hands each field of a complete block to `sink`, in order.
    pub fn decode(&mut self, block: &[u8], mut sink: impl FnMut(&[u8], &[u8])) -> Result<(), HpackError> {
        let mut rest = block;
        let mut at_start = true;
        while let Some(first) = rest.first().copied() {
            match first {
                0x80.. => {
                    let index = integer(&mut rest, 7)?;
                    let (name, value) = self.table.field(index).ok_or(HpackError::Index)?;
                    sink(name, value);
                }
                0x40.. => {
                    self.literal(&mut rest, 6)?;
                    self.table.insert(&self.name, &self.value);
                    sink(&self.name, &self.value);
                }
                0x20.. => {
                    let size = integer(&mut rest, 5)?;
                    if !at_start || size > TABLE_SIZE {
                        return Err(HpackError::TableSize);
                    }
                    self.table.resize(size);
                    continue;
                }
                // Without indexing, and never indexed: the difference matters to those who re-encode.
                _ => {
                    self.literal(&mut rest, 4)?;
                    sink(&self.name, &self.value);
                }
            }
            at_start = false;
        }
        Ok(())
    }

    /// Reads a literal field into `self.name` and `self.value` (RFC 7541, section 6.2).
    fn literal(&mut self, rest: &mut &[u8], prefix: u32) -> Result<(), HpackError> {
        let index = integer(rest, prefix)?;
        if index == 0 {
            string(rest, &mut self.name)?;
        } else {
            let (name, _) = self.table.field(index).ok_or(HpackError::Index)?;
            self.name.clear();
            self.name.extend_from_slice(name);
        }
        string(rest, &mut self.value)
    }

    /// Octets in use in the dynamic table.
    #[cfg(test)]
    pub(super) fn table_size(&self) -> usize {
        self.table.size()
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads an integer with a prefix of so many bits (RFC 7541, section 5.1). Five octets carry more than any valid
/// length or index; more are refused.
fn integer(rest: &mut &[u8], prefix: u32) -> Result<usize, HpackError> {
    let (first, mut tail) = rest.split_first().ok_or(HpackError::Truncated)?;
    let mask = (1u8 << prefix) - 1;
    let mut value = u64::from(first & mask);
    if value == u64::from(mask) {
        let mut shift = 0;
        loop {
            let (octet, after) = tail.split_first().ok_or(HpackError::Truncated)?;
            tail = after;
            value += u64::from(octet & 0x7f) << shift;
            if octet & 0x80 == 0 {
                break;
            }
            shift += 7;
            if shift > 28 {
                return Err(HpackError::Integer);
            }
        }
    }
    *rest = tail;
    u32::try_from(value).map(|value| value as usize).map_err(|_| HpackError::Integer)
}

/// Reads a string into `out` (RFC 7541, section 5.2).
fn string(rest: &mut &[u8], out: &mut Vec<u8>) -> Result<(), HpackError> {
    let coded = rest.first().ok_or(HpackError::Truncated)? & 0x80 != 0;
    let length = integer(rest, 7)?;
    let (octets, tail) = rest.split_at_checked(length).ok_or(HpackError::Truncated)?;
    *rest = tail;
    out.clear();
    if coded {
        huffman::decode(octets, out).map_err(|_| HpackError::Huffman)
    } else {
        out.extend_from_slice(octets);
        Ok(())
    }
}
