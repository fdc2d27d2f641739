//! One relayed connection's two directions: when it is over, and why.
//!
//! Each direction ends on its own (half-close is carried both ways). Once one has ended, the other must make progress
//! within the half-close limit. The machine sees no bytes: the shard copies, and reports ends, progress and failures.
//! The first outcome stays; whatever is reported after it is ignored.

use crate::outcome::Reason;

/// One direction of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// Bytes from the client side to the server side.
    Upstream,
    /// Bytes from the server side to the client side.
    Downstream,
}

/// The ends of one relayed connection.
///
/// Report `ended`, `progress`, `reset` and `failed` as they happen, call `handle_timeout` at `poll_timeout`, and tear the
/// connection down once `outcome` is there.
#[derive(Debug, Clone)]
pub struct Relay {
    half_close_ms_max: u64,
    upstream_open: bool,
    downstream_open: bool,
    deadline: Option<u64>,
    outcome: Option<Reason>,
}

impl Relay {
    /// A connection with both directions open.
    pub fn new(half_close_ms_max: u64) -> Self {
        Self { half_close_ms_max, upstream_open: true, downstream_open: true, deadline: None, outcome: None }
    }

    /// One direction ended in order: its last byte has been passed on, and so has its end.
    pub fn ended(&mut self, way: Way, now_ms: u64) {
        match way {
            Way::Upstream => self.upstream_open = false,
            Way::Downstream => self.downstream_open = false,
        }
        match (self.outcome, self.upstream_open || self.downstream_open) {
            (Some(_), _) => {}
            (None, false) => self.end(Reason::Complete),
            // A repeated report does not extend the limit.
            (None, true) => {
                self.deadline.get_or_insert(now_ms.saturating_add(self.half_close_ms_max));
            }
        }
        self.check();
    }

    /// Bytes moved in the direction that is still open.
    pub fn progress(&mut self, now_ms: u64) {
        if self.deadline.is_some() {
            self.deadline = Some(now_ms.saturating_add(self.half_close_ms_max));
        }
    }

    /// One side reset the connection; the shard resets the other.
    pub fn reset(&mut self) {
        self.failed(Reason::Reset);
    }

    /// The connection ends for this reason, in both directions.
    pub fn failed(&mut self, reason: Reason) {
        if self.outcome.is_none() {
            self.end(reason);
        }
        self.check();
    }

    /// Whether this direction may still carry bytes.
    pub fn is_open(&self, way: Way) -> bool {
        let open = match way {
            Way::Upstream => self.upstream_open,
            Way::Downstream => self.downstream_open,
        };
        open && self.outcome.is_none()
    }

    /// When `handle_timeout` is due, ms.
    pub fn poll_timeout(&self) -> Option<u64> {
        self.deadline
    }

    /// Ends the connection if its open direction has been silent past the limit.
    pub fn handle_timeout(&mut self, now_ms: u64) {
        if self.deadline.is_some_and(|deadline| deadline <= now_ms) {
            self.end(Reason::HalfCloseTimeout);
        }
        self.check();
    }

    /// Why the connection is over; `None` while it is not.
    pub fn outcome(&self) -> Option<Reason> {
        self.outcome
    }

    fn end(&mut self, reason: Reason) {
        self.outcome = Some(reason);
        self.deadline = None;
    }

    fn check(&self) {
        debug_assert!(self.outcome.is_none() || self.deadline.is_none(), "a finished relay has no deadline");
        let half_closed = self.upstream_open != self.downstream_open;
        debug_assert_eq!(
            self.deadline.is_some(),
            half_closed && self.outcome.is_none(),
            "the limit runs exactly while one direction is open"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 1000;

    #[test]
    fn a_relay_is_complete_once_both_directions_ended() {
        let mut relay = Relay::new(LIMIT);
        assert_eq!(relay.poll_timeout(), None);
        relay.ended(Way::Downstream, 10);
        assert_eq!((relay.outcome(), relay.poll_timeout()), (None, Some(1010)));
        assert!(relay.is_open(Way::Upstream) && !relay.is_open(Way::Downstream));
        relay.ended(Way::Upstream, 20);
        assert_eq!((relay.outcome(), relay.poll_timeout()), (Some(Reason::Complete), None));
    }

    #[test]
    fn progress_extends_the_half_close_limit_and_a_repeated_end_does_not() {
        let mut relay = Relay::new(LIMIT);
        relay.progress(5);
        assert_eq!(relay.poll_timeout(), None);
        relay.ended(Way::Upstream, 0);
        relay.progress(900);
        relay.ended(Way::Upstream, 1500);
        relay.handle_timeout(1899);
        assert_eq!((relay.outcome(), relay.poll_timeout()), (None, Some(1900)));
        relay.handle_timeout(1900);
        assert_eq!((relay.outcome(), relay.poll_timeout()), (Some(Reason::HalfCloseTimeout), None));
    }

    #[test]
    fn the_first_outcome_stays() {
        let mut relay = Relay::new(LIMIT);
        relay.ended(Way::Upstream, 0);
        relay.reset();
        relay.ended(Way::Downstream, 1);
        relay.failed(Reason::Drained);
        relay.handle_timeout(u64::MAX);
        assert_eq!(relay.outcome(), Some(Reason::Reset));
        assert!(!relay.is_open(Way::Downstream));
    }
}
