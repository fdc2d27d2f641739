//! DNS of pods: whether it is captured, where, and which servers the node proxy asks itself.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::raw::{ConfigError, Reason, parse};
use super::resolved::refuse;

/// The port of a DNS server.
const SERVER_PORT: u16 = 53;
/// The port that captured queries come in on.
const CAPTURE_PORT: u16 = 15_053;

/// How pods' DNS is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsSettings {
    /// Whether it is captured.
    pub capture: bool,
    /// Whether it would be, were it not for XDS_ON_DEMAND.
    pub held_back: bool,
    /// Where captured queries come in, inside each pod.
    pub listen: Vec<SocketAddr>,
    /// The servers, in the order in which they are asked.
    pub servers: Vec<SocketAddr>,
}

/// The settings while variables are read.
#[derive(Debug, Default)]
pub(super) struct DnsDraft {
    pub(super) capture: Option<String>,
    pub(super) listen: Option<String>,
    pub(super) servers: Option<Vec<SocketAddr>>,
}

impl DnsDraft {
    /// Settles what depends on several values. `metadata` is the node's, from variables and PROXY_CONFIG.
    pub(super) fn settle(
        self,
        metadata: &BTreeMap<String, String>,
        resolv_conf: Option<&str>,
        on_demand: bool,
    ) -> Result<DnsSettings, ConfigError> {
        let said = self.capture.as_ref().or_else(|| metadata.get("DNS_CAPTURE"));
        let wanted = said.map(|text| text.eq_ignore_ascii_case("true"));
        if on_demand && wanted == Some(true) {
            let reason = "XDS_ON_DEMAND is set too; a node that holds only the services that its pods connect to cannot \
                          answer for those that they ask about: unset one of the two";
            return Err(refuse("ISTIO_META_DNS_CAPTURE", "true", reason));
        }
        let listen = match self.listen.as_ref().or_else(|| metadata.get("DNS_PROXY_ADDR")) {
            Some(text) => {
                capture_address(text).map_err(|reason| refuse("ISTIO_META_DNS_PROXY_ADDR", text, reason))?
            }
            None => localhost(CAPTURE_PORT),
        };
        let servers = self.servers.unwrap_or_else(|| nameservers(resolv_conf.unwrap_or_default()));
        let capture = wanted.unwrap_or(true);
        Ok(DnsSettings { capture: capture && !on_demand, held_back: capture && on_demand, listen, servers })
    }
}

impl DnsSettings {
    /// What is allowed and hardly meant.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.held_back {
            let text = "DNS of pods is not captured, because XDS_ON_DEMAND is set: services without an entry in the \
                        cluster's own DNS are not found by name";
            warnings.push(text.to_owned());
        }
        if self.servers.is_empty() {
            let text = "/etc/resolv.conf names no server: hosts that are not in the mesh cannot be resolved; set \
                        HALO_DNS_SERVERS";
            warnings.push(text.to_owned());
        }
        for server in self.servers.iter().filter(|server| server.ip().is_loopback()) {
            warnings.push(format!(
                "the DNS server {server} is asked from the pods' network namespaces, where that is the pod itself; set \
                 HALO_DNS_SERVERS to one that pods can reach"
            ));
        }
        warnings
    }
}

fn localhost(port: u16) -> Vec<SocketAddr> {
    [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()].map(|ip| SocketAddr::new(ip, port)).into()
}

/// `localhost:15053`, which is the loopback address of each family, or one address.
fn capture_address(text: &str) -> Result<Vec<SocketAddr>, Reason> {
    let expected = "localhost or an address, with its port, such as localhost:15053";
    match text.strip_prefix("localhost:") {
        Some(port) => parse(port, expected).map(localhost),
        None => parse(text, expected).map(|address| vec![address]),
    }
}

/// The `nameserver` lines of a resolver's configuration (resolv.conf(5)). Others, and servers that are no plain address,
/// are passed over, as every resolver does.
fn nameservers(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let server = words.next().filter(|word| *word == "nameserver").and(words.next())?;
        Some(SocketAddr::new(server.parse().ok()?, SERVER_PORT))
    });
    servers.collect()
}

/// A list of addresses, each with or without a port.
pub(super) fn servers(text: &str) -> Result<Vec<SocketAddr>, Reason> {
    let one = |text: &str| {
        let text = text.trim();
        let plain = text.parse().map(|ip| SocketAddr::new(ip, SERVER_PORT));
        plain.or_else(|_| text.parse()).map_err(|_| {
            format!("`{text}` is not an address, such as 10.96.0.10, 10.96.0.10:53 or [fd00::a]:53")
        })
    };
    text.split(',').map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Files, Overrides, Variables};
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let resolv_conf =
            "# kubelet\nsearch a b\nnameserver 10.96.0.10\nnameserver fe80::1%eth0\nnameserver fd00::a # b\n";
        let files = Files { resolv_conf: Some(resolv_conf.to_owned()), ..Files::default() };
        let variables = pairs.iter().copied().collect::<Variables>().with_files(files);
        Config::read(&variables, &Overrides::default())
    }

    fn addresses(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn dns_is_captured_unless_the_metadata_says_otherwise() {
        let capture = |pairs: &[(&str, &str)]| read(pairs).unwrap().dns.capture;
        assert!(capture(&[]));
        assert!(capture(&[("ISTIO_META_DNS_CAPTURE", "TRUE")]));
        assert!(!capture(&[("ISTIO_META_DNS_CAPTURE", "false")]));
        assert!(!capture(&[("PROXY_CONFIG", "proxyMetadata:\n  DNS_CAPTURE: \"false\"\n")]));
        let both = [
            ("PROXY_CONFIG", "proxyMetadata:\n  DNS_CAPTURE: \"false\"\n"),
            ("ISTIO_META_DNS_CAPTURE", "true"),
        ];
        assert!(capture(&both), "the variable wins");
        let kept = read(&[("ISTIO_META_DNS_CAPTURE", "true")]).unwrap();
        assert_eq!(kept.facts.metadata["DNS_CAPTURE"], "true", "the control plane is told as well");
    }

    #[test]
    fn on_demand_without_a_word_about_dns_leaves_it_alone_and_says_so_and_with_one_it_is_refused() {
        let quiet = read(&[("XDS_ON_DEMAND", "true")]).unwrap();
        assert!(!quiet.dns.capture);
        assert!(quiet.warnings().iter().any(|line| line.contains("XDS_ON_DEMAND")), "{:?}", quiet.warnings());
        let off = read(&[("XDS_ON_DEMAND", "true"), ("ISTIO_META_DNS_CAPTURE", "false")]).unwrap();
        assert!(off.warnings().iter().all(|line| !line.contains("XDS_ON_DEMAND")));
        let error =
            read(&[("XDS_ON_DEMAND", "true"), ("ISTIO_META_DNS_CAPTURE", "True")]).unwrap_err().to_string();
        assert!(error.contains("ISTIO_META_DNS_CAPTURE") && error.contains("XDS_ON_DEMAND"), "{error}");
    }

    #[test]
    fn servers_are_the_nodes_own_or_those_that_are_named() {
        let plain = read(&[]).unwrap().dns;
        assert_eq!(plain.servers, addresses(&["10.96.0.10:53", "[fd00::a]:53"]));
        assert_eq!(plain.listen, addresses(&["127.0.0.1:15053", "[::1]:15053"]));
        let named =
            read(&[("HALO_DNS_SERVERS", "10.0.0.1, 10.0.0.2:5353,fd00::1,[fd00::2]:5353")]).unwrap().dns;
        assert_eq!(
            named.servers,
            addresses(&["10.0.0.1:53", "10.0.0.2:5353", "[fd00::1]:53", "[fd00::2]:5353"])
        );
        let error = read(&[("HALO_DNS_SERVERS", "10.0.0.1,dns.example")]).unwrap_err().to_string();
        assert!(error.contains("HALO_DNS_SERVERS") && error.contains("dns.example"), "{error}");
    }

    #[test]
    fn the_place_of_captured_queries_can_be_moved() {
        let at = |text| read(&[("ISTIO_META_DNS_PROXY_ADDR", text)]).map(|config| config.dns.listen);
        assert_eq!(at("localhost:5300").unwrap(), addresses(&["127.0.0.1:5300", "[::1]:5300"]));
        assert_eq!(at("127.0.0.9:5300").unwrap(), addresses(&["127.0.0.9:5300"]));
        assert!(at("localhost").unwrap_err().to_string().contains("ISTIO_META_DNS_PROXY_ADDR"));
    }

    #[test]
    fn servers_that_pods_cannot_reach_are_warned_of() {
        let warned = |servers, word| {
            let config = read(&[("HALO_DNS_SERVERS", servers)]).unwrap();
            config.warnings().iter().any(|line| line.contains(word))
        };
        assert!(warned("127.0.0.53", "127.0.0.53") && !warned("10.0.0.1", "10.0.0.1"));
        let none = Config::read(&Variables::default(), &Overrides::default()).unwrap();
        assert!(none.warnings().iter().any(|line| line.contains("resolv.conf")));
    }

    #[test]
    fn the_clusters_domain_is_read() {
        assert_eq!(read(&[]).unwrap().cluster_domain, "cluster.local");
        assert_eq!(read(&[("CLUSTER_DOMAIN", "lab.example")]).unwrap().cluster_domain, "lab.example");
    }
}
