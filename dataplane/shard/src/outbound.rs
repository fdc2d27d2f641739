//! Connections that a pod opens (15001, and by SOCKS5): where they go, and how.
//!
//! original destination → own workload → `resolve` → plain TCP, or a stream on a tunnel. Nothing of the application's
//! bytes is read before the far side has accepted, so until then another tunnel, another address and another endpoint
//! may be tried.

mod connect;
mod double;
mod stream;

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use halo_core::net::Target;
use halo_core::outcome::Reason;
use halo_core::relay::Way;
use halo_core::report::Direction;
use halo_core::resolve::{self, Attempt, Captured, HboneRoute, Route, TcpRoute};
use halo_core::workload::Workload;

use crate::conn::Parties;
use crate::demand::Missing;
use crate::plaintext;
use crate::pod::{Pod, Seat};
use crate::refusal::Subject;
use crate::relay;
use crate::ring;
use crate::shard::{Shard, Tracked};
use crate::socket::Socket;

use connect::Upstream;

/// Endpoints tried for one connection.
const ENDPOINTS_MAX: usize = 3;
/// Tries for one connection in all: endpoints may have several addresses.
const TRIES_MAX: usize = 6;

/// Takes a captured connection to its destination and starts to relay it.
pub(crate) async fn serve(seat: Seat, socket: Socket, client: SocketAddr) {
    let destination = socket.original_destination(client);
    let known = destination.as_ref().ok().copied();
    let opened = match destination {
        Ok(destination) => open(&seat, &socket, client, destination).await,
        Err(_) => Err(Reason::LocalSocket.into()),
    };
    match opened {
        Ok(opened) => start(seat, socket, opened),
        Err(unopened) => {
            unopened.tell(&seat, client, known);
            // RST, so that the client does not take it for an end.
            socket.closer().abort();
        }
    }
}

/// Why a connection of a pod is refused.
pub(crate) struct Unopened {
    pub(crate) reason: Reason,
    /// Its ends, if it was decided where it goes.
    parties: Option<Box<Parties>>,
}

impl From<Reason> for Unopened {
    fn from(reason: Reason) -> Self {
        Self { reason, parties: None }
    }
}

impl Unopened {
    /// Counts it, and tells people.
    pub(crate) fn tell(self, seat: &Seat, client: SocketAddr, destination: Option<SocketAddr>) {
        match self.parties {
            Some(parties) => seat.shard.refused(&seat.pod, *parties, self.reason.into()),
            None => {
                let subject = Subject::new(&seat.pod, Direction::Outbound, client, destination);
                seat.shard.ended(subject, self.reason);
            }
        }
    }
}

/// A connection of a pod that its far side has accepted. It is tracked from then on.
pub(crate) struct Opened {
    tracked: Tracked,
    upstream: Upstream,
}

/// Starts to relay. The relay is a task of its own: it needs a fraction of the state that opening does.
pub(crate) fn start(seat: Seat, socket: Socket, opened: Opened) {
    let Opened { tracked, upstream } = opened;
    match upstream {
        Upstream::Tcp(upstream) => plaintext::relay(seat, tracked, socket, upstream),
        Upstream::Hbone(stream, place) => {
            let shard = tracked.shard.clone();
            let relayed = relay::hbone(tracked, socket, Way::Upstream, stream, move |conn, reason| {
                seat.shard.finished(conn, reason);
                drop((place, seat));
            });
            shard.spawn(relayed);
        }
    }
}

/// Connects to where a connection of the pod goes, and tracks it.
///
/// # Errors
/// Why it is refused; nothing of the application's bytes was read.
pub(crate) async fn open(
    seat: &Seat,
    socket: &Socket,
    client: SocketAddr,
    destination: SocketAddr,
) -> Result<Opened, Unopened> {
    let (shard, pod) = (&seat.shard, &seat.pod);
    let trace = [shard.random(), shard.random(), shard.random()];
    let begun_ms = ring::now_ms();
    let ask = Ask { shard, pod, client, destination, begun_ms, trace, gateway_took: Cell::new(false) };
    let decided = route(&ask, &[]).await?;
    match connect::open(&ask, socket, &decided).await {
        Ok(opened) => Ok(opened),
        // Nearly every connection finds its first endpoint, and none should be larger for those that do not.
        Err(reason) => Box::pin(elsewhere(&ask, socket, decided, reason)).await,
    }
}

/// Tries other endpoints after one could not be reached, each by the newest generation. Where there is none left, what
/// the last one said stands.
async fn elsewhere(
    ask: &Ask<'_>,
    socket: &Socket,
    mut decided: Decided,
    mut reason: Reason,
) -> Result<Opened, Unopened> {
    let (mut failed, mut behind) = (Vec::new(), 0);
    for _ in 1..TRIES_MAX {
        let Some(attempt) = decided.attempt().filter(|_| ask.may_retry(reason)) else {
            break;
        };
        match ask.gateway_took.take() {
            // A gateway that took the stream is not at fault. Asked again, it chooses among the workloads behind it.
            true => behind += 1,
            false => failed.push(attempt),
        }
        let Ok(next) = route(ask, &failed).await else {
            break;
        };
        let worth_it = next.attempt().is_some_and(|attempt| is_worth_it(&attempt, &failed));
        if !worth_it || behind >= ENDPOINTS_MAX {
            break;
        }
        ask.shard.counters.retries.increment();
        decided = next;
        match connect::open(ask, socket, &decided).await {
            Ok(opened) => return Ok(opened),
            Err(other) => reason = other,
        }
    }
    Err(Unopened { reason, parties: Some(Box::new(connect::parties(ask, &decided, None))) })
}

/// Whether an attempt is a new one, and not on a further endpoint than may be tried.
fn is_worth_it(attempt: &Attempt, failed: &[Attempt]) -> bool {
    if failed.contains(attempt) {
        return false;
    }
    let mut endpoints: Vec<&Arc<str>> = failed.iter().map(|attempt| &attempt.workload).collect();
    endpoints.push(&attempt.workload);
    endpoints.sort_unstable();
    endpoints.dedup();
    endpoints.len() <= ENDPOINTS_MAX
}

/// What is known of a captured connection.
struct Ask<'a> {
    shard: &'a Rc<Shard>,
    pod: &'a Rc<Pod>,
    /// The application's end.
    client: SocketAddr,
    destination: SocketAddr,
    begun_ms: u64,
    /// Names the connection in the `traceparent` header.
    trace: [u64; 3],
    /// The gateway to another network accepted the stream; what failed is behind it.
    gateway_took: Cell<bool>,
}

impl Ask<'_> {
    /// Whether another endpoint may be tried after this failure. Nothing has been sent to the one that failed; whoever
    /// waits for the connection does not wait much longer for the next one than it would for an answer of the first.
    fn may_retry(&self, reason: Reason) -> bool {
        // The destination has gone since the decision; another generation has another one.
        let moved = reason == Reason::WorkloadGone && !self.pod.is_gone();
        let in_time = ring::now_ms() < self.begun_ms + self.shard.limits.connect_answer_ms_max;
        (moved || reason.outcome().retry) && in_time
    }
}

/// What was decided for a captured connection by one generation.
struct Decided {
    source: Arc<Workload>,
    way: Open,
}

/// What to open.
enum Open {
    Tcp(TcpRoute),
    Hbone(HboneRoute),
}

impl Decided {
    /// What is tried by it; `None` for a destination outside the mesh, where there is nothing else to try.
    fn attempt(&self) -> Option<Attempt> {
        let (target, workload) = match &self.way {
            Open::Tcp(to) => (&to.target, to.workload.as_ref()?),
            Open::Hbone(to) => (&to.peer, &to.workload),
        };
        let ip = match target {
            Target::Address(address) => Some(address.ip()),
            Target::Host(_) => None,
        };
        Some(Attempt { workload: workload.uid.clone(), ip })
    }
}

/// Decides by one generation. What the control plane has not delivered yet is waited for: the pod's own workload, what
/// the node has to ask for, and the certificate that a tunnel presents.
async fn route(ask: &Ask<'_>, failed: &[Attempt]) -> Result<Decided, Reason> {
    let (shard, pod) = (ask.shard, ask.pod);
    let (client, destination) = (ask.client, ask.destination);
    let decided = shard.wait_for(pod, |snapshot| {
        let source = shard.workload_of(snapshot, pod).ok_or(Reason::SourceUnknown)?;
        // The kernel takes the unspecified address for the loopback one.
        let ip = destination.ip();
        let own = ip.is_loopback() || ip.is_unspecified() || source.addresses.contains(&ip);
        if own && shard.is_own_port(destination.port()) {
            return Ok(Err(Reason::OwnPort));
        }
        let captured = Captured { source, client, destination };
        let way = match resolve::resolve(snapshot, &captured, shard.random(), failed) {
            Route::Lookup(question) => {
                return Err(Missing { reason: Reason::DestinationUnknown, question: Some(question) });
            }
            Route::Tcp(to) => Open::Tcp(to),
            Route::Hbone(to) => {
                shard.own_tls(snapshot, &source.identity())?;
                Open::Hbone(to)
            }
            Route::Deny(reason) => return Ok(Err(reason)),
        };
        Ok(Ok(Decided { source: source.clone(), way }))
    });
    decided.await?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(workload: &str, ip: [u8; 4]) -> Attempt {
        Attempt { workload: workload.into(), ip: Some(ip.into()) }
    }

    #[test]
    fn three_endpoints_are_tried_with_all_their_addresses_and_no_address_twice() {
        let failed = [attempt("a", [10, 0, 0, 1]), attempt("b", [10, 0, 0, 2]), attempt("a", [10, 0, 0, 3])];
        assert!(!is_worth_it(&failed[1], &failed));
        assert!(is_worth_it(&attempt("b", [10, 0, 0, 4]), &failed));
        assert!(is_worth_it(&attempt("c", [10, 0, 0, 5]), &failed));
        let failed = [&failed[..], &[attempt("c", [10, 0, 0, 5])]].concat();
        assert!(is_worth_it(&attempt("c", [10, 0, 0, 6]), &failed));
        assert!(!is_worth_it(&attempt("d", [10, 0, 0, 7]), &failed));
    }
}
