//! Policies of the lab.

use serde::Serialize;
use serde_json::{Value, json};

use super::{NAMESPACE, spiffe_id};

/// What a policy does with a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Action {
    /// Only matches may pass.
    Allow,
    /// Matches may not pass.
    Deny,
}

/// Whom a policy protects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Scope {
    /// Every workload.
    Global,
    /// Every workload of its namespace.
    Namespace,
    /// The workloads that name it.
    WorkloadSelector,
}

/// A policy on one pod, about the service accounts of its clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// What it does.
    pub action: Action,
    /// The pod that it protects.
    pub pod: String,
    /// The clients that it is about, by service account.
    pub clients: Vec<String>,
}

impl Policy {
    pub(super) fn entry(&self) -> Value {
        // Principals are written without their scheme, as the control plane writes them.
        let principal = |client: &String| json!({"Exact": spiffe_id(client).replacen("spiffe://", "", 1)});
        let principals: Vec<_> = self.clients.iter().map(principal).collect();
        let condition = json!({"principals": principals});
        Self::document(&self.name, Scope::WorkloadSelector, self.action, &condition)
    }

    /// A policy with one condition, a match in the form of the file, for [`super::Extra::policies`].
    pub fn document(name: &str, scope: Scope, action: Action, condition: &Value) -> Value {
        json!({
            "name": name,
            "namespace": NAMESPACE,
            "scope": scope,
            "action": action,
            "rules": [[[condition]]],
        })
    }
}

pub(super) fn strict_name(pod: &str) -> String {
    format!("strict-{pod}")
}

/// What a control plane makes of "mutual TLS is required": whoever has no identity at all is denied.
pub(super) fn strict(pod: &str) -> Value {
    let anonymous = json!({"notPrincipals": [{"Presence": []}]});
    Policy::document(&strict_name(pod), Scope::WorkloadSelector, Action::Deny, &anonymous)
}
