//! DNS: arbitrary messages of clients, and arbitrary answers of servers.
//!
//! A query that is read is answered, by the mesh or from the cache, with bytes that decode and fit. An exchange takes
//! whatever comes, in any order, and ends by its deadline.

use std::sync::{Arc, LazyLock};

use halo_core::dns::DEADLINE_MS;
use halo_core::dns::answer::{Answer, Client, answer};
use halo_core::dns::cache::Cache;
use halo_core::dns::exchange::Exchange;
use halo_core::dns::message::{Message, Protocol, Query, Question, RecordType, Refused, Reply, ResponseCode};
use halo_core::dns::names;
use halo_core::net::NetworkAddress;
use halo_core::service::{Service, ServiceKey, Visibility};
use halo_core::snapshot::Snapshot;
use halo_core::workload::Workload;

use crate::input::Input;

/// Runs one input.
pub fn run(data: &[u8]) {
    query(data);
    let mut asked = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    asked.extend(data);
    query(&asked);
    exchange(data);
}

fn query(bytes: &[u8]) {
    let query = match Query::read(bytes) {
        Ok(query) => query,
        Err(Refused::With(reply)) => {
            assert!(Message::from_vec(&reply).is_ok(), "a refusal that cannot be read");
            return;
        }
        Err(Refused::Silently) => return,
    };
    let (mesh, source) = &*MESH;
    let search = ["corp".to_owned(), "a.b".to_owned()];
    for search in [None, Some(&search[..])] {
        let client = Client { workload: source, search, ipv6: true };
        let reply = match answer(mesh, &client, &query.question, 5) {
            Answer::Own { answers, additionals } => Reply::own(answers, additionals),
            Answer::Alias { answers, .. } => Reply::own(answers, Vec::new()),
            Answer::Forward => Reply::empty(ResponseCode::ServFail),
        };
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            let written = reply.clone().write(&query, protocol).expect("every query is answered");
            assert!(written.len() <= query.reply_max(protocol));
            let read = Message::from_vec(&written).expect("our own reply can be read");
            assert_eq!(read.metadata.id, query.id);
        }
    }
}

fn exchange(data: &[u8]) {
    let mut input = Input::new(data);
    let name = names::fully_qualified("web.example").expect("a name");
    let question = Question::new(name, RecordType::A);
    let servers: Arc<[_]> = [1, 2].map(|last| ([10, 0, 0, last], 53).into()).into();
    let mut exchange = Exchange::new(question.clone(), servers, 0);
    let (mut now_ms, mut cache) = (0, Cache::default());
    while !input.is_empty() {
        let sent = exchange.poll_send(u16::from(input.byte()), now_ms);
        if let Some(sent) = sent {
            assert!(Message::from_vec(&sent.bytes).is_ok(), "a question that cannot be read");
            let count = 40.min(sent.bytes.len());
            let mut told = sent.bytes[..if input.flag() { count } else { 2 }].to_vec();
            if let Some(flags) = told.get_mut(2) {
                *flags |= 0x80;
            }
            told.extend(input.take(60));
            exchange.handle_message(&told);
        }
        match input.byte() & 3 {
            0 => exchange.handle_failed(),
            1 => drop(exchange.handle_message(data)),
            _ => {
                now_ms += u64::from(input.byte()) * 10;
                exchange.handle_timeout(now_ms);
            }
        }
        if let Some(Ok(message)) = exchange.poll_done() {
            cache.insert(&question, message, now_ms, 2);
            if let Some(kept) = cache.get(&question, now_ms) {
                assert_eq!(kept.answers.len(), message.answers.len());
            }
        }
    }
    exchange.poll_send(1, now_ms);
    exchange.handle_timeout(now_ms.max(DEADLINE_MS));
    assert!(exchange.poll_done().is_some(), "an exchange without an end");
}

/// A mesh with a service of each kind, and a client.
static MESH: LazyLock<(Snapshot, Workload)> = LazyLock::new(|| {
    let mut mesh = Snapshot::default();
    let service = |host: &str, vips: &[[u8; 4]]| Service {
        key: ServiceKey::new("a", host),
        name: "web".into(),
        vips: vips.iter().map(|ip| NetworkAddress { network: "".into(), ip: (*ip).into() }).collect(),
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
    let headless = service("h.a.svc.cluster.local", &[]);
    let out = service("o.a.svc.cluster.local", &[]);
    for (uid, hostname, key) in [("w", "", &headless.key), ("o", "api.example.com", &out.key)] {
        let mut workload =
            Workload { uid: uid.into(), name: uid.into(), namespace: "a".into(), ..Workload::default() };
        workload.hostname = hostname.into();
        if hostname.is_empty() {
            workload.addresses = [std::net::IpAddr::from([10, 0, 0, 9])].into();
        }
        workload.services.insert(key.clone(), [(80, 9090)].into());
        mesh.workloads.insert(Arc::new(workload));
    }
    for service in
        [headless, out, service("*.b", &[[10, 1, 0, 1]]), service("a.svc.cluster.local", &[[10, 1, 0, 2]])]
    {
        mesh.services.insert(Arc::new(service));
    }
    (mesh, Workload { namespace: "a".into(), ..Workload::default() })
});
