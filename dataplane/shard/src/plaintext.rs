//! Plain connections to a pod (15006), and what every plain leg shares.
//!
//! The client has no identity: policies are evaluated with none, so STRICT refuses here and PERMISSIVE passes.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Instant;

use halo_core::labels::Ends;
use halo_core::net::is_own_port;
use halo_core::outcome::Reason;
use halo_core::rbac;
use halo_core::report::{Direction, Transport};

use crate::conn::{Original, Parties};
use crate::demand::Missing;
use crate::pod::{Leg, Pod, Seat};
use crate::refusal::Subject;
use crate::relay;
use crate::shard::{Shard, Tracked};
use crate::socket::Socket;
use crate::stats::Phase;

/// Takes a captured plain connection to the application, if policy lets it. The relay is a task of its own: it needs a
/// fraction of the state that this one does.
pub(crate) async fn serve(seat: Seat, socket: Socket, client: SocketAddr) {
    if let Some((tracked, app)) = admit(&seat, &socket, client).await {
        relay(seat, tracked, socket, app);
    }
}

/// Decides on a connection, connects it and tracks it; `None` once it is refused.
async fn admit(seat: &Seat, socket: &Socket, client: SocketAddr) -> Option<(Tracked, Socket)> {
    let (shard, pod) = (&seat.shard, &seat.pod);
    let destination = socket.original_destination(client);
    let subject = Subject::new(pod, Direction::Inbound, client, destination.as_ref().ok().copied());
    let opened = match destination {
        Ok(destination) => open(shard, pod, client, destination).await.map(|app| (destination, app)),
        Err(_) => Err(Reason::LocalSocket),
    };
    let (destination, app) = match opened {
        Ok(opened) => opened,
        Err(reason) => {
            refuse(shard, socket, subject, reason);
            return None;
        }
    };
    let parties = Parties {
        direction: Direction::Inbound,
        transport: Transport::Tcp,
        source: client,
        original: Original::Address(destination),
        destination,
        source_identity: None,
        destination_identity: None,
        ends: Ends::default(),
    };
    Some((track(shard, pod, parties, [socket, &app]), app))
}

async fn open(
    shard: &Rc<Shard>,
    pod: &Rc<Pod>,
    client: SocketAddr,
    destination: SocketAddr,
) -> Result<Socket, Reason> {
    if is_own_port(destination.port()) {
        return Err(Reason::OwnPort);
    }
    let unknown = || Missing::from(Reason::SourceUnknown);
    shard.wait_for(pod, |snapshot| shard.workload_of(snapshot, pod).map(drop).ok_or_else(unknown)).await?;
    let app = connect_to_app(shard, pod, client.ip(), destination).await?;
    // Checked last, by the newest generation: from here to the connection's tracking there is no pause.
    let snapshot = shard.snapshot();
    let workload = shard.workload_of(&snapshot, pod).ok_or(Reason::SourceUnknown)?;
    let connection = rbac::Connection { source: client, identity: None, destination, workload };
    match shard.verdict(&snapshot, &connection) {
        Some(reason) => {
            app.closer().abort();
            Err(reason)
        }
        None => Ok(app),
    }
}

/// Connects to an application in the pod from its client's own address.
pub(crate) async fn connect_to_app(
    shard: &Rc<Shard>,
    pod: &Pod,
    client: IpAddr,
    destination: SocketAddr,
) -> Result<Socket, Reason> {
    let begin = Instant::now();
    let connected = pod.connect(shard, destination, Leg::ToApp { client }).await;
    shard.latencies.record(Phase::Connect, begin);
    connected
}

/// Tracks a connection between two plain legs.
pub(crate) fn track(shard: &Rc<Shard>, pod: &Rc<Pod>, parties: Parties, legs: [&Socket; 2]) -> Tracked {
    let tracked = shard.track(pod, parties);
    for leg in legs {
        tracked.conn.hold_socket(leg.closer());
    }
    tracked
}

/// Starts to relay a tracked connection between two plain legs.
pub(crate) fn relay(seat: Seat, tracked: Tracked, client: Socket, server: Socket) {
    let shard = tracked.shard.clone();
    let relayed = relay::plain(tracked, client, server, move |conn, reason| {
        seat.shard.finished(conn, reason);
    });
    shard.spawn(relayed);
}

/// Refuses a connection that was accepted but not relayed: RST, so that the client does not take it for an end.
pub(crate) fn refuse(shard: &Shard, socket: &Socket, subject: Subject<'_>, reason: Reason) {
    shard.ended(subject, reason);
    socket.closer().abort();
}
