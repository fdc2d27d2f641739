//! Names that captured pods ask for: the mesh answers for its services, and other servers for the rest.
#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use halo::lab::client::Server;
use halo::lab::mesh::{NAMESPACE, Service, fields};
use halo::lab::node::{NodeOptions, with_resolver};
use halo::lab::topology::NodePlan;
use halo_tests::names::wire::{Answer, Kind, Record, TXT};
use halo_tests::names::{self, NameServer};
use halo_tests::pair::HTTP;
use halo_tests::{Rig, observe, requests};
use serde_json::json;

/// Whom the pod asks: nobody is there, so that every answer comes from the node proxy.
const RESOLVER: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 10)), 53);
const SUCCESS: u8 = 0;
const MISSING: u8 = 3;

fn vip_v4() -> IpAddr {
    [10, 96, 0, 1].into()
}

fn vip_v6() -> IpAddr {
    Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 1).into()
}

fn outside_v4() -> IpAddr {
    [192, 0, 2, 7].into()
}

fn outside_v6() -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7).into()
}

/// `client` asks. The service `shop` has an address in each family, `bare` has none, `alias` leads to another name.
/// `names` is a server of the names `outside.example` and `many.example`; the first server that the proxies know is
/// not there.
struct Scene {
    rig: Rig,
    upstream: NameServer,
}

impl Scene {
    fn new() -> Self {
        Self::with_search(&[])
    }

    /// The agent tells the search list of the client's resolver.
    fn with_search(search: &[&str]) -> Self {
        let plan = [
            NodePlan::new("node-a", &["client"]),
            NodePlan::new("node-b", &["shop", "bank", "names", "idle"]),
        ];
        let mut rig = Rig::build(&plan, NodeOptions::default());
        rig.topology.pods[0].dns_search = search.iter().map(|&domain| domain.into()).collect();
        let resolver = rig.lab.dir().join("node-resolv.conf");
        let servers = ["idle", "names"].map(|pod| format!("nameserver {}\n", rig.pod(pod).address));
        std::fs::write(&resolver, servers.concat()).unwrap();
        rig.options.resolver = Some(resolver);
        let many = (1..=60).map(|nth| ("many.example", Record::Address([192, 0, 2, nth].into())));
        let outside = [outside_v4(), outside_v6()].map(|ip| ("outside.example", Record::Address(ip)));
        let records: Vec<_> = many.chain(outside).collect();
        let upstream = NameServer::start(rig.netns("names"), &records);
        rig.mesh.services = vec![
            Service::new("shop", (vip_v4(), 80), "shop", HTTP).vip(vip_v6()),
            Service::headless("bare", (80, HTTP), &["shop", "bank"]),
            Service::headless("alias", (80, HTTP), &[]),
            Service::headless("old", (80, HTTP), &["bank"]).with(fields::text("ipFamilies", "IPv4")),
        ];
        rig.mesh.extra.workloads.push(json!({
            "uid": format!("Kubernetes//Pod/{NAMESPACE}/alias"), "name": "alias", "namespace": NAMESPACE,
            "workloadIps": [], "hostname": "outside.example",
            "services": {"demo/alias.demo.svc.cluster.local": {"80": 80}},
        }));
        rig.start_with(&["client", "shop"]);
        Self { rig, upstream }
    }

    fn ask(&self, name: &str, kind: Kind) -> Answer {
        let answer = names::ask(self.rig.netns("client"), RESOLVER, name, kind);
        answer.unwrap_or_else(|error| panic!("{name} {kind:?}: {error}"))
    }

    fn ask_tcp(&self, name: &str, kind: Kind) -> Answer {
        let answer = names::ask_tcp(self.rig.netns("client"), RESOLVER, name, kind);
        answer.unwrap_or_else(|error| panic!("{name} {kind:?}: {error}"))
    }

    fn addresses_of(&self, pods: &[&str], v6: bool) -> Vec<IpAddr> {
        let own = pods.iter().flat_map(|pod| self.rig.pod(pod).addresses.iter());
        let mut all: Vec<_> = own.filter(|address| address.is_ipv6() == v6).collect();
        all.sort();
        all
    }
}

fn services(scene: &Scene) {
    let full = "shop.demo.svc.cluster.local";
    for name in [full, "shop", "shop.demo", "shop.demo.svc", "SHOP.Demo.svc.cluster.LOCAL"] {
        for (kind, ip) in [(Kind::A, vip_v4()), (Kind::Aaaa, vip_v6())] {
            let answer = scene.ask(name, kind);
            assert_eq!(
                (answer.code, answer.authoritative, answer.addresses()),
                (SUCCESS, true, vec![ip]),
                "{name}"
            );
            assert!(
                answer
                    .records
                    .iter()
                    .all(|(owner, _, ttl_s)| *ttl_s == 30 && owner.eq_ignore_ascii_case(name))
            );
        }
    }
    // What a resolver makes of a name with too few dots.
    let searched = format!("{full}.demo.svc.cluster.local");
    let answer = scene.ask(&searched, Kind::A);
    assert_eq!(answer.records[0].1, Record::Name(full.into()), "{answer:?}");
    assert_eq!((answer.addresses(), answer.records[1].0.as_str()), (vec![vip_v4()], full));
    assert_eq!(scene.upstream.asked(full, Kind::A) + scene.upstream.asked(&searched, Kind::A), 0);
    // Only addresses are the mesh's to give.
    assert_eq!(scene.ask(full, TXT).code, MISSING);
    assert_eq!(scene.upstream.asked(full, TXT), 1);
}

fn headless(scene: &Scene) {
    let bare = "bare.demo.svc.cluster.local";
    for (kind, v6) in [(Kind::A, false), (Kind::Aaaa, true)] {
        assert_eq!(scene.ask(bare, kind).addresses(), scene.addresses_of(&["shop", "bank"], v6));
        assert_eq!(scene.ask(&format!("bank.{bare}"), kind).addresses(), scene.addresses_of(&["bank"], v6));
    }
    let dashed = scene.rig.pod("shop").addresses.v4.unwrap().to_string().replace('.', "-");
    assert_eq!(
        scene.ask(&format!("{dashed}.{bare}"), Kind::A).addresses(),
        scene.addresses_of(&["shop"], false)
    );
    for name in [bare.to_owned(), format!("_80._tcp.{bare}")] {
        let answer = scene.ask(&name, Kind::Srv);
        let mut targets: Vec<_> = answer.records.iter().map(|(_, record, _)| record.clone()).collect();
        targets.sort_by_key(|record| format!("{record:?}"));
        let expected = ["bank", "shop"].map(|pod| Record::Service(HTTP, format!("{pod}.{bare}")));
        assert_eq!(targets, expected, "{name}: {answer:?}");
    }
    let old = scene.ask("old.demo.svc.cluster.local", Kind::Aaaa);
    assert_eq!((old.code, old.records.len()), (SUCCESS, 0));
}

fn aliases(scene: &Scene) {
    let answer = scene.ask("alias.demo.svc.cluster.local", Kind::A);
    assert_eq!(answer.records[0].1, Record::Name("outside.example".into()), "{answer:?}");
    assert_eq!(answer.addresses(), [outside_v4()]);
}

fn forwarded(scene: &Scene) {
    for _ in 0..3 {
        for (kind, ip) in [(Kind::A, outside_v4()), (Kind::Aaaa, outside_v6())] {
            let answer = scene.ask("outside.example", kind);
            assert_eq!((answer.code, answer.authoritative, answer.addresses()), (SUCCESS, false, vec![ip]));
        }
        let missing = scene.ask("missing.example", Kind::A);
        assert_eq!((missing.code, missing.records.len()), (MISSING, 0));
    }
    for name in ["outside.example", "missing.example"] {
        let asked = scene.upstream.asked(name, Kind::A);
        assert_eq!(asked, 1, "{name} was asked for {asked} times");
    }
}

fn tcp(scene: &Scene) {
    assert_eq!(scene.ask_tcp("shop", Kind::A).addresses(), [vip_v4()]);
    let short = scene.ask("many.example", Kind::A);
    assert!(short.truncated && short.addresses().len() < 60, "{short:?}");
    let whole = scene.ask_tcp("many.example", Kind::A);
    assert!(!whole.truncated && whole.addresses().len() == 60, "{whole:?}");
}

#[test]
fn names_of_the_mesh_are_answered_and_all_others_forwarded_and_remembered() {
    let scene = Scene::new();
    services(&scene);
    headless(&scene);
    aliases(&scene);
    forwarded(&scene);
    tcp(&scene);
}

#[test]
fn search_list_of_the_pod_s_own_resolver_counts_where_the_agent_tells_it() {
    let scene = Scene::with_search(&["corp.example"]);
    let full = "shop.demo.svc.cluster.local";
    let answer = scene.ask(&format!("{full}.corp.example"), Kind::A);
    assert_eq!(
        (answer.records[0].1.clone(), answer.addresses()),
        (Record::Name(full.into()), vec![vip_v4()])
    );
    assert_eq!(scene.ask(&format!("{full}.other.example"), Kind::A).code, MISSING);
}

#[test]
fn ipv6_resolver_is_captured_too() {
    let scene = Scene::new();
    let resolver: SocketAddr = (Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10), 53).into();
    let netns = scene.rig.netns("client");
    assert_eq!(names::ask(netns, resolver, "shop", Kind::A).unwrap().addresses(), [vip_v4()]);
    assert_eq!(
        names::ask_tcp(netns, resolver, "outside.example", Kind::Aaaa).unwrap().addresses(),
        [outside_v6()]
    );
}

#[test]
fn pod_s_own_resolver_finds_services_and_connects_to_them() {
    let scene = Scene::new();
    let rig = &scene.rig;
    let file = rig.lab.dir().join("pod-resolv.conf");
    let search = "search demo.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n";
    std::fs::write(&file, format!("nameserver {}\n{search}", RESOLVER.ip())).unwrap();
    let find = |database: &str, name: &str| {
        let command = ["getent", database, name].map(OsString::from);
        let (program, arguments) = with_resolver(&file, &command);
        let arguments: Vec<_> = arguments.iter().map(|argument| argument.to_str().unwrap()).collect();
        rig.netns("client").command(program.to_str().unwrap(), &arguments)
    };
    for name in ["shop", "shop.demo", "shop.demo.svc.cluster.local"] {
        let found = find("ahostsv4", name).unwrap();
        assert!(found.starts_with("10.96.0.1 "), "{name}: {found}");
    }
    assert!(find("ahostsv6", "shop").unwrap().starts_with("fd00:96::1 "));
    assert!(find("ahostsv4", "outside.example").unwrap().starts_with("192.0.2.7 "));
    find("ahostsv4", "missing.example").unwrap_err();
    let _server = Server::http(&rig.lab, rig.pod("shop"), HTTP).unwrap();
    for ip in [vip_v4(), vip_v6()] {
        requests::await_answer(rig.netns("client"), (ip, 80).into());
    }
}

#[test]
fn queries_are_counted_by_type_protocol_and_client() {
    let scene = Scene::new();
    for name in ["shop", "bare.demo", "outside.example"] {
        scene.ask(name, Kind::A);
    }
    scene.ask_tcp("shop", Kind::A);
    scene.ask("shop", TXT);
    let proxy = &scene.rig.proxies[0];
    let labels = |kind, protocol| {
        [
            ("request_query_type", kind),
            ("request_protocol", protocol),
            ("source_canonical_service", "client"),
            ("source_canonical_revision", "latest"),
        ]
    };
    for (kind, protocol, count, upstream) in
        [("a", "udp", 3.0, 1.0), ("a", "tcp", 1.0, 0.0), ("txt", "udp", 1.0, 1.0)]
    {
        let labels = labels(kind, protocol);
        observe::await_total(proxy, "istio_dns_requests_total", &labels, count);
        let forwarded = observe::total(proxy, "istio_dns_upstream_requests_total", &labels);
        assert_eq!(forwarded.unwrap_or_default(), upstream, "{kind} {protocol}");
        let timed = observe::total(proxy, "istio_dns_upstream_request_duration_seconds_count", &labels);
        assert_eq!(timed.unwrap_or_default(), upstream, "{kind} {protocol}");
    }
}
