//! One rendering of metrics at a time. Anybody in the cluster may ask for them, and to put them together costs every
//! shard a turn and the process memory: whoever asks meanwhile waits, and shares what is fresh enough.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::{Encoding, Format};

/// How old a body may be that is shared with whoever asks: so many times as old as its rendering took, so that no more
/// than a fifth of the time goes into it, and never older than this.
const SHARED_TIMES: u32 = 5;
const SHARED_MAX: Duration = Duration::from_secs(1);

/// The form and the coding of a body.
pub(crate) type Form = (Format, Encoding);

/// The turn to render, and what was rendered of late.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flight(Arc<Mutex<Vec<Rendered>>>);

#[derive(Debug)]
struct Rendered {
    form: Form,
    /// When its values began to be collected.
    begun: Instant,
    /// Until when it is shared.
    until: Instant,
    body: Bytes,
}

/// What a wait for the turn comes to.
pub(crate) enum Turn {
    /// A body that is fresh enough.
    Fresh(Bytes),
    /// The turn to render one.
    Own(Rendering),
}

/// The turn: as long as it lives, nobody else renders.
pub(crate) struct Rendering {
    form: Form,
    begun: Instant,
    turn: OwnedMutexGuard<Vec<Rendered>>,
}

impl Flight {
    /// Waits for the turn. A body will do that began to be collected since, or a moment ago.
    pub(crate) async fn turn(&self, form: Form) -> Turn {
        self.turn_by(form, Instant::now).await
    }

    async fn turn_by(&self, form: Form, now: impl Fn() -> Instant) -> Turn {
        let asked = now();
        let mut turn = self.0.clone().lock_owned().await;
        let begun = now();
        turn.retain(|rendered| rendered.begun >= asked || begun < rendered.until);
        match turn.iter().find(|rendered| rendered.form == form) {
            Some(fresh) => Turn::Fresh(fresh.body.clone()),
            None => Turn::Own(Rendering { form, begun, turn }),
        }
    }
}

impl Rendering {
    /// Ends the turn with a body for those who wait.
    pub(crate) fn finish(self, body: Vec<u8>) -> Bytes {
        self.finish_at(body, Instant::now())
    }

    fn finish_at(mut self, body: Vec<u8>, now: Instant) -> Bytes {
        let shared = (now.saturating_duration_since(self.begun) * SHARED_TIMES).min(SHARED_MAX);
        let body = Bytes::from(body);
        let form = self.form;
        self.turn.retain(|rendered| rendered.form != form);
        self.turn.push(Rendered { form, begun: self.begun, until: self.begun + shared, body: body.clone() });
        body
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{Future, poll_fn};
    use std::pin::pin;
    use std::task::Poll;

    use super::*;

    const TEXT: Form = (Format::Prometheus, Encoding::Identity);
    const OPEN: Form = (Format::OpenMetrics, Encoding::Identity);

    /// A flight by a clock that the test moves.
    struct Timed {
        flight: Flight,
        now: Cell<Instant>,
    }

    impl Timed {
        fn new() -> Self {
            Self { flight: Flight::default(), now: Cell::new(Instant::now()) }
        }

        fn pass(&self, time: Duration) {
            self.now.set(self.now.get() + time);
        }

        async fn turn(&self, form: Form) -> Turn {
            self.flight.turn_by(form, || self.now.get()).await
        }

        /// Ends a rendering that took as long as one does that is shared for the longest time.
        fn finish(&self, rendering: Rendering, body: &str) {
            self.pass(SHARED_MAX / SHARED_TIMES);
            rendering.finish_at(body.as_bytes().to_vec(), self.now.get());
        }

        async fn own(&self, form: Form) -> Rendering {
            match self.turn(form).await {
                Turn::Own(rendering) => rendering,
                Turn::Fresh(body) => panic!("{body:?} is shared"),
            }
        }

        async fn fresh(&self, form: Form) -> Bytes {
            match self.turn(form).await {
                Turn::Fresh(body) => body,
                Turn::Own(_) => panic!("nothing is shared"),
            }
        }
    }

    #[tokio::test]
    async fn a_body_is_shared_for_a_moment_in_its_form_alone() {
        let timed = Timed::new();
        timed.finish(timed.own(TEXT).await, "one");
        assert_eq!(timed.fresh(TEXT).await, "one");
        timed.finish(timed.own(OPEN).await, "open");
        assert_eq!((timed.fresh(TEXT).await, timed.fresh(OPEN).await), ("one".into(), "open".into()));
        timed.pass(SHARED_MAX);
        timed.finish(timed.own(TEXT).await, "two");
        assert_eq!(timed.fresh(TEXT).await, "two");
    }

    #[tokio::test]
    async fn one_renders_while_others_wait_and_they_share_what_began_after_they_asked() {
        let timed = Timed::new();
        let first = timed.own(TEXT).await;
        timed.pass(SHARED_MAX);
        let (mut second, mut third) = (pin!(timed.turn(TEXT)), pin!(timed.turn(TEXT)));
        poll_fn(|context| {
            assert!(second.as_mut().poll(context).is_pending() && third.as_mut().poll(context).is_pending());
            Poll::Ready(())
        })
        .await;
        timed.pass(SHARED_MAX);
        timed.finish(first, "too old");
        let Turn::Own(next) = second.await else { panic!("what began before is shared") };
        timed.pass(2 * SHARED_MAX);
        timed.finish(next, "new");
        assert!(matches!(third.await, Turn::Fresh(body) if body == "new"));
    }

    #[tokio::test]
    async fn what_took_no_time_is_not_shared() {
        let timed = Timed::new();
        timed.own(TEXT).await.finish_at(b"one".to_vec(), timed.now.get());
        timed.pass(Duration::from_nanos(1));
        timed.finish(timed.own(TEXT).await, "two");
    }

    #[tokio::test]
    async fn a_rendering_that_is_given_up_passes_the_turn_on() {
        let timed = Timed::new();
        drop(timed.own(TEXT).await);
        timed.finish(timed.own(TEXT).await, "one");
    }
}
