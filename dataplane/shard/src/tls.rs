//! TLS of an HBONE tunnel, as machines without I/O.
//!
//! A [`Handshake`] is driven with received bytes until it is done and then hands over [`Records`], which seal and open
//! application data in the caller's buffers. rustls does every handshake; the default record layer is our own
//! ([`RecordsKind::Sealed`]). Both peers always present a workload certificate; who may be at the far end is decided in
//! `verify`. TLS 1.2 is spoken only where the node is set to
//! ([`Terms`]), and then by rustls' record layer. Nothing here resumes sessions, offers SNI or reads a socket.
//!
//! The end of a byte stream without [`Opened::Closed`] is a truncation; only the caller sees it and must report it.

mod config;
mod connection;
mod error;
mod handshake;
mod messages;
mod recent;
mod records;
mod revocation;
mod sealed;
mod signed;
mod unbuffered;
mod verify;

pub use config::{Terms, TlsConfig};
pub use error::{CertificateFault, TlsError};
pub use handshake::{Handshake, Progress};
pub use records::{AnyRecords, Opened, Records, RecordsKind};
pub use revocation::{PeerChain, RevocationLists};
pub use sealed::Sealed;
pub use unbuffered::Unbuffered;

#[cfg(test)]
pub(crate) mod tests;
