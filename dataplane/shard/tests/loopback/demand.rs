//! Connections that wait for an answer of the control plane, as a node that holds only what it asked for has them.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use halo_core::demand::Question;
use halo_core::limits::Limits;
use halo_core::net::{HBONE_PORT, NetworkAddress, OUTBOUND_PORT};
use halo_core::outcome::Reason;
use socket2::{Domain, Socket, Type};

use crate::app::{echo, until_reset};
use crate::link::Link;
use crate::peer::Peer;
use crate::rig::{DEADLINE, Rig, SERVICE, at_pod, each_shard_with, pay};

/// Somewhere outside the mesh.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 8);

fn connect(ip: Ipv4Addr) -> TcpStream {
    let socket = TcpStream::connect_timeout(&SocketAddr::from((ip, OUTBOUND_PORT)), DEADLINE).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.set_write_timeout(Some(DEADLINE)).unwrap();
    socket
}

fn check_echo(socket: &mut TcpStream) {
    socket.write_all(b"hello").unwrap();
    let mut back = [0; 5];
    socket.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"hello");
}

fn address(ip: Ipv4Addr) -> Question {
    Question::Address(NetworkAddress { network: "".into(), ip: IpAddr::from(ip) })
}

fn ask_for_what_is_missing(rig: &mut Rig) {
    rig.publish(|snapshot| Arc::make_mut(&mut snapshot.mesh).on_demand = true);
}

fn answer(rig: &mut Rig, question: Question) {
    rig.publish(|snapshot| drop(snapshot.answered.insert(question)));
}

/// Limits under which nothing that waits comes to its deadline before the test does.
fn patient() -> Limits {
    Limits { lookup_ms_max: 600_000, ..Limits::default() }
}

/// Listens beside the shard's own listener, and before it for this address.
fn listen_before_the_shard(address: SocketAddr) -> TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(16).unwrap();
    socket.into()
}

#[test]
fn a_connection_goes_on_when_the_service_it_asked_for_is_delivered() {
    each_shard_with(patient(), |mut rig| {
        ask_for_what_is_missing(&mut rig);
        let mut socket = connect(SERVICE);
        assert_eq!(rig.question(), address(SERVICE));
        // Another answer is none.
        answer(&mut rig, address(OUTSIDE));
        rig.serve(OUTBOUND_PORT, echo().port());
        check_echo(&mut socket);
        assert_eq!(rig.counters.lookups.total(), 1);
        check_echo(&mut connect(SERVICE));
        assert_eq!(rig.counters.lookups.total(), 1, "what is known is not waited for");
        assert!(rig.questions.try_recv().is_err());
    });
}

#[test]
fn a_connection_goes_out_of_the_mesh_when_the_answer_is_that_there_is_no_such_address() {
    each_shard_with(patient(), |mut rig| {
        ask_for_what_is_missing(&mut rig);
        let mut socket = connect(OUTSIDE);
        assert_eq!(rig.question(), address(OUTSIDE));
        let outside = listen_before_the_shard((OUTSIDE, OUTBOUND_PORT).into());
        answer(&mut rig, address(OUTSIDE));
        let (mut far, _) = outside.accept().unwrap();
        far.write_all(b"from outside").unwrap();
        let mut greeting = [0; 12];
        socket.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"from outside");
    });
}

#[test]
fn a_connection_without_an_answer_is_refused_at_the_deadline_and_the_next_one_asks_again() {
    each_shard_with(Limits { lookup_ms_max: 50, ..Limits::default() }, |mut rig| {
        ask_for_what_is_missing(&mut rig);
        for round in 1..=2 {
            until_reset(connect(OUTSIDE));
            assert_eq!(rig.question(), address(OUTSIDE));
            assert!(rig.questions.try_iter().all(|again| again == address(OUTSIDE)));
            assert_eq!(rig.counters.closed_by(Reason::DestinationUnknown), round);
            assert_eq!(rig.counters.lookups_expired.total(), round);
        }
        rig.until("gone", |report| report.connections.is_empty());
    });
}

#[test]
fn many_connections_to_one_address_ask_once_and_all_go_on() {
    each_shard_with(patient(), |mut rig| {
        ask_for_what_is_missing(&mut rig);
        let mut sockets: Vec<_> = (0..50).map(|_| connect(SERVICE)).collect();
        let counters = rig.counters.clone();
        rig.until("waiting", |_| counters.lookups.total() == 50);
        answer(&mut rig, address(OUTSIDE));
        assert_eq!(rig.question(), address(SERVICE));
        assert!(rig.questions.try_recv().is_err(), "asked twice");
        rig.serve(OUTBOUND_PORT, echo().port());
        sockets.iter_mut().for_each(check_echo);
        assert_eq!(rig.counters.questions_asked.total(), 1);
    });
}

#[test]
fn a_question_that_found_the_queue_full_is_asked_again_though_nothing_else_happens() {
    each_shard_with(patient(), |mut rig| {
        ask_for_what_is_missing(&mut rig);
        rig.full.store(true, Ordering::Relaxed);
        let socket = connect(OUTSIDE);
        let counters = rig.counters.clone();
        rig.until("refused", |_| counters.questions_refused.total() == 1);
        rig.full.store(false, Ordering::Relaxed);
        assert_eq!(rig.question(), address(OUTSIDE));
        assert_eq!(rig.counters.lookups.total(), 1, "the connection waited all the time");
        drop(socket);
    });
}

#[test]
fn a_question_that_is_lost_is_asked_again_while_there_is_time_for_an_answer() {
    each_shard_with(Limits { lookup_ms_max: 6_000, ..Limits::default() }, |mut rig| {
        ask_for_what_is_missing(&mut rig);
        let mut socket = connect(SERVICE);
        assert_eq!(rig.question(), address(SERVICE));
        // Nobody answers the first one, and nothing else happens.
        assert_eq!(rig.question(), address(SERVICE));
        rig.serve(OUTBOUND_PORT, echo().port());
        check_echo(&mut socket);
        assert_eq!(rig.counters.lookups.total(), 1, "the connection waited all the time");
        assert_eq!(rig.counters.lookups_expired.total(), 0);
    });
}

#[test]
fn a_pod_that_is_removed_ends_what_waits_at_once() {
    each_shard_with(patient(), |mut rig| {
        ask_for_what_is_missing(&mut rig);
        let socket = connect(OUTSIDE);
        rig.question();
        rig.remove_pod();
        until_reset(socket);
        assert_eq!(rig.counters.closed_by(Reason::WorkloadGone), 1);
        assert_eq!(rig.counters.lookups_expired.total(), 0);
    });
}

#[test]
fn what_waits_for_a_pod_that_is_removed_does_not_go_on_with_the_next_pod_of_its_uid() {
    each_shard_with(patient(), |mut rig| {
        rig.serve(OUTBOUND_PORT, echo().port());
        let certificate = Arc::new(rig.authority.issue(&pay()));
        rig.publish(|snapshot| drop(snapshot.certificates.remove(&pay())));
        let socket = connect(SERVICE);
        assert_eq!(rig.question(), Question::Certificate(pay()));
        // The connection wakes to a world in which all that it lacked is there, but its pod.
        rig.replace_pod_and_publish(|snapshot| drop(snapshot.certificates.insert(pay(), certificate)));
        until_reset(socket);
        assert_eq!(rig.counters.closed_by(Reason::WorkloadGone), 1);
        assert_eq!(rig.counters.tunnels_dialed.total(), 0);
        check_echo(&mut connect(SERVICE));
    });
}

#[test]
fn a_connection_that_waits_for_its_certificate_goes_where_the_newest_generation_says() {
    each_shard_with(patient(), |mut rig| {
        rig.serve(OUTBOUND_PORT, 1);
        let certificate = Arc::new(rig.authority.issue(&pay()));
        rig.publish(|snapshot| drop(snapshot.certificates.remove(&pay())));
        let mut socket = connect(SERVICE);
        assert_eq!(rig.question(), Question::Certificate(pay()));
        rig.serve(OUTBOUND_PORT, echo().port());
        rig.publish(|snapshot| drop(snapshot.certificates.insert(pay(), certificate)));
        check_echo(&mut socket);
        assert_eq!(rig.counters.lookups.total(), 1, "it waited once");
    });
}

#[test]
fn a_handshake_and_a_connection_that_wait_for_their_certificate_ask_for_it_once() {
    each_shard_with(patient(), |mut rig| {
        rig.serve(OUTBOUND_PORT, echo().port());
        let certificate = Arc::new(rig.authority.issue(&pay()));
        rig.publish(|snapshot| drop(snapshot.certificates.remove(&pay())));
        let inbound = TcpStream::connect_timeout(&at_pod(HBONE_PORT), DEADLINE).unwrap();
        assert_eq!(rig.question(), Question::Certificate(pay()));
        let mut outbound = connect(SERVICE);
        let counters = rig.counters.clone();
        rig.until("waiting", |_| counters.lookups.total() == 2);
        assert!(rig.questions.try_recv().is_err(), "asked twice");
        rig.publish(|snapshot| drop(snapshot.certificates.insert(pay(), certificate)));
        check_echo(&mut outbound);
        drop(Link::secure(&rig, inbound));
    });
}

#[test]
fn a_request_for_a_host_that_the_pod_serves_waits_for_the_service_of_that_name() {
    each_shard_with(patient(), |mut rig| {
        ask_for_what_is_missing(&mut rig);
        let port = echo().port();
        rig.serve(80, port);
        let service = rig.withdraw_service();
        let mut peer = Peer::dial(&rig);
        let stream = peer.request("pay.shop.svc:80");
        assert_eq!(rig.question(), Question::Service(service));
        rig.serve(80, port);
        assert_eq!(peer.answer(stream), 200);
        peer.echo(stream, b"hello");
        let service = rig.withdraw_service();
        let absent = peer.request("pay.shop.svc:80");
        assert_eq!(rig.question(), Question::Service(service.clone()));
        answer(&mut rig, Question::Service(service));
        assert_eq!(peer.answer(absent), 503);
        assert_eq!(rig.counters.closed_by(Reason::UnknownService), 1);
    });
}

#[test]
fn a_request_for_a_host_that_the_pod_does_not_serve_is_refused_without_a_question() {
    each_shard_with(patient(), |mut rig| {
        ask_for_what_is_missing(&mut rig);
        let mut peer = Peer::dial(&rig);
        for host in ["gone.shop.svc:80", "pay.shop.svc:80"] {
            let stream = peer.request(host);
            assert_eq!(peer.answer(stream), 503, "{host}");
        }
        assert_eq!(rig.counters.closed_by(Reason::UnknownService), 2);
        assert_eq!(rig.counters.lookups.total(), 0);
        assert!(rig.questions.try_recv().is_err());
    });
}
