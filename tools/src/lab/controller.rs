//! The control plane as the lab runs it: a real `halo controller` process on the first node, which follows the mesh's
//! file and issues the node proxies' certificates.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::mesh::{Mesh, TRUST_DOMAIN};
use super::netns::Netns;
use super::process::{Process, Spec};
use super::topology::{Node, Topology};
use super::{Doing, Lab, Result, admin};

/// Where it serves node proxies.
const PORT: u16 = 15_012;
/// Where it tells of itself.
const HEALTH_PORT: u16 = 15_014;
/// The service account of the lab's node proxies.
const NODE_ACCOUNT: &str = "halo-system/halo-node";

/// How a node proxy reaches a control plane.
#[derive(Debug, Clone)]
pub struct ControlPlane {
    /// Its URL.
    pub address: String,
    /// The root of its serving certificate, PEM.
    pub root: PathBuf,
    /// A directory with a token file for each node, named after it.
    pub tokens: PathBuf,
}

impl ControlPlane {
    /// The variables that point a node's proxy to it.
    pub fn environment(&self, node: &str) -> Vec<(String, OsString)> {
        let root = self.root.as_os_str();
        let token = self.tokens.join(node).into_os_string();
        [
            ("XDS_ADDRESS", OsString::from(&self.address)),
            ("CA_ADDRESS", OsString::from(&self.address)),
            ("XDS_ROOT_CA", root.to_owned()),
            ("CA_ROOT_CA", root.to_owned()),
            ("AUTH_TOKEN", token),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }
}

/// A program that takes the flags of `halo controller`.
#[derive(Debug, Clone)]
pub struct Program {
    /// The file.
    pub path: PathBuf,
    /// What comes before the flags.
    pub arguments: Vec<OsString>,
    /// Whether we speak with it over its standard input and output.
    pub piped: bool,
}

impl Program {
    /// The lab's own.
    pub fn of(lab: &Lab) -> Self {
        Self { path: lab.binary().to_owned(), arguments: vec!["controller".into()], piped: false }
    }
}

/// A running controller.
#[derive(Debug)]
pub struct Controller {
    /// The process.
    pub process: Arc<Process>,
    program: Program,
    dir: PathBuf,
    netns: Arc<Netns>,
    address: IpAddr,
    starts: usize,
}

impl Controller {
    /// Starts it on the first node, for every node of the topology.
    pub fn start(lab: &Lab, topology: &Topology, mesh: &Mesh) -> Result<Self> {
        Self::start_as(lab, topology, mesh.path(), Program::of(lab))
    }

    /// Starts a program that serves the nodes in its place. `state` is the file that it is told to follow.
    pub fn start_as(lab: &Lab, topology: &Topology, state: &Path, program: Program) -> Result<Self> {
        let dir = lab.dir().join("control");
        let tokens = dir.join("tokens");
        fs::create_dir_all(&tokens).doing(format_args!("create {}", tokens.display()))?;
        let mut list = String::new();
        for node in &topology.nodes {
            let token = format!("{}-{}", lab.run_id(), node.name);
            write_secret(&tokens.join(&node.name), &token)?;
            list.push_str(&entry(&token, node));
        }
        write_secret(&dir.join("tokens.yaml"), &list)?;
        let node = &topology.nodes[0];
        let (netns, address) = (node.netns.clone(), node.address);
        let process = launch(lab, (&dir, &netns), (state, address), ("controller", &program))?;
        Ok(Self { process, program, dir, netns, address, starts: 1 })
    }

    /// Starts another process in place of one that has ended.
    pub fn restart(&mut self, lab: &Lab, mesh: &Mesh) -> Result<()> {
        self.starts += 1;
        let name = format!("controller-{}", self.starts);
        let (place, told) = ((self.dir.as_path(), &self.netns), (mesh.path(), self.address));
        self.process = launch(lab, place, told, (&name, &self.program))?;
        Ok(())
    }

    /// Ends it without giving it time; its port is free then.
    pub fn kill(&self) {
        self.process.stop(Duration::ZERO);
    }

    /// Waits until it says that it is ready.
    pub fn wait_ready(&self, limit: Duration) -> Result<()> {
        self.process.wait_for("becoming ready", limit, || admin::readiness(&self.netns, HEALTH_PORT))
    }

    /// Its metrics as it tells them.
    pub fn metrics(&self) -> Result<String> {
        admin::get(&self.netns, HEALTH_PORT, "/metrics").map(|(_, text)| text)
    }

    /// How node proxies reach it.
    pub fn control_plane(&self) -> ControlPlane {
        ControlPlane {
            address: format!("https://{}", SocketAddr::from((self.address, PORT))),
            root: self.ca().join("root-cert.pem"),
            tokens: self.dir.join("tokens"),
        }
    }

    /// The directory of its root.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca")
    }

    /// The list of tokens that it takes.
    pub fn token_list(&self) -> PathBuf {
        self.dir.join("tokens.yaml")
    }
}

fn entry(token: &str, node: &Node) -> String {
    format!("- {{token: {token:?}, serviceAccount: {NODE_ACCOUNT}, node: {}}}\n", node.name)
}

fn write_secret(path: &Path, text: &str) -> Result<()> {
    let open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    let written = open.and_then(|mut file| file.write_all(text.as_bytes()));
    written.doing(format_args!("write {}", path.display()))
}

fn launch(
    lab: &Lab,
    (dir, netns): (&Path, &Arc<Netns>),
    (state, address): (&Path, IpAddr),
    (name, program): (&str, &Program),
) -> Result<Arc<Process>> {
    let path = |name: &str| dir.join(name).into_os_string();
    let flags: [OsString; 16] = [
        "--from-file".into(),
        state.as_os_str().to_owned(),
        "--listen".into(),
        SocketAddr::from((address, PORT)).to_string().into(),
        "--health".into(),
        format!("127.0.0.1:{HEALTH_PORT}").into(),
        "--ca-dir".into(),
        path("ca"),
        "--tokens".into(),
        path("tokens.yaml"),
        "--server-name".into(),
        address.to_string().into(),
        "--trusted-account".into(),
        NODE_ACCOUNT.into(),
        "--trust-domain".into(),
        TRUST_DOMAIN.into(),
    ];
    lab.spawn(Spec {
        name: name.to_owned(),
        program: program.path.clone(),
        arguments: program.arguments.iter().cloned().chain(flags).collect(),
        environment: Vec::new(),
        netns: netns.clone(),
        piped: program.piped,
    })
}
