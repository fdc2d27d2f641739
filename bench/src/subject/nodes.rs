//! Node proxies and the agents that enrol pods with them: what Halo and its peers have in common.

use std::collections::BTreeSet;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use halo::lab::admin::Shard;
use halo::lab::agent::Agent;
use halo::lab::mesh::Mesh;
use halo::lab::process::Process;
use halo::lab::topology::{Node, Pod, Topology};
use halo::lab::{Lab, Result, admin};
use halo_control::redirect;

use super::{Carrier, Running};

/// How long a proxy may take to be ready with all of its pods. A machine starts several subjects with many pods each.
pub(super) const READY_MAX: Duration = Duration::from_secs(60);

/// The counters of a shard that count operations of its ring. It does not count connects, timers and closes.
const OPERATIONS: [&str; 3] = ["accepts", "reads", "writes"];

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
    /// Whether the proxies' admin pages have shards, which count their rings' operations.
    pub(super) has_shards: bool,
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

    fn operations(&self) -> Vec<Option<u64>> {
        if !self.has_shards {
            return vec![None; self.running.0.len()];
        }
        let of = |node: &Node| completed(&admin::dump(&node.netns).ok()?.shards);
        self.topology.nodes.iter().map(of).collect()
    }

    fn cycle(&self, pod: &str) -> Result<()> {
        let pod = self.topology.pod(pod)?;
        let agent = &self.agents[pod.node];
        let removed = agent.remove(pod);
        // Whatever became of that: the pod is to be in the mesh afterwards.
        agent.enrol(pod, &(self.redirect)(pod))?;
        removed
    }
}

/// Operations that the rings of all shards have completed; `None` where a shard does not tell.
fn completed(shards: &[Shard]) -> Option<u64> {
    let of = |shard: &Shard| OPERATIONS.iter().map(|name| shard.counters[name].as_u64()).sum::<Option<u64>>();
    shards.iter().map(of).sum::<Option<u64>>().filter(|_| !shards.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn operations_of_all_shards_are_added() {
        let shard = |counters| Shard { counters, ..Shard::default() };
        let one = shard(json!({ "reads": 5, "writes": 4, "accepts": 1, "bytes_sent": 1000 }));
        assert_eq!(completed(&[one.clone(), one.clone()]), Some(20));
        assert_eq!(completed(&[one, shard(json!({ "reads": 5 }))]), None);
        assert_eq!(completed(&[]), None);
    }
}
