//! A load and its workers. Each worker keeps one connection alive, or one operation in flight, for ever: when what it
//! does fails, it says so and begins again after a pause.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::{sleep, timeout};

use super::PAUSE;
use super::raw::Scratch;
use super::tally::Tally;

/// An operation that takes longer has failed.
pub(super) const OPERATION_MAX: Duration = Duration::from_secs(10);
/// Workers that open their first connection at the same time.
const OPENING_MAX: usize = 64;

/// What the workers of a load share.
#[derive(Debug)]
pub(super) struct Load {
    /// What they count.
    pub(super) tally: Tally,
    /// For bulk.
    pub(super) scratch: Scratch,
    targets: Vec<SocketAddr>,
    /// Which workers have carried something.
    carried: RefCell<Vec<bool>>,
    /// How many have not.
    left: Cell<usize>,
    /// Connections that have carried something and are open.
    open: Cell<usize>,
    news: Notify,
    gate: Semaphore,
}

impl Load {
    /// A load with so many workers; targets take turns.
    pub(super) fn new(targets: Vec<SocketAddr>, workers: usize) -> Self {
        Self {
            tally: Tally::default(),
            scratch: Scratch::default(),
            targets,
            carried: RefCell::new(vec![false; workers]),
            left: Cell::new(workers),
            open: Cell::new(0),
            news: Notify::new(),
            gate: Semaphore::new(OPENING_MAX),
        }
    }

    /// Connections that have carried something and are open.
    pub(super) fn open(&self) -> usize {
        self.open.get()
    }

    /// Waits until every worker has carried something; why not, if it takes longer than `limit`.
    pub(super) async fn ready(&self, limit: Duration) -> Result<(), String> {
        let all = async {
            while self.left.get() > 0 {
                self.news.notified().await;
            }
        };
        timeout(limit, all).await.map_err(|_| {
            let carried = self.carried.borrow();
            let late = carried.iter().position(|carried| !carried).unwrap_or(0);
            let target = self.target(late);
            let error = self.tally.first_error().unwrap_or_else(|| "nothing has failed yet".into());
            let (open, all) = (carried.len() - self.left.get(), carried.len());
            format!("{target}: {open} of {all} connections are ready after {limit:?}; first error: {error}")
        })
    }

    fn target(&self, index: usize) -> SocketAddr {
        self.targets[index % self.targets.len()]
    }
}

/// One of the workers.
#[derive(Debug)]
pub(super) struct Worker {
    /// What it shares with the others.
    pub(super) load: Rc<Load>,
    /// Where it connects.
    pub(super) target: SocketAddr,
    index: usize,
    is_open: Cell<bool>,
}

impl Worker {
    /// All workers of a load.
    pub(super) fn all(load: &Rc<Load>) -> impl Iterator<Item = Self> {
        let workers = load.carried.borrow().len();
        (0..workers).map(|index| {
            let (load, target) = (Rc::clone(load), load.target(index));
            Self { load, target, index, is_open: Cell::new(false) }
        })
    }

    /// Does one thing after the other, without an end. Until its first connection has carried something the worker
    /// holds one of the few places for those that open.
    pub(super) async fn keep(&self, live: impl AsyncFn(&Self, Opening<'_>) -> io::Result<()>) {
        loop {
            let permit = if self.is_first() { self.load.gate.acquire().await.ok() } else { None };
            let result = live(self, Opening { worker: self, _permit: permit }).await;
            if self.is_open.take() {
                self.load.open.set(self.load.open.get() - 1);
            }
            if let Err(error) = result {
                self.load.tally.failed(&format!("{}: {error}", self.target));
                sleep(PAUSE).await;
            }
        }
    }

    /// Whether none of its connections has ever carried anything.
    fn is_first(&self) -> bool {
        !self.load.carried.borrow()[self.index]
    }

    /// Connects, within [`OPERATION_MAX`].
    pub(super) async fn connect(&self) -> io::Result<TcpStream> {
        connect(self.target).await
    }
}

/// Stands for a connection that has carried nothing yet.
#[derive(Debug)]
pub(super) struct Opening<'a> {
    worker: &'a Worker,
    // Its place among those that open; never read.
    _permit: Option<SemaphorePermit<'a>>,
}

impl Opening<'_> {
    /// Whether no connection of the worker has ever carried anything.
    pub(super) fn is_first(&self) -> bool {
        self.worker.is_first()
    }

    /// The connection has carried something.
    pub(super) fn carried(self) {
        let (worker, load) = (self.worker, &self.worker.load);
        if !worker.is_open.replace(true) {
            load.open.set(load.open.get() + 1);
        }
        if self.is_first() {
            load.carried.borrow_mut()[worker.index] = true;
            load.left.set(load.left.get() - 1);
            load.news.notify_one();
        }
    }
}

/// Connects, within [`OPERATION_MAX`].
pub(super) async fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = within(TcpStream::connect(target)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Bounds an operation by [`OPERATION_MAX`].
pub(super) async fn within<T>(operation: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("not done within {OPERATION_MAX:?}"));
    timeout(OPERATION_MAX, operation).await.unwrap_or_else(|_| Err(late()))
}

/// The peer has closed where it had something to say.
pub(super) fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the peer")
}
