//! Envoy as an HBONE peer: one process that takes tunnels on port 15008 and opens tunnels of its own. It plays a
//! neighbour's node proxy, a waypoint or a gateway between networks, by what its doors lead to.

mod listeners;

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;

use halo::lab::Lab;
use halo::lab::certs::Leaf;
use halo::lab::mesh::spiffe_id;
use halo::lab::process::{Process, Spec, wait_for};
use halo::lab::topology::Pod;
use serde_json::{Value, json};

use crate::certs::Root;
use crate::rig::SOON;
use crate::{Rig, binaries, socket};
use listeners::{Files, HTTP2};

/// Where it takes tunnels.
pub const HBONE: u16 = 15008;
/// The header that a waypoint adds to every answer, with the name of its pod.
pub const VIA: &str = "x-waypoint";

/// A tunnel that Envoy opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// What it asks for with CONNECT.
    pub authority: String,
    /// Who takes tunnels there.
    pub peer: SocketAddr,
    /// The SPIFFE ID that the peer must prove.
    pub identity: String,
}

impl Tunnel {
    /// To a port of a pod.
    pub fn to(pod: &Pod, port: u16) -> Self {
        Self {
            authority: SocketAddr::from((pod.address, port)).to_string(),
            peer: (pod.address, HBONE).into(),
            identity: spiffe_id(&pod.name),
        }
    }
}

/// Where bytes go on to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Onward {
    /// To this address as they are.
    Plain(SocketAddr),
    /// Into a tunnel.
    Tunnel(Tunnel),
}

/// An authority that Envoy takes CONNECT requests for.
#[derive(Debug, Clone)]
pub struct Door {
    /// The authority, `host:port`.
    pub authority: String,
    /// Whether Envoy reads the bytes as HTTP and adds [`VIA`] to the answers.
    pub http: bool,
    /// Where the bytes go, by turns.
    pub onward: Vec<Onward>,
}

/// A plain port of Envoy's that stands for what is behind a tunnel.
#[derive(Debug, Clone)]
pub struct Outlet {
    /// Envoy's port, in its own pod.
    pub port: u16,
    /// The tunnel.
    pub tunnel: Tunnel,
}

/// What Envoy does.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Where it runs.
    pub pod: &'a Pod,
    /// Its certificate.
    pub leaf: Leaf,
    /// What it takes tunnels for.
    pub doors: Vec<Door>,
    /// Its outlets.
    pub outlets: Vec<Outlet>,
}

/// Starts a waypoint in a pod outside the mesh: for each authority it reads HTTP, and tunnels it to these pods' port.
pub fn waypoint(rig: &Rig, pod: &str, fronts: &[(String, &[&str], u16)]) -> Arc<Process> {
    let door = |(authority, pods, port): &(String, &[&str], u16)| Door {
        authority: authority.clone(),
        http: true,
        onward: pods.iter().map(|pod| Onward::Tunnel(Tunnel::to(rig.pod(pod), *port))).collect(),
    };
    start_in(rig, pod, fronts.iter().map(door).collect())
}

/// Starts a gateway in a pod outside the mesh: what is inside its tunnels goes to the tunnel port of this pod, as it
/// is, for a service's authority.
pub fn gateway(rig: &Rig, pod: &str, fronts: &[(String, &str)]) -> Arc<Process> {
    let door = |(authority, pod): &(String, &str)| Door {
        authority: authority.clone(),
        http: false,
        onward: vec![Onward::Plain(rig.address(pod, HBONE))],
    };
    start_in(rig, pod, fronts.iter().map(door).collect())
}

fn start_in(rig: &Rig, pod: &str, doors: Vec<Door>) -> Arc<Process> {
    let pod = rig.pod(pod);
    let leaf = Root::of(&rig.ca()).unwrap().issue(&spiffe_id(&pod.name)).unwrap();
    start(&rig.lab, &Plan { pod, leaf, doors, outlets: Vec::new() })
}

/// Starts Envoy and waits until it listens.
pub fn start(lab: &Lab, plan: &Plan<'_>) -> Arc<Process> {
    let directory = plan.leaf.write(&lab.dir().join(format!("envoy-{}", plan.pod.name))).unwrap();
    let file = directory.join("envoy.json");
    fs::write(&file, serde_json::to_string_pretty(&configuration(plan, &Files(&directory))).unwrap())
        .unwrap();
    let arguments = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning", "-c"];
    let arguments = arguments.iter().map(Into::into).chain([file.into_os_string()]);
    let process = lab.spawn(Spec {
        name: format!("{}-envoy", plan.pod.name),
        program: binaries::envoy(),
        arguments: arguments.collect(),
        environment: Vec::new(),
        netns: plan.pod.netns.clone(),
        piped: false,
    });
    let process = process.unwrap();
    for port in plan.outlets.iter().map(|outlet| outlet.port).chain([HBONE]) {
        let here = SocketAddr::from((plan.pod.address, port));
        wait_for(&format!("Envoy listening on {here}"), SOON, || {
            process.ensure_running().map_err(|error| error.to_string())?;
            socket::connect(&plan.pod.netns, here).map(drop).map_err(|error| error.to_string())
        })
        .unwrap_or_else(|error| panic!("{error}\n{}", process.log_tail(40)));
    }
    process
}

/// The bytes of a door's streams go to the cluster `door-<n>`, by way of the listener `http-<n>` where they are HTTP.
/// Envoy reaches its own internal listeners as clusters too: `tunnel-<n>-<m>` is the m-th tunnel of the n-th door.
fn configuration(plan: &Plan<'_>, files: &Files<'_>) -> Value {
    let mut listeners = vec![listeners::hbone(plan, files)];
    let mut clusters = Vec::new();
    for (nth, door) in plan.doors.iter().enumerate() {
        let name = format!("door-{nth}");
        let mut ends = Vec::new();
        for (mth, onward) in door.onward.iter().enumerate() {
            match onward {
                Onward::Plain(address) => ends.push(listeners::socket_address(*address)),
                Onward::Tunnel(tunnel) => {
                    let name = format!("tunnel-{nth}-{mth}");
                    ends.push(listeners::internal_address(&name));
                    listeners.push(listeners::tunnel(&name, None, tunnel));
                    clusters.push(peer(&name, tunnel, files));
                }
            }
        }
        clusters.push(cluster(&name, &ends));
        if door.http {
            let http = format!("http-{nth}");
            listeners.push(listeners::http(&http, &name, &plan.pod.name));
            clusters.push(cluster(&http, &[listeners::internal_address(&http)]));
        }
    }
    for Outlet { port, tunnel } in &plan.outlets {
        let name = format!("outlet-{port}");
        listeners.push(listeners::tunnel(&name, Some(listeners::any(plan.pod, *port)), tunnel));
        clusters.push(peer(&name, tunnel, files));
    }
    let internal = "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener";
    json!({
        "bootstrap_extensions": [
            {"name": "envoy.bootstrap.internal_listener", "typed_config": {"@type": internal}},
        ],
        "static_resources": {"listeners": listeners, "clusters": clusters},
    })
}

fn cluster(name: &str, addresses: &[Value]) -> Value {
    let end = |address: &Value| json!({"endpoint": {"address": address}});
    let ends: Vec<_> = addresses.iter().map(end).collect();
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": ends}]},
    })
}

/// Who takes the tunnel of the listener of this name.
fn peer(name: &str, tunnel: &Tunnel, files: &Files<'_>) -> Value {
    let context = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": files.tls(&json!({"exact": tunnel.identity})),
    });
    let mut cluster = cluster(&format!("{name}-peer"), &[listeners::socket_address(tunnel.peer)]);
    cluster["transport_socket"] = json!({"name": "envoy.transport_sockets.tls", "typed_config": context});
    cluster["typed_extension_protocol_options"] = json!({
        HTTP2: {"@type": format!("type.googleapis.com/{HTTP2}"),
            "explicit_http_config": {"http2_protocol_options": {}}},
    });
    cluster
}
