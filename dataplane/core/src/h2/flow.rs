//! Flow-control windows (RFC 9113, section 5.2), one type for each direction.
//!
//! The windows count; they never send. [`ReceiveWindow::update`] says when a WINDOW_UPDATE is due.

#[cfg(test)]
mod tests;

/// Largest flow-control window (RFC 9113, section 6.9.1).
pub const WINDOW_MAX: u32 = 0x7fff_ffff;
/// Every window before SETTINGS and WINDOW_UPDATE change it (RFC 9113, section 6.9.2).
pub const WINDOW_DEFAULT: u32 = 65_535;
/// A stream's window doubles when its half is consumed within this time. So it grows until it covers round trips of
/// twice this time, and a flow that is slow because its application is slow never grows.
pub const WINDOW_GROWTH_MS: u64 = 100;

/// The peer raised a window above [`WINDOW_MAX`]: FLOW_CONTROL_ERROR.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct WindowOverflow;

/// What we may still send. A change of SETTINGS_INITIAL_WINDOW_SIZE may make it negative (RFC 9113, section 6.9.2).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct SendWindow(i64);

impl SendWindow {
    /// A window of this many bytes.
    pub fn new(bytes: u32) -> Self {
        Self(i64::from(bytes))
    }

    /// Bytes that may be sent now.
    pub fn available(self) -> usize {
        usize::try_from(self.0).unwrap_or(0)
    }

    /// Bytes are sent; never more than [`SendWindow::available`].
    pub fn debit(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.available());
        self.0 -= bytes as i64;
    }

    /// A WINDOW_UPDATE, or a change of the initial window, moves the window.
    pub fn shift(&mut self, bytes: i64) -> Result<(), WindowOverflow> {
        let moved = self.0 + bytes;
        if moved > i64::from(WINDOW_MAX) {
            return Err(WindowOverflow);
        }
        self.0 = moved;
        Ok(())
    }
}

/// What the peer may still send, and what becomes of it.
///
/// A flow-controlled byte is debited when its frame's header arrives; then it is either delivered to the application
/// and later consumed, or refunded (padding, ignored frames). Consumed and refunded bytes return to the peer in
/// batches. So `available + unreturned + outstanding + (debited, not yet delivered)` is always `target`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReceiveWindow {
    target: u32,
    available: i64,
    unreturned: u64,
    outstanding: u64,
    updated_ms: u64,
}

impl ReceiveWindow {
    /// A window of this many bytes, at most [`WINDOW_MAX`].
    pub fn new(target: u32, now_ms: u64) -> Self {
        let target = target.min(WINDOW_MAX);
        Self { target, available: i64::from(target), unreturned: 0, outstanding: 0, updated_ms: now_ms }
    }

    /// Bytes delivered and not yet consumed.
    pub fn outstanding(&self) -> u64 {
        self.outstanding
    }

    /// The size that updates restore.
    pub fn target(&self) -> u32 {
        self.target
    }

    /// Debited bytes that are not delivered yet.
    pub fn undelivered(&self) -> i64 {
        i64::from(self.target) - self.available - self.unreturned as i64 - self.outstanding as i64
    }

    /// A frame of this many bytes arrives. False if the peer had no right to send it.
    #[must_use]
    pub fn debit(&mut self, bytes: u32) -> bool {
        let allowed = i64::from(bytes) <= self.available;
        if allowed {
            self.available -= i64::from(bytes);
        }
        allowed
    }

    /// Debited bytes go to the application.
    pub fn deliver(&mut self, bytes: u32) {
        self.outstanding += u64::from(bytes);
    }

    /// Debited bytes go to nobody.
    pub fn refund(&mut self, bytes: u32) {
        self.unreturned += u64::from(bytes);
    }

    /// The application took delivered bytes. Returns how many of them were outstanding.
    pub fn consume(&mut self, bytes: usize) -> u32 {
        let bytes = (bytes as u64).min(self.outstanding);
        self.outstanding -= bytes;
        self.unreturned += bytes;
        bytes as u32
    }

    /// Doubles the size, up to `target_max`, if the application keeps up with a peer that fills the window: half of
    /// it went through within [`WINDOW_GROWTH_MS`], and less than half is outstanding. Called before `update`.
    pub fn grow(&mut self, target_max: u32, now_ms: u64) {
        let half = u64::from(self.target / 2);
        let fast = now_ms.saturating_sub(self.updated_ms) <= WINDOW_GROWTH_MS;
        if self.unreturned < half.max(1) || self.outstanding > half || !fast {
            return;
        }
        let grown = self.target.saturating_mul(2).min(target_max).min(WINDOW_MAX).max(self.target);
        self.unreturned += u64::from(grown - self.target);
        self.target = grown;
    }

    /// The increment to send now: all that is returned, once that is half of the window.
    pub fn update(&mut self, now_ms: u64) -> Option<u32> {
        if self.unreturned < u64::from(self.target / 2).max(1) {
            return None;
        }
        let increment = self.unreturned as u32;
        self.available += i64::from(increment);
        self.unreturned = 0;
        self.updated_ms = now_ms;
        Some(increment)
    }

    /// The peer has applied a smaller initial window than it was first granted (RFC 9113, section 6.9.2).
    pub fn shrink(&mut self, bytes: u32) {
        self.target = self.target.saturating_sub(bytes);
        self.available -= i64::from(bytes);
    }
}
