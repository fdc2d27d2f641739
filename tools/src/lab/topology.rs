//! Nodes joined by one link, and pods joined to their nodes, all as namespaces.
//!
//! ```text
//!   web ──┐                            ┌── shop
//!         ├── node-a ════ wire ═════ node-b
//!   intruder                           └── greeter
//! ```
//!
//! A pod has one address of its own (10.<node>.0.<n>/32) and reaches everything through its node, which routes. A
//! service's address is translated on the client's node, as kube-proxy does it.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use super::cores::{self, Share};
use super::netns::{Netns, run};
use super::{Doing, Lab, Result};
use crate::node::usable_cores;

/// The interface of a node towards the other node.
pub const LINK: &str = "wire";

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
    /// Its address on the link.
    pub address: Ipv4Addr,
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
    /// Its address.
    pub address: Ipv4Addr,
}

impl Topology {
    /// Builds one or two nodes and their pods.
    pub fn build(lab: &Lab, plan: &[NodePlan]) -> Result<Self> {
        let mut nodes = Vec::new();
        let shares = cores::deal(&usable_cores(), plan.len());
        for (index, (node, cores)) in plan.iter().zip(shares).enumerate() {
            let netns = lab.namespace(&node.name)?;
            netns.sysctl("ipv4/ip_forward", "1")?;
            nodes.push(Node {
                name: node.name.clone(),
                netns,
                address: Ipv4Addr::new(10, 255, 0, octet(index + 1)),
                cores,
            });
        }
        if let [left, right] = nodes.as_slice() {
            join_nodes(left, right)?;
        }
        let mut pods = Vec::new();
        for (index, node) in plan.iter().enumerate() {
            for (nth, name) in node.pods.iter().enumerate() {
                let pod = Pod {
                    name: name.clone(),
                    uid: format!("00000000-0000-4000-8000-{:012}", pods.len() + 1),
                    node: index,
                    netns: lab.namespace(name)?,
                    address: Ipv4Addr::new(10, octet(index + 1), 0, octet(nth + 10)),
                };
                join_pod(&nodes[index], &pod)?;
                pods.push(pod);
            }
        }
        Ok(Self { nodes, pods })
    }

    /// The pod of this name.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        let found = self.pods.iter().find(|pod| pod.name == name);
        found
            .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))
            .doing(format_args!("find pod {name}"))
    }

    /// Translates the service's address to its backend on every node.
    pub fn service(&self, address: SocketAddrV4, backend: SocketAddrV4) -> Result<()> {
        let rule = format!(
            "ip daddr {} tcp dport {} dnat ip to {}:{}",
            address.ip(),
            address.port(),
            backend.ip(),
            backend.port()
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

/// The part of an address that counts; plans are far smaller than it can hold.
fn octet(number: usize) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

fn join_nodes(left: &Node, right: &Node) -> Result<()> {
    let (a, b) = (left.netns.name(), right.netns.name());
    run("ip", &["link", "add", LINK, "netns", a, "type", "veth", "peer", "name", LINK, "netns", b])?;
    for (node, peer, peer_pods) in [(left, right, "10.2.0.0/16"), (right, left, "10.1.0.0/16")] {
        let ip = |arguments: &[&str]| node.netns.command("ip", arguments);
        ip(&["addr", "add", &format!("{}/24", node.address), "dev", LINK])?;
        ip(&["link", "set", LINK, "up"])?;
        ip(&["route", "add", peer_pods, "via", &peer.address.to_string()])?;
    }
    Ok(())
}

fn join_pod(node: &Node, pod: &Pod) -> Result<()> {
    let (node_ns, pod_ns) = (node.netns.name(), pod.netns.name());
    let [_, subnet, _, nth] = pod.address.octets();
    let (gateway, port) = (format!("10.{subnet}.0.1"), format!("pod{nth}"));
    let address = pod.address.to_string();
    run("ip", &["link", "add", &port, "netns", node_ns, "type", "veth", "peer", "eth0", "netns", pod_ns])?;
    let ip =
        |arguments: &str| node.netns.command("ip", &arguments.split_ascii_whitespace().collect::<Vec<_>>());
    ip(&format!("addr add {gateway}/32 dev {port}"))?;
    ip(&format!("link set {port} up"))?;
    ip(&format!("route add {address}/32 dev {port}"))?;
    let ip =
        |arguments: &str| pod.netns.command("ip", &arguments.split_ascii_whitespace().collect::<Vec<_>>());
    ip(&format!("addr add {address}/32 dev eth0"))?;
    ip("link set eth0 up")?;
    ip(&format!("route add {gateway}/32 dev eth0"))?;
    ip(&format!("route add default via {gateway} dev eth0"))?;
    Ok(())
}
