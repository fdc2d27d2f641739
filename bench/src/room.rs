//! One subject at one place: its namespaces, its proxies, and the applications in its pods.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use halo::lab::process::Process;
use halo::lab::topology::{NodePlan, Pod, Topology};
use halo::lab::{Lab, Result};

use crate::model::{Place, Spent};
use crate::pod::remote::{Client, Server};
use crate::pod::{HTTP_PORT, RAW_PORT};
use crate::subject::{Carrier, Subject};
use crate::usage::{self, Usage};

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
pub(crate) struct Labs(Mutex<Vec<Arc<Lab>>>);

impl Labs {
    fn open(&self, halo: &Path) -> Result<Arc<Lab>> {
        let mut labs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lab = Arc::new(Lab::new(halo.to_owned())?);
        labs.push(lab.clone());
        Ok(lab)
    }

    fn close(&self, lab: &Arc<Lab>) -> Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|open| !Arc::ptr_eq(open, lab));
        lab.cleanup().map(drop)
    }

    /// Takes everything away.
    pub(crate) fn clean_up(&self) {
        for lab in self.0.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // What cannot be removed now is swept by the next run.
            let _ = lab.cleanup();
        }
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
        let topology = Arc::new(Topology::build(&lab, &plan(place, many))?);
        for (pod, (name, value)) in topology.pods.iter().flat_map(|pod| PORTS.map(|port| (pod, port))) {
            pod.netns.sysctl(name, value)?;
        }
        let pods = |role: &'static str| topology.pods.iter().filter(move |pod| pod.name.starts_with(role));
        let servers =
            pods(SERVER).map(|pod| Server::start(&lab, pod, programs.bench)).collect::<Result<_>>()?;
        let clients =
            pods(CLIENT).map(|pod| Client::start(&lab, pod, programs.bench)).collect::<Result<_>>()?;
        let mut room = Self { carrier: None, clients, servers, topology, lab, labs: labs.clone() };
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

    /// Notes what every process has spent so far.
    pub(crate) fn look(&self) -> Look {
        let of = |processes: Vec<Arc<Process>>| -> Vec<(Arc<Process>, Usage)> {
            processes.into_iter().map(|process| (process.clone(), Usage::of(process.pid()))).collect()
        };
        Look {
            proxies: of(self.proxies()),
            clients: of(self.clients.iter().map(|client| client.process.clone()).collect()),
            servers: of(self.servers.iter().map(|server| server.process.clone()).collect()),
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.carrier = None;
        self.clients.clear();
        self.servers.clear();
        // What cannot be removed now is swept by the next run.
        let _ = self.labs.close(&self.lab);
    }
}

/// What every process had spent at one moment.
#[derive(Debug)]
pub(crate) struct Look {
    proxies: Vec<(Arc<Process>, Usage)>,
    clients: Vec<(Arc<Process>, Usage)>,
    servers: Vec<(Arc<Process>, Usage)>,
}

impl Look {
    /// What they have spent from then to now: each proxy, the clients together, the servers together.
    pub(crate) fn since(&self) -> (Vec<Spent>, Spent, Spent) {
        let spent = |of: &[(Arc<Process>, Usage)]| -> Vec<Spent> {
            // All clocks are read before any memory is: that takes the kernel a while.
            let now: Vec<_> = of.iter().map(|(process, _)| Usage::of(process.pid())).collect();
            of.iter().zip(now).map(|((p, then), now)| now.since(*then, p.name(), p.pid())).collect()
        };
        let (proxies, clients, servers) = (spent(&self.proxies), spent(&self.clients), spent(&self.servers));
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
