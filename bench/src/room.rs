//! One subject at one place: its namespaces, its proxies, and the applications in its pods.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use halo::lab::process::Process;
use halo::lab::topology::{NodePlan, Pod, Topology};
use halo::lab::{Lab, LabError, Result};

use crate::model::{Place, Spent};
use crate::pod::remote::{Client, Server};
use crate::pod::{HTTP_PORT, RAW_PORT};
use crate::subject::{Carrier, Subject};
use crate::usage::{self, Reading, Usage};

/// How every pod treats its ports. With the defaults, what is measured of short connections is how soon a pod runs out
/// of ports, on the client's side and between the proxy and the server.
const PORTS: [(&str, &str); 3] = [
    ("ipv4/ip_local_port_range", "16384 65535"),
    ("ipv4/tcp_tw_reuse", "1"),
    ("ipv4/tcp_max_tw_buckets", "1000"),
];

/// The programs that a room runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Programs<'a> {
    /// `halo`.
    pub(crate) halo: &'a Path,
    /// `halo-bench`, for the applications.
    pub(crate) bench: &'a Path,
}

/// The labs that are open, so that a signal can clean them up.
#[derive(Debug, Default)]
pub(crate) struct Labs(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    /// Nothing is opened any more.
    shut: bool,
    labs: Vec<Arc<Lab>>,
}

impl Labs {
    fn open(&self, halo: &Path) -> Result<Arc<Lab>> {
        let mut open = self.lock();
        if open.shut {
            return Err(LabError::Closed);
        }
        let lab = Arc::new(Lab::new(halo.to_owned())?);
        open.labs.push(lab.clone());
        Ok(lab)
    }

    /// Takes a lab away, unless [`Self::shut`] does.
    fn close(&self, lab: &Arc<Lab>) {
        let mut open = self.lock();
        let before = open.labs.len();
        open.labs.retain(|open| !Arc::ptr_eq(open, lab));
        let ours = open.labs.len() < before;
        drop(open);
        if ours {
            // What cannot be removed now is swept by the next run.
            let _ = lab.cleanup();
        }
    }

    /// Takes everything away, and opens nothing any more.
    pub(crate) fn shut(&self) {
        let labs = {
            let mut open = self.lock();
            open.shut = true;
            std::mem::take(&mut open.labs)
        };
        for lab in labs {
            // What cannot be removed now is swept by the next run.
            let _ = lab.cleanup();
        }
    }

    /// Whether everything is taken away, so that whatever fails now tells nothing.
    pub(crate) fn is_shut(&self) -> bool {
        self.lock().shut
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A subject that is up, with its applications.
pub(crate) struct Room {
    /// The proxies. Before the lab: they end first.
    carrier: Option<Box<dyn Carrier>>,
    /// One client in each pod of the first node that has clients.
    pub(crate) clients: Vec<Client>,
    servers: Vec<Server>,
    topology: Arc<Topology>,
    lab: Arc<Lab>,
    labs: Arc<Labs>,
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room").field("lab", &self.lab.run_id()).finish_non_exhaustive()
    }
}

impl Room {
    /// Builds the place, starts the applications, then the subject. `many` is the number of clients, and of servers,
    /// where there are many.
    pub(crate) fn open(
        subject: &dyn Subject,
        (place, many): (Place, usize),
        labs: &Arc<Labs>,
        programs: Programs<'_>,
    ) -> Result<Self> {
        let lab = labs.open(programs.halo)?;
        let room = Self::furnish(subject, (place, many), (labs, &lab), programs);
        if room.is_err() {
            labs.close(&lab);
        }
        room
    }

    fn furnish(
        subject: &dyn Subject,
        (place, many): (Place, usize),
        (labs, lab): (&Arc<Labs>, &Arc<Lab>),
        programs: Programs<'_>,
    ) -> Result<Self> {
        let topology = Arc::new(Topology::build(lab, &plan(place, many))?);
        for (pod, (name, value)) in topology.pods.iter().flat_map(|pod| PORTS.map(|port| (pod, port))) {
            pod.netns.sysctl(name, value)?;
        }
        let pods = |role: &'static str| topology.pods.iter().filter(move |pod| pod.name.starts_with(role));
        let servers =
            pods(SERVER).map(|pod| Server::start(lab, pod, programs.bench)).collect::<Result<_>>()?;
        let clients =
            pods(CLIENT).map(|pod| Client::start(lab, pod, programs.bench)).collect::<Result<_>>()?;
        let (lab, labs) = (lab.clone(), labs.clone());
        let mut room = Self { carrier: None, clients, servers, topology, lab, labs };
        room.carrier = Some(subject.start(room.lab.clone(), room.topology.clone())?);
        Ok(room)
    }

    /// HTTP addresses of all servers.
    pub(crate) fn http(&self) -> Vec<SocketAddr> {
        self.addresses(HTTP_PORT)
    }

    /// Raw addresses of all servers.
    pub(crate) fn raw(&self) -> Vec<SocketAddr> {
        self.addresses(RAW_PORT)
    }

    fn addresses(&self, port: u16) -> Vec<SocketAddr> {
        self.servers_pods().map(|pod| SocketAddr::from((pod.address, port))).collect()
    }

    fn servers_pods(&self) -> impl Iterator<Item = &Pod> {
        self.topology.pods.iter().filter(|pod| pod.name.starts_with(SERVER))
    }

    /// The names of the server pods, in the order of their addresses.
    pub(crate) fn server_names(&self) -> Vec<String> {
        self.servers_pods().map(|pod| pod.name.clone()).collect()
    }

    /// Takes a pod out of the mesh and brings it back.
    pub(crate) fn cycle(&self, pod: &str) -> Result<()> {
        self.carrier.as_ref().map_or(Ok(()), |carrier| carrier.cycle(pod))
    }

    /// The proxies' processes.
    pub(crate) fn proxies(&self) -> Vec<Arc<Process>> {
        self.carrier.as_ref().map(|carrier| carrier.processes()).unwrap_or_default()
    }

    /// An error when a proxy has ended, which spends nothing any more.
    pub(crate) fn ensure_running(&self) -> Result<()> {
        self.proxies().iter().try_for_each(|process| process.ensure_running())
    }

    /// Operations that each proxy's rings have completed so far; `None` where it does not count them.
    pub(crate) fn operations(&self) -> Vec<Option<Reading>> {
        let totals = self.carrier.as_ref().map(|carrier| carrier.operations()).unwrap_or_default();
        totals.into_iter().map(|total| total.map(Reading::now)).collect()
    }

    /// Notes what every process has spent so far.
    pub(crate) fn look(&self) -> Look {
        let clients = self.clients.iter().map(|client| client.process().clone());
        let servers = self.servers.iter().map(|server| server.process.clone());
        let (mut processes, clients) = (self.proxies(), clients.collect::<Vec<_>>());
        let proxies = processes.len();
        let clients_end = proxies + clients.len();
        processes.extend(clients);
        processes.extend(servers);
        let then = Usage::of(&pids(&processes));
        Look { processes, proxies, clients_end, then }
    }
}

/// The processes' ids.
pub(crate) fn pids(processes: &[Arc<Process>]) -> Vec<i32> {
    processes.iter().map(|process| process.pid()).collect()
}

impl Drop for Room {
    fn drop(&mut self) {
        self.carrier = None;
        self.clients.clear();
        self.servers.clear();
        self.labs.close(&self.lab);
    }
}

/// What every process had spent at one moment.
#[derive(Debug)]
pub(crate) struct Look {
    /// The proxies, the clients, the servers.
    processes: Vec<Arc<Process>>,
    /// How many are proxies.
    proxies: usize,
    /// Where the clients end.
    clients_end: usize,
    then: Vec<Usage>,
}

impl Look {
    /// What they have spent from then to now: each proxy, the clients together, the servers together. With `steady_s`,
    /// see [`Reading::since`].
    pub(crate) fn since(&self, steady_s: Option<f64>) -> (Vec<Spent>, Spent, Spent) {
        let now = Usage::of(&pids(&self.processes));
        let readings = self.then.iter().zip(now);
        let mut proxies: Vec<Spent> = self
            .processes
            .iter()
            .zip(readings)
            .map(|(process, (then, now))| now.since(*then, steady_s, (process.name(), process.pid())))
            .collect();
        let servers = proxies.split_off(self.clients_end);
        let clients = proxies.split_off(self.proxies);
        (proxies, usage::sum("clients", &clients), usage::sum("servers", &servers))
    }
}

const CLIENT: &str = "web";
const SERVER: &str = "shop";

fn plan(place: Place, many: usize) -> Vec<NodePlan> {
    let names =
        |role: &str, count: usize| -> Vec<String> { (0..count).map(|n| format!("{role}-{n}")).collect() };
    let node = |name: &str, pods: Vec<String>| NodePlan { name: name.into(), pods };
    match place {
        Place::TwoNodes => vec![node("node-a", names(CLIENT, 1)), node("node-b", names(SERVER, 1))],
        Place::OneNode => vec![node("node-a", [names(CLIENT, 1), names(SERVER, 1)].concat())],
        Place::ManyPods => vec![node("node-a", names(CLIENT, many)), node("node-b", names(SERVER, many))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_have_their_pods_on_their_nodes() {
        let pods = |place| plan(place, 3).iter().map(|node| node.pods.join(" ")).collect::<Vec<_>>();
        assert_eq!(pods(Place::TwoNodes), ["web-0", "shop-0"]);
        assert_eq!(pods(Place::OneNode), ["web-0 shop-0"]);
        assert_eq!(pods(Place::ManyPods), ["web-0 web-1 web-2", "shop-0 shop-1 shop-2"]);
    }
}
