//! Decides which of many equal events are told: each distinct reason at once, and again after a pause with the number
//! of those that were left out. It writes nothing itself.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A reason is told again after this.
const PAUSE: Duration = Duration::from_secs(60);
/// Reasons that are remembered; beyond it the one told longest ago is forgotten.
const REASONS_MAX: usize = 100;

/// Remembers what was told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    reasons: HashMap<Box<str>, Reason>,
}

#[derive(Debug)]
struct Reason {
    told: Instant,
    left_out: u64,
}

impl Told {
    /// Whether a reason is to be told now, and then how often it came up since it was told last without being told.
    pub(crate) fn now(&mut self, reason: &str, now: Instant) -> Option<u64> {
        if let Some(known) = self.reasons.get_mut(reason) {
            if now.saturating_duration_since(known.told) < PAUSE {
                known.left_out += 1;
                return None;
            }
            known.told = now;
            return Some(std::mem::take(&mut known.left_out));
        }
        if self.reasons.len() >= REASONS_MAX {
            let oldest = self.reasons.iter().min_by_key(|(_, reason)| reason.told);
            if let Some(oldest) = oldest.map(|(text, _)| text.clone()) {
                self.reasons.remove(&oldest);
            }
        }
        self.reasons.insert(reason.into(), Reason { told: now, left_out: 0 });
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_once_a_minute_with_what_was_left_out() {
        let (mut told, start) = (Told::default(), Instant::now());
        assert_eq!(told.now("down", start), Some(0));
        assert_eq!(told.now("down", start + Duration::from_secs(1)), None);
        assert_eq!(told.now("down", start + Duration::from_secs(59)), None);
        assert_eq!(told.now("refused", start + Duration::from_secs(59)), Some(0));
        assert_eq!(told.now("down", start + Duration::from_secs(60)), Some(2));
        assert_eq!(told.now("down", start + Duration::from_secs(121)), Some(0));
    }

    #[test]
    fn reasons_are_remembered_up_to_a_bound() {
        let (mut told, start) = (Told::default(), Instant::now());
        for second in 0..=REASONS_MAX as u64 {
            told.now(&second.to_string(), start + Duration::from_secs(second));
        }
        assert_eq!(told.reasons.len(), REASONS_MAX);
        assert!(!told.reasons.contains_key("0"));
    }
}
