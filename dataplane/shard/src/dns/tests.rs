use std::net::UdpSocket;
use std::thread;

use halo_core::dns::exchange::Exchange;
use hickory_proto::rr::Record;
use hickory_proto::rr::rdata::{A, AAAA};

use super::*;
use crate::pod;
use crate::ring::{Ring, RingKind};
use crate::socket::Datagrams;

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

/// The answer to a query for IPv4 addresses: one.
fn answer_to(query: &[u8]) -> Vec<u8> {
    let mut message = Message::from_vec(query).unwrap().into_response();
    let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 1)));
    message.answers = vec![Record::from_rdata(message.queries[0].name.clone(), 60, data)];
    message.to_vec().unwrap()
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

#[test]
fn what_one_pod_is_told_is_not_told_to_another() {
    Ring::build(RingKind::Auto).unwrap().run(async {
        let dns = dns(&[server()]);
        let (first, second) = (pod::tests::pod_among(&dns.common), pod::tests::pod_among(&dns.common));
        let ipv4 = HostTarget { ipv6: false, ..host("db.example") };
        for pod in [&first, &second, &first, &second] {
            assert_eq!(families(&dns.lookup(pod, &ipv4).await), [4, 4]);
        }
        assert_eq!((dns.counters.dns_forwarded.total(), dns.counters.dns_cached.total()), (2, 2));
        // At once: neither waits for what the other one is told.
        let other = HostTarget { ipv6: false, ..host("web.example") };
        let (one, another) = both(dns.lookup(&first, &other), dns.lookup(&second, &other)).await;
        assert_eq!([families(&one), families(&another)], [[4, 4]; 2]);
        assert_eq!(dns.counters.dns_forwarded.total(), 4);
        let third = HostTarget { ipv6: false, ..host("api.example") };
        let (one, another) = both(dns.lookup(&first, &third), dns.lookup(&first, &third)).await;
        assert_eq!([families(&one), families(&another)], [[4, 4]; 2]);
        assert_eq!(dns.counters.dns_forwarded.total(), 5, "one pod asks once");
    });
}

#[test]
fn a_pod_of_the_same_uid_does_not_wait_for_what_the_one_before_it_asked() {
    Ring::build(RingKind::Auto).unwrap().run(async {
        // The first question stays without an answer until the pod is gone.
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let dns = dns(&[silent.local_addr().unwrap()]);
        let (old, new) = (pod::tests::pod_among(&dns.common), pod::tests::pod_among(&dns.common));
        assert_eq!(old.uid, new.uid);
        let ipv4 = HostTarget { ipv6: false, ..host("db.example") };
        let answering = thread::spawn(move || {
            let mut buffer = [0; 2048];
            silent.recv_from(&mut buffer).unwrap();
            let (length, peer) = silent.recv_from(&mut buffer).unwrap();
            silent.send_to(&answer_to(&buffer[..length]), peer).unwrap();
        });
        let (before, after) = both(dns.lookup(&old, &ipv4), async {
            let found = dns.lookup(&new, &ipv4).await;
            old.remove();
            found
        })
        .await;
        assert_eq!(families(&after), [4]);
        assert_eq!(before, Err(Reason::WorkloadGone));
        answering.join().unwrap();
    });
}

#[test]
fn queries_that_take_every_place_leave_room_for_lookups() {
    Ring::build(RingKind::Auto).unwrap().run(async {
        let dns = dns(&[server()]);
        let pods: Vec<_> = (0..30).map(|_| pod::tests::pod_among(&dns.common)).collect();
        let seats: Vec<Vec<_>> =
            pods.iter().map(|pod| std::iter::from_fn(|| dns.seat(&pod.dns.queries)).collect()).collect();
        assert_eq!(families(&dns.lookup(&pods[0], &host("db.example")).await), [4, 4, 6, 6]);
        drop(seats);
    });
}

#[test]
fn a_flood_of_wrong_answers_is_taken_in_turns_and_does_not_hide_the_right_one() {
    for ring in [RingKind::Auto, RingKind::Epoll] {
        Ring::build(ring).unwrap().run(async {
            let flood = UdpSocket::bind("127.0.0.1:0").unwrap();
            let dns = dns(&[flood.local_addr().unwrap()]);
            let pod = pod::tests::pod();
            let question = Question::new(names::fully_qualified("db.example").unwrap(), RecordType::A);
            let mut exchange = Exchange::new(question, dns.config.servers.clone(), 0);
            let send = exchange.poll_send(7, 0).unwrap();
            let socket = Datagrams::connect(&dns.place, &pod.netns, send.server, &dns.sockets).unwrap();
            socket.send(&send.bytes).unwrap();
            let (_, peer) = flood.recv_from(&mut [0; 2048]).unwrap();
            for _ in 0..100 {
                flood.send_to(&[0; 12], peer).unwrap();
            }
            flood.send_to(&answer_to(&send.bytes), peer).unwrap();
            for turn in 0..3 {
                assert!(!upstream::receive(&dns, &socket, &mut exchange), "turn {turn} has no bound");
                assert!(exchange.poll_done().is_none());
            }
            assert!(upstream::receive(&dns, &socket, &mut exchange));
            assert_eq!(exchange.poll_done().unwrap().unwrap().answers.len(), 1);
        });
    }
}

#[test]
fn a_host_is_found_behind_more_wrong_answers_than_one_turn_takes() {
    for ring in [RingKind::Auto, RingKind::Epoll] {
        Ring::build(ring).unwrap().run(async {
            let flood = UdpSocket::bind("127.0.0.1:0").unwrap();
            let (dns, pod) = (dns(&[flood.local_addr().unwrap()]), pod::tests::pod());
            thread::spawn(move || {
                let mut buffer = [0; 2048];
                let (length, peer) = flood.recv_from(&mut buffer).unwrap();
                for _ in 0..100 {
                    flood.send_to(&[0; 12], peer).unwrap();
                }
                flood.send_to(&answer_to(&buffer[..length]), peer).unwrap();
            });
            let ipv4 = HostTarget { ipv6: false, ..host("db.example") };
            assert_eq!(families(&dns.lookup(&pod, &ipv4).await), [4]);
        });
    }
}
