//! Policies. What of a match cannot be understood is dropped from it, and the match is marked: the policy then neither
//! opens a connection through it nor fails to refuse one. What is not known of a clause, a rule or the policy marks every
//! match that it holds.

use std::fmt::Display;
use std::sync::Arc;

use halo_core::policy::{Action, Clause, Match, Policy, Rule, Scope, ServiceAccountMatch, StringMatch};
use ipnet::IpNet;

use super::parts::{known, octets, port, range};
use super::unknown::{TEXTS_MAX, Unknown};
use super::{Interner, PolicyRead, WireError};
use crate::proto::security as proto;
use crate::proto::security::string_match::MatchType;

/// Reads a policy of whose bytes `unknown` was not known.
pub(super) fn decode(
    raw: proto::Authorization,
    unknown: Unknown,
    interner: &mut Interner,
) -> Result<PolicyRead, WireError> {
    let scope = known("scope", raw.scope, "GLOBAL (0), NAMESPACE (1) or WORKLOAD_SELECTOR (2)")?;
    let action = known("action", raw.action, "ALLOW (0) or DENY (1)")?;
    let mut reader = Reader { interner, unintelligible: false, texts: unknown.texts };
    let mut rules = reader.rules(raw.rules);
    let not_understood = reader.texts;
    for place in &unknown.places {
        mark(&mut rules, place);
    }
    let policy = Policy {
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
        rules,
        dry_run: raw.dry_run,
    };
    Ok(PolicyRead { policy, not_understood })
}

/// Marks what is at a place of a policy, and all that it holds. What holds nothing gets a match that is marked: without one
/// an ALLOW policy would open by it, or a DENY policy refuse nothing.
fn mark(rules: &mut Vec<Rule>, place: &[usize]) {
    let found = match *place {
        [] => None,
        [rule] => rules.get_mut(rule).map(mark_rule),
        [rule, clause] => rules.get_mut(rule).and_then(|rule| rule.get_mut(clause)).map(mark_clause),
        [rule, clause, one, ..] => {
            let clause = rules.get_mut(rule).and_then(|rule| rule.get_mut(clause));
            clause.and_then(|clause| clause.get_mut(one)).map(|one| one.unintelligible = true)
        }
    };
    if found.is_none() {
        rules.iter_mut().for_each(mark_rule);
        if rules.is_empty() {
            rules.push(vec![vec![marked()]]);
        }
    }
}

fn mark_rule(rule: &mut Rule) {
    rule.iter_mut().for_each(mark_clause);
    if rule.is_empty() {
        rule.push(vec![marked()]);
    }
}

fn mark_clause(clause: &mut Clause) {
    clause.iter_mut().for_each(|one| one.unintelligible = true);
    if clause.is_empty() {
        clause.push(marked());
    }
}

fn marked() -> Match {
    Match { unintelligible: true, ..Match::default() }
}

/// Reads rules and remembers what of them was not understood.
struct Reader<'a> {
    interner: &'a mut Interner,
    /// Whether all of the match that is read was understood.
    unintelligible: bool,
    /// What was not understood, the first few.
    texts: Vec<String>,
}

impl Reader<'_> {
    fn rules(&mut self, raw: Vec<proto::Rule>) -> Vec<Rule> {
        let mut rules = Vec::with_capacity(raw.len());
        for raw in raw {
            let place = rules.len();
            let clauses = raw.clauses.into_iter().enumerate();
            rules.push(clauses.map(|(number, raw)| self.clause(raw, [place, number])).collect());
        }
        rules
    }

    fn clause(&mut self, raw: proto::Clause, [rule, clause]: [usize; 2]) -> Clause {
        let matches = raw.matches.into_iter().enumerate();
        matches.map(|(number, raw)| self.one_match(raw, [rule, clause, number])).collect()
    }

    fn one_match(&mut self, raw: proto::Match, place: [usize; 3]) -> Match {
        self.unintelligible = false;
        let read = Match {
            namespaces: self.strings((place, "namespaces"), raw.namespaces),
            not_namespaces: self.strings((place, "not_namespaces"), raw.not_namespaces),
            principals: self.strings((place, "principals"), raw.principals),
            not_principals: self.strings((place, "not_principals"), raw.not_principals),
            service_accounts: self.accounts(raw.service_accounts),
            not_service_accounts: self.accounts(raw.not_service_accounts),
            source_ips: self.ranges((place, "source_ips"), raw.source_ips),
            not_source_ips: self.ranges((place, "not_source_ips"), raw.not_source_ips),
            destination_ips: self.ranges((place, "destination_ips"), raw.destination_ips),
            not_destination_ips: self.ranges((place, "not_destination_ips"), raw.not_destination_ips),
            destination_ports: self.ports((place, "destination_ports"), raw.destination_ports),
            not_destination_ports: self.ports((place, "not_destination_ports"), raw.not_destination_ports),
            unintelligible: false,
        };
        Match { unintelligible: self.unintelligible, ..read }
    }

    /// Drops a value of a list.
    fn drop_value(&mut self, (place, field): Field, why: impl Display) {
        self.unintelligible = true;
        if self.texts.len() < TEXTS_MAX {
            let [rule, clause, one] = place;
            self.texts.push(format!("rules[{rule}].clauses[{clause}].matches[{one}].{field}: {why}"));
        }
    }

    fn strings(&mut self, field: Field, raw: Vec<proto::StringMatch>) -> Vec<StringMatch> {
        let mut kept = Vec::with_capacity(raw.len());
        for raw in raw {
            match raw.match_type {
                Some(MatchType::Exact(text)) => kept.push(StringMatch::Exact(self.interner.share(&text))),
                Some(MatchType::Prefix(text)) => kept.push(StringMatch::Prefix(self.interner.share(&text))),
                Some(MatchType::Suffix(text)) => kept.push(StringMatch::Suffix(self.interner.share(&text))),
                Some(MatchType::Presence(())) => kept.push(StringMatch::Presence),
                None => self.drop_value(field, "a comparison of no known kind"),
            }
        }
        kept
    }

    fn accounts(&mut self, raw: Vec<proto::ServiceAccountMatch>) -> Vec<ServiceAccountMatch> {
        let one = |raw: proto::ServiceAccountMatch| ServiceAccountMatch {
            namespace: self.interner.share(&raw.namespace),
            service_account: self.interner.share(&raw.service_account),
        };
        raw.into_iter().map(one).collect()
    }

    fn ranges(&mut self, field: Field, raw: Vec<proto::Address>) -> Vec<IpNet> {
        let read = raw.iter().map(|raw| range("a range", &raw.address, raw.length));
        self.keep(field, read)
    }

    fn ports(&mut self, field: Field, raw: Vec<u32>) -> Vec<u16> {
        self.keep(field, raw.into_iter().map(|number| port("a port", number)))
    }

    /// What could be read of a list.
    fn keep<T>(&mut self, field: Field, read: impl Iterator<Item = Result<T, WireError>>) -> Vec<T> {
        let mut kept = Vec::new();
        for item in read {
            match item {
                Ok(item) => kept.push(item),
                Err(why) => self.drop_value(field, why),
            }
        }
        kept
    }
}

/// A list of a match: the numbers of its rule, clause and match, and its name.
type Field = ([usize; 3], &'static str);

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
