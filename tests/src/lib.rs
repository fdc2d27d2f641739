//! What the end-to-end scenarios share: nodes with real proxies in network namespaces, Envoy as the peer that we did
//! not write, and traffic whose every byte is checked.
//!
//! Helpers panic with what they saw, as tests do; a failed test prints the end of every log of its lab. Whatever
//! waits has a deadline, and whatever is random has a printed seed that `HALO_SEED` replays.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

pub mod binaries;
pub mod certs;
pub mod envoy;
pub mod exchange;
pub mod frames;
pub mod hbone;
pub mod names;
pub mod observe;
pub mod pair;
pub mod pattern;
pub mod random;
pub mod requests;
pub mod rig;
pub mod sandwich;
pub mod socket;
pub mod talk;
pub mod traffic;
pub mod xds;
pub mod zds;

pub use rig::Rig;
