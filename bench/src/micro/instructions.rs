//! Counts the instructions that this thread executes in user space.

use perf_event::events::Hardware;
use perf_event::{Builder, Counter};

/// The processor's counter, if there is one: virtual machines often have none, and the kernel may forbid it
/// (`perf_event_paranoid`).
pub(super) struct Instructions(Option<Counter>);

impl Instructions {
    /// A counter that stands still, or none.
    pub(super) fn open() -> Self {
        Self(Builder::new(Hardware::INSTRUCTIONS).build().ok())
    }

    /// Counts from 0. A counter that fails is given up.
    pub(super) fn start(&mut self) {
        let started = self.0.as_mut().map(|counter| counter.reset().and_then(|()| counter.enable()));
        if matches!(started, Some(Err(_))) {
            self.0 = None;
        }
    }

    /// How many since the start. A counter that has counted none does not work.
    pub(super) fn stop(&mut self) -> Option<u64> {
        let counter = self.0.as_mut()?;
        counter.disable().ok()?;
        counter.read().ok().filter(|count| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_work_is_more_instructions_where_they_are_counted() {
        let mut instructions = Instructions::open();
        let mut count = |rounds: u64| {
            instructions.start();
            std::hint::black_box((0..rounds).fold(1u64, |sum, round| std::hint::black_box(sum ^ round)));
            instructions.stop()
        };
        if let (Some(few), Some(many)) = (count(10), count(10_000)) {
            assert!(many > few + 9_000, "{few} {many}");
        }
    }
}
