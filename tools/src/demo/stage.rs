//! What the steps play on: two nodes, four pods with ordinary programs in them, one service, and the node proxies.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::lab::capture::Capture;
use crate::lab::client::{Client, Server};
use crate::lab::load::{LoadPlan, LoadReport};
use crate::lab::mesh::{Mesh, Service};
use crate::lab::node::{NodeOptions, NodeProxy};
use crate::lab::pod::{Ask, Outcome};
use crate::lab::topology::{LINK, NodePlan, Topology};
use crate::lab::{Lab, LabError};

use super::Options;
use super::report::{Facts, Failure};

/// The service's address.
pub(super) const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 80), 80);
/// The service's name.
pub(super) const SERVICE_NAME: &str = "shop";
const SHOP_PORT: u16 = 8080;
const GREETER_PORT: u16 = 9000;
/// Connections of the load.
const CONNECTIONS: usize = 16;

/// When an open connection was cut.
pub(super) type Cut = JoinHandle<Result<(Outcome, Instant), LabError>>;

/// The stage.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) topology: Topology,
    pub(super) mesh: Mesh,
    pub(super) proxies: Vec<NodeProxy>,
    /// The allowed client.
    pub(super) web: Client,
    /// The client that a policy keeps out.
    pub(super) intruder: Client,
    /// A second program in the intruder's pod, which holds a connection open.
    pub(super) holder: Arc<Client>,
    pub(super) servers: Vec<Server>,
    /// The text that the capture looks for.
    pub(super) marker: String,
    pub(super) seconds: u16,
    /// The load's figures before the pods were enrolled.
    pub(super) no_mesh: LoadReport,
    /// The watch on the open connection, and when the policy was given out.
    pub(super) cut: Option<(Cut, Instant)>,
}

impl Stage {
    /// Builds it, without the mesh.
    pub(super) fn build(options: &Options, lab: &Arc<Lab>) -> Result<(Self, Facts), Failure> {
        let plan =
            [NodePlan::new("node-a", &["web", "intruder"]), NodePlan::new("node-b", &["shop", "greeter"])];
        let topology = Topology::build(lab, &plan)?;
        let marker = format!("halo-demo-marker-{}", lab.run_id());
        let (shop, greeter) = (topology.pod("shop")?, topology.pod("greeter")?);
        topology.service(SERVICE.into(), (shop.address, SHOP_PORT).into())?;
        let banner = format!("welcome {marker}");
        let servers =
            vec![Server::http(lab, shop, SHOP_PORT)?, Server::greeter(lab, greeter, GREETER_PORT, &banner)?];
        let client = |name, role| Client::start(lab, topology.pod(name)?, role);
        let (web, intruder) = (client("web", "client")?, client("intruder", "client")?);
        let holder = Arc::new(client("intruder", "holder")?);
        let mut mesh = Mesh::new(&lab.dir().join("mesh.yaml"), &topology);
        mesh.services.push(Service::new(SERVICE_NAME, SERVICE, "shop", SHOP_PORT));
        mesh.publish()?;
        let proxy = NodeOptions { shards: options.shards.into(), ..NodeOptions::default() };
        let start = |node| NodeProxy::start(lab, node, &mesh, &proxy);
        let proxies = topology.nodes.iter().map(start).collect::<Result<Vec<_>, LabError>>()?;
        let facts = facts(&topology);
        let stage = Self {
            topology,
            mesh,
            proxies,
            web,
            intruder,
            holder,
            servers,
            marker,
            seconds: options.seconds,
            no_mesh: LoadReport::default(),
            cut: None,
        };
        Ok((stage, facts))
    }

    /// A request to the service, with the marker.
    pub(super) fn ask(&self) -> Ask {
        Ask::new(SERVICE).marker(&self.marker)
    }

    /// A request to the pod behind the service, with the marker.
    pub(super) fn ask_pod(&self) -> Result<Ask, Failure> {
        Ok(Ask::new((self.topology.pod("shop")?.address, SHOP_PORT)).marker(&self.marker))
    }

    /// The server that speaks first.
    pub(super) fn greeter(&self) -> Result<SocketAddr, Failure> {
        Ok((self.topology.pod("greeter")?.address, GREETER_PORT).into())
    }

    /// A capture of the link between the nodes.
    pub(super) fn capture(&self) -> Result<Capture, Failure> {
        Ok(Capture::start(&self.topology.nodes[0].netns, LINK, &self.marker)?)
    }

    /// The load, from `web` to the service.
    pub(super) fn load(&self) -> Result<LoadReport, Failure> {
        let plan =
            LoadPlan { target: SERVICE.into(), connections: CONNECTIONS, seconds: f64::from(self.seconds) };
        Ok(self.web.load(&plan)?)
    }

    /// The ids of the pods' processes.
    pub(super) fn pids(&self) -> Vec<i32> {
        let servers = self.servers.iter().map(|server| &server.process);
        let clients = [&self.web.process, &self.intruder.process, &self.holder.process];
        servers.chain(clients).filter(|process| process.is_running()).map(|p| p.pid()).collect()
    }

    /// Commands for a person to try: what for, and the command.
    pub(super) fn suggestions(&self) -> Vec<(&'static str, String)> {
        let inside = |netns: &str, command: &str| format!("ip netns exec {netns} {command}");
        let pod =
            |name: &str| self.topology.pod(name).map_or_else(|_| name.to_owned(), |p| p.netns.name().into());
        let (node_a, node_b) = (self.topology.nodes[0].netns.name(), self.topology.nodes[1].netns.name());
        let address = self.greeter().map_or_else(|_| String::new(), |a| a.to_string());
        let mesh = self.mesh.path().display();
        vec![
            ("call the service as web", inside(&pod("web"), &format!("curl -s http://{SERVICE}/"))),
            ("call the service as intruder", inside(&pod("intruder"), &format!("curl -s http://{SERVICE}/"))),
            (
                "hear the server that speaks first",
                inside(&pod("web"), &format!("curl -s --max-time 1 telnet://{address}")),
            ),
            ("watch the link: only port 15008", inside(node_a, &format!("tcpdump -ni {LINK} -A"))),
            ("see who calls whom", inside(node_b, "curl -s http://127.0.0.1:15000/config_dump")),
            ("see the redirect rules of a pod", inside(&pod("web"), "nft list ruleset")),
            ("change workloads and policies; it takes effect at once", format!("$EDITOR {mesh}")),
        ]
    }
}

fn facts(topology: &Topology) -> Facts {
    let (nodes, pods) = (topology.nodes.len(), topology.pods.len());
    let line = format!("{nodes} nodes, {pods} pods, 1 service, as namespaces joined by veth");
    let mut facts = Facts::new(line).figure("nodes", nodes).figure("pods", pods);
    for (index, node) in topology.nodes.iter().enumerate() {
        let pods = topology.pods.iter().filter(|pod| pod.node == index);
        let pods: Vec<_> = pods.map(|pod| format!("{} {}", pod.name, pod.address)).collect();
        facts = facts.detail(&node.name, pods.join(", "));
    }
    facts.detail("service", format!("{SERVICE_NAME} {SERVICE}"))
}

/// Takes everything away and looks whether it is gone.
pub(super) fn clean_up(lab: &Lab) -> Result<Facts, Failure> {
    let cleaned = lab.cleanup()?;
    let prefix = format!("halo-{}-", lab.run_id());
    let names = std::fs::read_dir(crate::lab::netns::NAMES).into_iter().flatten().flatten();
    let left = names.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).count();
    if left > 0 || lab.dir().exists() {
        return Err(Failure::new(format!("{left} namespaces and {} are left", shown(lab.dir()))));
    }
    let line = format!(
        "{} processes and {} namespaces are gone, nothing is left",
        cleaned.processes, cleaned.namespaces
    );
    Ok(Facts::new(line).figure("processes", cleaned.processes).figure("namespaces", cleaned.namespaces))
}

fn shown(dir: &Path) -> String {
    if dir.exists() { dir.display().to_string() } else { "no directory".into() }
}

/// Milliseconds with one decimal, for figures.
pub(super) fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}
