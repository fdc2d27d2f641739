use super::*;
use crate::dns::message::Name;
use crate::fixture::{ip, on_network, pod, service, serving, snapshot};
use crate::net::NetworkAddress;
use crate::service::{LoadBalancer, Visibility};

const WEB: &str = "web.shop.svc.cluster.local";

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn ask(mesh: &Snapshot, host: &str, record_type: RecordType) -> Answer {
    ask_from(mesh, &pod("shop", "cart", "10.0.0.9"), host, record_type)
}

fn ask_from(mesh: &Snapshot, source: &Workload, host: &str, record_type: RecordType) -> Answer {
    let client = Client { workload: source, search: None, ipv6: true };
    answer(mesh, &client, &Question::new(name(host), record_type), 7)
}

/// The records as text, in order of text; `Err` for what is not ours.
fn told(answer: Answer) -> Result<Vec<String>, Answer> {
    let Answer::Own { answers, .. } = answer else { return Err(answer) };
    Ok(text(&answers))
}

fn text(records: &[Record]) -> Vec<String> {
    let mut all: Vec<_> = records
        .iter()
        .map(|record| {
            assert_eq!(record.ttl, TTL_S);
            format!("{} {} {}", record.name, record.record_type(), record.data)
        })
        .collect();
    all.sort();
    all
}

fn a(mesh: &Snapshot, host: &str) -> Result<Vec<String>, Answer> {
    told(ask(mesh, host, RecordType::A))
}

fn aaaa(mesh: &Snapshot, host: &str) -> Result<Vec<String>, Answer> {
    told(ask(mesh, host, RecordType::AAAA))
}

fn dual(mut workload: Workload, second: &str) -> Workload {
    workload.addresses = [workload.addresses[0], ip(second)].into_iter().collect::<Vec<_>>().into();
    workload
}

#[test]
fn a_service_is_found_by_every_form_of_its_name_in_any_case() {
    let mesh = snapshot([], [service("shop", WEB, &["10.1.0.1", "fd00::1"])]);
    for host in
        ["web.shop.svc.cluster.local.", "WEB.shop.SVC.cluster.local.", "web.", "web.shop.", "web.shop.svc."]
    {
        assert_eq!(a(&mesh, host), Ok(vec![format!("{host} A 10.1.0.1")]));
        assert_eq!(aaaa(&mesh, host), Ok(vec![format!("{host} AAAA fd00::1")]));
    }
    for host in ["other.", "web.pay.", "web.shop.svc.cluster.", "."] {
        assert_eq!(a(&mesh, host), Err(Answer::Forward), "{host}");
    }
}

#[test]
fn other_types_and_classes_are_forwarded() {
    let mesh = snapshot([], [service("shop", WEB, &["10.1.0.1"])]);
    for record_type in
        [RecordType::MX, RecordType::TXT, RecordType::HTTPS, RecordType::ANY, RecordType::Unknown(999)]
    {
        assert_eq!(ask(&mesh, "web.", record_type), Answer::Forward);
    }
    let source = pod("shop", "cart", "10.0.0.9");
    let client = Client { workload: &source, search: None, ipv6: true };
    let question = Question { class: DNSClass::CH, ..Question::new(name("web."), RecordType::A) };
    assert_eq!(answer(&mesh, &client, &question, 1), Answer::Forward);
}

#[test]
fn a_name_with_a_search_domain_behind_it_is_an_alias_of_the_name_without() {
    let mesh = snapshot([], [service("shop", "api.example.com", &["10.1.0.2"])]);
    let told = a(&mesh, "Api.example.com.shop.svc.cluster.local.").unwrap();
    assert_eq!(
        told,
        ["Api.example.com. A 10.1.0.2", "Api.example.com.shop.svc.cluster.local. CNAME Api.example.com."]
    );
}

#[test]
fn the_pods_own_search_list_is_used_where_it_is_known() {
    let mesh = snapshot([], [service("shop", "db.corp.example", &["10.1.0.3"])]);
    let (source, search) = (pod("shop", "cart", "10.0.0.9"), ["corp.example".to_owned(), "lab".to_owned()]);
    let client = Client { workload: &source, search: Some(&search), ipv6: true };
    let question = Question::new(name("db.corp.example.lab."), RecordType::A);
    let own = told(answer(&mesh, &client, &question, 1)).unwrap();
    assert_eq!(own, ["db.corp.example. A 10.1.0.3", "db.corp.example.lab. CNAME db.corp.example."]);
    assert_eq!(a(&mesh, "db.corp.example.lab."), Err(Answer::Forward));
}

#[test]
fn a_wildcard_covers_longer_names_under_the_name_that_was_asked() {
    let wide = service("shop", "*.example.com", &["10.1.0.4"]);
    let narrow = service("shop", "*.a.example.com", &["10.1.0.5"]);
    let mesh = snapshot([], [wide, narrow, service("shop", "b.example.com", &["10.1.0.6"])]);
    assert_eq!(a(&mesh, "x.example.com.").unwrap(), ["x.example.com. A 10.1.0.4"]);
    assert_eq!(a(&mesh, "x.y.a.example.com.").unwrap(), ["x.y.a.example.com. A 10.1.0.5"]);
    assert_eq!(a(&mesh, "b.example.com.").unwrap(), ["b.example.com. A 10.1.0.6"]);
    assert_eq!(a(&mesh, "example.com."), Err(Answer::Forward));
    let searched = "x.example.com.shop.svc.cluster.local.";
    assert_eq!(a(&mesh, searched).unwrap(), [format!("{searched} A 10.1.0.4")], "no alias to a wildcard");
}

#[test]
fn of_services_of_one_name_the_clients_own_comes_first_and_a_hidden_one_does_not_count() {
    let host = "api.example.com";
    let theirs = service("pay", host, &["10.1.0.1"]);
    let own = service("shop", host, &["10.1.0.2"]);
    let canonical = Service { canonical: true, ..service("zoo", host, &["10.1.0.3"]) };
    let hidden = Service { visibility: Visibility::Namespace, ..theirs.clone() };
    let first = |services: Vec<Service>| a(&snapshot([], services), "api.example.com.");
    assert_eq!(first(vec![theirs.clone(), own, canonical.clone()]).unwrap(), ["api.example.com. A 10.1.0.2"]);
    assert_eq!(first(vec![theirs.clone(), canonical]).unwrap(), ["api.example.com. A 10.1.0.3"]);
    assert_eq!(first(vec![theirs]).unwrap(), ["api.example.com. A 10.1.0.1"]);
    assert_eq!(first(vec![hidden]), Err(Answer::Forward));
}

#[test]
fn only_virtual_addresses_of_the_clients_network_are_told() {
    let mut web = service("shop", WEB, &["10.1.0.1"]);
    web.vips.push(NetworkAddress { network: "far".into(), ip: ip("10.2.0.1") });
    let mesh = snapshot([], [web]);
    assert_eq!(a(&mesh, "web.").unwrap(), ["web. A 10.1.0.1"]);
    let mut far = pod("shop", "cart", "10.0.0.9");
    far.network = "far".into();
    assert_eq!(told(ask_from(&mesh, &far, "web.", RecordType::A)).unwrap(), ["web. A 10.2.0.1"]);
    far.network = "third".into();
    assert_eq!(
        told(ask_from(&mesh, &far, "web.", RecordType::A)),
        Ok(vec![]),
        "it exists, without an address"
    );
}

#[test]
fn a_headless_service_tells_one_address_of_the_family_for_each_ready_endpoint() {
    let web = service("shop", WEB, &[]);
    let first = dual(serving(pod("shop", "w1", "10.0.0.1"), &web), "fd00::1");
    let second = serving(pod("shop", "w2", "10.0.0.2"), &web);
    let mut sick = serving(pod("shop", "w3", "10.0.0.3"), &web);
    sick.health = Health::Unhealthy;
    let mut patient = web.clone();
    patient.load_balancer =
        Some(LoadBalancer { health_policy: HealthPolicy::AllowAll, ..Default::default() });
    let workloads = [first, second, sick];
    let mesh = snapshot(workloads.clone(), [web]);
    assert_eq!(a(&mesh, "web.").unwrap(), ["web. A 10.0.0.1", "web. A 10.0.0.2"]);
    assert_eq!(aaaa(&mesh, "web.").unwrap(), ["web. AAAA fd00::1"]);
    assert_eq!(a(&snapshot(workloads, [patient]), "web.").unwrap().len(), 3);
}

#[test]
fn without_addresses_a_service_of_the_cluster_is_empty_and_any_other_is_forwarded() {
    let mesh = snapshot([], [service("shop", WEB, &[]), service("shop", "api.example.com", &[])]);
    assert_eq!(a(&mesh, "web."), Ok(vec![]));
    assert_eq!(a(&mesh, "api.example.com."), Err(Answer::Forward));
}

#[test]
fn endpoints_of_a_host_outside_the_cluster_say_where_it_is_only_when_they_are_hosts_themselves() {
    let told = |host: &str, addresses: &[&str], hostnames: &[&str]| {
        let outside = service("shop", host, &[]);
        let fixed = addresses.iter().map(|ip| serving(pod("shop", ip, ip), &outside));
        let named = hostnames.iter().map(|hostname| {
            let workload = Workload { hostname: (*hostname).into(), ..pod("shop", hostname, "192.0.2.9") };
            serving(Workload { addresses: Default::default(), ..workload }, &outside)
        });
        let workloads: Vec<_> = fixed.chain(named).collect();
        ask(&snapshot(workloads, [outside]), "api.example.com.", RecordType::A)
    };
    assert_eq!(told("api.example.com", &["192.0.2.1"], &[]), Answer::Forward, "endpoints with addresses");
    assert_eq!(told("api.example.com", &["192.0.2.1"], &["db.example.net"]), Answer::Forward, "some of them");
    assert_eq!(told("*.example.com", &["192.0.2.1"], &[]), Answer::Forward);
    assert_eq!(told("*.example.com", &[], &["db.example.net"]), Answer::Forward);
    let Answer::Alias { target, .. } = told("api.example.com", &[], &["db.example.net"]) else {
        panic!("no alias")
    };
    assert_eq!(target, name("db.example.net."));
}

#[test]
fn a_family_that_is_not_offered_is_empty() {
    let web = |families| {
        let web = Service { ip_families: families, ..service("shop", WEB, &["10.1.0.1", "fd00::1"]) };
        let mesh = snapshot([], [web]);
        (a(&mesh, "web.").unwrap().len(), aaaa(&mesh, "web.").unwrap().len())
    };
    assert_eq!(web(Some(IpFamilies::Ipv4)), (1, 0));
    assert_eq!(web(Some(IpFamilies::Ipv6)), (0, 1));
    assert_eq!([web(Some(IpFamilies::Dual)), web(None)], [(1, 1); 2]);
    let mesh = snapshot([], [service("shop", WEB, &["10.1.0.1", "fd00::1"])]);
    let source = pod("shop", "cart", "10.0.0.9");
    let client = Client { workload: &source, search: None, ipv6: false };
    let question = Question::new(name("web."), RecordType::AAAA);
    assert_eq!(told(answer(&mesh, &client, &question, 1)), Ok(vec![]), "the node proxy serves no IPv6");
}

#[test]
fn a_pod_of_a_headless_service_has_a_name_by_its_own_and_by_its_address() {
    let web = service("shop", WEB, &[]);
    let workloads = [
        dual(serving(pod("shop", "w-0", "10.0.0.1"), &web), "fd00::1"),
        pod("shop", "stranger", "10.0.0.2"),
        serving(pod("shop", "w-1", "10.0.0.3"), &web),
    ];
    let mesh = snapshot(workloads, [web, service("shop", "vip.shop.svc.cluster.local", &["10.1.0.1"])]);
    for host in [
        "w-0.web.shop.svc.cluster.local.",
        "10-0-0-1.web.shop.svc.cluster.local.",
        "W-0.web.",
        "fd00--1.web.shop.",
    ] {
        assert_eq!(a(&mesh, host), Ok(vec![format!("{host} A 10.0.0.1")]));
        assert_eq!(aaaa(&mesh, host), Ok(vec![format!("{host} AAAA fd00::1")]));
    }
    assert_eq!(aaaa(&mesh, "w-1.web."), Ok(vec![]), "it exists, without an address of the family");
    for host in ["stranger.web.", "10-0-0-2.web.", "10-0-0-99.web.", "w-0.vip.", "w-0.", "no-0.web."] {
        assert_eq!(a(&mesh, host), Err(Answer::Forward), "{host}");
    }
}

#[test]
fn an_external_name_is_an_alias_that_the_servers_complete() {
    let out = service("shop", "out.shop.svc.cluster.local", &[]);
    let mut end =
        Workload { hostname: "api.example.com".into(), ..serving(pod("shop", "e", "10.0.0.1"), &out) };
    end.addresses = Default::default();
    let mesh = snapshot([end.clone()], [out.clone()]);
    let Answer::Alias { answers, target } = ask(&mesh, "Out.", RecordType::AAAA) else { panic!("no alias") };
    assert_eq!(
        (text(&answers), target),
        (vec!["Out. CNAME api.example.com.".to_owned()], name("api.example.com."))
    );
    let searched = "out.shop.svc.cluster.local.shop.svc.cluster.local.";
    let Answer::Alias { answers, .. } = ask(&mesh, searched, RecordType::A) else { panic!("no alias") };
    assert_eq!(answers.len(), 2, "by way of the name without its search domain");
    let only = Service { ip_families: Some(IpFamilies::Ipv4), ..out };
    let mesh = snapshot([end.clone()], [only]);
    assert_eq!(aaaa(&mesh, "out."), Ok(vec![]));
    // A service whose endpoints are found by its own name is not its own alias.
    let own = service("shop", "api.example.com", &[]);
    let mesh = snapshot([serving(end, &own)], [own]);
    assert_eq!(a(&mesh, "api.example.com."), Err(Answer::Forward));
}

#[test]
fn addresses_are_told_in_an_order_that_the_random_number_decides_and_at_most_so_many() {
    let web = service("shop", WEB, &[]);
    let number = |place: usize| format!("10.0.{}.{}", place / 250, place % 250 + 1);
    let pods =
        (0..ADDRESSES_MAX + 50).map(|place| serving(pod("shop", &format!("w{place}"), &number(place)), &web));
    let mesh = snapshot(pods.collect::<Vec<_>>(), [web]);
    let source = pod("shop", "cart", "10.9.0.9");
    let client = Client { workload: &source, search: None, ipv6: true };
    let order = |random| match answer(&mesh, &client, &Question::new(name("web."), RecordType::A), random) {
        Answer::Own { answers, .. } => answers,
        other => panic!("{other:?}"),
    };
    assert_eq!(order(1).len(), ADDRESSES_MAX);
    assert_eq!(order(1), order(1));
    assert_ne!(order(1), order(2));
}

#[test]
fn a_shuffle_puts_every_item_first_about_as_often() {
    let mut first = [0_u32; 5];
    for random in 0..5_000_u64 {
        let mut items = [0, 1, 2, 3, 4];
        shuffle(&mut items, random.wrapping_mul(0x5851_f42d_4c95_7f2d));
        first[items[0]] += 1;
        items.sort_unstable();
        assert_eq!(items, [0, 1, 2, 3, 4]);
    }
    assert!(first.iter().all(|count| (800..1_200).contains(count)), "{first:?}");
}

#[test]
fn srv_of_a_service_with_an_address_is_its_name_at_each_port() {
    let web =
        Service { ports: [(80, 8080), (443, 8443)].into(), ..service("shop", WEB, &["10.1.0.1", "fd00::1"]) };
    let mesh = snapshot([], [web]);
    let Answer::Own { answers, additionals } = ask(&mesh, "web.", RecordType::SRV) else {
        panic!("not ours")
    };
    assert_eq!(text(&answers), [format!("web. SRV 0 100 443 {WEB}."), format!("web. SRV 0 100 80 {WEB}.")]);
    assert_eq!(text(&additionals), [format!("{WEB}. A 10.1.0.1"), format!("{WEB}. AAAA fd00::1")]);
    let one = told(ask(&mesh, "_443._TCP.web.shop.", RecordType::SRV)).unwrap();
    assert_eq!(one, [format!("_443._TCP.web.shop. SRV 0 100 443 {WEB}.")]);
}

#[test]
fn srv_of_a_headless_service_is_each_pod_at_its_own_port() {
    let web = service("shop", WEB, &[]);
    let mut own = serving(pod("shop", "w-0", "10.0.0.1"), &web);
    own.services.insert(web.key.clone(), [(80, 9090)].into());
    let elsewhere = serving(pod("pay", "w-9", "10.0.0.2"), &web);
    let mesh = snapshot([own, elsewhere], [web]);
    let Answer::Own { answers, additionals } = ask(&mesh, "web.", RecordType::SRV) else {
        panic!("not ours")
    };
    let (first, second) = (format!("w-0.{WEB}."), format!("10-0-0-2.{WEB}."));
    assert_eq!(
        text(&answers),
        [format!("web. SRV 0 100 8080 {second}"), format!("web. SRV 0 100 9090 {first}")]
    );
    assert_eq!(text(&additionals), [format!("{second} A 10.0.0.2"), format!("{first} A 10.0.0.1")]);
    assert_eq!(a(&mesh, &second).unwrap(), [format!("{second} A 10.0.0.2")], "what it tells it knows");
}

#[test]
fn srv_of_what_only_the_servers_know_is_forwarded() {
    let mesh = snapshot(
        [],
        [
            service("shop", WEB, &["10.1.0.1"]),
            service("shop", "api.example.com", &["10.1.0.2"]),
            service("shop", "*.w.com", &["10.1.0.3"]),
        ],
    );
    for host in [
        "_http._tcp.web.",
        "_80._udp.web.",
        "_81._tcp.web.",
        "_99999._tcp.web.",
        "api.example.com.",
        "x.w.com.",
        "no.",
    ] {
        assert_eq!(ask(&mesh, host, RecordType::SRV), Answer::Forward, "{host}");
    }
}

#[test]
fn the_clusters_own_domain_is_used() {
    let mut mesh = snapshot([], [service("shop", "web.shop.svc.lab.example", &["10.1.0.1"])]);
    let mut place = (*mesh.mesh).clone();
    place.cluster_domain = "lab.example".into();
    mesh.mesh = place.into();
    assert_eq!(a(&mesh, "web.").unwrap(), ["web. A 10.1.0.1"]);
    assert_eq!(on_network("10.1.0.1"), mesh.services.iter().next().unwrap().vips[0]);
}
