//! A peer: any node proxy that takes Halo's place, under the same agent, with the same mesh file and environment.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use halo::lab::admin::{self, READINESS_PORT};
use halo::lab::agent::Agent;
use halo::lab::mesh::Mesh;
use halo::lab::process::{Process, Spec};
use halo::lab::topology::{Node, Pod, Topology, has_ipv6};
use halo::lab::{Lab, Result};

use super::nodes::{self, Nodes, READY_MAX, Redirect};
use super::{Carrier, Running, Settings, Subject, programs};
use crate::model::{ENVOY_HTTP, ENVOY_TCP, HALO, Load, NO_MESH, SubjectInfo};

/// A peer as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerOptions {
    /// Its name in the report.
    pub(crate) name: String,
    /// Its program.
    pub(crate) program: PathBuf,
    /// The program's arguments.
    pub(crate) arguments: Vec<String>,
    /// More variables, which win over those that every node proxy gets.
    pub(crate) environment: Vec<(String, String)>,
}

impl PeerOptions {
    /// Reads `NAME=PATH` and `NAME:KEY=VALUE`.
    ///
    /// # Errors
    /// What is wrong with which of them, for a person.
    pub(crate) fn parse(
        peers: &[String],
        variables: &[String],
    ) -> std::result::Result<Vec<PeerOptions>, String> {
        let mut all: Vec<PeerOptions> = Vec::new();
        for peer in peers {
            let parts = peer.split_once('=').filter(|(name, path)| !name.is_empty() && !path.is_empty());
            let (name, path) = parts.ok_or_else(|| format!("--peer {peer}: want NAME=PATH"))?;
            let taken = [NO_MESH, HALO, ENVOY_TCP, ENVOY_HTTP].contains(&name);
            if taken || name.contains(':') || all.iter().any(|other| other.name == name) {
                return Err(format!("--peer {peer}: the name must be unique and without `:`"));
            }
            let (name, program) = (name.to_owned(), PathBuf::from(path));
            all.push(Self { name, program, arguments: vec!["proxy".into()], environment: Vec::new() });
        }
        for variable in variables {
            let parts = variable.split_once(':').and_then(|(name, rest)| Some((name, rest.split_once('=')?)));
            let (name, (key, value)) =
                parts.ok_or_else(|| format!("--peer-env {variable}: want NAME:KEY=VALUE"))?;
            let peer = all.iter_mut().find(|peer| peer.name == name);
            let peer = peer.ok_or_else(|| format!("--peer-env {variable}: no --peer is called {name}"))?;
            peer.environment.push((key.to_owned(), value.to_owned()));
        }
        Ok(all)
    }
}

/// A peer with what it is started with.
#[derive(Debug)]
pub(super) struct Peer {
    options: PeerOptions,
    workers: Option<usize>,
    redirect: Redirect,
}

impl Peer {
    pub(super) fn new(options: &PeerOptions, settings: &Settings) -> Self {
        Self { options: options.clone(), workers: settings.workers, redirect: Pod::redirect }
    }

    fn launch(&self, lab: &Lab, node: &Node, mesh: &Mesh, agent: &Path) -> Result<Arc<Process>> {
        let text = |text: &str| OsString::from(text);
        let mut environment = vec![
            ("NODE_NAME".to_owned(), text(&node.name)),
            ("INPOD_UDS".to_owned(), agent.into()),
            ("LOCAL_XDS_PATH".to_owned(), mesh.path().into()),
            ("XDS_ADDRESS".to_owned(), text("")),
            ("CA_ADDRESS".to_owned(), text("")),
            ("CLUSTER_ID".to_owned(), text("Kubernetes")),
            ("IPV6_ENABLED".to_owned(), text(&has_ipv6().to_string())),
            ("RUST_LOG".to_owned(), text("warn")),
        ];
        let workers = self.workers.map(|workers| text(&workers.to_string()));
        environment.extend(workers.map(|workers| ("ZTUNNEL_WORKER_THREADS".to_owned(), workers)));
        let more = self.options.environment.iter();
        // The stock proxy issues certificates by itself only when it is told to, and others refuse to be told.
        let has_authority =
            more.clone().any(|(name, _)| matches!(name.as_str(), "CA_ADDRESS" | "HALO_CA_DIR"));
        if !has_authority {
            environment.push(("FAKE_CA".to_owned(), text("true")));
        }
        environment.extend(more.map(|(name, value)| (name.clone(), text(value))));
        lab.spawn(Spec {
            name: node.name.clone(),
            program: self.options.program.clone(),
            arguments: self.options.arguments.iter().map(|argument| text(argument)).collect(),
            environment,
            netns: node.netns.clone(),
            piped: false,
        })
    }
}

impl Subject for Peer {
    fn info(&self) -> SubjectInfo {
        let ask = |argument: &str| programs::version(&self.options.program, argument);
        let version = Some(ask("version")).filter(|version| !version.is_empty());
        let name = self.options.name.clone();
        let title = format!("{name} as node proxy");
        SubjectInfo { name, title, version: version.unwrap_or_else(|| ask("--version")) }
    }

    fn unfit(&self, _: &Load) -> Option<String> {
        None
    }

    fn start(&self, lab: Arc<Lab>, topology: Arc<Topology>) -> Result<Box<dyn Carrier>> {
        let mesh = nodes::mesh(&lab, &topology)?;
        let (mut agents, mut running) = (Vec::new(), Running::default());
        for node in &topology.nodes {
            let agent = Agent::start(&lab.dir().join(&node.name).join("zds.sock"))?;
            running.0.push(self.launch(&lab, node, &mesh, agent.path())?);
            agents.push(agent);
        }
        for (agent, process) in agents.iter().zip(&running.0) {
            agent.wait_connected(process, READY_MAX)?;
        }
        nodes::enrol(&agents.iter().collect::<Vec<_>>(), &topology, self.redirect)?;
        for (node, process) in topology.nodes.iter().zip(&running.0) {
            process
                .wait_for("becoming ready", READY_MAX, || admin::readiness(&node.netns, READINESS_PORT))?;
        }
        Ok(Box::new(Nodes { running, agents, topology, redirect: self.redirect, has_shards: false }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(peers: &[&str], variables: &[&str]) -> std::result::Result<Vec<PeerOptions>, String> {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        PeerOptions::parse(&owned(peers), &owned(variables))
    }

    #[test]
    fn peers_keep_their_order_and_each_gets_its_own_variables() {
        let peers = parse(&["a=/bin/a", "b=/opt/b=2"], &["b:KEY=x=y:z", "b:EMPTY="]).unwrap();
        assert_eq!((peers[0].name.as_str(), peers[1].program.as_path()), ("a", Path::new("/opt/b=2")));
        assert_eq!(peers[0].environment, []);
        let expected = [("KEY", "x=y:z"), ("EMPTY", "")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(peers[1].environment, expected);
    }

    #[test]
    fn what_is_wrong_with_a_peer_is_said() {
        for (peers, variables, says) in [
            (&["a"][..], &[][..], "want NAME=PATH"),
            (&["=path"], &[], "want NAME=PATH"),
            (&["a=1", "a=2"], &[], "must be unique"),
            (&["halo=1"], &[], "must be unique"),
            (&["a:b=1"], &[], "without `:`"),
            (&["a=1"], &["a:KEY"], "want NAME:KEY=VALUE"),
            (&["a=1"], &["b:KEY=1"], "no --peer is called b"),
        ] {
            let error = parse(peers, variables).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
