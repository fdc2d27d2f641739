//! What one pod has of DNS on a shard: its cache, its questions on their way, its places.
//!
//! Nothing that servers say goes from one pod to another: they are asked from within the pod's own namespace, where
//! the pod can answer in their place. It all belongs to the pod as it is now; a later one of the same uid begins anew.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use halo_core::dns::cache::Cache;
use halo_core::dns::exchange::Failed;
use halo_core::dns::message::{Message, Question};
use halo_core::dns::share::Share;

use crate::pod::Pod;
use crate::ring;
use crate::socket::Closer;
use crate::wake::{Broadcast, Finally};

/// Queries on their way.
pub(super) const QUERIES: Share = Share { own: 8, one_max: 512, common_max: 2_048 };
/// Questions on their way for hosts that connections lead to; pods' queries do not take these places.
pub(super) const LOOKUPS: Share = Share { own: 8, one_max: 128, common_max: 512 };
/// Answers in caches.
const CACHED: Share = Share { own: 32, one_max: 1_024, common_max: 4_096 };
/// Hosts of one pod whose lookups are counted apart.
const HOSTS_PER_POD_MAX: usize = 1_024;

const _: () = {
    let shares = [QUERIES, LOOKUPS, CACHED];
    let mut at = 0;
    while at < shares.len() {
        let Share { own, one_max, common_max } = shares[at];
        assert!(0 < own && own < one_max && one_max <= common_max / 2);
        at += 1;
    }
};

/// What the pods of a shard have taken of what they share.
#[derive(Default)]
pub(crate) struct Common {
    queries: Rc<Cell<usize>>,
    lookups: Rc<Cell<usize>>,
    cached: Rc<Cell<usize>>,
}

/// What one pod has of DNS on this shard.
pub(crate) struct PodDns {
    /// Queries on their way.
    pub(super) queries: Places,
    /// Questions on their way for hosts that connections lead to.
    pub(super) lookups: Places,
    /// Open connections of clients.
    pub(super) connections: Cell<usize>,
    /// Sockets that end with the pod.
    sockets: RefCell<BTreeMap<u64, Closer>>,
    next_id: Cell<u64>,
    /// The pod takes no more queries, or is gone.
    pub(super) stopped: Broadcast,
    /// Lookups of hosts, by host.
    hosts: RefCell<BTreeMap<Arc<str>, u64>>,
    cache: RefCell<Cache>,
    cached: Places,
    /// Questions that servers have been asked, so that each is asked once at a time.
    flights: RefCell<HashMap<Question, Rc<Flight>>>,
}

/// A question on its way, and all who wait for its answer.
#[derive(Default)]
struct Flight {
    over: Cell<bool>,
    answer: RefCell<Option<Result<Message, Failed>>>,
    ended: Broadcast,
}

impl PodDns {
    pub(crate) fn new(common: &Common) -> Self {
        Self {
            queries: Places::new(QUERIES, &common.queries),
            lookups: Places::new(LOOKUPS, &common.lookups),
            connections: Cell::default(),
            sockets: RefCell::default(),
            next_id: Cell::default(),
            stopped: Broadcast::default(),
            hosts: RefCell::default(),
            cache: RefCell::default(),
            cached: Places::new(CACHED, &common.cached),
            flights: RefCell::default(),
        }
    }

    /// Wakes what listens, so that it sees that the pod is stopped.
    pub(crate) fn stop(&self) {
        self.stopped.notify();
    }

    /// Cuts what is open, and forgets what servers said.
    pub(crate) fn cut(&self) {
        self.stopped.notify();
        for socket in self.sockets.take().into_values() {
            socket.abort();
        }
        self.cache.take();
        self.cached.set(0);
    }

    /// How often each host was looked up.
    pub(crate) fn hosts(&self) -> Vec<(Arc<str>, u64)> {
        self.hosts.borrow().iter().map(|(host, count)| (host.clone(), *count)).collect()
    }

    /// Counts a lookup of a host.
    pub(super) fn count_host(&self, host: &Arc<str>) {
        let mut hosts = self.hosts.borrow_mut();
        if let Some(count) = hosts.get_mut(host) {
            *count += 1;
        } else if hosts.len() < HOSTS_PER_POD_MAX {
            hosts.insert(host.clone(), 1);
        }
    }

    /// Has a socket end with the pod, until the guard is dropped.
    pub(super) fn hold(&self, socket: Closer) -> Finally<impl FnMut()> {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        self.sockets.borrow_mut().insert(id, socket);
        Finally(move || drop(self.sockets.borrow_mut().remove(&id)))
    }

    /// What servers said to the pod a moment ago.
    pub(super) fn cached(&self, question: &Question) -> Option<Message> {
        self.cache.borrow().get(question, ring::now_ms())
    }

    /// What comes of a question that is on its way; `None` at once where it is not.
    pub(super) async fn join(&self, question: &Question) -> Option<Result<Message, Failed>> {
        let flight = self.flights.borrow().get(question).cloned()?;
        while !flight.over.get() {
            flight.ended.next().await;
        }
        let answer = flight.answer.borrow().clone();
        Some(answer.unwrap_or(Err(Failed::NoAnswer)))
    }

    /// Sends a question on its way: whoever [joins](Self::join) it hears the answer too, and who comes later finds it in
    /// the cache.
    pub(super) async fn fly(
        &self,
        pod: &Pod,
        question: &Question,
        exchange: impl Future<Output = Result<Message, Failed>>,
    ) -> Result<Message, Failed> {
        let flight = Rc::new(Flight::default());
        self.flights.borrow_mut().insert(question.clone(), flight.clone());
        // Also when the exchange fails in its middle: nobody waits for what does not come.
        let _landing = Finally(|| {
            self.flights.borrow_mut().remove(question);
            flight.over.set(true);
            flight.ended.notify();
        });
        let answer = exchange.await;
        if let Ok(message) = answer.as_ref()
            && !pod.is_gone()
        {
            self.keep(question, message);
        }
        flight.answer.replace(Some(answer.clone()));
        answer
    }

    fn keep(&self, question: &Question, message: &Message) {
        let mut cache = self.cache.borrow_mut();
        let entries_max = cache.len() + usize::from(self.cached.admits());
        cache.insert(question, message, ring::now_ms(), entries_max);
        self.cached.set(cache.len());
    }
}

/// The places that one pod holds of a table that all share.
pub(super) struct Places {
    share: Share,
    held: Cell<usize>,
    common: Rc<Cell<usize>>,
}

impl Places {
    fn new(share: Share, common: &Rc<Cell<usize>>) -> Self {
        Self { share, held: Cell::new(0), common: common.clone() }
    }

    fn admits(&self) -> bool {
        self.share.admits(self.held.get(), self.common.get())
    }

    fn set(&self, held: usize) {
        let others = self.common.get() - self.share.common_of(self.held.get());
        self.held.set(held);
        self.common.set(others + self.share.common_of(held));
    }

    /// Takes one place; `None` where there is none for this pod.
    pub(super) fn take(&self) -> Option<Seat<'_>> {
        if !self.admits() {
            return None;
        }
        self.set(self.held.get() + 1);
        Some(Seat(self))
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// A place in a table; dropping it gives the place back.
pub(super) struct Seat<'a>(&'a Places);

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.held.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use halo_core::dns::message::{Name, RData, Record, RecordType};
    use hickory_proto::op::{MessageType, OpCode};
    use hickory_proto::rr::rdata::A;

    use super::*;

    fn keep_some(pod: &PodDns, count: usize) {
        for number in 0..count {
            let name = Name::from_ascii(format!("h{number}.example.")).unwrap();
            let mut message = Message::new(1, MessageType::Response, OpCode::Query);
            let data = RData::A(A(Ipv4Addr::LOCALHOST));
            message.answers = vec![Record::from_rdata(name.clone(), 60, data)];
            pod.keep(&Question::new(name, RecordType::A), &message);
        }
    }

    #[test]
    fn a_pod_keeps_so_many_answers_and_those_of_all_are_bounded_too() {
        let common = Common::default();
        let pods: Vec<_> = (0..20).map(|_| PodDns::new(&common)).collect();
        for pod in &pods {
            keep_some(pod, CACHED.one_max + 10);
        }
        let kept: Vec<_> = pods.iter().map(|pod| pod.cache.borrow().len()).collect();
        assert_eq!(kept[0], CACHED.one_max);
        assert!(kept.iter().all(|kept| *kept >= CACHED.own), "{kept:?}");
        let shared = || kept.iter().map(|kept| kept - CACHED.own).sum::<usize>();
        assert_eq!(common.cached.get(), shared());
        assert!(common.cached.get() <= CACHED.common_max);
        pods[0].cut();
        assert!(pods[0].cache.borrow().is_empty());
        drop(pods);
        assert_eq!(common.cached.get(), 0, "what is gone holds nothing");
    }

    #[test]
    fn pods_that_take_every_place_they_get_leave_each_other_pod_its_own() {
        let common = Common::default();
        let pods: Vec<_> = (0..50).map(|_| PodDns::new(&common)).collect();
        let seats: Vec<Vec<_>> =
            pods.iter().map(|pod| std::iter::from_fn(|| pod.queries.take()).collect()).collect();
        assert_eq!(seats[0].len(), QUERIES.one_max);
        assert!(seats.iter().all(|seats| seats.len() >= QUERIES.own));
        assert!(common.queries.get() <= QUERIES.common_max);
        assert_eq!(common.lookups.get(), 0, "lookups have places of their own");
        drop(seats);
        assert_eq!(common.queries.get(), 0);
        assert!(pods.iter().all(|pod| pod.queries.held.get() == 0));
    }
}
