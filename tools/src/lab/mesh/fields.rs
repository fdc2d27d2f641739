//! What the file can say about a workload or a service beyond what the lab writes by itself. A field is a name of the
//! file and its value; these functions write those that need more than a word.

use serde_json::{Value, json};

/// One field of an entry of the file.
pub type Field = (&'static str, Value);

/// Writes fields over those that an entry has.
pub(super) fn write<'a>(entry: &mut Value, fields: impl Iterator<Item = &'a Field>) {
    for (name, value) in fields {
        entry[*name] = value.clone();
    }
}

/// A gateway: `destination` is `namespace/hostname` or `network/ip`.
pub fn gateway(destination: &str, port: u16) -> Value {
    json!({"destination": destination, "hboneMtlsPort": port})
}

/// Traffic to the workload or service goes through this waypoint.
pub fn waypoint(destination: &str, port: u16) -> Field {
    ("waypoint", gateway(destination, port))
}

/// Traffic to the service is split over these waypoints, by weight.
pub fn weighted_waypoints(waypoints: &[(&str, u16, u32)]) -> Field {
    let one = |&(destination, port, weight): &(&str, u16, u32)| json!({"destination": gateway(destination, port), "weight": weight});
    ("weightedWaypoints", waypoints.iter().map(one).collect())
}

/// The workload is on another network, behind this gateway.
pub fn network_gateway(destination: &str, port: u16) -> Field {
    ("networkGateway", gateway(destination, port))
}

/// What is behind the workload's tunnels: `NONE`, or `PROXY` for connections that begin with a PROXY header.
pub fn application_tunnel(protocol: &str, port: Option<u16>) -> Field {
    ("applicationTunnel", json!({"protocol": protocol, "port": port}))
}

/// Where the workload runs.
pub fn locality(region: &str, zone: &str, subzone: &str) -> Field {
    ("locality", json!({"region": region, "zone": zone, "subzone": subzone}))
}

/// How the service chooses: `mode` is `Standard`, `Strict`, `Failover` or `Passthrough`.
pub fn load_balancer(mode: &str, preferences: &[&str]) -> Field {
    ("loadBalancer", json!({"mode": mode, "routingPreferences": preferences}))
}

/// The service's addresses, each `network/ip`.
pub fn vips(vips: &[&str]) -> Field {
    ("vips", json!(vips))
}

/// Who else may stand behind the service: SPIFFE IDs.
pub fn subject_alt_names(names: &[String]) -> Field {
    ("subjectAltNames", json!(names))
}

/// A field that is a text: `network`, `hostname`, `trustDomain`, `node`, `networkMode`, `status`, `visibility` …
pub fn text(name: &'static str, value: &str) -> Field {
    (name, json!(value))
}
