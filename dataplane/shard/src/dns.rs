//! DNS of a shard: the listeners of captured pods, the way to the node's servers, and hosts that connections lead to.
//!
//! [`udp`] and [`tcp`] take queries, [`query`] decides on each, [`upstream`] carries an exchange with the servers, from
//! the pod's own namespace. Everything is bounded: queries on their way for each pod and for the shard, connections
//! for each pod, answers in the cache. What is beyond a bound is answered with SERVFAIL, or refused, and counted.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use halo_core::counters::Counters;
use halo_core::dns::answer::{ADDRESSES_MAX, shuffle};
use halo_core::dns::cache::Cache;
use halo_core::dns::exchange::Failed;
use halo_core::dns::message::{Message, Question, RData, RecordType};
use halo_core::dns::{self, DNS_PORT, names};
use halo_core::net::HostTarget;
use halo_core::outcome::Reason;

use crate::netns::Place;
use crate::pod::Pod;
use crate::ring;
use crate::socket::{Closer, SocketOptions};
use crate::timer::Timers;
use crate::wake::{Broadcast, Finally, both};
use series::Series;

mod query;
mod series;
mod tcp;
mod udp;
mod upstream;

pub(crate) use query::open;

/// Queries of one pod that may be on their way at once.
const PENDING_PER_POD_MAX: usize = 512;
/// Queries of all pods that may be on their way at once. Each may hold a socket.
const PENDING_MAX: usize = 2_048;
/// DNS connections of one pod.
const CONNECTIONS_PER_POD_MAX: usize = 128;
/// Largest message that is taken from a client, and largest datagram from a server.
const MESSAGE_MAX: usize = 4_096;

/// How a shard does DNS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsConfig {
    /// Whether pods' DNS is captured. Hosts that connections lead to are looked up in any case.
    pub capture: bool,
    /// Where captured queries come in, inside each pod. An address that a pod does not have is left out.
    pub listen: Vec<SocketAddr>,
    /// The servers, in the order in which they are asked. Pods' network namespaces must have a way to them.
    pub servers: Arc<[SocketAddr]>,
}

impl Default for DnsConfig {
    fn default() -> Self {
        let listen = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
        let listen = listen.map(|ip| SocketAddr::new(ip, DNS_PORT)).into();
        Self { capture: false, listen, servers: Arc::new([]) }
    }
}

/// What one pod has of DNS on this shard.
#[derive(Default)]
pub(crate) struct PodDns {
    /// Queries on their way.
    pending: Cell<usize>,
    /// Open connections of clients.
    connections: Cell<usize>,
    /// Sockets that end with the pod.
    sockets: RefCell<BTreeMap<u64, Closer>>,
    next_id: Cell<u64>,
    /// The pod takes no more queries, or is gone.
    stopped: Broadcast,
    /// Lookups of hosts, by host.
    hosts: RefCell<BTreeMap<Arc<str>, u64>>,
}

impl PodDns {
    /// Wakes what listens, so that it sees that the pod is stopped.
    pub(crate) fn stop(&self) {
        self.stopped.notify();
    }

    /// Cuts what is open.
    pub(crate) fn cut(&self) {
        self.stopped.notify();
        for socket in self.sockets.take().into_values() {
            socket.abort();
        }
    }

    /// How often each host was looked up.
    pub(crate) fn hosts(&self) -> Vec<(Arc<str>, u64)> {
        self.hosts.borrow().iter().map(|(host, count)| (host.clone(), *count)).collect()
    }

    /// Has a socket end with the pod, until the guard is dropped.
    fn hold(&self, socket: Closer) -> Finally<impl FnMut()> {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        self.sockets.borrow_mut().insert(id, socket);
        Finally(move || drop(self.sockets.borrow_mut().remove(&id)))
    }
}

/// Hosts of one pod whose lookups are counted apart.
const HOSTS_PER_POD_MAX: usize = 1_024;

/// DNS as all pods of a shard share it.
pub(crate) struct Dns {
    pub(crate) config: DnsConfig,
    pub(crate) series: Series,
    ipv6: bool,
    place: Rc<Place>,
    sockets: SocketOptions,
    timers: Rc<Timers>,
    counters: Arc<Counters>,
    cache: RefCell<Cache>,
    /// Questions that servers have been asked for a pod, so that each is asked once at a time.
    flights: RefCell<HashMap<Asked, Rc<Flight>>>,
    pending: Cell<usize>,
    buffer: RefCell<Vec<u8>>,
}

/// For which pod something is asked, and what.
type Asked = (Arc<str>, Question);

/// A question on its way, and all who wait for its answer.
#[derive(Default)]
struct Flight {
    over: Cell<bool>,
    answer: RefCell<Option<Result<Message, Failed>>>,
    ended: Broadcast,
}

/// What [`Dns`] is made of.
pub(crate) struct Parts {
    pub(crate) config: DnsConfig,
    pub(crate) place: Rc<Place>,
    pub(crate) sockets: SocketOptions,
    pub(crate) timers: Rc<Timers>,
    pub(crate) counters: Arc<Counters>,
}

impl Dns {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { config, place, sockets, timers, counters } = parts;
        Self {
            config,
            series: Series::default(),
            ipv6: sockets.ipv6,
            place,
            sockets,
            timers,
            counters,
            cache: RefCell::default(),
            flights: RefCell::default(),
            pending: Cell::default(),
            buffer: RefCell::new(vec![0; MESSAGE_MAX]),
        }
    }

    /// The addresses of a host, from the node's servers, in the order in which they are to be tried: the preferred family
    /// first, and each family in a random order.
    ///
    /// # Errors
    /// [`Reason::HostUnresolved`]: there is none of a family that may be used, or nobody said so in time.
    pub(crate) async fn lookup(&self, pod: &Pod, host: &HostTarget) -> Result<Vec<IpAddr>, Reason> {
        self.counters.host_lookups.increment();
        self.count_host(pod, &host.hostname);
        let (ipv4, ipv6) = (host.ipv4, host.ipv6 && self.ipv6);
        let found = match host.hostname.parse::<IpAddr>() {
            Ok(ip) => vec![ip],
            Err(_) => {
                let (ipv4, ipv6) = both(
                    self.addresses(pod, host, RecordType::A, ipv4),
                    self.addresses(pod, host, RecordType::AAAA, ipv6),
                )
                .await;
                let (mut first, second) = if host.ipv6_first { (ipv6, ipv4) } else { (ipv4, ipv6) };
                first.extend(second);
                first
            }
        };
        let found: Vec<_> = found.into_iter().filter(|ip| if ip.is_ipv4() { ipv4 } else { ipv6 }).collect();
        if pod.is_gone() {
            return Err(Reason::WorkloadGone);
        }
        if found.is_empty() {
            self.counters.host_lookups_failed.increment();
            return Err(Reason::HostUnresolved);
        }
        Ok(found)
    }

    fn count_host(&self, pod: &Pod, host: &Arc<str>) {
        let mut hosts = pod.dns.hosts.borrow_mut();
        if let Some(count) = hosts.get_mut(host) {
            *count += 1;
        } else if hosts.len() < HOSTS_PER_POD_MAX {
            hosts.insert(host.clone(), 1);
        }
    }

    /// The addresses of one family, in a random order; none where it may not be used.
    async fn addresses(
        &self,
        pod: &Pod,
        host: &HostTarget,
        family: RecordType,
        allowed: bool,
    ) -> Vec<IpAddr> {
        let name = names::fully_qualified(&host.hostname).filter(|_| allowed);
        let (Some(name), Some(_seat)) = (name, self.seat(pod)) else {
            return Vec::new();
        };
        let Ok(message) = self.ask(pod, &Question::new(name, family)).await else {
            return Vec::new();
        };
        let addresses = message.answers.iter().filter_map(|record| match &record.data {
            RData::A(ip) if family == RecordType::A => Some(IpAddr::V4(ip.0)),
            RData::AAAA(ip) if family == RecordType::AAAA => Some(IpAddr::V6(ip.0)),
            _ => None,
        });
        let mut addresses: Vec<_> = addresses.take(ADDRESSES_MAX).collect();
        shuffle(&mut addresses, random().unwrap_or_default());
        addresses
    }

    /// What servers said of a question a moment ago.
    fn cached(&self, question: &Question) -> Option<Message> {
        let found = self.cache.borrow().get(question, ring::now_ms());
        if found.is_some() {
            self.counters.dns_cached.increment();
        }
        found
    }

    /// What the servers say to a question of a pod.
    async fn ask(&self, pod: &Pod, question: &Question) -> Result<Message, Failed> {
        if let Some(message) = self.cached(question) {
            return Ok(message);
        }
        let key = (pod.uid.clone(), question.clone());
        let flying = self.flights.borrow().get(&key).cloned();
        if let Some(flight) = flying {
            while !flight.over.get() {
                flight.ended.next().await;
            }
            return flight.answer.borrow().clone().unwrap_or(Err(Failed::NoAnswer));
        }
        let flight = Rc::new(Flight::default());
        self.flights.borrow_mut().insert(key.clone(), flight.clone());
        // Also when the exchange fails in its middle: nobody waits for what does not come.
        let _landing = Finally(|| {
            self.flights.borrow_mut().remove(&key);
            flight.over.set(true);
            flight.ended.notify();
        });
        self.counters.dns_forwarded.increment();
        let answer = upstream::exchange(self, pod, question).await;
        match &answer {
            Ok(message) => self.cache.borrow_mut().insert(question, message, ring::now_ms()),
            Err(_) => self.counters.dns_unanswered.increment(),
        }
        flight.answer.replace(Some(answer.clone()));
        answer
    }

    /// A place among the queries on their way; `None` where there are too many.
    fn seat<'a>(&'a self, pod: &'a Pod) -> Option<Seat<'a>> {
        if pod.dns.pending.get() >= PENDING_PER_POD_MAX || self.pending.get() >= PENDING_MAX {
            self.counters.dns_shed.increment();
            return None;
        }
        pod.dns.pending.set(pod.dns.pending.get() + 1);
        self.pending.set(self.pending.get() + 1);
        Some(Seat { dns: self, pod })
    }
}

/// A place among the queries on their way; dropping it gives the place back.
struct Seat<'a> {
    dns: &'a Dns,
    pod: &'a Pod,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        for pending in [&self.dns.pending, &self.pod.dns.pending] {
            pending.set(pending.get() - 1);
        }
    }
}

/// A number that nobody can predict; `None` where the system has none, which a running one always has.
fn random() -> Option<u64> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).ok()?;
    Some(u64::from_ne_bytes(bytes))
}

const _: () = assert!(PENDING_PER_POD_MAX < PENDING_MAX && dns::DEADLINE_MS >= 1_000);

#[cfg(test)]
mod tests;
