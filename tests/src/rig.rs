//! A lab with the real thing in it: nodes, pods, one proxy process a node, the mesh file and the agents.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use halo::lab::Lab;
use halo::lab::admin::Dump;
use halo::lab::certs;
use halo::lab::controller::Controller;
use halo::lab::mesh::{Mesh, Service, TRUST_DOMAIN};
use halo::lab::netns::Netns;
use halo::lab::node::{NodeOptions, NodeProxy};
use halo::lab::process::wait_for;
use halo::lab::topology::{Families, NodePlan, Pod, Topology};

use crate::binaries;

/// What the control plane or a proxy does by itself is done by then, on a busy machine too.
pub const SOON: Duration = Duration::from_secs(20);
const LOG_LINES: usize = 60;

/// Node proxies with these variables.
pub fn with_variables(variables: &[(&str, &str)]) -> NodeOptions {
    let environment = variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    NodeOptions { environment, ..NodeOptions::default() }
}

/// One lab. Everything in it ends with it.
#[derive(Debug)]
pub struct Rig {
    /// The node proxies, in the order of the plan; none before [`Rig::start`].
    pub proxies: Vec<NodeProxy>,
    /// The state of the mesh.
    pub mesh: Mesh,
    /// Nodes and pods.
    pub topology: Topology,
    /// How proxies are started.
    pub options: NodeOptions,
    /// The control plane, where the proxies have one.
    pub controller: Option<Controller>,
    /// The lab.
    pub lab: Lab,
}

impl Rig {
    /// Builds nodes and pods, without proxies.
    pub fn build(plan: &[NodePlan], options: NodeOptions) -> Self {
        Self::build_with(plan, options, Families::available())
    }

    /// As [`Rig::build`], with these IP families.
    pub fn build_with(plan: &[NodePlan], options: NodeOptions, families: Families) -> Self {
        let lab = Lab::new(binaries::halo()).unwrap_or_else(|error| panic!("{error} (run as root)"));
        let topology = Topology::build_with(&lab, plan, families).unwrap();
        let mesh = Mesh::new(&lab.dir().join("mesh.yaml"), &topology);
        certs::make_root(&lab.dir().join("ca"), TRUST_DOMAIN).unwrap();
        Self { proxies: Vec::new(), mesh, topology, options, controller: None, lab }
    }

    /// As [`Rig::web_and_shop`], with proxies that take mesh and certificates from a controller.
    pub fn with_controller(options: NodeOptions) -> Self {
        let plan = [NodePlan::new("node-a", &["web"]), NodePlan::new("node-b", &["shop"])];
        let mut rig = Self::build(&plan, options);
        rig.start_with(&["web", "shop"]);
        rig
    }

    /// A controller, `web` on one node and these pods on the other. Those that are `enrolled` are served; those that are
    /// `played` take tunnels by the test's own hand.
    pub fn played(pods: &[&str], options: NodeOptions, enrolled: &[&str], played: &[&str]) -> Self {
        let plan = [NodePlan::new("node-a", &["web"]), NodePlan::new("node-b", pods)];
        let mut rig = Self::build(&plan, options);
        rig.mesh.enrolled.extend(played.iter().map(|&pod| pod.to_owned()));
        rig.start_with(enrolled);
        rig
    }

    /// Starts a controller and the proxies, and enrols these pods.
    pub fn start_with(&mut self, pods: &[&str]) {
        self.start_controller();
        self.start();
        self.enrol(pods);
    }

    /// Gives out the mesh and starts a controller that follows it; proxies that are started later use it.
    pub fn start_controller(&mut self) {
        self.mesh.publish().unwrap();
        let controller = Controller::start(&self.lab, &self.topology, &self.mesh).unwrap();
        controller.wait_ready(SOON).unwrap();
        self.options.control_plane = Some(controller.control_plane());
        self.controller = Some(controller);
    }

    /// The controller.
    pub fn controller(&mut self) -> &mut Controller {
        self.controller.as_mut().expect("the rig has a controller")
    }

    /// Builds, starts the proxies and enrols pods.
    pub fn with_enrolled(plan: &[NodePlan], options: NodeOptions, pods: &[&str]) -> Self {
        let mut rig = Self::build(plan, options);
        rig.start();
        rig.enrol(pods);
        rig
    }

    /// The plan of most scenarios: `web` on one node, `shop` on another, both enrolled.
    pub fn web_and_shop(options: NodeOptions) -> Self {
        let plan = [NodePlan::new("node-a", &["web"]), NodePlan::new("node-b", &["shop"])];
        Self::with_enrolled(&plan, options, &["web", "shop"])
    }

    /// Gives out the mesh and starts a proxy on every node.
    pub fn start(&mut self) {
        self.mesh.publish().unwrap();
        for node in &self.topology.nodes {
            self.proxies.push(NodeProxy::start(&self.lab, node, &self.mesh, &self.options).unwrap());
        }
        for proxy in &self.proxies {
            proxy.wait_connected(SOON).unwrap();
        }
    }

    /// Enrols pods, redirect rules first; only when they are ready the others learn that they take tunnels.
    pub fn enrol(&mut self, pods: &[&str]) {
        for name in pods {
            let pod = self.topology.pod(name).unwrap();
            self.proxies[pod.node].agent.enrol(pod, &pod.redirect()).unwrap();
            self.mesh.enrolled.insert((*name).to_owned());
        }
        for proxy in &self.proxies {
            proxy.wait_ready(SOON).unwrap();
        }
        self.mesh.publish().unwrap();
        self.await_adopted();
    }

    /// Gives out the mesh and waits until every proxy has it: it is one more snapshot at each of them.
    pub fn publish(&mut self) {
        let adopted = |rig: &Self| -> Vec<u64> {
            (0..rig.proxies.len()).map(|node| rig.counter(node, "snapshots")).collect()
        };
        let before = adopted(self);
        self.mesh.publish().unwrap();
        for (node, before) in before.into_iter().enumerate() {
            self.await_counted(node, "snapshots", before);
        }
    }

    /// Waits until every proxy knows which pods take tunnels.
    pub fn await_adopted(&self) {
        for proxy in &self.proxies {
            let what = format!("{} learning the mesh", proxy.process.name());
            wait_for(&what, SOON, || {
                let dump = proxy.dump().map_err(|error| error.to_string())?;
                let workloads = dump.all["workloads"].as_array().cloned().unwrap_or_default();
                let tunnels = workloads.iter().filter(|workload| workload["protocol"] == "HBONE").count();
                let expected = self.mesh.tunnelled();
                if tunnels == expected { Ok(()) } else { Err(format!("{tunnels} of {expected}")) }
            })
            .unwrap();
        }
    }

    /// A service in front of a pod, at 10.96.0.`nth`:80. A backend that is no pod gives a service without endpoints.
    pub fn service(&mut self, nth: u8, backend: &str, target_port: u16) -> SocketAddr {
        let address = SocketAddr::from(([10, 96, 0, nth], 80));
        self.mesh.services.push(Service::new(&format!("service-{nth}"), address, backend, target_port));
        self.mesh.publish().unwrap();
        address
    }

    /// A pod.
    pub fn pod(&self, name: &str) -> &Pod {
        self.topology.pod(name).unwrap()
    }

    /// A pod's namespace.
    pub fn netns(&self, pod: &str) -> &Arc<Netns> {
        &self.pod(pod).netns
    }

    /// A port of a pod.
    pub fn address(&self, pod: &str, port: u16) -> SocketAddr {
        (self.pod(pod).address, port).into()
    }

    /// The directory with the root that the proxies trust: the controller's, or the one that they share.
    pub fn ca(&self) -> PathBuf {
        self.controller.as_ref().map_or_else(|| self.lab.dir().join("ca"), Controller::ca)
    }

    /// A node proxy's own account of itself.
    pub fn dump(&self, node: usize) -> Dump {
        self.proxies[node].dump().unwrap()
    }

    /// A total of a node proxy, over all of its shards.
    pub fn counter(&self, node: usize, name: &str) -> u64 {
        let dump = self.dump(node);
        let of_shard = |counters: &serde_json::Value| counters[name].as_u64();
        let totals: Option<Vec<u64>> = dump.shards.iter().map(|shard| of_shard(&shard.counters)).collect();
        let totals = totals.filter(|totals| !totals.is_empty());
        totals.unwrap_or_else(|| panic!("no counter {name} in {:?}", dump.shards)).into_iter().sum()
    }

    /// Waits until a total has grown past `before`.
    pub fn await_counted(&self, node: usize, name: &str, before: u64) {
        wait_for(&format!("{name} growing"), SOON, || match self.counter(node, name) {
            total if total > before => Ok(()),
            total => Err(format!("{total}; {:?}", self.dump(node).shards)),
        })
        .unwrap();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let logs = std::fs::read_dir(self.lab.dir().join("logs")).into_iter().flatten().flatten();
        for log in logs {
            let text = std::fs::read_to_string(log.path()).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
            if !tail.is_empty() {
                eprintln!("--- {} ---\n{tail}", log.file_name().to_string_lossy());
            }
        }
    }
}
