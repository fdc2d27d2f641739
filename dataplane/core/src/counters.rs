//! What one shard counts. Its own thread alone writes, with plain loads and stores; any thread reads.
//!
//! Totals only grow. What is open now is a difference of totals, so a reader on another thread may see it off by what
//! happened between two of its loads.

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
    /// Streams that peers opened to pods, accepted or refused.
    connections_inbound,
    /// Connections that pods opened.
    connections_outbound,
    /// Connections that reached pods outside a tunnel.
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
    /// Tunnels that ended because the peer did not answer a PING.
    tunnels_ping_timeout,
    /// CONNECT streams opened, both roles.
    streams_opened,
    /// CONNECT streams that ended, both roles.
    streams_closed,
    /// TLS handshakes that finished, both roles.
    handshakes,
    /// TLS handshakes that failed, both roles.
    handshakes_failed,
    /// TLS alerts received that end a tunnel in error.
    alerts_received,
    /// TLS alerts sent that end a tunnel in error.
    alerts_sent,
    /// TLS key updates, both ways.
    key_updates,
    /// TLS records sealed.
    records_sealed,
    /// TLS records opened.
    records_opened,
    /// Turns of the loop.
    turns,
    /// Read operations completed.
    reads,
    /// Write operations completed.
    writes,
    /// Connections accepted, on every listener.
    accepts,
    /// Times that accepting paused for want of file descriptors or memory.
    accept_backoffs,
    /// Connections refused at the limit of one pod.
    connections_shed,
    /// Applications whose reading paused because a tunnel had too many bytes waiting.
    reads_paused,
    /// Connections that waited for an answer of the control plane.
    lookups,
    /// Lookups that ended at their deadline.
    lookups_expired,
    /// Questions to the control plane dropped because its queue was full.
    questions_dropped,
    /// Policies in dry run that matched.
    policies_dry_run,
    /// Policies that a workload names and the snapshot does not hold, counted at each check.
    policies_missing,
    /// Source addresses that could not be kept toward an application.
    source_bind_failed,
    /// Snapshots adopted.
    snapshots,
    /// Connection tasks that failed; defects in this program.
    defects,
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

    /// Connections open now, of every kind.
    pub fn connections_open(&self) -> u64 {
        let closed: u64 = self.closed.0.iter().map(Counter::total).sum();
        let opened = [&self.connections_inbound, &self.connections_outbound, &self.connections_plaintext];
        opened.iter().map(|counter| counter.total()).sum::<u64>().saturating_sub(closed)
    }

    /// Tunnels open now, of both roles.
    pub fn tunnels_open(&self) -> u64 {
        let opened = self.tunnels_dialed.total() + self.tunnels_accepted.total();
        opened.saturating_sub(self.tunnels_closed.total())
    }

    /// CONNECT streams open now, of both roles.
    pub fn streams_open(&self) -> u64 {
        self.streams_opened.total().saturating_sub(self.streams_closed.total())
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
    fn what_is_open_is_the_difference_of_totals() {
        let counters = Counters::default();
        counters.connections_outbound.add(3);
        counters.connections_plaintext.increment();
        counters.closed(Reason::Complete);
        counters.closed(Reason::Reset);
        counters.tunnels_accepted.add(2);
        counters.tunnels_closed.increment();
        assert_eq!(counters.connections_open(), 2);
        assert_eq!(counters.tunnels_open(), 1);
        assert_eq!(counters.streams_open(), 0);
    }

    #[test]
    fn no_two_shards_share_a_cache_line() {
        assert_eq!(align_of::<Counters>(), 128);
        assert_eq!(size_of::<Counters>() % 128, 0);
    }
}
