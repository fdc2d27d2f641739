//! Plain connections to a pod (15006), and what every plain leg shares.
//!
//! The client has no identity: policies are evaluated with none, so STRICT refuses here and PERMISSIVE passes.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Instant;

use halo_core::net::is_own_port;
use halo_core::outcome::Reason;
use halo_core::rbac;
use halo_core::report::{Direction, Transport};

use crate::conn::Parties;
use crate::pod::{Leg, Pod};
use crate::refusal::Subject;
use crate::relay;
use crate::shard::Shard;
use crate::socket::Socket;
use crate::stats::Phase;

/// Takes a captured plain connection to the application, if policy lets it.
pub(crate) async fn serve(shard: Rc<Shard>, pod: Rc<Pod>, socket: Socket, client: SocketAddr) {
    let destination = socket.original_destination(client);
    let subject = Subject::new(&pod, Direction::Inbound, client, destination.as_ref().ok().copied());
    let opened = match destination {
        Ok(destination) => open(&shard, &pod, client, destination).await.map(|app| (destination, app)),
        Err(_) => Err(Reason::LocalSocket),
    };
    let (destination, app) = match opened {
        Ok(opened) => opened,
        Err(reason) => return refuse(&shard, &socket, subject, reason),
    };
    let parties = Parties {
        direction: Direction::Inbound,
        transport: Transport::Tcp,
        source: client,
        original: destination.to_string(),
        destination,
        source_identity: None,
        destination_identity: None,
    };
    relay(&shard, &pod, parties, (socket, app)).await;
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
    let known = shard.wait_for(|snapshot| shard.workload_of(snapshot, pod).map(drop));
    known.await.ok_or(Reason::SourceUnknown)?;
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

/// Tracks and relays a connection between two plain legs, client's first.
pub(crate) async fn relay(shard: &Rc<Shard>, pod: &Rc<Pod>, parties: Parties, legs: (Socket, Socket)) {
    let tracked = shard.track(pod, parties);
    tracked.conn.hold_socket(legs.0.closer());
    tracked.conn.hold_socket(legs.1.closer());
    let reason = relay::plain(shard, &tracked.conn, legs.0, legs.1).await;
    shard.ended(tracked.conn.subject(), reason);
}

/// Refuses a connection that was accepted but not relayed: RST, so that the client does not take it for an end.
pub(crate) fn refuse(shard: &Shard, socket: &Socket, subject: Subject<'_>, reason: Reason) {
    shard.ended(subject, reason);
    socket.closer().abort();
}
