//! Node proxies and the agents that enrol pods with them: what Halo and its peers have in common.

use std::collections::BTreeSet;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use halo::lab::agent::Agent;
use halo::lab::mesh::Mesh;
use halo::lab::process::Process;
use halo::lab::topology::{Pod, Topology};
use halo::lab::{Lab, Result};
use halo_control::redirect;

use super::{Carrier, Running};

/// How long a proxy may take to be ready with all of its pods. A machine starts several subjects with many pods each.
pub(super) const READY_MAX: Duration = Duration::from_secs(60);

/// What to capture in a pod.
pub(super) type Redirect = fn(&Pod) -> redirect::Options;

/// One proxy a node, with every pod enrolled. The processes end before the agents.
#[derive(Debug)]
pub(super) struct Nodes {
    pub(super) running: Running,
    /// In the order of the topology's nodes.
    pub(super) agents: Vec<Agent>,
    pub(super) topology: Arc<Topology>,
    pub(super) redirect: Redirect,
}

/// The mesh file in which every pod takes tunnels, complete before a proxy reads it.
pub(super) fn mesh(lab: &Lab, topology: &Topology) -> Result<Mesh> {
    let mut mesh = Mesh::new(&lab.dir().join("mesh.yaml"), topology);
    mesh.enrolled = topology.pods.iter().map(|pod| pod.name.clone()).collect::<BTreeSet<_>>();
    mesh.publish()?;
    Ok(mesh)
}

/// Enrols all pods, all nodes at once. The agents are in the order of the nodes.
pub(super) fn enrol(agents: &[&Agent], topology: &Topology, redirect: Redirect) -> Result<()> {
    let one_node = |node: usize| {
        let mut pods = topology.pods.iter().filter(|pod| pod.node == node);
        pods.try_for_each(|pod| agents[node].enrol(pod, &redirect(pod)))
    };
    let one_node = &one_node;
    thread::scope(|scope| {
        let nodes: Vec<_> = (0..agents.len()).map(|node| scope.spawn(move || one_node(node))).collect();
        let join = |node: ScopedJoinHandle<'_, _>| node.join().unwrap_or_else(|panic| resume_unwind(panic));
        nodes.into_iter().try_for_each(join)
    })
}

impl Carrier for Nodes {
    fn processes(&self) -> Vec<Arc<Process>> {
        self.running.0.clone()
    }

    fn cycle(&self, pod: &str) -> Result<()> {
        let pod = self.topology.pod(pod)?;
        let agent = &self.agents[pod.node];
        agent.remove(pod)?;
        agent.enrol(pod, &(self.redirect)(pod))
    }
}
