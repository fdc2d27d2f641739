//! The file as it is written. Names, casing and defaults are the stock node proxy's; what the types cannot say is
//! checked in [`super::convert`].

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::str::FromStr;

use halo_core::net::NetworkAddress;
use halo_core::service::ServiceKey;
use halo_core::workload::{GatewayDestination, WorkloadType};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de};
use serde_saphyr::Spanned;

use super::LocalError;

/// Reads the text into the types below; the error carries where it went wrong.
pub(super) fn parse(text: &str) -> Result<RawFile, LocalError> {
    let mut path = None;
    // The file is the operator's own and may describe a large mesh, so the reader's budget for hostile input is off.
    let options = serde_saphyr::options! { budget: None, with_snippet: false };
    let parsed = serde_saphyr::with_deserializer_from_str_with_options(text, options, |yaml| {
        serde_path_to_error::deserialize::<_, Option<RawFile>>(yaml).map_err(|error| {
            // The wrapper that keeps an item's line shows as a field of its own.
            path = Some(error.path().to_string().replacen("].value", "]", 1));
            error.into_inner()
        })
    });
    let file = parsed.map_err(|error| LocalError {
        line: error.location().map_or(0, |location| location.line()),
        field: path.filter(|path| path != ".").unwrap_or_else(|| "file".to_owned()),
        reason: reason(&error),
    })?;
    file.ok_or_else(|| LocalError {
        line: 1,
        field: "file".to_owned(),
        reason: "there is nothing in it; an empty mesh is written {}".to_owned(),
    })
}

/// The error's words without the place, which is told apart.
fn reason(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(first);
    let without_place = match first.split_once(": ") {
        Some((place, rest)) if place.starts_with("line ") => rest,
        _ => first.find(" at line ").map_or(first, |at| &first[..at]),
    };
    without_place.to_owned()
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct RawFile {
    pub(super) workloads: Vec<Spanned<RawWorkload>>,
    pub(super) services: Vec<Spanned<RawService>>,
    pub(super) policies: Vec<Spanned<RawPolicy>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawWorkload {
    pub(super) workload_ips: Vec<Text<IpAddr>>,
    pub(super) namespace: String,
    #[serde(default)]
    pub(super) uid: String,
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) waypoint: Option<RawGateway>,
    #[serde(default)]
    pub(super) network_gateway: Option<RawGateway>,
    #[serde(default)]
    pub(super) protocol: RawProtocol,
    #[serde(default)]
    pub(super) network_mode: RawNetworkMode,
    #[serde(default)]
    pub(super) trust_domain: String,
    #[serde(default)]
    pub(super) service_account: String,
    #[serde(default)]
    pub(super) network: String,
    #[serde(default)]
    pub(super) workload_name: String,
    #[serde(default)]
    pub(super) workload_type: Option<Text<Kind>>,
    #[serde(default)]
    pub(super) canonical_name: String,
    #[serde(default)]
    pub(super) canonical_revision: String,
    #[serde(default)]
    pub(super) hostname: String,
    #[serde(default)]
    pub(super) node: String,
    #[serde(default)]
    pub(super) native_tunnel: bool,
    #[serde(default)]
    pub(super) application_tunnel: Option<RawApplicationTunnel>,
    #[serde(default)]
    pub(super) authorization_policies: Vec<String>,
    #[serde(default)]
    pub(super) status: RawHealth,
    #[serde(default)]
    pub(super) cluster_id: String,
    #[serde(default)]
    pub(super) locality: RawLocality,
    #[serde(default)]
    pub(super) services: BTreeMap<Text<ServiceKey>, RawPorts>,
    #[serde(default)]
    pub(super) capacity: Option<u32>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) enum RawProtocol {
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    #[serde(rename = "HBONE")]
    Hbone,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) enum RawNetworkMode {
    #[default]
    Standard,
    HostNetwork,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) enum RawHealth {
    #[default]
    Healthy,
    Unhealthy,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLocality {
    pub(super) region: String,
    pub(super) zone: String,
    pub(super) subzone: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawGateway {
    pub(super) destination: Text<Destination>,
    pub(super) hbone_mtls_port: u16,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawApplicationTunnel {
    pub(super) protocol: RawApplicationProtocol,
    #[serde(default)]
    pub(super) port: Option<u16>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) enum RawApplicationProtocol {
    #[serde(rename = "NONE")]
    None,
    #[serde(rename = "PROXY")]
    Proxy,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawService {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) hostname: String,
    pub(super) vips: Vec<Text<Vip>>,
    pub(super) ports: RawPorts,
    #[serde(default)]
    pub(super) cidr_vips: Vec<RawCidrVip>,
    #[serde(default)]
    pub(super) endpoints: BTreeMap<String, RawEndpoint>,
    #[serde(default)]
    pub(super) subject_alt_names: Vec<String>,
    #[serde(default)]
    pub(super) waypoint: Option<RawGateway>,
    #[serde(default)]
    pub(super) weighted_waypoints: Vec<RawWeightedWaypoint>,
    #[serde(default)]
    pub(super) load_balancer: Option<RawLoadBalancer>,
    #[serde(default)]
    pub(super) ip_families: Option<RawIpFamilies>,
    #[serde(default)]
    pub(super) canonical: bool,
    #[serde(default)]
    pub(super) visibility: RawVisibility,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCidrVip {
    #[serde(default)]
    pub(super) network: String,
    pub(super) cidr: Text<IpNet>,
}

/// Service port to target port.
type RawPorts = BTreeMap<u16, u16>;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawEndpoint {
    pub(super) workload_uid: String,
    #[serde(default)]
    pub(super) port: RawPorts,
    #[expect(dead_code, reason = "the workload's own status decides")]
    #[serde(default)]
    status: RawHealth,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawWeightedWaypoint {
    pub(super) destination: RawGateway,
    pub(super) weight: u32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawLoadBalancer {
    #[serde(default)]
    pub(super) routing_preferences: Vec<RawScope>,
    #[serde(default)]
    pub(super) mode: RawMode,
    #[serde(default)]
    pub(super) health_policy: RawHealthPolicy,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) enum RawScope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) enum RawMode {
    #[default]
    Standard,
    Strict,
    Failover,
    Passthrough,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) enum RawHealthPolicy {
    #[default]
    OnlyHealthy,
    AllowAll,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) enum RawIpFamilies {
    Dual,
    #[serde(rename = "IPv4")]
    Ipv4,
    #[serde(rename = "IPv6")]
    Ipv6,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) enum RawVisibility {
    #[default]
    Public,
    Namespace,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawPolicy {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) scope: RawPolicyScope,
    pub(super) action: RawAction,
    pub(super) rules: Vec<Vec<Vec<RawMatch>>>,
    #[serde(default)]
    pub(super) dry_run: bool,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) enum RawPolicyScope {
    Global,
    Namespace,
    WorkloadSelector,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) enum RawAction {
    Allow,
    Deny,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct RawMatch {
    pub(super) namespaces: Vec<RawStringMatch>,
    pub(super) not_namespaces: Vec<RawStringMatch>,
    pub(super) principals: Vec<RawStringMatch>,
    pub(super) not_principals: Vec<RawStringMatch>,
    pub(super) service_accounts: Vec<RawServiceAccount>,
    pub(super) not_service_accounts: Vec<RawServiceAccount>,
    pub(super) source_ips: Vec<Text<IpNet>>,
    pub(super) not_source_ips: Vec<Text<IpNet>>,
    pub(super) destination_ips: Vec<Text<IpNet>>,
    pub(super) not_destination_ips: Vec<Text<IpNet>>,
    pub(super) destination_ports: Vec<u16>,
    pub(super) not_destination_ports: Vec<u16>,
}

#[derive(Debug, Deserialize)]
pub(super) enum RawStringMatch {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Presence(),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawServiceAccount {
    pub(super) namespace: String,
    pub(super) service_account: String,
}

/// A value that is written as text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Text<T>(pub(super) T);

/// What the text of a value looks like.
pub(super) trait FromText: Sized {
    const EXPECTED: &'static str;
    fn from_text(text: &str) -> Option<Self>;
}

impl<'de, T: FromText> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor(PhantomData)).map(Text)
    }
}

struct TextVisitor<T>(PhantomData<T>);

impl<T: FromText> de::Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(T::EXPECTED)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        T::from_text(text).ok_or_else(|| E::custom(format_args!("{text:?} is not {}", T::EXPECTED)))
    }
}

impl FromText for IpAddr {
    const EXPECTED: &'static str = "an IP address";
    fn from_text(text: &str) -> Option<Self> {
        Self::from_str(text).ok().map(|ip| ip.to_canonical())
    }
}

impl FromText for IpNet {
    const EXPECTED: &'static str = "a range such as 10.0.0.0/8";
    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl FromText for ServiceKey {
    const EXPECTED: &'static str = "a service, written namespace/hostname";
    fn from_text(text: &str) -> Option<Self> {
        Self::parse(text)
    }
}

/// A virtual address, written `network/ip`.
#[derive(Debug)]
pub(super) struct Vip(pub(super) NetworkAddress);

impl FromText for Vip {
    const EXPECTED: &'static str = "an address, written network/ip (the network may be empty)";
    fn from_text(text: &str) -> Option<Self> {
        let (network, ip) = text.split_once('/')?;
        Some(Self(NetworkAddress { network: network.into(), ip: IpAddr::from_text(ip)? }))
    }
}

#[derive(Debug)]
pub(super) struct Destination(pub(super) GatewayDestination);

impl FromText for Destination {
    const EXPECTED: &'static str = "a gateway, written namespace/hostname or network/ip";
    fn from_text(text: &str) -> Option<Self> {
        let address = Vip::from_text(text).map(|vip| GatewayDestination::Address(vip.0));
        address.or_else(|| ServiceKey::parse(text).map(GatewayDestination::Service)).map(Self)
    }
}

#[derive(Debug)]
pub(super) struct Kind(pub(super) WorkloadType);

impl FromText for Kind {
    const EXPECTED: &'static str = "deployment, cronjob, pod or job";
    fn from_text(text: &str) -> Option<Self> {
        Some(Self(match text.to_ascii_lowercase().as_str() {
            "" | "deployment" => WorkloadType::Deployment,
            "cronjob" => WorkloadType::CronJob,
            "pod" => WorkloadType::Pod,
            "job" => WorkloadType::Job,
            _ => return None,
        }))
    }
}
