//! Envoy as an HBONE peer: one process that takes tunnels on port 15008 for the applications of its pod, and opens
//! tunnels for plain TCP ports of its own.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;

use halo::lab::Lab;
use halo::lab::certs::Leaf;
use halo::lab::mesh::spiffe_id;
use halo::lab::process::{Process, Spec, wait_for};
use halo::lab::topology::Pod;
use serde_json::{Value, json};

use crate::rig::SOON;
use crate::{binaries, socket};

const HBONE: u16 = 15008;
const HTTP2: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// A plain port of Envoy's, and the address behind a tunnel that it stands for.
#[derive(Debug, Clone, Copy)]
pub struct Outlet {
    /// Envoy's port, in its own pod.
    pub port: u16,
    /// The address that is asked for with CONNECT; the tunnel goes to port 15008 of its host.
    pub target: SocketAddr,
}

/// What Envoy does.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Where it runs, and whose identity the certificate has.
    pub pod: &'a Pod,
    /// Its certificate.
    pub leaf: Leaf,
    /// Applications of its pod that it answers for.
    pub ports: &'a [u16],
    /// The service account that it expects behind every outlet.
    pub peer: &'a str,
    /// Its outlets.
    pub outlets: &'a [Outlet],
}

/// Starts Envoy and waits until it listens.
pub fn start(lab: &Lab, plan: &Plan<'_>) -> Arc<Process> {
    let directory = plan.leaf.write(&lab.dir().join(format!("envoy-{}", plan.pod.name))).unwrap();
    let file = directory.join("envoy.json");
    fs::write(&file, serde_json::to_string_pretty(&configuration(plan, &directory.display())).unwrap())
        .unwrap();
    let arguments = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning", "-c"];
    let arguments = arguments.iter().map(Into::into).chain([file.into_os_string()]);
    let process = lab.spawn(Spec {
        name: format!("{}-envoy", plan.pod.name),
        program: binaries::envoy(),
        arguments: arguments.collect(),
        environment: Vec::new(),
        netns: plan.pod.netns.clone(),
        piped: false,
    });
    let process = process.unwrap();
    for port in plan.outlets.iter().map(|outlet| outlet.port).chain([HBONE]) {
        let here = SocketAddr::from((plan.pod.address, port));
        wait_for(&format!("Envoy listening on {here}"), SOON, || {
            process.ensure_running().map_err(|error| error.to_string())?;
            socket::connect(&plan.pod.netns, here).map(drop).map_err(|error| error.to_string())
        })
        .unwrap_or_else(|error| panic!("{error}\n{}", process.log_tail(40)));
    }
    process
}

fn configuration(plan: &Plan<'_>, directory: &impl std::fmt::Display) -> Value {
    let outlets = plan.outlets.iter();
    let listeners: Vec<_> = outlets.clone().map(outlet).chain([hbone_listener(plan, directory)]).collect();
    let clusters = plan.ports.iter().map(|&port| application(port));
    let clusters: Vec<_> = clusters.chain(outlets.map(|o| tunnel(plan, o, directory))).collect();
    json!({"static_resources": {"listeners": listeners, "clusters": clusters}})
}

fn socket_address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

fn endpoint(name: &str, address: SocketAddr) -> Value {
    let endpoint = json!({"endpoint": {"address": socket_address(address)}});
    json!({"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]})
}

/// Its own certificate, and whom it accepts.
fn tls(directory: &impl std::fmt::Display, matcher: &Value) -> Value {
    let file = |name: &str| json!({"filename": format!("{directory}/{name}")});
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

fn hbone_listener(plan: &Plan<'_>, directory: &impl std::fmt::Display) -> Value {
    let route = |port: u16| {
        let connect = json!([{"upgrade_type": "CONNECT", "connect_config": {}}]);
        json!({
            "name": format!("to-{port}"),
            "domains": [SocketAddr::from((plan.pod.address, port)).to_string()],
            "routes": [{"match": {"connect_matcher": {}},
                "route": {"cluster": format!("app-{port}"), "timeout": "0s", "upgrade_configs": connect}}],
        })
    };
    let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "hbone",
        "codec_type": "HTTP2",
        "stream_idle_timeout": "0s",
        "http2_protocol_options": {"allow_connect": true},
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "route_config": {"virtual_hosts": plan.ports.iter().map(|&p| route(p)).collect::<Vec<_>>()},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": router}}],
    });
    let context = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": true,
        "common_tls_context": tls(directory, &json!({"prefix": "spiffe://cluster.local/"})),
    });
    json!({
        "name": "hbone",
        "address": socket_address(([0, 0, 0, 0], HBONE).into()),
        "filter_chains": [{
            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context},
            "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
        }],
    })
}

fn application(port: u16) -> Value {
    let name = format!("app-{port}");
    let here = SocketAddr::from(([127, 0, 0, 1], port));
    json!({"name": name, "type": "STATIC", "connect_timeout": "5s", "load_assignment": endpoint(&name, here)})
}

fn outlet(outlet: &Outlet) -> Value {
    let proxy = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "outlet",
        "cluster": format!("tunnel-{}", outlet.port),
        "tunneling_config": {"hostname": outlet.target.to_string()},
    });
    json!({
        "name": format!("outlet-{}", outlet.port),
        "address": socket_address(([0, 0, 0, 0], outlet.port).into()),
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]}],
    })
}

fn tunnel(plan: &Plan<'_>, outlet: &Outlet, directory: &impl std::fmt::Display) -> Value {
    let name = format!("tunnel-{}", outlet.port);
    let peer = SocketAddr::from((outlet.target.ip(), HBONE));
    let context = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": tls(directory, &json!({"exact": spiffe_id(plan.peer)})),
    });
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": endpoint(&name, peer),
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context},
        "typed_extension_protocol_options": {
            HTTP2: {"@type": format!("type.googleapis.com/{HTTP2}"),
                "explicit_http_config": {"http2_protocol_options": {}}},
        },
    })
}
