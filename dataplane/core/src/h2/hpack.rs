//! Header compression (RFC 7541).
//!
//! [`Decoder`] understands everything a peer may send. [`Encoder`] keeps no state: see there why. Neither knows what
//! a field means, nor how many are too many.

mod decode;
mod encode;
mod table;

pub use decode::{Decoder, HpackError};
pub use encode::Encoder;

#[cfg(test)]
mod tests;

/// What a field costs in a header list or table beyond its octets (RFC 7541, section 4.1; RFC 9113, section 6.5.2).
pub const FIELD_OVERHEAD: usize = 32;
/// Size of the dynamic table that we let a peer use: the default of SETTINGS_HEADER_TABLE_SIZE, which we do not change.
pub const TABLE_SIZE: usize = 4096;
