//! Cases of the mesh's state: route, policy, pool, snapshot update.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use halo_core::id::Identity;
use halo_core::net::NetworkAddress;
use halo_core::policy::{Action, Match, Policy, Scope, StringMatch};
use halo_core::pool::{Action as PoolAction, Pool, PoolKey};
use halo_core::rbac;
use halo_core::resolve::{self, Captured};
use halo_core::service::{Service, ServiceKey, Visibility};
use halo_core::snapshot::Snapshot;
use halo_core::workload::{Protocol, Workload};

use super::Case;

/// Workloads in the mesh of the cases.
const WORKLOADS: u32 = 20_000;
/// Services, with `WORKLOADS / SERVICES` endpoints each.
const SERVICES: u32 = 1_000;
/// Policies of the destination's namespace.
const POLICIES: usize = 100;

pub(super) fn cases() -> Vec<Case> {
    let snapshot = Arc::new(mesh());
    vec![route(&snapshot), pod(&snapshot), policy(&snapshot), update(&snapshot), pool()]
}

fn ip(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(0x0a00_0000 | number))
}

fn service_key(number: u32) -> ServiceKey {
    ServiceKey::new("shop", &format!("service-{number}.shop.svc.cluster.local"))
}

fn workload(number: u32) -> Workload {
    Workload {
        uid: format!("cluster//Pod/shop/pod-{number}").into(),
        name: format!("pod-{number}").into(),
        namespace: "shop".into(),
        addresses: [ip(number)].into(),
        protocol: Protocol::Hbone,
        trust_domain: "cluster.local".into(),
        service_account: format!("account-{}", number % SERVICES).into(),
        services: [(service_key(number % SERVICES), [(80, 8080)].into())].into(),
        ..Workload::default()
    }
}

fn mesh() -> Snapshot {
    let mut snapshot = Snapshot::default();
    for number in 0..WORKLOADS {
        snapshot.workloads.insert(Arc::new(workload(number)));
    }
    for number in 0..SERVICES {
        snapshot.services.insert(Arc::new(Service {
            key: service_key(number),
            name: format!("service-{number}").into(),
            vips: vec![NetworkAddress { network: "".into(), ip: ip(0x00f0_0000 + number) }],
            cidr_vips: Vec::new(),
            ports: [(80, 8080)].into(),
            subject_alt_names: Vec::new(),
            waypoint: None,
            weighted_waypoints: Vec::new(),
            load_balancer: None,
            ip_families: None,
            canonical: false,
            visibility: Visibility::Public,
        }));
    }
    for number in 0..POLICIES {
        let allowed = StringMatch::Exact(format!("cluster.local/ns/shop/sa/account-{number}").into());
        let rule = vec![vec![Match { principals: vec![allowed], ..Match::default() }]];
        snapshot.policies.insert(Arc::new(Policy {
            name: format!("allow-{number}").into(),
            namespace: "shop".into(),
            scope: Scope::Namespace,
            action: Action::Allow,
            rules: vec![rule],
            dry_run: false,
        }));
    }
    snapshot
}

fn route(snapshot: &Arc<Snapshot>) -> Case {
    let (snapshot, source) = (snapshot.clone(), workload(1));
    let mut number = 0;
    let run = move || {
        number = (number + 7) % SERVICES;
        let captured = Captured {
            source: &source,
            client: SocketAddr::new(ip(1), 40_000),
            destination: SocketAddr::new(ip(0x00f0_0000 + number), 80),
        };
        let route = resolve::resolve(&snapshot, &captured, u64::from(number) << 40, &[]);
        u64::from(matches!(route, resolve::Route::Hbone(_)))
    };
    Case::new("resolve, service of 20 endpoints", 20_000, 0, run)
}

fn pod(snapshot: &Arc<Snapshot>) -> Case {
    let (snapshot, source) = (snapshot.clone(), workload(1));
    let mut number = 0;
    let run = move || {
        number = (number + 7) % WORKLOADS;
        let captured = Captured {
            source: &source,
            client: SocketAddr::new(ip(1), 40_000),
            destination: SocketAddr::new(ip(number), 8080),
        };
        u64::from(matches!(resolve::resolve(&snapshot, &captured, 0, &[]), resolve::Route::Hbone(_)))
    };
    Case::new("resolve, pod of 20 000", 20_000, 0, run)
}

fn policy(snapshot: &Arc<Snapshot>) -> Case {
    let (snapshot, destination) = (snapshot.clone(), workload(2));
    let identity = Identity::new("cluster.local", "shop", "account-50");
    let run = move || {
        let connection = rbac::Connection {
            source: SocketAddr::new(ip(1), 40_000),
            identity: Some(&identity),
            destination: SocketAddr::new(ip(2), 8080),
            workload: &destination,
        };
        u64::from(rbac::check(&snapshot, &connection).reason().is_none())
    };
    Case::new("rbac, 100 allow policies", 5_000, 0, run)
}

fn update(snapshot: &Arc<Snapshot>) -> Case {
    let snapshot = snapshot.clone();
    let mut number = 0;
    let run = move || {
        number = (number + 13) % WORKLOADS;
        let mut next = (*snapshot).clone();
        next.workloads.insert(Arc::new(workload(number)));
        next.workloads.len() as u64
    };
    Case::new("snapshot, replace 1 of 20 000", 5_000, 0, run)
}

fn pool() -> Case {
    let mut pool = Pool::new(100, 300_000);
    let key = PoolKey {
        pod: "pod".into(),
        source: Identity::new("cluster.local", "shop", "account-1"),
        client: ip(1),
        peer: SocketAddr::new(ip(2), 15008),
        identities: [Identity::new("cluster.local", "shop", "account-2")].into(),
        workload: "cluster//Pod/shop/pod-2".into(),
    };
    let run = move || {
        pool.acquire(&key, 0);
        while let Some(action) = pool.poll_action() {
            match action {
                PoolAction::Dial { tunnel, .. } => pool.dialed(tunnel, 100, 0),
                PoolAction::Assign { tunnel, .. } => pool.released(tunnel, 0),
                PoolAction::Fail { .. } | PoolAction::Close { .. } => {}
            }
        }
        pool.tunnels() as u64
    };
    Case::new("pool, acquire and release", 20_000, 0, run)
}
