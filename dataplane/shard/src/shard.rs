//! One shard: everything that its core owns, and what the mailbox makes of it.

mod drain;
mod report;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::sync::Arc;

use halo_core::access::{AccessLine, Event};
use halo_core::certificate::{Certificate, Revocations};
use halo_core::counters::Counters;
use halo_core::demand::Question;
use halo_core::id::Identity;
use halo_core::limits::Limits;
use halo_core::net::{SOCKS5_PORT, is_own_port};
use halo_core::options::Options;
use halo_core::outcome::{Reason, ResponseFlag};
use halo_core::pool::{Pool, TunnelId, WaiterId};
use halo_core::rbac;
use halo_core::report::{Direction, Transport};
use halo_core::resolve;
use halo_core::snapshot::Snapshot;
use halo_core::workload::Workload;

use crate::access::AccessLog;
use crate::buffers::Buffers;
use crate::conn::{Conn, Parties};
use crate::demand::{Demand, Missing};
use crate::dns::{self, Dns, DnsConfig};
use crate::mailbox::{BindError, PodSpec};
use crate::netns::Place;
use crate::pod::{Pod, Seat};
use crate::pool::Waiter;
use crate::refusal::{Refusals, Subject};
use crate::ring;
use crate::socket::SocketOptions;
use crate::stats::Latencies;
use crate::telemetry::Telemetry;
use crate::timer::Timers;
use crate::tls::{PeerChain, RecordsKind, RevocationLists, Terms, TlsConfig};
use crate::tunnel::{Side, Tunnel};
use crate::wake::{Broadcast, Signal};

/// What a shard owns. Nothing in it is shared with another thread but `counters`, which only this one writes.
pub(crate) struct Shard {
    parts: Parts,
    pub(crate) sockets: SocketOptions,
    pub(crate) timers: Rc<Timers>,
    pub(crate) buffers: Buffers,
    pub(crate) pool: RefCell<Pool>,
    pub(crate) pool_changed: Signal,
    pub(crate) waiters: RefCell<HashMap<WaiterId, Rc<Waiter>>>,
    /// Tunnels that we dialled.
    pub(crate) dialled: RefCell<HashMap<TunnelId, Rc<Tunnel>>>,
    /// Tunnels that we accepted, by a number of this shard.
    pub(crate) accepted: RefCell<BTreeMap<u64, Rc<Tunnel>>>,
    /// Tunnels that we opened within streams of other tunnels, by a number of this shard.
    pub(crate) inner: RefCell<BTreeMap<u64, Rc<Tunnel>>>,
    /// This shard's own handle on the maps, so that a decision counts references on this core alone.
    snapshot: RefCell<Rc<Snapshot>>,
    pub(crate) latencies: Latencies,
    refusals: Refusals,
    pub(crate) dns: Dns,
    changed: Broadcast,
    pods: RefCell<HashMap<Arc<str>, Rc<Pod>>>,
    conns: RefCell<BTreeMap<u64, Rc<Conn>>>,
    pub(crate) conn_ended: Broadcast,
    tls: RefCell<HashMap<Identity, Configured>>,
    /// What is revoked, as the snapshot has it.
    revocations: RefCell<Option<Arc<RevocationLists>>>,
    random: Cell<u64>,
    next_id: Cell<u64>,
    draining: Cell<bool>,
}

/// A certificate, and the TLS configuration made of it.
type Configured = (Arc<Certificate>, Rc<TlsConfig>);

/// What a shard is started with.
pub(crate) struct Parts {
    pub(crate) index: usize,
    pub(crate) core: Option<usize>,
    pub(crate) ring: &'static str,
    pub(crate) limits: Limits,
    pub(crate) records: RecordsKind,
    pub(crate) ipv6: bool,
    pub(crate) options: Options,
    pub(crate) counters: Arc<Counters>,
    pub(crate) place: Rc<Place>,
    pub(crate) access: Rc<AccessLog>,
    pub(crate) telemetry: Telemetry,
    pub(crate) demand: Demand,
    pub(crate) dns_config: DnsConfig,
}

impl std::ops::Deref for Shard {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

impl Shard {
    pub(crate) fn new(parts: Parts) -> Rc<Self> {
        let pool = Pool::new(parts.limits.streams_per_tunnel_max, parts.limits.tunnel_idle_ms_max);
        let sockets = SocketOptions::for_host(parts.limits.packet_mark, parts.ipv6, parts.options);
        let timers: Rc<Timers> = Rc::default();
        let dns = Dns::new(dns::Parts {
            config: parts.dns_config.clone(),
            place: parts.place.clone(),
            sockets: sockets.clone(),
            timers: timers.clone(),
            counters: parts.counters.clone(),
        });
        Rc::new(Self {
            sockets,
            parts,
            timers,
            dns,
            buffers: Buffers::default(),
            pool: RefCell::new(pool),
            pool_changed: Signal::default(),
            waiters: RefCell::default(),
            dialled: RefCell::default(),
            accepted: RefCell::default(),
            inner: RefCell::default(),
            snapshot: RefCell::default(),
            latencies: Latencies::default(),
            refusals: Refusals::default(),
            changed: Broadcast::default(),
            pods: RefCell::default(),
            conns: RefCell::default(),
            conn_ended: Broadcast::default(),
            tls: RefCell::default(),
            revocations: RefCell::default(),
            random: Cell::new(RandomState::new().hash_one(0) | 1),
            next_id: Cell::new(0),
            draining: Cell::new(false),
        })
    }

    /// Starts a task; a panic inside it is counted and ends that task alone.
    pub(crate) fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        let counters = self.counters.clone();
        ring::spawn(task, move |_| counters.closed(Reason::Defect));
    }

    /// Counts a connection that was refused before its ends were known, and tells of it where people should know.
    pub(crate) fn ended(&self, subject: Subject<'_>, reason: Reason) {
        self.counters.closed(reason);
        if !self.access.wants(Event::Refused) {
            return;
        }
        if let Some(more) = self.refusals.tells(&subject.pod.uid, reason, ring::now_ms()) {
            self.access.push(subject.line(reason, more), &self.timers);
        }
    }

    /// Counts a tracked connection that ended, and tells of it. What is said of the same connection later is ignored.
    pub(crate) fn finished(&self, conn: &Conn, reason: Reason) {
        if self.settle(conn, reason) {
            self.counters.closed(reason);
        }
    }

    /// Counts a connection that was refused once its ends were known, by policy or because its upstream could not be
    /// reached, and tells of it as of one that was open for a moment.
    pub(crate) fn refused(&self, pod: &Rc<Pod>, parties: Parties, denial: Denial) {
        let Denial { reason, policy } = denial;
        let account = self.telemetry.open(&parties, ring::now_ms());
        let conn = Conn::new(pod.clone(), parties, account, self.limits.half_close_ms_max);
        self.tell(Event::Opened, &conn, reason);
        self.counters.closed(reason);
        conn.account.close(reason, ring::now_ms());
        if self.access.wants(Event::Failed) {
            self.access.push(AccessLine { policy, ..conn.line(Event::Failed, reason) }, &self.timers);
        }
    }

    fn settle(&self, conn: &Conn, reason: Reason) -> bool {
        let first = conn.account.close(reason, ring::now_ms());
        if first {
            // A reset that was carried over is how many an application ends, and not a failure.
            let in_order = reason.outcome().flag == ResponseFlag::None;
            let event = if in_order { Event::Complete } else { Event::Failed };
            self.tell(event, conn, reason);
        }
        first
    }

    fn tell(&self, event: Event, conn: &Conn, reason: Reason) {
        if self.access.wants(event) {
            self.access.push(conn.line(event, reason), &self.timers);
        }
    }

    /// The generation to decide by.
    pub(crate) fn snapshot(&self) -> Rc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    /// A number that is not predictable from outside (xorshift64*), for balancing and trace ids; never for secrets.
    pub(crate) fn random(&self) -> u64 {
        let mut state = self.random.get();
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        self.random.set(state);
        state.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number that this shard has not used yet.
    pub(crate) fn unique(&self) -> u64 {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        id
    }

    /// Adopts a generation: parked connections look again, open inbound connections are checked against the new
    /// policies, tunnels to workloads that are gone are closed, and those of revoked peers are cut.
    pub(crate) fn adopt(&self, snapshot: Arc<Snapshot>) {
        let snapshot = Rc::new(Snapshot::clone(&snapshot));
        let old = self.snapshot.replace(snapshot.clone());
        self.counters.snapshots.increment();
        self.recheck(&old, &snapshot);
        self.close_tunnels_to_the_gone(&old, &snapshot);
        if old.mesh.trust_domain_aliases != snapshot.mesh.trust_domain_aliases {
            self.tls.borrow_mut().clear();
        }
        if !old.certificates.ptr_eq(&snapshot.certificates) {
            self.tls.borrow_mut().retain(|identity, _| snapshot.certificates.contains_key(identity));
        }
        let lists = |snapshot: &Snapshot| snapshot.revocations.as_ref().map(Arc::as_ptr);
        if lists(&old) != lists(&snapshot) {
            self.revoke(snapshot.revocations.as_ref());
        }
        self.demand.generation();
        self.changed.notify();
    }

    fn workload_changed(&self, old: &Snapshot, new: &Snapshot, pod: &Pod) -> bool {
        match (self.workload_of(old, pod), self.workload_of(new, pod)) {
            (Some(old), Some(new)) => !Arc::ptr_eq(old, new),
            (old, new) => old.is_some() || new.is_some(),
        }
    }

    /// Cuts the inbound connections that policy no longer admits, of the pods that a change may concern.
    fn recheck(&self, old: &Snapshot, new: &Snapshot) {
        let policies_changed = !old.policies.same(&new.policies);
        let workloads_changed = !old.workloads.same(&new.workloads);
        if !policies_changed && !workloads_changed {
            return;
        }
        let pods = self.pods.borrow();
        let concerned = pods.values().filter(|pod| policies_changed || self.workload_changed(old, new, pod));
        // A workload that the control plane has already withdrawn keeps what it was granted until its pod goes.
        let concerned = concerned.filter_map(|pod| Some((&*pod.uid, self.workload_of(new, pod)?)));
        let concerned: HashMap<&str, &Arc<Workload>> = concerned.collect();
        if concerned.is_empty() {
            return;
        }
        let refused = self.conns_where(|conn| {
            let concerned = concerned.get(&*conn.pod.uid).filter(|_| is_inbound(conn) && !conn.pod.is_gone());
            concerned.is_some_and(|workload| {
                let connection = rbac::Connection {
                    source: conn.parties.source,
                    identity: conn.parties.source_identity.as_ref(),
                    destination: conn.parties.destination,
                    workload,
                };
                self.verdict(new, &connection).is_some()
            })
        });
        for conn in refused {
            conn.cut(Reason::PolicyChange);
        }
    }

    fn close_tunnels_to_the_gone(&self, old: &Snapshot, new: &Snapshot) {
        let mut pool = self.pool.borrow_mut();
        // Whoever comes to the pool has just seen the workload, so no tunnel leads to one that went before.
        if pool.is_empty() || old.workloads.same(&new.workloads) {
            return;
        }
        let gone: HashSet<&str> =
            new.workloads.removed_since(&old.workloads).map(|workload| &*workload.uid).collect();
        if !gone.is_empty() {
            pool.remove_workloads(|uid| gone.contains(uid));
            self.pool_changed.notify();
        }
    }

    /// Goes by new revocation lists: handshakes from now on, those that run at their end, and open tunnels at once.
    fn revoke(&self, revocations: Option<&Arc<Revocations>>) {
        let lists = match revocations.map(RevocationLists::new) {
            Some(Some(lists)) => Some(Arc::new(lists)),
            // The control thread publishes only what it could read. Should one fail here, those before it stay in force.
            Some(None) => return,
            None => None,
        };
        self.revocations.replace(lists);
        self.tls.borrow_mut().clear();
        for tunnel in self.tunnels_where(|tunnel| tunnel.ended().is_none() && self.revoked(&tunnel.peer)) {
            tunnel.revoke();
            if let Side::Outbound(id) = &tunnel.side {
                self.retire_tunnel(*id);
            }
            self.telemetry.crl_rejected(match &tunnel.side {
                Side::Inbound(_) => Direction::Inbound,
                Side::Outbound(_) | Side::Inner(_) => Direction::Outbound,
            });
        }
    }

    /// Whether a certificate of the peer is revoked.
    pub(crate) fn revoked(&self, peer: &PeerChain) -> bool {
        self.revocations.borrow().as_ref().is_some_and(|lists| lists.revoke(peer))
    }

    /// Asks the policies, and counts what they say on the side; the reason for a refusal.
    pub(crate) fn verdict(&self, snapshot: &Snapshot, connection: &rbac::Connection<'_>) -> Option<Denial> {
        let verdict = rbac::check_with(snapshot, connection, &mut |event| match event {
            rbac::Event::DryRun(_) => self.counters.policies_dry_run.increment(),
            rbac::Event::Missing(_) => self.counters.policies_missing.increment(),
        });
        let reason = verdict.reason()?;
        Some(Denial { reason, policy: verdict.refused_by() })
    }

    /// Whether a port is one of our own listeners in every pod: a connection to it through us would loop.
    pub(crate) fn is_own_port(&self, port: u16) -> bool {
        is_own_port(port) || (self.options.socks5 && port == SOCKS5_PORT)
    }

    /// The mesh's own record of a local pod, once the control plane has delivered it.
    pub(crate) fn workload_of<'a>(&self, snapshot: &'a Snapshot, pod: &Pod) -> Option<&'a Arc<Workload>> {
        resolve::local_workload(snapshot, &pod.namespace, &pod.name, &pod.service_account)
    }

    /// Waits until `find` finds something in a generation, at most as long as a lookup may take and while the pod is on
    /// the node. What `find` has a question about is asked for.
    ///
    /// # Errors
    /// What was missing to the end.
    pub(crate) async fn wait_for<T>(
        &self,
        pod: &Pod,
        mut find: impl FnMut(&Rc<Snapshot>) -> Result<T, Missing>,
    ) -> Result<T, Reason> {
        if pod.is_gone() {
            return Err(Reason::WorkloadGone);
        }
        match find(&self.snapshot()) {
            Ok(found) => Ok(found),
            // Nearly every connection finds all it needs, and none should be larger for those that do not.
            Err(missing) => Box::pin(self.park(pod, find, missing)).await,
        }
    }

    async fn park<T>(
        &self,
        pod: &Pod,
        mut find: impl FnMut(&Rc<Snapshot>) -> Result<T, Missing>,
        mut missing: Missing,
    ) -> Result<T, Reason> {
        self.counters.lookups.increment();
        let mut waiting = self.demand.enter();
        let found = ring::within_ms(self.limits.lookup_ms_max, async {
            loop {
                let now_ms = ring::now_ms();
                match waiting.need(missing.question.take(), now_ms) {
                    Some(again_ms) => {
                        let wait_ms = again_ms.saturating_sub(now_ms).max(1);
                        ring::within_ms(wait_ms, self.changed.next()).await;
                    }
                    None => self.changed.next().await,
                }
                // Before it decides: the place of the pod may have been taken by another one already.
                if pod.is_gone() {
                    return Err(Reason::WorkloadGone);
                }
                match find(&self.snapshot()) {
                    Ok(found) => return Ok(found),
                    Err(still) => missing = still,
                }
            }
        });
        let found = found.await;
        found.unwrap_or_else(|| {
            self.counters.lookups_expired.increment();
            Err(missing.reason)
        })
    }

    /// The TLS configuration of an identity.
    ///
    /// # Errors
    /// Its certificate is missing, unusable or expired; the question asks for one.
    pub(crate) fn own_tls(&self, snapshot: &Snapshot, identity: &Identity) -> Result<Rc<TlsConfig>, Missing> {
        self.tls_of(snapshot, identity).ok_or_else(|| Missing {
            reason: Reason::NoCertificate,
            question: Some(Question::Certificate(identity.clone())),
        })
    }

    /// The TLS configuration of an identity; `None` while its certificate is missing, unusable or expired.
    pub(crate) fn tls_of(&self, snapshot: &Snapshot, identity: &Identity) -> Option<Rc<TlsConfig>> {
        let certificate = snapshot.certificates.get(identity)?;
        let now_s = std::time::UNIX_EPOCH.elapsed().ok()?.as_secs();
        if certificate.not_after_s <= now_s {
            return None;
        }
        let mut cache = self.tls.borrow_mut();
        if let Some((cached, config)) = cache.get(identity)
            && Arc::ptr_eq(cached, certificate)
        {
            return Some(config.clone());
        }
        let revocations = self.revocations.borrow().clone();
        let aliases = &snapshot.mesh.trust_domain_aliases;
        let terms = Terms { mode: self.options.tls, aliases: aliases.iter().cloned().collect(), revocations };
        let config = Rc::new(TlsConfig::on_terms(certificate, terms).ok()?);
        cache.insert(identity.clone(), (certificate.clone(), config.clone()));
        Some(config)
    }

    /// Tracks a connection until the guard is dropped.
    pub(crate) fn track(self: &Rc<Self>, pod: &Rc<Pod>, parties: Parties) -> Tracked {
        let account = self.telemetry.open(&parties, ring::now_ms());
        let conn = Rc::new(Conn::new(pod.clone(), parties, account, self.limits.half_close_ms_max));
        self.tell(Event::Opened, &conn, Reason::Complete);
        let id = self.unique();
        self.conns.borrow_mut().insert(id, conn.clone());
        match (conn.parties.direction, conn.parties.transport) {
            (Direction::Outbound, _) => self.counters.connections_outbound.increment(),
            (Direction::Inbound, Transport::Hbone | Transport::DoubleHbone) => {
                self.counters.connections_inbound.increment()
            }
            (Direction::Inbound, Transport::Tcp) => self.counters.connections_plaintext.increment(),
        }
        Tracked { shard: self.clone(), id, conn, _seat: None }
    }

    /// The pod with this uid, while it is on the node.
    pub(crate) fn pod(&self, uid: &str) -> Option<Rc<Pod>> {
        self.pods.borrow().get(uid).cloned()
    }

    /// Opens a pod's listeners; a pod of the same uid is replaced.
    pub(crate) fn add_pod(self: &Rc<Self>, spec: PodSpec) -> Result<(), BindError> {
        self.remove_pod(&spec.uid);
        let pod = Pod::open(self, spec)?;
        self.pods.borrow_mut().insert(pod.uid.clone(), pod);
        Ok(())
    }

    /// Closes a pod's listeners and cuts what it has open.
    pub(crate) fn remove_pod(&self, uid: &str) {
        let Some(pod) = self.pods.borrow_mut().remove(uid) else {
            return;
        };
        pod.remove();
        for conn in self.conns_where(|conn| Rc::ptr_eq(&conn.pod, &pod)) {
            conn.cut(Reason::WorkloadGone);
        }
        self.refusals.forget(uid);
        self.pool.borrow_mut().remove_pod(uid);
        for tunnel in self.tunnels_where(|tunnel| Rc::ptr_eq(&tunnel.pod, &pod)) {
            tunnel.abort(Reason::WorkloadGone);
        }
        self.pool_changed.notify();
        // What waits for an answer waits no longer.
        self.changed.notify();
        self.place.leave(&pod.netns);
    }

    fn conns_where(&self, matches: impl Fn(&Conn) -> bool) -> Vec<Rc<Conn>> {
        self.conns.borrow().values().filter(|conn| matches(conn)).cloned().collect()
    }

    fn tunnels_where(&self, matches: impl Fn(&Tunnel) -> bool) -> Vec<Rc<Tunnel>> {
        let (dialled, accepted, inner) = (self.dialled.borrow(), self.accepted.borrow(), self.inner.borrow());
        let all = dialled.values().chain(accepted.values()).chain(inner.values());
        all.filter(|tunnel| matches(tunnel)).cloned().collect()
    }
}

/// Why a connection is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Denial {
    pub(crate) reason: Reason,
    /// The policy that refuses it, `namespace/name`.
    pub(crate) policy: Option<Arc<str>>,
}

impl From<Reason> for Denial {
    fn from(reason: Reason) -> Self {
        Self { reason, policy: None }
    }
}

fn is_inbound(conn: &Conn) -> bool {
    conn.parties.direction == Direction::Inbound
}

/// Keeps a connection in the shard's table; a task that fails with it open has it cut.
pub(crate) struct Tracked {
    pub(crate) shard: Rc<Shard>,
    id: u64,
    pub(crate) conn: Rc<Conn>,
    _seat: Option<Seat>,
}

impl Tracked {
    /// Keeps a place among the pod's connections for as long as the connection is tracked.
    pub(crate) fn seated(mut self, seat: Seat) -> Self {
        self._seat = Some(seat);
        self
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.conn.cut(Reason::Defect);
        }
        // What a flow has not finished is over all the same; its task counts a defect itself.
        self.shard.settle(&self.conn, self.conn.outcome().unwrap_or(Reason::Defect));
        self.shard.conns.borrow_mut().remove(&self.id);
        self.shard.conn_ended.notify();
    }
}
