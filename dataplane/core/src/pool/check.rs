//! The invariants of the pool, checked after every call in debug builds.

use super::Pool;
#[cfg(debug_assertions)]
use super::State;

#[cfg(debug_assertions)]
impl Pool {
    pub(super) fn check(&self) {
        for (key, peer) in &self.peers {
            for id in peer.ready.iter().chain(&peer.dialing) {
                assert_eq!(&self.tunnels[id].key, key, "a tunnel stands under its own key");
            }
            for id in &peer.ready {
                assert_eq!(self.tunnels[id].state, State::Ready);
            }
            if let Some(id) = &peer.dialing {
                assert_eq!(self.tunnels[id].state, State::Dialing);
            }
            for waiter in &peer.waiting {
                assert_eq!(self.waiters.get(waiter), Some(key), "a waiter stands under its own key");
            }
            if !peer.waiting.is_empty() {
                assert_eq!(self.fullest_with_room(key), None, "a stream waits although a tunnel has room");
                assert!(peer.dialing.is_some() || self.refuses_streams(key), "a stream waits for nothing");
            }
        }
        let dialing = self.tunnels.values().filter(|tunnel| tunnel.state == State::Dialing).count();
        assert_eq!(dialing, self.peers.values().filter(|peer| peer.dialing.is_some()).count());
        assert_eq!(self.waiters.len(), self.peers.values().map(|peer| peer.waiting.len()).sum::<usize>());
        for (id, tunnel) in &self.tunnels {
            assert!(tunnel.streams <= self.streams_max, "a tunnel carries more streams than any may");
            assert!(
                tunnel.state != State::Retired || tunnel.streams > 0,
                "a retired tunnel outlived its streams"
            );
            let idle = tunnel.state == State::Ready && tunnel.streams == 0;
            assert_eq!(tunnel.idle_at_ms.is_some(), idle, "only an idle tunnel has an idle deadline");
            assert_eq!(tunnel.idle_at_ms.is_some_and(|at| self.idle.contains(&(at, *id))), idle);
        }
        let idle = self.tunnels.values().filter(|tunnel| tunnel.idle_at_ms.is_some()).count();
        assert_eq!(self.idle.len(), idle);
    }
}

#[cfg(not(debug_assertions))]
impl Pool {
    pub(super) fn check(&self) {}
}
