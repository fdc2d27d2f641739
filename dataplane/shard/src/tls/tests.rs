//! Tests of the TLS machines against each other and against other implementations, and what they share.

pub(crate) mod authority;
pub(crate) mod pair;

mod buffered;
mod handshake;
mod measure;
mod openssl;
mod records;
mod revocation;
mod terms;
