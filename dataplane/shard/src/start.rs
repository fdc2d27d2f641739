//! Starts a shard's thread: pins it, builds its ring, runs its mailbox.

use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread;

use halo_core::counters::Counters;
use halo_core::limits::Limits;
use halo_core::options::Options;

use crate::access::{AccessLog, AccessOutput};
use crate::demand::{Ask, Demand};
use crate::dns::DnsConfig;
use crate::mailbox::{Inbox, Mailbox, Message, mailbox};
use crate::netns::Place;
use crate::pool;
use crate::ring::{self, Bell, Ring, RingKind};
use crate::shard::{Parts, Shard};
use crate::telemetry::{self, Telemetry};
use crate::tls::RecordsKind;
use crate::wake::Finally;

/// How to start a shard.
#[derive(Clone)]
pub struct ShardConfig {
    /// Its number, from 0.
    pub index: usize,
    /// The core to pin its thread to; `None` leaves that to the kernel.
    pub core: Option<usize>,
    /// Its bounds.
    pub limits: Limits,
    /// Which record layer its tunnels use.
    pub records: RecordsKind,
    /// Whether its listeners take IPv6 beside IPv4.
    pub ipv6: bool,
    /// How its connections are made.
    pub options: Options,
    /// Which kernel interface it uses.
    pub ring: RingKind,
    /// Where its access lines go.
    pub access: AccessOutput,
    /// How long series of workloads that are gone are shown after their last use, ms.
    pub series_expiry_ms: u64,
    /// How it asks for what connections wait for.
    pub ask: Ask,
    /// How it does DNS.
    pub dns: DnsConfig,
}

impl fmt::Debug for ShardConfig {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ShardConfig")
            .field("index", &self.index)
            .field("core", &self.core)
            .field("limits", &self.limits)
            .field("records", &self.records)
            .field("ipv6", &self.ipv6)
            .field("options", &self.options)
            .field("ring", &self.ring)
            .field("dns", &self.dns)
            .finish_non_exhaustive()
    }
}

/// Why a shard did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The thread, its mailbox or its namespace handle could not be made.
    #[error("shard {shard}: {step}: {error}")]
    Thread {
        /// The shard's number.
        shard: usize,
        /// What was being done.
        step: &'static str,
        /// What the operating system said.
        error: io::Error,
    },
    /// Neither io_uring nor epoll, as far as allowed, can be had.
    #[error(
        "shard {shard}: no io_uring: {error}; allow it (sysctl kernel.io_uring_disabled=0, and the container's seccomp profile), or set HALO_RING=epoll"
    )]
    Ring {
        /// The shard's number.
        shard: usize,
        /// What the kernel said.
        error: io::Error,
    },
}

/// Starts a shard and returns its mailbox and counters once its ring runs. The thread ends with the process: a ring
/// is never dropped while operations are in flight.
///
/// # Errors
/// [`StartError`]; nothing is left running.
pub fn start(config: ShardConfig) -> Result<(Mailbox, Arc<Counters>), StartError> {
    let shard = config.index;
    let thread = |step| move |error| StartError::Thread { shard, step, error };
    let (mailbox, inbox) = mailbox().map_err(thread("make the mailbox"))?;
    let counters = Arc::new(Counters::default());
    let (started, answer) = mpsc::sync_channel(1);
    let theirs = counters.clone();
    thread::Builder::new()
        .name(format!("shard-{shard}"))
        .spawn(move || run(config, theirs, inbox, &started))
        .map_err(thread("start the thread"))?;
    match answer.recv() {
        Ok(Ok(())) => Ok((mailbox, counters)),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(thread("start the ring")(io::Error::other("the thread ended"))),
    }
}

fn run(
    config: ShardConfig,
    counters: Arc<Counters>,
    inbox: Inbox,
    started: &mpsc::SyncSender<Result<(), StartError>>,
) {
    let index = config.index;
    let core = config.core.filter(|id| core_affinity::set_for_current(core_affinity::CoreId { id: *id }));
    let ready = Ring::build(config.ring).map_err(|error| StartError::Ring { shard: index, error });
    let ready = ready.and_then(|ring| {
        let place = Place::home().map_err(|error| StartError::Thread {
            shard: index,
            step: "open its network namespace",
            error,
        })?;
        Ok((ring, place))
    });
    let (ring, place) = match ready {
        Ok(ready) => ready,
        Err(error) => {
            // The starter is waiting; if it is gone there is nobody to tell.
            let _ = started.send(Err(error));
            return;
        }
    };
    let parts = Parts {
        index,
        core,
        ring: ring.name(),
        demand: Demand::new(config.ask, counters.clone(), config.limits.lookup_ms_max),
        limits: config.limits,
        records: config.records,
        ipv6: config.ipv6,
        options: config.options,
        access: AccessLog::new(config.access, counters.clone()),
        telemetry: Telemetry::new(counters.clone(), config.series_expiry_ms),
        counters,
        place: Rc::new(place),
        dns_config: config.dns,
    };
    let _ = started.send(Ok(()));
    ring.run(serve(parts, inbox));
}

/// Reads the mailbox until every handle on it is gone, then for ever: the process ends, not the shard.
async fn serve(parts: Parts, inbox: Inbox) {
    // Without this task the process would go on with a shard that hears nothing. A ring must not be dropped while
    // operations are in flight either, so a defect here ends the process at once.
    let _whole = Finally(|| {
        if thread::panicking() {
            std::process::abort();
        }
    });
    let shard = Shard::new(parts);
    shard.spawn(shard.timers.clone().run());
    shard.spawn(pool::run(shard.clone()));
    shard.spawn(telemetry::run(shard.clone()));
    let Ok(mut bell) = Bell::new(inbox.bell) else {
        return;
    };
    while bell.rung().await {
        let mut newest = None;
        while let Ok(message) = inbox.queue.try_recv() {
            match message {
                Message::Publish(snapshot) => newest = Some(snapshot),
                other => {
                    // What was published before a question is adopted before it is answered.
                    if let Some(snapshot) = newest.take() {
                        shard.adopt(snapshot);
                    }
                    act(&shard, other);
                }
            }
        }
        if let Some(snapshot) = newest {
            shard.adopt(snapshot);
        }
    }
    loop {
        ring::sleep_ms(60_000).await;
    }
}

fn act(shard: &Rc<Shard>, message: Message) {
    match message {
        Message::Publish(snapshot) => shard.adopt(snapshot),
        Message::AddPod(spec, reply) => reply(shard.add_pod(spec)),
        Message::RemovePod(uid, reply) => {
            shard.remove_pod(&uid);
            reply(());
        }
        Message::Inspect(view, reply) => reply(shard.report(view)),
        Message::Drain(reply) => {
            let draining = shard.clone();
            shard.spawn(async move {
                draining.drain().await;
                reply(());
            });
        }
    }
}
