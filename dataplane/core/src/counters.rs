//! What one shard counts. Its own thread alone writes, with plain loads and stores; any thread reads.
//!
//! Totals only grow. A reader on another thread may see two of them a few loads apart.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::outcome::Reason;

/// One total. Adding to it is a load and a store, not an atomic operation: only one thread may add.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`. Only the thread that owns the counters may call it.
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(count), Relaxed);
    }

    /// Adds one. Only the thread that owns the counters may call it.
    pub fn increment(&self) {
        self.add(1);
    }

    /// The total.
    pub fn total(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The totals of one shard, on cache lines of their own.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
            closed: Closed,
        }

        impl Counters {
            /// How many [`Counters::list`] returns.
            pub const COUNT: usize = [$(stringify!($name)),*].len() + Reason::ALL.len();

            /// Every total with its name, in an order that never changes while the program runs: the plain ones, then
            /// `closed_<label>` for each reason.
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                let mut list = Vec::with_capacity(Self::COUNT);
                $(list.push((stringify!($name), self.$name.total()));)*
                list.extend(Reason::ALL.iter().map(|reason| (reason.counter(), self.closed_by(*reason))));
                list
            }
        }
    };
}

counters! {
    /// Connections to pods through tunnels that were admitted.
    connections_inbound,
    /// Connections of pods that were admitted.
    connections_outbound,
    /// Connections to pods outside a tunnel that were admitted.
    connections_plaintext,
    /// Bytes from the client side.
    bytes_received,
    /// Bytes back to the client side.
    bytes_sent,
    /// Tunnels that this shard opened.
    tunnels_dialed,
    /// Tunnels that peers opened.
    tunnels_accepted,
    /// Tunnels of either role that ended.
    tunnels_closed,
    /// CONNECT requests sent and received.
    streams_opened,
    /// Times that another address or endpoint was tried for a connection, after one could not be reached.
    retries,
    /// TLS handshakes that finished, both roles.
    handshakes,
    /// TLS handshakes that failed, both roles.
    handshakes_failed,
    /// Read operations completed.
    reads,
    /// Write operations completed.
    writes,
    /// Connections accepted, on every listener.
    accepts,
    /// Times that accepting paused for want of file descriptors or memory.
    accept_backoffs,
    /// Times that an application was not read because its stream could not send.
    reads_paused,
    /// Connections that waited for an answer of the control plane.
    lookups,
    /// Lookups that ended at their deadline.
    lookups_expired,
    /// Questions that were put to the control plane.
    questions_asked,
    /// Questions that found the queue to the control plane full; each is asked again.
    questions_refused,
    /// Handshakes refused and tunnels cut because a certificate is revoked.
    crl_rejections,
    /// Connections counted under labels of which nothing is known, for want of room for further series.
    series_overflows,
    /// Lines of the access log that found the queue full.
    access_lines_dropped,
    /// Policies in dry run that matched.
    policies_dry_run,
    /// Policies that a workload names and the snapshot does not hold, counted at each check.
    policies_missing,
    /// Snapshots adopted.
    snapshots,
    /// DNS queries of pods.
    dns_queries,
    /// Questions that were sent to DNS servers.
    dns_forwarded,
    /// Questions that were answered from what servers said a moment ago.
    dns_cached,
    /// Messages to DNS servers, tries of one question counted each.
    dns_tries,
    /// Questions that no DNS server answered.
    dns_unanswered,
    /// DNS queries that were refused because too many were on their way.
    dns_shed,
    /// DNS connections that were refused because the pod had too many.
    dns_connections_shed,
    /// DNS answers that a pod's socket did not take.
    dns_replies_dropped,
    /// Hosts that were looked up for connections to them.
    host_lookups,
    /// Hosts that no address was found for.
    host_lookups_failed,
}

/// Totals by reason, at the place of its number.
#[derive(Debug)]
struct Closed([Counter; Reason::ALL.len()]);

impl Default for Closed {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl Counters {
    /// Counts a connection that ended. Only the thread that owns the counters may call it.
    pub fn closed(&self, reason: Reason) {
        self.closed.0[reason as usize].increment();
    }

    /// How many connections ended for this reason.
    pub fn closed_by(&self, reason: Reason) -> u64 {
        self.closed.0[reason as usize].total()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_holds_every_total_under_a_distinct_name_in_a_fixed_order() {
        let counters = Counters::default();
        counters.bytes_sent.add(7);
        counters.closed(Reason::Reset);
        let list = counters.list();
        assert_eq!(list.len(), Counters::COUNT);
        assert_eq!(list[0].0, "connections_inbound");
        assert!(list.contains(&("bytes_sent", 7)) && list.contains(&("closed_reset", 1)));
        let names: std::collections::BTreeSet<_> = list.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), list.len());
        let again: Vec<_> = counters.list().into_iter().map(|(name, _)| name).collect();
        assert_eq!(again, list.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    }

    #[test]
    fn no_two_shards_share_a_cache_line() {
        assert_eq!(align_of::<Counters>(), 128);
        assert_eq!(size_of::<Counters>() % 128, 0);
    }
}
