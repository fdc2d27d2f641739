//! The controller of a scale run, as a process: the server half of `halo controller`, with a source that makes up a
//! large mesh and changes it when it is told to.
//!
//! A state file would be read whole for every change, which is fine for the meshes that are kept in files and hopeless
//! for a hundred changes a second at this size. The world that it feeds is the one that a file feeds.

use std::io::{self, Write};
use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use halo::node::raise_descriptor_limit;
use halo_control::controller::world::World;
use halo_control::controller::{self, ControllerConfig};
use halo_control::edit::MeshEdit;
use halo_control::source::SourceStatus;
use halo_core::workload::{Health, Protocol, Workload};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, interval_at};

use super::clock;
use crate::crowd::Crowd;
use crate::talk::{input, say};

/// Far from one another, so that one change has nothing to do with the next.
const STRIDE: u64 = 77_773;

/// A controller and its mesh.
#[derive(Debug, Clone, clap::Args)]
// The controller's flags are a group of this name too.
#[group(skip)]
pub(crate) struct Options {
    /// What `halo controller` takes.
    #[command(flatten)]
    controller: halo::controller::Options,
    /// Workloads besides the pods
    #[arg(long)]
    workloads: u32,
    /// Services of the workloads
    #[arg(long)]
    services: u32,
    /// A pod that is there, as NAME@NAMESPACE@NODE@ADDRESS[,ADDRESS]
    #[arg(long = "pod", value_parser = Resident::parse)]
    pods: Vec<Resident>,
}

/// A pod that is not made up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resident {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) node: String,
    pub(crate) addresses: Vec<IpAddr>,
}

impl Resident {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text}: want NAME@NAMESPACE@NODE@ADDRESS[,ADDRESS]");
        let parts: Vec<&str> = text.split('@').collect();
        let [name, namespace, node, addresses] = parts.as_slice() else { return Err(wrong()) };
        let addresses =
            addresses.split(',').map(str::parse).collect::<Result<_, _>>().map_err(|_| wrong())?;
        let [name, namespace, node] = [name, namespace, node].map(|part| part.to_string());
        Ok(Self { name, namespace, node, addresses })
    }

    /// As an argument.
    pub(crate) fn text(&self) -> String {
        let addresses: Vec<_> = self.addresses.iter().map(ToString::to_string).collect();
        format!("{}@{}@{}@{}", self.name, self.namespace, self.node, addresses.join(","))
    }

    /// As a workload that takes tunnels.
    pub(crate) fn workload(&self) -> Workload {
        Workload {
            uid: format!("Kubernetes//Pod/{}/{}", self.namespace, self.name).into(),
            name: self.name.as_str().into(),
            namespace: self.namespace.as_str().into(),
            addresses: self.addresses.iter().copied().collect(),
            protocol: Protocol::Hbone,
            trust_domain: "cluster.local".into(),
            service_account: self.name.as_str().into(),
            node: self.node.as_str().into(),
            canonical_name: self.name.as_str().into(),
            canonical_revision: "latest".into(),
            workload_name: self.name.as_str().into(),
            cluster_id: "Kubernetes".into(),
            ..Workload::default()
        }
    }
}

/// What the source does next.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// One change.
    Change,
    /// Changes at a rate, for so many seconds.
    Changes { per_second: u32, seconds: f64 },
}

/// What it has done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Changed {
    /// How many changes.
    pub(crate) count: u64,
    /// When the first was made, by [`clock::now_ns`].
    pub(crate) began_ns: u64,
    /// The time that making one took at most, ns.
    pub(crate) longest_ns: u64,
}

/// Runs the controller until its standard input ends.
pub(crate) fn run(options: &Options) -> ExitCode {
    match serve(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            let _ = writeln!(io::stderr(), "{problem}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: &Options) -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    raise_descriptor_limit().map_err(text)?;
    let (orders, ended) = input().map_err(text)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(text)?;
    let config = ControllerConfig::from(options.controller.clone());
    let mesh = Mesh::new(options);
    let source = |world, status: tokio::sync::watch::Sender<SourceStatus>| async move {
        mesh.follow(world, orders).await;
        // The source of a controller does not end; what it waits for is its status being looked at no more.
        status.closed().await;
    };
    runtime.block_on(controller::run_from(config, source, ended, |_| ())).map_err(|error| error.to_string())
}

/// The mesh that is made up.
struct Mesh {
    crowd: Option<Crowd>,
    pods: Vec<Resident>,
    /// Workloads that are changed are healthy or not by turns.
    unhealthy: Vec<bool>,
    next: u64,
}

impl Mesh {
    fn new(options: &Options) -> Self {
        let crowd = (options.workloads > 0).then(|| Crowd::new(options.workloads, options.services.max(1)));
        let unhealthy = vec![false; options.workloads as usize];
        Self { crowd, pods: options.pods.clone(), unhealthy, next: 0 }
    }

    /// Everything, one edit each.
    fn everything(&self) -> Vec<MeshEdit> {
        let pods = self.pods.iter().map(|pod| MeshEdit::Workload(Arc::new(pod.workload())));
        let crowd = self.crowd.iter().flat_map(|crowd| {
            let services = (0..crowd.services()).map(|n| MeshEdit::Service(Arc::new(crowd.service(n))));
            services.chain((0..crowd.workloads).map(|n| MeshEdit::Workload(Arc::new(crowd.workload(n)))))
        });
        pods.chain(crowd).collect()
    }

    /// Another change: a workload becomes unhealthy, or healthy again.
    fn change(&mut self) -> Option<MeshEdit> {
        let crowd = self.crowd.as_ref()?;
        self.next += 1;
        let number = (self.next * STRIDE) % u64::from(crowd.workloads);
        let unhealthy = &mut self.unhealthy[number as usize];
        *unhealthy = !*unhealthy;
        let health = if *unhealthy { Health::Unhealthy } else { Health::Healthy };
        let workload = Workload { health, ..crowd.workload(number as u32) };
        Some(MeshEdit::Workload(Arc::new(workload)))
    }

    /// Tells the world everything, then follows orders.
    async fn follow(mut self, world: World, mut orders: UnboundedReceiver<String>) {
        let (everything, filled) = (self.everything(), world.clone());
        // Encodes every resource, away from the tasks that serve.
        let _ = tokio::task::spawn_blocking(move || filled.apply(everything)).await;
        while let Some(line) = orders.recv().await {
            let answer = match serde_json::from_str(&line) {
                Ok(Order::Change) => self.changes(&world, 1, Duration::ZERO).await,
                Ok(Order::Changes { per_second, seconds }) => {
                    let count = (f64::from(per_second) * seconds).round() as u64;
                    self.changes(&world, count, Duration::from_secs(1) / per_second.max(1)).await
                }
                Err(error) => {
                    let _ = writeln!(io::stderr(), "`{line}` is no order: {error}");
                    return;
                }
            };
            let said = serde_json::to_string(&answer).map_err(io::Error::other).and_then(|line| say(&line));
            if said.is_err() {
                return;
            }
        }
    }

    /// So many changes, one in each interval. What is late is made up for.
    async fn changes(&mut self, world: &World, count: u64, every: Duration) -> Changed {
        let mut changed = Changed { count: 0, began_ns: clock::now_ns(), longest_ns: 0 };
        let mut ticks = (count > 1).then(|| interval_at(Instant::now() + every, every));
        for _ in 0..count {
            if let Some(ticks) = &mut ticks {
                ticks.tick().await;
            }
            let Some(edit) = self.change() else { break };
            let began = clock::now_ns();
            if count == 1 {
                changed.began_ns = began;
            }
            world.apply(vec![edit]);
            changed.count += 1;
            changed.longest_ns = changed.longest_ns.max(clock::now_ns() - began);
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_survives_being_an_argument() {
        let pod = Resident {
            name: "web-0".into(),
            namespace: "demo".into(),
            node: "node-b".into(),
            addresses: vec!["10.2.0.10".parse().unwrap(), "fd00::1".parse().unwrap()],
        };
        assert_eq!(Resident::parse(&pod.text()), Ok(pod));
        assert!(Resident::parse("web@demo@node").is_err() && Resident::parse("a@b@c@x").is_err());
    }

    #[test]
    fn every_change_changes_something() {
        let mut mesh =
            Mesh { crowd: Some(Crowd::new(10, 2)), pods: vec![], unhealthy: vec![false; 10], next: 0 };
        let world = World::default();
        let first = world.apply(mesh.everything());
        for change in 1..40 {
            let edit = mesh.change().unwrap();
            assert_eq!(world.apply(vec![edit]), first + change);
        }
    }
}
