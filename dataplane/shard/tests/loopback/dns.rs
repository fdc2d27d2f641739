//! DNS queries of the pod, and servers that answer, lie or are silent.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use halo_core::dns::DNS_PORT;
use halo_core::limits::Limits;
use halo_core::net::NetworkAddress;
use halo_core::service::{Service, ServiceKey, Visibility};
use halo_core::workload::Workload;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};

use crate::rig::{DEADLINE, DNS_SERVERS, Rig, each_dns_shard};

/// Where captured queries go.
const LISTENER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), DNS_PORT);

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn query(id: u16, host: &str, record_type: RecordType) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries = vec![Query::query(name(host), record_type)];
    message
}

fn address(host: &str, last: u8) -> Record {
    Record::from_rdata(name(host), 60, RData::A(A(Ipv4Addr::new(192, 0, 2, last))))
}

/// An application's resolver.
struct Client(UdpSocket);

impl Client {
    fn new() -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20)).unwrap();
        socket.connect(LISTENER).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self(socket)
    }

    fn receive(&self) -> Message {
        let mut buffer = [0; 4096];
        let length = self.0.recv(&mut buffer).expect("an answer in time");
        Message::from_vec(&buffer[..length]).unwrap()
    }

    fn ask(&self, message: &Message) -> Message {
        self.0.send(&message.to_vec().unwrap()).unwrap();
        let answer = self.receive();
        assert_eq!(answer.metadata.id, message.metadata.id);
        answer
    }

    fn a(&self, host: &str) -> Message {
        self.ask(&query(7, host, RecordType::A))
    }
}

/// Runs a server; `answer` makes the datagrams that it sends back for each one that it gets.
pub(crate) fn server(
    at: usize,
    answer: impl Fn(Message) -> Vec<Vec<u8>> + Send + 'static,
) -> Arc<AtomicUsize> {
    let socket = UdpSocket::bind(DNS_SERVERS[at]).unwrap();
    setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20)).unwrap();
    let count = Arc::<AtomicUsize>::default();
    let seen = count.clone();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            seen.fetch_add(1, Ordering::SeqCst);
            for reply in answer(Message::from_vec(&buffer[..length]).unwrap()) {
                // The shard may have closed its socket already.
                let _ = socket.send_to(&reply, peer);
            }
        }
    });
    count
}

/// The answer of an honest server that knows one address for every name.
fn honest(question: Message) -> Message {
    let host = question.queries[0].name.clone();
    let mut message = question.into_response();
    message.edns = None;
    message.metadata.authoritative = true;
    message.answers = vec![address(&host.to_ascii(), 1)];
    message.additionals = vec![address("more.example.", 2)];
    message
}

fn ended(code: ResponseCode) -> impl Fn(Message) -> Vec<Vec<u8>> + Send {
    move |question| {
        let mut message = question.into_response();
        message.edns = None;
        message.metadata.response_code = code;
        let zone = SOA::new(name("ns."), name("a."), 1, 1, 1, 1, 60);
        message.authorities = vec![Record::from_rdata(name("example."), 60, RData::SOA(zone))];
        vec![message.to_vec().unwrap()]
    }
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    let of = |record: &Record| record.data.ip_addr();
    message.answers.iter().filter_map(of).collect()
}

/// Publishes a service with this address.
fn publish(rig: &mut Rig, host: &str, ip: Option<Ipv4Addr>) -> ServiceKey {
    let key = ServiceKey::new("shop", host);
    let service = Service {
        key: key.clone(),
        name: "web".into(),
        vips: ip.into_iter().map(|ip| NetworkAddress { network: "".into(), ip: ip.into() }).collect(),
        cidr_vips: vec![],
        ports: [(80, 8080)].into(),
        subject_alt_names: vec![],
        waypoint: None,
        weighted_waypoints: vec![],
        load_balancer: None,
        ip_families: None,
        canonical: false,
        visibility: Visibility::Public,
    };
    rig.publish(|snapshot| snapshot.services.insert(Arc::new(service)));
    key
}

/// A connection of a resolver over TCP.
struct Stream(TcpStream);

impl Stream {
    fn new() -> Self {
        let socket = TcpStream::connect_timeout(&LISTENER, DEADLINE).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self(socket)
    }

    fn send(&mut self, messages: &[Message]) {
        let mut bytes = Vec::new();
        for message in messages {
            let message = message.to_vec().unwrap();
            bytes.extend((message.len() as u16).to_be_bytes());
            bytes.extend(message);
        }
        self.0.write_all(&bytes).unwrap();
    }

    fn receive(&mut self) -> Message {
        let mut length = [0; 2];
        self.0.read_exact(&mut length).unwrap();
        let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
        self.0.read_exact(&mut message).unwrap();
        Message::from_vec(&message).unwrap()
    }
}

#[test]
fn a_service_is_answered_without_any_server() {
    each_dns_shard(Limits::default(), |mut rig| {
        publish(&mut rig, "web.shop.svc.cluster.local", Some(Ipv4Addr::new(10, 1, 0, 1)));
        let answer = Client::new().a("Web.shop.");
        assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
        assert_eq!(addresses(&answer), [IpAddr::from([10, 1, 0, 1])]);
        let mut stream = Stream::new();
        stream.send(&[query(1, "web.", RecordType::A), query(2, "web.", RecordType::AAAA)]);
        let (first, second) = (stream.receive(), stream.receive());
        assert_eq!((first.metadata.id, addresses(&first).len()), (1, 1));
        assert_eq!((second.metadata.id, second.answers.len()), (2, 0));
        assert_eq!(rig.counters.dns_queries.total(), 3);
        assert_eq!(rig.counters.dns_forwarded.total(), 0);
        let mut told = rig.inspect().dns;
        told.sort_by_key(|series| (series.query_type, series.protocol));
        let told: Vec<_> =
            told.iter().map(|series| (series.query_type, series.protocol, series.requests)).collect();
        assert_eq!(told, [("a", "tcp", 1), ("a", "udp", 1), ("aaaa", "tcp", 1)]);
    });
}

#[test]
fn a_service_is_answered_over_ipv6_as_well() {
    each_dns_shard(Limits::default(), |mut rig| {
        publish(&mut rig, "web.shop.svc.cluster.local", Some(Ipv4Addr::new(10, 1, 0, 1)));
        let socket = UdpSocket::bind("[::1]:0").unwrap();
        socket.connect(("::1", DNS_PORT)).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        assert_eq!(addresses(&Client(socket).a("web.")).len(), 1);
    });
}

#[test]
fn other_names_are_answered_by_a_server_and_then_by_the_cache() {
    each_dns_shard(Limits::default(), |rig| {
        let asked = server(0, |question| {
            assert!(question.queries[0].name.eq_case(&name("Api.example.")));
            vec![honest(question).to_vec().unwrap()]
        });
        let client = Client::new();
        let answer = client.a("Api.example.");
        assert!(!answer.metadata.authoritative && answer.metadata.recursion_available);
        assert_eq!(addresses(&answer), [IpAddr::from([192, 0, 2, 1])]);
        assert_eq!(answer.additionals.len(), 1, "what the server adds is passed on");
        let again = client.a("aPI.EXAMPLE.");
        assert!(again.answers[0].name.eq_case(&name("aPI.EXAMPLE.")), "in the client's own case");
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert_eq!(rig.counters.dns_cached.total(), 1);
        let told = rig.inspect().dns;
        let [series] = &told[..] else { panic!("one series: {told:?}") };
        assert_eq!((series.requests, series.forwarded, series.failed), (2, 2, 0));
    });
}

#[test]
fn that_there_is_nothing_is_passed_on_and_remembered() {
    each_dns_shard(Limits::default(), |_rig| {
        let asked = server(0, ended(ResponseCode::NXDomain));
        let client = Client::new();
        for _ in 0..3 {
            let answer = client.a("no.example.");
            assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
            assert_eq!(answer.authorities.len(), 1);
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn an_answer_with_another_number_or_question_is_not_believed() {
    each_dns_shard(Limits::default(), |_rig| {
        server(0, |question| {
            let truth = honest(question);
            let mut number = truth.clone();
            number.metadata.id ^= 1;
            number.answers = vec![address("api.example.", 66)];
            let mut other = truth.clone();
            other.queries[0].name = name("evil.example.");
            other.answers = vec![address("api.example.", 66)];
            [vec![0; 3], number.to_vec().unwrap(), other.to_vec().unwrap(), truth.to_vec().unwrap()].into()
        });
        let answer = Client::new().a("api.example.");
        assert_eq!(addresses(&answer), [IpAddr::from([192, 0, 2, 1])]);
    });
}

#[test]
fn a_silent_or_failing_server_makes_room_for_the_next_one() {
    each_dns_shard(Limits::default(), |_rig| {
        let silent = server(0, |question| match question.queries[0].name == name("silent.example.") {
            true => vec![],
            false => ended(ResponseCode::ServFail)(question),
        });
        server(1, |question| vec![honest(question).to_vec().unwrap()]);
        for host in ["silent.example.", "failing.example."] {
            assert_eq!(addresses(&Client::new().a(host)).len(), 1, "{host}");
        }
        assert_eq!(silent.load(Ordering::SeqCst), 2);
    });
}

#[test]
fn when_no_server_answers_the_client_hears_of_it() {
    each_dns_shard(Limits::default(), |rig| {
        // Nobody listens there: the kernel says so at once.
        let answer = Client::new().a("api.example.");
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(rig.counters.dns_unanswered.total(), 1);
        server(0, |_| vec![]);
        server(1, |_| vec![]);
        let answer = Client::new().a("api.example.");
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail, "by the deadline");
    });
}

#[test]
fn a_cut_answer_is_fetched_whole_over_tcp() {
    each_dns_shard(Limits::default(), |_rig| {
        server(0, |question| {
            let mut message = honest(question);
            message.answers.clear();
            message.metadata.truncation = true;
            vec![message.to_vec().unwrap()]
        });
        let listener = TcpListener::bind(DNS_SERVERS[0]).unwrap();
        thread::spawn(move || {
            for socket in listener.incoming() {
                let mut stream = Stream(socket.unwrap());
                let question = stream.receive();
                let mut message = honest(question);
                message.answers = (0..200).map(|last| address("large.example.", last)).collect();
                stream.send(&[message]);
            }
        });
        let client = Client::new();
        let cut = client.a("large.example.");
        assert!(cut.metadata.truncation, "the client's own datagrams are small");
        let mut stream = Stream::new();
        stream.send(&[query(9, "large.example.", RecordType::A)]);
        let whole = stream.receive();
        assert_eq!((whole.answers.len(), whole.metadata.truncation), (200, false));
    });
}

#[test]
fn our_own_answers_fit_what_the_client_takes() {
    each_dns_shard(Limits::default(), |mut rig| {
        let key = publish(&mut rig, "many.shop.svc.cluster.local", None);
        rig.publish(|snapshot| {
            for last in 1..=100 {
                let mut endpoint = Workload {
                    uid: format!("w{last}").into(),
                    name: format!("w{last}").into(),
                    namespace: "shop".into(),
                    addresses: [IpAddr::from([10, 2, 0, last])].into(),
                    ..Workload::default()
                };
                endpoint.services.insert(key.clone(), Default::default());
                snapshot.workloads.insert(Arc::new(endpoint));
            }
        });
        let client = Client::new();
        let cut = client.a("many.");
        assert!(cut.metadata.truncation && !cut.answers.is_empty());
        let mut large = query(8, "many.", RecordType::A);
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        large.edns = Some(edns);
        let more = client.ask(&large);
        assert!(more.answers.len() > cut.answers.len() && more.edns.is_some());
        let mut stream = Stream::new();
        stream.send(&[query(9, "many.", RecordType::A)]);
        assert_eq!(stream.receive().answers.len(), 100);
    });
}

#[test]
fn what_is_no_query_is_refused_and_the_listener_goes_on() {
    each_dns_shard(Limits::default(), |mut rig| {
        publish(&mut rig, "web.shop.svc.cluster.local", Some(Ipv4Addr::new(10, 1, 0, 1)));
        let client = Client::new();
        for length in 0..40 {
            client.0.send(&vec![0xc0; length]).unwrap();
        }
        for _ in 12..40 {
            assert_eq!(client.receive().metadata.response_code, ResponseCode::FormErr);
        }
        let mut update = query(3, "web.", RecordType::A);
        update.metadata.op_code = OpCode::Update;
        assert_eq!(client.ask(&update).metadata.response_code, ResponseCode::NotImp);
        assert_eq!(addresses(&client.a("web.")).len(), 1);
    });
}

#[test]
fn a_pod_that_the_mesh_does_not_know_is_waited_for_and_then_told_that_it_failed() {
    let limits = Limits { lookup_ms_max: 100, ..Limits::default() };
    each_dns_shard(limits, |mut rig| {
        let known = rig.withdraw_pod();
        let answer = Client::new().a("web.");
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(rig.counters.lookups_expired.total(), 1);
        rig.publish(|snapshot| snapshot.workloads.insert(known));
        server(0, |question| vec![honest(question).to_vec().unwrap()]);
        assert_eq!(Client::new().a("web.").metadata.response_code, ResponseCode::NoError);
    });
}

#[test]
fn a_thousand_queries_at_once_are_each_answered_or_refused_and_counted() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    each_dns_shard(Limits::default(), |rig| {
        const PENDING_MAX: usize = 512;
        let socket = UdpSocket::bind(DNS_SERVERS[0]).unwrap();
        setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20)).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let client = Client::new();
        for id in 0..1_000 {
            let message = query(id, &format!("h{id}.example."), RecordType::A);
            client.0.send(&message.to_vec().unwrap()).unwrap();
        }
        // The server answers nothing until every query that may wait does.
        let mut buffer = [0; 4096];
        let mut waiting = std::collections::BTreeMap::new();
        while waiting.len() < PENDING_MAX {
            let (length, peer) = socket.recv_from(&mut buffer).unwrap();
            let question = Message::from_vec(&buffer[..length]).unwrap();
            waiting.insert(question.queries[0].name.to_ascii(), (peer, question));
        }
        rig.until("refused", |report| report.counters.contains(&("dns_shed", 1_000 - PENDING_MAX as u64)));
        for (peer, question) in waiting.into_values() {
            socket.send_to(&honest(question).to_vec().unwrap(), peer).unwrap();
        }
        // A try that came to its end in the meantime is made again.
        socket.set_read_timeout(Some(std::time::Duration::from_millis(10))).unwrap();
        let answering = thread::spawn(move || {
            let mut buffer = [0; 4096];
            let begin = std::time::Instant::now();
            while begin.elapsed() < DEADLINE {
                if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                    let question = Message::from_vec(&buffer[..length]).unwrap();
                    let _ = socket.send_to(&honest(question).to_vec().unwrap(), peer);
                }
            }
        });
        let answers: Vec<_> = (0..1_000).map(|_| client.receive()).collect();
        let failed = |answer: &&Message| answer.metadata.response_code == ResponseCode::ServFail;
        let refused = answers.iter().filter(failed).count();
        assert_eq!(refused, 1_000 - PENDING_MAX);
        drop(answering);
    });
}

#[test]
fn one_question_of_many_clients_is_asked_once() {
    each_dns_shard(Limits::default(), |rig| {
        let socket = UdpSocket::bind(DNS_SERVERS[0]).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let clients: Vec<_> = (0..20).map(|_| Client::new()).collect();
        for client in &clients {
            client.0.send(&query(7, "api.example.", RecordType::A).to_vec().unwrap()).unwrap();
        }
        rig.until("asked", |report| report.counters.contains(&("dns_queries", 20)));
        let mut buffer = [0; 4096];
        let (length, peer) = socket.recv_from(&mut buffer).unwrap();
        let question = Message::from_vec(&buffer[..length]).unwrap();
        socket.send_to(&honest(question).to_vec().unwrap(), peer).unwrap();
        for client in &clients {
            assert_eq!(addresses(&client.receive()).len(), 1);
        }
        assert_eq!(rig.counters.dns_forwarded.total(), 1);
    });
}

#[test]
fn a_pod_that_goes_takes_its_listeners_connections_and_questions_with_it() {
    each_dns_shard(Limits::default(), |rig| {
        let silent = server(0, |_| vec![]);
        let client = Client::new();
        client.0.send(&query(7, "api.example.", RecordType::A).to_vec().unwrap()).unwrap();
        let mut stream = Stream::new();
        stream.send(&[query(8, "api.example.", RecordType::A)]);
        rig.until("asked", |_| silent.load(Ordering::SeqCst) == 1);
        rig.until("read", |report| report.counters.contains(&("dns_queries", 2)));
        rig.remove_pod();
        let error = stream.0.read(&mut [0; 2]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let begin = std::time::Instant::now();
        while TcpStream::connect(LISTENER).is_ok() {
            assert!(begin.elapsed() < DEADLINE, "the listener stays");
        }
        // The kernel tells of a port without a listener, once the last query's socket is closed; what comes before is lost.
        client.0.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
        loop {
            let _ = client.0.send(&query(7, "api.example.", RecordType::A).to_vec().unwrap());
            match client.0.recv(&mut [0; 512]) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => break,
                _ => assert!(begin.elapsed() < DEADLINE, "the socket stays"),
            }
        }
    });
}

#[test]
fn an_idle_connection_is_closed_in_order() {
    each_dns_shard(Limits::default(), |_rig| {
        let mut stream = Stream::new();
        assert_eq!(stream.0.read(&mut [0; 2]).unwrap(), 0);
    });
}
