//! Which refused connections are told of: the first of a kind at once, then one in ten seconds with the number of those
//! before it. A kind is a pod and a reason. Every refusal is counted, told or not.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use halo_core::access::{AccessLine, Event};
use halo_core::outcome::Reason;
use halo_core::report::Direction;

use crate::pod::Pod;

/// Between two lines about the same kind, ms.
const INTERVAL_MS: u64 = 10_000;

/// Whom a refusal is about.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) direction: Direction,
    pub(crate) source: SocketAddr,
    pub(crate) destination: Option<SocketAddr>,
}

impl<'a> Subject<'a> {
    /// A connection of which nothing is proven yet.
    pub(crate) fn new(
        pod: &'a Pod,
        direction: Direction,
        source: SocketAddr,
        destination: Option<SocketAddr>,
    ) -> Self {
        Self { pod, direction, source, destination }
    }

    /// A line about it, and about `more` of its kind.
    pub(crate) fn line(&self, reason: Reason, more: u64) -> AccessLine {
        AccessLine {
            policy: None,
            time: SystemTime::now(),
            event: Event::Refused,
            direction: self.direction,
            source: self.source,
            destination: self.destination,
            authority: None,
            traffic: None,
            bytes: (0, 0),
            duration_ms: 0,
            reason,
            more,
        }
    }
}

/// What has been told.
#[derive(Default)]
pub(crate) struct Refusals(RefCell<HashMap<(Arc<str>, Reason), Kind>>);

struct Kind {
    /// No line before this time.
    until_ms: u64,
    more: u64,
}

impl Refusals {
    /// Whether to tell of a refusal now: how many of its kind came since the last line, or `None` for silence.
    pub(crate) fn tells(&self, pod: &Arc<str>, reason: Reason, now_ms: u64) -> Option<u64> {
        match self.0.borrow_mut().entry((pod.clone(), reason)) {
            Entry::Vacant(kind) => {
                kind.insert(Kind { until_ms: now_ms + INTERVAL_MS, more: 0 });
                Some(0)
            }
            Entry::Occupied(mut kind) => {
                let kind = kind.get_mut();
                if now_ms < kind.until_ms {
                    kind.more += 1;
                    return None;
                }
                kind.until_ms = now_ms + INTERVAL_MS;
                Some(std::mem::take(&mut kind.more))
            }
        }
    }

    /// Forgets a pod that is gone.
    pub(crate) fn forget(&self, uid: &str) {
        self.0.borrow_mut().retain(|(pod, _), _| &**pod != uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_a_kind_is_told_at_once_and_its_likes_are_summed_up() {
        let (refusals, pod) = (Refusals::default(), Arc::from("pay-0"));
        assert_eq!(refusals.tells(&pod, Reason::PolicyDeny, 5), Some(0));
        assert_eq!(refusals.tells(&pod, Reason::PolicyDeny, 6), None);
        assert_eq!(refusals.tells(&pod, Reason::PeerIdentity, 6), Some(0));
        assert_eq!(refusals.tells(&pod, Reason::PolicyDeny, INTERVAL_MS + 4), None);
        assert_eq!(refusals.tells(&pod, Reason::PolicyDeny, INTERVAL_MS + 5), Some(2));
        assert_eq!(refusals.tells(&pod, Reason::PolicyDeny, INTERVAL_MS + 6), None);
        refusals.forget("pay-0");
        assert!(refusals.0.borrow().is_empty());
    }
}
