//! An edit of the state file, until traffic feels it: a policy that forbids an open connection cuts it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use halo::lab::Result;
use halo::lab::mesh::{Action, Policy};
use halo::lab::netns::Netns;
use halo::lab::node::NodeProxy;
use halo::lab::process::{Process, wait_for};
use halo::lab::topology::Pod;

use super::figures::Figure;
use super::figures::Unit::{Count, Microseconds};
use super::stage::Stage;
use super::{Plan, parts};

/// Goal for an edit that is felt by traffic.
const FELT_US_MAX: f64 = 100_000.0;
/// The application's port.
const PORT: u16 = 9000;
/// A connect, a read or a write that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Edits the file again and again: a policy comes, an open connection goes; the policy goes, the next one is admitted.
pub(super) fn edit(plan: &Plan, stage: &Stage) -> Result<Vec<Figure>> {
    let mut mesh = stage.mesh();
    mesh.enrolled.extend(stage.topology.pods.iter().map(|pod| pod.name.clone()));
    mesh.publish()?;
    let (controller, _) = stage.control_by(mesh.path())?;
    let (node, _) = stage.node(&controller)?;
    for pod in &stage.topology.pods {
        node.agent.enrol(pod, &pod.redirect())?;
    }
    let (client, server) = (stage.client()?, stage.server()?);
    let listener = listen(&node, &server.netns)?;
    let mut times = Vec::new();
    for _ in 0..plan.single {
        let (mut open, _behind) = wait_for("a connection being admitted", PATIENCE, || {
            pair(client, server, &listener).map_err(|error| error.to_string())
        })?;
        mesh.policies.push(Policy {
            name: "no-client".into(),
            action: Action::Deny,
            pod: server.name.clone(),
            clients: vec![client.name.clone()],
        });
        let began = Instant::now();
        mesh.publish()?;
        until_cut(&node.process, &mut open)?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
        mesh.policies.clear();
        mesh.publish()?;
    }
    times.sort_by(f64::total_cmp);
    let named = |name, value| Figure::new("edit", name, value, Microseconds);
    let slowest = times.last().copied().unwrap_or_default();
    Ok(vec![
        Figure::new("edit", "edits of the state file", times.len() as f64, Count),
        named("edit to the cut of an open connection, median", times[times.len() / 2]),
        named("edit to the cut of an open connection, slowest", slowest).at_most(FELT_US_MAX),
    ])
}

fn listen(node: &NodeProxy, netns: &Netns) -> Result<TcpListener> {
    let listener = netns.within(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)))?;
    let listener = listener.and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    listener.map_err(|error| parts::fault(&node.process, format!("no application behind it: {error}")))
}

/// Both ends of a connection that has carried a byte each way.
fn pair(client: &Pod, server: &Pod, listener: &TcpListener) -> std::io::Result<(TcpStream, TcpStream)> {
    let target = SocketAddr::from((server.address, PORT));
    let connect = client.netns.within(|| TcpStream::connect_timeout(&target, PATIENCE));
    let mut stream = connect.map_err(std::io::Error::other)??;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"?")?;
    let begun = Instant::now();
    let mut behind = loop {
        match listener.accept() {
            Ok((behind, _)) => break behind,
            Err(_) if begun.elapsed() < Duration::from_secs(1) => {
                std::thread::sleep(Duration::from_millis(1))
            }
            Err(error) => return Err(error),
        }
    };
    behind.set_nonblocking(false)?;
    behind.set_read_timeout(Some(PATIENCE))?;
    let mut byte = [0];
    behind.read_exact(&mut byte)?;
    behind.write_all(b"!")?;
    stream.read_exact(&mut byte)?;
    Ok((stream, behind))
}

fn until_cut(process: &Process, open: &mut TcpStream) -> Result<()> {
    match open.read(&mut [0; 1]) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
        other => Err(parts::fault(process, format!("did not cut a connection that is forbidden: {other:?}"))),
    }
}
