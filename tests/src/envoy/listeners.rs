//! Envoy's listeners, as its configuration writes them.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use halo::lab::topology::Pod;
use serde_json::{Value, json};

use super::{HBONE, Plan, Tunnel, VIA};

/// The options that make a cluster speak HTTP/2.
pub(super) const HTTP2: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const MANAGER: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// Where the certificate, its key and the root are.
pub(super) struct Files<'a>(pub(super) &'a Path);

impl Files<'_> {
    /// Its own certificate, and whom it accepts.
    pub(super) fn tls(&self, matcher: &Value) -> Value {
        let file = |name: &str| json!({"filename": self.0.join(name)});
        json!({
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "alpn_protocols": ["h2"],
            "tls_certificates": [{"certificate_chain": file("cert.pem"), "private_key": file("key.pem")}],
            "validation_context": {
                "trusted_ca": file("root.pem"),
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": matcher}],
            },
        })
    }
}

pub(super) fn socket_address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

/// A port of every address of the pod.
pub(super) fn any(pod: &Pod, port: u16) -> Value {
    if pod.addresses.v6.is_none() {
        return socket_address((Ipv4Addr::UNSPECIFIED, port).into());
    }
    let mut address = socket_address((Ipv6Addr::UNSPECIFIED, port).into());
    address["socket_address"]["ipv4_compat"] = pod.addresses.v4.is_some().into();
    address
}

pub(super) fn internal_address(listener: &str) -> Value {
    json!({"envoy_internal_address": {"server_listener_name": listener}})
}

/// Takes tunnels for the doors.
pub(super) fn hbone(plan: &Plan<'_>, files: &Files<'_>) -> Value {
    let connect = json!([{"upgrade_type": "CONNECT", "connect_config": {}}]);
    let host = |(nth, door): (usize, &super::Door)| {
        let cluster = if door.http { format!("http-{nth}") } else { format!("door-{nth}") };
        json!({
            "name": format!("door-{nth}"),
            "domains": [door.authority],
            "routes": [{"match": {"connect_matcher": {}},
                "route": {"cluster": cluster, "timeout": "0s", "upgrade_configs": connect}}],
        })
    };
    let mut manager = manager("hbone", plan.doors.iter().enumerate().map(host).collect());
    manager["codec_type"] = json!("HTTP2");
    manager["stream_idle_timeout"] = json!("0s");
    manager["http2_protocol_options"] = json!({"allow_connect": true});
    manager["upgrade_configs"] = json!([{"upgrade_type": "CONNECT"}]);
    let context = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": true,
        "common_tls_context": files.tls(&json!({"prefix": "spiffe://cluster.local/"})),
    });
    json!({
        "name": "hbone",
        "address": any(plan.pod, HBONE),
        "filter_chains": [{
            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context},
            "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
        }],
    })
}

/// Reads HTTP, and adds its pod's name to the answers.
pub(super) fn http(name: &str, cluster: &str, pod: &str) -> Value {
    let routes = json!([{"match": {"prefix": "/"}, "route": {"cluster": cluster}}]);
    let mut manager = manager(name, json!([{"name": "all", "domains": ["*"], "routes": routes}]));
    let header = json!([{"header": {"key": VIA, "value": pod}}]);
    manager["route_config"]["response_headers_to_add"] = header;
    json!({
        "name": name,
        "internal_listener": {},
        "filter_chains": [{"filters": [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager},
        ]}],
    })
}

/// Puts what it accepts into a tunnel each; on this address, or from within Envoy alone.
pub(super) fn tunnel(name: &str, address: Option<Value>, tunnel: &Tunnel) -> Value {
    let proxy = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": name,
        "cluster": format!("{name}-peer"),
        "tunneling_config": {"hostname": tunnel.authority},
    });
    let filters = json!([{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]);
    let mut listener = json!({"name": name, "filter_chains": [{"filters": filters}]});
    match address {
        Some(address) => listener["address"] = address,
        None => listener["internal_listener"] = json!({}),
    }
    listener
}

fn manager(name: &str, virtual_hosts: Value) -> Value {
    let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    json!({
        "@type": format!("type.googleapis.com/{MANAGER}"),
        "stat_prefix": name,
        "route_config": {"virtual_hosts": virtual_hosts},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": router}}],
    })
}
