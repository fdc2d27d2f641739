//! What a node proxy says about itself: its admin page and its readiness, asked from inside the node's namespace.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::http::{Connection, Message};
use super::netns::Netns;
use super::{Doing, LabError, Result};

/// Port of the admin page, on the loopback address.
pub const ADMIN_PORT: u16 = 15000;
/// Port of the readiness check.
pub const READINESS_PORT: u16 = 15021;
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// One GET inside a namespace: status and body.
pub fn get(netns: &Netns, port: u16, path: &str) -> Result<(u16, String)> {
    let answer = ask(netns, port, ("GET", path), ANSWER_MAX)?;
    Ok((answer.status().unwrap_or_default(), answer.text()))
}

/// One request inside a namespace, method and path, that is answered in time.
pub fn ask(netns: &Netns, port: u16, (method, path): (&str, &str), limit: Duration) -> Result<Message> {
    let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let close = [("Connection".to_owned(), "close".to_owned())];
    let ask = || Connection::open(target, limit)?.request(method, path, &close);
    let doing = format!("{method} http://{target}{path} in {}", netns.name());
    let answer = netns.within(ask)?.doing(&doing)?;
    answer.status().ok_or_else(|| std::io::Error::other("no status")).doing(&doing)?;
    Ok(answer)
}

/// Whether what answers on this port is ready; the error says what it waits for.
pub fn readiness(netns: &Netns, port: u16) -> std::result::Result<(), String> {
    match get(netns, port, "/healthz/ready") {
        Ok((200, _)) => Ok(()),
        Ok((status, body)) => Err(format!("{status} {}", body.trim())),
        Err(error) => Err(error.to_string()),
    }
}

/// The parts of a configuration dump that the lab reads. Everything else is kept in `all`.
#[derive(Debug, Clone, Default)]
pub struct Dump {
    /// Certificates of the identities on the node.
    pub certificates: Vec<Certificate>,
    /// Connections that are open now.
    pub connections: Vec<Connected>,
    /// The shards.
    pub shards: Vec<Shard>,
    /// The whole page.
    pub all: Value,
}

/// A certificate that the proxy holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Its SPIFFE ID.
    pub identity: String,
    /// `Available`, or why not.
    pub state: String,
    /// RFC 3339.
    pub valid_from: String,
    /// RFC 3339.
    pub expires: String,
}

/// An open inbound connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    /// Uid of the pod that it reaches.
    pub pod: String,
    /// The client's address.
    pub source: String,
    /// What mutual TLS proved of the client; empty without it.
    pub source_identity: String,
    /// What mutual TLS proved of the server; empty without it.
    pub destination_identity: String,
}

/// One shard's figures.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Shard {
    /// Its number.
    pub shard: u64,
    /// The core it is pinned to.
    pub core: Option<u64>,
    /// The kernel interface it runs on.
    pub ring: String,
    /// CPU time of its thread, ns.
    pub cpu_ns: u64,
    /// Open tunnels, both roles.
    pub tunnels: u64,
    /// Connections, as the page shows them.
    pub connections: Value,
    /// Totals since start.
    pub counters: Value,
}

/// Fetches `/config_dump`.
pub fn dump(netns: &Netns) -> Result<Dump> {
    let (status, body) = get(netns, ADMIN_PORT, "/config_dump")?;
    let fault =
        |problem: String| LabError::Process { process: format!("config_dump in {}", netns.name()), problem };
    if status != 200 {
        return Err(fault(format!("status {status}: {body}")));
    }
    parse(&body).map_err(|error| fault(error.to_string()))
}

fn parse(body: &str) -> serde_json::Result<Dump> {
    let all: Value = serde_json::from_str(body)?;
    let shards = match all.pointer("/halo/shards") {
        Some(shards) => Vec::deserialize(shards)?,
        None => Vec::new(),
    };
    let certificates = list(&all["certificates"]).map(certificate).collect();
    let connections = list(&all["halo"]["shards"])
        .flat_map(|shard| list(&shard["connections"]))
        .filter(|connection| connection["direction"] == "inbound")
        .map(connected)
        .collect();
    Ok(Dump { certificates, connections, shards, all })
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn certificate(value: &Value) -> Certificate {
    let leaf = &value["certChain"][0];
    Certificate {
        identity: text(&value["identity"]),
        state: text(&value["state"]),
        valid_from: text(&leaf["validFrom"]),
        expires: text(&leaf["expirationTime"]),
    }
}

fn connected(value: &Value) -> Connected {
    Connected {
        pod: text(&value["pod"]),
        source: text(&value["src"]),
        source_identity: text(&value["srcIdentity"]),
        destination_identity: text(&value["dstIdentity"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dump_gives_certificates_connections_and_shards() {
        let page = r#"{
            "certificates": [{"identity": "spiffe://cluster.local/ns/demo/sa/shop", "state": "Available",
                "certChain": [{"pem": "", "serialNumber": "1", "validFrom": "2026-01-01T00:00:00Z",
                               "expirationTime": "2026-01-01T01:00:00Z"}], "rootCerts": []}],
            "halo": {"shards": [{"shard": 1, "core": 0, "ring": "io_uring", "cpuNs": 5, "counters": {"a": 1},
                "later": true, "connections": [
                    {"pod": "u1", "direction": "inbound", "src": "10.1.0.10:4000", "originalDst": null,
                     "actualDst": "10.2.0.10:8080", "protocol": "HBONE",
                     "srcIdentity": "spiffe://cluster.local/ns/demo/sa/web",
                     "dstIdentity": "spiffe://cluster.local/ns/demo/sa/shop"},
                    {"pod": "u1", "direction": "outbound", "src": "10.2.0.10:1"}]}]}
        }"#;
        let dump = parse(page).unwrap();
        assert_eq!(dump.certificates[0].expires, "2026-01-01T01:00:00Z");
        assert_eq!((dump.connections.len(), dump.connections[0].pod.as_str()), (1, "u1"));
        assert_eq!(dump.connections[0].source_identity, "spiffe://cluster.local/ns/demo/sa/web");
        assert_eq!((dump.shards[0].shard, dump.shards[0].cpu_ns), (1, 5));
    }

    #[test]
    fn dump_of_an_empty_node_is_empty() {
        let dump = parse("{}").unwrap();
        assert!(dump.certificates.is_empty() && dump.connections.is_empty() && dump.shards.is_empty());
    }
}
