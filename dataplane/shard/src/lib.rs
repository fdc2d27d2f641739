//! One shard of the node proxy: a thread with its own ring, sockets, tunnels and counters.

pub mod tls;
