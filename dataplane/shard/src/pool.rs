//! Carries out what the pool decides: dials, hands tunnels to waiting connections, closes.

use std::cell::RefCell;
use std::rc::Rc;

use halo_core::outcome::Reason;
use halo_core::pool::{Action, PoolKey, TunnelId, WaiterId};

use crate::ring;
use crate::shard::Shard;
use crate::tunnel::{Tunnel, dial};
use crate::wake::Signal;

/// A connection that waits for a tunnel.
#[derive(Default)]
pub(crate) struct Waiter {
    answer: RefCell<Option<Result<Rc<Tunnel>, Reason>>>,
    answered: Signal,
}

/// A stream's place on a tunnel; dropping it gives the place back.
pub(crate) struct Place {
    shard: Rc<Shard>,
    id: TunnelId,
    pub(crate) tunnel: Rc<Tunnel>,
}

impl Place {
    /// The tunnel's number in the pool.
    pub(crate) fn id(&self) -> TunnelId {
        self.id
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shard.pool.borrow_mut().released(self.id, ring::now_ms());
        self.shard.pool_changed.notify();
    }
}

/// Withdraws a waiter whose connection ended before it was answered.
struct Withdraw<'a> {
    shard: &'a Shard,
    id: WaiterId,
}

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        if self.shard.waiters.borrow_mut().remove(&self.id).is_some() {
            self.shard.pool.borrow_mut().cancel(self.id);
        }
    }
}

/// Waits for a place on a tunnel.
///
/// # Errors
/// Why the dial failed.
pub(crate) async fn acquire(shard: &Rc<Shard>, key: &PoolKey) -> Result<Place, Reason> {
    let id = shard.pool.borrow_mut().acquire(key, ring::now_ms());
    let waiter = Rc::new(Waiter::default());
    shard.waiters.borrow_mut().insert(id, waiter.clone());
    let _withdraw = Withdraw { shard, id };
    pump(shard);
    loop {
        if let Some(answer) = waiter.answer.take() {
            let tunnel = answer?;
            let crate::tunnel::Side::Outbound(id) = tunnel.side else {
                return Err(Reason::Defect);
            };
            return Ok(Place { shard: shard.clone(), id, tunnel });
        }
        waiter.answered.wait().await;
    }
}

/// Does everything that the pool has decided so far. Not to be called while a tunnel is borrowed.
fn pump(shard: &Rc<Shard>) {
    loop {
        let Some(action) = shard.pool.borrow_mut().poll_action() else {
            return;
        };
        match action {
            Action::Dial { tunnel, key } => shard.spawn(dial::run(shard.clone(), tunnel, key)),
            Action::Assign { waiter, tunnel } => {
                let assigned = shard.dialled.borrow().get(&tunnel).cloned();
                let waiting = shard.waiters.borrow_mut().remove(&waiter);
                match (waiting, assigned) {
                    (Some(waiting), assigned) => answer(&waiting, assigned.ok_or(Reason::TunnelLost)),
                    (None, _) => shard.pool.borrow_mut().released(tunnel, ring::now_ms()),
                }
            }
            Action::Fail { waiter, reason } => {
                if let Some(waiting) = shard.waiters.borrow_mut().remove(&waiter) {
                    answer(&waiting, Err(reason));
                }
            }
            Action::Close { tunnel } => {
                // A dial that is still running finds out when it is done.
                if let Some(tunnel) = shard.dialled.borrow().get(&tunnel) {
                    tunnel.retire();
                }
            }
        }
    }
}

fn answer(waiter: &Waiter, result: Result<Rc<Tunnel>, Reason>) {
    waiter.answer.replace(Some(result));
    waiter.answered.notify();
}

/// Acts on the pool's decisions and deadlines for ever.
pub(crate) async fn run(shard: Rc<Shard>) {
    loop {
        let now_ms = ring::now_ms();
        shard.pool.borrow_mut().handle_timeout(now_ms);
        pump(&shard);
        let due_ms = shard.pool.borrow().poll_timeout();
        match due_ms {
            None => shard.pool_changed.wait().await,
            Some(due_ms) => {
                let wait_ms = due_ms.saturating_sub(now_ms).max(1);
                ring::within_ms(wait_ms, shard.pool_changed.wait()).await;
            }
        }
    }
}

impl Shard {
    /// The peer's stream limit is known, or has changed.
    pub(crate) fn streams_max_changed(&self, tunnel: TunnelId, streams_max: usize) {
        let streams_max = u32::try_from(streams_max).unwrap_or(u32::MAX);
        self.pool.borrow_mut().streams_max_changed(tunnel, streams_max);
        self.pool_changed.notify();
    }

    /// The tunnel takes no new streams.
    pub(crate) fn retire_tunnel(&self, tunnel: TunnelId) {
        self.pool.borrow_mut().retire(tunnel);
        self.pool_changed.notify();
    }
}
