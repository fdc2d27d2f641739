//! One shard from the outside: its public API, real sockets on loopback, and a peer made of the machines alone.
//!
//! Each test runs on both rings and with both record layers, each time in a network namespace of its own, so that the
//! shard's fixed ports never clash. There are no redirect rules: a connection to a port of the shard is captured as if
//! it had been redirected from there. Making namespaces needs root.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod app;
#[allow(dead_code, reason = "shared with the unit tests, which use all of it")]
#[path = "../../src/tls/tests/authority.rs"]
mod authority;
mod link;
mod peer;
mod rig;

mod cuts;
mod deadlines;
mod demand;
mod descriptors;
mod dns;
mod double;
mod drain;
mod gateway;
mod inbound;
mod outbound;
mod pressure;
mod retry;
mod revocation;
mod socks5;
mod telemetry;
