//! The stage of a scale run: two nodes. The first has the controller and its subscribers, the second a node proxy with
//! two pods, one of which asks the other.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use halo::lab::controller::{Controller, Program};
use halo::lab::mesh::{Mesh, NAMESPACE};
use halo::lab::node::{NodeOptions, NodeProxy};
use halo::lab::process::{Process, Spec};
use halo::lab::topology::{NodePlan, Pod, Topology};
use halo::lab::{Lab, LabError, Result};

use super::feed::{Changed, Order, Resident};
use super::{Plan, Programs, subscribers};
use crate::pod::remote::{Client, Server};
use crate::room::Labs;
use crate::talk::Talk;
use crate::usage;

/// Where the controller is, and where the proxy and its pods are.
const CONTROL: &str = "node-a";
const NODE: &str = "node-b";
const CLIENT: &str = "web-0";
const SERVER: &str = "shop-0";
/// How long the controller and the node may take to know a mesh, and anything else that is waited for here.
const READY_MAX: Duration = Duration::from_secs(600);
/// What a controller may take to answer besides what it was told to do.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Memory is looked at once it changes less than by a hundredth from one look to the next, but at last after a while.
const REST: (Duration, u32) = (Duration::from_secs(4), 8);

/// The nodes, their pods and the programs on them.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) topology: Topology,
    programs: Programs,
    lab: Arc<Lab>,
    labs: Arc<Labs>,
}

/// Memory of a process that is in RAM.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    pub(super) resident: u64,
    /// With pages that processes share counted in part.
    pub(super) proportional: u64,
    /// The most that was resident since the start.
    pub(super) peak: u64,
}

impl Memory {
    pub(super) fn of(process: &Process) -> Self {
        let [resident, proportional, peak] = usage::memory(process.pid());
        Self { resident, proportional, peak }
    }

    /// Once the process has given back what it does not need any more. Without patience, at once.
    pub(super) fn at_rest(process: &Process, is_patient: bool) -> Result<Self> {
        let mut memory = Self::of(process);
        let (pause, looks) = if is_patient { REST } else { (Duration::ZERO, 0) };
        for _ in 0..looks {
            std::thread::sleep(pause);
            process.ensure_running()?;
            let before = std::mem::replace(&mut memory, Self::of(process));
            if before.resident.abs_diff(memory.resident) < before.resident / 100 {
                break;
            }
        }
        Ok(memory)
    }
}

impl Stage {
    /// Builds the nodes and the pods.
    pub(super) fn open(labs: &Arc<Labs>, programs: &Programs) -> Result<Self> {
        let lab = labs.open(&programs.halo)?;
        let plan = [NodePlan::new(CONTROL, &[]), NodePlan::new(NODE, &[CLIENT, SERVER])];
        match Topology::build(&lab, &plan) {
            Ok(topology) => Ok(Self { topology, programs: programs.clone(), lab, labs: labs.clone() }),
            Err(error) => {
                labs.close(&lab);
                Err(error)
            }
        }
    }

    /// The pods as the mesh has them.
    pub(super) fn residents(&self) -> Vec<Resident> {
        let resident = |pod: &Pod| Resident {
            name: pod.name.clone(),
            namespace: NAMESPACE.into(),
            node: self.topology.nodes[pod.node].name.clone(),
            addresses: pod.addresses.iter().collect(),
        };
        self.topology.pods.iter().map(resident).collect()
    }

    /// Starts the controller that makes its mesh up, and waits until it serves it.
    pub(super) fn feed(&self, workloads: u32, services: u32) -> Result<Feed> {
        let mut arguments: Vec<OsString> = vec!["scale-controller".into()];
        for (flag, count) in [("--workloads", workloads), ("--services", services)] {
            arguments.extend([OsString::from(flag), count.to_string().into()]);
        }
        for pod in self.residents() {
            arguments.extend(["--pod".into(), OsString::from(pod.text())]);
        }
        let program = Program { path: self.programs.bench.clone(), arguments, piped: true };
        let (controller, ready) = self.control("made-up".into(), program)?;
        let talk = Talk::new(controller.process.clone())?;
        Ok(Feed { controller, ready, talk })
    }

    /// Starts `halo controller` with a state file, and waits until it serves it.
    pub(super) fn control_from(&self, text: &str) -> Result<(Controller, Duration)> {
        let path = self.lab.dir().join("state.yaml");
        fs::write(&path, text)
            .map_err(|cause| LabError::Io { doing: format!("write {}", path.display()), cause })?;
        self.control_by(&path)
    }

    /// Starts `halo controller` with a state file that is there, and waits until it serves it.
    pub(super) fn control_by(&self, state: &Path) -> Result<(Controller, Duration)> {
        self.control(state.to_owned(), Program::of(&self.lab))
    }

    /// A mesh of the pods alone, in a file.
    pub(super) fn mesh(&self) -> Mesh {
        Mesh::new(&self.lab.dir().join("mesh.yaml"), &self.topology)
    }

    fn control(&self, state: PathBuf, program: Program) -> Result<(Controller, Duration)> {
        let began = Instant::now();
        let controller = Controller::start_as(&self.lab, &self.topology, &state, program)?;
        controller.wait_ready(READY_MAX)?;
        Ok((controller, began.elapsed()))
    }

    /// Starts a node proxy on the second node, and waits until it is ready; how long that took.
    pub(super) fn node(&self, controller: &Controller) -> Result<(NodeProxy, Duration)> {
        let options = NodeOptions {
            log: "warn".into(),
            control_plane: Some(controller.control_plane()),
            ..NodeOptions::default()
        };
        // With a control plane nothing is written there.
        let mesh = self.mesh();
        let began = Instant::now();
        let node = NodeProxy::start(&self.lab, &self.topology.nodes[1], &mesh, &options)?;
        node.wait_ready(READY_MAX)?;
        Ok((node, began.elapsed()))
    }

    /// Puts the pods into the mesh, and starts a server in one and a client in the other.
    pub(super) fn applications(&self, node: &NodeProxy) -> Result<(Client, Server)> {
        for pod in &self.topology.pods {
            node.agent.enrol(pod, &pod.redirect())?;
        }
        let server = Server::start(&self.lab, self.topology.pod(SERVER)?, &self.programs.bench)?;
        let client = Client::start(&self.lab, self.topology.pod(CLIENT)?, &self.programs.bench)?;
        Ok((client, server))
    }

    /// The pod that serves.
    pub(super) fn server(&self) -> Result<&Pod> {
        self.topology.pod(SERVER)
    }

    /// The pod that asks.
    pub(super) fn client(&self) -> Result<&Pod> {
        self.topology.pod(CLIENT)
    }

    /// Starts subscribers to the controller on the second node.
    pub(super) fn subscribers(&self, count: usize, controller: &Controller) -> Result<Talk> {
        let plane = controller.control_plane();
        let address = plane.address.trim_start_matches("https://").to_owned();
        let path = |path: PathBuf| path.into_os_string();
        let arguments: [OsString; 9] = [
            "scale-subscribers".into(),
            "--count".into(),
            count.to_string().into(),
            "--address".into(),
            address.into(),
            "--root".into(),
            path(plane.root),
            "--token".into(),
            path(plane.tokens.join(NODE)),
        ];
        let process = self.lab.spawn(Spec {
            name: "subscribers".into(),
            program: self.programs.bench.clone(),
            arguments: arguments.into(),
            environment: Vec::new(),
            netns: self.topology.nodes[1].netns.clone(),
            piped: true,
        })?;
        Talk::new(process)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.labs.close(&self.lab);
    }
}

/// The controller that makes its mesh up.
#[derive(Debug)]
pub(super) struct Feed {
    pub(super) controller: Controller,
    /// How long it took to know the mesh.
    pub(super) ready: Duration,
    talk: Talk,
}

impl Feed {
    /// Makes one change.
    pub(super) fn change(&self) -> Result<Changed> {
        self.talk.send(&Order::Change)?;
        self.talk.receive(ANSWER_MAX)
    }

    /// Begins to make changes; [`Self::changed`] waits for the last.
    pub(super) fn begin(&self, plan: &Plan, seconds: f64) -> Result<()> {
        self.talk.send(&Order::Changes { per_second: plan.per_second, seconds })
    }

    /// Waits for the last of the changes that were begun.
    pub(super) fn changed(&self, seconds: f64) -> Result<Changed> {
        self.talk.receive(ANSWER_MAX + Duration::from_secs_f64(seconds))
    }
}

/// Gives subscribers an order and waits for what they have received.
pub(super) fn received(
    talk: &Talk,
    order: subscribers::Order,
    limit: Duration,
) -> Result<subscribers::Received> {
    talk.send(&order)?;
    let received: subscribers::Received = talk.receive(limit + ANSWER_MAX)?;
    match received.problem {
        Some(problem) => Err(talk.fault(problem)),
        None => Ok(received),
    }
}
