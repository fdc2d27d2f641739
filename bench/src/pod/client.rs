//! The client of a pod: follows orders.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;

use super::load::{Load, Opening, Worker};
use super::pace::{Dues, Pacer};
use super::{Answer, Measured, Order, Work, requests, streams};
use crate::model::Way;

/// A load whose connections are not ready by then has failed.
const PREPARE_MAX: Duration = Duration::from_secs(30);

/// Visits begin no later than this, so that they end before nobody waits for their answer any more.
const VISIT_MAX: Duration = Duration::from_secs(25);

/// Follows one order after the other.
#[derive(Debug)]
pub(super) struct Client {
    prepared: Option<Prepared>,
    prepare_max: Duration,
}

/// A load that runs, until it is dropped.
#[derive(Debug)]
struct Prepared {
    load: Rc<Load>,
    tasks: JoinSet<()>,
    plan: Rc<Plan>,
}

/// What the workers do.
#[derive(Debug)]
enum Plan {
    Bulk(Way),
    ClosedLoop { length: usize },
    OpenLoop { length: usize, pacer: Pacer, dues: Dues },
    Connects,
    Idle,
    Visit(Vec<SocketAddr>),
}

impl Default for Client {
    fn default() -> Self {
        Self::new(PREPARE_MAX)
    }
}

impl Client {
    /// A client whose loads must be ready within `prepare_max`.
    pub(super) fn new(prepare_max: Duration) -> Self {
        Self { prepared: None, prepare_max }
    }

    /// Follows an order. A load that cannot be prepared is ended.
    pub(super) async fn follow(&mut self, order: Order) -> Answer {
        let done = match order {
            Order::Prepare(work) => self.prepare(work).await.map(|()| Answer::Ready),
            Order::Measure(seconds) => self.measure(seconds).await.map(Answer::Measured),
            Order::Finish => {
                self.finish().await;
                Ok(Answer::Ready)
            }
        };
        done.unwrap_or_else(Answer::Failed)
    }

    async fn prepare(&mut self, work: Work) -> Result<(), String> {
        self.finish().await;
        let (targets, workers, plan) = plan(work).map_err(|error| error.to_string())?;
        if workers > 0 && targets.is_empty() {
            return Err("connections without a target".into());
        }
        let (load, plan) = (Rc::new(Load::new(targets, workers)), Rc::new(plan));
        let mut tasks = JoinSet::new();
        for worker in Worker::all(&load) {
            let plan = Rc::clone(&plan);
            tasks.spawn_local(async move {
                worker.keep(async |worker, opening| plan.live(worker, opening).await).await;
            });
        }
        let prepared = self.prepared.insert(Prepared { load, tasks, plan });
        if let Err(error) = prepared.load.ready(self.prepare_max).await {
            self.finish().await;
            return Err(error);
        }
        prepared.start_pacer();
        Ok(())
    }

    async fn measure(&mut self, seconds: f64) -> Result<Measured, String> {
        let prepared = self.prepared.as_ref().ok_or("nothing is prepared")?;
        let length = Duration::try_from_secs_f64(seconds).map_err(|error| format!("{seconds} s: {error}"))?;
        let Prepared { load, plan, .. } = prepared;
        load.tally.begin().map_err(|error| error.to_string())?;
        match &**plan {
            Plan::Visit(targets) => streams::visit(targets, VISIT_MAX, &load.tally).await,
            _ => sleep(length).await,
        }
        let measured = load.tally.end();
        let operations = if let Plan::Idle = **plan { load.open() as u64 } else { measured.operations };
        Ok(Measured { operations, ..measured })
    }

    /// Ends the load: every connection is closed when this returns.
    async fn finish(&mut self) {
        if let Some(mut prepared) = self.prepared.take() {
            prepared.tasks.shutdown().await;
        }
    }
}

impl Prepared {
    /// From here on requests are due, in an open loop.
    fn start_pacer(&mut self) {
        let (load, plan) = (Rc::clone(&self.load), Rc::clone(&self.plan));
        if let Plan::OpenLoop { .. } = *plan {
            self.tasks.spawn_local(async move {
                let Plan::OpenLoop { pacer, dues, .. } = &*plan else { return };
                if let Err(error) = pacer.run(dues, &load.tally).await {
                    load.tally.failed(&format!("the timer: {error}"));
                }
            });
        }
    }
}

impl Plan {
    /// The life of one connection.
    async fn live(&self, worker: &Worker, opening: Opening<'_>) -> io::Result<()> {
        match self {
            Self::Bulk(Way::Up) => streams::up(worker, opening).await,
            Self::Bulk(Way::Down) => streams::down(worker, opening).await,
            Self::ClosedLoop { length } => requests::closed_loop(worker, opening, *length).await,
            Self::OpenLoop { length, dues, .. } => requests::open_loop(worker, opening, *length, dues).await,
            Self::Connects => streams::touch(worker, opening).await,
            Self::Idle => streams::idle(worker, opening).await,
            Self::Visit(_) => Ok(()),
        }
    }
}

/// Targets, workers and what they do. Preparing a visit opens nothing, so nobody works.
fn plan(work: Work) -> io::Result<(Vec<SocketAddr>, usize, Plan)> {
    Ok(match work {
        Work::Bulk { targets, way, streams } => (targets, streams, Plan::Bulk(way)),
        Work::Requests { targets, bytes, connections, per_second: None } => {
            (targets, connections, Plan::ClosedLoop { length: bytes })
        }
        Work::Requests { targets, bytes, connections, per_second: Some(per_second) } => {
            let (pacer, dues) = (Pacer::new(per_second)?, Dues::default());
            (targets, connections, Plan::OpenLoop { length: bytes, pacer, dues })
        }
        Work::Connects { targets, concurrency } => (targets, concurrency, Plan::Connects),
        Work::Visit { targets } => (Vec::new(), 0, Plan::Visit(targets)),
        Work::Idle { targets, connections } => (targets, connections, Plan::Idle),
    })
}
