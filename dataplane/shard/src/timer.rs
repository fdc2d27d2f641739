//! Deadlines of a shard: one ordered table and one task, whatever the number of connections.
//!
//! A deadline never cancels an operation: a cancelled read may have taken bytes. It runs a closure, which shuts a
//! socket down or resets a stream; the operation then ends by itself.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::ring;
use crate::wake::Signal;

type Expire = Box<dyn FnOnce()>;

/// The deadlines of one shard.
#[derive(Default)]
pub(crate) struct Timers {
    entries: RefCell<BTreeMap<(u64, u64), Expire>>,
    next_id: Cell<u64>,
    earlier: Signal,
}

/// An armed deadline; dropping it disarms it.
pub(crate) struct Deadline {
    timers: Rc<Timers>,
    key: (u64, u64),
}

impl Timers {
    /// Runs `expire` in `ms` from now, unless the deadline is dropped before.
    pub(crate) fn after(self: &Rc<Self>, ms: u64, expire: impl FnOnce() + 'static) -> Deadline {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        let key = (ring::now_ms().saturating_add(ms), id);
        let mut entries = self.entries.borrow_mut();
        let earliest = entries.keys().next().is_none_or(|first| key < *first);
        entries.insert(key, Box::new(expire));
        if earliest {
            self.earlier.notify();
        }
        Deadline { timers: self.clone(), key }
    }

    /// Fires deadlines for ever.
    pub(crate) async fn run(self: Rc<Self>) {
        loop {
            let now_ms = ring::now_ms();
            while let Some(expire) = self.pop_due(now_ms) {
                expire();
            }
            let first = self.entries.borrow().keys().next().copied();
            match first {
                None => self.earlier.wait().await,
                Some((at, _)) => {
                    ring::within_ms(at.saturating_sub(now_ms).max(1), self.earlier.wait()).await;
                }
            }
        }
    }

    fn pop_due(&self, now_ms: u64) -> Option<Expire> {
        let mut entries = self.entries.borrow_mut();
        let first = entries.first_entry()?;
        (first.key().0 <= now_ms).then(|| first.remove())
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        let expire = self.timers.entries.borrow_mut().remove(&self.key);
        // Dropped outside the borrow: the closure may own another deadline.
        drop(expire);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::{Ring, RingKind, spawn};

    #[test]
    fn deadlines_fire_in_their_order_and_a_dropped_one_does_not() {
        let ring = Ring::build(RingKind::Auto).unwrap();
        ring.run(async {
            let timers = Rc::new(Timers::default());
            let fired = Rc::new(RefCell::new(Vec::new()));
            let arm = |name: &'static str, ms| {
                let fired = fired.clone();
                timers.after(ms, move || fired.borrow_mut().push(name))
            };
            spawn(timers.clone().run(), |_| ());
            let _late = arm("late", 30);
            ring::sleep_ms(1).await;
            let _early = arm("early", 5);
            drop(arm("dropped", 1));
            let done = Rc::new(Signal::default());
            let told = done.clone();
            let _last = timers.after(40, move || told.notify());
            done.wait().await;
            assert_eq!(*fired.borrow(), ["early", "late"]);
        });
    }
}
