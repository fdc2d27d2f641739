//! DNS for captured pods, without I/O: which questions the mesh answers itself, and how the others are forwarded.
//!
//! A query goes [`message::Query::read`] → [`answer::answer`]; what the mesh does not know goes through
//! [`cache::Cache`] and, where that is empty, an [`exchange::Exchange`] with the node's own servers. All answers leave
//! through [`message::Reply::write`], which keeps to what the client can take. Sockets, clocks and tasks belong to the
//! caller; random numbers and the time are arguments. It never asks the control plane: a name that no service has is
//! an ordinary name, and the servers know it or not.

pub mod answer;
pub mod cache;
pub mod exchange;
pub mod message;
pub mod names;
pub mod share;

/// The port of the DNS listeners in every captured pod.
pub const DNS_PORT: u16 = 15053;
/// Life of our own answers, s: pods learn soon of a service that changes.
pub const TTL_S: u32 = 30;
/// How long a question may take in all, ms; clients give up at the same time.
pub const DEADLINE_MS: u64 = 5_000;
