//! Carries out one decision: opens the far side of a connection and tracks it.

use std::net::SocketAddr;

use halo_core::labels::{Ends, Party};
use halo_core::net::Target;
use halo_core::outcome::Reason;
use halo_core::report::{Direction, Transport};
use halo_core::resolve::{HboneRoute, TcpRoute};

use super::stream::{self, Answered};
use super::{Ask, Decided, Open, Opened, double};
use crate::conn::{Original, Parties};
use crate::plaintext;
use crate::pod::Leg;
use crate::pool::Place;
use crate::socket::Socket;
use crate::tunnel::StreamOf;

/// Addresses of one host that are tried.
const ADDRESSES_MAX: usize = 3;

/// The far side of a connection.
pub(super) enum Upstream {
    Tcp(Socket),
    /// A stream, and its place on a tunnel of the pool.
    Hbone(StreamOf, Option<Place>),
}

/// Opens what was decided.
///
/// # Errors
/// Why it could not be reached; nothing of the application's bytes was sent.
pub(super) async fn open(ask: &Ask<'_>, socket: &Socket, decided: &Decided) -> Result<Opened, Reason> {
    match &decided.way {
        Open::Tcp(to) => tcp(ask, socket, (decided, to)).await,
        Open::Hbone(to) => tunnelled(ask, socket, (decided, to)).await,
    }
}

/// Opens a plain connection: to a destination outside the mesh, or one that has no tunnels.
async fn tcp(ask: &Ask<'_>, socket: &Socket, (decided, to): (&Decided, &TcpRoute)) -> Result<Opened, Reason> {
    let connect = async |address| ask.pod.connect(ask.shard, address, Leg::Out).await;
    let (destination, upstream) = first(ask, &to.target, connect).await?;
    let parties = Parties {
        direction: Direction::Outbound,
        transport: Transport::Tcp,
        source: ask.client,
        original: Original::Address(ask.destination),
        destination,
        source_identity: None,
        destination_identity: None,
        ends: Ends {
            source: Party::Known(decided.source.clone()),
            destination: Party::known(to.workload.as_ref()),
            service: to.service.clone(),
        },
    };
    let tracked = plaintext::track(ask.shard, ask.pod, parties, [socket, &upstream]);
    Ok(Opened { tracked, upstream: Upstream::Tcp(upstream) })
}

/// Opens a stream on a tunnel.
async fn tunnelled(
    ask: &Ask<'_>,
    socket: &Socket,
    (decided, to): (&Decided, &HboneRoute),
) -> Result<Opened, Reason> {
    let open = async |peer| stream::open(ask, (decided, to), peer).await;
    let (destination, answered) = first(ask, &to.peer, open).await?;
    let (transport, stream, party, place) = match &to.inner {
        None => {
            let Answered { place, stream } = answered;
            let stream = StreamOf { tunnel: place.tunnel.clone(), stream };
            (Transport::Hbone, stream, Party::Known(to.workload.clone()), Some(place))
        }
        Some(accepted) => {
            let (stream, party) =
                Box::pin(double::open(ask, (decided, to), accepted, (destination, answered))).await?;
            (Transport::DoubleHbone, stream, party, None)
        }
    };
    let parties = Parties {
        direction: Direction::Outbound,
        transport,
        source: ask.client,
        original: Original::Carried(ask.destination, to.authority_at(destination.ip())),
        destination,
        source_identity: Some(decided.source.identity()),
        destination_identity: Some(stream.tunnel.identity.clone()),
        ends: Ends {
            source: Party::Known(decided.source.clone()),
            destination: party,
            service: to.service.clone(),
        },
    };
    let tracked = ask.shard.track(ask.pod, parties);
    tracked.conn.hold_socket(socket.closer());
    tracked.conn.hold_stream(&stream.tunnel, &stream.stream);
    Ok(Opened { tracked, upstream: Upstream::Hbone(stream, place) })
}

/// Opens the first address of a target that can be reached.
async fn first<T>(
    ask: &Ask<'_>,
    target: &Target,
    open: impl AsyncFn(SocketAddr) -> Result<T, Reason>,
) -> Result<(SocketAddr, T), Reason> {
    let host = match target {
        Target::Address(address) => return Ok((*address, open(*address).await?)),
        Target::Host(host) => host,
    };
    let found = ask.shard.dns.lookup(ask.pod, host).await?;
    let mut reason = Reason::NoHealthyUpstream;
    for ip in found.into_iter().take(ADDRESSES_MAX) {
        let address = SocketAddr::new(ip, host.port);
        match open(address).await {
            Ok(opened) => return Ok((address, opened)),
            Err(failed) => reason = failed,
        }
        if !ask.may_retry(reason) {
            break;
        }
    }
    Err(reason)
}
