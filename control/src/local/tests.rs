use halo_core::net::NetworkAddress;
use halo_core::policy::{Action, StringMatch};
use halo_core::workload::{GatewayDestination, Protocol};

use super::*;

/// The stock format, with every kind of field.
pub(crate) const GOOD: &str = r#"
workloads:
- uid: cluster1//v1/Pod/default/local
  name: local
  namespace: default
  serviceAccount: default
  trustDomain: cluster.local
  workloadIps: ["127.0.0.1", "::1"]
  protocol: HBONE
  node: local
  network: ""
  workloadType: deployment
  locality: {region: r, zone: z}
  authorizationPolicies: [default/allow]
  waypoint:
    destination: default/waypoint.default.svc.cluster.local
    hboneMtlsPort: 15008
  services:
    "default/example.com":
      80: 8080
- name: local-tcp
  namespace: default
  workloadIps: ["127.0.0.2"]
  protocol: TCP
  status: Unhealthy
  capacity: 3
services:
- name: local
  namespace: default
  hostname: example.com
  vips:
  - /127.10.0.1
  ports:
    80: 8080
  subjectAltNames: [spiffe://cluster.local/ns/default/sa/default]
  loadBalancer:
    routingPreferences: [Region, Zone]
    mode: Failover
    healthPolicy: AllowAll
  cidrVips: [{network: net, cidr: 10.9.0.0/16}]
  weightedWaypoints: [{destination: {destination: net/10.0.0.1, hboneMtlsPort: 15008}, weight: 2}]
  ipFamilies: IPv4
  visibility: Namespace
policies:
- name: allow
  namespace: default
  scope: WorkloadSelector
  action: Allow
  dryRun: false
  rules:
  - - - principals: [{Exact: cluster.local/ns/default/sa/default}]
        notPrincipals: [{Presence: []}]
        namespaces: [{Prefix: a}, {Suffix: b}]
        serviceAccounts: [{namespace: default, serviceAccount: default}]
        notSourceIps: [10.0.0.0/8]
        destinationPorts: [80, 9090]
"#;

fn parse(text: &str) -> Result<LocalState, LocalError> {
    LocalState::parse(text, &Defaults { trust_domain: "td".into(), cluster: "one".into() })
}

#[test]
fn the_stock_format_is_read_in_full() {
    let state = parse(GOOD).unwrap();
    assert_eq!((state.workloads.len(), state.services.len(), state.policies.len()), (2, 1, 1));
    let workload = &state.workloads["cluster1//v1/Pod/default/local"];
    assert_eq!(workload.protocol, Protocol::Hbone);
    assert_eq!(workload.addresses.len(), 2);
    let key = ServiceKey::new("default", "example.com");
    assert_eq!(workload.services[&key], [(80, 8080)].into());
    let gateway = workload.waypoint.as_ref().unwrap();
    assert!(
        matches!(&gateway.destination, GatewayDestination::Service(service) if &*service.namespace == "default")
    );
    assert_eq!(state.workloads["one//Pod/default/local-tcp"].weight(), 3);
    assert_eq!(
        state.workloads["one//Pod/default/local-tcp"].identity().to_string(),
        "spiffe://td/ns/default/sa/default"
    );
    let service = &state.services[&key];
    assert_eq!(service.vips, [NetworkAddress { network: "".into(), ip: "127.10.0.1".parse().unwrap() }]);
    assert!(matches!(service.weighted_waypoints[0].gateway.destination, GatewayDestination::Address(_)));
    let policy = &state.policies["default/allow"];
    assert_eq!(policy.action, Action::Allow);
    let one = &policy.rules[0][0][0];
    assert_eq!(one.not_principals, [StringMatch::Presence]);
    assert_eq!(one.destination_ports, [80, 9090]);
    assert_eq!(one.not_source_ips, ["10.0.0.0/8".parse().unwrap()]);
}

#[test]
fn an_empty_mesh_is_written_out() {
    for text in ["workloads: []", "{}"] {
        assert_eq!(parse(text), Ok(LocalState::default()), "{text:?}");
    }
}

/// A wrong text, with the line and the beginning of the field that the error names, and a part of its reason.
const WRONG: &[(&str, u64, &str, &str)] = &[
    ("workload: []", 1, "workload", "unknown field"),
    ("workloads:\n- namespace: a", 2, "workloads[0]", "workloadIps"),
    (
        "workloads:\n- namespace: a\n  workloadIps: [1.2.3]",
        3,
        "workloads[0].workloadIps[0]",
        "not an IP address",
    ),
    ("workloads:\n- namespace: a\n  workloadIps: []\n  protocol: UDP", 4, "workloads[0].protocol", "UDP"),
    (
        "workloads:\n- namespace: a\n  workloadIps: []\n  colour: red",
        4,
        "workloads[0].colour",
        "unknown field",
    ),
    (
        "workloads:\n- namespace: a\n  workloadIps: []\n  services:\n    web: {80: 80}",
        5,
        "workloads[0].services",
        "namespace/hostname",
    ),
    (
        "workloads:\n- namespace: a\n  workloadIps: []\n  services:\n    a/web: {80: 80000}",
        5,
        "workloads[0].services.a/web",
        "u16",
    ),
    (
        "workloads:\n- namespace: a\n  workloadIps: []\n  workloadType: vm",
        4,
        "workloads[0].workloadType",
        "cronjob",
    ),
    (
        "workloads:\n- namespace: a\n  workloadIps: []\n  waypoint: {destination: x, hboneMtlsPort: 1}",
        4,
        "workloads[0].waypoint.destination",
        "network/ip",
    ),
    (
        "workloads:\n- namespace: a\n  workloadIps: []\n  applicationTunnel: {protocol: SOCKS}",
        4,
        "workloads[0].applicationTunnel.protocol",
        "SOCKS",
    ),
    (
        "workloads:\n- {uid: u, namespace: a, workloadIps: []}\n- {uid: u, namespace: a, workloadIps: []}",
        3,
        "workloads[1].uid",
        "earlier",
    ),
    (
        "services:\n- {name: a, namespace: b, hostname: c, ports: {}, vips: [1.2.3.4]}",
        2,
        "services[0].vips[0]",
        "network/ip",
    ),
    (
        "services:\n- {name: a, namespace: b, hostname: c, ports: {}, vips: [], endpoints: {x: {workloadUid: x}}}",
        2,
        "services[0].endpoints",
        "not the uid",
    ),
    (
        "policies:\n- {name: a, namespace: b, scope: Everywhere, action: Deny, rules: []}",
        2,
        "policies[0].scope",
        "Everywhere",
    ),
    (
        "policies:\n- name: a\n  namespace: b\n  scope: Global\n  action: Deny\n  rules:\n  - - - sourceIps: [10.0.0.0/33]",
        7,
        "policies[0].rules[0][0][0].sourceIps[0]",
        "range",
    ),
    (
        "policies:\n- name: a\n  namespace: b\n  scope: Global\n  action: Deny\n  rules:\n  - - - hosts: [x]",
        7,
        "policies[0].rules[0][0][0].hosts",
        "unknown field",
    ),
    (
        "policies:\n- name: a\n  namespace: b\n  scope: Global\n  action: Deny\n  rules:\n  - - - principals: [{Regex: x}]",
        7,
        "policies[0].rules[0][0][0].principals[0]",
        "Regex",
    ),
    ("workloads: [", 1, "", ""),
    ("workloads:\n- a\n b: {", 2, "", ""),
    ("", 1, "file", "nothing in it"),
    ("\n# later\n", 1, "file", "nothing in it"),
    ("- name: old\n  workloadIp: 127.0.0.1", 1, "file", ""),
];

#[test]
fn a_wrong_file_is_refused_with_its_line_field_and_reason() {
    let mut wrong = Vec::new();
    for (text, line, field, reason) in WRONG {
        let error = parse(text).expect_err(text);
        let right = error.line == *line
            && error.field.starts_with(field)
            && error.reason.contains(reason)
            && !error.reason.contains(" line ");
        if !right {
            wrong.push(format!("{text:?}: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn endpoints_of_a_service_are_served_by_their_workloads() {
    let text = "workloads:\n- {uid: u, namespace: a, workloadIps: []}\nservices:\n- {name: s, namespace: a, hostname: h, \
                vips: [], ports: {80: 80}, endpoints: {u: {workloadUid: u, port: {80: 8080}, status: Healthy}}}";
    let state = parse(text).unwrap();
    assert_eq!(state.workloads["u"].services[&ServiceKey::new("a", "h")], [(80, 8080)].into());
}

#[test]
fn only_what_differs_becomes_an_edit() {
    let old = parse(GOOD).unwrap();
    assert!(old.diff(&old).is_empty());
    let new =
        parse(&GOOD.replace("capacity: 3", "capacity: 4").replace("name: allow", "name: other")).unwrap();
    let edits = old.diff(&new);
    assert!(matches!(&edits[0], MeshEdit::Workload(workload) if workload.capacity == Some(4)));
    assert!(matches!(&edits[1], MeshEdit::RemovePolicy(key) if &**key == "default/allow"));
    assert!(matches!(&edits[2], MeshEdit::Policy(policy) if &*policy.name == "other"));
    assert_eq!(edits.len(), 3);
}

#[test]
fn names_that_nobody_can_subscribe_to_are_refused_with_their_line() {
    let defaults = Defaults { trust_domain: "td".into(), cluster: "one".into() };
    let long = "n".repeat(1001);
    for (text, field) in [
        (
            format!("workloads:\n- {{uid: {long}, name: a, namespace: a, workloadIps: []}}\n"),
            "workloads[0].uid",
        ),
        (
            format!("services:\n- {{name: a, namespace: a, hostname: {long}, vips: [], ports: {{}}}}\n"),
            "services[0].hostname",
        ),
    ] {
        let refused = LocalState::parse(&text, &defaults).unwrap_err();
        assert_eq!((refused.line, refused.field.as_str()), (2, field), "{refused}");
        assert!(refused.reason.contains("more than 1000"), "{refused}");
    }
}

#[test]
fn workloads_share_the_texts_that_they_have_in_common() {
    let entry = |uid| {
        format!("- {{uid: {uid}, namespace: n, node: x, workloadIps: [], services: {{n/h: {{80: 80}}}}}}\n")
    };
    let state = parse(&format!("workloads:\n{}{}", entry("a"), entry("b"))).unwrap();
    let (a, b) = (&state.workloads["a"], &state.workloads["b"]);
    assert!(Arc::ptr_eq(&a.node, &b.node) && Arc::ptr_eq(&a.trust_domain, &b.trust_domain));
    let hostname = |workload: &Workload| workload.services.keys().next().unwrap().hostname.clone();
    assert!(Arc::ptr_eq(&hostname(a), &hostname(b)));
}
