//! Connections that applications ask for by SOCKS5 (127.0.0.1:15080), where the node is set to it.
//!
//! After the negotiation they are what a captured connection is: the same decision, the same tunnels. The client is
//! answered once the far side has accepted, so that it hears of a failure.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use halo_core::net::{Authority, HostTarget};
use halo_core::outcome::Reason;
use halo_core::report::Direction;
use halo_core::resolve::lookup;
use halo_core::socks5::{Negotiation, Reply};

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

/// The address of a destination: a service's by its host name, else what DNS says.
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
    let snapshot = shard.snapshot();
    let service = lookup::service_named(&snapshot, &pod.namespace, &hostname);
    let vips = service.into_iter().flat_map(|service| &service.vips);
    let own = vips.filter(|vip| vip.network == snapshot.mesh.network).map(|vip| vip.ip);
    let fitting = |ip: &IpAddr| ip.is_ipv4() == client.is_ipv4();
    if let Some(ip) = own.clone().find(fitting).or_else(|| own.clone().next()) {
        return Ok(SocketAddr::new(ip, port));
    }
    let ipv6_first = client.is_ipv6();
    let host = HostTarget { hostname, port, ipv4: true, ipv6: shard.ipv6, ipv6_first };
    let found = shard.dns.lookup(pod, &host).await?;
    found.first().map(|ip| SocketAddr::new(*ip, port)).ok_or(Reason::NoHealthyUpstream)
}
