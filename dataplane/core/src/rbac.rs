//! Whether a connection is admitted: the evaluator of L4 authorization policies.
//!
//! Policies come from three places: those of the workload's namespace, the global ones, and those that the workload
//! names. DENY is tried before ALLOW, whatever their order. A policy in dry run enforces nothing and is reported as an
//! [`Event`]. A client whose trust domain counts as the workload's own has a principal under each of these domains, so
//! that policies stay true while a mesh is renamed. Nothing is remembered between two calls.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::id::{Identity, TrustDomains};
use crate::outcome::Reason;
use crate::policy::{Action, Clause, Match, Policy, Scope, StringMatch};
use crate::snapshot::{Mesh, Snapshot};
use crate::workload::Workload;

#[cfg(test)]
mod tests;

/// A connection that asks to be admitted.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    /// The client's address.
    pub source: SocketAddr,
    /// The client's identity, where mutual TLS proved it.
    pub identity: Option<&'a Identity>,
    /// The application's address.
    pub destination: SocketAddr,
    /// The workload that the connection is for.
    pub workload: &'a Workload,
}

/// The decision, with the policy that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Admitted: by this ALLOW policy, or because no ALLOW policy applies.
    Allow {
        /// Key of the ALLOW policy, `namespace/name`.
        policy: Option<Arc<str>>,
    },
    /// Refused by this DENY policy.
    Deny {
        /// Key of the DENY policy, `namespace/name`.
        policy: Arc<str>,
    },
    /// Refused: ALLOW policies apply and none matches.
    NoAllow,
}

impl Verdict {
    /// The policy that refused the connection, if it was one.
    pub fn refused_by(self) -> Option<Arc<str>> {
        match self {
            Self::Deny { policy } => Some(policy),
            Self::Allow { .. } | Self::NoAllow => None,
        }
    }

    /// Why the connection ends, unless it is admitted.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Allow { .. } => None,
            Self::Deny { .. } => Some(Reason::PolicyDeny),
            Self::NoAllow => Some(Reason::PolicyNoAllow),
        }
    }
}

/// Something to report beside the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A policy in dry run matches: enforced, it would have decided.
    DryRun(&'a Arc<Policy>),
    /// The workload names a policy, `namespace/name`, that the snapshot does not hold. It is skipped.
    Missing(&'a Arc<str>),
}

/// Decides whether a connection is admitted.
pub fn check(snapshot: &Snapshot, connection: &Connection<'_>) -> Verdict {
    check_with(snapshot, connection, &mut |_| {})
}

/// Decides as [`check`] does, and calls `report` for each [`Event`] on the way.
pub fn check_with(
    snapshot: &Snapshot,
    connection: &Connection<'_>,
    report: &mut impl FnMut(Event<'_>),
) -> Verdict {
    for name in &connection.workload.authorization_policies {
        if snapshot.policies.get(name).is_none() {
            report(Event::Missing(name));
        }
    }
    if applicable(snapshot, connection.workload).next().is_none() {
        return Verdict::Allow { policy: None };
    }
    let subject = Subject::new(&snapshot.mesh, connection);
    if let Some(policy) = first_match(snapshot, &subject, Action::Deny, report) {
        return Verdict::Deny { policy: policy.key() };
    }
    let allow = first_match(snapshot, &subject, Action::Allow, report);
    if let Some(policy) = allow {
        return Verdict::Allow { policy: Some(policy.key()) };
    }
    let mut enforced = applicable(snapshot, connection.workload).filter(|policy| !policy.dry_run);
    let any_allow = enforced.any(|policy| policy.action == Action::Allow);
    if any_allow { Verdict::NoAllow } else { Verdict::Allow { policy: None } }
}

/// The policies that apply to a workload: its namespace's, the global ones, then those it names.
fn applicable<'a>(snapshot: &'a Snapshot, workload: &'a Workload) -> impl Iterator<Item = &'a Arc<Policy>> {
    let policies = &snapshot.policies;
    let named = workload.authorization_policies.iter().filter_map(|name| policies.get(name));
    // One that applies by its scope as well is not reported twice.
    let named = named.filter(|policy| match policy.scope {
        Scope::Global => false,
        Scope::Namespace => policy.namespace != workload.namespace,
        Scope::WorkloadSelector => true,
    });
    policies.in_namespace(&workload.namespace).chain(policies.global()).chain(named)
}

/// The first enforced policy with this action that matches. Every match in dry run is reported, also past the first.
fn first_match<'a>(
    snapshot: &'a Snapshot,
    subject: &Subject<'a>,
    action: Action,
    report: &mut impl FnMut(Event<'_>),
) -> Option<&'a Arc<Policy>> {
    let mut first = None;
    for policy in applicable(snapshot, subject.workload).filter(|policy| policy.action == action) {
        if policy.dry_run {
            if subject.matches(policy) {
                report(Event::DryRun(policy));
            }
        } else if first.is_none() && subject.matches(policy) {
            first = Some(policy);
        }
    }
    first
}

/// A connection in the terms of the rules.
struct Subject<'a> {
    workload: &'a Workload,
    identity: Option<&'a Identity>,
    /// The identity's text without `spiffe://`.
    principal: Option<String>,
    /// The same under the other names of its trust domain.
    aliases: Vec<String>,
    source: IpAddr,
    destination: IpAddr,
    port: u16,
}

impl<'a> Subject<'a> {
    fn new(mesh: &Mesh, connection: &Connection<'a>) -> Self {
        let in_domain = |identity: &Identity, domain: &str| {
            format!("{domain}/ns/{}/sa/{}", identity.namespace, identity.service_account)
        };
        let own = &connection.workload.trust_domain;
        let trusted = TrustDomains { own, aliases: &mesh.trust_domain_aliases };
        let renamed = connection.identity.filter(|one| trusted.contains(&one.trust_domain));
        let aliases = renamed.into_iter().flat_map(|identity| {
            let domains = mesh.trust_domain_aliases.iter().chain([own]);
            let others = domains.filter(|domain| **domain != identity.trust_domain);
            others.map(|domain| in_domain(identity, domain))
        });
        Self {
            workload: connection.workload,
            identity: connection.identity,
            principal: connection.identity.map(|identity| in_domain(identity, &identity.trust_domain)),
            aliases: aliases.collect(),
            source: connection.source.ip().to_canonical(),
            destination: connection.destination.ip().to_canonical(),
            port: connection.destination.port(),
        }
    }

    fn matches(&self, policy: &Policy) -> bool {
        let action = policy.action;
        policy.rules.iter().any(|rule| rule.iter().all(|clause| self.matches_clause(clause, action)))
    }

    fn matches_clause(&self, clause: &Clause, action: Action) -> bool {
        clause.is_empty() || clause.iter().any(|one| self.matches_one(one, action))
    }

    fn matches_one(&self, one: &Match, action: Action) -> bool {
        // What is unknown never opens a connection: it is refused by a DENY and not admitted by an ALLOW.
        if one.unintelligible {
            return action == Action::Deny;
        }
        let namespace = self.identity.map_or("", |identity| &identity.namespace);
        let principal = |value: &StringMatch| self.is_principal(value);
        let account = |value: &crate::policy::ServiceAccountMatch| {
            self.identity.is_some_and(|identity| {
                identity.namespace == value.namespace && identity.service_account == value.service_account
            })
        };
        let source = |value: &IpNet| value.contains(&self.source);
        let destination = |value: &IpNet| value.contains(&self.destination);
        let port = |value: &u16| *value == self.port;
        !is_empty(one)
            && holds(&one.namespaces, &one.not_namespaces, |value| is_text(value, namespace))
            && holds(&one.principals, &one.not_principals, principal)
            && holds(&one.service_accounts, &one.not_service_accounts, account)
            && holds(&one.source_ips, &one.not_source_ips, source)
            && holds(&one.destination_ips, &one.not_destination_ips, destination)
            && holds(&one.destination_ports, &one.not_destination_ports, port)
    }

    /// Without an identity nothing is equal to the principal, not even presence.
    fn is_principal(&self, value: &StringMatch) -> bool {
        self.principal.iter().chain(&self.aliases).any(|principal| match value {
            StringMatch::Exact(text) => without_scheme(text) == principal,
            StringMatch::Prefix(text) => principal.starts_with(without_scheme(text)),
            StringMatch::Suffix(_) | StringMatch::Presence => is_text(value, principal),
        })
    }
}

/// Of a populated positive list any value holds, and of the negative list none.
fn holds<T>(any: &[T], none: &[T], test: impl Fn(&T) -> bool) -> bool {
    (any.is_empty() || any.iter().any(&test)) && !none.iter().any(&test)
}

fn is_text(value: &StringMatch, text: &str) -> bool {
    match value {
        StringMatch::Exact(expected) => &**expected == text,
        StringMatch::Prefix(expected) => text.starts_with(&**expected),
        StringMatch::Suffix(expected) => text.ends_with(&**expected),
        StringMatch::Presence => !text.is_empty(),
    }
}

fn without_scheme(text: &str) -> &str {
    text.strip_prefix("spiffe://").unwrap_or(text)
}

fn is_empty(one: &Match) -> bool {
    one.namespaces.is_empty()
        && one.not_namespaces.is_empty()
        && one.principals.is_empty()
        && one.not_principals.is_empty()
        && one.service_accounts.is_empty()
        && one.not_service_accounts.is_empty()
        && one.source_ips.is_empty()
        && one.not_source_ips.is_empty()
        && one.destination_ips.is_empty()
        && one.not_destination_ips.is_empty()
        && one.destination_ports.is_empty()
        && one.not_destination_ports.is_empty()
}
