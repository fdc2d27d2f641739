//! The accept loop, one for each listener of each pod. It is never dropped while an accept is in flight.

use std::rc::Rc;

use halo_core::report::Direction;

use crate::pod::{Pod, SeatKind};
use crate::refusal::Subject;
use crate::ring;
use crate::shard::Shard;
use crate::socket::Listener;
use crate::{inbound, outbound, plaintext, socks5};

/// Longest pause after an accept that failed for want of descriptors or memory.
const BACKOFF_MS_MAX: u64 = 1_000;

/// What a listener captures.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Capture {
    /// Connections that the pod opens (15001).
    Outbound,
    /// HBONE tunnels to the pod (15008).
    Inbound,
    /// Plain connections to the pod (15006).
    InboundPlaintext,
    /// Connections that the pod asks for by SOCKS5 (15080).
    Socks5,
}

impl Capture {
    fn seat(self) -> SeatKind {
        match self {
            Self::Outbound | Self::InboundPlaintext | Self::Socks5 => SeatKind::Captured(self.direction()),
            Self::Inbound => SeatKind::Tunnel,
        }
    }

    fn direction(self) -> Direction {
        match self {
            Self::Outbound | Self::Socks5 => Direction::Outbound,
            Self::Inbound | Self::InboundPlaintext => Direction::Inbound,
        }
    }
}

/// Accepts until the pod's listeners are stopped. A failing accept backs off instead of spinning.
pub(crate) async fn run(shard: Rc<Shard>, pod: Rc<Pod>, listener: Rc<Listener>, capture: Capture) {
    let mut backoff_ms = 0;
    loop {
        let accepted = listener.accept().await;
        if pod.is_stopped() {
            // A connection that came with the stop is refused, not ended in order.
            if let Ok((socket, _)) = accepted {
                socket.closer().abort();
            }
            return;
        }
        let Ok((socket, peer)) = accepted else {
            backoff_ms = (backoff_ms * 2).clamp(5, BACKOFF_MS_MAX);
            shard.counters.accept_backoffs.increment();
            ring::sleep_ms(backoff_ms).await;
            continue;
        };
        backoff_ms = 0;
        shard.counters.accepts.increment();
        let seat = match pod.seat(&shard, capture.seat()) {
            Ok(seat) => seat,
            Err(reason) => {
                let subject = Subject::new(&pod, capture.direction(), peer, None);
                plaintext::refuse(&shard, &socket, subject, reason);
                continue;
            }
        };
        // A task of its own for each kind, which is then no larger than its own kind needs.
        match capture {
            Capture::Outbound => shard.spawn(outbound::serve(seat, socket, peer)),
            Capture::Inbound => shard.spawn(inbound::serve(seat, socket, peer)),
            Capture::InboundPlaintext => shard.spawn(plaintext::serve(seat, socket, peer)),
            Capture::Socks5 => shard.spawn(socks5::serve(seat, socket, peer)),
        }
    }
}
