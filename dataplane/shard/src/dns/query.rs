//! One query of a pod: who answers it, and with what.
//!
//! What the mesh or the cache knows is answered at once; what servers have to say is awaited by a task of its own, so
//! that a slow server, or a defect, costs the one query alone.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Instant;

use halo_core::dns::answer::{Answer, Client, answer};
use halo_core::dns::message::{Protocol, Query, Question, Record, Refused, Reply, ResponseCode};
use halo_core::net::Listeners;
use halo_core::outcome::Reason;
use halo_core::workload::Workload;

use super::series::Labels;
use super::{tcp, udp};
use crate::demand::Missing;
use crate::mailbox::BindError;
use crate::pod::Pod;
use crate::shard::Shard;
use crate::socket::{Datagrams, Listener, no_ipv6};

/// Opens a pod's DNS listeners, if its DNS is captured.
///
/// # Errors
/// The step that failed.
pub(crate) fn open(shard: &Rc<Shard>, pod: &Rc<Pod>, listeners: Listeners) -> Result<(), BindError> {
    let config = &shard.dns.config;
    if !config.capture || listeners == Listeners::Own {
        return Ok(());
    }
    let mut bound = Vec::with_capacity(config.listen.len());
    for address in config.listen.iter().filter(|address| address.is_ipv4() || shard.ipv6) {
        match bind(shard, pod, *address) {
            Ok(pair) => bound.push(pair),
            // A namespace whose loopback interface has no IPv6.
            Err(error) if address.is_ipv6() && no_ipv6(&error) => {}
            Err(error) => {
                let cause = format!("{address}: {error}");
                return Err(BindError { step: "bind a DNS listener", cause });
            }
        }
    }
    for (datagrams, listener) in bound {
        pod.stops(listener.stop_handle());
        shard.spawn(udp::run(shard.clone(), pod.clone(), Rc::new(datagrams)));
        shard.spawn(tcp::run(shard.clone(), pod.clone(), listener));
    }
    Ok(())
}

fn bind(shard: &Shard, pod: &Pod, address: SocketAddr) -> std::io::Result<(Datagrams, Rc<Listener>)> {
    let datagrams = Datagrams::bind(&shard.place, &pod.netns, address, &shard.sockets)?;
    let listener = Listener::bind_to(&shard.place, &pod.netns, address, &shard.sockets)?;
    Ok((datagrams, Rc::new(listener)))
}

/// Where a reply goes.
pub(super) trait Sink: 'static {
    /// How it goes there.
    fn protocol(&self) -> Protocol;
    /// Sends a reply.
    fn send(&self, bytes: Vec<u8>);
}

/// Answers a message of a pod's, now or later. Nothing that is in it ends the listener.
pub(super) fn take(shard: &Rc<Shard>, pod: &Rc<Pod>, bytes: &[u8], sink: impl Sink) {
    let taken = catch_unwind(AssertUnwindSafe(|| take_query(shard, pod, bytes, sink)));
    if taken.is_err() {
        shard.counters.closed(Reason::Defect);
    }
}

fn take_query(shard: &Rc<Shard>, pod: &Rc<Pod>, bytes: &[u8], sink: impl Sink) {
    shard.counters.dns_queries.increment();
    let query = match Query::read(bytes) {
        Ok(query) => query,
        Err(Refused::With(bytes)) => return sink.send(bytes),
        Err(Refused::Silently) => return,
    };
    let known = at_once(shard, pod, &query, sink.protocol());
    if let Some(reply) = known {
        return send(reply, &query, &sink);
    }
    let (shard, pod) = (shard.clone(), pod.clone());
    let task = {
        let shard = shard.clone();
        async move {
            let reply = match shard.dns.seat(&pod.dns.queries) {
                Some(_seat) => in_time(&shard, &pod, &query, sink.protocol()).await,
                None => Reply::empty(ResponseCode::ServFail),
            };
            send(reply, &query, &sink);
        }
    };
    shard.spawn(task);
}

fn send(reply: Reply, query: &Query, sink: &impl Sink) {
    if let Some(bytes) = reply.write(query, sink.protocol()) {
        sink.send(bytes);
    }
}

/// What has to be asked of the servers.
struct Wanted {
    question: Question,
    /// What goes before their answer.
    before: Vec<Record>,
}

/// What the mesh says to a query of a workload, or what is wanted of the servers.
fn decide(shard: &Shard, pod: &Pod, workload: &Workload, query: &Query) -> Result<Reply, Wanted> {
    let client = Client { workload, search: pod.dns_search.as_deref(), ipv6: shard.ipv6 };
    match answer(&shard.snapshot(), &client, &query.question, shard.random()) {
        Answer::Own { answers, additionals } => Ok(Reply::own(answers, additionals)),
        Answer::Forward => Err(Wanted { question: query.question.clone(), before: Vec::new() }),
        Answer::Alias { answers, target } => {
            let question = Question { name: target, ..query.question.clone() };
            Err(Wanted { question, before: answers })
        }
    }
}

/// The reply that needs no waiting, if there is one.
fn at_once(shard: &Shard, pod: &Pod, query: &Query, protocol: Protocol) -> Option<Reply> {
    let snapshot = shard.snapshot();
    let workload = shard.workload_of(&snapshot, pod)?;
    let labels = || Labels::new(query.question.record_type, protocol, Some(workload));
    match decide(shard, pod, workload, query) {
        Ok(reply) => {
            shard.dns.series.requested(&labels());
            Some(reply)
        }
        Err(wanted) => {
            let message = shard.dns.cached(pod, &wanted.question)?;
            let labels = labels();
            shard.dns.series.requested(&labels);
            shard.dns.series.forwarded(&labels, 0.0, false);
            Some(after(wanted.before, Reply::forwarded(message, &wanted.question)))
        }
    }
}

/// The reply, once the mesh knows the pod and the servers have answered.
async fn in_time(shard: &Rc<Shard>, pod: &Rc<Pod>, query: &Query, protocol: Protocol) -> Reply {
    let workload = shard.wait_for(pod, |snapshot| {
        shard.workload_of(snapshot, pod).cloned().ok_or(Missing::from(Reason::SourceUnknown))
    });
    let workload = workload.await.ok();
    let labels = Labels::new(query.question.record_type, protocol, workload.as_deref());
    shard.dns.series.requested(&labels);
    let Some(workload) = workload else {
        return Reply::empty(ResponseCode::ServFail);
    };
    let wanted = match decide(shard, pod, &workload, query) {
        Ok(reply) => return reply,
        Err(wanted) => wanted,
    };
    let begin = Instant::now();
    let answer = shard.dns.ask(pod, &wanted.question).await;
    shard.dns.series.forwarded(&labels, begin.elapsed().as_secs_f64(), answer.is_err());
    match answer {
        Ok(message) => after(wanted.before, Reply::forwarded(message, &wanted.question)),
        Err(_) => Reply::empty(ResponseCode::ServFail),
    }
}

/// A reply of the servers behind records of our own.
fn after(mut before: Vec<Record>, mut reply: Reply) -> Reply {
    if !before.is_empty() {
        before.append(&mut reply.answers);
        reply.answers = before;
    }
    reply
}
