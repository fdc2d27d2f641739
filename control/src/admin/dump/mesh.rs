//! Workloads, services and policies. Empty values are left out where the stock node proxy leaves them out.

use std::collections::BTreeMap;
use std::sync::Arc;

use halo_core::policy::{Action, Match, Policy, Scope, ServiceAccountMatch, StringMatch};
use halo_core::service::{
    BalanceMode, HealthPolicy, IpFamilies, LoadBalancer, Scope as BalanceScope, Service, ServiceKey,
    Visibility,
};
use halo_core::snapshot::Snapshot;
use halo_core::workload::{
    ApplicationProtocol, ApplicationTunnel, Gateway, GatewayDestination, Health, NetworkMode, PortMap,
    Protocol, Workload, WorkloadType,
};
use serde_json::{Map, Value, json};

/// An object under construction, from which empty values are left out.
struct Object(Map<String, Value>);

impl Object {
    fn always(&mut self, key: &str, value: impl Into<Value>) {
        self.0.insert(key.to_owned(), value.into());
    }

    fn text(&mut self, key: &str, text: &str) {
        if !text.is_empty() {
            self.always(key, text);
        }
    }

    fn list(&mut self, key: &str, list: Vec<Value>) {
        if !list.is_empty() {
            self.always(key, list);
        }
    }

    fn option(&mut self, key: &str, value: Option<Value>) {
        if let Some(value) = value {
            self.always(key, value);
        }
    }
}

pub(super) fn workloads(snapshot: &Snapshot) -> Vec<Value> {
    let mut all: Vec<_> = snapshot.workloads.iter().collect();
    all.sort_by_key(|workload| &workload.uid);
    all.into_iter().map(|workload| self::workload(workload)).collect()
}

fn workload(workload: &Workload) -> Value {
    let mut out = Object(Map::new());
    let addresses = workload.addresses.iter().map(|ip| json!(ip)).collect::<Vec<_>>();
    out.always("workloadIps", addresses);
    out.option("waypoint", workload.waypoint.as_deref().map(gateway));
    out.option("networkGateway", workload.network_gateway.as_deref().map(gateway));
    out.always(
        "protocol",
        match workload.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Hbone => "HBONE",
        },
    );
    out.always(
        "networkMode",
        match workload.network_mode {
            NetworkMode::Standard => "Standard",
            NetworkMode::HostNetwork => "HostNetwork",
        },
    );
    out.text("uid", &workload.uid);
    out.always("name", &*workload.name);
    out.always("namespace", &*workload.namespace);
    out.text("trustDomain", &workload.trust_domain);
    out.text("serviceAccount", &workload.service_account);
    out.text("network", &workload.network);
    out.text("workloadName", &workload.workload_name);
    out.text("workloadType", kind(workload.workload_type));
    out.text("canonicalName", &workload.canonical_name);
    out.text("canonicalRevision", &workload.canonical_revision);
    out.text("hostname", &workload.hostname);
    out.text("node", &workload.node);
    if workload.native_tunnel {
        out.always("nativeTunnel", true);
    }
    out.option("applicationTunnel", workload.application_tunnel.as_ref().map(application_tunnel));
    out.list("authorizationPolicies", texts(&workload.authorization_policies));
    out.always("status", health(workload.health));
    out.always("clusterId", &*workload.cluster_id);
    out.option("locality", locality(workload));
    out.list("services", workload.services.keys().map(|key| json!(key.to_string())).collect());
    out.always("capacity", workload.weight());
    Value::Object(out.0)
}

fn kind(kind: WorkloadType) -> &'static str {
    match kind {
        WorkloadType::Deployment => "deployment",
        WorkloadType::CronJob => "cronjob",
        WorkloadType::Pod => "pod",
        WorkloadType::Job => "job",
    }
}

fn health(health: Health) -> &'static str {
    match health {
        Health::Healthy => "Healthy",
        Health::Unhealthy => "Unhealthy",
    }
}

fn locality(workload: &Workload) -> Option<Value> {
    let place = &workload.locality;
    let set = !(place.region.is_empty() && place.zone.is_empty() && place.subzone.is_empty());
    set.then(|| json!({ "region": *place.region, "zone": *place.zone, "subzone": *place.subzone }))
}

fn application_tunnel(tunnel: &ApplicationTunnel) -> Value {
    let protocol = match tunnel.protocol {
        ApplicationProtocol::None => "NONE",
        ApplicationProtocol::Proxy => "PROXY",
    };
    match tunnel.port {
        Some(port) => json!({ "protocol": protocol, "port": port }),
        None => json!({ "protocol": protocol }),
    }
}

fn gateway(gateway: &Gateway) -> Value {
    let destination = match &gateway.destination {
        GatewayDestination::Service(key) => key.to_string(),
        GatewayDestination::Address(address) => address.to_string(),
    };
    json!({ "destination": destination, "hboneMtlsPort": gateway.hbone_mtls_port })
}

fn texts(list: &[Arc<str>]) -> Vec<Value> {
    list.iter().map(|text| json!(**text)).collect()
}

fn ports(ports: &PortMap) -> Value {
    Value::Object(ports.iter().map(|(port, target)| (port.to_string(), json!(target))).collect())
}

pub(super) fn services(snapshot: &Snapshot) -> Vec<Value> {
    let mut all: Vec<_> = snapshot.services.iter().collect();
    all.sort_by_key(|service| &service.key);
    all.into_iter().map(|service| self::service(snapshot, service)).collect()
}

fn endpoint(workload: &Workload, own: &PortMap) -> (String, Value) {
    let value =
        json!({ "workloadUid": *workload.uid, "port": ports(own), "status": health(workload.health) });
    (workload.uid.to_string(), value)
}

fn service(snapshot: &Snapshot, service: &Service) -> Value {
    let endpoints: Map<_, _> =
        snapshot.workloads.endpoints(&service.key).map(|one| endpoint(&one.workload, &one.ports)).collect();
    let mut out = Object(Map::new());
    out.always("name", &*service.name);
    out.always("namespace", &*service.key.namespace);
    out.always("hostname", &*service.key.hostname);
    out.always("vips", service.vips.iter().map(|vip| json!(vip.to_string())).collect::<Vec<_>>());
    let range =
        |vip: &halo_core::service::CidrVip| json!({ "network": *vip.network, "cidr": vip.cidr.to_string() });
    out.list("cidrVips", service.cidr_vips.iter().map(range).collect());
    out.always("ports", ports(&service.ports));
    out.always("endpoints", endpoints);
    out.always("subjectAltNames", texts(&service.subject_alt_names));
    out.option("waypoint", service.waypoint.as_ref().map(gateway));
    let weighted = |one: &halo_core::service::WeightedWaypoint| json!({ "destination": gateway(&one.gateway), "weight": one.weight });
    out.list("weightedWaypoints", service.weighted_waypoints.iter().map(weighted).collect());
    out.option("loadBalancer", service.load_balancer.as_ref().map(load_balancer));
    out.option(
        "ipFamilies",
        service.ip_families.map(|families| match families {
            IpFamilies::Dual => json!("Dual"),
            IpFamilies::Ipv4 => json!("IPv4"),
            IpFamilies::Ipv6 => json!("IPv6"),
        }),
    );
    out.always("canonical", service.canonical);
    out.always(
        "visibility",
        match service.visibility {
            Visibility::Public => "Public",
            Visibility::Namespace => "Namespace",
        },
    );
    Value::Object(out.0)
}

fn load_balancer(balancer: &LoadBalancer) -> Value {
    let scope = |scope: &BalanceScope| match scope {
        BalanceScope::Region => "Region",
        BalanceScope::Zone => "Zone",
        BalanceScope::Subzone => "Subzone",
        BalanceScope::Node => "Node",
        BalanceScope::Cluster => "Cluster",
        BalanceScope::Network => "Network",
    };
    json!({
        "routingPreferences": balancer.routing_preferences.iter().map(scope).collect::<Vec<_>>(),
        "mode": match balancer.mode {
            BalanceMode::Standard => "Standard",
            BalanceMode::Strict => "Strict",
            BalanceMode::Failover => "Failover",
            BalanceMode::Passthrough => "Passthrough",
        },
        "healthPolicy": match balancer.health_policy {
            HealthPolicy::OnlyHealthy => "OnlyHealthy",
            HealthPolicy::AllowAll => "AllowAll",
        },
    })
}

/// Endpoints of services that are not known yet.
pub(super) fn staged_services(snapshot: &Snapshot) -> Value {
    let mut staged: BTreeMap<&ServiceKey, Map<String, Value>> = BTreeMap::new();
    for workload in snapshot.workloads.iter() {
        for (key, own) in &workload.services {
            if snapshot.services.get(key).is_none() {
                staged.entry(key).or_default().extend([endpoint(workload, own)]);
            }
        }
    }
    let sorted = |mut endpoints: Map<String, Value>| {
        endpoints.sort_keys();
        Value::Object(endpoints)
    };
    Value::Object(staged.into_iter().map(|(key, endpoints)| (key.to_string(), sorted(endpoints))).collect())
}

pub(super) fn policies(snapshot: &Snapshot) -> Vec<Value> {
    snapshot.policies.iter().map(|policy| self::policy(policy)).collect()
}

fn policy(policy: &Policy) -> Value {
    let clause = |clause: &Vec<Match>| Value::Array(clause.iter().map(one_match).collect());
    let rule = |rule: &Vec<Vec<Match>>| Value::Array(rule.iter().map(clause).collect());
    json!({
        "name": *policy.name,
        "namespace": *policy.namespace,
        "scope": match policy.scope {
            Scope::Global => "Global",
            Scope::Namespace => "Namespace",
            Scope::WorkloadSelector => "WorkloadSelector",
        },
        "action": match policy.action {
            Action::Allow => "Allow",
            Action::Deny => "Deny",
        },
        "rules": policy.rules.iter().map(rule).collect::<Vec<_>>(),
        "dryRun": policy.dry_run,
    })
}

fn one_match(one: &Match) -> Value {
    let strings = |list: &[StringMatch]| list.iter().map(string_match).collect::<Vec<_>>();
    let accounts = |list: &[ServiceAccountMatch]| {
        let one = |account: &ServiceAccountMatch| json!({ "namespace": *account.namespace, "serviceAccount": *account.service_account });
        list.iter().map(one).collect::<Vec<_>>()
    };
    let ranges =
        |list: &[ipnet::IpNet]| list.iter().map(|range| json!(range.to_string())).collect::<Vec<_>>();
    let numbers = |list: &[u16]| list.iter().map(|port| json!(port)).collect::<Vec<_>>();
    let mut out = Object(Map::new());
    out.list("namespaces", strings(&one.namespaces));
    out.list("notNamespaces", strings(&one.not_namespaces));
    out.list("serviceAccounts", accounts(&one.service_accounts));
    out.list("notServiceAccounts", accounts(&one.not_service_accounts));
    out.list("principals", strings(&one.principals));
    out.list("notPrincipals", strings(&one.not_principals));
    out.list("sourceIps", ranges(&one.source_ips));
    out.list("notSourceIps", ranges(&one.not_source_ips));
    out.list("destinationIps", ranges(&one.destination_ips));
    out.list("notDestinationIps", ranges(&one.not_destination_ips));
    out.list("destinationPorts", numbers(&one.destination_ports));
    out.list("notDestinationPorts", numbers(&one.not_destination_ports));
    if one.unintelligible {
        out.always("unintelligible", true);
    }
    Value::Object(out.0)
}

fn string_match(one: &StringMatch) -> Value {
    match one {
        StringMatch::Exact(text) => json!({ "Exact": **text }),
        StringMatch::Prefix(text) => json!({ "Prefix": **text }),
        StringMatch::Suffix(text) => json!({ "Suffix": **text }),
        StringMatch::Presence => json!({ "Presence": [] }),
    }
}
