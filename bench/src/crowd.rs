//! A mesh as large as they get, made from numbers: the same workloads and services each time.
//!
//! Texts that real pods share are shared here too, as the discovery client shares them: namespaces, nodes, service
//! accounts, labels. A uid and a pod's name are its own, and as long as Kubernetes makes them.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use halo_core::net::NetworkAddress;
use halo_core::service::{Service, ServiceKey, Visibility};
use halo_core::snapshot::Snapshot;
use halo_core::workload::{Locality, Protocol, Workload};

/// Pods of a node.
const PODS_PER_NODE: u32 = 100;
/// Services of a namespace.
const SERVICES_PER_NAMESPACE: u32 = 40;
const ZONES: u32 = 3;
/// Where the addresses of pods and of services begin.
const PODS: u32 = 0x0a00_0000;
const VIPS: u32 = 0xac10_0000;
/// The port of every service, and the one behind it.
const PORTS: [(u16, u16); 1] = [(80, 8080)];

/// A mesh of so many workloads and services.
#[derive(Debug)]
pub(crate) struct Crowd {
    /// How many workloads there are.
    pub(crate) workloads: u32,
    keys: Vec<ServiceKey>,
    /// The names of each service's deployment and service account.
    apps: Vec<(Arc<str>, Arc<str>)>,
    nodes: Vec<Arc<str>>,
    localities: Vec<Locality>,
    trust_domain: Arc<str>,
    cluster: Arc<str>,
    revision: Arc<str>,
    nothing: Arc<str>,
}

impl Crowd {
    /// `services` must not be 0.
    pub(crate) fn new(workloads: u32, services: u32) -> Self {
        let nothing = Arc::<str>::default();
        let namespaces: Vec<Arc<str>> =
            (0..services.div_ceil(SERVICES_PER_NAMESPACE)).map(|n| format!("team-{n:03}").into()).collect();
        let key = |n: u32| {
            let namespace = namespaces[(n / SERVICES_PER_NAMESPACE) as usize].clone();
            let hostname = format!("service-{n:05}.{namespace}.svc.cluster.local").into();
            ServiceKey { namespace, hostname }
        };
        let region: Arc<str> = "eu-central-1".into();
        let locality = |n: u32| Locality {
            region: region.clone(),
            zone: format!("eu-central-1{}", char::from(b'a' + n as u8)).into(),
            subzone: nothing.clone(),
        };
        Self {
            workloads,
            keys: (0..services).map(key).collect(),
            apps: (0..services)
                .map(|n| (format!("service-{n:05}").into(), format!("account-{n:05}").into()))
                .collect(),
            nodes: (0..workloads.div_ceil(PODS_PER_NODE)).map(|n| format!("node-{n:04}").into()).collect(),
            localities: (0..ZONES).map(locality).collect(),
            trust_domain: "cluster.local".into(),
            cluster: "Kubernetes".into(),
            revision: "v1".into(),
            nothing,
        }
    }

    /// How many services there are.
    pub(crate) fn services(&self) -> u32 {
        self.keys.len() as u32
    }

    /// One workload, which serves one service.
    pub(crate) fn workload(&self, number: u32) -> Workload {
        let service = (number % self.services()) as usize;
        let (app, account) = &self.apps[service];
        let key = &self.keys[service];
        // Hashes, as a Deployment and its ReplicaSet append them.
        let hash = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let name = format!("{app}-{:09x}-{:05x}", hash >> 28, number & 0xf_ffff);
        Workload {
            uid: format!("{}//Pod/{}/{name}", self.cluster, key.namespace).into(),
            name: name.into(),
            namespace: key.namespace.clone(),
            addresses: [Self::address(number)].into(),
            network: self.nothing.clone(),
            protocol: Protocol::Hbone,
            trust_domain: self.trust_domain.clone(),
            service_account: account.clone(),
            node: self.nodes[number as usize % self.nodes.len()].clone(),
            canonical_name: app.clone(),
            canonical_revision: self.revision.clone(),
            workload_name: app.clone(),
            cluster_id: self.cluster.clone(),
            locality: self.localities[number as usize % self.localities.len()].clone(),
            hostname: self.nothing.clone(),
            services: [(key.clone(), PORTS.into())].into(),
            ..Workload::default()
        }
    }

    /// The address of a workload.
    pub(crate) fn address(number: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(PODS + number))
    }

    /// One service.
    pub(crate) fn service(&self, number: u32) -> Service {
        Service {
            key: self.keys[number as usize].clone(),
            name: self.apps[number as usize].0.clone(),
            vips: vec![NetworkAddress {
                network: self.nothing.clone(),
                ip: IpAddr::V4(Ipv4Addr::from(VIPS + number)),
            }],
            cidr_vips: Vec::new(),
            ports: PORTS.into(),
            subject_alt_names: Vec::new(),
            waypoint: None,
            weighted_waypoints: Vec::new(),
            load_balancer: None,
            ip_families: None,
            canonical: false,
            visibility: Visibility::Public,
        }
    }

    /// All of them in one generation.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for number in 0..self.services() {
            snapshot.services.insert(Arc::new(self.service(number)));
        }
        for number in 0..self.workloads {
            snapshot.workloads.insert(Arc::new(self.workload(number)));
        }
        snapshot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_and_service_is_its_own_and_every_service_has_its_share() {
        let crowd = Crowd::new(1000, 100);
        let snapshot = crowd.snapshot();
        assert_eq!((snapshot.workloads.len(), snapshot.services.len()), (1000, 100));
        for service in snapshot.services.iter() {
            assert_eq!(snapshot.workloads.endpoints(&service.key).count(), 10);
            assert_eq!(snapshot.services.at(&service.vips[0]).count(), 1);
        }
        for workload in snapshot.workloads.iter() {
            let address = NetworkAddress { network: "".into(), ip: workload.addresses[0] };
            assert_eq!(snapshot.workloads.at(&address).count(), 1);
        }
    }
}
