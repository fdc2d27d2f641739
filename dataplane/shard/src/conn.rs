//! One relayed connection as the shard tracks it: for the live view, for policy changes, for removal and drain.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::SystemTime;

use halo_core::access::{AccessLine, Event};
use halo_core::id::Identity;
use halo_core::labels::Ends;
use halo_core::net::{Authority, HBONE_PORT};
use halo_core::outcome::Reason;
use halo_core::relay::{Relay, Way};
use halo_core::report::{ConnectionReport, Direction, Transport};

use crate::pod::Pod;
use crate::ring;
use crate::socket::Closer;
use crate::telemetry::Account;
use crate::timer::{Deadline, Timers};
use crate::tunnel::{Stream, Tunnel};

/// Who and what a connection is, fixed once it is admitted.
pub(crate) struct Parties {
    pub(crate) direction: Direction,
    pub(crate) transport: Transport,
    /// The client's address.
    pub(crate) source: SocketAddr,
    /// What the client asked for.
    pub(crate) original: Original,
    /// What the proxy connected to.
    pub(crate) destination: SocketAddr,
    pub(crate) source_identity: Option<Identity>,
    pub(crate) destination_identity: Option<Identity>,
    /// The workloads at both ends, for labels and logs.
    pub(crate) ends: Ends,
}

/// What a client asked for. It becomes text only when somebody asks.
pub(crate) enum Original {
    /// The destination of a captured connection.
    Address(SocketAddr),
    /// The authority of a CONNECT request.
    Authority(Box<str>),
    /// The destination of a captured connection, and the authority of the CONNECT request that carries it.
    Carried(SocketAddr, Authority),
}

impl fmt::Display for Original {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) | Self::Carried(address, _) => address.fmt(out),
            Self::Authority(authority) => authority.fmt(out),
        }
    }
}

/// A tracked connection.
pub(crate) struct Conn {
    pub(crate) pod: Rc<Pod>,
    pub(crate) parties: Parties,
    pub(crate) account: Account,
    /// Bytes from the client side.
    pub(crate) received: Cell<u64>,
    /// Bytes back to the client side.
    pub(crate) sent: Cell<u64>,
    relay: RefCell<Relay>,
    half_close: RefCell<Option<Deadline>>,
    /// One or two.
    sockets: RefCell<[Option<Closer>; 2]>,
    stream: RefCell<Option<(Weak<Tunnel>, Weak<Stream>)>>,
}

impl Conn {
    pub(crate) fn new(pod: Rc<Pod>, parties: Parties, account: Account, half_close_ms_max: u64) -> Self {
        Self {
            pod,
            parties,
            account,
            received: Cell::new(0),
            sent: Cell::new(0),
            relay: RefCell::new(Relay::new(half_close_ms_max)),
            half_close: RefCell::default(),
            sockets: RefCell::default(),
            stream: RefCell::default(),
        }
    }

    /// Adds a socket that ends with the connection.
    pub(crate) fn hold_socket(&self, closer: Closer) {
        let mut sockets = self.sockets.borrow_mut();
        let vacant = sockets.iter_mut().find(|socket| socket.is_none());
        debug_assert!(vacant.is_some(), "a connection has two legs at most");
        if let Some(vacant) = vacant {
            *vacant = Some(closer);
        }
    }

    /// Names the stream that ends with the connection.
    pub(crate) fn hold_stream(&self, tunnel: &Rc<Tunnel>, stream: &Rc<Stream>) {
        self.stream.replace(Some((Rc::downgrade(tunnel), Rc::downgrade(stream))));
    }

    /// Cuts the connection: its sockets are reset, its stream is reset. The first reason stands.
    pub(crate) fn cut(&self, reason: Reason) {
        self.relay.borrow_mut().failed(reason);
        for socket in self.sockets.borrow().iter().flatten() {
            socket.abort();
        }
        let stream = self.stream.borrow().clone();
        if let Some((tunnel, stream)) = stream
            && let (Some(tunnel), Some(stream)) = (tunnel.upgrade(), stream.upgrade())
        {
            tunnel.reset(&stream);
        }
    }

    /// Why it is over, once it is.
    pub(crate) fn outcome(&self) -> Option<Reason> {
        self.relay.borrow().outcome()
    }

    /// Bytes moved in one direction.
    pub(crate) fn moved(&self, way: Way, bytes: u64) {
        let total = match way {
            Way::Upstream => &self.received,
            Way::Downstream => &self.sent,
        };
        total.set(total.get() + bytes);
        self.account.moved(way, bytes);
        let mut relay = self.relay.borrow_mut();
        if relay.poll_timeout().is_some() {
            relay.progress(ring::now_ms());
        }
    }

    /// One direction ended in order; the other one must now make progress within the half-close limit.
    pub(crate) fn direction_ended(self: &Rc<Self>, way: Way, timers: &Rc<Timers>) {
        self.relay.borrow_mut().ended(way, ring::now_ms());
        self.watch(timers);
    }

    fn watch(self: &Rc<Self>, timers: &Rc<Timers>) {
        let Some(due_ms) = self.relay.borrow().poll_timeout() else {
            return;
        };
        let (conn, again) = (Rc::downgrade(self), timers.clone());
        let deadline = timers.after(due_ms.saturating_sub(ring::now_ms()), move || {
            let Some(conn) = conn.upgrade() else {
                return;
            };
            conn.relay.borrow_mut().handle_timeout(ring::now_ms());
            match conn.outcome() {
                Some(reason) => conn.cut(reason),
                None => conn.watch(&again),
            }
        });
        self.half_close.replace(Some(deadline));
    }

    /// A line about it.
    pub(crate) fn line(&self, event: Event, reason: Reason) -> AccessLine {
        let parties = &self.parties;
        let (destination, authority) = match &parties.original {
            Original::Address(_) => (parties.destination, None),
            // The client dialled the tunnel's port; the application's own is in the authority.
            Original::Authority(authority) => {
                (SocketAddr::new(parties.destination.ip(), HBONE_PORT), Some(authority.clone()))
            }
            Original::Carried(_, authority) => (parties.destination, Some(authority.to_string().into())),
        };
        AccessLine {
            policy: None,
            time: SystemTime::now(),
            event,
            direction: parties.direction,
            source: parties.source,
            destination: Some(destination),
            authority,
            traffic: Some(self.account.traffic().clone()),
            bytes: (self.received.get(), self.sent.get()),
            duration_ms: ring::now_ms().saturating_sub(self.account.begun_ms),
            reason,
            more: 0,
        }
    }

    /// The live view of it.
    pub(crate) fn report(&self) -> ConnectionReport {
        ConnectionReport {
            pod: self.pod.uid.clone(),
            direction: self.parties.direction,
            source: self.parties.source,
            original_destination: self.parties.original.to_string(),
            destination: self.parties.destination,
            transport: self.parties.transport,
            source_identity: self.parties.source_identity.clone(),
            destination_identity: self.parties.destination_identity.clone(),
            service: self.parties.ends.service.as_ref().map(|service| service.key.hostname.clone()),
            bytes_received: self.received.get(),
            bytes_sent: self.sent.get(),
        }
    }
}
