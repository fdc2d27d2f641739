//! Plain connections to a pod (15006), and what every plain leg shares.
//!
//! The client has no identity: policies are evaluated with none, so STRICT refuses here and PERMISSIVE passes.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Instant;

use halo_core::labels::{Ends, Party};
use halo_core::outcome::Reason;
use halo_core::rbac;
use halo_core::report::{Direction, Transport};
use halo_core::resolve::lookup;
use halo_core::snapshot::Snapshot;
use halo_core::workload::Workload;

use crate::conn::{Original, Parties};
use crate::pod::{Leg, Pod, Seat};
use crate::refusal::Subject;
use crate::relay;
use crate::shard::{Denial, Shard, Tracked};
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
    let known = destination.as_ref().ok().copied();
    let opened = match destination {
        Ok(destination) => open(shard, pod, client, destination).await.map(|opened| (destination, opened)),
        Err(_) => Err(Reason::LocalSocket.into()),
    };
    match opened {
        Ok((destination, (app, ends))) => {
            let parties = parties(client, destination, ends);
            Some((track(shard, pod, parties, [socket, &app]), app))
        }
        Err(denial) => {
            let ends = ends(shard, &shard.snapshot(), pod, client);
            match known.zip(ends).filter(|_| denial.reason != Reason::OwnPort) {
                Some((destination, ends)) => {
                    shard.refused(pod, parties(client, destination, ends), denial);
                    socket.closer().abort();
                }
                None => {
                    let subject = Subject::new(pod, Direction::Inbound, client, known);
                    refuse(shard, socket, subject, denial.reason);
                }
            }
            None
        }
    }
}

fn parties(client: SocketAddr, destination: SocketAddr, ends: Ends) -> Parties {
    Parties {
        direction: Direction::Inbound,
        transport: Transport::Tcp,
        source: client,
        original: Original::Address(destination),
        destination,
        source_identity: None,
        destination_identity: None,
        ends,
    }
}

/// The ends of a connection to the pod, once the mesh knows the pod.
fn ends(shard: &Shard, snapshot: &Snapshot, pod: &Pod, client: SocketAddr) -> Option<Ends> {
    let workload = shard.workload_of(snapshot, pod)?;
    let address = lookup::own_network(snapshot, client.ip());
    let source = Party::known(lookup::workload(snapshot, &address));
    Some(Ends { source, destination: Party::Known(workload.clone()), service: None })
}

async fn open(
    shard: &Rc<Shard>,
    pod: &Rc<Pod>,
    client: SocketAddr,
    destination: SocketAddr,
) -> Result<(Socket, Ends), Denial> {
    if shard.is_own_port(destination.port()) {
        return Err(Reason::OwnPort.into());
    }
    // The application hears nothing of a client that policy refuses.
    let permitted = shard.wait_for(pod, |snapshot| {
        let workload = shard.workload_of(snapshot, pod).ok_or(Reason::SourceUnknown)?;
        Ok(permit(shard, snapshot, workload, (client, destination)))
    });
    permitted.await??;
    let app = connect_to_app(shard, pod, client.ip(), destination).await?;
    // Asked again by the newest generation: from here to the connection's tracking there is no pause.
    let snapshot = shard.snapshot();
    let workload = shard.workload_of(&snapshot, pod).ok_or(Denial::from(Reason::SourceUnknown));
    let permitted = workload.and_then(|workload| permit(shard, &snapshot, workload, (client, destination)));
    permitted.inspect_err(|_| app.closer().abort())?;
    Ok((app, ends(shard, &snapshot, pod, client).unwrap_or_default()))
}

/// Asks policy about a client without an identity.
fn permit(
    shard: &Shard,
    snapshot: &Snapshot,
    workload: &Workload,
    (source, destination): (SocketAddr, SocketAddr),
) -> Result<(), Denial> {
    let connection = rbac::Connection { source, identity: None, destination, workload };
    shard.verdict(snapshot, &connection).map_or(Ok(()), Err)
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

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::{Ipv4Addr, TcpListener};
    use std::sync::Arc;

    use halo_core::policy::{Action, Match, Policy, Scope};

    use super::*;
    use crate::pod::tests::pod;
    use crate::ring::{Ring, RingKind};
    use crate::tunnel::tests::{mesh, shard};

    #[test]
    fn an_application_hears_nothing_of_a_client_that_policy_refuses() {
        Ring::build(RingKind::Auto).unwrap().run(async {
            let shard = shard();
            let app = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            app.set_nonblocking(true).unwrap();
            let destination = app.local_addr().unwrap();
            let rule = Match { destination_ports: vec![destination.port()], ..Match::default() };
            let mut snapshot = mesh();
            snapshot.policies.insert(Arc::new(Policy {
                name: "no".into(),
                namespace: "shop".into(),
                scope: Scope::Namespace,
                action: Action::Deny,
                rules: vec![vec![vec![rule]]],
                dry_run: false,
            }));
            shard.adopt(Arc::new(snapshot));
            let client = (Ipv4Addr::LOCALHOST, 1).into();
            let opened = open(&shard, &pod(), client, destination).await;
            let denial = Denial { reason: Reason::PolicyDeny, policy: Some("shop/no".into()) };
            assert_eq!(opened.err(), Some(denial));
            assert_eq!(app.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
            shard.adopt(Arc::new(mesh()));
            let (_socket, ends) = open(&shard, &pod(), client, destination).await.unwrap();
            assert!(matches!(ends, Ends { source: Party::Known(_), destination: Party::Known(_), .. }));
        });
    }
}
