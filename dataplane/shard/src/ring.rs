//! The loop that a shard runs on: which kernel interface it gets, how tasks start, how time passes.
//!
//! With `socket.rs` this is the only place that names the runtime. The ring is tried as a ladder, because older kernels
//! refuse newer flags with EINVAL: `SINGLE_ISSUER | COOP_TASKRUN` (6.0), `COOP_TASKRUN` (5.19), plain (5.10), and
//! epoll where io_uring is refused altogether. `DEFER_TASKRUN` is never used: this runtime starves all I/O under it
//! while its run queue is not empty.

use std::any::Any;
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use monoio::time::TimeDriver;
use monoio::{IoUringDriver, LegacyDriver, Runtime, RuntimeBuilder};
use pin_project_lite::pin_project;

/// Entries of the submission ring: operations that one turn of the loop starts without a system call in between. When
/// it is full the runtime submits what it has, and goes on. The memory counts as ours, 64 bytes an entry.
const SUBMISSIONS: u32 = 1024;
/// Entries of the completion ring. Completions beyond it wait inside the kernel, which costs an allocation each.
const COMPLETIONS: u32 = 4096;

/// Which kernel interface to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RingKind {
    /// io_uring where the kernel and its policy allow it, else epoll.
    #[default]
    Auto,
    /// io_uring or nothing.
    IoUring,
    /// epoll.
    Epoll,
}

thread_local! {
    static URING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread's loop is io_uring, which wants blocking sockets; epoll wants non-blocking ones.
pub(crate) fn is_uring() -> bool {
    URING.get()
}

/// A loop that is ready to run.
pub(crate) enum Ring {
    Uring(Runtime<TimeDriver<IoUringDriver>>, &'static str),
    Epoll(Runtime<TimeDriver<LegacyDriver>>),
}

impl Ring {
    /// Builds the loop for the calling thread.
    ///
    /// # Errors
    /// What the kernel said to the plainest variant that `kind` allows.
    pub(crate) fn build(kind: RingKind) -> io::Result<Self> {
        match kind {
            RingKind::Epoll => epoll(),
            RingKind::IoUring => uring(),
            RingKind::Auto => uring().or_else(|_| epoll()),
        }
    }

    /// What the loop runs on, for people.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Uring(_, name) => name,
            Self::Epoll(_) => "epoll",
        }
    }

    /// Runs `main` and every task that it spawns until `main` is done.
    pub(crate) fn run<F: Future>(self, main: F) -> F::Output {
        match self {
            Self::Uring(mut runtime, _) => {
                URING.set(true);
                runtime.block_on(main)
            }
            Self::Epoll(mut runtime) => {
                URING.set(false);
                runtime.block_on(main)
            }
        }
    }
}

fn epoll() -> io::Result<Ring> {
    let runtime = RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?;
    Ok(Ring::Epoll(runtime))
}

fn uring() -> io::Result<Ring> {
    let mut single = io_uring::IoUring::builder();
    single.setup_single_issuer().setup_coop_taskrun();
    let mut cooperative = io_uring::IoUring::builder();
    cooperative.setup_coop_taskrun();
    let plain = io_uring::IoUring::builder();
    let ladder = [
        (single, "io_uring single_issuer+coop_taskrun"),
        (cooperative, "io_uring coop_taskrun"),
        (plain, "io_uring"),
    ];
    let mut refused = io::Error::from(io::ErrorKind::Unsupported);
    for (mut builder, name) in ladder {
        builder.setup_cqsize(COMPLETIONS);
        let runtime = RuntimeBuilder::<IoUringDriver>::new()
            .with_entries(SUBMISSIONS)
            .uring_builder(builder)
            .enable_timer()
            .build();
        match runtime {
            Ok(runtime) => return Ok(Ring::Uring(runtime, name)),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// Whether this kernel and its policy let a process use io_uring; the error says what they answered.
///
/// # Errors
/// What the kernel said to a plain ring.
pub fn probe_io_uring() -> io::Result<&'static str> {
    std::thread::spawn(|| uring().map(|ring| ring.name()))
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the probe thread failed")))
}

/// Starts a task on this shard. A panic inside it ends the task alone and calls `failed` with what was thrown.
pub(crate) fn spawn<F, P>(task: F, failed: P)
where
    F: Future<Output = ()> + 'static,
    P: FnOnce(Box<dyn Any + Send>) + 'static,
{
    monoio::spawn(Guarded { task, failed: Some(failed) });
}

pin_project! {
    /// A task whose panics are told. It holds the task itself: a task is one allocation, the runtime's.
    struct Guarded<F, P> {
        #[pin]
        task: F,
        failed: Option<P>,
    }
}

impl<F, P> Future for Guarded<F, P>
where
    F: Future<Output = ()>,
    P: FnOnce(Box<dyn Any + Send>),
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let thrown = match catch_unwind(AssertUnwindSafe(|| this.task.poll(context))) {
            Ok(poll) => return poll,
            Err(thrown) => thrown,
        };
        if let Some(failed) = this.failed.take() {
            failed(thrown);
        }
        Poll::Ready(())
    }
}

/// How many operations a task may complete in a row without having waited for one.
const TURNS_MAX: u32 = 64;

/// A task's operations in a row that completed at once.
///
/// On io_uring every operation waits for its completion, so tasks take turns by themselves. On epoll an operation that
/// is ready completes at once, and a busy task would never let go.
#[derive(Default)]
pub(crate) struct Turns {
    taken: Cell<u32>,
}

impl Turns {
    /// Runs an operation. After too many in a row that did not wait, the task waits for a timer, which alone lets the
    /// loop look for events: a task that is woken by another is run before them.
    pub(crate) fn run<F: Future>(&self, operation: F) -> Turn<'_, F> {
        Turn { operation, turns: self, pause: None, counted: is_uring() }
    }
}

pin_project! {
    /// An operation that takes its turn. Not an `async fn`: that would hold the operation several times over.
    pub(crate) struct Turn<'a, F> {
        #[pin]
        operation: F,
        turns: &'a Turns,
        pause: Option<Sleep>,
        counted: bool,
    }
}

impl<F: Future> Future for Turn<'_, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if !*this.counted {
            let taken = &this.turns.taken;
            if taken.get() >= TURNS_MAX {
                let pause = this.pause.get_or_insert_with(|| sleep(1));
                ready!(pause.as_mut().poll(context));
                *this.pause = None;
                taken.set(0);
            }
            taken.set(taken.get() + 1);
            *this.counted = true;
        }
        let poll = this.operation.poll(context);
        if poll.is_pending() {
            this.turns.taken.set(0);
        }
        poll
    }
}

/// A timer of the runtime. Its state is large and cache-aligned, and whoever waits should not be.
type Sleep = Pin<Box<monoio::time::Sleep>>;

fn sleep(ms: u64) -> Sleep {
    Box::pin(monoio::time::sleep(Duration::from_millis(ms)))
}

/// Waits at least this long.
pub(crate) async fn sleep_ms(ms: u64) {
    sleep(ms).await;
}

/// Runs `future` for at most this long; `None` when time ran out. The future must be safe to drop at any point: a
/// read or an accept is not.
pub(crate) async fn within_ms<F: Future>(ms: u64, future: F) -> Option<F::Output> {
    let (mut future, mut limit) = (pin!(future), None);
    poll_fn(|context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Some(output));
        }
        // What is ready at once needs no timer.
        let limit = limit.get_or_insert_with(|| sleep(ms));
        limit.as_mut().poll(context).map(|()| None)
    })
    .await
}

/// Milliseconds on the clock that every deadline of this process is read from.
pub fn now_ms() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// The shard's end of its mailbox's bell: a socket that other threads write a byte to.
pub(crate) struct Bell(monoio::net::UnixStream);

impl Bell {
    /// Takes the reading end of a socket pair, blocking or not as this loop wants it.
    ///
    /// # Errors
    /// When the descriptor cannot be registered.
    pub(crate) fn new(socket: std::os::unix::net::UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(!is_uring())?;
        monoio::net::UnixStream::from_std(socket).map(Self)
    }

    /// Waits until the bell has rung since the last call; `false` once nobody can ring it again.
    pub(crate) async fn rung(&mut self) -> bool {
        use monoio::io::AsyncReadRent;
        let (result, _) = self.0.read(Vec::with_capacity(64)).await;
        matches!(result, Ok(1..))
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn a_panic_ends_its_own_task_alone() {
        for kind in [RingKind::Auto, RingKind::Epoll] {
            let told = Ring::build(kind).unwrap().run(async {
                let told = Rc::new(Cell::new(0));
                let count = told.clone();
                spawn(async { panic!("on purpose") }, move |_| count.set(count.get() + 1));
                sleep_ms(1).await;
                told.get()
            });
            assert_eq!(told, 1);
        }
    }

    #[test]
    fn a_busy_task_on_epoll_lets_timers_fire() {
        let ring = Ring::build(RingKind::Epoll).unwrap();
        ring.run(async {
            let fired = Rc::new(Cell::new(false));
            let seen = fired.clone();
            let timer = async move {
                sleep_ms(1).await;
                seen.set(true);
            };
            spawn(timer, |_| ());
            let (turns, begin) = (Turns::default(), Instant::now());
            while !fired.get() && begin.elapsed() < Duration::from_secs(10) {
                turns.run(std::future::ready(())).await;
            }
            assert!(fired.get(), "the timer starved");
        });
    }

    #[test]
    fn epoll_is_had_by_name() {
        assert_eq!(Ring::build(RingKind::Epoll).unwrap().name(), "epoll");
    }
}
