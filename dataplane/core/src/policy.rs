//! An L4 authorization policy as plain data (`istio.security.Authorization`). [`crate::rbac`] evaluates it.

use std::sync::Arc;

use ipnet::IpNet;

/// Where a policy applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scope {
    /// Every workload.
    #[default]
    Global,
    /// Every workload of the policy's namespace.
    Namespace,
    /// Workloads that name it in `authorization_policies`.
    WorkloadSelector,
}

/// What a match means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A connection that matches is admitted; once any ALLOW policy applies, only such connections are.
    Allow,
    /// A connection that matches is refused, whatever ALLOW policies say.
    Deny,
}

/// How a text is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StringMatch {
    /// Equal.
    Exact(Arc<str>),
    /// Starts with.
    Prefix(Arc<str>),
    /// Ends with.
    Suffix(Arc<str>),
    /// Not empty.
    Presence,
}

/// A service account of a namespace; the trust domain is not compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccountMatch {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Service account.
    pub service_account: Arc<str>,
}

/// Every populated kind must hold: of a positive list any value, of a negative list none.
///
/// A match with no kind populated is skipped, so it never matches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Match {
    /// Source namespace.
    pub namespaces: Vec<StringMatch>,
    /// Source namespace, none of.
    pub not_namespaces: Vec<StringMatch>,
    /// Source identity, without `spiffe://`.
    pub principals: Vec<StringMatch>,
    /// Source identity, none of.
    pub not_principals: Vec<StringMatch>,
    /// Source namespace and service account.
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// Source namespace and service account, none of.
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    /// Source address.
    pub source_ips: Vec<IpNet>,
    /// Source address, none of.
    pub not_source_ips: Vec<IpNet>,
    /// Final destination address.
    pub destination_ips: Vec<IpNet>,
    /// Final destination address, none of.
    pub not_destination_ips: Vec<IpNet>,
    /// Final destination port.
    pub destination_ports: Vec<u16>,
    /// Final destination port, none of.
    pub not_destination_ports: Vec<u16>,
    /// A condition that could not be understood was dropped from this match. An ALLOW policy then never matches
    /// through it, and a DENY policy always does: what is unknown never opens a connection.
    pub unintelligible: bool,
}

/// Alternatives: any match makes the clause true; a clause without matches is true.
pub type Clause = Vec<Match>;
/// Every clause must be true; a rule without clauses is true.
pub type Rule = Vec<Clause>;

/// One policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Name within the namespace.
    pub name: Arc<str>,
    /// Namespace of the policy object.
    pub namespace: Arc<str>,
    /// Where it applies.
    pub scope: Scope,
    /// What a match means.
    pub action: Action,
    /// Any rule makes the policy match; a policy without rules never matches.
    pub rules: Vec<Rule>,
    /// Report matches, enforce nothing.
    pub dry_run: bool,
}

impl Policy {
    /// The policy's key, `namespace/name`.
    pub fn key(&self) -> Arc<str> {
        format!("{}/{}", self.namespace, self.name).into()
    }

    /// Whether a part of it could not be understood.
    pub fn is_not_understood(&self) -> bool {
        self.rules.iter().flatten().flatten().any(|one| one.unintelligible)
    }
}
