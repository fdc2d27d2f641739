//! Generations that have been replaced, kept until the shards have let go of them: the last to hold a generation pays for
//! taking it apart, and that is to be the control thread, which nobody's bytes wait for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use halo_core::snapshot::Snapshot;

/// Shards adopt a new generation between two turns, far sooner than this.
const KEEP: Duration = Duration::from_secs(1);
/// Generations kept at once. Each holds only what the next ones have replaced; beyond it the oldest is let go early.
const RETIRED_MAX: usize = 64;

/// Replaced generations, oldest first, each with the time when it may go.
#[derive(Debug, Default)]
pub(super) struct Retired(VecDeque<(Instant, Arc<Snapshot>)>);

impl Retired {
    /// Keeps a generation that has been replaced, if there is one.
    pub(super) fn put(&mut self, old: Option<Arc<Snapshot>>, now: Instant) {
        let Some(old) = old else { return };
        if self.0.len() == RETIRED_MAX {
            self.0.pop_front();
        }
        self.0.push_back((now + KEEP, old));
    }

    /// When `handle_timeout` is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.0.front().map(|(due, _)| *due)
    }

    /// Lets go of what has been kept long enough.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        while self.poll_timeout().is_some_and(|due| due <= now) {
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_kept_for_a_second_and_only_so_many_at_once() {
        let (mut retired, start) = (Retired::default(), Instant::now());
        assert_eq!(retired.poll_timeout(), None);
        let first = Arc::new(Snapshot::default());
        retired.put(Some(first.clone()), start);
        retired.put(None, start);
        assert_eq!(retired.poll_timeout(), Some(start + KEEP));
        retired.handle_timeout(start + KEEP - Duration::from_nanos(1));
        assert_eq!(Arc::strong_count(&first), 2);
        retired.handle_timeout(start + KEEP);
        assert_eq!((Arc::strong_count(&first), retired.poll_timeout()), (1, None));
        retired.put(Some(first.clone()), start);
        for _ in 0..RETIRED_MAX {
            assert_eq!(Arc::strong_count(&first), 2);
            retired.put(Some(Arc::default()), start);
        }
        assert_eq!((Arc::strong_count(&first), retired.0.len()), (1, RETIRED_MAX));
    }
}
