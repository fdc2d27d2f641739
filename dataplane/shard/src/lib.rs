//! One shard of the node proxy: one thread, pinned to one core, with one ring.
//!
//! The hot path in reading order. Outbound: `accept::run` → `outbound::serve` → `pool::acquire` → `tunnel::Tunnel::open`
//! → `relay::upload` → `tunnel::Tunnel::send` → `tunnel::io::write`. Inbound: `accept::run` → `inbound::serve` →
//! `tunnel::io::read` → `inbound::admit` → `relay::download`.
//!
//! A shard shares nothing that a connection touches with another thread. It hears from the control thread through its
//! mailbox, and only this crate's `ring` and `socket` modules know the runtime.
#![deny(unsafe_code)]

mod accept;
mod access;
mod buffers;
mod conn;
mod demand;
mod dns;
mod inbound;
mod mailbox;
mod netns;
mod outbound;
mod plaintext;
mod pod;
mod pool;
mod refusal;
mod relay;
mod ring;
mod shard;
#[allow(
    unsafe_code,
    reason = "descriptors of the runtime's sockets, and one connect(2) without a library form"
)]
mod socket;
mod socks5;
mod start;
mod stats;
mod telemetry;
mod timer;
pub mod tls;
mod tunnel;
mod wake;

pub use access::{AccessOutput, AccessSink};
pub use demand::Ask;
pub use dns::DnsConfig;
pub use mailbox::{BindError, Mailbox, Message, PodSpec, Reply};
pub use ring::{RingKind, now_ms, probe_io_uring};
pub use start::{ShardConfig, StartError, start};
