//! Names, through real redirect rules: the mesh's own, and those that only the node's DNS server knows.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::thread;

use halo::lab::node::NodeOptions;
use halo::lab::topology::NodePlan;
use halo_control::redirect;
use halo_tests::Rig;
use halo_tests::rig::SOON;

/// Where applications send their queries: an address that nobody has.
const RESOLVER: &str = "10.96.0.10:53";
/// What the server knows of every name.
const OUTSIDE: [u8; 4] = [192, 0, 2, 7];

/// A query for the IPv4 addresses of a host.
fn query(host: &str) -> Vec<u8> {
    let mut bytes = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in host.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// The one address in an answer to `query`.
fn address(query: &[u8], answer: &[u8]) -> Ipv4Addr {
    assert_eq!((&answer[..2], answer[3] & 0xf, answer[7]), (&query[..2], 0, 1), "{answer:?}");
    let record = &answer[query.len()..];
    let ip: [u8; 4] = record[12..16].try_into().unwrap();
    ip.into()
}

/// A server that answers every query alike, in the calling thread's namespace.
fn serve(at: SocketAddr) {
    let socket = UdpSocket::bind(at).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let question = 12 + buffer[12..length].iter().position(|byte| *byte == 0).unwrap() + 5;
            let mut answer = buffer[..question].to_vec();
            answer[2] |= 0x80;
            answer[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            answer.extend(OUTSIDE);
            socket.send_to(&answer, peer).unwrap();
        }
    });
}

fn over_udp(rig: &Rig, host: &str) -> Ipv4Addr {
    let ask = || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(RESOLVER).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        let (query, mut answer) = (query(host), [0; 1500]);
        socket.send(&query).unwrap();
        let length = socket.recv(&mut answer).unwrap();
        address(&query, &answer[..length])
    };
    rig.netns("web").within(ask).unwrap()
}

fn over_tcp(rig: &Rig, host: &str) -> Ipv4Addr {
    let ask = || {
        let mut socket = TcpStream::connect_timeout(&RESOLVER.parse().unwrap(), SOON).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        let (query, mut length) = (query(host), [0; 2]);
        let framed = [&(query.len() as u16).to_be_bytes()[..], &query].concat();
        socket.write_all(&framed).unwrap();
        socket.read_exact(&mut length).unwrap();
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        socket.read_exact(&mut answer).unwrap();
        address(&query, &answer)
    };
    rig.netns("web").within(ask).unwrap()
}

#[test]
fn a_pods_queries_are_answered_by_the_mesh_or_by_the_nodes_server_whatever_it_asks() {
    let plan = [NodePlan::new("node-a", &["web"]), NodePlan::new("node-b", &["shop", "names"])];
    let mut rig = Rig::build(&plan, NodeOptions::default());
    let server = rig.address("names", 53);
    rig.netns("names").within(|| serve(server)).unwrap();
    rig.options.environment.push(("HALO_DNS_SERVERS".into(), server.to_string()));
    let service = rig.service(1, "shop", 8080);
    rig.start();
    rig.enrol(&["web", "shop"]);
    let pod = rig.pod("web");
    redirect::apply(pod.netns.fd().as_fd(), &pod.redirect()).unwrap();
    let host = rig.mesh.services[0].hostname();
    let short = host.split('.').next().unwrap().to_owned();
    for name in [&host, &short] {
        assert_eq!(over_udp(&rig, name), service.ip(), "{name}");
        assert_eq!(over_tcp(&rig, name), service.ip(), "{name}");
    }
    assert_eq!(rig.counter(0, "dns_tries"), 0, "the mesh's own names need no server");
    assert_eq!(over_udp(&rig, "api.example.com"), Ipv4Addr::from(OUTSIDE));
    assert_eq!(over_tcp(&rig, "other.example.com"), Ipv4Addr::from(OUTSIDE));
    assert_eq!(rig.counter(0, "dns_tries"), 2);
}
