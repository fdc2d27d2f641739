//! The same for an inbound CONNECT.

use super::*;

impl Plain {
    /// Where a CONNECT to the first address of `local` goes: destination, connect, PROXY header and service.
    fn inbound(
        &self,
        local: &Workload,
        (ip, host, port): (Option<IpAddr>, &str, u16),
    ) -> Result<(SocketAddr, Option<SocketAddr>, Vec<String>), Reason> {
        let pod = local.addresses[0];
        let mut served: Vec<&Service> =
            self.services.iter().filter(|one| local.services.contains_key(&one.key)).collect();
        served.sort_by_key(|one| one.key.clone());
        let mut port_at = port;
        let mut vip = ip;
        if let Some(ip) = ip {
            let allowed = ip == pod || local.application_tunnel.is_some() || self.has_waypoint(local, ip);
            allowed.then_some(()).ok_or(Reason::NotForUs)?;
            let leads = |service: &&Service| {
                let own = local.services.get(&service.key).unwrap();
                service.ports.iter().any(|(from, to)| *to == port || own.get(from) == Some(&port))
            };
            served.retain(leads);
            served.truncate(1);
        } else {
            let service = self.service_named(&local.namespace, host).ok_or(Reason::UnknownService)?;
            let own = local.services.get(&service.key).and_then(|ports| ports.get(&port)).copied();
            let own = own.filter(|port| *port > 0);
            let listed = service.ports.get(&port).copied().filter(|port| *port > 0);
            port_at = own.or(listed).ok_or(Reason::UnknownService)?;
            served = vec![service];
            let rank = |vip: &&NetworkAddress| match (&*vip.network == NETWORK, vip.ip.is_ipv4()) {
                (true, true) => 0,
                (true, false) => 1,
                _ => 2,
            };
            vip = service.vips.iter().min_by_key(rank).map(|vip| vip.ip);
        }
        let tunnel = local.application_tunnel.unwrap_or_default();
        if [15001, 15006, 15008].contains(&port_at) {
            return Err(Reason::OwnPort);
        }
        let proxy = match tunnel.protocol {
            ApplicationProtocol::Proxy => Some(SocketAddr::new(vip.ok_or(Reason::NoServiceAddress)?, port)),
            ApplicationProtocol::None => None,
        };
        let names = served.iter().map(|service| service.key.to_string()).collect();
        Ok((SocketAddr::new(pod, tunnel.port.unwrap_or(port_at)), proxy, names))
    }

    /// Whether the service or workload that has an address names `local` as its waypoint.
    fn has_waypoint(&self, local: &Workload, ip: IpAddr) -> bool {
        let mut references: Vec<&Gateway> = vec![];
        if let Some(service) = self.service_at("", &local.network, ip) {
            references.extend(&service.waypoint);
            references.extend(service.weighted_waypoints.iter().map(|one| &one.gateway));
        }
        let workload = self.workload_at(&local.network, ip);
        references.extend(workload.and_then(|one| one.waypoint.as_deref()));
        references.into_iter().any(|reference| match &reference.destination {
            GatewayDestination::Service(key) => match self.services.iter().find(|one| one.key == *key) {
                Some(service) => local.services.contains_key(&service.key),
                None => local.namespace == key.namespace && local.hostname == key.hostname,
            },
            GatewayDestination::Address(address) => match self.service_at("", &address.network, address.ip) {
                Some(service) => local.services.contains_key(&service.key),
                None => {
                    let at = self.workload_at(&address.network, address.ip);
                    at.is_some_and(|one| one.uid == local.uid)
                        || (address.network == local.network && address.ip == local.addresses[0])
                }
            },
        })
    }

    fn service_named(&self, client: &str, host: &str) -> Option<&Service> {
        let mut seen: Vec<&Service> = self.services.iter().filter(|one| *one.key.hostname == *host).collect();
        seen.retain(|one| one.visibility == Visibility::Public || *one.key.namespace == *client);
        seen.sort_by_key(|one| one.key.clone());
        let own = seen.iter().find(|one| *one.key.namespace == *client);
        let canonical = seen.iter().rfind(|one| one.canonical);
        let preferred = seen.iter().find(|one| &*one.key.namespace == mesh::PREFERRED);
        own.or(canonical).or(preferred).or(seen.first()).copied()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2500))]

    #[test]
    fn an_inbound_connect_goes_where_a_literal_reading_sends_it(seed: u64, number: u64, by_host: bool) {
        let plain = Plain::random(seed);
        let mesh = plain.snapshot();
        let (local, _) = plain.source();
        let address = plain.destination(number);
        let host = ["a", "b", "c", "d"][(number % 4) as usize];
        let port = [80, 81, 8080, 9090, address.port()][(number / 4 % 5) as usize];
        let authority = match by_host {
            true => format!("{host}:{port}"),
            false => SocketAddr::new(address.ip(), port).to_string(),
        };
        let asked = (Some(address.ip()).filter(|_| !by_host), host, port);
        let requested = Requested { local: local.addresses[0], authority: &authority, forwarded_host: None };
        let found = inbound_target(&mesh, &local, &requested).map(|found| {
            assert_eq!(found.connect, found.destination);
            let names = found.service.iter().map(|service| service.key.to_string()).collect::<Vec<_>>();
            (found.destination, found.proxy, names)
        });
        let expected = plain.inbound(&local, asked).map_err(NoTarget::Deny);
        prop_assert_eq!(found, expected, "{}", authority);
    }
}
