//! Which tunnel carries the next stream to a peer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::id::Identity;
use crate::outcome::Reason;

mod check;
#[cfg(test)]
mod tests;

/// What two streams must share to travel in one tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolKey {
    /// Uid of the local pod, and so the network namespace that dials.
    pub pod: Arc<str>,
    /// Identity that the tunnel presents.
    pub source: Identity,
    /// The client's address: the far side shows it to the application, so it must be that of every stream.
    pub client: IpAddr,
    /// Where to dial.
    pub peer: SocketAddr,
    /// Identities that the peer may present.
    pub identities: Arc<[Identity]>,
    /// Uid of the destination workload: an address that passes to another workload makes another key.
    pub workload: Arc<str>,
}

/// A tunnel of one pool; never used again after the tunnel is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TunnelId(pub u64);

/// A stream that asks for a tunnel; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WaiterId(pub u64);

/// What the shard has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Open a tunnel and report `dialed` or `lost`.
    Dial {
        /// Its id from now on.
        tunnel: TunnelId,
        /// Where and as whom.
        key: PoolKey,
    },
    /// Open the waiter's stream on this tunnel, and report `released` when the stream ends or cannot be opened.
    Assign {
        /// The stream.
        waiter: WaiterId,
        /// Its tunnel.
        tunnel: TunnelId,
    },
    /// The waiter gets no tunnel.
    Fail {
        /// The stream.
        waiter: WaiterId,
        /// Why.
        reason: Reason,
    },
    /// Close this tunnel, or abandon its dial. The pool has already forgotten it.
    Close {
        /// The tunnel.
        tunnel: TunnelId,
    },
}

/// Decides which tunnel to a peer carries the next stream, and which tunnels have been idle long enough to close. It
/// never touches a socket: the shard performs the [`Action`] it returns and reports back with `dialed` or `lost`.
///
/// After every mutating call, call `poll_action` until `None`. An event about a tunnel or waiter that the pool has
/// forgotten is ignored, so reports that cross an action on the way do no harm.
///
/// Invariants, checked after every call in debug builds:
/// - a tunnel is never given a stream beyond its limit;
/// - at most one dial is pending per key, however many streams wait on it;
/// - a stream waits only while no tunnel of its key has room, and a dial is pending or the peer takes no streams;
/// - a ready tunnel without streams, and no other, has an idle deadline.
#[derive(Debug)]
pub struct Pool {
    streams_max: u32,
    idle_ms_max: u64,
    now_ms: u64,
    next_id: u64,
    peers: BTreeMap<PoolKey, Peer>,
    tunnels: BTreeMap<TunnelId, Tunnel>,
    waiters: BTreeMap<WaiterId, PoolKey>,
    idle: BTreeSet<(u64, TunnelId)>,
    actions: VecDeque<Action>,
}

/// The tunnels and waiters of one key. Retired tunnels are not among them.
#[derive(Debug, Default)]
struct Peer {
    ready: Vec<TunnelId>,
    dialing: Option<TunnelId>,
    waiting: VecDeque<WaiterId>,
}

#[derive(Debug)]
struct Tunnel {
    key: PoolKey,
    state: State,
    streams: u32,
    streams_max: u32,
    idle_at_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Dialing,
    Ready,
    /// The peer takes no new streams; the tunnel closes with its last one.
    Retired,
}

impl Tunnel {
    fn has_room(&self) -> bool {
        self.state == State::Ready && self.streams < self.streams_max
    }
}

impl Pool {
    /// An empty pool. `streams_max` is the most streams of one tunnel, and `idle_ms_max` how long a tunnel without
    /// streams is kept.
    pub fn new(streams_max: u32, idle_ms_max: u64) -> Self {
        Self {
            streams_max,
            idle_ms_max,
            now_ms: 0,
            next_id: 0,
            peers: BTreeMap::new(),
            tunnels: BTreeMap::new(),
            waiters: BTreeMap::new(),
            idle: BTreeSet::new(),
            actions: VecDeque::new(),
        }
    }

    /// A stream asks for a tunnel. Exactly one `Assign` or `Fail` answers it, unless it is cancelled before.
    pub fn acquire(&mut self, key: &PoolKey, now_ms: u64) -> WaiterId {
        self.now_ms = now_ms;
        let waiter = WaiterId(self.take_id());
        if let Some(tunnel) = self.fullest_with_room(key) {
            self.assign(waiter, tunnel);
        } else {
            self.peers.entry(key.clone()).or_default().waiting.push_back(waiter);
            self.waiters.insert(waiter, key.clone());
            self.settle(key);
        }
        self.check();
        waiter
    }

    /// A stream no longer wants a tunnel. After its `Assign` has been polled, report `released` instead.
    pub fn cancel(&mut self, waiter: WaiterId) {
        if let Some(key) = self.waiters.remove(&waiter) {
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.waiting.retain(|other| *other != waiter);
            }
            self.forget_if_empty(&key);
        } else if let Some(tunnel) = self.withdraw(waiter) {
            self.release(tunnel);
        }
        self.check();
    }

    /// A dial succeeded. `streams_max` is the peer's limit, as far as it is known.
    pub fn dialed(&mut self, tunnel: TunnelId, streams_max: u32, now_ms: u64) {
        self.now_ms = now_ms;
        let limit = streams_max.min(self.streams_max);
        let dialing = self.tunnels.get_mut(&tunnel).filter(|dialed| dialed.state == State::Dialing);
        if let Some(dialed) = dialing {
            dialed.state = State::Ready;
            dialed.streams_max = limit;
            let key = dialed.key.clone();
            let peer = self.peers.entry(key.clone()).or_default();
            peer.dialing = None;
            peer.ready.push(tunnel);
            self.settle(&key);
            self.start_idle(tunnel);
        }
        self.check();
    }

    /// The peer's limit changed. Streams beyond a lower limit run on; no more are added.
    pub fn streams_max_changed(&mut self, tunnel: TunnelId, streams_max: u32) {
        let limit = streams_max.min(self.streams_max);
        if let Some(changed) = self.tunnels.get_mut(&tunnel).filter(|changed| changed.state == State::Ready) {
            changed.streams_max = limit;
            let key = changed.key.clone();
            self.settle(&key);
        }
        self.check();
    }

    /// A dial failed, which fails every stream that waits on it, or a tunnel is gone.
    pub fn lost(&mut self, tunnel: TunnelId, reason: Reason) {
        if let Some(lost) = self.take_tunnel(tunnel) {
            match lost.state {
                State::Dialing => self.fail_waiting(&lost.key, reason),
                State::Ready | State::Retired => self.settle(&lost.key),
            }
        }
        self.check();
    }

    /// The peer takes no new streams on this tunnel (GOAWAY). It closes once its last stream has ended.
    pub fn retire(&mut self, tunnel: TunnelId) {
        match self.tunnels.get(&tunnel).map(|tunnel| (tunnel.state, tunnel.streams)) {
            Some((State::Dialing, _)) => {
                self.actions.push_back(Action::Close { tunnel });
                self.lost(tunnel, Reason::TunnelLost);
            }
            Some((State::Ready, 0)) => self.close(tunnel),
            Some((State::Ready, _)) => {
                if let Some(mut retired) = self.take_tunnel(tunnel) {
                    let key = retired.key.clone();
                    retired.state = State::Retired;
                    self.tunnels.insert(tunnel, retired);
                    self.settle(&key);
                }
            }
            Some((State::Retired, _)) | None => {}
        }
        self.check();
    }

    /// A stream of this tunnel ended.
    pub fn released(&mut self, tunnel: TunnelId, now_ms: u64) {
        self.now_ms = now_ms;
        self.release(tunnel);
        self.check();
    }

    /// A local pod is gone: its tunnels close, and its waiters fail.
    pub fn remove_pod(&mut self, pod: &str) {
        self.remove_where(|key| &*key.pod == pod);
    }

    /// Destination workloads are gone from the mesh, told by their uids: the tunnels to them close, and the waiters for
    /// them fail.
    pub fn remove_workloads(&mut self, gone: impl Fn(&str) -> bool) {
        self.remove_where(|key| gone(&key.workload));
    }

    /// The next thing to do; `None` once all is done.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When `handle_timeout` is due, ms.
    pub fn poll_timeout(&self) -> Option<u64> {
        self.idle.first().map(|(deadline, _)| *deadline)
    }

    /// Closes the tunnels that have been idle long enough.
    pub fn handle_timeout(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        while let Some((_, tunnel)) = self.idle.first().copied().filter(|(deadline, _)| *deadline <= now_ms) {
            self.close(tunnel);
        }
        self.check();
    }

    /// Whether the tunnel is still wanted: `false` for a dial that was abandoned while it ran.
    pub fn knows(&self, tunnel: TunnelId) -> bool {
        self.tunnels.contains_key(&tunnel)
    }

    /// Whether there is neither a tunnel nor a waiter.
    pub fn is_empty(&self) -> bool {
        self.tunnels.is_empty() && self.waiters.is_empty()
    }

    /// How many tunnels there are, with those being dialled and those that are retired.
    pub fn tunnels(&self) -> usize {
        self.tunnels.len()
    }

    fn take_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// The fullest tunnel with room: streams coalesce on it, and spare tunnels fall idle.
    fn fullest_with_room(&self, key: &PoolKey) -> Option<TunnelId> {
        let ready = self.peers.get(key)?.ready.iter().copied();
        let with_room = ready.filter_map(|id| {
            let tunnel = self.tunnels.get(&id).filter(|tunnel| tunnel.has_room())?;
            Some((tunnel.streams, id))
        });
        with_room.max_by_key(|(streams, _)| *streams).map(|(_, id)| id)
    }

    fn assign(&mut self, waiter: WaiterId, id: TunnelId) {
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            debug_assert!(tunnel.has_room(), "a tunnel was given a stream beyond its limit");
            tunnel.streams += 1;
            if let Some(deadline) = tunnel.idle_at_ms.take() {
                self.idle.remove(&(deadline, id));
            }
            self.actions.push_back(Action::Assign { waiter, tunnel: id });
        }
    }

    /// Brings one key to rest: waiters take the room there is, and one dial starts for those that are left.
    fn settle(&mut self, key: &PoolKey) {
        while self.peers.get(key).is_some_and(|peer| !peer.waiting.is_empty()) {
            let Some(tunnel) = self.fullest_with_room(key) else { break };
            let Some(waiter) = self.peers.get_mut(key).and_then(|peer| peer.waiting.pop_front()) else {
                break;
            };
            self.waiters.remove(&waiter);
            self.assign(waiter, tunnel);
        }
        if self.peers.get(key).is_some_and(|peer| !peer.waiting.is_empty() && peer.dialing.is_none())
            && !self.refuses_streams(key)
        {
            self.dial(key);
        }
        self.forget_if_empty(key);
    }

    /// Whether the peer allows no stream at all on a tunnel that it accepted. Another dial would meet the same answer
    /// and so dial forever; the waiters wait for a better limit or for their own deadline.
    fn refuses_streams(&self, key: &PoolKey) -> bool {
        let refuses = |id| self.tunnels.get(id).is_some_and(|tunnel| tunnel.streams_max == 0);
        self.peers.get(key).is_some_and(|peer| peer.ready.iter().any(refuses))
    }

    fn dial(&mut self, key: &PoolKey) {
        let id = TunnelId(self.take_id());
        let tunnel =
            Tunnel { key: key.clone(), state: State::Dialing, streams: 0, streams_max: 0, idle_at_ms: None };
        self.tunnels.insert(id, tunnel);
        self.peers.entry(key.clone()).or_default().dialing = Some(id);
        self.actions.push_back(Action::Dial { tunnel: id, key: key.clone() });
    }

    fn release(&mut self, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get_mut(&id).filter(|tunnel| tunnel.streams > 0) else { return };
        tunnel.streams -= 1;
        match (tunnel.state, tunnel.streams) {
            (State::Retired, 0) => self.close(id),
            (State::Retired, _) => {}
            (State::Dialing | State::Ready, _) => {
                let key = tunnel.key.clone();
                self.settle(&key);
                self.start_idle(id);
            }
        }
    }

    /// Starts the idle deadline of a ready tunnel that carries no stream.
    fn start_idle(&mut self, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        if tunnel.state == State::Ready && tunnel.streams == 0 && tunnel.idle_at_ms.is_none() {
            let deadline = self.now_ms.saturating_add(self.idle_ms_max);
            tunnel.idle_at_ms = Some(deadline);
            self.idle.insert((deadline, id));
        }
    }

    fn close(&mut self, id: TunnelId) {
        if let Some(tunnel) = self.take_tunnel(id) {
            self.actions.push_back(Action::Close { tunnel: id });
            self.settle(&tunnel.key);
        }
    }

    /// Takes a tunnel out of every table.
    fn take_tunnel(&mut self, id: TunnelId) -> Option<Tunnel> {
        let mut tunnel = self.tunnels.remove(&id)?;
        if let Some(deadline) = tunnel.idle_at_ms.take() {
            self.idle.remove(&(deadline, id));
        }
        if let Some(peer) = self.peers.get_mut(&tunnel.key) {
            peer.ready.retain(|other| *other != id);
            peer.dialing = peer.dialing.filter(|other| *other != id);
        }
        Some(tunnel)
    }

    fn fail_waiting(&mut self, key: &PoolKey, reason: Reason) {
        let waiting = self.peers.get_mut(key).map(|peer| std::mem::take(&mut peer.waiting));
        for waiter in waiting.unwrap_or_default() {
            self.waiters.remove(&waiter);
            self.actions.push_back(Action::Fail { waiter, reason });
        }
        self.forget_if_empty(key);
    }

    /// Takes back an `Assign` that has not been polled yet, and says which tunnel it was for.
    fn withdraw(&mut self, waiter: WaiterId) -> Option<TunnelId> {
        let mut found = None;
        self.actions.retain(|action| match action {
            Action::Assign { waiter: other, tunnel } if *other == waiter => {
                found = Some(*tunnel);
                false
            }
            _ => true,
        });
        found
    }

    fn remove_where(&mut self, gone: impl Fn(&PoolKey) -> bool) {
        let tunnels = self.tunnels.iter().filter(|(_, tunnel)| gone(&tunnel.key)).map(|(id, _)| *id);
        let tunnels: Vec<TunnelId> = tunnels.collect();
        let keys: Vec<PoolKey> = self.peers.keys().filter(|key| gone(key)).cloned().collect();
        // Waiters first: a tunnel that closes must not start a dial for them.
        for key in &keys {
            self.fail_waiting(key, Reason::WorkloadGone);
        }
        for tunnel in tunnels {
            self.close(tunnel);
        }
        self.check();
    }

    fn forget_if_empty(&mut self, key: &PoolKey) {
        let empty = |peer: &Peer| peer.ready.is_empty() && peer.dialing.is_none() && peer.waiting.is_empty();
        if self.peers.get(key).is_some_and(empty) {
            self.peers.remove(key);
        }
    }
}
