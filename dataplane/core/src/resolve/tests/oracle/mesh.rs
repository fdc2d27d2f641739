//! Random small meshes, in which names and addresses meet.

use super::*;

/// The namespace that is preferred.
pub(super) const PREFERRED: &str = "pref";
const NAMESPACES: [&str; 3] = ["shop", "infra", PREFERRED];
const HOSTS: [&str; 4] = ["a", "b", "c", "d"];
const ADDRESSES: [&str; 9] =
    ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.1.1", "10.0.1.2", "fd00::1", "fd00::2", "fd00::3"];
const RANGES: [&str; 4] = ["10.0.0.0/16", "10.0.1.0/24", "fd00::/64", "0.0.0.0/0"];
const PORTS: [u16; 3] = [80, 81, 15008];

/// A mesh as plain lists.
pub(super) struct Plain {
    pub(super) workloads: Vec<Workload>,
    pub(super) services: Vec<Service>,
}

/// A sequence of random numbers, and the keys that services of this mesh may have.
struct Dice(u64, Vec<ServiceKey>);

impl Dice {
    fn below(&mut self, count: usize) -> usize {
        (random(&mut self.0) % count as u64) as usize
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn network(&mut self) -> &'static str {
        if self.one_in(4) { "n2" } else { NETWORK }
    }

    fn address(&mut self) -> NetworkAddress {
        NetworkAddress { network: self.network().into(), ip: ip(self.pick(&ADDRESSES)) }
    }

    fn key(&mut self) -> ServiceKey {
        let place = self.below(self.1.len());
        self.1[place].clone()
    }

    fn gateway(&mut self, one_in: usize) -> Option<Gateway> {
        let destination = match self.below(3) {
            0 | 1 => GatewayDestination::Service(self.key()),
            _ => GatewayDestination::Address(self.address()),
        };
        self.one_in(one_in).then_some(Gateway { destination, hbone_mtls_port: 15008 })
    }

    fn service(&mut self) -> Service {
        let key = self.key();
        let mut made = service(&key.namespace, &key.hostname, &[]);
        made.vips = (0..self.below(3)).map(|_| self.address()).collect();
        let range = |dice: &mut Self| CidrVip {
            network: dice.network().into(),
            cidr: dice.pick(&RANGES).parse().unwrap(),
        };
        made.cidr_vips = (0..self.below(6).saturating_sub(4)).map(|_| range(self)).collect();
        made.ports = PORTS.iter().map(|port| (*port, self.pick(&[0, 8080, 8080, 8081]))).collect();
        if self.one_in(4) {
            made.ports = [(80, 8080)].into();
        }
        made.subject_alt_names = (0..self.below(3))
            .map(|_| self.pick(&["spiffe://td/ns/shop/sa/w0", "spiffe://td/ns/x/sa/y", "z"]).into())
            .collect();
        made.waypoint = self.gateway(4);
        let weighted = |dice: &mut Self| {
            let gateway = dice.gateway(1)?;
            Some(WeightedWaypoint { gateway, weight: dice.pick(&[0, 1, 1]) })
        };
        let count = if self.one_in(4) { self.below(3) } else { 0 };
        made.weighted_waypoints = (0..count).filter_map(|_| weighted(self)).collect();
        made.load_balancer = self.one_in(3).then(|| self.balancer());
        made.ip_families =
            self.pick(&[None, None, Some(IpFamilies::Ipv4), Some(IpFamilies::Ipv6), Some(IpFamilies::Dual)]);
        made.canonical = self.one_in(3);
        made.visibility = self.pick(&[Visibility::Public, Visibility::Public, Visibility::Namespace]);
        made
    }

    fn balancer(&mut self) -> LoadBalancer {
        let scopes =
            [Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node, Scope::Cluster];
        let modes = [
            BalanceMode::Standard,
            BalanceMode::Strict,
            BalanceMode::Failover,
            BalanceMode::Failover,
            BalanceMode::Passthrough,
        ];
        LoadBalancer {
            routing_preferences: (0..self.below(4)).map(|_| self.pick(&scopes)).collect(),
            mode: self.pick(&modes),
            health_policy: self.pick(&[HealthPolicy::OnlyHealthy, HealthPolicy::AllowAll]),
        }
    }

    fn workload(&mut self, number: usize, services: &[Service]) -> Workload {
        let mut made = pod(self.pick(&NAMESPACES), &format!("w{number}"), "10.9.9.9");
        if self.one_in(4) {
            made.uid = format!("c1/ServiceEntry/w{number}").into();
        }
        made.addresses = (0..self.below(3)).map(|_| ip(self.pick(&ADDRESSES))).collect();
        made.network = self.network().into();
        made.protocol = self.pick(&[Protocol::Hbone, Protocol::Hbone, Protocol::Tcp]);
        made.network_mode =
            self.pick(&[NetworkMode::Standard, NetworkMode::Standard, NetworkMode::HostNetwork]);
        made.waypoint = self.gateway(3).map(Box::new);
        made.network_gateway = self.gateway(2).map(Box::new);
        made.node = self.pick(&["node1", "node2"]).into();
        made.health = self.pick(&[Health::Healthy, Health::Healthy, Health::Unhealthy]);
        made.cluster_id = self.pick(&["c1", "c2"]).into();
        let mut part = || self.pick(&["1", "2"]).into();
        made.locality = Locality { region: part(), zone: part(), subzone: part() };
        made.hostname = self.pick(&["", "", "a", "b"]).into();
        made.capacity = self.pick(&[None, None, None, None, Some(1), Some(0)]);
        made.application_tunnel = self.pick(&[
            None,
            None,
            Some(ApplicationTunnel { protocol: ApplicationProtocol::Proxy, port: Some(15088) }),
            Some(ApplicationTunnel { protocol: ApplicationProtocol::Proxy, port: None }),
            Some(ApplicationTunnel { protocol: ApplicationProtocol::None, port: Some(15089) }),
        ]);
        for service in services {
            if self.one_in(2) {
                let mapped = self.pick(&[&[][..], &[], &[(80, 9090), (15008, 9008)], &[(81, 0), (82, 9082)]]);
                made.services.insert(service.key.clone(), mapped.iter().copied().collect());
            }
        }
        made
    }
}

impl Plain {
    pub(super) fn random(seed: u64) -> Self {
        let mut dice = Dice(seed, vec![]);
        dice.1 = (0..5).map(|_| ServiceKey::new(dice.pick(&NAMESPACES), dice.pick(&HOSTS))).collect();
        let mut services: Vec<Service> = vec![];
        for _ in 0..2 + dice.below(5) {
            let made = dice.service();
            services.retain(|other| other.key != made.key);
            services.push(made);
        }
        let workloads = (0..3 + dice.below(6)).map(|number| dice.workload(number, &services)).collect();
        Self { workloads, services }
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let mut made = snapshot(self.workloads.clone(), self.services.clone());
        Arc::make_mut(&mut made.mesh).preferred_namespace = Some(PREFERRED.into());
        made
    }

    /// The client: the first workload of the own network with an address, else one that the mesh does not know.
    pub(super) fn source(&self) -> (Workload, SocketAddr) {
        let usable = |one: &&Workload| &*one.network == NETWORK && !one.addresses.is_empty();
        let source = self.workloads.iter().find(usable).cloned().unwrap_or_else(client);
        let address = SocketAddr::new(source.addresses[0], 40_000);
        (source, address)
    }

    /// An address and a port, mostly one of a service or workload.
    pub(super) fn destination(&self, number: u64) -> SocketAddr {
        let mut dice = Dice(number, vec![]);
        let own = |address: &&NetworkAddress| &*address.network == NETWORK;
        let vips: Vec<IpAddr> =
            self.services.iter().flat_map(|one| &one.vips).filter(own).map(|vip| vip.ip).collect();
        let pods: Vec<IpAddr> = self.workloads.iter().flat_map(|one| one.addresses.iter().copied()).collect();
        let from = match dice.below(8) {
            0..=4 if !vips.is_empty() => vips,
            5 | 6 if !pods.is_empty() => pods,
            _ => ADDRESSES.map(ip).to_vec(),
        };
        let port = dice.pick(&[80, 80, 80, 80, 81, 82, 15008]);
        SocketAddr::new(dice.pick(&from), port)
    }
}
