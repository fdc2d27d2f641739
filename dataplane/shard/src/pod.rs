//! A pod as one shard holds it: identity, namespace, listeners.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use halo_core::net::{HBONE_PORT, INBOUND_PLAINTEXT_PORT, Listeners, OUTBOUND_PORT, SOCKS5_PORT};
use halo_core::outcome::Reason;
use halo_core::report::Direction;

use crate::accept::{self, Capture};
use crate::dns::{self, PodDns};
use crate::mailbox::{BindError, PodSpec};
use crate::shard::Shard;
use crate::socket::{self, Dial, Listener, ListenerStop, Socket};

/// One pod.
pub(crate) struct Pod {
    pub(crate) uid: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) namespace: Arc<str>,
    pub(crate) service_account: Arc<str>,
    pub(crate) netns: Arc<OwnedFd>,
    /// Whether its applications see their clients' own addresses.
    lends_source: bool,
    /// Connections of the pod that are being opened or relayed, both ways.
    connections: Cell<usize>,
    /// Tunnels to the pod, with those in their handshake.
    tunnels: Cell<usize>,
    stopped: Cell<bool>,
    gone: Cell<bool>,
    listeners: RefCell<Vec<ListenerStop>>,
    /// The search list of its resolver, where it is known.
    pub(crate) dns_search: Option<Arc<[String]>>,
    pub(crate) dns: PodDns,
}

impl Pod {
    /// Opens the pod's listeners and starts accepting. On failure nothing stays open.
    ///
    /// # Errors
    /// The step that failed.
    pub(crate) fn open(shard: &Rc<Shard>, spec: PodSpec) -> Result<Rc<Self>, BindError> {
        let bound = bind(shard, &spec)?;
        let pod = Rc::new(Self {
            uid: spec.uid,
            name: spec.name,
            namespace: spec.namespace,
            service_account: spec.service_account,
            netns: spec.netns,
            lends_source: spec.listeners == Listeners::Captured,
            connections: Cell::new(0),
            tunnels: Cell::new(0),
            stopped: Cell::new(false),
            gone: Cell::new(false),
            listeners: RefCell::new(bound.iter().map(|(listener, _)| listener.stop_handle()).collect()),
            dns_search: spec.dns_search,
            dns: PodDns::new(&shard.dns.common),
        });
        dns::open(shard, &pod, spec.listeners)?;
        for (listener, capture) in bound {
            shard.spawn(accept::run(shard.clone(), pod.clone(), listener, capture));
        }
        Ok(pod)
    }

    /// Stops accepting.
    pub(crate) fn stop(&self) {
        self.stopped.set(true);
        for listener in self.listeners.take() {
            listener.stop();
        }
        self.dns.stop();
    }

    /// Has a listener stop with the others.
    pub(crate) fn stops(&self, listener: ListenerStop) {
        self.listeners.borrow_mut().push(listener);
    }

    /// Stops accepting for good: the pod is leaving the node, and nothing more is opened in its namespace.
    pub(crate) fn remove(&self) {
        self.gone.set(true);
        self.stop();
        self.dns.cut();
    }

    /// Whether the pod has left the node.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.get()
    }

    /// Connections that are being opened or relayed.
    pub(crate) fn connections(&self) -> usize {
        self.connections.get()
    }

    /// Takes one place among the pod's connections, or its tunnels.
    ///
    /// # Errors
    /// The limit is reached.
    pub(crate) fn seat(self: &Rc<Self>, shard: &Rc<Shard>, kind: SeatKind) -> Result<Seat, Reason> {
        let taken = self.taken(kind);
        if taken.get() >= shard.limits.connections_per_pod_max {
            return Err(Reason::LimitReached);
        }
        taken.set(taken.get() + 1);
        if let Some(direction) = kind.socket() {
            shard.telemetry.socket_opened(direction);
        }
        Ok(Seat { shard: shard.clone(), pod: self.clone(), kind })
    }

    fn taken(&self, kind: SeatKind) -> &Cell<usize> {
        match kind {
            SeatKind::Connection | SeatKind::Captured(_) => &self.connections,
            SeatKind::Tunnel => &self.tunnels,
        }
    }

    /// Opens a connection from the pod's namespace, while the pod is on the node.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn connect(
        &self,
        shard: &Shard,
        destination: SocketAddr,
        leg: Leg,
    ) -> Result<Socket, Reason> {
        if self.is_gone() {
            return Err(Reason::WorkloadGone);
        }
        let source = match leg {
            // From elsewhere nothing reaches the loopback address, which is where an application tunnel may lead.
            Leg::ToApp { client } if self.lends_source => {
                Some(client).filter(|client| *client != destination.ip() && !destination.ip().is_loopback())
            }
            Leg::ToApp { .. } | Leg::Out => None,
        };
        let dial = Dial {
            place: &shard.place,
            netns: &self.netns,
            options: &shard.sockets,
            source,
            local: matches!(leg, Leg::ToApp { .. }),
            ms_max: shard.limits.connect_ms_max,
        };
        let connected = dial.connect(destination).await.map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => Reason::ConnectTimeout,
            _ if socket::is_local(&error) => Reason::LocalSocket,
            _ => Reason::ConnectFailed,
        })?;
        if self.is_gone() {
            connected.closer().abort();
            return Err(Reason::WorkloadGone);
        }
        Ok(connected)
    }

    /// Whether [`Pod::stop`] was called.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.get()
    }
}

/// Binds the listeners of a pod.
fn bind(shard: &Shard, spec: &PodSpec) -> Result<Vec<(Rc<Listener>, Capture)>, BindError> {
    let captures = match spec.listeners {
        Listeners::Captured => &[
            (OUTBOUND_PORT, Capture::Outbound),
            (INBOUND_PLAINTEXT_PORT, Capture::InboundPlaintext),
            (HBONE_PORT, Capture::Inbound),
        ][..],
        Listeners::Own => &[(HBONE_PORT, Capture::Inbound)],
    };
    let failed = |port| move |(step, error)| BindError { step, cause: format!("port {port}: {error}") };
    let mut bound = Vec::with_capacity(captures.len() + 1);
    for (port, capture) in captures {
        let listener =
            Listener::bind(&shard.place, &spec.netns, *port, &shard.sockets).map_err(failed(*port))?;
        bound.push((Rc::new(listener), *capture));
    }
    if shard.options.socks5 && spec.listeners == Listeners::Captured {
        // For the pod's own applications alone.
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), SOCKS5_PORT);
        let listener = Listener::bind_to(&shard.place, &spec.netns, address, &shard.sockets)
            .map_err(|error| failed(SOCKS5_PORT)(("bind a listener", error)))?;
        bound.push((Rc::new(listener), Capture::Socks5));
    }
    Ok(bound)
}

/// Where a connection from a pod's namespace leads.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Leg {
    /// To an application in the pod, from its client's own address.
    ToApp {
        /// The client.
        client: IpAddr,
    },
    /// Out of the pod, from the pod's address.
    Out,
}

/// What a [`Seat`] is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SeatKind {
    /// A stream of an accepted tunnel.
    Connection,
    /// A captured connection.
    Captured(Direction),
    /// An accepted tunnel.
    Tunnel,
}

impl SeatKind {
    /// Which way the socket goes that it is for, if it is for one of its own.
    fn socket(self) -> Option<Direction> {
        match self {
            Self::Connection => None,
            Self::Captured(direction) => Some(direction),
            Self::Tunnel => Some(Direction::Inbound),
        }
    }
}

/// One place among a pod's connections or tunnels; dropping it gives the place back.
pub(crate) struct Seat {
    pub(crate) shard: Rc<Shard>,
    pub(crate) pod: Rc<Pod>,
    kind: SeatKind,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let taken = self.pod.taken(self.kind);
        taken.set(taken.get() - 1);
        if let Some(direction) = self.kind.socket() {
            self.shard.telemetry.socket_closed(direction);
        }
        self.shard.conn_ended.notify();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The pod `shop/pay` in the test's own namespace, without listeners.
    pub(crate) fn pod() -> Rc<Pod> {
        pod_among(&Default::default())
    }

    /// Like [`pod`], one of several that share this.
    pub(crate) fn pod_among(common: &dns::Common) -> Rc<Pod> {
        let netns = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        Rc::new(Pod {
            uid: "pay-0".into(),
            name: "pay-0".into(),
            namespace: "shop".into(),
            service_account: "pay".into(),
            netns: Arc::new(netns.into()),
            lends_source: true,
            connections: Cell::new(0),
            tunnels: Cell::new(0),
            stopped: Cell::new(false),
            gone: Cell::new(false),
            listeners: RefCell::default(),
            dns_search: None,
            dns: PodDns::new(common),
        })
    }
}
