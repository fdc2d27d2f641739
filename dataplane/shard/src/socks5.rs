//! Connections that applications ask for by SOCKS5 (127.0.0.1:15080), where the node is set to it.
//!
//! After the negotiation they are what a captured connection is: the same decision, the same tunnels. The client is
//! answered once the far side has accepted, so that it hears of a failure.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use halo_core::dns::answer::{Answer, Client, answer};
use halo_core::dns::message::{Question, RData, RecordType};
use halo_core::dns::names;
use halo_core::net::{Authority, HostTarget};
use halo_core::outcome::Reason;
use halo_core::report::Direction;
use halo_core::snapshot::Snapshot;
use halo_core::socks5::{Negotiation, Reply};
use halo_core::workload::Workload;

use crate::demand::Missing;
use crate::outbound;
use crate::pod::{Pod, Seat};
use crate::refusal::Subject;
use crate::shard::Shard;
use crate::socket::Socket;

/// Takes a client through the negotiation, and its connection to where it asked for.
pub(crate) async fn serve(seat: Seat, mut socket: Socket, client: SocketAddr) {
    let shard = seat.shard.clone();
    let closer = socket.closer();
    let deadline = shard.timers.after(shard.limits.handshake_ms_max, move || closer.abort());
    let asked = negotiate(&mut socket).await;
    drop(deadline);
    let (pod, mut known) = (seat.pod.clone(), None);
    let opened = async {
        let destination = find(&shard, &pod, client.ip(), asked?).await?;
        known = Some(destination);
        outbound::open(&seat, &socket, client, destination).await
    };
    match opened.await {
        Ok(opened) => {
            // Should it fail, so does the relay's first operation on the same socket.
            let _ = socket.writer.write_all(Reply::Succeeded.encode().to_vec()).await;
            outbound::start(seat, socket, opened);
        }
        Err(reason) => {
            shard.ended(Subject::new(&pod, Direction::Outbound, client, known), reason);
            // One that is not understood has its answer, or is gone.
            if reason != Reason::BadProxyRequest {
                let _ = socket.writer.write_all(Reply::of(reason).encode().to_vec()).await;
            }
            // In order, so that the answer is not lost with the connection.
            socket.closer().end();
        }
    }
}

/// Reads up to the end of the request, and nothing behind it.
async fn negotiate(socket: &mut Socket) -> Result<Authority, Reason> {
    let (mut negotiation, mut input, mut out) = (Negotiation::new(), Vec::with_capacity(512), Vec::new());
    loop {
        input.clear();
        let (read, filled) = socket.reader.read_up_to(input, negotiation.wants()).await;
        input = filled;
        if !matches!(read, Ok(1..)) {
            return Err(Reason::BadProxyRequest);
        }
        let handled = negotiation.handle(&input, &mut out);
        if !out.is_empty() {
            let (sent, sealed) = socket.writer.write_all(out).await;
            sent.map_err(|_| Reason::BadProxyRequest)?;
            out = sealed;
            out.clear();
        }
        if let Some(asked) = handled.map_err(|_| Reason::BadProxyRequest)? {
            return Ok(asked);
        }
    }
}

/// The address of a destination: what the pod's own DNS would have said of its name.
async fn find(
    shard: &Rc<Shard>,
    pod: &Rc<Pod>,
    client: IpAddr,
    asked: Authority,
) -> Result<SocketAddr, Reason> {
    let (hostname, port) = match asked {
        Authority::Address(address) => return Ok(address),
        Authority::Host(hostname, port) => (hostname, port),
    };
    let known = |snapshot: &Rc<Snapshot>| {
        shard.workload_of(snapshot, pod).cloned().ok_or(Missing::from(Reason::SourceUnknown))
    };
    let workload = shard.wait_for(pod, known).await?;
    let ipv6_first = client.is_ipv6();
    let hostname = match in_mesh(shard, pod, &workload, (&hostname, ipv6_first))? {
        InMesh::At(ip) => return Ok(SocketAddr::new(ip, port)),
        InMesh::Elsewhere(hostname) => hostname,
    };
    let host = HostTarget { hostname, port, ipv4: true, ipv6: shard.ipv6, ipv6_first };
    let found = shard.dns.lookup(pod, &host).await?;
    found.first().map(|ip| SocketAddr::new(*ip, port)).ok_or(Reason::HostUnresolved)
}

/// What the mesh knows of a name.
enum InMesh {
    At(IpAddr),
    /// The servers are to be asked, for this name.
    Elsewhere(Arc<str>),
}

fn in_mesh(
    shard: &Shard,
    pod: &Pod,
    workload: &Workload,
    (hostname, ipv6_first): (&Arc<str>, bool),
) -> Result<InMesh, Reason> {
    let name = names::fully_qualified(hostname).ok_or(Reason::HostUnresolved)?;
    let client = Client { workload, search: pod.dns_search.as_deref(), ipv6: shard.ipv6 };
    let mut families = [RecordType::A, RecordType::AAAA];
    if ipv6_first {
        families.reverse();
    }
    for family in families {
        let question = Question::new(name.clone(), family);
        match answer(&shard.snapshot(), &client, &question, shard.random()) {
            Answer::Own { answers, .. } => {
                let found = answers.iter().find_map(|record| match &record.data {
                    RData::A(ip) => Some(IpAddr::V4(ip.0)),
                    RData::AAAA(ip) => Some(IpAddr::V6(ip.0)),
                    _ => None,
                });
                if let Some(ip) = found {
                    return Ok(InMesh::At(ip));
                }
            }
            Answer::Alias { target, .. } => {
                let target = names::host(&target).ok_or(Reason::HostUnresolved)?;
                return Ok(InMesh::Elsewhere(target.into()));
            }
            Answer::Forward => return Ok(InMesh::Elsewhere(hostname.clone())),
        }
    }
    Err(Reason::HostUnresolved)
}
