//! DNS of a shard: the listeners of captured pods, the way to the node's servers, and hosts that connections lead to.
//!
//! [`udp`] and [`tcp`] take queries, [`query`] decides on each, [`upstream`] carries an exchange with the servers, from
//! the pod's own namespace, and [`pod`] holds what a pod has of all this. Everything is bounded: queries and lookups on
//! their way and answers in caches, for each pod and for the shard; connections for each pod. What is beyond a bound is
//! answered with SERVFAIL, or refused, and counted.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use halo_core::counters::Counters;
use halo_core::dns::answer::{ADDRESSES_MAX, shuffle};
use halo_core::dns::exchange::Failed;
use halo_core::dns::message::{Message, Question, RData, RecordType};
use halo_core::dns::{DNS_PORT, names};
use halo_core::net::HostTarget;
use halo_core::outcome::Reason;

use crate::netns::Place;
use crate::pod::Pod;
use crate::socket::SocketOptions;
use crate::timer::Timers;
use crate::wake::both;
use pod::{Places, Seat};
use series::Series;

mod pod;
mod query;
mod series;
mod tcp;
mod udp;
mod upstream;

pub(crate) use pod::{Common, PodDns};
pub(crate) use query::open;

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

/// DNS as all pods of a shard share it.
pub(crate) struct Dns {
    pub(crate) config: DnsConfig,
    pub(crate) series: Series,
    ipv6: bool,
    place: Rc<Place>,
    sockets: SocketOptions,
    timers: Rc<Timers>,
    counters: Arc<Counters>,
    pub(crate) common: Common,
    buffer: RefCell<Vec<u8>>,
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
            common: Common::default(),
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
        pod.dns.count_host(&host.hostname);
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

    /// The addresses of one family, in a random order; none where it may not be used.
    async fn addresses(
        &self,
        pod: &Pod,
        host: &HostTarget,
        family: RecordType,
        allowed: bool,
    ) -> Vec<IpAddr> {
        let name = names::fully_qualified(&host.hostname).filter(|_| allowed);
        let Some(question) = name.map(|name| Question::new(name, family)) else { return Vec::new() };
        let answer = match self.known(pod, &question).await {
            Some(known) => known,
            // Those who wait for an answer are bounded by the pod's connections; those who ask hold a socket.
            None => match self.seat(&pod.dns.lookups) {
                Some(_seat) => self.fly(pod, &question).await,
                None => Err(Failed::NoAnswer),
            },
        };
        let Ok(message) = answer else { return Vec::new() };
        let addresses = message.answers.iter().filter_map(|record| match &record.data {
            RData::A(ip) if family == RecordType::A => Some(IpAddr::V4(ip.0)),
            RData::AAAA(ip) if family == RecordType::AAAA => Some(IpAddr::V6(ip.0)),
            _ => None,
        });
        let mut addresses: Vec<_> = addresses.take(ADDRESSES_MAX).collect();
        shuffle(&mut addresses, random().unwrap_or_default());
        addresses
    }

    /// What servers said to a question of this pod a moment ago.
    fn cached(&self, pod: &Pod, question: &Question) -> Option<Message> {
        let found = pod.dns.cached(question);
        if found.is_some() {
            self.counters.dns_cached.increment();
        }
        found
    }

    /// What the servers say to a question of a pod, which holds a place for it.
    async fn ask(&self, pod: &Pod, question: &Question) -> Result<Message, Failed> {
        match self.known(pod, question).await {
            Some(known) => known,
            None => self.fly(pod, question).await,
        }
    }

    /// What the pod was told a moment ago, or is told of the same question on its way; `None` at once where neither is.
    async fn known(&self, pod: &Pod, question: &Question) -> Option<Result<Message, Failed>> {
        match self.cached(pod, question) {
            Some(message) => Some(Ok(message)),
            None => pod.dns.join(question).await,
        }
    }

    async fn fly(&self, pod: &Pod, question: &Question) -> Result<Message, Failed> {
        self.counters.dns_forwarded.increment();
        let answer = pod.dns.fly(pod, question, upstream::exchange(self, pod, question)).await;
        if answer.is_err() {
            self.counters.dns_unanswered.increment();
        }
        answer
    }

    /// One of these places; `None` where there are none left for the pod.
    fn seat<'a>(&self, places: &'a Places) -> Option<Seat<'a>> {
        let seat = places.take();
        if seat.is_none() {
            self.counters.dns_shed.increment();
        }
        seat
    }
}

/// A number that nobody can predict; `None` where the system has none, which a running one always has.
fn random() -> Option<u64> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).ok()?;
    Some(u64::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests;
