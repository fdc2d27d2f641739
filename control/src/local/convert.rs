//! The file's types into the mesh's, with the checks that need more than one field.

use std::sync::Arc;

use halo_core::policy::{Action, Match, Policy, Scope, ServiceAccountMatch, StringMatch};
use halo_core::service::{
    BalanceMode, CidrVip, HealthPolicy, IpFamilies, LoadBalancer, Scope as BalanceScope, Service, ServiceKey,
    Visibility, WeightedWaypoint,
};
use halo_core::workload::{
    ApplicationProtocol, ApplicationTunnel, Gateway, Health, Locality, NetworkMode, PortMap, Protocol,
    Workload,
};
use ipnet::IpNet;
use serde_saphyr::Spanned;

use super::raw::{
    RawAction, RawApplicationProtocol, RawApplicationTunnel, RawEndpoint, RawFile, RawGateway, RawHealth,
    RawHealthPolicy, RawIpFamilies, RawLoadBalancer, RawMatch, RawMode, RawNetworkMode, RawPolicy,
    RawPolicyScope, RawProtocol, RawScope, RawService, RawServiceAccount, RawStringMatch, RawVisibility,
    RawWorkload, Text,
};
use super::{Defaults, LocalError, LocalState, SERVICE_ACCOUNT};
use crate::wire::Interner;

/// Characters of a name by which a resource is subscribed to.
const NAME_LEN_MAX: usize = 1000;

fn check_len(name: &str, line: u64, field: impl FnOnce() -> String) -> Result<(), LocalError> {
    let len = name.chars().count();
    if len <= NAME_LEN_MAX {
        return Ok(());
    }
    let reason =
        format!("{len} characters, with what belongs to it, are more than {NAME_LEN_MAX}; shorten it");
    Err(LocalError { line, field: field(), reason })
}

pub(super) fn convert(file: RawFile, defaults: &Defaults) -> Result<LocalState, LocalError> {
    let (mut state, mut interner) = (LocalState::default(), Interner::default());
    for (place, raw) in file.workloads.into_iter().enumerate() {
        let line = raw.referenced.line();
        let workload = shared(workload(raw.value, defaults), &mut interner);
        let uid = workload.uid.clone();
        check_len(&uid, line, || format!("workloads[{place}].uid"))?;
        if state.workloads.insert(uid.clone(), Arc::new(workload)).is_some() {
            let reason = format!("{uid:?} is the uid of an earlier workload too");
            return Err(LocalError { line, field: format!("workloads[{place}].uid"), reason });
        }
    }
    for (place, raw) in file.services.into_iter().enumerate() {
        insert_service(&mut state, place, raw)?;
    }
    for (place, raw) in file.policies.into_iter().enumerate() {
        let line = raw.referenced.line();
        let policy = policy(raw.value);
        let key = policy.key();
        if state.policies.insert(key.clone(), Arc::new(policy)).is_some() {
            let reason = format!("{key:?} is an earlier policy too");
            return Err(LocalError { line, field: format!("policies[{place}].name"), reason });
        }
    }
    Ok(state)
}

fn insert_service(state: &mut LocalState, place: usize, raw: Spanned<RawService>) -> Result<(), LocalError> {
    let line = raw.referenced.line();
    let (service, endpoints) = service(raw.value);
    let key = service.key.clone();
    check_len(&key.to_string(), line, || format!("services[{place}].hostname"))?;
    if state.services.insert(key.clone(), Arc::new(service)).is_some() {
        let reason = format!("{key} is an earlier service too");
        return Err(LocalError { line, field: format!("services[{place}].hostname"), reason });
    }
    for endpoint in endpoints {
        let Some(workload) = state.workloads.get_mut(endpoint.workload_uid.as_str()) else {
            let reason = format!("{:?} is not the uid of a workload of this file", endpoint.workload_uid);
            return Err(LocalError { line, field: format!("services[{place}].endpoints"), reason });
        };
        let services = &mut Arc::make_mut(workload).services;
        if !services.contains_key(&key) {
            services.insert(key.clone(), endpoint.port.into());
        }
    }
    Ok(())
}

fn workload(raw: RawWorkload, defaults: &Defaults) -> Workload {
    Workload {
        uid: uid(&raw, defaults),
        name: raw.name.into(),
        namespace: raw.namespace.into(),
        addresses: raw.workload_ips.into_iter().map(|Text(ip)| ip).collect(),
        network: raw.network.into(),
        protocol: match raw.protocol {
            RawProtocol::Tcp => Protocol::Tcp,
            RawProtocol::Hbone => Protocol::Hbone,
        },
        network_mode: match raw.network_mode {
            RawNetworkMode::Standard => NetworkMode::Standard,
            RawNetworkMode::HostNetwork => NetworkMode::HostNetwork,
        },
        trust_domain: or(raw.trust_domain, &defaults.trust_domain),
        service_account: or(raw.service_account, SERVICE_ACCOUNT),
        waypoint: raw.waypoint.map(gateway).map(Box::new),
        network_gateway: raw.network_gateway.map(gateway).map(Box::new),
        node: raw.node.into(),
        canonical_name: raw.canonical_name.into(),
        canonical_revision: raw.canonical_revision.into(),
        workload_type: raw.workload_type.map(|Text(kind)| kind.0).unwrap_or_default(),
        workload_name: raw.workload_name.into(),
        native_tunnel: raw.native_tunnel,
        // The file admits no tunnel but the one that changes nothing.
        application_tunnel: raw.application_tunnel.map(application_tunnel),
        authorization_policies: texts(raw.authorization_policies),
        health: match raw.status {
            RawHealth::Healthy => Health::Healthy,
            RawHealth::Unhealthy => Health::Unhealthy,
        },
        cluster_id: or(raw.cluster_id, &defaults.cluster),
        locality: Locality {
            region: raw.locality.region.into(),
            zone: raw.locality.zone.into(),
            subzone: raw.locality.subzone.into(),
        },
        hostname: raw.hostname.into(),
        services: raw.services.into_iter().map(|(Text(key), ports)| (key, ports.into())).collect(),
        capacity: raw.capacity,
    }
}

/// The same workload, with one copy of each text that workloads have in common.
fn shared(workload: Workload, interner: &mut Interner) -> Workload {
    let mut share = |text: &Arc<str>| interner.share(text);
    let Locality { region, zone, subzone } = &workload.locality;
    let locality = Locality { region: share(region), zone: share(zone), subzone: share(subzone) };
    let mut service = |(key, ports): (&ServiceKey, &PortMap)| {
        let key = ServiceKey { namespace: share(&key.namespace), hostname: share(&key.hostname) };
        (key, ports.clone())
    };
    let services = workload.services.iter().map(&mut service).collect();
    Workload {
        namespace: share(&workload.namespace),
        network: share(&workload.network),
        trust_domain: share(&workload.trust_domain),
        service_account: share(&workload.service_account),
        node: share(&workload.node),
        canonical_name: share(&workload.canonical_name),
        canonical_revision: share(&workload.canonical_revision),
        workload_name: share(&workload.workload_name),
        authorization_policies: workload.authorization_policies.iter().map(&mut share).collect(),
        cluster_id: share(&workload.cluster_id),
        hostname: share(&workload.hostname),
        locality,
        services,
        ..workload
    }
}

/// The uid, or one made of what names the workload: hand-written files often leave it out.
fn uid(raw: &RawWorkload, defaults: &Defaults) -> Arc<str> {
    if !raw.uid.is_empty() {
        return raw.uid.as_str().into();
    }
    let name = match raw.workload_ips.first() {
        Some(Text(ip)) if raw.name.is_empty() => ip.to_string(),
        _ => raw.name.clone(),
    };
    let cluster = if raw.cluster_id.is_empty() { &*defaults.cluster } else { raw.cluster_id.as_str() };
    format!("{cluster}//Pod/{}/{name}", raw.namespace).into()
}

fn or(text: String, default: &str) -> Arc<str> {
    if text.is_empty() { default.into() } else { text.into() }
}

fn application_tunnel(raw: RawApplicationTunnel) -> ApplicationTunnel {
    ApplicationTunnel {
        protocol: match raw.protocol {
            RawApplicationProtocol::None => ApplicationProtocol::None,
            RawApplicationProtocol::Proxy => ApplicationProtocol::Proxy,
        },
        port: raw.port.filter(|port| *port != 0),
    }
}

fn gateway(raw: RawGateway) -> Gateway {
    Gateway { destination: raw.destination.0.0, hbone_mtls_port: raw.hbone_mtls_port }
}

fn texts<T: FromIterator<Arc<str>>>(list: Vec<String>) -> T {
    list.into_iter().map(Into::into).collect()
}

fn service(raw: RawService) -> (Service, Vec<RawEndpoint>) {
    let cidr_vip = |vip: super::raw::RawCidrVip| CidrVip { network: vip.network.into(), cidr: vip.cidr.0 };
    let weighted = |waypoint: super::raw::RawWeightedWaypoint| WeightedWaypoint {
        gateway: gateway(waypoint.destination),
        weight: waypoint.weight,
    };
    let service = Service {
        key: ServiceKey::new(&raw.namespace, &raw.hostname),
        name: raw.name.into(),
        vips: raw.vips.into_iter().map(|Text(vip)| vip.0).collect(),
        cidr_vips: raw.cidr_vips.into_iter().map(cidr_vip).collect(),
        ports: raw.ports.into(),
        subject_alt_names: texts(raw.subject_alt_names),
        waypoint: raw.waypoint.map(gateway),
        weighted_waypoints: raw.weighted_waypoints.into_iter().map(weighted).collect(),
        load_balancer: raw.load_balancer.map(load_balancer),
        ip_families: raw.ip_families.map(|families| match families {
            RawIpFamilies::Dual => IpFamilies::Dual,
            RawIpFamilies::Ipv4 => IpFamilies::Ipv4,
            RawIpFamilies::Ipv6 => IpFamilies::Ipv6,
        }),
        canonical: raw.canonical,
        visibility: match raw.visibility {
            RawVisibility::Public => Visibility::Public,
            RawVisibility::Namespace => Visibility::Namespace,
        },
    };
    (service, raw.endpoints.into_values().collect())
}

fn load_balancer(raw: RawLoadBalancer) -> LoadBalancer {
    let scope = |scope| match scope {
        RawScope::Region => BalanceScope::Region,
        RawScope::Zone => BalanceScope::Zone,
        RawScope::Subzone => BalanceScope::Subzone,
        RawScope::Node => BalanceScope::Node,
        RawScope::Cluster => BalanceScope::Cluster,
        RawScope::Network => BalanceScope::Network,
    };
    LoadBalancer {
        routing_preferences: raw.routing_preferences.into_iter().map(scope).collect(),
        mode: match raw.mode {
            RawMode::Standard => BalanceMode::Standard,
            RawMode::Strict => BalanceMode::Strict,
            RawMode::Failover => BalanceMode::Failover,
            RawMode::Passthrough => BalanceMode::Passthrough,
        },
        health_policy: match raw.health_policy {
            RawHealthPolicy::OnlyHealthy => HealthPolicy::OnlyHealthy,
            RawHealthPolicy::AllowAll => HealthPolicy::AllowAll,
        },
    }
}

fn policy(raw: RawPolicy) -> Policy {
    let clause = |matches: Vec<RawMatch>| matches.into_iter().map(one_match).collect();
    let rule = |clauses: Vec<Vec<RawMatch>>| clauses.into_iter().map(clause).collect();
    Policy {
        name: raw.name.into(),
        namespace: raw.namespace.into(),
        scope: match raw.scope {
            RawPolicyScope::Global => Scope::Global,
            RawPolicyScope::Namespace => Scope::Namespace,
            RawPolicyScope::WorkloadSelector => Scope::WorkloadSelector,
        },
        action: match raw.action {
            RawAction::Allow => Action::Allow,
            RawAction::Deny => Action::Deny,
        },
        rules: raw.rules.into_iter().map(rule).collect(),
        dry_run: raw.dry_run,
    }
}

fn one_match(raw: RawMatch) -> Match {
    Match {
        namespaces: strings(raw.namespaces),
        not_namespaces: strings(raw.not_namespaces),
        principals: strings(raw.principals),
        not_principals: strings(raw.not_principals),
        service_accounts: accounts(raw.service_accounts),
        not_service_accounts: accounts(raw.not_service_accounts),
        source_ips: ranges(raw.source_ips),
        not_source_ips: ranges(raw.not_source_ips),
        destination_ips: ranges(raw.destination_ips),
        not_destination_ips: ranges(raw.not_destination_ips),
        destination_ports: raw.destination_ports,
        not_destination_ports: raw.not_destination_ports,
        unintelligible: false,
    }
}

fn strings(list: Vec<RawStringMatch>) -> Vec<StringMatch> {
    let one = |raw| match raw {
        RawStringMatch::Exact(text) => StringMatch::Exact(text.into()),
        RawStringMatch::Prefix(text) => StringMatch::Prefix(text.into()),
        RawStringMatch::Suffix(text) => StringMatch::Suffix(text.into()),
        RawStringMatch::Presence() => StringMatch::Presence,
    };
    list.into_iter().map(one).collect()
}

fn accounts(list: Vec<RawServiceAccount>) -> Vec<ServiceAccountMatch> {
    let one = |raw: RawServiceAccount| ServiceAccountMatch {
        namespace: raw.namespace.into(),
        service_account: raw.service_account.into(),
    };
    list.into_iter().map(one).collect()
}

fn ranges(list: Vec<Text<IpNet>>) -> Vec<IpNet> {
    list.into_iter().map(|Text(range)| range).collect()
}
