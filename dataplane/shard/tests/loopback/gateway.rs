//! A gateway to another network, or a waypoint: it takes tunnels, and hands the bytes of each stream to a TCP connection.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Instant;

use halo_core::hbone::{
    ConnectResponse, ErrorCode, Event, HboneSession, RequestHead, SessionConfig, StreamId,
};
use halo_core::limits::Limits;
use halo_core::net::{NetworkAddress, OUTBOUND_PORT};
use halo_core::service::Service;
use halo_core::workload::{Gateway as Reference, GatewayDestination, Workload};
use halo_shard::tls::{AnyRecords, Handshake, Opened, Progress, Records, RecordsKind, TlsConfig};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::rig::{DEADLINE, Rig, cart, service, workload};

/// The gateway's address.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 3);

/// What a gateway does with a stream.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Does {
    /// Hands its bytes to whoever listens there.
    PassOn(SocketAddr),
    /// Lets it in, and is silent.
    Nothing,
    /// Does not answer.
    Wait,
    /// Answers with this status.
    Refuse(u16),
}

/// What a gateway tells of.
#[derive(Debug)]
pub(crate) enum Told {
    Asked(RequestHead),
    /// The stream was reset.
    Reset,
}

/// Starts a gateway, as `cart`. It runs until the process ends.
pub(crate) fn gateway(rig: &Rig, does: Does) -> (SocketAddr, mpsc::Receiver<Told>) {
    let listener = TcpListener::bind((GATEWAY, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let config = Arc::new(TlsConfig::new(&rig.authority.issue(&cart())).unwrap());
    let kind = rig.peer_records;
    let (told, heard) = mpsc::channel();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let (config, told) = (config.clone(), told.clone());
            thread::spawn(move || Gateway::secure(socket.unwrap(), &config, kind, does, told).run());
        }
    });
    (address, heard)
}

/// Publishes the service with a waypoint at this address, as `cart`; `uid` is the waypoint's.
pub(crate) fn publish_waypoint(rig: &mut Rig, uid: &str, waypoint: SocketAddr) {
    rig.serve(OUTBOUND_PORT, 1);
    let address = NetworkAddress { network: "".into(), ip: waypoint.ip() };
    let reference =
        Reference { destination: GatewayDestination::Address(address), hbone_mtls_port: waypoint.port() };
    let workload = Workload {
        uid: uid.into(),
        addresses: [waypoint.ip()].into(),
        service_account: "cart".into(),
        services: Default::default(),
        ..workload()
    };
    rig.publish(|snapshot| {
        let found = snapshot.services.get(&service()).unwrap();
        let waypoint = Some(reference);
        snapshot.services.insert(Arc::new(Service { waypoint, ..Service::clone(found) }));
        snapshot.workloads.insert(Arc::new(workload));
    });
}

struct Gateway {
    socket: TcpStream,
    records: AnyRecords,
    session: HboneSession,
    input: Vec<u8>,
    out: Vec<u8>,
    legs: BTreeMap<StreamId, Leg>,
    does: Does,
    told: mpsc::Sender<Told>,
    begun: Instant,
}

/// The other side of a stream.
struct Leg {
    socket: TcpStream,
    /// Bytes of the stream that the socket has not taken.
    pending: Vec<u8>,
    /// The stream has ended.
    ended: bool,
    /// The socket has ended.
    over: bool,
}

impl Gateway {
    /// Takes a connection through its handshake.
    fn secure(
        mut socket: TcpStream,
        config: &TlsConfig,
        kind: RecordsKind,
        does: Does,
        told: mpsc::Sender<Told>,
    ) -> Self {
        let mut handshake = Handshake::server(config).unwrap();
        let (mut input, mut out) = (Vec::new(), Vec::new());
        loop {
            let progress = handshake.advance(&mut input, &mut out).unwrap();
            socket.write_all(&out).unwrap();
            out.clear();
            if progress == Progress::Done {
                break;
            }
            let mut chunk = [0; 4096];
            let length = socket.read(&mut chunk).unwrap();
            input.extend_from_slice(&chunk[..length]);
        }
        socket.set_nonblocking(true).unwrap();
        let session = HboneSession::server(SessionConfig::from(&Limits::default()), 0);
        let (records, _) = handshake.finish(kind).unwrap();
        let legs = BTreeMap::new();
        Self { socket, records, session, input, out, legs, does, told, begun: Instant::now() }
    }

    fn run(mut self) {
        // The first record may have come with the end of the handshake.
        while self.take_in() {
            let ids: Vec<StreamId> = self.legs.keys().copied().collect();
            for id in ids {
                self.serve(id);
            }
            let mut control = Vec::new();
            self.session.take_output(&mut control);
            if !control.is_empty() {
                self.records.seal(&[&control], &mut self.out).unwrap();
            }
            match self.socket.write(&self.out) {
                Ok(length) => drop(self.out.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
            if !self.wait() {
                return;
            }
        }
    }

    /// Waits until there is something to do.
    fn wait(&self) -> bool {
        let mut flags = PollFlags::POLLIN;
        flags.set(PollFlags::POLLOUT, !self.out.is_empty());
        let mut polled = vec![PollFd::new(self.socket.as_fd(), flags)];
        for (id, leg) in &self.legs {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, !leg.over && self.session.sendable(*id) > 0);
            flags.set(PollFlags::POLLOUT, !leg.pending.is_empty());
            if !flags.is_empty() {
                polled.push(PollFd::new(leg.socket.as_fd(), flags));
            }
        }
        poll(&mut polled, PollTimeout::try_from(DEADLINE).unwrap()).unwrap() > 0
    }

    /// Takes in what the tunnel brought; false at its end.
    fn take_in(&mut self) -> bool {
        let mut chunk = [0; 64 * 1024];
        match self.socket.read(&mut chunk) {
            Ok(0) => return false,
            Ok(length) => self.input.extend_from_slice(&chunk[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
        loop {
            let consumed = match self.records.open(&mut self.input).unwrap() {
                Opened::NeedInput => return true,
                Opened::Closed { .. } => return false,
                Opened::Skipped { consumed } => consumed,
                Opened::Data { consumed, plaintext } => {
                    let bytes = self.input[plaintext].to_vec();
                    self.receive(&bytes);
                    consumed
                }
            };
            self.input.drain(..consumed);
        }
    }

    fn receive(&mut self, mut input: &[u8]) {
        let now_ms = self.begun.elapsed().as_millis() as u64;
        while let Some(event) = self.session.receive(&mut input, now_ms).unwrap() {
            match event {
                Event::Request { stream, request, .. } => {
                    let (status, to) = match self.does {
                        Does::Wait => (0, None),
                        Does::PassOn(to) => (200, Some(to)),
                        Does::Nothing => (200, None),
                        Does::Refuse(status) => (status, None),
                    };
                    if let Some(to) = to {
                        let socket = TcpStream::connect(to).unwrap();
                        socket.set_nonblocking(true).unwrap();
                        self.legs
                            .insert(stream, Leg { socket, pending: Vec::new(), ended: false, over: false });
                    }
                    if status > 0 {
                        let response = ConnectResponse { status, headers: Vec::new() };
                        self.session.respond(stream, &response, status != 200);
                    }
                    let _ = self.told.send(Told::Asked(request));
                }
                Event::Data { stream, bytes } => {
                    let leg = self.legs.get_mut(&stream);
                    match leg {
                        Some(leg) => leg.pending.extend_from_slice(bytes),
                        None => self.session.consumed(stream, bytes.len(), now_ms),
                    }
                }
                Event::End { stream } => {
                    if let Some(leg) = self.legs.get_mut(&stream) {
                        leg.ended = true;
                    }
                }
                Event::Reset { stream, .. } => {
                    self.legs.remove(&stream);
                    let _ = self.told.send(Told::Reset);
                }
                Event::Response { .. } | Event::Settings | Event::GoAway { .. } => {}
            }
        }
    }

    /// Moves the bytes of one stream as far as both sides let it.
    fn serve(&mut self, id: StreamId) {
        let now_ms = self.begun.elapsed().as_millis() as u64;
        let Some(leg) = self.legs.get_mut(&id) else { return };
        let written = if leg.pending.is_empty() { Ok(0) } else { leg.socket.write(&leg.pending) };
        match written {
            Ok(length) => {
                leg.pending.drain(..length);
                self.session.consumed(id, length, now_ms);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return self.cut(id),
        }
        if leg.ended && leg.pending.is_empty() {
            let _ = leg.socket.shutdown(std::net::Shutdown::Write);
        }
        let room = self.session.sendable(id).min(32 * 1024);
        if leg.over || room == 0 || self.out.len() > 256 * 1024 {
            return;
        }
        let mut chunk = vec![0; room];
        match leg.socket.read(&mut chunk) {
            Ok(length) => {
                leg.over = length == 0;
                let header = self.session.data(id, length, leg.over);
                self.records.seal(&[&header, &chunk[..length]], &mut self.out).unwrap();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(_) => return self.cut(id),
        }
        if leg.over && leg.ended {
            self.legs.remove(&id);
        }
    }

    fn cut(&mut self, id: StreamId) {
        self.session.reset(id, ErrorCode::ConnectError);
        self.legs.remove(&id);
    }
}
