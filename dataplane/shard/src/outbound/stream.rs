//! Opens one stream on a tunnel of the pool, and waits for the far side's answer.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Instant;

use halo_core::baggage::Baggage;
use halo_core::hbone::{ConnectRequest, ConnectResponse, OpenError};
use halo_core::outcome::Reason;
use halo_core::pool::PoolKey;
use halo_core::resolve::HboneRoute;
use halo_core::workload::Workload;

use super::{Ask, Decided};
use crate::pool::{self, Place};
use crate::ring;
use crate::shard::Shard;
use crate::stats::Phase;
use crate::tunnel::{Stream, Tunnel};
use crate::wake::Finally;

/// Tunnels tried to one peer: a tunnel may be lost, or begin to drain, between being chosen and being used.
const TUNNELS_MAX: u32 = 3;

/// A stream that was let in.
pub(super) struct Answered {
    pub(super) place: Place,
    pub(super) stream: Rc<Stream>,
}

/// Opens a stream to a peer and waits for its 200.
///
/// # Errors
/// Why there is none.
pub(super) async fn open(
    ask: &Ask<'_>,
    (decided, to): (&Decided, &HboneRoute),
    peer: SocketAddr,
) -> Result<Answered, Reason> {
    let key = PoolKey {
        pod: ask.pod.uid.clone(),
        source: decided.source.identity(),
        client: address_of(&decided.source, ask.client.ip()),
        peer,
        identities: to.identities.clone(),
        workload: to.workload.uid.clone(),
    };
    let request = request(ask, (decided, to), peer);
    let mut tried = 1;
    loop {
        match try_open(ask, &key, &request).await {
            Err(Reason::TunnelLost) if tried < TUNNELS_MAX => tried += 1,
            other => return other,
        }
    }
}

async fn try_open(ask: &Ask<'_>, key: &PoolKey, request: &ConnectRequest) -> Result<Answered, Reason> {
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
    answer(shard, &place.tunnel, &stream).await?;
    Ok(Answered { place, stream })
}

/// Waits for the answer to a stream's CONNECT, within its deadline.
///
/// # Errors
/// Why it is not 200. The stream is finished then.
pub(super) async fn answer(
    shard: &Rc<Shard>,
    tunnel: &Rc<Tunnel>,
    stream: &Rc<Stream>,
) -> Result<ConnectResponse, Reason> {
    shard.counters.streams_opened.increment();
    let (late, cut) = (stream.clone(), tunnel.clone());
    let deadline = shard.timers.after(shard.limits.connect_answer_ms_max, move || {
        late.fail(Reason::AnswerTimeout);
        cut.reset(&late);
    });
    let open = Cell::new(false);
    let _finished = Finally(|| {
        if !open.get() {
            tunnel.finish(stream);
        }
    });
    let begin = Instant::now();
    let answer = stream.answer().await;
    shard.latencies.record(Phase::Answer, begin);
    drop(deadline);
    let answer = answer?;
    match answer.status {
        200 => {
            open.set(true);
            Ok(answer)
        }
        401 => Err(Reason::PolicyAtPeer),
        503 => Err(Reason::PeerUnavailable),
        _ => Err(Reason::PeerStatus),
    }
}

/// The address that the far side sees a client at: an application that asks over the loopback interface goes out from its
/// pod's own.
fn address_of(source: &Workload, client: IpAddr) -> IpAddr {
    source.addresses.first().copied().filter(|_| client.is_loopback()).unwrap_or(client)
}

/// The CONNECT request: where to, who asks, and for whom.
pub(super) fn request(
    ask: &Ask<'_>,
    (decided, to): (&Decided, &HboneRoute),
    peer: SocketAddr,
) -> ConnectRequest {
    let mut forwarded = format!("for=\"{}\"", ask.client);
    if let Some(service) = &to.service {
        forwarded.push_str(";host=");
        forwarded.push_str(&service.key.hostname);
    }
    let [high, low, span] = ask.trace;
    let headers = vec![
        ("baggage".to_owned(), Baggage::of(&decided.source).to_string()),
        ("forwarded".to_owned(), forwarded),
        ("traceparent".to_owned(), format!("00-{high:016x}{low:016x}-{span:016x}-00")),
    ];
    ConnectRequest { authority: to.authority_at(peer.ip()).to_string(), headers }
}
