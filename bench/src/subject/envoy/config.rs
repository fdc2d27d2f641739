//! A sidecar's configuration, of the shape that Istio gives it: captured connections keep their destination, go out
//! with mutual TLS, and reach the application from an address of the loopback.

use std::path::Path;

use serde_json::{Value, json};

use super::Mode;
use crate::pod::HTTP_PORT;

/// Captured outbound TCP.
pub(super) const OUTBOUND_PORT: u16 = 15001;
/// Captured inbound TCP.
pub(super) const INBOUND_PORT: u16 = 15006;
/// Source of connections to the pod's own applications.
pub(super) const INBOUND_SOURCE: &str = "127.0.0.6";

/// No limit, as Istio has it.
const UNLIMITED: u32 = u32::MAX;
/// Whom both sides accept.
const PEERS: &str = "spiffe://cluster.local/";

/// Which way a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// From the pod.
    Outbound,
    /// To the pod.
    Inbound,
}

/// The bootstrap file.
pub(super) fn bootstrap(node: &str, mode: Mode, directory: &Path, admin: &Path) -> Value {
    let modes: &[Mode] = match mode {
        Mode::Tcp => &[Mode::Tcp],
        Mode::Http => &[Mode::Http, Mode::Tcp],
    };
    let directions = [Direction::Outbound, Direction::Inbound];
    let clusters = directions.iter().flat_map(|&direction| modes.iter().map(move |&mode| (direction, mode)));
    let clusters: Vec<_> = clusters.map(|(direction, mode)| cluster(direction, mode, directory)).collect();
    json!({
        "node": {"id": node, "cluster": node},
        "admin": {"address": {"pipe": {"path": admin}}},
        "static_resources": {
            "listeners": directions.map(|direction| listener(direction, modes, directory)),
            "clusters": clusters,
        },
    })
}

impl Direction {
    fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }

    /// The protocols that it offers, or accepts, under TLS. Istio's names tell proxies of the mesh from others.
    fn alpn(self, mode: Mode) -> &'static [&'static str] {
        match (self, mode) {
            (Self::Outbound, Mode::Tcp) => &["istio-peer-exchange", "istio"],
            (Self::Outbound, Mode::Http) => &["istio-http/1.1", "istio", "http/1.1"],
            (Self::Inbound, Mode::Tcp) => &["istio-peer-exchange", "h2", "http/1.1"],
            (Self::Inbound, Mode::Http) => &["h2", "http/1.1"],
        }
    }
}

/// The type of a part of the configuration, by its name below Envoy's own.
fn typed(name: &str) -> String {
    format!("type.googleapis.com/envoy.{name}")
}

fn cluster_name(direction: Direction, mode: Mode) -> String {
    let mode = match mode {
        Mode::Tcp => "tcp",
        Mode::Http => "http",
    };
    format!("{}-{mode}", direction.name())
}

/// The listener of one direction: a filter chain for the port of the HTTP servers, if HTTP is understood, and one for the
/// rest.
fn listener(direction: Direction, modes: &[Mode], directory: &Path) -> Value {
    let port = match direction {
        Direction::Outbound => OUTBOUND_PORT,
        Direction::Inbound => INBOUND_PORT,
    };
    let chains: Vec<_> = modes.iter().map(|&mode| filter_chain(direction, mode, directory)).collect();
    json!({
        "name": direction.name(),
        "traffic_direction": direction.name().to_uppercase(),
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": port}},
        "listener_filters": [{
            "name": "envoy.filters.listener.original_dst",
            "typed_config": {"@type": typed("extensions.filters.listener.original_dst.v3.OriginalDst")},
        }],
        "filter_chains": chains,
    })
}

fn filter_chain(direction: Direction, mode: Mode, directory: &Path) -> Value {
    let filter = match mode {
        Mode::Tcp => tcp_filter(direction),
        Mode::Http => http_filter(direction),
    };
    let mut chain = json!({"filters": [filter]});
    if mode == Mode::Http {
        chain["filter_chain_match"] = json!({"destination_port": HTTP_PORT});
    }
    if direction == Direction::Inbound {
        let context = json!({
            "@type": typed("extensions.transport_sockets.tls.v3.DownstreamTlsContext"),
            "require_client_certificate": true,
            "common_tls_context": tls(direction.alpn(mode), directory),
        });
        chain["transport_socket"] = json!({"name": "envoy.transport_sockets.tls", "typed_config": context});
    }
    chain
}

fn tcp_filter(direction: Direction) -> Value {
    let name = cluster_name(direction, Mode::Tcp);
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": typed("extensions.filters.network.tcp_proxy.v3.TcpProxy"),
            "stat_prefix": name,
            "cluster": name,
        },
    })
}

fn http_filter(direction: Direction) -> Value {
    let name = cluster_name(direction, Mode::Http);
    let route = json!({"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "0s"}});
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": typed("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": name,
            "server_header_transformation": "PASS_THROUGH",
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": typed("extensions.filters.http.router.v3.Router")},
            }],
        },
    })
}

/// Where connections of one direction go: to the address that they were captured on their way to.
fn cluster(direction: Direction, mode: Mode, directory: &Path) -> Value {
    let limits = ["max_connections", "max_pending_requests", "max_requests", "max_retries"];
    let limits: Value = limits.iter().map(|&name| (name.to_owned(), json!(UNLIMITED))).collect();
    let mut cluster = json!({
        "name": cluster_name(direction, mode),
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "10s",
        "circuit_breakers": {"thresholds": [limits]},
    });
    match direction {
        Direction::Outbound => {
            let context = json!({
                "@type": typed("extensions.transport_sockets.tls.v3.UpstreamTlsContext"),
                "common_tls_context": tls(direction.alpn(mode), directory),
            });
            cluster["transport_socket"] =
                json!({"name": "envoy.transport_sockets.tls", "typed_config": context});
        }
        Direction::Inbound => {
            let source = json!({"address": INBOUND_SOURCE, "port_value": 0});
            cluster["upstream_bind_config"] = json!({"source_address": source});
        }
    }
    if mode == Mode::Http {
        const OPTIONS: &str = "extensions.upstreams.http.v3.HttpProtocolOptions";
        let http1 = json!({"http_protocol_options": {}});
        let options = json!({"@type": typed(OPTIONS), "explicit_http_config": http1});
        cluster["typed_extension_protocol_options"] = json!({format!("envoy.{OPTIONS}"): options});
    }
    cluster
}

/// Its own certificate, and whom it accepts.
fn tls(alpn: &[&str], directory: &Path) -> Value {
    let file = |name: &str| json!({"filename": directory.join(name)});
    json!({
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": alpn,
        "tls_certificates": [{"certificate_chain": file("cert.pem"), "private_key": file("key.pem")}],
        "validation_context": {
            "trusted_ca": file("root.pem"),
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"prefix": PEERS}}],
        },
    })
}
