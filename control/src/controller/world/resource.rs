//! One resource as subscribers get it: encoded once, shared by all.

use std::sync::Arc;

use aws_lc_rs::digest;
use bytes::Bytes;
use halo_core::id::Identity;
use halo_core::policy::Policy;
use halo_core::service::{CidrVip, Service};
use halo_core::workload::{NetworkMode, Workload};

use crate::proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE, discovery};
use crate::wire;

/// Number of `resources` in a `DeltaDiscoveryResponse`.
const RESOURCES_FIELD: u32 = 2;

/// What subscribers may know of the mesh, by the protocol's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceType {
    /// Workloads and services.
    Address,
    /// Policies.
    Authorization,
}

impl ResourceType {
    /// Every type.
    pub const ALL: [Self; 2] = [Self::Address, Self::Authorization];

    /// Its type URL.
    pub fn url(self) -> &'static str {
        match self {
            Self::Address => ADDRESS_TYPE,
            Self::Authorization => AUTHORIZATION_TYPE,
        }
    }

    /// The type with this URL.
    pub fn of(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == url)
    }

    /// Its name in metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Authorization => "authorization",
        }
    }
}

/// What a resource is, as far as subscriptions and the authority ask.
#[derive(Debug, PartialEq, Eq)]
pub enum Nature {
    /// A workload.
    Workload {
        /// Node it runs on; empty if it is on none.
        node: Arc<str>,
        /// Its identity.
        identity: Identity,
        /// Names of the services that it serves, sorted.
        services: Box<[Arc<str>]>,
    },
    /// A service.
    Service {
        /// Its virtual ranges.
        ranges: Box<[CidrVip]>,
    },
    /// A policy.
    Policy,
}

/// One resource.
#[derive(Debug)]
pub struct Resource {
    /// The name it is known by: a uid, `namespace/hostname` or `namespace/name`.
    pub name: Arc<str>,
    /// The content's hash: the same content has the same version whoever serves it.
    pub version: u64,
    /// Other names that a subscription may use: `network/ip`, and `network/ip/length` for a range.
    pub aliases: Box<[Arc<str>]>,
    /// What it is.
    pub nature: Nature,
    /// Its whole entry in a `DeltaDiscoveryResponse`, tag and length included.
    pub encoded: Bytes,
}

impl Resource {
    /// Encodes a workload. `intern` gives the text that is held already for the name of a service.
    pub(super) fn workload(workload: &Workload, intern: impl Fn(String) -> Arc<str>) -> Self {
        let addresses: &[_] = match workload.network_mode {
            NetworkMode::Standard => &workload.addresses,
            NetworkMode::HostNetwork => &[],
        };
        let aliases = addresses.iter().map(|ip| format!("{}/{ip}", workload.network).into()).collect();
        let nature = Nature::Workload {
            node: workload.node.clone(),
            identity: workload.identity(),
            services: workload.services.keys().map(|key| intern(key.to_string())).collect(),
        };
        Self::new(workload.uid.clone(), aliases, nature, wire::encode_workload(workload))
    }

    /// Encodes a service.
    pub(super) fn service(service: &Service) -> Self {
        let vips = service.vips.iter().map(|vip| vip.to_string().into());
        let ranges = service.cidr_vips.iter().map(|vip| range_alias(&vip.network, vip.cidr));
        let nature = Nature::Service { ranges: service.cidr_vips.clone().into() };
        let name = service.key.to_string().into();
        Self::new(name, vips.chain(ranges).collect(), nature, wire::encode_service(service))
    }

    /// Encodes a policy.
    pub(super) fn policy(policy: &Policy) -> Self {
        Self::new(policy.key(), Box::default(), Nature::Policy, wire::encode_policy(policy))
    }

    fn new(name: Arc<str>, aliases: Box<[Arc<str>]>, nature: Nature, content: Vec<u8>) -> Self {
        let version = hash(&content);
        let kind = match nature {
            Nature::Policy => ResourceType::Authorization,
            Nature::Workload { .. } | Nature::Service { .. } => ResourceType::Address,
        };
        let entry = discovery::Resource {
            version: version_text(version),
            resource: Some(discovery::Any { type_url: kind.url().to_owned(), value: content.into() }),
            name: name.to_string(),
            aliases: aliases.iter().map(|alias| alias.to_string()).collect(),
        };
        let mut encoded = Vec::with_capacity(prost::encoding::message::encoded_len(RESOURCES_FIELD, &entry));
        prost::encoding::message::encode(RESOURCES_FIELD, &entry, &mut encoded);
        Self { name, version, aliases, nature, encoded: encoded.into() }
    }

    /// Whether a version that a client reports is this one.
    pub fn is_version(&self, text: &str) -> bool {
        text == version_text(self.version)
    }

    /// The names of the services that it serves, if it is a workload.
    pub fn services(&self) -> &[Arc<str>] {
        match &self.nature {
            Nature::Workload { services, .. } => services,
            Nature::Service { .. } | Nature::Policy => &[],
        }
    }

    /// The node it runs on, if it is a workload on one.
    pub fn node(&self) -> Option<&Arc<str>> {
        match &self.nature {
            Nature::Workload { node, .. } => Some(node).filter(|node| !node.is_empty()),
            Nature::Service { .. } | Nature::Policy => None,
        }
    }

    /// Its virtual ranges, if it is a service.
    pub fn ranges(&self) -> &[CidrVip] {
        match &self.nature {
            Nature::Service { ranges } => ranges,
            Nature::Workload { .. } | Nature::Policy => &[],
        }
    }
}

/// The alias of a virtual range.
pub(super) fn range_alias(network: &str, range: ipnet::IpNet) -> Arc<str> {
    format!("{network}/{}", range.trunc()).into()
}

fn version_text(version: u64) -> String {
    format!("{version:016x}")
}

/// The first 64 bits of the content's SHA-256.
fn hash(content: &[u8]) -> u64 {
    let digest = digest::digest(&digest::SHA256, content);
    let (first, _) = digest.as_ref().split_first_chunk().expect("SHA-256 has 32 bytes");
    u64::from_be_bytes(*first)
}
