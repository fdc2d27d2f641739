use std::net::UdpSocket;
use std::thread;

use hickory_proto::rr::Record;
use hickory_proto::rr::rdata::{A, AAAA};

use super::*;
use crate::pod;
use crate::ring::{Ring, RingKind};

fn dns(servers: &[SocketAddr]) -> Dns {
    Dns::new(Parts {
        config: DnsConfig { servers: servers.into(), ..DnsConfig::default() },
        place: Rc::new(Place::home().unwrap()),
        sockets: SocketOptions {
            mark: 0,
            local_congestion: None,
            ipv6: true,
            chosen: halo_core::options::Options::default(),
        },
        timers: Rc::default(),
        counters: Arc::default(),
    })
}

/// A server that knows two addresses of each family for every name but `none.example.`, and only IPv4 ones of `v4.example.`.
fn server() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let mut message = Message::from_vec(&buffer[..length]).unwrap().into_response();
            let question = message.queries[0].clone();
            let host = question.name.to_ascii();
            let all = (1..=2_u16).map(|last| match question.query_type {
                RecordType::A => RData::A(A(Ipv4Addr::new(192, 0, 2, last as u8))),
                _ => RData::AAAA(AAAA(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last))),
            });
            let v4 = question.query_type == RecordType::A;
            if host != "none.example." && (v4 || host != "v4.example.") {
                message.answers =
                    all.map(|data| Record::from_rdata(question.name.clone(), 60, data)).collect();
            }
            socket.send_to(&message.to_vec().unwrap(), peer).unwrap();
        }
    });
    address
}

fn host(hostname: &str) -> HostTarget {
    HostTarget { hostname: hostname.into(), port: 443, ipv4: true, ipv6: true, ipv6_first: false }
}

/// The families of the addresses, in order: 4 or 6.
fn families(found: &Result<Vec<IpAddr>, Reason>) -> Vec<u8> {
    found.as_ref().unwrap().iter().map(|ip| if ip.is_ipv4() { 4 } else { 6 }).collect()
}

#[test]
fn a_host_has_the_addresses_of_the_allowed_families_the_preferred_one_first() {
    for ring in [RingKind::Auto, RingKind::Epoll] {
        Ring::build(ring).unwrap().run(async {
            let (dns, pod) = (dns(&[server()]), pod::tests::pod());
            let both = dns.lookup(&pod, &host("db.example")).await;
            assert_eq!(families(&both), [4, 4, 6, 6]);
            let ipv6_first = HostTarget { ipv6_first: true, ..host("db.example") };
            assert_eq!(families(&dns.lookup(&pod, &ipv6_first).await), [6, 6, 4, 4]);
            let ipv4 = HostTarget { ipv6: false, ..host("db.example") };
            assert_eq!(families(&dns.lookup(&pod, &ipv4).await), [4, 4]);
            let ipv6 = HostTarget { ipv4: false, ..host("db.example.") };
            assert_eq!(families(&dns.lookup(&pod, &ipv6).await), [6, 6]);
            assert_eq!(families(&dns.lookup(&pod, &host("v4.example")).await), [4, 4]);
            assert_eq!(dns.counters.dns_forwarded.total(), 4, "what is known is not asked again");
            assert_eq!(pod.dns.hosts().iter().map(|(_, count)| count).sum::<u64>(), 5);
        });
    }
}

#[test]
fn a_host_without_an_address_of_an_allowed_family_is_not_resolved() {
    Ring::build(RingKind::Auto).unwrap().run(async {
        let (dns, pod) = (dns(&[server()]), pod::tests::pod());
        let unresolved = Err(Reason::HostUnresolved);
        assert_eq!(dns.lookup(&pod, &host("none.example")).await, unresolved);
        let ipv6 = HostTarget { ipv4: false, ..host("v4.example") };
        assert_eq!(dns.lookup(&pod, &ipv6).await, unresolved);
        assert_eq!(dns.lookup(&pod, &host("not..a.name")).await, unresolved);
        let ipv6 = HostTarget { ipv4: false, ..host("192.0.2.1") };
        assert_eq!(dns.lookup(&pod, &ipv6).await, unresolved);
        assert_eq!(dns.lookup(&pod, &host("192.0.2.1")).await, Ok(vec![IpAddr::from([192, 0, 2, 1])]));
        assert_eq!(dns.counters.host_lookups_failed.total(), 4);
        let none = self::dns(&[]);
        assert_eq!(none.lookup(&pod, &host("db.example")).await, unresolved);
        pod.remove();
        assert_eq!(dns.lookup(&pod, &host("db.example")).await, Err(Reason::WorkloadGone));
    });
}

#[test]
fn every_order_of_a_hosts_addresses_comes_up() {
    Ring::build(RingKind::Auto).unwrap().run(async {
        let (dns, pod) = (dns(&[server()]), pod::tests::pod());
        let mut seen = std::collections::BTreeSet::new();
        let ipv4 = HostTarget { ipv6: false, ..host("db.example") };
        for _ in 0..200 {
            seen.insert(dns.lookup(&pod, &ipv4).await.unwrap());
        }
        assert_eq!(seen.len(), 2);
    });
}
