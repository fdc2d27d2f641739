//! Wake-ups between tasks of one shard. Nothing here crosses a thread.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::task::{Poll, Waker};

/// A flag that one task waits for. Setting it before the wait is not lost; setting it twice counts once.
#[derive(Default)]
pub(crate) struct Signal {
    set: Cell<bool>,
    waiter: Cell<Option<Waker>>,
}

impl Signal {
    /// Sets the flag and wakes the task that waits for it.
    pub(crate) fn notify(&self) {
        self.set.set(true);
        if let Some(waiter) = self.waiter.take() {
            waiter.wake();
        }
    }

    /// Waits for the flag, and clears it.
    pub(crate) async fn wait(&self) {
        poll_fn(|context| {
            if self.set.replace(false) {
                self.waiter.take();
                return Poll::Ready(());
            }
            self.waiter.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

/// Runs a closure when it is dropped: at the end of a task, in order or not.
pub(crate) struct Finally<F: FnMut()>(pub(crate) F);

impl<F: FnMut()> Drop for Finally<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Waits for the first of two, and drops the other, which must be safe to drop at any point. `None` is the second.
pub(crate) async fn either<A: Future, B: Future>(first: A, second: B) -> Option<A::Output> {
    let (mut first, mut second) = (pin!(first), pin!(second));
    poll_fn(|context| match first.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => second.as_mut().poll(context).map(|_| None),
    })
    .await
}

/// Waits for both of two, which run side by side.
pub(crate) async fn both<A: Future, B: Future>(first: A, second: B) -> (A::Output, B::Output) {
    let (mut first, mut second) = (pin!(first), pin!(second));
    let (mut one, mut other) = (None, None);
    poll_fn(|context| {
        if one.is_none()
            && let Poll::Ready(output) = first.as_mut().poll(context)
        {
            one = Some(output);
        }
        if other.is_none()
            && let Poll::Ready(output) = second.as_mut().poll(context)
        {
            other = Some(output);
        }
        match (one.take(), other.take()) {
            (Some(one), Some(other)) => Poll::Ready((one, other)),
            (first, second) => {
                (one, other) = (first, second);
                Poll::Pending
            }
        }
    })
    .await
}

/// Something that happens again and again, and that any number of tasks wait for.
#[derive(Default)]
pub(crate) struct Broadcast {
    count: Cell<u64>,
    waiters: RefCell<BTreeMap<u64, Waker>>,
    next_id: Cell<u64>,
}

impl Broadcast {
    /// Wakes every task that waits.
    pub(crate) fn notify(&self) {
        self.count.set(self.count.get().wrapping_add(1));
        for waiter in self.waiters.take().into_values() {
            waiter.wake();
        }
    }

    /// Waits for the next time. May be dropped while it waits, and then leaves nothing behind.
    pub(crate) async fn next(&self) {
        let seen = self.count.get();
        let waiting = Waiting { broadcast: self, id: self.next_id.get() };
        self.next_id.set(waiting.id + 1);
        poll_fn(|context| {
            if self.count.get() != seen {
                return Poll::Ready(());
            }
            self.waiters.borrow_mut().insert(waiting.id, context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// A place among the waiters of a [`Broadcast`].
struct Waiting<'a> {
    broadcast: &'a Broadcast,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let waker = self.broadcast.waiters.borrow_mut().remove(&self.id);
        // Dropped outside the borrow: it may own a task.
        drop(waker);
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::ring::{Ring, RingKind, spawn};

    #[test]
    fn a_signal_set_before_the_wait_is_not_lost_and_two_count_once() {
        let ring = Ring::build(RingKind::Auto).unwrap();
        ring.run(async {
            let signal = Rc::new(Signal::default());
            signal.notify();
            signal.notify();
            signal.wait().await;
            let (other, told) = (signal.clone(), Rc::new(Cell::new(false)));
            let seen = told.clone();
            spawn(
                async move {
                    seen.set(true);
                    other.notify();
                },
                |_| (),
            );
            signal.wait().await;
            assert!(told.get(), "the second wait did not wait");
        });
    }

    #[test]
    fn a_wait_that_is_given_up_leaves_no_waiter_behind() {
        Ring::build(RingKind::Auto).unwrap().run(async {
            let broadcast = Broadcast::default();
            for _ in 0..3 {
                assert!(crate::ring::within_ms(1, broadcast.next()).await.is_none());
            }
            assert!(broadcast.waiters.borrow().is_empty());
        });
    }

    #[test]
    fn a_broadcast_wakes_every_waiter() {
        let ring = Ring::build(RingKind::Auto).unwrap();
        ring.run(async {
            let (broadcast, done) = (Rc::new(Broadcast::default()), Rc::new(Cell::new(0)));
            for _ in 0..3 {
                let (broadcast, done) = (broadcast.clone(), done.clone());
                let task = async move {
                    broadcast.next().await;
                    done.set(done.get() + 1);
                };
                spawn(task, |_| ());
            }
            crate::ring::sleep_ms(1).await;
            broadcast.notify();
            crate::ring::sleep_ms(1).await;
            assert_eq!(done.get(), 3);
        });
    }
}
