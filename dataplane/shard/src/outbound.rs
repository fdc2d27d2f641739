//! Connections that a pod opens (15001): where they go, and how.
//!
//! original destination → own workload → `resolve` → plain TCP, or a stream on a tunnel. Nothing of the application's
//! bytes is read before the far side has answered 200, so until then another tunnel may be tried.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use halo_core::baggage::Baggage;
use halo_core::hbone::{ConnectRequest, OpenError};
use halo_core::labels::{Ends, Party};
use halo_core::net::Target;
use halo_core::outcome::Reason;
use halo_core::pool::PoolKey;
use halo_core::relay::Way;
use halo_core::report::{Direction, Transport};
use halo_core::resolve::{self, Captured, HboneRoute, Route, TcpRoute};
use halo_core::workload::Workload;

use crate::conn::{Original, Parties};
use crate::demand::Missing;
use crate::plaintext;
use crate::pod::{Leg, Pod, Seat};
use crate::pool::{self, Place};
use crate::refusal::Subject;
use crate::relay::{self, StreamOf};
use crate::ring;
use crate::shard::{Shard, Tracked};
use crate::socket::Socket;
use crate::stats::Phase;
use crate::tunnel::Stream;

/// Tunnels tried for one connection: a tunnel may be lost, or begin to drain, between being chosen and being used.
const ATTEMPTS_MAX: u32 = 3;

/// Takes a captured connection to its destination and starts to relay it. The relay is a task of its own: it needs a
/// fraction of the state that this one does.
pub(crate) async fn serve(seat: Seat, socket: Socket, client: SocketAddr) {
    match admit(&seat, &socket, client).await {
        Some((tracked, Upstream::Tcp(upstream))) => plaintext::relay(seat, tracked, socket, upstream),
        Some((tracked, Upstream::Hbone(place, stream))) => hbone(seat, tracked, socket, (place, stream)),
        None => {}
    }
}

/// The far side of a connection.
enum Upstream {
    Tcp(Socket),
    Hbone(Place, Rc<Stream>),
}

/// Connects to where a captured connection goes, and tracks it; `None` once it is refused.
async fn admit(seat: &Seat, socket: &Socket, client: SocketAddr) -> Option<(Tracked, Upstream)> {
    let (shard, pod) = (&seat.shard, &seat.pod);
    let destination = socket.original_destination(client);
    let subject = Subject::new(pod, Direction::Outbound, client, destination.as_ref().ok().copied());
    let opened = match destination {
        Ok(destination) => connect(shard, subject, socket, (pod, destination)).await,
        Err(_) => Err(Reason::LocalSocket),
    };
    opened.map_err(|reason| plaintext::refuse(shard, socket, subject, reason)).ok()
}

async fn connect(
    shard: &Rc<Shard>,
    subject: Subject<'_>,
    socket: &Socket,
    (pod, destination): (&Rc<Pod>, SocketAddr),
) -> Result<(Tracked, Upstream), Reason> {
    let (source, way) = route(shard, pod, subject.source, destination).await?;
    let ask = Ask { shard, pod, subject, source, destination };
    match way {
        Open::Tcp(to) => tcp(&ask, socket, to).await,
        Open::Hbone(to) => tunnelled(&ask, socket, to).await,
    }
}

/// What to open for a captured connection.
enum Open {
    Tcp(TcpRoute),
    Hbone(HboneRoute),
}

/// What is known of a captured connection.
struct Ask<'a> {
    shard: &'a Rc<Shard>,
    pod: &'a Rc<Pod>,
    subject: Subject<'a>,
    source: Arc<Workload>,
    destination: SocketAddr,
}

/// Decides by one generation. What the control plane has not delivered yet is waited for: the pod's own workload, what
/// the node has to ask for, and the certificate that a tunnel presents.
async fn route(
    shard: &Rc<Shard>,
    pod: &Rc<Pod>,
    client: SocketAddr,
    destination: SocketAddr,
) -> Result<(Arc<Workload>, Open), Reason> {
    let decided = shard.wait_for(pod, |snapshot| {
        let source = shard.workload_of(snapshot, pod).ok_or(Reason::SourceUnknown)?;
        let captured = Captured { source, client, destination };
        match resolve::resolve(snapshot, &captured, shard.random(), &[]) {
            Route::Lookup(question) => {
                Err(Missing { reason: Reason::DestinationUnknown, question: Some(question) })
            }
            Route::Tcp(to) => Ok(Ok((source.clone(), Open::Tcp(to)))),
            Route::Hbone(to) => {
                shard.own_tls(snapshot, &source.identity())?;
                Ok(Ok((source.clone(), Open::Hbone(to))))
            }
            Route::Deny(reason) => Ok(Err(reason)),
        }
    });
    decided.await?
}

/// Connects to a destination outside the mesh.
async fn tcp(ask: &Ask<'_>, socket: &Socket, to: TcpRoute) -> Result<(Tracked, Upstream), Reason> {
    let destination = address_of(&to.target)?;
    let upstream = ask.pod.connect(ask.shard, destination, Leg::Out).await?;
    let parties = Parties {
        direction: Direction::Outbound,
        transport: Transport::Tcp,
        source: ask.subject.source,
        original: Original::Address(ask.destination),
        destination,
        source_identity: None,
        destination_identity: None,
        ends: Ends {
            source: Party::Known(ask.source.clone()),
            destination: Party::known(to.workload.as_ref()),
            service: to.service,
        },
    };
    let tracked = plaintext::track(ask.shard, ask.pod, parties, [socket, &upstream]);
    Ok((tracked, Upstream::Tcp(upstream)))
}

/// Opens a stream on a tunnel.
async fn tunnelled(ask: &Ask<'_>, socket: &Socket, to: HboneRoute) -> Result<(Tracked, Upstream), Reason> {
    let (place, stream) = open(ask, &to).await?;
    let parties = Parties {
        direction: Direction::Outbound,
        transport: Transport::Hbone,
        source: ask.subject.source,
        original: Original::Carried(ask.destination, to.authority.clone()),
        destination: address_of(&to.peer)?,
        source_identity: Some(ask.source.identity()),
        destination_identity: Some(place.tunnel.identity.clone()),
        ends: Ends {
            source: Party::Known(ask.source.clone()),
            destination: Party::Known(to.workload.clone()),
            service: to.service.clone(),
        },
    };
    let tracked = ask.shard.track(ask.pod, parties);
    tracked.conn.hold_socket(socket.closer());
    tracked.conn.hold_stream(&place.tunnel, &stream);
    Ok((tracked, Upstream::Hbone(place, stream)))
}

/// Starts to relay a tracked connection through a tunnel.
fn hbone(seat: Seat, tracked: Tracked, socket: Socket, (place, stream): (Place, Rc<Stream>)) {
    let shard = tracked.shard.clone();
    let stream = StreamOf { tunnel: place.tunnel.clone(), stream };
    let relayed = relay::hbone(tracked, socket, Way::Upstream, stream, move |conn, reason| {
        seat.shard.finished(conn, reason);
        drop((place, seat));
    });
    shard.spawn(relayed);
}

/// Opens a stream and waits for the far side's 200.
async fn open(ask: &Ask<'_>, to: &HboneRoute) -> Result<(Place, Rc<Stream>), Reason> {
    let key = PoolKey {
        pod: ask.pod.uid.clone(),
        source: ask.source.identity(),
        client: ask.subject.source.ip(),
        peer: address_of(&to.peer)?,
        identities: to.identities.clone(),
        workload: to.workload.uid.clone(),
    };
    let request = request(ask, to);
    let mut attempt = 1;
    loop {
        match try_open(ask, &key, &request).await {
            Err(Reason::TunnelLost) if attempt < ATTEMPTS_MAX => attempt += 1,
            other => return other,
        }
    }
}

async fn try_open(
    ask: &Ask<'_>,
    key: &PoolKey,
    request: &ConnectRequest,
) -> Result<(Place, Rc<Stream>), Reason> {
    let shard = ask.shard;
    // Before the first attempt no time has passed since the decision. Before another one the destination may have gone,
    // and the pod too: one of the same uid may be here in its place.
    if ask.pod.is_gone() || shard.snapshot().workloads.get(&key.workload).is_none() {
        return Err(Reason::WorkloadGone);
    }
    // A dial has deadlines of its own; this one is for a peer that lets us in and then allows no streams.
    let patience_ms = shard.limits.connect_ms_max + shard.limits.handshake_ms_max;
    let place = ring::within_ms(patience_ms, pool::acquire(shard, key)).await;
    let place = place.unwrap_or(Err(Reason::AnswerTimeout))?;
    let stream = place.tunnel.open(request).map_err(|error| match error {
        OpenError::TooLarge => Reason::H2Failed,
        OpenError::StreamLimit => Reason::TunnelLost,
        OpenError::GoingAway | OpenError::Exhausted => {
            // The pool would choose it again.
            shard.retire_tunnel(place.id());
            Reason::TunnelLost
        }
    })?;
    shard.counters.streams_opened.increment();
    let (late, tunnel) = (stream.clone(), place.tunnel.clone());
    let deadline = shard.timers.after(shard.limits.connect_answer_ms_max, move || {
        late.fail(Reason::AnswerTimeout);
        tunnel.reset(&late);
    });
    let begin = Instant::now();
    let answer = stream.answer().await;
    shard.latencies.record(Phase::Answer, begin);
    drop(deadline);
    let refused = match answer {
        Ok(answer) if answer.status == 200 => return Ok((place, stream)),
        Ok(answer) if answer.status == 401 => Reason::PolicyAtPeer,
        Ok(_) => Reason::PeerStatus,
        Err(reason) => reason,
    };
    place.tunnel.finish(&stream);
    Err(refused)
}

fn address_of(target: &Target) -> Result<SocketAddr, Reason> {
    match target {
        Target::Address(address) => Ok(*address),
        Target::Host(_) => Err(Reason::Unsupported),
    }
}

/// The CONNECT request: where to, who asks, and for whom.
fn request(ask: &Ask<'_>, to: &HboneRoute) -> ConnectRequest {
    let mut forwarded = format!("for=\"{}\"", ask.subject.source);
    if let Some(service) = &to.service {
        forwarded.push_str(";host=");
        forwarded.push_str(&service.key.hostname);
    }
    let shard = ask.shard;
    let trace = format!("00-{:016x}{:016x}-{:016x}-00", shard.random(), shard.random(), shard.random());
    let headers = vec![
        ("baggage".to_owned(), Baggage::of(&ask.source).to_string()),
        ("forwarded".to_owned(), forwarded),
        ("traceparent".to_owned(), trace),
    ];
    ConnectRequest { authority: to.authority.to_string(), headers }
}
