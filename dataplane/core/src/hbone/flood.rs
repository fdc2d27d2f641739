//! Limits on what a peer can make a session do for nothing (RFC 9113, section 10.5).
//!
//! Each kind of frame that costs us more than it costs the peer draws on a bucket that refills with time. The rates
//! are far above what correct peers need, and far below what hurts.

use super::{Flood, SessionError};

/// CONTINUATIONs of one header block.
pub(super) const CONTINUATIONS_MAX: u32 = 32;
/// Bytes of queued output at which a peer that makes us answer has gone too far.
pub(super) const OUTPUT_MAX: usize = 1024 * 1024;

/// A token bucket; `level` counts thousandths.
#[derive(Debug)]
struct Bucket {
    level: u64,
    burst: u64,
    per_second: u64,
    filled_ms: u64,
}

impl Bucket {
    fn new(burst: u32, per_second: u32, now_ms: u64) -> Self {
        let burst = u64::from(burst) * 1000;
        Self { level: burst, burst, per_second: u64::from(per_second), filled_ms: now_ms }
    }

    fn take(&mut self, now_ms: u64) -> bool {
        let elapsed = now_ms.saturating_sub(self.filled_ms);
        self.filled_ms = self.filled_ms.max(now_ms);
        self.level = self.burst.min(self.level.saturating_add(elapsed.saturating_mul(self.per_second)));
        let allowed = self.level >= 1000;
        self.level -= if allowed { 1000 } else { 0 };
        allowed
    }
}

/// The buckets of one session.
#[derive(Debug)]
pub(super) struct Floods {
    resets: Bucket,
    errors: Bucket,
    pings: Bucket,
    settings: Bucket,
    idle: Bucket,
}

impl Floods {
    pub(super) fn new(streams_max: u32, now_ms: u64) -> Self {
        let streams = streams_max.clamp(100, 10_000);
        Self {
            // An application that dies may take all its unanswered streams with it, a few times over.
            resets: Bucket::new(4 * streams, streams, now_ms),
            // A client may overshoot the stream limit until it knows it.
            errors: Bucket::new(200, 20, now_ms),
            // Peers that measure round trips with PING send one in each.
            pings: Bucket::new(10_000, 10_000, now_ms),
            settings: Bucket::new(100, 10, now_ms),
            idle: Bucket::new(1_000, 100, now_ms),
        }
    }

    pub(super) fn charge(&mut self, flood: Flood, now_ms: u64) -> Result<(), SessionError> {
        let bucket = match flood {
            Flood::Resets => &mut self.resets,
            Flood::StreamErrors => &mut self.errors,
            Flood::Pings => &mut self.pings,
            Flood::Settings => &mut self.settings,
            Flood::Idle => &mut self.idle,
            // These are bounds, not rates.
            Flood::HeaderBlock | Flood::Output => return Err(SessionError::Flood(flood)),
        };
        if bucket.take(now_ms) { Ok(()) } else { Err(SessionError::Flood(flood)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_allows_its_burst_and_then_its_rate() {
        let mut bucket = Bucket::new(3, 10, 1_000);
        assert_eq!((0..5).filter(|_| bucket.take(1_000)).count(), 3);
        assert!(!bucket.take(1_099));
        assert!(bucket.take(1_100));
        assert!(!bucket.take(1_100));
        assert_eq!((0..5).filter(|_| bucket.take(9_000)).count(), 3);
        assert!(!bucket.take(0), "a clock that goes back refills nothing");
    }
}
