//! Access logs: which events there are, how loud each is, and whether a shard is to tell of it at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// What a line of the access log tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// A connection ended, or was refused, with an error.
    Failed,
    /// A connection was refused before anything but its addresses was known.
    Refused,
    /// A connection ended in order.
    Complete,
    /// A connection began.
    Opened,
}

impl Event {
    /// Every event, the loudest first; they differ in level.
    pub const ALL: [Self; 4] = [Self::Failed, Self::Refused, Self::Complete, Self::Opened];

    /// The level of its lines.
    pub fn level(self) -> &'static str {
        match self {
            Self::Failed => "error",
            Self::Refused => "warn",
            Self::Complete => "info",
            Self::Opened => "debug",
        }
    }
}

/// Which events are told of. The setting of log levels alone writes it; every shard reads it, so that a line that
/// nobody wants is not made.
#[derive(Debug, Clone, Default)]
pub struct AccessLevel(Arc<AtomicU8>);

impl AccessLevel {
    /// Tells of the first `count` of [`Event::ALL`]: a level includes all that are louder.
    pub fn set(&self, count: u8) {
        self.0.store(count, Relaxed);
    }

    /// Whether the event is told of.
    pub fn wants(&self, event: Event) -> bool {
        (event as u8) < self.0.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_includes_the_louder_ones_and_is_shared_by_its_copies() {
        let level = AccessLevel::default();
        let shards = level.clone();
        assert!(Event::ALL.iter().all(|event| !shards.wants(*event)));
        level.set(3);
        let wanted = Event::ALL.map(|event| shards.wants(event));
        assert_eq!(wanted, [true, true, true, false]);
    }
}
