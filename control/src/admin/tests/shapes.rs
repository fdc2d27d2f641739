//! The dump as operators' tools decode it: every key that they know has its type, and there is no other key but `halo`.
#![allow(dead_code, reason = "that a value has its type is what counts")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;

macro_rules! shapes {
    ($($name:ident { $($field:ident: $type:ty),* $(,)? })*) => {
        $(
            #[derive(Debug, Deserialize)]
            #[serde(rename_all = "camelCase", deny_unknown_fields)]
            pub(super) struct $name {
                $(pub(super) $field: $type,)*
            }
        )*
    };
}

shapes! {
    Dump {
        certificates: Vec<Certificate>, config: serde_json::Value, policies: Vec<Policy>, services: Vec<Service>,
        staged_services: BTreeMap<String, BTreeMap<String, Endpoint>>, static_config: serde_json::Value,
        version: Version, workloads: Vec<Workload>, workload_state: BTreeMap<String, State>, halo: serde_json::Value,
    }
    Version {
        version: String, git_revision: String, rust_version: String, build_profile: String, build_status: String,
        istio_version: String, crypto_provider: String,
    }
    Gateway { destination: String, hbone_mtls_port: u16 }
    Locality { region: String, zone: String, subzone: String }
    ApplicationTunnel { protocol: String, port: Option<u16> }
    Workload {
        uid: String, name: String, namespace: String, workload_ips: Vec<IpAddr>, protocol: String, network_mode: String,
        service_account: String, trust_domain: String, network: Option<String>, workload_name: Option<String>,
        workload_type: Option<String>, canonical_name: Option<String>, canonical_revision: Option<String>,
        hostname: Option<String>, node: Option<String>, native_tunnel: Option<bool>,
        application_tunnel: Option<ApplicationTunnel>, authorization_policies: Option<Vec<String>>, status: String,
        cluster_id: String, locality: Option<Locality>, services: Option<Vec<String>>, capacity: u32,
        waypoint: Option<Gateway>, network_gateway: Option<Gateway>,
    }
    CidrVip { network: String, cidr: Range }
    Endpoint { workload_uid: String, port: BTreeMap<u16, u16>, status: String }
    WeightedWaypoint { destination: Gateway, weight: u32 }
    LoadBalancer { routing_preferences: Vec<String>, mode: String, health_policy: String }
    Service {
        name: String, namespace: String, hostname: String, vips: Vec<String>, cidr_vips: Option<Vec<CidrVip>>,
        ports: BTreeMap<u16, u16>, endpoints: BTreeMap<String, Endpoint>, subject_alt_names: Vec<String>,
        waypoint: Option<Gateway>, weighted_waypoints: Option<Vec<WeightedWaypoint>>,
        load_balancer: Option<LoadBalancer>, ip_families: Option<String>, canonical: bool, visibility: String,
    }
    Policy {
        name: String, namespace: String, scope: String, action: String, dry_run: bool, rules: Vec<Vec<Vec<Match>>>,
    }
    ServiceAccount { namespace: String, service_account: String }
    Certificate { identity: String, state: String, cert_chain: Vec<X509>, root_certs: Vec<X509> }
    X509 { pem: String, serial_number: String, valid_from: String, expiration_time: String }
    State { state: String, info: Info, connections: Connections }
    Info { name: String, namespace: String, service_account: String }
    Connections { inbound: Vec<Connection>, outbound: Vec<Connection> }
    Connection { src: SocketAddr, original_dst: Option<String>, actual_dst: SocketAddr, protocol: String }
}

/// A range of addresses, `10.0.0.0/8`.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Range(ipnet::IpNet);

impl TryFrom<String> for Range {
    type Error = ipnet::AddrParseError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

/// One of these keys, with its capital.
#[derive(Debug, Deserialize)]
pub(super) enum Text {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Presence([(); 0]),
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Match {
    pub(super) namespaces: Vec<Text>,
    pub(super) not_namespaces: Vec<Text>,
    pub(super) principals: Vec<Text>,
    pub(super) not_principals: Vec<Text>,
    pub(super) source_ips: Vec<Range>,
    pub(super) not_source_ips: Vec<Range>,
    pub(super) destination_ips: Vec<Range>,
    pub(super) not_destination_ips: Vec<Range>,
    pub(super) destination_ports: Vec<u16>,
    pub(super) not_destination_ports: Vec<u16>,
    pub(super) service_accounts: Vec<ServiceAccount>,
    pub(super) not_service_accounts: Vec<ServiceAccount>,
}
