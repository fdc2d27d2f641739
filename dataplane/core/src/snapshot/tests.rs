use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::{Strategy, any};
use proptest::sample::{select, subsequence};
use proptest::{prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::*;
use crate::fixture::{NETWORK, ip, on_network, pod, service};
use crate::policy::{Action, Match};

const ADDRESSES: [&str; 4] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "2001:db8::1"];
const RANGES: [&str; 4] = ["10.0.0.0/8", "10.0.0.7/8", "10.1.0.0/16", "::/0"];
const NAMES: [&str; 3] = ["a", "b", "c"];
const NAMESPACES: [&str; 2] = ["x", "y"];

/// One update of the mesh.
#[derive(Debug, Clone)]
enum Update {
    AddWorkload(Workload),
    RemoveWorkload(Arc<str>),
    AddService(Service),
    RemoveService(ServiceKey),
    AddPolicy(Policy),
    RemovePolicy(Arc<str>),
}

fn service_key() -> impl Strategy<Value = ServiceKey> {
    (select(&NAMESPACES[..]), select(&NAMES[..]))
        .prop_map(|(namespace, name)| ServiceKey::new(namespace, name))
}

fn one_workload() -> impl Strategy<Value = Workload> {
    let names =
        (select(&NAMES[..]), select(&NAMESPACES[..]), select(&NAMES[..]), select(vec!["", "db", "www"]));
    let addresses = subsequence(ADDRESSES.to_vec(), 0..=2);
    let network = select(vec![NETWORK, "n2"]);
    (names, addresses, network, any::<bool>(), vec((service_key(), 1..3u16), 0..3)).prop_map(
        |((uid, namespace, name, hostname), addresses, network, host, services)| Workload {
            uid: uid.into(),
            addresses: addresses.into_iter().map(ip).collect(),
            network: network.into(),
            network_mode: if host { NetworkMode::HostNetwork } else { NetworkMode::Standard },
            hostname: hostname.into(),
            services: services.into_iter().map(|(key, port)| (key, [(80, port)].into())).collect(),
            ..pod(namespace, name, "10.0.0.1")
        },
    )
}

fn one_service() -> impl Strategy<Value = Service> {
    let vips = subsequence(ADDRESSES.to_vec(), 0..=2);
    (service_key(), vips, subsequence(RANGES.to_vec(), 0..=2)).prop_map(|(key, vips, ranges)| {
        let vip = |range: &str| CidrVip { network: NETWORK.into(), cidr: range.parse().unwrap() };
        Service {
            cidr_vips: ranges.into_iter().map(vip).collect(),
            ..service(&key.namespace, &key.hostname, &vips)
        }
    })
}

fn one_policy() -> impl Strategy<Value = Policy> {
    let scopes = select(vec![Scope::Global, Scope::Namespace, Scope::WorkloadSelector]);
    (service_key(), scopes, any::<bool>()).prop_map(|(key, scope, unintelligible)| Policy {
        name: key.hostname,
        namespace: key.namespace,
        scope,
        action: Action::Deny,
        rules: vec![vec![vec![Match::default(), Match { unintelligible, ..Match::default() }]]],
        dry_run: false,
    })
}

fn update() -> impl Strategy<Value = Update> {
    let policy_key = service_key().prop_map(|key| Update::RemovePolicy(key.to_string().into()));
    prop_oneof![
        4 => one_workload().prop_map(Update::AddWorkload),
        2 => select(&NAMES[..]).prop_map(|uid| Update::RemoveWorkload(uid.into())),
        3 => one_service().prop_map(Update::AddService),
        2 => service_key().prop_map(Update::RemoveService),
        2 => one_policy().prop_map(Update::AddPolicy),
        1 => policy_key,
    ]
}

/// What exists, without any index.
#[derive(Debug, Default)]
struct Plain {
    workloads: BTreeMap<Arc<str>, Workload>,
    services: BTreeMap<ServiceKey, Service>,
    policies: BTreeMap<Arc<str>, Policy>,
}

impl Plain {
    fn apply(&mut self, update: Update) {
        match update {
            Update::AddWorkload(workload) => drop(self.workloads.insert(workload.uid.clone(), workload)),
            Update::RemoveWorkload(uid) => drop(self.workloads.remove(&uid)),
            Update::AddService(service) => drop(self.services.insert(service.key.clone(), service)),
            Update::RemoveService(key) => drop(self.services.remove(&key)),
            Update::AddPolicy(policy) => drop(self.policies.insert(policy.key(), policy)),
            Update::RemovePolicy(key) => drop(self.policies.remove(&key)),
        }
    }
}

fn apply(snapshot: &mut Snapshot, update: Update) {
    match update {
        Update::AddWorkload(workload) => snapshot.workloads.insert(Arc::new(workload)),
        Update::RemoveWorkload(uid) => drop(snapshot.workloads.remove(&uid)),
        Update::AddService(service) => snapshot.services.insert(Arc::new(service)),
        Update::RemoveService(key) => drop(snapshot.services.remove(&key)),
        Update::AddPolicy(policy) => snapshot.policies.insert(Arc::new(policy)),
        Update::RemovePolicy(key) => drop(snapshot.policies.remove(&key)),
    }
}

/// Every answer that a snapshot can give about the names of this test, as text in a fixed order.
fn answers_of(snapshot: &Snapshot) -> Vec<String> {
    let mut answers = vec![];
    let mut say = |what: String, found: Vec<String>| answers.push(format!("{what}: {}", found.join(" ")));
    let uids = |found: &mut dyn Iterator<Item = &Arc<Workload>>| -> Vec<String> {
        found.map(|workload| format!("{workload:?}")).collect()
    };
    let keys = |found: &mut dyn Iterator<Item = &Arc<Service>>| -> Vec<String> {
        found.map(|service| format!("{service:?}")).collect()
    };
    let policies = |found: &mut dyn Iterator<Item = &Arc<Policy>>| -> Vec<String> {
        found.map(|policy| format!("{policy:?}")).collect()
    };
    let Snapshot { workloads, services, policies: all_policies, .. } = snapshot;
    for address in ADDRESSES {
        let other = NetworkAddress { network: "n2".into(), ip: ip(address) };
        say(format!("at {address}"), uids(&mut workloads.at(&on_network(address))));
        say(format!("at n2 {address}"), uids(&mut workloads.at(&other)));
        say(format!("vip {address}"), keys(&mut services.at(&on_network(address))));
    }
    for range in RANGES {
        let range: IpNet = range.parse().unwrap();
        say(format!("range {range}"), keys(&mut services.in_range(&NETWORK.into(), range.trunc())));
    }
    for namespace in NAMESPACES {
        for name in NAMES {
            let key = ServiceKey::new(namespace, name);
            let endpoints = workloads.endpoints(&key).map(|endpoint| format!("{endpoint:?}"));
            say(format!("endpoints {key}"), endpoints.collect());
            say(format!("named {key}"), uids(&mut workloads.named(&namespace.into(), &name.into())));
            say(format!("service {key}"), keys(&mut services.get(&key).into_iter()));
            let policy = all_policies.get(&key.to_string());
            say(format!("policy {key}"), policies(&mut policy.into_iter()));
        }
        for hostname in ["", "db", "www"] {
            let found = uids(&mut workloads.with_hostname(&namespace.into(), &hostname.into()));
            say(format!("by dns {namespace} {hostname}"), found);
        }
        say(format!("policies {namespace}"), policies(&mut all_policies.in_namespace(namespace)));
    }
    for name in NAMES {
        say(format!("uid {name}"), uids(&mut workloads.get(name).into_iter()));
        say(format!("hostname {name}"), keys(&mut services.with_hostname(name)));
    }
    say("global".into(), policies(&mut all_policies.global()));
    say("all".into(), policies(&mut all_policies.iter()));
    let counts = [workloads.len(), services.len(), all_policies.len()].map(|count| count.to_string());
    say("counts".into(), counts.to_vec());
    let not_understood = all_policies.iter().filter(|policy| policy.rules[0][0][1].unintelligible).count();
    assert_eq!(all_policies.not_understood(), not_understood);
    say("ranges".into(), vec![services.has_ranges().to_string()]);
    answers
}

proptest! {
    #[test]
    fn updates_in_any_order_give_the_same_answers_as_a_rebuild(updates in vec(update(), 0..60)) {
        let mut snapshot = Snapshot::default();
        let mut plain = Plain::default();
        let mut earlier = vec![];
        for update in updates {
            earlier.push((snapshot.clone(), answers_of(&snapshot)));
            apply(&mut snapshot, update.clone());
            plain.apply(update);

            let mut rebuilt = Snapshot::default();
            plain.workloads.values().for_each(|workload| rebuilt.workloads.insert(Arc::new(workload.clone())));
            plain.services.values().for_each(|service| rebuilt.services.insert(Arc::new(service.clone())));
            plain.policies.values().for_each(|policy| rebuilt.policies.insert(Arc::new(policy.clone())));
            prop_assert_eq!(answers_of(&snapshot), answers_of(&rebuilt));
            prop_assert_eq!(index_sizes(&snapshot), index_sizes(&rebuilt));
        }
        // A generation that a shard still reads does not change under it.
        for (snapshot, answers) in earlier {
            prop_assert_eq!(answers_of(&snapshot), answers);
        }
    }
}

/// How many entries each index holds: an update must leave no empty ones behind.
fn index_sizes(snapshot: &Snapshot) -> [usize; 8] {
    let Snapshot { workloads, services, policies, .. } = snapshot;
    [
        workloads.by_address.len(),
        workloads.by_service.len(),
        workloads.by_name.len(),
        workloads.by_hostname.len(),
        services.by_hostname.len(),
        services.by_vip.len(),
        services.by_cidr.len(),
        policies.by_namespace.len(),
    ]
}

#[test]
fn lookups_filter_by_network_mode_and_service() {
    let mut workloads = Workloads::default();
    let shop = service("x", "shop", &[]);
    let serving = crate::fixture::serving(pod("x", "a", "10.0.0.1"), &shop);
    let host = Workload { network_mode: NetworkMode::HostNetwork, ..pod("x", "b", "10.0.0.1") };
    workloads.insert(Arc::new(serving.clone()));
    workloads.insert(Arc::new(host));
    let found: Vec<_> = workloads.at(&on_network("10.0.0.1")).collect();
    assert_eq!(found, [&Arc::new(serving.clone())]);
    assert_eq!(workloads.endpoints(&shop.key).count(), 1);
    assert!(workloads.remove(&serving.uid).is_some() && workloads.remove(&serving.uid).is_none());
    assert_eq!(workloads.endpoints(&shop.key).count(), 0);
}

#[test]
fn policies_are_the_same_until_one_changes() {
    let mut policies = Policies::default();
    let before = policies.clone();
    assert!(policies.same(&before));
    policies.insert(Arc::new(Policy {
        name: "a".into(),
        namespace: "x".into(),
        scope: Scope::Global,
        action: Action::Allow,
        rules: vec![],
        dry_run: false,
    }));
    assert!(!policies.same(&before) && policies.same(&policies.clone()));
}

#[test]
fn values_whose_keys_have_one_hash_are_told_apart() {
    let mut workloads = Workloads::default();
    let asked: Vec<_> = ["10.0.0.1", "10.0.0.3"].map(on_network).into();
    let found = Arc::new(pod("x", "a", "10.0.0.1"));
    let other = Arc::new(pod("x", "b", "10.0.0.2"));
    workloads.insert(found.clone());
    for address in &asked {
        workloads.by_address.insert(address_hash(&address.network, &address.ip), other.clone());
    }
    workloads.by_name.insert(hash_in("x", "a"), other.clone());
    workloads.by_uid.insert(index::hash(&*found.uid), other.clone());
    assert!(workloads.at(&asked[0]).eq([&found]) && workloads.at(&asked[1]).next().is_none());
    assert!(workloads.named(&"x".into(), &"a".into()).eq([&found]));
    assert_eq!((workloads.get(&found.uid), workloads.len()), (Some(&found), 2));
    assert_eq!(workloads.remove(&found.uid), Some(found));
    assert_eq!((workloads.at(&asked[0]).count(), workloads.len()), (0, 1));

    let mut services = Services::default();
    let (found, other) = (service("x", "a", &["10.0.0.1"]), service("x", "b", &["10.0.0.2"]));
    services.insert(Arc::new(found.clone()));
    services.by_key.insert(index::hash(&found.key), Arc::new(other.clone()));
    services.by_hostname.insert(index::hash("a"), Arc::new(other.clone()));
    services.by_vip.insert(address_hash(NETWORK, &ip("10.0.0.1")), Arc::new(other.clone()));
    services.by_cidr.insert(range_hash(NETWORK, "10.0.0.0/8".parse().unwrap()), Arc::new(other));
    assert!(services.with_hostname("a").eq([&Arc::new(found.clone())]));
    assert!(services.at(&asked[0]).eq([&Arc::new(found.clone())]));
    assert_eq!(services.in_range(&NETWORK.into(), "10.0.0.0/8".parse().unwrap()).count(), 0);
    assert_eq!(services.get(&found.key).map(|service| &service.key), Some(&found.key));
}

proptest! {
    #[test]
    fn endpoints_of_a_large_service_come_in_order_of_uid(steps in vec((0..200_u8, any::<bool>(), 1..3_u16), 0..600)) {
        let shop = ServiceKey::new("x", "shop");
        let mut workloads = Workloads::default();
        let mut plain = BTreeMap::new();
        for (number, add, port) in steps {
            let uid = format!("{number:03}");
            // Most are added, so that a service of more than its list holds is common.
            if add || number % 3 > 0 {
                let services = [(shop.clone(), [(80, port)].into())].into();
                workloads.insert(Arc::new(Workload { uid: (*uid).into(), services, ..Workload::default() }));
                plain.insert(uid, port);
            } else {
                workloads.remove(&uid);
                plain.remove(&uid);
            }
            if number % 16 == 0 {
                let found = workloads.endpoints(&shop).map(|end| (&*end.workload.uid, &end.ports[&80]));
                prop_assert!(found.eq(plain.iter().map(|(uid, port)| (uid.as_str(), port))));
            }
        }
        for uid in plain.keys() {
            workloads.remove(uid);
        }
        prop_assert_eq!(workloads.by_service.len(), 0);
    }
}

proptest! {
    #[test]
    fn what_was_removed_between_two_generations_is_found_whatever_they_share(
        before in vec(0..400_u16, 0..400),
        edits in vec((0..400_u16, any::<bool>()), 0..60),
    ) {
        let workload = |number: u16, node: &str| {
            let uid = number.to_string().into();
            Arc::new(Workload { uid, node: node.into(), ..Workload::default() })
        };
        let mut older = Workloads::default();
        before.iter().for_each(|number| older.insert(workload(*number, "before")));
        let mut newer = older.clone();
        for (number, remove) in edits {
            match remove {
                true => drop(newer.remove(&number.to_string())),
                false => newer.insert(workload(number, "after")),
            }
        }
        let uids = |found: &mut dyn Iterator<Item = &Arc<Workload>>| -> BTreeSet<String> {
            found.map(|workload| workload.uid.to_string()).collect()
        };
        let gone = uids(&mut older.iter().filter(|workload| newer.get(&workload.uid).is_none()));
        prop_assert_eq!(newer.removed_since(&older).count(), gone.len());
        prop_assert_eq!(uids(&mut newer.removed_since(&older)), gone);
        prop_assert_eq!(newer.removed_since(&newer.clone()).count(), 0);
    }
}
