//! The SOCKS5 listener, and the node proxy's own pod.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::Ordering;

use halo_core::limits::Limits;
use halo_core::net::{HBONE_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT, SOCKS5_PORT};
use halo_core::options::Options;
use halo_core::outcome::Reason;
use halo_core::report::Transport;
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};

use crate::app::{Held, connect, echo};
use crate::dns::server;
use crate::link::Link;
use crate::peer::Peer;
use crate::rig::{DEADLINE, POD, Rig, SERVICE, at_pod, each_shard, each_shard_set};

fn each_shard_with_socks5(test: fn(Rig)) {
    each_shard_set(Limits::default(), Options { socks5: true, ..Options::default() }, test);
}

fn client() -> TcpStream {
    let proxy = SocketAddr::from((Ipv4Addr::LOCALHOST, SOCKS5_PORT));
    let socket = TcpStream::connect_timeout(&proxy, DEADLINE).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

/// Asks for a destination, with the first bytes for it: the connection, and the code of the answer.
fn ask(kind: u8, address: &[u8], port: u16, first: &[u8]) -> (TcpStream, u8) {
    let mut socket = client();
    let request = [&[5, 1, 0, 5, 1, 0, kind], address, &port.to_be_bytes(), first].concat();
    socket.write_all(&request).unwrap();
    let mut answer = [0; 12];
    socket.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..3], [5, 0, 5]);
    (socket, answer[3])
}

fn check_echo((mut socket, code): (TcpStream, u8)) {
    assert_eq!(code, 0);
    socket.write_all(b" and then").unwrap();
    let mut back = [0; 14];
    socket.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"first and then");
}

#[test]
fn an_application_reaches_a_service_by_name_and_by_address_through_the_captured_ones_tunnel() {
    each_shard_with_socks5(|mut rig| {
        rig.serve(OUTBOUND_PORT, echo().port());
        let captured = connect();
        let name = b"\x0cpay.shop.svc";
        check_echo(ask(3, name, OUTBOUND_PORT, b"first"));
        check_echo(ask(1, &SERVICE.octets(), OUTBOUND_PORT, b"first"));
        rig.until("carried", |report| report.connections.iter().any(|one| one.transport == Transport::Hbone));
        assert_eq!(rig.counters.tunnels_dialed.total(), 1, "all share one tunnel");
        drop(captured);
    });
}

/// A name as a request carries it.
fn name(text: &str) -> Vec<u8> {
    [&[text.len() as u8], text.as_bytes()].concat()
}

#[test]
fn a_name_that_the_mesh_does_not_know_is_asked_of_the_servers() {
    each_shard_with_socks5(|rig| {
        let app = echo();
        let asked = server(0, |question| {
            let wanted = question.queries[0].clone();
            let mut message = question.into_response();
            message.edns = None;
            if wanted.query_type == RecordType::A {
                let data = RData::A(A(POD));
                message.answers = vec![Record::from_rdata(wanted.name, 60, data)];
            }
            vec![message.to_vec().unwrap()]
        });
        check_echo(ask(3, &name("api.example"), app.port(), b"first"));
        assert_eq!(asked.load(Ordering::SeqCst), 2, "once for each family");
        assert_eq!(rig.counters.host_lookups.total(), 1);
    });
}

#[test]
fn a_name_is_resolved_as_the_pods_own_dns_does_it_by_its_search_list() {
    each_shard_with_socks5(|mut rig| {
        rig.search(&["corp.example"]);
        rig.serve(OUTBOUND_PORT, echo().port());
        check_echo(ask(3, &name("pay.shop.svc.corp.example"), OUTBOUND_PORT, b"first"));
        assert_eq!(rig.counters.host_lookups.total(), 0);
    });
}

#[test]
fn a_name_waits_for_the_pods_own_workload() {
    each_shard_with_socks5(|mut rig| {
        rig.serve(OUTBOUND_PORT, echo().port());
        let known = rig.withdraw_pod();
        let asking = std::thread::spawn(|| ask(3, &name("pay.shop.svc"), OUTBOUND_PORT, b"first"));
        rig.until("waits", |_| rig.counters.lookups.total() == 1);
        rig.publish(|snapshot| snapshot.workloads.insert(known));
        check_echo(asking.join().unwrap());
    });
}

#[test]
fn a_client_is_told_that_its_connection_failed() {
    each_shard_with_socks5(|rig| {
        let closed = Held::new().address();
        let to_closed = ask(1, &Ipv4Addr::new(10, 9, 9, 40).octets(), closed.port(), b"");
        let to_proxy = ask(1, &[127, 0, 0, 1], SOCKS5_PORT, b"");
        let to_capture = ask(1, &POD.octets(), OUTBOUND_PORT, b"");
        // The kernel takes the unspecified address for the loopback one.
        let to_any = ask(1, &[0; 4], SOCKS5_PORT, b"");
        let to_any_ipv6 = ask(4, &[0; 16], OUTBOUND_PORT, b"");
        let own = [to_proxy, to_capture, to_any, to_any_ipv6].map(|own| (own, 2));
        for ((mut socket, code), expected) in [(to_closed, 5)].into_iter().chain(own) {
            assert_eq!(code, expected);
            assert_eq!(socket.read(&mut [0; 8]).unwrap(), 0, "nothing follows");
        }
        assert_eq!(rig.counters.closed_by(Reason::OwnPort), 4);
        let mut stranger = client();
        stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        // What it said is not read to its end, so its connection may end with a reset.
        assert!(matches!(stranger.read(&mut [0; 8]), Ok(0) | Err(_)));
        rig.until("told", |_| rig.counters.closed_by(Reason::BadProxyRequest) == 1);
    });
}

#[test]
fn the_listeners_port_is_the_proxys_own_for_peers_too() {
    each_shard_with_socks5(|rig| {
        assert_eq!(Peer::dial(&rig).ask(at_pod(SOCKS5_PORT)).1, 503);
        assert_eq!(rig.counters.closed_by(Reason::OwnPort), 1);
    });
}

#[test]
fn without_the_option_there_is_no_such_listener() {
    each_shard(|_rig| {
        let proxy = SocketAddr::from((Ipv4Addr::LOCALHOST, SOCKS5_PORT));
        let refused = TcpStream::connect_timeout(&proxy, DEADLINE).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn the_proxys_own_pod_has_tunnels_alone_and_its_applications_do_not_see_their_clients_address() {
    each_shard(|mut rig| {
        rig.own_pod();
        for port in [OUTBOUND_PORT, INBOUND_PLAINTEXT_PORT] {
            assert!(TcpStream::connect_timeout(&at_pod(port), DEADLINE).is_err(), "{port}");
        }
        assert!(TcpStream::connect_timeout(&at_pod(HBONE_PORT), DEADLINE).is_ok());
        let (app, denied) = (Held::new(), Held::new());
        rig.deny(denied.address().port());
        let client = Ipv4Addr::new(10, 9, 9, 7);
        let mut peer = Peer::on(Link::dial_from(&rig, client));
        let (stream, status) = peer.ask(app.address());
        assert_eq!(status, 200);
        let mut socket = app.accept();
        assert_ne!(socket.peer_addr().unwrap().ip(), client);
        socket.write_all(b"metrics").unwrap();
        assert_eq!(peer.read(stream, 7), b"metrics");
        assert_eq!(peer.ask(denied.address()).1, 401, "policies apply");
    });
}
