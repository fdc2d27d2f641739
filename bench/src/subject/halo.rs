//! Halo: one `halo node` a node.

use std::path::PathBuf;
use std::sync::Arc;

use halo::lab::mesh::spiffe_id;
use halo::lab::node::{NodeOptions, NodeProxy};
use halo::lab::topology::{Pod, Topology};
use halo::lab::{Lab, Result};
use halo_control::config::ShardCount;

use super::nodes::{self, Nodes, READY_MAX, Redirect};
use super::{Carrier, Running, Settings, Subject, programs};
use crate::model::{HALO, Load, SubjectInfo};

/// Halo with its defaults.
#[derive(Debug)]
pub(super) struct Halo {
    program: PathBuf,
    options: NodeOptions,
    redirect: Redirect,
}

/// As many shards as `halo node` takes by itself.
fn own_shards() -> usize {
    ShardCount::Auto.on(std::thread::available_parallelism().map_or(1, usize::from))
}

impl Halo {
    pub(super) fn new(settings: &Settings) -> Self {
        let shards = settings.workers.unwrap_or_else(own_shards);
        let options = NodeOptions { shards, log: "warn".into(), ..NodeOptions::default() };
        Self { program: settings.halo.clone(), options, redirect: Pod::redirect }
    }
}

impl Subject for Halo {
    fn info(&self) -> SubjectInfo {
        let version = programs::version(&self.program, "--version");
        SubjectInfo { name: HALO.into(), title: "Halo".into(), version }
    }

    fn unfit(&self, _: &Load) -> Option<String> {
        None
    }

    fn start(&self, lab: Arc<Lab>, topology: Arc<Topology>) -> Result<Box<dyn Carrier>> {
        let mesh = nodes::mesh(&lab, &topology)?;
        let (mut proxies, mut running) = (Vec::new(), Running::default());
        for node in &topology.nodes {
            let proxy = NodeProxy::start(&lab, node, &mesh, &self.options)?;
            running.0.push(proxy.process.clone());
            proxies.push(proxy);
        }
        for proxy in &proxies {
            proxy.wait_connected(READY_MAX)?;
        }
        let agents: Vec<_> = proxies.iter().map(|proxy| &proxy.agent).collect();
        nodes::enrol(&agents, &topology, self.redirect)?;
        for (index, proxy) in proxies.iter().enumerate() {
            proxy.wait_ready(READY_MAX)?;
            proxy.wait_tunnelled(topology.pods.len(), READY_MAX)?;
            let pods = topology.pods.iter().filter(|pod| pod.node == index);
            let identities: Vec<_> = pods.map(|pod| spiffe_id(&pod.name)).collect();
            proxy.wait_certificates(&identities, READY_MAX)?;
        }
        let agents = proxies.into_iter().map(|proxy| proxy.agent).collect();
        Ok(Box::new(Nodes { running, agents, topology, redirect: self.redirect, has_shards: true }))
    }
}
