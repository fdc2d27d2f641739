//! A tunnel over loopback, with a peer that is made of the session and record layer alone.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use halo_core::hbone::{Event, SessionConfig};
use halo_core::limits::Limits;
use halo_core::options::Options;
use halo_core::relay::Way;
use halo_core::report::{Direction, Transport};
use halo_core::snapshot::Snapshot;
use halo_core::workload::Workload;

use super::*;
use crate::access::{self, AccessLog};
use crate::conn::{Original, Parties};
use crate::demand::Demand;
use crate::netns::Place;
use crate::pod;
use crate::relay;
use crate::ring::{self, Ring, RingKind};
use crate::shard::Parts;
use crate::socket::{Listener, Socket, SocketOptions};
use crate::telemetry::Telemetry;
use crate::tls::tests::pair::{cart, connected, open_all, pay};
use crate::tls::{AnyRecords, PeerChain, RecordsKind};

const DEADLINE: Duration = Duration::from_secs(10);

/// A shard without pods.
pub(crate) fn shard() -> Rc<Shard> {
    let shard = Shard::new(Parts {
        index: 0,
        core: None,
        ring: "test",
        limits: Limits { packet_mark: 0, ..Limits::default() },
        records: RecordsKind::Sealed,
        counters: Arc::default(),
        place: Rc::new(Place::home().unwrap()),
        dns_config: crate::dns::DnsConfig::default(),
        ipv6: true,
        options: Options::default(),
        access: AccessLog::new(access::tests::output(1).0, Arc::default()),
        telemetry: Telemetry::new(Arc::default(), 60_000),
        demand: Demand::new(Arc::new(|_| true), Arc::default(), 5_000),
    });
    shard.spawn(shard.timers.clone().run());
    shard
}

/// The far end of a tunnel, on a thread of its own.
struct Far {
    socket: TcpStream,
    records: AnyRecords,
    session: HboneSession,
    wire: Vec<u8>,
}

impl Far {
    fn flush(&mut self) {
        let (mut plain, mut sealed) = (Vec::new(), Vec::new());
        self.session.take_output(&mut plain);
        if !plain.is_empty() {
            self.records.seal(&[&plain], &mut sealed).unwrap();
            self.socket.write_all(&sealed).unwrap();
        }
    }

    fn data(&mut self, stream: StreamId, payload: &[u8], end: bool) {
        let header = self.session.data(stream, payload.len(), end);
        let mut sealed = Vec::new();
        self.records.seal(&[&header, payload], &mut sealed).unwrap();
        self.socket.write_all(&sealed).unwrap();
    }

    /// Reads until an event satisfies `wanted`; the payload that came with it or before it.
    fn until(&mut self, wanted: impl Fn(&Event<'_>) -> bool) -> Vec<u8> {
        let mut payload = Vec::new();
        loop {
            let (plain, closed) = open_all(&mut self.records, &mut self.wire).unwrap();
            let mut input = &plain[..];
            let mut found = false;
            while let Some(event) = self.session.receive(&mut input, 0).unwrap() {
                found |= wanted(&event);
                if let Event::Data { bytes, .. } = event {
                    payload.extend_from_slice(bytes);
                }
            }
            self.flush();
            if found {
                return payload;
            }
            assert!(!closed, "the tunnel closed");
            let mut chunk = [0; 4096];
            let length = self.socket.read(&mut chunk).unwrap();
            assert!(length > 0, "the connection ended");
            self.wire.extend_from_slice(&chunk[..length]);
        }
    }
}

/// A connection over loopback: ours, and the far end's with a read deadline.
async fn connection(shard: &Shard) -> (Socket, SocketAddr, TcpStream) {
    let options = SocketOptions { mark: 0, local_congestion: None, ipv6: true, chosen: Options::default() };
    let pod = pod::tests::pod();
    let listener = Rc::new(Listener::bind(&shard.place, &pod.netns, 0, &options).unwrap());
    let far = TcpStream::connect((Ipv4Addr::LOCALHOST, listener.port())).unwrap();
    far.set_read_timeout(Some(DEADLINE)).unwrap();
    let (socket, from) = listener.accept().await.unwrap();
    (socket, from, far)
}

/// A tunnel that we accepted as `pay`, and its client `cart`.
async fn accepted(shard: &Rc<Shard>) -> (Rc<Tunnel>, Far) {
    let (client, server) = connected(RecordsKind::Sealed, RecordsKind::Sealed);
    let (socket, from, far) = connection(shard).await;
    let pod = pod::tests::pod();
    let peer = inbound::Peer {
        _seat: None,
        id: shard.unique(),
        pod: pod.clone(),
        client: from,
        local: socket.local_address().unwrap(),
        identity: cart(),
        own_identity: pay(),
    };
    let session = HboneSession::server(SessionConfig::from(&shard.limits), ring::now_ms());
    let secured = Secured {
        transport: socket.into(),
        records: server,
        identity: cart(),
        peer: PeerChain::default(),
        leftover: Vec::new(),
    };
    let start = Start { pod, side: Side::Inbound(Rc::new(peer)), session };
    let tunnel = Tunnel::start(shard, secured, start);
    let session = HboneSession::client(SessionConfig::from(&shard.limits), 0);
    (tunnel, Far { socket: far, records: client, session, wire: Vec::new() })
}

/// A tunnel that we dialled as `cart`, and its server `pay`.
async fn dialled(shard: &Rc<Shard>) -> (Rc<Tunnel>, Far) {
    let (client, server) = connected(RecordsKind::Sealed, RecordsKind::Sealed);
    let (socket, _, far) = connection(shard).await;
    let session = HboneSession::client(SessionConfig::from(&shard.limits), ring::now_ms());
    let secured = Secured {
        transport: socket.into(),
        records: client,
        identity: pay(),
        peer: PeerChain::default(),
        leftover: Vec::new(),
    };
    let start = Start { pod: pod::tests::pod(), side: Side::Outbound(TunnelId(1)), session };
    let tunnel = Tunnel::start(shard, secured, start);
    let session = HboneSession::server(SessionConfig::from(&shard.limits), 0);
    (tunnel, Far { socket: far, records: server, session, wire: Vec::new() })
}

/// A mesh with the test's pod at the loopback address.
pub(crate) fn mesh() -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.workloads.insert(Arc::new(Workload {
        uid: "pay-0".into(),
        name: "pay-0".into(),
        namespace: "shop".into(),
        service_account: "pay".into(),
        trust_domain: "cluster.local".into(),
        addresses: [Ipv4Addr::LOCALHOST.into()].into(),
        ..Workload::default()
    }));
    snapshot
}

/// An application that sends back what it gets.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut copy = socket.try_clone().unwrap();
        std::io::copy(&mut copy, &mut socket).unwrap();
    });
    address
}

async fn joined<T>(thread: thread::JoinHandle<T>) -> T {
    while !thread.is_finished() {
        ring::sleep_ms(1).await;
    }
    thread.join().unwrap()
}

#[test]
fn a_client_that_goes_away_keeps_the_streams_that_it_has() {
    Ring::build(RingKind::Auto).unwrap().run(async {
        let shard = shard();
        shard.adopt(Arc::new(mesh()));
        let (_tunnel, mut far) = accepted(&shard).await;
        let app = echo();
        let client = thread::spawn(move || {
            let request = ConnectRequest { authority: app.to_string(), headers: Vec::new() };
            let stream = far.session.open(&request).unwrap();
            far.flush();
            far.until(|event| matches!(event, Event::Response { response, .. } if response.status == 200));
            far.session.begin_drain();
            far.flush();
            far.data(stream, b"after GOAWAY", true);
            far.until(|event| matches!(event, Event::End { .. }))
        });
        assert_eq!(joined(client).await, b"after GOAWAY");
    });
}

#[test]
fn a_tunnel_that_ends_while_its_peer_takes_nothing_is_cut_in_time() {
    Ring::build(RingKind::Auto).unwrap().run(async {
        let shard = shard();
        let (tunnel, far) = accepted(&shard).await;
        // More than both sockets hold, so that the writer is stuck.
        tunnel.core.borrow_mut().out.resize(64 << 20, 0);
        tunnel.write_ready.notify();
        while !tunnel.core.borrow().out.is_empty() {
            ring::sleep_ms(1).await;
        }
        ring::sleep_ms(50).await;
        tunnel.fail(Reason::H2Failed);
        let cut = ring::within_ms(2 * CLOSE_MS_MAX, async {
            // The writer's task and the reader's hold the tunnel until they end.
            while Rc::strong_count(&tunnel) > 1 {
                ring::sleep_ms(10).await;
            }
        });
        assert!(cut.await.is_some(), "the tunnel's tasks never end");
        drop(far);
    });
}

#[test]
fn an_answer_that_ended_is_delivered_though_its_server_then_resets_without_error() {
    let (reason, read) = answered_and_reset(ErrorCode::NoError);
    assert_eq!((reason, read.unwrap()), (Reason::Complete, b"whole answer".to_vec()));
}

#[test]
fn a_stream_that_is_reset_for_an_error_resets_the_application() {
    let (reason, read) = answered_and_reset(ErrorCode::ConnectError);
    assert_eq!((reason, read.unwrap_err().kind()), (Reason::Reset, std::io::ErrorKind::ConnectionReset));
}

/// Relays an answer that ends and is reset with `code` in one write: the outcome, and what the application read.
fn answered_and_reset(code: ErrorCode) -> (Reason, std::io::Result<Vec<u8>>) {
    Ring::build(RingKind::Auto).unwrap().run(async {
        let shard = shard();
        let (tunnel, mut far) = dialled(&shard).await;
        let server = thread::spawn(move || {
            far.until(|event| matches!(event, Event::Request { .. }));
            let stream = StreamId(1);
            far.session.respond(stream, &ConnectResponse { status: 200, headers: Vec::new() }, false);
            far.flush();
            // One write, as a proxy makes it whose application answers and closes.
            let mut plain = far.session.data(stream, 12, true).to_vec();
            plain.extend_from_slice(b"whole answer");
            far.session.reset(stream, code);
            far.session.take_output(&mut plain);
            let mut sealed = Vec::new();
            far.records.seal(&[&plain], &mut sealed).unwrap();
            far.socket.write_all(&sealed).unwrap();
            far
        });
        let request = ConnectRequest { authority: "pay:80".to_owned(), headers: Vec::new() };
        let stream = tunnel.open(&request).unwrap();
        assert_eq!(stream.answer().await.unwrap().status, 200);
        let (app, source, client) = connection(&shard).await;
        let client = thread::spawn(move || {
            let mut all = Vec::new();
            (&client).read_to_end(&mut all).map(|_| all)
        });
        let parties = Parties {
            direction: Direction::Outbound,
            transport: Transport::Hbone,
            source,
            original: Original::Authority("".into()),
            destination: source,
            source_identity: None,
            destination_identity: None,
            ends: halo_core::labels::Ends::default(),
        };
        let tracked = shard.track(&tunnel.pod, parties);
        tracked.conn.hold_socket(app.closer());
        tracked.conn.hold_stream(&tunnel, &stream);
        let _far = joined(server).await;
        // All of it is here before the relay begins.
        ring::sleep_ms(20).await;
        let ended = Cell::new(Reason::Defect);
        let stream = StreamOf { tunnel, stream };
        relay::hbone(tracked, app, Way::Upstream, stream, |_, reason| ended.set(reason)).await;
        (ended.get(), joined(client).await)
    })
}
