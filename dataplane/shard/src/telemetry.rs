//! What the shard counts about connections by their labels.
//!
//! A connection looks its pair of ends up once, by the addresses of what the snapshot holds, and from then on holds the
//! series that it counts into; labels become text when a pair is seen for the first time. Series of workloads that have
//! left the mesh expire, and their number is bounded: what finds no room is counted where nothing is known.

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::rc::Rc;
use std::sync::Arc;

use halo_core::counters::Counters;
use halo_core::labels::{Ends, Labels, Party, Traffic};
use halo_core::outcome::{Reason, ResponseFlag};
use halo_core::relay::Way;
use halo_core::report::{ByDirection, Direction, SeriesReport};
use halo_core::snapshot::Snapshot;

use crate::conn::Parties;
use crate::ring;
use crate::shard::Shard;

/// Series of one shard, and pairs of ends that lead to them.
const SERIES_MAX: usize = 50_000;
const PAIRS_MAX: usize = 200_000;
/// Those of them in which an end is only what a peer says of it. Peers may say anything, and leave room for the rest.
const TOLD_MAX: usize = 5_000;
/// Pairs that one turn looks at for expiry.
const SWEEP_MAX: usize = 512;
/// Between two looks at every pair, ms: a quarter of the expiry, within these bounds.
const SWEEP_MS: (u64, u64) = (100, 30_000);

/// What a shard has counted by labels.
pub(crate) struct Telemetry {
    counters: Arc<Counters>,
    expiry_ms: u64,
    hasher: RandomState,
    /// By hash; those of equal hashes are told apart by their content.
    pairs: RefCell<HashMap<u64, Vec<Rc<Pair>>>>,
    pairs_count: Cell<usize>,
    told_count: Cell<usize>,
    series: RefCell<HashMap<Arc<Labels>, Rc<Series>>>,
    sockets: Cell<ByDirection>,
    crl_rejections: Cell<ByDirection>,
}

/// Two ends that talk.
struct Pair {
    traffic: Arc<Traffic>,
    series: Rc<Series>,
    used_ms: Cell<u64>,
}

impl Pair {
    fn used(&self, now_ms: u64) {
        self.used_ms.set(now_ms);
        self.series.used_ms.set(now_ms);
    }
}

/// The connections with the same labels.
struct Series {
    labels: Arc<Labels>,
    opened: Cell<u64>,
    closed: [Cell<u64>; ResponseFlag::ALL.len()],
    received: Cell<u64>,
    sent: Cell<u64>,
    used_ms: Cell<u64>,
}

/// What a connection holds of its counting.
pub(crate) struct Account {
    pair: Rc<Pair>,
    pub(crate) begun_ms: u64,
    closed: Cell<bool>,
}

impl Account {
    /// The ends of the connection.
    pub(crate) fn traffic(&self) -> &Arc<Traffic> {
        &self.pair.traffic
    }

    /// Counts bytes.
    pub(crate) fn moved(&self, way: Way, bytes: u64) {
        let series = &self.pair.series;
        add(if way == Way::Upstream { &series.received } else { &series.sent }, bytes);
    }

    /// Counts the end of the connection; `false` if that was done before.
    pub(crate) fn close(&self, reason: Reason, now_ms: u64) -> bool {
        if self.closed.replace(true) {
            return false;
        }
        let series = &self.pair.series;
        add(&series.closed[reason.outcome().flag as usize], 1);
        self.pair.used(now_ms);
        true
    }
}

impl Telemetry {
    pub(crate) fn new(counters: Arc<Counters>, expiry_ms: u64) -> Self {
        Self {
            counters,
            expiry_ms,
            hasher: RandomState::new(),
            pairs: RefCell::default(),
            pairs_count: Cell::new(0),
            told_count: Cell::new(0),
            series: RefCell::default(),
            sockets: Cell::default(),
            crl_rejections: Cell::default(),
        }
    }

    /// Counts a connection that begins.
    pub(crate) fn open(&self, parties: &Parties, now_ms: u64) -> Account {
        let hash = self.hash(parties);
        let known = {
            let pairs = self.pairs.borrow();
            let alike = pairs.get(&hash).into_iter().flatten();
            alike.into_iter().find(|pair| is_alike(&pair.traffic, parties)).cloned()
        };
        let pair = known.unwrap_or_else(|| self.meet(parties, hash));
        add(&pair.series.opened, 1);
        pair.used(now_ms);
        Account { pair, begun_ms: now_ms, closed: Cell::new(false) }
    }

    /// A client's socket was taken.
    pub(crate) fn socket_opened(&self, direction: Direction) {
        let mut sockets = self.sockets.get();
        *sockets.of(direction) += 1;
        self.sockets.set(sockets);
    }

    /// It was closed.
    pub(crate) fn socket_closed(&self, direction: Direction) {
        let mut sockets = self.sockets.get();
        let open = sockets.of(direction);
        *open = open.saturating_sub(1);
        self.sockets.set(sockets);
    }

    /// A tunnel was refused or cut because its peer's certificate is revoked, as our lists have it.
    pub(crate) fn crl_rejected(&self, direction: Direction) {
        self.counters.crl_rejections.increment();
        let mut rejections = self.crl_rejections.get();
        *rejections.of(direction) += 1;
        self.crl_rejections.set(rejections);
    }

    /// Sockets that clients have open.
    pub(crate) fn sockets(&self) -> ByDirection {
        self.sockets.get()
    }

    /// Tunnels refused or cut because a certificate is revoked.
    pub(crate) fn crl_rejections(&self) -> ByDirection {
        self.crl_rejections.get()
    }

    /// Every series.
    pub(crate) fn report(&self, now_ms: u64) -> Vec<SeriesReport> {
        let series = self.series.borrow();
        let report = series.values().map(|series| SeriesReport {
            labels: series.labels.clone(),
            opened: series.opened.get(),
            closed: std::array::from_fn(|flag| series.closed[flag].get()),
            bytes_received: series.received.get(),
            bytes_sent: series.sent.get(),
            is_live: is_held(series) || now_ms < series.used_ms.get().saturating_add(self.expiry_ms),
        });
        report.collect()
    }

    /// Makes the pair that is not known yet, and its series.
    fn meet(&self, parties: &Parties, hash: u64) -> Rc<Pair> {
        let traffic = traffic(parties);
        let told = is_told(&traffic);
        let room = self.pairs_count.get() < PAIRS_MAX && (!told || self.told_count.get() < TOLD_MAX);
        let mut series = self.series.borrow_mut();
        let mut labels = traffic.labels();
        if (!room || series.len() >= SERIES_MAX) && !series.contains_key(&labels) {
            self.counters.series_overflows.increment();
            labels = Traffic { ends: Ends::default(), source_identity: None, ..traffic.clone() }.labels();
        }
        let series = match series.get(&labels) {
            Some(series) => series.clone(),
            None => {
                let new = Rc::new(Series::new(labels));
                series.insert(new.labels.clone(), new.clone());
                new
            }
        };
        let pair = Rc::new(Pair { traffic: Arc::new(traffic), series, used_ms: Cell::new(0) });
        if room {
            self.pairs_count.set(self.pairs_count.get() + 1);
            self.told_count.set(self.told_count.get() + usize::from(told));
            self.pairs.borrow_mut().entry(hash).or_default().push(pair.clone());
        }
        pair
    }

    fn hash(&self, parties: &Parties) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        parties.direction.hash(&mut hasher);
        parties.transport.hash(&mut hasher);
        let ends = &parties.ends;
        hash_party(&ends.source, &mut hasher);
        hash_party(&ends.destination, &mut hasher);
        ends.service.as_ref().map(Arc::as_ptr).hash(&mut hasher);
        // A known workload has one identity, but for the time in which it changes.
        if !matches!(ends.source, Party::Known(_)) {
            parties.source_identity.hash(&mut hasher);
        }
        hasher.finish()
    }

    /// The hashes of all pairs.
    fn hashes(&self) -> Vec<u64> {
        self.pairs.borrow().keys().copied().collect()
    }

    /// Forgets those of some pairs that no connection holds and whose ends the mesh no longer has; and those with an end
    /// that the mesh does not know once they are idle.
    fn sweep_pairs(&self, hashes: &[u64], snapshot: &Snapshot, now_ms: u64) {
        let mut pairs = self.pairs.borrow_mut();
        for hash in hashes {
            let Some(alike) = pairs.get_mut(hash) else {
                continue;
            };
            alike.retain(|pair| {
                let idle = now_ms >= pair.used_ms.get().saturating_add(self.expiry_ms);
                let stays = is_held(pair) || is_in_mesh(&pair.traffic, snapshot, idle);
                if !stays {
                    self.pairs_count.set(self.pairs_count.get() - 1);
                    self.told_count.set(self.told_count.get() - usize::from(is_told(&pair.traffic)));
                }
                stays
            });
            if alike.is_empty() {
                pairs.remove(hash);
            }
        }
    }

    /// Forgets the series that no pair leads to and that have been idle for twice the expiry. They are shown for half of
    /// that time: so no shard forgets what another one still shows, and a sum over the shards never falls.
    fn sweep_series(&self, now_ms: u64) {
        let until = |series: &Series| series.used_ms.get().saturating_add(self.expiry_ms.saturating_mul(2));
        self.series.borrow_mut().retain(|_, series| is_held(series) || now_ms < until(series));
    }
}

impl Series {
    fn new(labels: Labels) -> Self {
        Self {
            labels: Arc::new(labels),
            opened: Cell::new(0),
            closed: Default::default(),
            received: Cell::new(0),
            sent: Cell::new(0),
            used_ms: Cell::new(0),
        }
    }
}

/// Looks for what expires, for ever; a little at a time.
pub(crate) async fn run(shard: Rc<Shard>) {
    let telemetry = &shard.telemetry;
    loop {
        ring::sleep_ms((telemetry.expiry_ms / 4).clamp(SWEEP_MS.0, SWEEP_MS.1)).await;
        for hashes in telemetry.hashes().chunks(SWEEP_MAX) {
            telemetry.sweep_pairs(hashes, &shard.snapshot(), ring::now_ms());
            ring::sleep_ms(1).await;
        }
        telemetry.sweep_series(ring::now_ms());
    }
}

/// Whether anybody but the table holds it.
fn is_held<T>(item: &Rc<T>) -> bool {
    Rc::strong_count(item) > 1
}

fn add(total: &Cell<u64>, count: u64) {
    total.set(total.get().wrapping_add(count));
}

fn traffic(parties: &Parties) -> Traffic {
    Traffic {
        direction: parties.direction,
        transport: parties.transport,
        ends: parties.ends.clone(),
        source_identity: parties.source_identity.clone(),
        destination_identity: parties.destination_identity.clone(),
    }
}

/// Whether an end is only what a peer says of it.
fn is_told(traffic: &Traffic) -> bool {
    let ends = &traffic.ends;
    [&ends.source, &ends.destination].iter().any(|party| matches!(party, Party::Told(_)))
}

fn hash_party(party: &Party, hasher: &mut impl Hasher) {
    match party {
        Party::Unknown => 0_u8.hash(hasher),
        Party::Known(workload) => Arc::as_ptr(workload).hash(hasher),
        Party::Told(told) => told.hash(hasher),
    }
}

/// Whether a connection has these ends, and thereby these labels.
fn is_alike(traffic: &Traffic, parties: &Parties) -> bool {
    let same_party = |one: &Party, other: &Party| match (one, other) {
        (Party::Known(one), Party::Known(other)) => Arc::ptr_eq(one, other),
        (Party::Told(one), Party::Told(other)) => one == other,
        (Party::Unknown, Party::Unknown) => true,
        _ => false,
    };
    let (one, other) = (&traffic.ends, &parties.ends);
    traffic.direction == parties.direction
        && traffic.transport == parties.transport
        && same_party(&one.source, &other.source)
        && same_party(&one.destination, &other.destination)
        && one.service.as_ref().map(Arc::as_ptr) == other.service.as_ref().map(Arc::as_ptr)
        && traffic.source_identity == parties.source_identity
        && (!matches!(one.destination, Party::Told(_))
            || traffic.destination_identity == parties.destination_identity)
}

/// Whether connections may still come with exactly these ends; where an end is not of the mesh, that is so until the
/// pair is idle.
fn is_in_mesh(traffic: &Traffic, snapshot: &Snapshot, idle: bool) -> bool {
    let current = |party: &Party| match party {
        Party::Known(workload) => {
            snapshot.workloads.get(&workload.uid).is_some_and(|current| Arc::ptr_eq(current, workload))
        }
        Party::Unknown | Party::Told(_) => !idle,
    };
    let service = traffic.ends.service.as_ref();
    let current_service = service.is_none_or(|service| {
        snapshot.services.get(&service.key).is_some_and(|current| Arc::ptr_eq(current, service))
    });
    current(&traffic.ends.source) && current(&traffic.ends.destination) && current_service
}
