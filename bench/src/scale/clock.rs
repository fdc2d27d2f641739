//! One clock for all processes of this machine.

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds since some moment that is the same for every process.
pub(super) fn now_ns() -> u64 {
    // A clock that every kernel has.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
