//! The single owner of the current snapshot.
//!
//! Sources, certificates and pods send edits. The publisher takes all that wait, applies them to one clone, and hands
//! the shards one new generation. Nobody else makes a generation, so that no change is ever lost between two. Edits that
//! change nothing are passed over, so that what has not changed stays the same allocation, and make no generation.

mod own;
mod retired;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use halo_core::id::Identity;
use halo_core::snapshot::Snapshot;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::debug;

use crate::edit::MeshEdit;
use crate::shards::Shards;
use own::OwnWorkloads;
use retired::Retired;

/// Batches that wait to be published.
const BATCHES_MAX: usize = 1024;

struct Batch {
    edits: Vec<MeshEdit>,
    published: oneshot::Sender<u64>,
}

/// The publisher has ended, and an edit did not come into force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the publisher has ended")]
pub struct PublisherGone;

/// What publishing has come to since start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PublishTotals {
    /// Edits applied, without those that changed nothing.
    pub edits: u64,
    /// Time that it took to apply them and to hand the shards each generation, ns.
    pub ns: u64,
    /// The longest of these times, ns.
    pub ns_max: u64,
}

#[derive(Debug, Default)]
struct Totals {
    edits: AtomicU64,
    ns: AtomicU64,
    ns_max: AtomicU64,
}

impl Totals {
    fn add(&self, edits: u64, began: Instant) {
        let ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.edits.fetch_add(edits, Ordering::Relaxed);
        self.ns.fetch_add(ns, Ordering::Relaxed);
        self.ns_max.fetch_max(ns, Ordering::Relaxed);
    }
}

/// A handle to the publisher.
#[derive(Debug, Clone)]
pub struct Publisher {
    batches: mpsc::Sender<Batch>,
    current: watch::Receiver<Arc<Snapshot>>,
    own: watch::Receiver<Arc<BTreeSet<Identity>>>,
    totals: Arc<Totals>,
}

impl Publisher {
    /// Hands the shards the first snapshot. The publisher is the future, which lives until the last handle goes.
    pub fn new(first: Snapshot, shards: impl Shards) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (batches, queue) = mpsc::channel(BATCHES_MAX);
        let first = Arc::new(first);
        shards.publish(first.clone());
        let mut workloads = OwnWorkloads::of(&first);
        let (own_sender, own) = watch::channel(Arc::new(workloads.changed().unwrap_or_default()));
        let (publish, current) = watch::channel(first);
        let totals = Arc::<Totals>::default();
        let outlets = Outlets { publish, own: own_sender, workloads, totals: totals.clone() };
        (Self { batches, current, own, totals }, run(queue, outlets, shards))
    }

    /// Publishes edits, with others that wait, as one generation; done when the shards have been given it. Edits that
    /// change nothing make no generation. Gives the generation in force.
    ///
    /// Errors: the publisher has ended, so the edits are not in force.
    pub async fn publish(&self, edits: Vec<MeshEdit>) -> Result<u64, PublisherGone> {
        if edits.is_empty() {
            return Ok(self.snapshot().generation);
        }
        let (published, done) = oneshot::channel();
        self.batches.send(Batch { edits, published }).await.map_err(|_| PublisherGone)?;
        done.await.map_err(|_| PublisherGone)
    }

    /// The generation in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.borrow().clone()
    }

    /// What publishing has come to so far.
    pub fn totals(&self) -> PublishTotals {
        let total = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Totals { edits, ns, ns_max } = &*self.totals;
        PublishTotals { edits: total(edits), ns: total(ns), ns_max: total(ns_max) }
    }

    /// Reports every new generation.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.current.clone()
    }

    /// The identities of the workloads on this node that speak HBONE.
    pub fn own_identities(&self) -> watch::Receiver<Arc<BTreeSet<Identity>>> {
        self.own.clone()
    }
}

/// Where a new generation is shown, beside the shards.
struct Outlets {
    publish: watch::Sender<Arc<Snapshot>>,
    own: watch::Sender<Arc<BTreeSet<Identity>>>,
    workloads: OwnWorkloads,
    totals: Arc<Totals>,
}

async fn run(mut queue: mpsc::Receiver<Batch>, mut outlets: Outlets, shards: impl Shards) {
    let mut waiting = Vec::new();
    let mut retired = Retired::default();
    loop {
        tokio::select! {
            count = queue.recv_many(&mut waiting, BATCHES_MAX) => match count {
                0 => return,
                _ => retired.put(outlets.take(&mut waiting, &shards), Instant::now()),
            },
            () = wait_until(retired.poll_timeout()) => retired.handle_timeout(Instant::now()),
        }
    }
}

impl Outlets {
    /// Brings batches into force. Gives the generation before, if there is a new one.
    fn take(&mut self, waiting: &mut Vec<Batch>, shards: &impl Shards) -> Option<Arc<Snapshot>> {
        let began = Instant::now();
        let mut edits = 0;
        let before = self.publish.borrow().clone();
        let mut next = Snapshot::clone(&before);
        let mut done = Vec::with_capacity(waiting.len());
        for batch in waiting.drain(..) {
            for edit in batch.edits {
                if edit.changes(&next) {
                    self.workloads.note(&edit);
                    edit.apply(&mut next);
                    edits += 1;
                }
            }
            done.push(batch.published);
        }
        let mut old = None;
        if edits > 0 {
            next.generation += 1;
            let next = Arc::new(next);
            shards.publish(next.clone());
            self.publish.send_replace(next);
            old = Some(before);
        }
        if let Some(identities) = self.workloads.changed() {
            self.own.send_replace(Arc::new(identities));
        }
        self.totals.add(edits, began);
        let generation = self.publish.borrow().generation;
        debug!(generation, edits, batches = done.len(), "published");
        for published in done {
            // Whoever asked may have stopped waiting.
            let _ = published.send(generation);
        }
        old
    }
}

async fn wait_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
