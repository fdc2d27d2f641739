//! Tells people about connections that were refused or cut: the first of a kind at once, then a summary.
//!
//! A kind is a pod and a reason. What is told leaves through a bounded queue; a reader that is slow costs lines, never
//! a connection's time. Every end is counted, told or not.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use halo_core::id::Identity;
use halo_core::outcome::{Level, Reason};
use halo_core::report::Direction;

use crate::pod::Pod;
use crate::ring;

/// Between two lines about the same kind, ms.
const INTERVAL_MS: u64 = 10_000;

/// One line about refused or cut connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Namespace of the pod.
    pub namespace: Arc<str>,
    /// Name of the pod.
    pub pod: Arc<str>,
    /// Which way the connection went, seen from the pod.
    pub direction: Direction,
    /// The client's address.
    pub source: SocketAddr,
    /// Where it was to go, as far as that was known.
    pub destination: Option<SocketAddr>,
    /// The client, where mutual TLS proved it.
    pub identity: Option<Identity>,
    /// Why.
    pub reason: Reason,
    /// How many of the same pod and reason came since the last line and got none.
    pub more: u64,
}

/// Whom a refusal is about.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) direction: Direction,
    pub(crate) source: SocketAddr,
    pub(crate) destination: Option<SocketAddr>,
    pub(crate) identity: Option<&'a Identity>,
}

impl<'a> Subject<'a> {
    /// A connection of which nothing is proven yet.
    pub(crate) fn new(
        pod: &'a Pod,
        direction: Direction,
        source: SocketAddr,
        destination: Option<SocketAddr>,
    ) -> Self {
        Self { pod, direction, source, destination, identity: None }
    }
}

/// What has been told, and where to tell it.
pub(crate) struct Refusals {
    queue: SyncSender<Refusal>,
    kinds: RefCell<HashMap<(Arc<str>, Reason), Kind>>,
}

struct Kind {
    /// No line before this time.
    until_ms: u64,
    more: u64,
}

impl Refusals {
    pub(crate) fn new(queue: SyncSender<Refusal>) -> Self {
        Self { queue, kinds: RefCell::default() }
    }

    /// Tells of an end, unless it is an ordinary one or its kind was told of a moment ago.
    pub(crate) fn tell(&self, subject: Subject<'_>, reason: Reason) {
        if reason.outcome().level == Level::Info {
            return;
        }
        let now_ms = ring::now_ms();
        let mut kinds = self.kinds.borrow_mut();
        let kind = kinds.entry((subject.pod.uid.clone(), reason));
        let more = match kind {
            Entry::Vacant(kind) => {
                kind.insert(Kind { until_ms: now_ms + INTERVAL_MS, more: 0 });
                0
            }
            Entry::Occupied(mut kind) => {
                let kind = kind.get_mut();
                if now_ms < kind.until_ms {
                    kind.more += 1;
                    return;
                }
                kind.until_ms = now_ms + INTERVAL_MS;
                std::mem::take(&mut kind.more)
            }
        };
        // A full queue drops the line; the counter has the connection.
        let _ = self.queue.try_send(Refusal {
            namespace: subject.pod.namespace.clone(),
            pod: subject.pod.name.clone(),
            direction: subject.direction,
            source: subject.source,
            destination: subject.destination,
            identity: subject.identity.cloned(),
            reason,
            more,
        });
    }

    /// Forgets a pod that is gone.
    pub(crate) fn forget(&self, uid: &str) {
        self.kinds.borrow_mut().retain(|(pod, _), _| &**pod != uid);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::mpsc;

    use super::*;
    use crate::pod;

    #[test]
    fn the_first_of_a_kind_is_told_at_once_and_its_likes_are_summed_up() {
        let (queue, told) = mpsc::sync_channel(8);
        let (refusals, pod) = (Refusals::new(queue), pod::tests::pod());
        let source = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 4000);
        let subject = Subject::new(&pod, Direction::Inbound, source, None);
        for reason in [Reason::PolicyDeny, Reason::PolicyDeny, Reason::Complete, Reason::PeerIdentity] {
            refusals.tell(subject, reason);
        }
        let reasons: Vec<_> = told.try_iter().map(|line| (line.reason, line.more)).collect();
        assert_eq!(reasons, [(Reason::PolicyDeny, 0), (Reason::PeerIdentity, 0)]);
        if let Some(kind) = refusals.kinds.borrow_mut().get_mut(&(pod.uid.clone(), Reason::PolicyDeny)) {
            assert_eq!(kind.more, 1);
            kind.until_ms = 0;
        }
        refusals.tell(subject, Reason::PolicyDeny);
        assert_eq!(told.try_recv().unwrap().more, 1);
    }

    #[test]
    fn a_reader_that_does_not_read_costs_lines_and_nothing_else() {
        let (queue, told) = mpsc::sync_channel(1);
        let (refusals, pod) = (Refusals::new(queue), pod::tests::pod());
        let source = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 4000);
        let subject = Subject::new(&pod, Direction::Inbound, source, None);
        refusals.tell(subject, Reason::PolicyDeny);
        refusals.tell(subject, Reason::PeerIdentity);
        assert_eq!(told.try_iter().count(), 1);
        refusals.forget(&pod.uid);
        assert!(refusals.kinds.borrow().is_empty());
    }
}
