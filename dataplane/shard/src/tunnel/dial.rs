//! Opens tunnels: TCP, TLS, session; and the handshake that both roles share.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use halo_core::hbone::{HboneSession, SessionConfig};
use halo_core::outcome::Reason;
use halo_core::pool::{PoolKey, TunnelId};
use halo_core::report::Direction;

use super::transport::Reader;
use super::{Secured, Side, Start, Transport, Tunnel};
use crate::pod::Leg;
use crate::ring;
use crate::shard::Shard;
use crate::stats::Phase;
use crate::tls::{CertificateFault, Handshake, Progress, TlsError};
use crate::wake::Finally;

/// Room for the first flight of a handshake; a larger one grows the buffer.
const HANDSHAKE_READ: usize = 8 * 1024;

/// Dials a tunnel that the pool asked for, and tells the pool how it went.
pub(crate) async fn run(shard: Rc<Shard>, id: TunnelId, key: PoolKey) {
    let (begin, settled) = (Instant::now(), Cell::new(false));
    // Whoever waits for this dial hears of it, even if it fails here.
    let _settled = Finally(|| {
        if !settled.get() {
            shard.pool.borrow_mut().lost(id, Reason::Defect);
        }
        shard.pool_changed.notify();
    });
    let dialled = dial(&shard, id, &key).await;
    shard.latencies.record(Phase::Dial, begin);
    settled.set(true);
    let mut pool = shard.pool.borrow_mut();
    match dialled {
        Ok(tunnel) if pool.knows(id) => {
            // Until the peer's SETTINGS come the session itself allows fewer streams than we may be set to.
            let streams_max = u32::try_from(tunnel.streams_max()).unwrap_or(u32::MAX);
            shard.dialled.borrow_mut().insert(id, tunnel);
            pool.dialed(id, streams_max, ring::now_ms());
        }
        // The pool gave the dial up while it ran.
        Ok(tunnel) => tunnel.close(),
        Err(reason) => pool.lost(id, reason),
    }
}

async fn dial(shard: &Rc<Shard>, id: TunnelId, key: &PoolKey) -> Result<Rc<Tunnel>, Reason> {
    // The pool gives up the dials of a pod that goes, and ids are not used again: one that it knows is for the pod that
    // is here now, and never for an earlier one of the same uid.
    let wanted = shard.pool.borrow().knows(id);
    let pod = shard.pod(&key.pod).filter(|_| wanted).ok_or(Reason::WorkloadGone)?;
    let config = shard.tls_of(&shard.snapshot(), &key.source).ok_or(Reason::NoCertificate)?;
    let handshake = Handshake::client(&config, key.identities.clone()).map_err(|error| error.reason())?;
    let socket = pod.connect(shard, key.peer, Leg::Out).await.map_err(|reason| match reason {
        Reason::ConnectTimeout => Reason::HboneTimeout,
        other => other,
    })?;
    let secured = secure(shard, socket.into(), (handshake, Direction::Outbound)).await?;
    if pod.is_gone() {
        return Err(Reason::WorkloadGone);
    }
    shard.counters.tunnels_dialed.increment();
    let session = HboneSession::client(SessionConfig::from(&shard.limits), ring::now_ms());
    Ok(Tunnel::start(shard, secured, Start { pod, side: Side::Outbound(id), session }))
}

/// Runs a TLS handshake to its end, within its deadline. A refusal's alert is sent before the socket closes.
pub(crate) async fn secure(
    shard: &Rc<Shard>,
    transport: Transport,
    (handshake, direction): (Handshake, Direction),
) -> Result<Secured, Reason> {
    let secured = shake(shard, transport, (handshake, direction)).await;
    match &secured {
        Ok(_) => shard.counters.handshakes.increment(),
        Err(_) => shard.counters.handshakes_failed.increment(),
    }
    secured
}

async fn shake(
    shard: &Rc<Shard>,
    mut transport: Transport,
    (mut handshake, direction): (Handshake, Direction),
) -> Result<Secured, Reason> {
    let closer = transport.closer();
    let expired = Rc::new(Cell::new(false));
    let mark = expired.clone();
    let _deadline = shard.timers.after(shard.limits.handshake_ms_max, move || {
        mark.set(true);
        closer.abort();
    });
    let lost = |reader: &Reader| match (expired.get(), reader.fault()) {
        (true, _) => Reason::TlsTimeout,
        (false, fault) => fault.unwrap_or(Reason::TlsFailed),
    };
    let (mut input, mut out) = (Vec::with_capacity(HANDSHAKE_READ), Vec::new());
    loop {
        let progress = handshake.advance(&mut input, &mut out);
        if !out.is_empty() {
            let (sent, buffer) = transport.writer.write_all(out).await;
            sent.map_err(|_| lost(&transport.reader))?;
            out = buffer;
            out.clear();
        }
        match progress {
            Ok(Progress::Done) => break,
            Ok(Progress::NeedInput) => {}
            Err(error) => return Err(refused(shard, direction, error)),
        }
        if input.len() == input.capacity() {
            input.reserve(HANDSHAKE_READ);
        }
        let (read, buffer) = transport.reader.read(input).await;
        input = buffer;
        if !matches!(read, Ok(1..)) {
            return Err(lost(&transport.reader));
        }
    }
    let peer = handshake.peer_chain();
    if shard.revoked(&peer) {
        // The lists have changed since the handshake began, or another list of the same issuer names it.
        transport.closer().abort();
        return Err(refused(shard, direction, TlsError::PeerCertificate(CertificateFault::Revoked)));
    }
    let (records, identity) = handshake.finish(shard.records).map_err(|error| error.reason())?;
    Ok(Secured { transport, records, identity, peer, leftover: input })
}

/// The reason for a handshake that failed, counted where a revocation is behind it.
fn refused(shard: &Shard, direction: Direction, error: TlsError) -> Reason {
    if error == TlsError::PeerCertificate(CertificateFault::Revoked) {
        shard.telemetry.crl_rejected(direction);
    }
    error.reason()
}

impl Shard {
    /// The tunnel's reader has stopped: nothing more will come of it.
    pub(crate) fn tunnel_ended(&self, tunnel: &Rc<Tunnel>, reason: Reason) {
        self.counters.tunnels_closed.increment();
        match &tunnel.side {
            Side::Outbound(id) => {
                if self.dialled.borrow_mut().remove(id).is_some() {
                    self.pool.borrow_mut().lost(*id, reason);
                    self.pool_changed.notify();
                }
            }
            Side::Inbound(peer) => {
                self.accepted.borrow_mut().remove(&peer.id);
            }
            Side::Inner(id) => {
                self.inner.borrow_mut().remove(id);
            }
        }
    }
}
