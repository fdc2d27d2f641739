//! What the control plane counts. No series has a label whose values grow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::world::ResourceType;

/// A total that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn one(&self) {
        self.add(1);
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How many there are now.
#[derive(Debug, Default)]
pub(crate) struct Gauge(Arc<AtomicU64>);

/// Counts as one as long as it lives.
#[derive(Debug)]
pub(crate) struct Counted(Arc<AtomicU64>);

impl Gauge {
    pub(crate) fn enter(&self) -> Counted {
        self.0.fetch_add(1, Ordering::Relaxed);
        Counted(self.0.clone())
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a stream ended that its client did not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The client broke the protocol.
    Violation,
    /// A request could not be read.
    Unreadable,
    /// The transport failed, or the client vanished.
    Transport,
    /// The control plane shuts down.
    Shutdown,
}

impl Loss {
    pub(crate) const ALL: [Self; 4] = [Self::Violation, Self::Unreadable, Self::Transport, Self::Shutdown];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Violation => "violation",
            Self::Unreadable => "unreadable",
            Self::Transport => "transport",
            Self::Shutdown => "shutdown",
        }
    }
}

/// What is counted for each type of resource.
#[derive(Debug, Default)]
pub(crate) struct TypeStats {
    pub(crate) subscribers: Gauge,
    pub(crate) pushes: Counter,
    /// Pushes of everything, among `pushes`.
    pub(crate) full_pushes: Counter,
    pub(crate) bytes: Counter,
    pub(crate) acknowledged: Counter,
    pub(crate) refused: Counter,
}

/// Everything that is counted.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    types: [TypeStats; ResourceType::ALL.len()],
    lost: [Counter; Loss::ALL.len()],
    pub(crate) streams: Gauge,
    pub(crate) connections: Gauge,
    pub(crate) connections_refused: Counter,
    pub(crate) handshakes_failed: Counter,
    pub(crate) accepts_failed: Counter,
}

impl Stats {
    pub(crate) fn of(&self, kind: ResourceType) -> &TypeStats {
        &self.types[kind as usize]
    }

    pub(crate) fn lost(&self, why: Loss) -> &Counter {
        &self.lost[why as usize]
    }
}
