//! What connections wait for, and the questions about it to the control plane.
//!
//! A question that many connections have is asked once. It is asked again only when the control plane was given time to
//! answer and did not, for it may have been lost on its way, or when its queue was full. A decision that finds what it needs never comes here.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use halo_core::counters::Counters;
use halo_core::demand::Question;
use halo_core::outcome::Reason;

/// Puts a question to the control plane; `false` when its queue is full. It must not block.
pub type Ask = Arc<dyn Fn(Question) -> bool + Send + Sync>;

/// How long to leave a queue alone that was full, ms, unless a new generation shows that it moves.
const REFUSED_MS: u64 = 1_000;

/// How often a connection that waits to its deadline puts its question.
const ASKED_MAX: u64 = 3;

/// Why a decision cannot be made yet.
pub(crate) struct Missing {
    /// Why the connection is refused if it stays so.
    pub(crate) reason: Reason,
    /// What the control plane can be asked.
    pub(crate) question: Option<Question>,
}

impl From<Reason> for Missing {
    fn from(reason: Reason) -> Self {
        Self { reason, question: None }
    }
}

/// The questions of one shard.
pub(crate) struct Demand {
    ask: Ask,
    counters: Arc<Counters>,
    /// How long an answer may take before the question is put again, ms: whoever waits asks three times.
    patience_ms: u64,
    asked: RefCell<HashMap<Question, Asked>>,
}

/// A question that connections have.
struct Asked {
    waiters: usize,
    /// Not to be put again before this time.
    again_ms: u64,
    refused: bool,
}

impl Demand {
    /// `lookup_ms_max` is how long a connection waits in all.
    pub(crate) fn new(ask: Ask, counters: Arc<Counters>, lookup_ms_max: u64) -> Self {
        let patience_ms = lookup_ms_max.div_ceil(ASKED_MAX).max(1);
        Self { ask, counters, patience_ms, asked: RefCell::default() }
    }

    /// Enters a connection that waits; it has no question yet.
    pub(crate) fn enter(&self) -> Waiting<'_> {
        Waiting { demand: self, question: None }
    }

    /// A new generation is in force: whoever reads the queue may have room by now.
    pub(crate) fn generation(&self) {
        for asked in self.asked.borrow_mut().values_mut().filter(|asked| asked.refused) {
            asked.again_ms = 0;
        }
    }

    /// Puts the question, unless it was put a moment ago. Says when to put it again.
    fn put(&self, question: &Question, now_ms: u64) -> Option<u64> {
        let mut questions = self.asked.borrow_mut();
        let asked = questions.get_mut(question)?;
        if now_ms >= asked.again_ms {
            asked.refused = !(self.ask)(question.clone());
            let (total, pause_ms) = match asked.refused {
                true => (&self.counters.questions_refused, REFUSED_MS),
                false => (&self.counters.questions_asked, self.patience_ms),
            };
            total.increment();
            asked.again_ms = now_ms.saturating_add(pause_ms);
        }
        Some(asked.again_ms)
    }
}

/// A connection that waits, with its present question; dropping it withdraws that.
pub(crate) struct Waiting<'a> {
    demand: &'a Demand,
    question: Option<Question>,
}

impl Waiting<'_> {
    /// Makes sure that the connection's question has been put, and says when to come again if there was no answer; `None`
    /// without a question.
    pub(crate) fn need(&mut self, question: Option<Question>, now_ms: u64) -> Option<u64> {
        if self.question != question {
            self.withdraw();
            if let Some(question) = &question {
                let mut questions = self.demand.asked.borrow_mut();
                let fresh = || Asked { waiters: 0, again_ms: 0, refused: false };
                questions.entry(question.clone()).or_insert_with(fresh).waiters += 1;
            }
            self.question = question;
        }
        self.question.as_ref().and_then(|question| self.demand.put(question, now_ms))
    }

    fn withdraw(&mut self) {
        let Some(question) = self.question.take() else {
            return;
        };
        if let Entry::Occupied(mut asked) = self.demand.asked.borrow_mut().entry(question) {
            asked.get_mut().waiters -= 1;
            if asked.get().waiters == 0 {
                asked.remove();
            }
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.withdraw();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use halo_core::id::Identity;

    use super::*;

    const PATIENCE_MS: u64 = 2_000;

    struct Asking {
        demand: Demand,
        heard: Arc<Mutex<Vec<Question>>>,
        full: Arc<AtomicBool>,
    }

    impl Asking {
        fn new() -> Self {
            let (heard, full) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<AtomicBool>::default());
            let (told, closed) = (heard.clone(), full.clone());
            let ask: Ask = Arc::new(move |question| {
                let room = !closed.load(Ordering::Relaxed);
                if room {
                    told.lock().unwrap().push(question);
                }
                room
            });
            Self { demand: Demand::new(ask, Arc::default(), 3 * PATIENCE_MS), heard, full }
        }

        fn heard(&self) -> usize {
            self.heard.lock().unwrap().len()
        }
    }

    fn question(name: &str) -> Option<Question> {
        Some(Question::Certificate(Identity::new("td", "shop", name)))
    }

    #[test]
    fn a_question_that_many_have_is_asked_once() {
        let asking = Asking::new();
        let mut waiting: Vec<_> = (0..10).map(|_| asking.demand.enter()).collect();
        for now_ms in [0, 1, PATIENCE_MS - 1] {
            for waiter in &mut waiting {
                assert_eq!(waiter.need(question("cart"), now_ms), Some(PATIENCE_MS));
            }
        }
        assert_eq!(asking.heard(), 1);
        waiting[0].need(question("pay"), 7);
        assert_eq!(asking.heard(), 2);
        assert_eq!(asking.demand.counters.questions_asked.total(), 2);
    }

    #[test]
    fn a_question_without_an_answer_is_asked_three_times_by_the_deadline() {
        for lookup_ms_max in [3, 50, 5_000] {
            let mut asking = Asking::new();
            let (ask, counters) = (asking.demand.ask.clone(), asking.demand.counters.clone());
            asking.demand = Demand::new(ask, counters, lookup_ms_max);
            let (mut first, mut second) = (asking.demand.enter(), asking.demand.enter());
            let mut now_ms = 0;
            while now_ms < lookup_ms_max {
                let again_ms = first.need(question("cart"), now_ms);
                assert_eq!(
                    second.need(question("cart"), now_ms),
                    again_ms,
                    "they wake together, and one asks"
                );
                now_ms = again_ms.unwrap();
            }
            assert_eq!(asking.heard(), 3, "{lookup_ms_max}");
        }
    }

    #[test]
    fn nothing_is_remembered_once_nobody_waits() {
        let asking = Asking::new();
        let (mut first, mut second) = (asking.demand.enter(), asking.demand.enter());
        first.need(question("cart"), 0);
        second.need(question("cart"), 0);
        drop(first);
        assert_eq!(asking.demand.asked.borrow().len(), 1);
        second.need(None, 0);
        assert!(asking.demand.asked.borrow().is_empty());
        second.need(question("cart"), 1);
        assert_eq!(asking.heard(), 2, "another time, another question");
    }

    #[test]
    fn a_full_queue_is_tried_again_after_a_second_or_with_the_next_generation() {
        let asking = Asking::new();
        asking.full.store(true, Ordering::Relaxed);
        let (mut first, mut second) = (asking.demand.enter(), asking.demand.enter());
        assert_eq!(first.need(question("cart"), 0), Some(REFUSED_MS));
        assert_eq!(second.need(question("cart"), 1), Some(REFUSED_MS));
        assert_eq!(asking.demand.counters.questions_refused.total(), 1);
        first.need(question("cart"), REFUSED_MS);
        assert_eq!(asking.demand.counters.questions_refused.total(), 2);
        asking.full.store(false, Ordering::Relaxed);
        assert_eq!(second.need(question("cart"), REFUSED_MS + 1), Some(2 * REFUSED_MS), "not yet");
        asking.demand.generation();
        let patient = Some(REFUSED_MS + 2 + PATIENCE_MS);
        assert_eq!(second.need(question("cart"), REFUSED_MS + 2), patient);
        assert_eq!(first.need(question("cart"), REFUSED_MS + 2), patient);
        assert_eq!(asking.heard(), 1);
        asking.demand.generation();
        first.need(question("cart"), REFUSED_MS + 3);
        assert_eq!(asking.heard(), 1, "a generation does not repeat what was heard");
    }
}
