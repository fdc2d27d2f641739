//! Nodes joined by one link, and pods joined to their nodes, all as namespaces.
//!
//! ```text
//!   web ──┐                            ┌── shop
//!         ├── node-a ════ wire ═════ node-b
//!   intruder                           └── greeter
//! ```
//!
//! A pod has one address of its own in each family of the plan (10.<node>.0.<n>/32 and fd00:10:<node>::<n>/128) and
//! reaches everything through its node, which routes. A service's address is translated on the client's node, as
//! kube-proxy does it.

mod families;

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use halo_control::redirect;

use super::cores::{self, Share};
use super::netns::{Netns, run};
use super::{Doing, Lab, Result};
use crate::node::usable_cores;
pub use families::{Addresses, Families, has_ipv6};

/// The interface of a node towards the other node.
pub const LINK: &str = "wire";
/// The subnet of the link; those of pods are numbered from 1.
const LINK_SUBNET: usize = 255;

/// A node to build.
#[derive(Debug, Clone)]
pub struct NodePlan {
    /// Its name.
    pub name: String,
    /// The pods on it. Each runs under a service account of its own name.
    pub pods: Vec<String>,
}

impl NodePlan {
    /// A node and its pods.
    pub fn new(name: &str, pods: &[&str]) -> Self {
        Self { name: name.into(), pods: pods.iter().map(|&pod| pod.into()).collect() }
    }
}

/// The nodes and pods that were built.
#[derive(Debug)]
pub struct Topology {
    /// The nodes, in the order of the plan.
    pub nodes: Vec<Node>,
    /// All pods.
    pub pods: Vec<Pod>,
}

/// A node.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub netns: Arc<Netns>,
    /// Its address on the link, of the family that comes first.
    pub address: IpAddr,
    /// Its addresses on the link.
    pub addresses: Addresses,
    /// Its part of the machine's cores.
    pub cores: Share,
}

/// A pod.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its name, also that of its service account.
    pub name: String,
    /// Its Kubernetes uid.
    pub uid: String,
    /// Which node carries it.
    pub node: usize,
    /// Its namespace.
    pub netns: Arc<Netns>,
    /// Its address, of the family that comes first.
    pub address: IpAddr,
    /// Its addresses.
    pub addresses: Addresses,
    /// The search list of its resolver, as the agent tells it; empty: it does not.
    pub dns_search: Vec<String>,
}

impl Pod {
    /// What to capture in it: every family that it has, and DNS, as the node proxy is set by itself.
    pub fn redirect(&self) -> redirect::Options {
        redirect::Options { ipv6: self.addresses.v6.is_some(), dns: true, ..redirect::Options::default() }
    }
}

impl Topology {
    /// Builds one or two nodes and their pods, with every family that the kernel has.
    pub fn build(lab: &Lab, plan: &[NodePlan]) -> Result<Self> {
        Self::build_with(lab, plan, Families::available())
    }

    /// Builds one or two nodes and their pods with these families.
    pub fn build_with(lab: &Lab, plan: &[NodePlan], families: Families) -> Result<Self> {
        let mut nodes = Vec::new();
        let shares = cores::deal(&usable_cores(), plan.len());
        for (index, (node, cores)) in plan.iter().zip(shares).enumerate() {
            let netns = namespace(lab, &node.name)?;
            netns.sysctl("ipv4/ip_forward", "1")?;
            if has_ipv6() {
                netns.sysctl("ipv6/conf/all/forwarding", "1")?;
            }
            let addresses = families.addresses(LINK_SUBNET, index + 1);
            let address = addresses.first();
            nodes.push(Node { name: node.name.clone(), netns, address, addresses, cores });
        }
        if let [left, right] = nodes.as_slice() {
            join_nodes(left, right)?;
        }
        let mut pods = Vec::new();
        for (index, node) in plan.iter().enumerate() {
            for (nth, name) in node.pods.iter().enumerate() {
                let addresses = families.addresses(index + 1, nth + 10);
                let pod = Pod {
                    name: name.clone(),
                    uid: format!("00000000-0000-4000-8000-{:012}", pods.len() + 1),
                    node: index,
                    netns: namespace(lab, name)?,
                    address: addresses.first(),
                    addresses,
                    dns_search: Vec::new(),
                };
                join_pod(&nodes[index], &pod, nth)?;
                pods.push(pod);
            }
        }
        Ok(Self { nodes, pods })
    }

    /// Makes a pod one of another network for the nodes that it does not run on: they have no way to it.
    pub fn hide(&self, pod: &Pod) -> Result<()> {
        for (index, node) in self.nodes.iter().enumerate() {
            if index != pod.node {
                let lines: String =
                    pod.addresses.iter().map(|a| format!("route add unreachable {a}\n")).collect();
                node.netns.ip_batch(&lines)?;
            }
        }
        Ok(())
    }

    /// The pod of this name.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        let found = self.pods.iter().find(|pod| pod.name == name);
        found
            .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))
            .doing(format_args!("find pod {name}"))
    }

    /// Translates the service's address to its backend on every node.
    pub fn service(&self, address: SocketAddr, backend: SocketAddr) -> Result<()> {
        let family = if address.is_ipv4() { "ip" } else { "ip6" };
        let rule = format!(
            "{family} daddr {} tcp dport {} dnat {family} to {backend}",
            address.ip(),
            address.port(),
        );
        for node in &self.nodes {
            let rules = format!(
                "add table inet services; \
                 add chain inet services prerouting {{ type nat hook prerouting priority dstnat; }}; \
                 add rule inet services prerouting {rule}"
            );
            node.netns.command("nft", &[&rules])?;
        }
        Ok(())
    }
}

/// A namespace whose interfaces use their IPv6 addresses at once, without looking for duplicates first.
fn namespace(lab: &Lab, name: &str) -> Result<Arc<Netns>> {
    let netns = lab.namespace(name)?;
    if has_ipv6() {
        for key in ["all/disable_ipv6", "all/accept_dad", "default/accept_dad"] {
            netns.sysctl(&format!("ipv6/conf/{key}"), "0")?;
        }
    }
    Ok(netns)
}

fn join_nodes(left: &Node, right: &Node) -> Result<()> {
    let (a, b) = (left.netns.name(), right.netns.name());
    run("ip", &["link", "add", LINK, "netns", a, "type", "veth", "peer", "name", LINK, "netns", b])?;
    for (node, peer, peer_subnet) in [(left, right, 2), (right, left, 1)] {
        let mut lines = format!("link set {LINK} up\n");
        if let Some((own, via)) = node.addresses.v4.zip(peer.addresses.v4) {
            let _ = writeln!(lines, "addr add {own}/24 dev {LINK}");
            let _ = writeln!(lines, "route add 10.{peer_subnet}.0.0/16 via {via}");
        }
        if let Some((own, via)) = node.addresses.v6.zip(peer.addresses.v6) {
            let _ = writeln!(lines, "addr add {own}/64 dev {LINK} nodad");
            let _ = writeln!(lines, "route add fd00:10:{peer_subnet}::/48 via {via}");
        }
        node.netns.ip_batch(&lines)?;
    }
    Ok(())
}

fn join_pod(node: &Node, pod: &Pod, nth: usize) -> Result<()> {
    let (node_ns, pod_ns) = (node.netns.name(), pod.netns.name());
    let port = format!("pod{nth}");
    run("ip", &["link", "add", &port, "netns", node_ns, "type", "veth", "peer", "eth0", "netns", pod_ns])?;
    let mut at_node = format!("link set {port} up\n");
    let mut in_pod = "link set eth0 up\n".to_owned();
    let gateways = Families::Dual.addresses(pod.node + 1, 1);
    if let Some((address, gateway)) = pod.addresses.v4.zip(gateways.v4) {
        let _ = writeln!(at_node, "addr add {gateway}/32 dev {port}");
        let _ = writeln!(at_node, "route add {address}/32 dev {port}");
        let _ = writeln!(in_pod, "addr add {address}/32 dev eth0");
        let _ = writeln!(in_pod, "route add {gateway}/32 dev eth0");
        let _ = writeln!(in_pod, "route add default via {gateway} dev eth0");
    }
    if let Some((address, gateway)) = pod.addresses.v6.zip(gateways.v6) {
        let _ = writeln!(at_node, "addr add {gateway}/128 dev {port} nodad");
        let _ = writeln!(at_node, "route add {address}/128 dev {port}");
        let _ = writeln!(in_pod, "addr add {address}/128 dev eth0 nodad");
        let _ = writeln!(in_pod, "route add {gateway}/128 dev eth0");
        let _ = writeln!(in_pod, "route add ::/0 via {gateway} dev eth0");
    }
    node.netns.ip_batch(&at_node)?;
    pod.netns.ip_batch(&in_pod)
}
