//! Random events against a plain model that knows every tunnel and waiter and judges each action.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy};
use proptest::{prop_oneof, proptest};

use super::*;

/// An event. The numbers choose among what exists when it happens.
#[derive(Debug, Clone)]
enum Event {
    Acquire(usize),
    Cancel(usize),
    Dialed(usize, u32),
    Lost(usize),
    Limit(usize, u32),
    Retire(usize),
    Released(usize),
    RemovePod(usize),
    RemoveWorkload(usize),
    Advance(u64),
    /// Everything that can be said about a tunnel and a waiter that the pool does not know.
    Stale(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let any = 0..100usize;
    prop_oneof![
        12 => any.clone().prop_map(Event::Acquire),
        2 => any.clone().prop_map(Event::Cancel),
        6 => (any.clone(), prop_oneof![1 => Just(0), 8 => 1..5u32]).prop_map(|(n, limit)| Event::Dialed(n, limit)),
        2 => any.clone().prop_map(Event::Lost),
        2 => (any.clone(), 0..5u32).prop_map(|(n, limit)| Event::Limit(n, limit)),
        1 => any.clone().prop_map(Event::Retire),
        8 => any.clone().prop_map(Event::Released),
        1 => any.clone().prop_map(Event::RemovePod),
        1 => any.prop_map(Event::RemoveWorkload),
        4 => (1..700u64).prop_map(Event::Advance),
        1 => (0..100u64).prop_map(Event::Stale),
    ]
}

#[derive(Debug, Clone, PartialEq)]
enum Phase {
    Dialing,
    Ready,
    Retired,
}

#[derive(Debug, Clone)]
struct Known {
    key: PoolKey,
    phase: Phase,
    streams: u32,
    limit: u32,
    idle_since: u64,
}

#[derive(Debug)]
struct Model {
    pool: Pool,
    now: u64,
    keys: Vec<PoolKey>,
    tunnels: BTreeMap<TunnelId, Known>,
    /// In the order in which they came.
    waiting: BTreeMap<WaiterId, PoolKey>,
}

impl Model {
    fn new() -> Self {
        let keys = [("p", "w"), ("p", "x"), ("q", "w"), ("q", "x")].map(|(pod, workload)| key(pod, workload));
        let waiting = BTreeMap::new();
        Self { pool: pool(), now: 0, keys: keys.to_vec(), tunnels: BTreeMap::new(), waiting }
    }

    fn pick(&self, n: usize, among: impl Fn(&Known) -> bool) -> Option<TunnelId> {
        let ids: Vec<_> = self.tunnels.iter().filter(|(_, known)| among(known)).map(|(id, _)| *id).collect();
        (!ids.is_empty()).then(|| ids[n % ids.len()])
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Acquire(n) => {
                let key = self.keys[n % self.keys.len()].clone();
                let waiter = self.pool.acquire(&key, self.now);
                self.waiting.insert(waiter, key);
            }
            Event::Cancel(n) => {
                let waiters: Vec<_> = self.waiting.keys().copied().collect();
                if let Some(waiter) = waiters.get(n % waiters.len().max(1)) {
                    self.pool.cancel(*waiter);
                    self.waiting.remove(waiter);
                }
            }
            Event::Dialed(n, limit) => {
                if let Some(id) = self.pick(n, |known| known.phase == Phase::Dialing) {
                    let known = self.tunnels.get_mut(&id).unwrap();
                    (known.phase, known.limit) = (Phase::Ready, limit.min(STREAMS_MAX));
                    known.idle_since = self.now;
                    self.pool.dialed(id, limit, self.now);
                }
            }
            Event::Lost(n) => self.lose(n),
            Event::Limit(n, limit) => {
                if let Some(id) = self.pick(n, |known| known.phase == Phase::Ready) {
                    self.tunnels.get_mut(&id).unwrap().limit = limit.min(STREAMS_MAX);
                    self.pool.streams_max_changed(id, limit);
                }
            }
            Event::Retire(n) => {
                if let Some(id) = self.pick(n, |known| known.phase == Phase::Ready) {
                    self.tunnels.get_mut(&id).unwrap().phase = Phase::Retired;
                    self.pool.retire(id);
                }
            }
            Event::Released(n) => {
                if let Some(id) = self.pick(n, |known| known.streams > 0) {
                    let known = self.tunnels.get_mut(&id).unwrap();
                    known.streams -= 1;
                    known.idle_since = self.now;
                    self.pool.released(id, self.now);
                }
            }
            Event::RemovePod(n) => {
                let pod = ["p", "q"][n % 2];
                self.pool.remove_pod(pod);
                self.expect_gone(|key| &*key.pod == pod);
            }
            Event::RemoveWorkload(n) => {
                let workload = ["w", "x"][n % 2];
                self.pool.remove_workloads(|uid| uid == workload);
                self.expect_gone(|key| &*key.workload == workload);
            }
            Event::Advance(ms) => {
                self.now += ms;
                self.pool.handle_timeout(self.now);
            }
            Event::Stale(n) => self.report_stale(TunnelId(n), WaiterId(n)),
        }
        self.judge();
    }

    fn lose(&mut self, n: usize) {
        let Some(id) = self.pick(n, |_| true) else { return };
        let lost = self.tunnels.remove(&id).unwrap();
        self.pool.lost(id, Reason::ConnectFailed);
        if lost.phase == Phase::Dialing {
            let woken = actions(&mut self.pool);
            let waiting: Vec<_> = self.waiting.extract_if(.., |_, key| *key == lost.key).collect();
            let reason = Reason::ConnectFailed;
            let expected: Vec<_> =
                waiting.iter().map(|(waiter, _)| Action::Fail { waiter: *waiter, reason }).collect();
            assert_eq!(woken, expected, "a lost dial wakes every waiter");
        }
    }

    fn report_stale(&mut self, tunnel: TunnelId, waiter: WaiterId) {
        if self.tunnels.contains_key(&tunnel) || self.waiting.contains_key(&waiter) {
            return;
        }
        self.pool.dialed(tunnel, 1, self.now);
        self.pool.streams_max_changed(tunnel, 1);
        self.pool.retire(tunnel);
        self.pool.released(tunnel, self.now);
        self.pool.lost(tunnel, Reason::TunnelLost);
        self.pool.cancel(waiter);
        assert_eq!(actions(&mut self.pool), [], "a stale report had an effect");
    }

    fn expect_gone(&mut self, gone: impl Fn(&PoolKey) -> bool) {
        for action in actions(&mut self.pool) {
            match action {
                Action::Fail { waiter, reason: Reason::WorkloadGone } => {
                    assert!(gone(&self.waiting.remove(&waiter).unwrap()));
                }
                Action::Close { tunnel } => assert!(gone(&self.tunnels.remove(&tunnel).unwrap().key)),
                other => panic!("unexpected {other:?}"),
            }
        }
        assert!(!self.waiting.values().any(&gone) && !self.tunnels.values().any(|known| gone(&known.key)));
    }

    fn has_room(&self, key: &PoolKey) -> impl Iterator<Item = (&TunnelId, &Known)> {
        self.tunnels.iter().filter(move |(_, known)| {
            known.key == *key && known.phase == Phase::Ready && known.streams < known.limit
        })
    }

    /// Checks each action that is due, and that nothing that should happen does not.
    fn judge(&mut self) {
        for action in actions(&mut self.pool) {
            match action {
                Action::Dial { tunnel, key } => {
                    assert!(self.waiting.values().any(|other| *other == key), "a dial for nobody");
                    let known =
                        Known { key, phase: Phase::Dialing, streams: 0, limit: 0, idle_since: self.now };
                    assert!(self.tunnels.insert(tunnel, known).is_none(), "an id was used twice");
                }
                Action::Assign { waiter, tunnel } => self.judge_assignment(waiter, tunnel),
                Action::Fail { .. } => panic!("a waiter failed although no dial was lost"),
                Action::Close { tunnel } => {
                    let closed = self.tunnels.remove(&tunnel).unwrap();
                    let expired = closed.idle_since + IDLE_MS_MAX <= self.now;
                    assert_eq!(closed.streams, 0, "a tunnel was closed under its streams");
                    assert!(closed.phase == Phase::Retired || (closed.phase == Phase::Ready && expired));
                }
            }
        }
        for key in &self.keys {
            let of_key = || self.tunnels.values().filter(|known| known.key == *key);
            let dials = of_key().filter(|known| known.phase == Phase::Dialing).count();
            assert!(dials <= 1, "waiters started {dials} dials");
            if self.waiting.values().any(|other| other == key) {
                assert_eq!(self.has_room(key).count(), 0, "a stream waits although there is room");
                let refused = of_key().any(|known| known.phase == Phase::Ready && known.limit == 0);
                assert!(dials == 1 || refused, "a stream waits for nothing");
            }
        }
        let idle = self.tunnels.values().filter(|known| known.phase == Phase::Ready && known.streams == 0);
        let first = idle.map(|known| known.idle_since + IDLE_MS_MAX).min();
        assert_eq!(self.pool.poll_timeout(), first);
        assert!(first.is_none_or(|deadline| deadline > self.now), "an idle tunnel outlived its deadline");
        assert_eq!(self.pool.tunnels(), self.tunnels.len());
    }

    fn judge_assignment(&mut self, waiter: WaiterId, tunnel: TunnelId) {
        let key = self.waiting.remove(&waiter).expect("a waiter was answered twice");
        assert!(!self.waiting.iter().any(|(other, of)| *of == key && *other < waiter), "out of order");
        let fullest = self.has_room(&key).map(|(_, known)| known.streams).max();
        let known = self.tunnels.get(&tunnel).unwrap();
        assert!(self.has_room(&key).any(|(id, _)| *id == tunnel), "a stream beyond the limit");
        assert_eq!(Some(known.streams), fullest, "a fuller tunnel had room");
        self.tunnels.get_mut(&tunnel).unwrap().streams += 1;
    }
}

proptest! {
    #[test]
    fn random_events_agree_with_the_model(events in vec(event(), 1..150)) {
        let mut model = Model::new();
        for event in events {
            model.apply(event);
        }
    }
}
