//! The part of Istio's `ProxyConfig` that a node proxy reads, from `PROXY_CONFIG` and from the mesh's configuration.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::raw::Reason;

/// What is set of it. Other fields are for other proxies.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ProxyConfig {
    pub(super) discovery_address: Option<String>,
    pub(super) proxy_admin_port: Option<u16>,
    pub(super) stats_port: Option<u16>,
    /// 0 for every core.
    pub(super) concurrency: Option<u16>,
    #[serde(default)]
    pub(super) proxy_metadata: BTreeMap<String, String>,
}

/// What is set of the mesh's configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MeshConfig {
    pub(super) default_config: Option<ProxyConfig>,
    #[serde(default)]
    pub(super) trust_domain_aliases: Vec<String>,
}

impl MeshConfig {
    /// Reads YAML.
    pub(super) fn parse(text: &str) -> Result<Self, Reason> {
        serde_saphyr::from_str::<Option<Self>>(text).map(Option::unwrap_or_default).map_err(not_yaml)
    }
}

impl ProxyConfig {
    /// Reads YAML.
    pub(super) fn parse(text: &str) -> Result<Self, Reason> {
        serde_saphyr::from_str::<Option<Self>>(text).map(Option::unwrap_or_default).map_err(not_yaml)
    }

    /// Lets another win where it says something; of metadata, each key by itself.
    pub(super) fn merge(&mut self, other: Self) {
        self.discovery_address = other.discovery_address.or_else(|| self.discovery_address.take());
        self.proxy_admin_port = other.proxy_admin_port.or(self.proxy_admin_port);
        self.stats_port = other.stats_port.or(self.stats_port);
        self.concurrency = other.concurrency.or(self.concurrency);
        self.proxy_metadata.extend(other.proxy_metadata);
    }
}

fn not_yaml(error: serde_saphyr::Error) -> Reason {
    format!("expected the YAML of a ProxyConfig: {error}")
}
