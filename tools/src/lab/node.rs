//! A node proxy as the lab runs it: a real `halo node` process in its node's namespace, with the agent that serves
//! it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::admin::{Certificate, Dump, READINESS_PORT};
use super::agent::Agent;
use super::controller::ControlPlane;
use super::mesh::Mesh;
use super::netns::Netns;
use super::process::{Process, Spec};
use super::topology::Node;
use super::{Doing, Lab, Result, admin};

/// Port of the metrics.
const METRICS_PORT: u16 = 15_020;
/// How long a certificate of the lab lives.
pub const CERTIFICATE_TTL: &str = "1h";

/// What every node proxy of a lab shares.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// Shards of each proxy.
    pub shards: usize,
    /// Its log filter.
    pub log: String,
    /// Where it takes the mesh and its certificates from; without one, from the lab's file and a root that they share.
    pub control_plane: Option<ControlPlane>,
    /// More variables, which win over those that the lab sets.
    pub environment: Vec<(String, String)>,
    /// More variables of the node of this name, which win over all others.
    pub of_node: BTreeMap<String, Vec<(String, String)>>,
    /// What the proxies find at `/etc/resolv.conf`; the machine's own, if not given.
    pub resolver: Option<PathBuf>,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self {
            shards: 1,
            log: "info".into(),
            control_plane: None,
            environment: Vec::new(),
            of_node: BTreeMap::new(),
            resolver: None,
        }
    }
}

/// A running node proxy and its agent.
#[derive(Debug)]
pub struct NodeProxy {
    /// The process.
    pub process: Arc<Process>,
    /// The agent that enrols pods with it.
    pub agent: Agent,
    netns: Arc<Netns>,
}

impl NodeProxy {
    /// Starts the agent's socket and the proxy. Both proxies of a lab share the embedded CA's directory.
    pub fn start(lab: &Lab, node: &Node, mesh: &Mesh, options: &NodeOptions) -> Result<Self> {
        let agent = Agent::start(&lab.dir().join(&node.name).join("zds.sock"))?;
        let process = launch(lab, (node, &node.name), mesh, (options, agent.path()))?;
        Ok(Self { process, agent, netns: node.netns.clone() })
    }

    /// Starts another process in place of one that has ended. The agent stays, and gives it the same pods.
    pub fn restart(&mut self, lab: &Lab, node: &Node, mesh: &Mesh, options: &NodeOptions) -> Result<()> {
        let name = format!("{}-again", self.process.name());
        self.process = launch(lab, (node, &name), mesh, (options, self.agent.path()))?;
        Ok(())
    }

    /// Waits until the proxy is connected to its agent; a proxy that ends meanwhile is reported at once.
    pub fn wait_connected(&self, limit: Duration) -> Result<()> {
        self.agent.wait_connected(&self.process, limit)
    }

    /// Waits until the proxy says that it is ready.
    pub fn wait_ready(&self, limit: Duration) -> Result<()> {
        self.process.wait_for("becoming ready", limit, || admin::readiness(&self.netns, READINESS_PORT))
    }

    /// Waits until the proxy knows that exactly `count` workloads take tunnels.
    pub fn wait_tunnelled(&self, count: usize, limit: Duration) -> Result<()> {
        self.wait_dump(&format!("learning of {count} enrolled workloads"), limit, |dump| {
            let workloads = dump.all["workloads"].as_array().cloned().unwrap_or_default();
            let tunnelled = workloads.iter().filter(|workload| workload["protocol"] == "HBONE").count();
            if tunnelled == count { Ok(()) } else { Err(format!("{tunnelled} of {}", workloads.len())) }
        })
    }

    /// Waits until the proxy holds a certificate for each identity; gives them in the same order.
    pub fn wait_certificates(&self, identities: &[String], limit: Duration) -> Result<Vec<Certificate>> {
        self.wait_dump("holding its pods' certificates", limit, |dump| {
            let of = |identity: &String| {
                let ours = |c: &&Certificate| c.identity == *identity && c.state == "Available";
                dump.certificates.iter().find(ours).cloned()
            };
            let found: Option<Vec<_>> = identities.iter().map(of).collect();
            found.ok_or_else(|| format!("{:?}", dump.certificates))
        })
    }

    /// Waits until the proxy has exactly these policies, by name.
    pub fn wait_policies(&self, names: &[&str], limit: Duration) -> Result<()> {
        self.wait_dump(&format!("adopting the policies {names:?}"), limit, |dump| {
            let policies = dump.all["policies"].as_array().cloned().unwrap_or_default();
            let mut known: Vec<_> = policies.iter().filter_map(|policy| policy["name"].as_str()).collect();
            known.sort_unstable();
            if known == names { Ok(()) } else { Err(format!("{known:?}")) }
        })
    }

    /// Asks for the configuration dump until it satisfies `look`.
    pub fn wait_dump<T>(
        &self,
        what: &str,
        limit: Duration,
        look: impl Fn(&Dump) -> std::result::Result<T, String>,
    ) -> Result<T> {
        self.process.wait_for(what, limit, || look(&self.dump().map_err(|error| error.to_string())?))
    }

    /// Its metrics, as text.
    pub fn metrics(&self) -> Result<String> {
        admin::get(&self.netns, METRICS_PORT, "/metrics").map(|(_, text)| text)
    }

    /// What the proxy says about itself.
    pub fn dump(&self) -> Result<Dump> {
        admin::dump(&self.netns)
    }
}

/// A proxy process of this name on a node, with these options, for the agent at this socket.
pub fn launch(
    lab: &Lab,
    (node, name): (&Node, &str),
    mesh: &Mesh,
    (options, agent): (&NodeOptions, &Path),
) -> Result<Arc<Process>> {
    let text = |text: &str| OsString::from(text);
    let path = |path: &Path| path.as_os_str().to_owned();
    let mut environment = vec![
        ("NODE_NAME".to_owned(), text(&node.name)),
        ("INPOD_UDS".to_owned(), path(agent)),
        ("SECRET_TTL".to_owned(), text(CERTIFICATE_TTL)),
        ("ZTUNNEL_WORKER_THREADS".to_owned(), text(&options.shards.to_string())),
        ("RUST_LOG".to_owned(), text(&options.log)),
    ];
    match &options.control_plane {
        Some(control_plane) => environment.extend(control_plane.environment(&node.name)),
        None => {
            let ca = lab.dir().join("ca");
            std::fs::create_dir_all(&ca).doing(format_args!("create {}", ca.display()))?;
            environment.push(("LOCAL_XDS_PATH".to_owned(), path(mesh.path())));
            environment.push(("HALO_CA_DIR".to_owned(), path(&ca)));
        }
    }
    let cores = node.cores.of(options.shards);
    if !cores.is_empty() {
        let cores: Vec<_> = cores.iter().map(ToString::to_string).collect();
        environment.push(("HALO_CORES".to_owned(), text(&cores.join(","))));
    }
    let own = options.of_node.get(&node.name).into_iter().flatten();
    environment
        .extend(options.environment.iter().chain(own).map(|(name, value)| (name.clone(), text(value))));
    let command = [lab.binary().into(), "node".into()];
    let (program, arguments) = match &options.resolver {
        Some(file) => with_resolver(file, &command),
        None => (lab.binary().to_owned(), vec!["node".into()]),
    };
    lab.spawn(Spec {
        name: name.to_owned(),
        program,
        arguments,
        environment,
        netns: node.netns.clone(),
        piped: false,
    })
}

/// A command that sees this file at `/etc/resolv.conf`, as programs in a container see their own.
pub fn with_resolver(file: &Path, command: &[OsString]) -> (PathBuf, Vec<OsString>) {
    const MOUNT: &str = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
    let unshare = ["--mount", "--propagation", "private", "sh", "-c", MOUNT];
    let arguments =
        unshare.map(OsString::from).into_iter().chain([file.into()]).chain(command.iter().cloned());
    ("unshare".into(), arguments.collect())
}
