//! Tunnels to a pod (15008): who may come in, and to which of the pod's ports.
//!
//! TLS → CONNECT → `resolve::inbound_target` → `rbac` → the application, from the client's own source address. The
//! answer 200 is sent only once the application has accepted.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use halo_core::baggage::{self, Baggage};
use halo_core::hbone::{ConnectResponse, HboneSession, RequestHead, SessionConfig};
use halo_core::id::Identity;
use halo_core::labels::{Ends, Party};
use halo_core::outcome::Reason;
use halo_core::proxy_protocol;
use halo_core::rbac;
use halo_core::relay::Way;
use halo_core::report::{Direction, Transport};
use halo_core::resolve::{self, InboundTarget, NoTarget, Requested, lookup};
use halo_core::snapshot::Snapshot;
use halo_core::workload::Workload;

use crate::conn::{Original, Parties};
use crate::demand::Missing;
use crate::plaintext;
use crate::pod::{Pod, Seat, SeatKind};
use crate::refusal::Subject;
use crate::relay;
use crate::ring;
use crate::shard::{Denial, Shard, Tracked};
use crate::socket::Socket;
use crate::tls::Handshake;
use crate::tunnel::{Side, Start, Stream, StreamOf, Tunnel, dial};
use crate::wake::Finally;

/// The client's end of an accepted tunnel: what every request on it has in common.
pub(crate) struct Peer {
    /// The tunnel's number on this shard.
    pub(crate) id: u64,
    pub(crate) pod: Rc<Pod>,
    /// The client's address.
    pub(crate) client: SocketAddr,
    /// The pod's address that the client dialled.
    pub(crate) local: SocketAddr,
    /// Who the client proved to be.
    pub(crate) identity: Identity,
    /// Who we proved to be.
    pub(crate) own_identity: Identity,
    /// The tunnel's place among those of the pod.
    pub(crate) _seat: Option<Seat>,
}

/// Takes a connection through its handshake and starts the tunnel.
pub(crate) async fn serve(seat: Seat, socket: Socket, client: SocketAddr) {
    let (shard, pod) = (seat.shard.clone(), seat.pod.clone());
    let destination = socket.local_address();
    let subject = Subject::new(&pod, Direction::Inbound, client, destination.as_ref().ok().copied());
    let started = match destination {
        Ok(local) => start(&shard, (&pod, seat), socket, (client, local)).await,
        Err(_) => Err(Reason::LocalSocket),
    };
    if let Err(reason) = started {
        shard.ended(subject, reason);
    }
}

async fn start(
    shard: &Rc<Shard>,
    (pod, seat): (&Rc<Pod>, Seat),
    socket: Socket,
    (client, local): (SocketAddr, SocketAddr),
) -> Result<(), Reason> {
    let config = shard.wait_for(pod, |snapshot| {
        let workload = shard.workload_of(snapshot, pod).ok_or(Reason::SourceUnknown)?;
        shard.own_tls(snapshot, &workload.identity())
    });
    let config = config.await?;
    let handshake = Handshake::server(&config).map_err(|error| error.reason())?;
    let secured = dial::secure(shard, socket.into(), (handshake, Direction::Inbound)).await?;
    if pod.is_gone() {
        return Err(Reason::WorkloadGone);
    }
    let identity = secured.identity.clone();
    let own_identity = config.identity().clone();
    let (id, seat, pod) = (shard.unique(), Some(seat), pod.clone());
    let peer = Peer { id, _seat: seat, pod: pod.clone(), client, local, identity, own_identity };
    let peer = Rc::new(peer);
    let session = HboneSession::server(SessionConfig::from(&shard.limits), ring::now_ms());
    shard.counters.tunnels_accepted.increment();
    let side = Side::Inbound(peer.clone());
    let tunnel = Tunnel::start(shard, secured, Start { pod, side, session });
    shard.accepted.borrow_mut().insert(peer.id, tunnel.clone());
    if shard.is_draining() {
        tunnel.drain();
    }
    Ok(())
}

/// Starts a task for a request. The tunnel is borrowed by the caller, so nothing happens here yet.
pub(crate) fn admit(
    shard: &Rc<Shard>,
    peer: &Rc<Peer>,
    tunnel: &Rc<Tunnel>,
    stream: Rc<Stream>,
    head: RequestHead,
) {
    shard.counters.streams_opened.increment();
    let stream = StreamOf { tunnel: tunnel.clone(), stream };
    shard.spawn(request(shard.clone(), peer.clone(), stream, head));
}

/// Takes a request to the application and starts to relay it. The relay is a task of its own: it needs a fraction of
/// the state that this one does.
async fn request(shard: Rc<Shard>, peer: Rc<Peer>, stream: StreamOf, head: RequestHead) {
    // Whatever fails here, the client hears of it.
    let _answered = Finally(|| {
        if std::thread::panicking() {
            stream.tunnel.finish(&stream.stream);
        }
    });
    match open(&shard, &peer, &stream, head).await {
        Ok((tracked, app)) => {
            let relayed = relay::hbone(tracked, app, Way::Downstream, stream.clone(), {
                let shard = shard.clone();
                move |conn, reason| {
                    shard.finished(conn, reason);
                    drop(peer);
                }
            });
            shard.spawn(relayed);
        }
        Err(unopened) => {
            let reason = unopened.reason;
            stream.tunnel.refuse(&stream.stream, reason.outcome().status);
            match unopened.known {
                Known::Nothing => ended(&shard, &peer, reason),
                Known::Ends(parties, policy) => {
                    shard.refused(&peer.pod, *parties, Denial { reason, policy });
                }
                Known::Tracked(tracked) => shard.finished(&tracked.conn, reason),
            }
        }
    }
}

/// Why a request is refused, and how much is known of it.
struct Unopened {
    reason: Reason,
    known: Known,
}

enum Known {
    Nothing,
    Ends(Box<Parties>, Option<Arc<str>>),
    Tracked(Tracked),
}

impl From<Reason> for Unopened {
    fn from(reason: Reason) -> Self {
        Self { reason, known: Known::Nothing }
    }
}

fn ended(shard: &Shard, peer: &Peer, reason: Reason) {
    let subject = Subject {
        pod: &peer.pod,
        direction: Direction::Inbound,
        source: peer.client,
        destination: Some(peer.local),
    };
    shard.ended(subject, reason);
}

/// Decides on a request and connects to the application. What is refused after it was tracked comes back with its reason.
async fn open(
    shard: &Rc<Shard>,
    peer: &Rc<Peer>,
    stream: &StreamOf,
    head: RequestHead,
) -> Result<(Tracked, Socket), Unopened> {
    let seat = peer.pod.seat(shard, SeatKind::Connection)?;
    let admitted = decide(shard, peer, &head).await?;
    let target = admitted.target;
    let parties = Parties {
        direction: Direction::Inbound,
        transport: Transport::Hbone,
        source: peer.client,
        original: Original::Authority(head.authority.unwrap_or_default().into()),
        destination: target.destination,
        source_identity: Some(peer.identity.clone()),
        destination_identity: Some(peer.own_identity.clone()),
        ends: Ends {
            source: admitted.source,
            destination: Party::Known(admitted.workload),
            service: target.service,
        },
    };
    if let Some(Denial { reason, policy }) = admitted.refused {
        return Err(Unopened { reason, known: Known::Ends(Box::new(parties), policy) });
    }
    // Tracked before it connects, so that a policy change during the connect cuts it too.
    let tracked = shard.track(&peer.pod, parties).seated(seat);
    tracked.conn.hold_stream(&stream.tunnel, &stream.stream);
    let app = match reach(shard, peer, &tracked, (target.connect, target.proxy)).await {
        Ok(app) => app,
        Err(reason) => return Err(Unopened { reason, known: Known::Tracked(tracked) }),
    };
    if let Some(reason) = tracked.conn.outcome().or(stream.stream.failed()) {
        app.closer().abort();
        return Err(Unopened { reason, known: Known::Tracked(tracked) });
    }
    stream.tunnel.respond(&stream.stream, &admitted.response);
    Ok((tracked, app))
}

/// Connects to the application, and sends it the PROXY header that it wants before anything of its client's.
async fn reach(
    shard: &Rc<Shard>,
    peer: &Peer,
    tracked: &Tracked,
    (to, proxy): (SocketAddr, Option<SocketAddr>),
) -> Result<Socket, Reason> {
    let mut app = plaintext::connect_to_app(shard, &peer.pod, peer.client.ip(), to).await?;
    tracked.conn.hold_socket(app.closer());
    if let Some(destination) = proxy {
        let mut header = Vec::new();
        proxy_protocol::write(&mut header, peer.client, destination, Some(&peer.identity));
        let (sent, _) = app.writer.write_all(header).await;
        sent.map_err(|_| Reason::ConnectFailed)?;
    }
    Ok(app)
}

/// A request whose destination is known.
struct Admitted {
    /// What policy has against it.
    refused: Option<Denial>,
    target: InboundTarget,
    workload: Arc<Workload>,
    source: Party,
    response: ConnectResponse,
}

/// Where the request goes, if it may, by one generation. A host that the node has to ask for is waited for.
async fn decide(shard: &Rc<Shard>, peer: &Peer, head: &RequestHead) -> Result<Admitted, Reason> {
    if !head.method_is_connect {
        return Err(Reason::NotConnect);
    }
    let authority = head.authority.as_deref().ok_or(Reason::BadAuthority)?;
    let forwarded_host = baggage::forwarded_host(lines(head, "forwarded"));
    let requested = Requested { local: peer.local.ip(), authority, forwarded_host };
    let decided = shard.wait_for(&peer.pod, |snapshot| {
        let Some(workload) = shard.workload_of(snapshot, &peer.pod) else {
            return Ok(Err(Reason::SourceUnknown));
        };
        let target = match resolve::inbound_target(snapshot, workload, &requested) {
            Ok(target) => target,
            Err(NoTarget::Deny(reason)) => return Ok(Err(reason)),
            Err(NoTarget::Lookup(question)) => {
                return Err(Missing { reason: Reason::DestinationUnknown, question: Some(question) });
            }
        };
        let identity = Some(&peer.identity);
        let destination = target.destination;
        if shard.is_own_port(destination.port()) {
            return Ok(Err(Reason::OwnPort));
        }
        let connection = rbac::Connection { source: peer.client, identity, destination, workload };
        Ok(Ok(Admitted {
            refused: shard.verdict(snapshot, &connection),
            source: source(snapshot, peer, head),
            response: accepted(shard, workload),
            workload: workload.clone(),
            target,
        }))
    });
    decided.await?
}

/// The lines of a header.
fn lines<'a>(head: &'a RequestHead, name: &str) -> impl Iterator<Item = &'a str> {
    head.headers.iter().filter(move |(other, _)| other == name).map(|(_, value)| value.as_str())
}

/// The client's workload: the one that has its address, unless that is only a gateway's; else what it says of itself.
fn source(snapshot: &Snapshot, peer: &Peer, head: &RequestHead) -> Party {
    let own = &snapshot.mesh.network;
    let through_gateway =
        lines(head, "x-forwarded-network").next().is_some_and(|network| !network.eq_ignore_ascii_case(own));
    if !through_gateway {
        let address = lookup::own_network(snapshot, peer.client.ip());
        if let Some(workload) = lookup::workload(snapshot, &address) {
            return Party::Known(workload.clone());
        }
    }
    Party::told(lines(head, "baggage"))
}

/// The answer to a request that was let in.
fn accepted(shard: &Shard, workload: &Workload) -> ConnectResponse {
    let baggage = shard.options.response_baggage.then(|| Baggage::of(workload).to_string());
    let headers = baggage.into_iter().map(|baggage| ("baggage".to_owned(), baggage)).collect();
    ConnectResponse { status: 200, headers }
}
