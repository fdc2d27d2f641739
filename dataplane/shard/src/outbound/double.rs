//! A tunnel within a stream of the tunnel to another network's gateway (double HBONE).
//!
//! The gateway sees where the stream goes and who we are; what is in it is between us and the workload that it chose. The
//! inner tunnel carries one connection and closes with it.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use halo_core::hbone::{HboneSession, OpenError, SessionConfig};
use halo_core::id::Identity;
use halo_core::labels::Party;
use halo_core::outcome::Reason;
use halo_core::report::Direction;
use halo_core::resolve::HboneRoute;

use super::stream::{self, Answered};
use super::{Ask, Decided};
use crate::ring;
use crate::tls::Handshake;
use crate::tunnel::{Side, Start, StreamOf, Transport, Tunnel, dial};

/// Opens the inner tunnel and its stream, with a far end that must be one of `accepted`; and what that end says of itself.
///
/// # Errors
/// Why there is none. The outer stream is finished then.
pub(super) async fn open(
    ask: &Ask<'_>,
    (decided, to): (&Decided, &HboneRoute),
    accepted: &Arc<[Identity]>,
    outer: (SocketAddr, Answered),
) -> Result<(StreamOf, Party), Reason> {
    let shard = ask.shard;
    let (peer, Answered { place, stream: outer }) = outer;
    let outer = StreamOf { tunnel: place.tunnel.clone(), stream: outer };
    // From here on the outer stream ends with its transport.
    let transport = Transport::on_stream(shard, outer, place);
    let snapshot = shard.snapshot();
    let config = shard.tls_of(&snapshot, &decided.source.identity()).ok_or(Reason::NoCertificate)?;
    let handshake = Handshake::client(&config, accepted.clone()).map_err(|error| error.reason())?;
    let secured = dial::secure(shard, transport, (handshake, Direction::Outbound)).await?;
    if ask.pod.is_gone() {
        return Err(Reason::WorkloadGone);
    }
    let session = HboneSession::client(SessionConfig::from(&shard.limits), ring::now_ms());
    let id = shard.unique();
    let tunnel =
        Tunnel::start(shard, secured, Start { pod: ask.pod.clone(), side: Side::Inner(id), session });
    shard.inner.borrow_mut().insert(id, tunnel.clone());
    shard.counters.tunnels_dialed.increment();
    let mut request = stream::request(ask, (decided, to), peer);
    request.headers.push(("x-forwarded-network".to_owned(), snapshot.mesh.network.to_string()));
    let opened = tunnel.open(&request);
    // With its one stream, and without one at once.
    tunnel.retire();
    let stream = opened.map_err(|error| match error {
        OpenError::TooLarge => Reason::H2Failed,
        OpenError::StreamLimit | OpenError::GoingAway | OpenError::Exhausted => Reason::TunnelLost,
    })?;
    let answer = stream::answer(shard, &tunnel, &stream).await?;
    let lines = answer.headers.iter().filter(|(name, _)| name == "baggage").map(|(_, value)| value.as_str());
    let party = if shard.options.response_baggage { Party::told(lines) } else { Party::Unknown };
    Ok((StreamOf { tunnel: Rc::clone(&tunnel), stream }, party))
}
