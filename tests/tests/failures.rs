//! Connections that fail are counted and told on both sides, with the flag of the phase that failed.
#![allow(clippy::unwrap_used)]

use halo::lab::mesh::{Action, Policy, Scope, fields};
use halo::lab::node::NodeOptions;
use halo::lab::topology::NodePlan;
use halo_tests::pair::{HTTP, RAW};
use halo_tests::talk::talk;
use halo_tests::{Rig, observe, requests, socket};
use serde_json::json;

const CLOSED: &str = "istio_tcp_connections_closed_total";
const FAILED: &str = "istio_tcp_connections_failed_total";

/// `client` on the first node and `remote` on the second, both enrolled.
fn rig() -> Rig {
    let (name, value) = observe::JSON_LOG;
    let environment = vec![(name.into(), value.into())];
    let plan = [NodePlan::new("node-a", &["client"]), NodePlan::new("node-b", &["remote"])];
    let mut rig = Rig::build(&plan, NodeOptions { environment, ..NodeOptions::default() });
    rig.start_with(&["client", "remote"]);
    rig
}

/// Both sides count the failed connection from `client` to `remote` once, each with its flag and its words.
fn assert_failed(rig: &Rig, source: (&str, &str), destination: Option<(&str, &str)>) {
    let sides = [(0, "source", "outbound", Some(source)), (1, "destination", "inbound", destination)];
    for (node, reporter, direction, told) in sides {
        let Some((flag, words)) = told else { continue };
        let labels = [
            ("reporter", reporter),
            ("source_workload", "client"),
            ("destination_workload", "remote"),
            ("response_flags", flag),
        ];
        for name in [CLOSED, FAILED] {
            observe::await_total(&rig.proxies[node], name, &labels, 1.0);
        }
        let fields = [("direction", direction), ("src.workload", "client"), ("dst.workload", "remote")];
        let line = observe::access(&rig.proxies[node], "connection complete", &fields);
        assert!(line["error"].as_str().unwrap_or_default().starts_with(words), "{line}");
        assert_eq!(line["level"], "error", "{line}");
    }
}

#[test]
fn application_that_refuses_is_told_by_both_sides() {
    let rig = rig();
    requests::one(rig.netns("client"), rig.address("remote", HTTP)).unwrap_err();
    assert_failed(&rig, ("CONNECT", "http status: 503"), Some(("CONNECT", "connection failed:")));
}

#[test]
fn policy_that_denies_is_told_by_both_sides() {
    let mut rig = rig();
    let condition = json!({"destinationPorts": [HTTP, RAW]});
    rig.mesh.extra.policies.push(Policy::document("nobody", Scope::Namespace, Action::Deny, &condition));
    rig.publish();
    requests::one(rig.netns("client"), rig.address("remote", HTTP)).unwrap_err();
    let words = "connection closed due to policy rejection: explicitly denied by: demo/nobody";
    assert_failed(&rig, ("CONNECT", "http status: 401"), Some(("DENY", words)));
    // In the clear it is the same, but for the client's node: the connection was made, and then closed.
    let listener = socket::listen(rig.netns("remote"), RAW);
    rig.proxies[0].agent.remove(rig.pod("client")).unwrap();
    talk(rig.netns("client"), rig.address("remote", RAW), &listener).unwrap_err();
    let labels = [("response_flags", "DENY"), ("connection_security_policy", "unknown")];
    observe::await_total(&rig.proxies[1], FAILED, &labels, 1.0);
}

#[test]
fn node_proxy_that_cannot_be_reached_is_told_by_the_client_s_side() {
    let rig = rig();
    let rules = "add table inet broken; \
                 add chain inet broken input { type filter hook input priority 0; }; \
                 add rule inet broken input tcp dport 15008 reject with tcp reset";
    rig.netns("remote").command("nft", &[rules]).unwrap();
    requests::one(rig.netns("client"), rig.address("remote", HTTP)).unwrap_err();
    assert_failed(&rig, ("CONNECT", "connection failed:"), None);
}

#[test]
fn node_proxy_that_is_somebody_else_is_told_by_the_client_s_side() {
    let mut rig = rig();
    rig.mesh.set("remote", fields::text("serviceAccount", "somebody-else"));
    rig.publish();
    requests::one(rig.netns("client"), rig.address("remote", HTTP)).unwrap_err();
    assert_failed(&rig, ("TLS_FAILURE", "tls error:"), None);
}
