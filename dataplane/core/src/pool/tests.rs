use super::*;
use crate::fixture::{ip, socket};

mod model;

const STREAMS_MAX: u32 = 3;
const IDLE_MS_MAX: u64 = 1_000;

/// A key of this pod to this workload.
fn key(pod: &str, workload: &str) -> PoolKey {
    PoolKey {
        pod: pod.into(),
        source: Identity::new("td", "shop", "client"),
        client: ip("10.0.0.1"),
        peer: socket("10.0.0.2:15008"),
        identities: [Identity::new("td", "shop", "cart")].into(),
        workload: workload.into(),
    }
}

fn pool() -> Pool {
    Pool::new(STREAMS_MAX, IDLE_MS_MAX)
}

fn actions(pool: &mut Pool) -> Vec<Action> {
    std::iter::from_fn(|| pool.poll_action()).collect()
}

/// The tunnel of the one dial that is started.
fn dial(pool: &mut Pool) -> TunnelId {
    match actions(pool)[..] {
        [Action::Dial { tunnel, .. }] => tunnel,
        ref other => panic!("not one dial: {other:?}"),
    }
}

/// A pool with one ready tunnel that carries one stream.
fn with_tunnel(streams_max: u32) -> (Pool, TunnelId) {
    let mut pool = pool();
    let waiter = pool.acquire(&key("p", "w"), 0);
    let tunnel = dial(&mut pool);
    pool.dialed(tunnel, streams_max, 0);
    assert_eq!(actions(&mut pool), [Action::Assign { waiter, tunnel }]);
    (pool, tunnel)
}

#[test]
fn waiters_start_one_dial_and_share_its_tunnel() {
    let mut pool = pool();
    let waiters = [(); 3].map(|()| pool.acquire(&key("p", "w"), 0));
    let tunnel = dial(&mut pool);
    pool.dialed(tunnel, 100, 0);
    assert_eq!(actions(&mut pool), waiters.map(|waiter| Action::Assign { waiter, tunnel }));
    assert_eq!((pool.tunnels(), pool.poll_timeout()), (1, None));
}

#[test]
fn waiters_beyond_the_capacity_of_a_new_tunnel_start_one_more_dial() {
    let mut pool = pool();
    let waiters = [(); 5].map(|()| pool.acquire(&key("p", "w"), 0));
    let first = dial(&mut pool);
    // The peer allows fewer streams than we do.
    pool.dialed(first, 2, 0);
    let mut done = actions(&mut pool);
    let Some(Action::Dial { tunnel: second, .. }) = done.pop() else { panic!("no second dial") };
    assert_eq!(done, [waiters[0], waiters[1]].map(|waiter| Action::Assign { waiter, tunnel: first }));
    pool.dialed(second, 100, 0);
    let rest = [waiters[2], waiters[3], waiters[4]];
    assert_eq!(actions(&mut pool), rest.map(|waiter| Action::Assign { waiter, tunnel: second }));
}

#[test]
fn different_keys_do_not_share_a_tunnel() {
    let mut pool = pool();
    let base = key("p", "w");
    pool.acquire(&base, 0);
    let others = [
        PoolKey { pod: "q".into(), ..base.clone() },
        PoolKey { source: Identity::new("td", "shop", "other"), ..base.clone() },
        PoolKey { client: ip("10.0.0.9"), ..base.clone() },
        PoolKey { peer: socket("10.0.0.3:15008"), ..base.clone() },
        PoolKey { identities: [].into(), ..base.clone() },
        PoolKey { workload: "x".into(), ..base },
    ];
    for other in &others {
        pool.acquire(other, 0);
    }
    assert_eq!(pool.tunnels(), 1 + others.len());
}

#[test]
fn a_lost_dial_wakes_every_waiter_and_the_next_stream_dials_again() {
    let mut pool = pool();
    let waiters = [(); 5].map(|()| pool.acquire(&key("p", "w"), 0));
    let tunnel = dial(&mut pool);
    pool.lost(tunnel, Reason::HboneTimeout);
    let reason = Reason::HboneTimeout;
    assert_eq!(actions(&mut pool), waiters.map(|waiter| Action::Fail { waiter, reason }));
    assert_eq!(pool.tunnels(), 0);
    pool.acquire(&key("p", "w"), 0);
    assert_ne!(dial(&mut pool), tunnel);
}

#[test]
fn a_tunnel_below_its_limit_is_used_again() {
    let (mut pool, tunnel) = with_tunnel(1);
    pool.released(tunnel, 10);
    let waiter = pool.acquire(&key("p", "w"), 20);
    assert_eq!(actions(&mut pool), [Action::Assign { waiter, tunnel }]);
}

#[test]
fn a_stream_that_ends_makes_room_for_one_that_waits() {
    let (mut pool, tunnel) = with_tunnel(1);
    let waiter = pool.acquire(&key("p", "w"), 0);
    let second = dial(&mut pool);
    pool.released(tunnel, 10);
    assert_eq!(actions(&mut pool), [Action::Assign { waiter, tunnel }]);
    // Nobody waits for the second one any more: it is kept, and falls idle.
    pool.dialed(second, 1, 20);
    assert_eq!((actions(&mut pool), pool.poll_timeout()), (vec![], Some(20 + IDLE_MS_MAX)));
}

#[test]
fn the_fullest_tunnel_with_room_is_preferred() {
    let mut pool = pool();
    for _ in 0..STREAMS_MAX + 1 {
        pool.acquire(&key("p", "w"), 0);
    }
    let first = dial(&mut pool);
    pool.dialed(first, 100, 0);
    let Some(Action::Dial { tunnel: second, .. }) = actions(&mut pool).pop() else { panic!("no dial") };
    pool.dialed(second, 100, 0);
    pool.released(first, 0);
    actions(&mut pool);
    // Two streams on the first, one on the second, three allowed.
    let waiter = pool.acquire(&key("p", "w"), 0);
    assert_eq!(actions(&mut pool), [Action::Assign { waiter, tunnel: first }]);
    let waiter = pool.acquire(&key("p", "w"), 0);
    assert_eq!(actions(&mut pool), [Action::Assign { waiter, tunnel: second }]);
}

#[test]
fn an_idle_tunnel_closes_after_the_limit_unless_it_is_used() {
    let (mut pool, tunnel) = with_tunnel(100);
    pool.released(tunnel, 100);
    assert_eq!(pool.poll_timeout(), Some(100 + IDLE_MS_MAX));
    pool.acquire(&key("p", "w"), 500);
    actions(&mut pool);
    assert_eq!(pool.poll_timeout(), None);
    pool.released(tunnel, 600);
    pool.handle_timeout(599 + IDLE_MS_MAX);
    assert_eq!((actions(&mut pool), pool.tunnels()), (vec![], 1));
    pool.handle_timeout(600 + IDLE_MS_MAX);
    assert_eq!((actions(&mut pool), pool.tunnels()), (vec![Action::Close { tunnel }], 0));
}

#[test]
fn a_retired_tunnel_takes_no_stream_and_closes_with_its_last() {
    let (mut pool, tunnel) = with_tunnel(100);
    pool.retire(tunnel);
    pool.acquire(&key("p", "w"), 0);
    assert_ne!(dial(&mut pool), tunnel);
    pool.retire(tunnel);
    pool.released(tunnel, 0);
    assert_eq!(actions(&mut pool), [Action::Close { tunnel }]);
    pool.released(tunnel, 0);
    pool.lost(tunnel, Reason::TunnelLost);
    assert_eq!(actions(&mut pool), []);
}

#[test]
fn a_tunnel_retired_while_it_is_dialled_fails_its_waiters() {
    let mut pool = pool();
    let waiter = pool.acquire(&key("p", "w"), 0);
    let tunnel = dial(&mut pool);
    pool.retire(tunnel);
    let reason = Reason::TunnelLost;
    assert_eq!(actions(&mut pool), [Action::Close { tunnel }, Action::Fail { waiter, reason }]);
}

#[test]
fn a_cancelled_waiter_is_not_answered_and_its_dial_goes_on() {
    let mut pool = pool();
    let waiter = pool.acquire(&key("p", "w"), 0);
    let tunnel = dial(&mut pool);
    pool.cancel(waiter);
    pool.cancel(waiter);
    pool.dialed(tunnel, 100, 5);
    assert_eq!((actions(&mut pool), pool.poll_timeout()), (vec![], Some(5 + IDLE_MS_MAX)));
}

#[test]
fn an_assignment_that_was_not_polled_is_taken_back() {
    let (mut pool, tunnel) = with_tunnel(2);
    let waiter = pool.acquire(&key("p", "w"), 7);
    pool.cancel(waiter);
    assert_eq!(actions(&mut pool), []);
    pool.released(tunnel, 8);
    assert_eq!(pool.poll_timeout(), Some(8 + IDLE_MS_MAX));
}

#[test]
fn the_peers_limit_follows_its_settings() {
    let (mut pool, tunnel) = with_tunnel(1);
    let waiter = pool.acquire(&key("p", "w"), 0);
    dial(&mut pool);
    pool.streams_max_changed(tunnel, 2);
    assert_eq!(actions(&mut pool), [Action::Assign { waiter, tunnel }]);
    // Streams beyond a lower limit run on; a new one goes elsewhere.
    pool.streams_max_changed(tunnel, 1);
    pool.released(tunnel, 0);
    pool.acquire(&key("p", "w"), 0);
    assert_eq!(actions(&mut pool), []);
}

#[test]
fn a_peer_that_takes_no_streams_is_not_dialled_forever() {
    let mut pool = pool();
    let waiter = pool.acquire(&key("p", "w"), 0);
    let tunnel = dial(&mut pool);
    pool.dialed(tunnel, 0, 0);
    assert_eq!(actions(&mut pool), []);
    pool.streams_max_changed(tunnel, 1);
    assert_eq!(actions(&mut pool), [Action::Assign { waiter, tunnel }]);
}

#[test]
fn a_removed_pod_or_workload_takes_its_tunnels_and_waiters_along() {
    let remove: [fn(&mut Pool); 2] =
        [|pool| pool.remove_pod("p"), |pool| pool.remove_workloads(|uid| uid == "w")];
    for remove in remove {
        let (mut pool, ready) = with_tunnel(1);
        let waiter = pool.acquire(&key("p", "w"), 0);
        let dialing = dial(&mut pool);
        pool.acquire(&key("q", "x"), 0);
        dial(&mut pool);
        remove(&mut pool);
        let reason = Reason::WorkloadGone;
        let expected = [
            Action::Fail { waiter, reason },
            Action::Close { tunnel: ready },
            Action::Close { tunnel: dialing },
        ];
        assert_eq!((actions(&mut pool), pool.tunnels()), (expected.to_vec(), 1));
        pool.dialed(dialing, 1, 0);
        pool.released(ready, 0);
        assert_eq!((actions(&mut pool), pool.tunnels()), (vec![], 1));
    }
}
