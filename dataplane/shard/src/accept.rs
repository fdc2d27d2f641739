//! The accept loop, one for each listener of each pod. It is never dropped while an accept is in flight.

use std::rc::Rc;

use halo_core::outcome::Reason;
use halo_core::report::Direction;

use crate::pod::Pod;
use crate::refusal::Subject;
use crate::ring;
use crate::shard::Shard;
use crate::socket::Listener;
use crate::{inbound, outbound, plaintext};

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
}

impl Capture {
    fn direction(self) -> Direction {
        match self {
            Self::Outbound => Direction::Outbound,
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
        if pod.connections.get() >= shard.limits.connections_per_pod_max {
            let subject = Subject {
                pod: &pod,
                direction: capture.direction(),
                source: peer,
                destination: None,
                identity: None,
            };
            shard.ended(subject, Reason::LimitReached);
            socket.closer().abort();
            continue;
        }
        let place = Seat::take(&pod);
        let (shard_, pod_) = (shard.clone(), pod.clone());
        shard.spawn(async move {
            let _place = place;
            match capture {
                Capture::Outbound => outbound::serve(shard_, pod_, socket, peer).await,
                Capture::Inbound => inbound::serve(shard_, pod_, socket, peer).await,
                Capture::InboundPlaintext => plaintext::serve(shard_, pod_, socket, peer).await,
            }
        });
    }
}

/// One connection's place among those of its pod.
struct Seat {
    pod: Rc<Pod>,
}

impl Seat {
    fn take(pod: &Rc<Pod>) -> Self {
        pod.connections.set(pod.connections.get() + 1);
        Self { pod: pod.clone() }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.pod.connections.set(self.pod.connections.get() - 1);
    }
}
