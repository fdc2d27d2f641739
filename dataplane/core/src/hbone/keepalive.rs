//! When to send a liveness PING, and when its answer is overdue (RFC 9113, section 6.7).

/// The keepalive clock of one session.
#[derive(Debug)]
pub(super) struct Keepalive {
    interval_ms: u64,
    timeout_ms: u64,
    next_ms: u64,
    sent_ms: Option<u64>,
    count: u64,
}

/// What [`Keepalive::tick`] asks for.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Tick {
    Wait,
    Send([u8; 8]),
    Dead,
}

impl Keepalive {
    /// The first PING is due after an interval; an interval of 0 never sends one.
    pub(super) fn new(interval_ms: u64, timeout_ms: u64, now_ms: u64) -> Self {
        Self { interval_ms, timeout_ms, next_ms: now_ms.saturating_add(interval_ms), sent_ms: None, count: 0 }
    }

    /// When `tick` has something to do.
    pub(super) fn deadline(&self) -> Option<u64> {
        match self.sent_ms {
            Some(sent) => Some(sent.saturating_add(self.timeout_ms)),
            None => (self.interval_ms > 0).then_some(self.next_ms),
        }
    }

    pub(super) fn tick(&mut self, now_ms: u64) -> Tick {
        if self.deadline().is_none_or(|deadline| now_ms < deadline) {
            return Tick::Wait;
        }
        if self.sent_ms.is_some() {
            return Tick::Dead;
        }
        self.sent_ms = Some(now_ms);
        self.next_ms = now_ms.saturating_add(self.interval_ms);
        self.count += 1;
        Tick::Send(self.opaque())
    }

    /// A PING acknowledgement arrived. One that answers no PING of ours is ignored.
    pub(super) fn acknowledged(&mut self, opaque: &[u8]) {
        if opaque == self.opaque() {
            self.sent_ms = None;
        }
    }

    /// The first octet keeps these apart from the PING of a drain.
    fn opaque(&self) -> [u8; 8] {
        let mut opaque = self.count.to_be_bytes();
        opaque[0] = b'k';
        opaque
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_goes_out_each_interval_while_answers_come() {
        let mut keepalive = Keepalive::new(10, 20, 100);
        assert_eq!(keepalive.deadline(), Some(110));
        assert_eq!(keepalive.tick(109), Tick::Wait);
        for now in [110, 120, 130] {
            let Tick::Send(opaque) = keepalive.tick(now) else { panic!("no PING at {now}") };
            assert_eq!(keepalive.deadline(), Some(now + 20));
            keepalive.acknowledged(&opaque);
            assert_eq!(keepalive.deadline(), Some(now + 10));
        }
    }

    #[test]
    fn an_answer_that_is_late_or_wrong_is_death() {
        let mut keepalive = Keepalive::new(10, 20, 0);
        assert!(matches!(keepalive.tick(10), Tick::Send(_)));
        keepalive.acknowledged(b"12345678");
        assert_eq!(keepalive.tick(29), Tick::Wait);
        assert_eq!(keepalive.tick(30), Tick::Dead);
    }

    #[test]
    fn an_interval_of_zero_never_sends() {
        assert_eq!(Keepalive::new(0, 20, 5).deadline(), None);
    }
}
