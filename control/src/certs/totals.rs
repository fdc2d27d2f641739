//! What the certificate keeper has done since start, for metrics.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// Totals, and where things stand. Written by the keeper, read by the metrics server.
#[derive(Debug, Default)]
pub struct CertificateTotals {
    issued: AtomicU64,
    failed: AtomicU64,
    rotations: AtomicU64,
    in_flight: AtomicU64,
    expiry: Mutex<Option<SystemTime>>,
}

impl CertificateTotals {
    /// Certificates that were issued.
    pub fn issued(&self) -> u64 {
        self.issued.load(Ordering::Relaxed)
    }

    /// Requests that failed.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Certificates that took the place of one in force.
    pub fn rotations(&self) -> u64 {
        self.rotations.load(Ordering::Relaxed)
    }

    /// Requests that are out.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Seconds until the first of the certificates in force ends; `None` while there is none.
    pub fn expiry_s(&self, now: SystemTime) -> Option<u64> {
        let expiry = *self.expiry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        expiry.map(|end| end.duration_since(now).unwrap_or_default().as_secs())
    }

    pub(super) fn count_issued(&self, rotation: bool) {
        self.issued.fetch_add(1, Ordering::Relaxed);
        self.rotations.fetch_add(u64::from(rotation), Ordering::Relaxed);
    }

    pub(super) fn count_failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn stand(&self, in_flight: usize, expiry: Option<SystemTime>) {
        self.in_flight.store(in_flight as u64, Ordering::Relaxed);
        *self.expiry.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = expiry;
    }
}
