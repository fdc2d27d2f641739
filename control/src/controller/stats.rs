//! What the control plane counts. No series has a label whose values grow.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

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
    /// A response is longer than gRPC can carry.
    TooLong,
    /// The control plane shuts down.
    Shutdown,
    /// The control plane failed.
    Defect,
    /// The stream, or its credentials, reached their age.
    Age,
}

impl Loss {
    pub(crate) const ALL: [Self; 7] = [
        Self::Violation,
        Self::Unreadable,
        Self::Transport,
        Self::TooLong,
        Self::Shutdown,
        Self::Defect,
        Self::Age,
    ];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Violation => "violation",
            Self::Unreadable => "unreadable",
            Self::Transport => "transport",
            Self::TooLong => "too_long",
            Self::Shutdown => "shutdown",
            Self::Defect => "defect",
            Self::Age => "age",
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

/// Totals by reason. Reasons are names in the program, so there are few.
#[derive(Debug, Default)]
pub(crate) struct ByReason(Mutex<BTreeMap<&'static str, u64>>);

impl ByReason {
    pub(crate) fn one(&self, reason: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
    }

    pub(crate) fn totals(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Everything that is counted.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    types: [TypeStats; ResourceType::ALL.len()],
    lost: [Counter; Loss::ALL.len()],
    pub(crate) streams: Gauge,
    pub(crate) connections: Gauge,
    /// Calls refused for their credentials.
    pub(crate) refused: ByReason,
    pub(crate) handshakes_failed: Counter,
    pub(crate) accepts_failed: Counter,
    /// Connections closed because too many had made no call that was let in.
    pub(crate) newcomers_refused: Counter,
}

impl Stats {
    pub(crate) fn of(&self, kind: ResourceType) -> &TypeStats {
        &self.types[kind as usize]
    }

    pub(crate) fn lost(&self, why: Loss) -> &Counter {
        &self.lost[why as usize]
    }
}
