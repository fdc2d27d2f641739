//! A stream's place among those that are sent everything at the same time. A task of its own waits for the place and
//! gives it back, so that neither depends on whether the stream is polled: a client that does not read stops that.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

/// The places that streams share. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Places {
    free: Arc<Semaphore>,
    /// How long one stream may keep a place, from when it is given.
    held_max: Duration,
}

impl Places {
    pub(super) fn new(count: usize, held_max: Duration) -> Self {
        Self { free: Arc::new(Semaphore::new(count)), held_max }
    }

    /// Queues for a place. It is given with what gives it back when it is dropped.
    fn queue(&self) -> oneshot::Receiver<oneshot::Sender<()>> {
        let (mut grant, granted) = oneshot::channel();
        let Self { free, held_max } = self.clone();
        tokio::spawn(async move {
            let place = tokio::select! {
                place = free.acquire_owned() => place,
                () = grant.closed() => return,
            };
            let (release, released) = oneshot::channel();
            if grant.send(release).is_ok() {
                // Whether it was given back or not.
                drop(timeout(held_max, released).await);
            }
            drop(place);
        });
        granted
    }
}

/// One stream's place.
#[derive(Debug)]
pub(super) enum Place {
    None,
    /// In the queue, or given already.
    Waiting(oneshot::Receiver<oneshot::Sender<()>>),
    /// Given back when this is dropped, or after a while.
    Held(oneshot::Sender<()>),
}

impl Place {
    /// Ready while the stream has a place; queues for one if it has none, or none any more.
    pub(super) fn poll(&mut self, places: &Places, context: &mut Context<'_>) -> Poll<()> {
        loop {
            match self {
                Self::None => *self = Self::Waiting(places.queue()),
                Self::Waiting(granted) => match ready!(Pin::new(granted).poll(context)) {
                    Ok(release) => *self = Self::Held(release),
                    // The task was cut off, which only the end of the runtime does.
                    Err(_) => return Poll::Pending,
                },
                Self::Held(release) if release.is_closed() => *self = Self::None,
                Self::Held(_) => return Poll::Ready(()),
            }
        }
    }
}
