//! Policies. What of a match cannot be understood is dropped from it, and the match is marked: the policy then neither
//! opens a connection through it nor fails to refuse one.

use std::sync::Arc;

use halo_core::policy::{Action, Match, Policy, Rule, Scope, ServiceAccountMatch, StringMatch};
use ipnet::IpNet;

use super::parts::{known, octets, range};
use super::{Interner, WireError};
use crate::proto::security as proto;
use crate::proto::security::string_match::MatchType;

pub(super) fn decode(raw: proto::Authorization, interner: &mut Interner) -> Result<Policy, WireError> {
    let scope = known("scope", raw.scope, "GLOBAL (0), NAMESPACE (1) or WORKLOAD_SELECTOR (2)")?;
    let action = known("action", raw.action, "ALLOW (0) or DENY (1)")?;
    Ok(Policy {
        name: raw.name.into(),
        namespace: interner.share(&raw.namespace),
        scope: match scope {
            proto::Scope::Global => Scope::Global,
            proto::Scope::Namespace => Scope::Namespace,
            proto::Scope::WorkloadSelector => Scope::WorkloadSelector,
        },
        action: match action {
            proto::Action::Allow => Action::Allow,
            proto::Action::Deny => Action::Deny,
        },
        rules: raw.rules.into_iter().map(|raw| rule(raw, interner)).collect(),
        dry_run: raw.dry_run,
    })
}

fn rule(raw: proto::Rule, interner: &mut Interner) -> Rule {
    let mut clause =
        |raw: proto::Clause| raw.matches.into_iter().map(|raw| one_match(raw, interner)).collect();
    raw.clauses.into_iter().map(&mut clause).collect()
}

fn one_match(raw: proto::Match, interner: &mut Interner) -> Match {
    let mut reader = Reader { interner, unintelligible: false };
    let read = Match {
        namespaces: reader.strings(raw.namespaces),
        not_namespaces: reader.strings(raw.not_namespaces),
        principals: reader.strings(raw.principals),
        not_principals: reader.strings(raw.not_principals),
        service_accounts: reader.accounts(raw.service_accounts),
        not_service_accounts: reader.accounts(raw.not_service_accounts),
        source_ips: reader.ranges(raw.source_ips),
        not_source_ips: reader.ranges(raw.not_source_ips),
        destination_ips: reader.ranges(raw.destination_ips),
        not_destination_ips: reader.ranges(raw.not_destination_ips),
        destination_ports: reader.ports(raw.destination_ports),
        not_destination_ports: reader.ports(raw.not_destination_ports),
        unintelligible: false,
    };
    Match { unintelligible: reader.unintelligible, ..read }
}

/// Reads a match's lists and remembers whether all of them was understood.
struct Reader<'a> {
    interner: &'a mut Interner,
    unintelligible: bool,
}

impl Reader<'_> {
    /// What could be read of a list.
    fn keep<T>(&mut self, read: impl Iterator<Item = Option<T>>) -> Vec<T> {
        let mut kept = Vec::new();
        for item in read {
            match item {
                Some(item) => kept.push(item),
                None => self.unintelligible = true,
            }
        }
        kept
    }

    fn strings(&mut self, raw: Vec<proto::StringMatch>) -> Vec<StringMatch> {
        let mut read = Vec::with_capacity(raw.len());
        for raw in raw {
            read.push(raw.match_type.map(|kind| match kind {
                MatchType::Exact(text) => StringMatch::Exact(self.interner.share(&text)),
                MatchType::Prefix(text) => StringMatch::Prefix(self.interner.share(&text)),
                MatchType::Suffix(text) => StringMatch::Suffix(self.interner.share(&text)),
                MatchType::Presence(()) => StringMatch::Presence,
            }));
        }
        self.keep(read.into_iter())
    }

    fn accounts(&mut self, raw: Vec<proto::ServiceAccountMatch>) -> Vec<ServiceAccountMatch> {
        let one = |raw: proto::ServiceAccountMatch| ServiceAccountMatch {
            namespace: self.interner.share(&raw.namespace),
            service_account: self.interner.share(&raw.service_account),
        };
        raw.into_iter().map(one).collect()
    }

    fn ranges(&mut self, raw: Vec<proto::Address>) -> Vec<IpNet> {
        self.keep(raw.iter().map(|raw| range("", &raw.address, raw.length).ok()))
    }

    fn ports(&mut self, raw: Vec<u32>) -> Vec<u16> {
        self.keep(raw.into_iter().map(|port| u16::try_from(port).ok()))
    }
}

pub(super) fn encode(policy: &Policy) -> proto::Authorization {
    let clause = |matches: &Vec<Match>| proto::Clause { matches: matches.iter().map(raw_match).collect() };
    let rule = |rule: &Rule| proto::Rule { clauses: rule.iter().map(clause).collect() };
    proto::Authorization {
        name: policy.name.to_string(),
        namespace: policy.namespace.to_string(),
        scope: match policy.scope {
            Scope::Global => proto::Scope::Global,
            Scope::Namespace => proto::Scope::Namespace,
            Scope::WorkloadSelector => proto::Scope::WorkloadSelector,
        }
        .into(),
        action: match policy.action {
            Action::Allow => proto::Action::Allow,
            Action::Deny => proto::Action::Deny,
        }
        .into(),
        rules: policy.rules.iter().map(rule).collect(),
        dry_run: policy.dry_run,
    }
}

fn raw_match(from: &Match) -> proto::Match {
    let mut raw = proto::Match {
        namespaces: raw_strings(&from.namespaces),
        not_namespaces: raw_strings(&from.not_namespaces),
        principals: raw_strings(&from.principals),
        not_principals: raw_strings(&from.not_principals),
        source_ips: raw_ranges(&from.source_ips),
        not_source_ips: raw_ranges(&from.not_source_ips),
        destination_ips: raw_ranges(&from.destination_ips),
        not_destination_ips: raw_ranges(&from.not_destination_ips),
        destination_ports: raw_ports(&from.destination_ports),
        not_destination_ports: raw_ports(&from.not_destination_ports),
        service_accounts: raw_accounts(&from.service_accounts),
        not_service_accounts: raw_accounts(&from.not_service_accounts),
    };
    if from.unintelligible {
        // A comparison of no kind is not understood by whoever reads it either.
        raw.namespaces.push(proto::StringMatch { match_type: None });
    }
    raw
}

fn raw_strings(from: &[StringMatch]) -> Vec<proto::StringMatch> {
    let text = |text: &Arc<str>| text.to_string();
    let kind = |from: &StringMatch| match from {
        StringMatch::Exact(value) => MatchType::Exact(text(value)),
        StringMatch::Prefix(value) => MatchType::Prefix(text(value)),
        StringMatch::Suffix(value) => MatchType::Suffix(text(value)),
        StringMatch::Presence => MatchType::Presence(()),
    };
    from.iter().map(|from| proto::StringMatch { match_type: Some(kind(from)) }).collect()
}

fn raw_ranges(from: &[IpNet]) -> Vec<proto::Address> {
    let one =
        |range: &IpNet| proto::Address { address: octets(range.addr()), length: range.prefix_len().into() };
    from.iter().map(one).collect()
}

fn raw_ports(from: &[u16]) -> Vec<u32> {
    from.iter().map(|port| u32::from(*port)).collect()
}

fn raw_accounts(from: &[ServiceAccountMatch]) -> Vec<proto::ServiceAccountMatch> {
    let one = |from: &ServiceAccountMatch| proto::ServiceAccountMatch {
        namespace: from.namespace.to_string(),
        service_account: from.service_account.to_string(),
    };
    from.iter().map(one).collect()
}
