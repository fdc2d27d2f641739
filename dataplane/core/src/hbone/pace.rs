//! How many small DATA frames a peer may have to hold at once.
//!
//! Peers built on the `h2` crate (0.4.16 and later) charge each DATA frame of 1 to 255 bytes without END_STREAM with
//! 256 less its length, and end the session with ENHANCE_YOUR_CALM when the charges exceed half their connection
//! window, 25 600 at least. A frame keeps its charge until the application reads it; larger frames pay charges off.
//! This is a mirror of that account. When an application reads is not visible here, so a PING stands in for it: what
//! was sent before an answered PING has been handed to the peer's applications. That bounds bursts; nothing in HTTP/2
//! tells us of an application that stopped reading small messages.

/// A DATA payload of at least this many bytes is not charged to a peer's budget for small frames.
pub const SMALL_DATA: usize = 256;
/// The least budget that a peer grants.
const BUDGET_MIN: u64 = 25_600;

/// The account of one session's sending side.
#[derive(Debug, Default)]
pub(super) struct Pace {
    charged: u64,
    /// Charges that the outstanding PING covers.
    probed: Option<u64>,
    count: u64,
    /// Largest connection window that the peer has granted.
    window_max: u64,
}

impl Pace {
    /// What may be charged in a round trip: an eighth of the budget, for the applications of the peer may lag a few
    /// round trips behind its session.
    fn limit(&self) -> u64 {
        (self.window_max / 2).max(BUDGET_MIN) / 8
    }

    /// The peer's connection window stands at this many bytes.
    pub(super) fn granted(&mut self, window: usize) {
        self.window_max = self.window_max.max(window as u64);
    }

    /// A DATA frame without END_STREAM is sent. Returns the PING to send behind it, if one is due.
    pub(super) fn sent(&mut self, len: usize) -> Option<[u8; 8]> {
        if len >= SMALL_DATA {
            let paid = (len - SMALL_DATA) as u64;
            self.charged = self.charged.saturating_sub(paid);
            // What is paid off cannot be answered for once more.
            self.probed = self.probed.map(|probed| probed.saturating_sub(paid));
            return None;
        }
        self.charged += (SMALL_DATA - len) as u64;
        if self.probed.is_some() || self.charged < self.limit() / 2 {
            return None;
        }
        self.probed = Some(self.charged);
        self.count += 1;
        Some(self.opaque())
    }

    /// A PING acknowledgement arrived. One that answers no PING of ours is ignored.
    pub(super) fn acknowledged(&mut self, opaque: &[u8]) {
        if opaque == self.opaque() {
            self.charged = self.charged.saturating_sub(self.probed.take().unwrap_or(0));
        }
    }

    /// Whether small frames should wait for the answer to a PING.
    pub(super) fn holds(&self) -> bool {
        self.probed.is_some() && self.charged + SMALL_DATA as u64 > self.limit()
    }

    /// The first octet keeps these apart from other PINGs.
    fn opaque(&self) -> [u8; 8] {
        let mut opaque = self.count.to_be_bytes();
        opaque[0] = b'p';
        opaque
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_frames_wait_for_an_answer_after_an_eighth_of_the_least_budget() {
        let mut pace = Pace::default();
        let mut probe = None;
        let mut count = 0;
        while !pace.holds() {
            probe = pace.sent(1).or(probe);
            count += 1;
        }
        assert_eq!(count, 12);
        pace.acknowledged(&[0; 8]);
        assert!(pace.holds());
        pace.acknowledged(&probe.unwrap());
        assert!(!pace.holds());
        assert_eq!(pace.charged, 5 * 255, "the charges behind the PING remain");
    }

    #[test]
    fn a_larger_connection_window_allows_more() {
        let mut pace = Pace::default();
        pace.granted(16 << 20);
        pace.granted(0);
        for _ in 0..4_000 {
            pace.sent(1);
        }
        assert!(!pace.holds());
    }

    #[test]
    fn large_frames_pay_charges_off() {
        let mut pace = Pace::default();
        for _ in 0..50 {
            pace.sent(1);
        }
        assert!(pace.holds());
        pace.sent(16_384);
        assert!(!pace.holds());
    }
}
