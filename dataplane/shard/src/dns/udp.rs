//! Queries in datagrams.

use std::net::SocketAddr;
use std::rc::Rc;

use halo_core::dns::message::Protocol;

use super::query::{self, Sink};
use crate::pod::Pod;
use crate::ring::{self, Turns};
use crate::shard::Shard;
use crate::socket::Datagrams;
use crate::wake::either;

/// Datagrams taken before other tasks have their turn.
const BATCH_MAX: usize = 32;
/// Pause after the socket failed, ms.
const BACKOFF_MS: u64 = 100;

/// Takes queries until the pod's listeners are stopped.
pub(super) async fn run(shard: Rc<Shard>, pod: Rc<Pod>, socket: Rc<Datagrams>) {
    let turns = Turns::default();
    while !pod.is_stopped() {
        let readable = turns.run(either(socket.readable(), pod.dns.stopped.next())).await;
        if pod.is_stopped() {
            return;
        }
        let failed = matches!(readable, Some(Err(_)));
        if failed || !drain(&shard, &pod, &socket) {
            ring::sleep_ms(BACKOFF_MS).await;
        }
    }
}

/// Takes what is there; `false` when the socket fails.
fn drain(shard: &Rc<Shard>, pod: &Rc<Pod>, socket: &Rc<Datagrams>) -> bool {
    // A query is answered while the buffer is in use, but nobody else receives meanwhile.
    let mut buffer = shard.dns.buffer.borrow_mut();
    for _ in 0..BATCH_MAX {
        match socket.receive_from(&mut buffer) {
            Ok((length, peer)) => {
                // Nobody but this listener sends from its port: two of its kind would answer each other for ever.
                if !shard.dns.config.listen.contains(&peer) {
                    query::take(
                        shard,
                        pod,
                        &buffer[..length],
                        ToPeer { shard: shard.clone(), socket: socket.clone(), peer },
                    );
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return true,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    true
}

struct ToPeer {
    shard: Rc<Shard>,
    socket: Rc<Datagrams>,
    peer: SocketAddr,
}

impl Sink for ToPeer {
    fn protocol(&self) -> Protocol {
        Protocol::Udp
    }

    fn send(&self, bytes: Vec<u8>) {
        // Like any datagram a reply may be lost, and the client asks again.
        if self.socket.send_to(&bytes, self.peer).is_err() {
            self.shard.counters.dns_replies_dropped.increment();
        }
    }
}
