//! The rules read word by word, slowly, and compared with the evaluator on random policies.

use proptest::collection::vec;
use proptest::prelude::{Strategy, any};
use proptest::sample::select;
use proptest::{prop_assert_eq, prop_oneof, proptest};

use super::*;
use crate::policy::Clause;

#[derive(Debug, Clone)]
struct Case {
    policies: Vec<Policy>,
    workload: Workload,
    identity: Option<Identity>,
    source: SocketAddr,
    destination: SocketAddr,
    aliases: Vec<&'static str>,
}

/// The decision, and the dry runs in any order, read straight from the text of the protocol.
fn literal(case: &Case) -> (&'static str, Vec<String>) {
    let mut dry_runs = vec![];
    let mut any_deny = false;
    let mut allow_exists = false;
    let mut any_allow = false;
    let applies = |policy: &&Policy| {
        let named = case.workload.authorization_policies.contains(&policy.key());
        named
            || policy.scope == Scope::Global
            || (policy.scope == Scope::Namespace && policy.namespace == case.workload.namespace)
    };
    let applying: Vec<&Policy> = case.policies.iter().filter(applies).collect();
    for policy in applying.iter().filter(|policy| policy.action == Action::Deny) {
        match (policy.dry_run, policy_matches(case, policy)) {
            (true, true) => dry_runs.push(policy.name.to_string()),
            (false, true) => any_deny = true,
            (_, false) => {}
        }
    }
    if any_deny {
        return ("deny", dry_runs);
    }
    for policy in applying.iter().filter(|policy| policy.action == Action::Allow) {
        allow_exists |= !policy.dry_run;
        match (policy.dry_run, policy_matches(case, policy)) {
            (true, true) => dry_runs.push(policy.name.to_string()),
            (false, true) => any_allow = true,
            (_, false) => {}
        }
    }
    let decision = if !allow_exists || any_allow { "allow" } else { "none allowed" };
    (decision, dry_runs)
}

fn policy_matches(case: &Case, policy: &Policy) -> bool {
    for rule in &policy.rules {
        let mut every_clause = true;
        for clause in rule {
            let mut clause_true = clause.is_empty();
            for one in clause {
                if one.unintelligible {
                    clause_true |= policy.action == Action::Deny;
                } else {
                    let kinds = kinds(case, one);
                    let populated = kinds.iter().any(Option::is_some);
                    clause_true |= populated && kinds.iter().flatten().all(|holds| *holds);
                }
            }
            every_clause &= clause_true;
        }
        if every_clause {
            return true;
        }
    }
    false
}

/// One entry for each of the twelve kinds: whether it holds, or `None` if it has no values.
fn kinds(case: &Case, one: &Match) -> [Option<bool>; 12] {
    let text = case.identity.as_ref().map(|identity| identity.to_string()["spiffe://".len()..].to_owned());
    let namespace = case.identity.as_ref().map_or(String::new(), |identity| identity.namespace.to_string());
    let namespace = |value: &StringMatch| compare(value, &namespace);
    // The client's identity as a policy may write it, once for each name of its trust domain.
    let mut texts: Vec<String> = text.iter().cloned().collect();
    if let Some((domain, rest)) = text.as_ref().and_then(|text| text.split_once('/')) {
        let names: Vec<&str> = case.aliases.iter().copied().chain(["td"]).collect();
        if names.contains(&domain) {
            texts.extend(names.iter().map(|name| format!("{name}/{rest}")));
        }
    }
    let principal = |value: &StringMatch| texts.iter().any(|text| compare(value, text));
    let account = |value: &ServiceAccountMatch| {
        let end = format!("/ns/{}/sa/{}", value.namespace, value.service_account);
        text.as_ref().is_some_and(|text| text.split_once('/').is_some_and(|(_, rest)| end[1..] == *rest))
    };
    let source = |value: &IpNet| in_range(value, case.source.ip());
    let destination = |value: &IpNet| in_range(value, case.destination.ip());
    let port = |value: &u16| *value == case.destination.port();
    [
        any_of(&one.namespaces, namespace),
        none_of(&one.not_namespaces, namespace),
        any_of(&one.principals, principal),
        none_of(&one.not_principals, principal),
        any_of(&one.service_accounts, account),
        none_of(&one.not_service_accounts, account),
        any_of(&one.source_ips, source),
        none_of(&one.not_source_ips, source),
        any_of(&one.destination_ips, destination),
        none_of(&one.not_destination_ips, destination),
        any_of(&one.destination_ports, port),
        none_of(&one.not_destination_ports, port),
    ]
}

fn any_of<T>(values: &[T], test: impl Fn(&T) -> bool) -> Option<bool> {
    let count = values.iter().filter(|value| test(value)).count();
    (!values.is_empty()).then_some(count > 0)
}

fn none_of<T>(values: &[T], test: impl Fn(&T) -> bool) -> Option<bool> {
    let count = values.iter().filter(|value| test(value)).count();
    (!values.is_empty()).then_some(count == 0)
}

fn compare(value: &StringMatch, text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    match value {
        StringMatch::Exact(value) => value.chars().eq(text),
        StringMatch::Prefix(value) => {
            let value: Vec<char> = value.chars().collect();
            value.len() <= text.len() && value[..] == text[..value.len()]
        }
        StringMatch::Suffix(value) => {
            let value: Vec<char> = value.chars().collect();
            value.len() <= text.len() && value[..] == text[text.len() - value.len()..]
        }
        StringMatch::Presence => !text.is_empty(),
    }
}

fn in_range(range: &IpNet, ip: IpAddr) -> bool {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => format!("4{:032b}", ip.to_bits()),
        IpAddr::V6(ip) => format!("6{:0128b}", ip.to_bits()),
    };
    let length = 1 + usize::from(range.prefix_len());
    bits(ip).starts_with(&bits(range.addr())[..length])
}

fn text_match() -> impl Strategy<Value = StringMatch> + Clone {
    let text = select(vec![
        "",
        "web",
        "w",
        "b",
        "shop",
        "td/ns/web/sa/front",
        "td/ns/",
        "/sa/front",
        "td/ns/shop",
        "old/ns/",
        "far/ns/web/sa/front",
    ]);
    (0..4, text).prop_map(|(kind, text)| match kind {
        0 => StringMatch::Exact(text.into()),
        1 => StringMatch::Prefix(text.into()),
        2 => StringMatch::Suffix(text.into()),
        _ => StringMatch::Presence,
    })
}

fn account() -> impl Strategy<Value = ServiceAccountMatch> + Clone {
    (select(vec!["web", "shop"]), select(vec!["front", "back"])).prop_map(|(namespace, account)| {
        ServiceAccountMatch { namespace: namespace.into(), service_account: account.into() }
    })
}

fn range() -> impl Strategy<Value = IpNet> + Clone {
    let ranges =
        ["10.0.1.0/24", "10.0.0.0/9", "10.0.0.2/32", "10.0.1.1/31", "0.0.0.0/0", "::/0", "2001:db8::/127"];
    select(ranges.to_vec()).prop_map(|range| range.parse().unwrap())
}

/// Mostly empty, so that a match has a few kinds.
fn few<T: Strategy + Clone>(values: T) -> impl Strategy<Value = Vec<T::Value>> {
    prop_oneof![6 => vec(values.clone(), 0..1), 1 => vec(values, 1..3)]
}

fn one_match() -> impl Strategy<Value = Match> {
    let texts = (few(text_match()), few(text_match()), few(text_match()), few(text_match()));
    let ranges = (few(range()), few(range()), few(range()), few(range()));
    let port = || select(vec![80u16, 8080]);
    let others = (few(account()), few(account()), few(port()), few(port()));
    (texts, ranges, others, proptest::bool::weighted(0.05)).prop_map(
        |(texts, ranges, others, unintelligible)| Match {
            namespaces: texts.0,
            not_namespaces: texts.1,
            principals: texts.2,
            not_principals: texts.3,
            service_accounts: others.0,
            not_service_accounts: others.1,
            source_ips: ranges.0,
            not_source_ips: ranges.1,
            destination_ips: ranges.2,
            not_destination_ips: ranges.3,
            destination_ports: others.2,
            not_destination_ports: others.3,
            unintelligible,
        },
    )
}

fn one_policy() -> impl Strategy<Value = Policy> {
    let clause = vec(one_match(), 0..3);
    let rule = vec(clause, 0..3);
    let scopes = select(vec![Scope::Global, Scope::Namespace, Scope::WorkloadSelector]);
    let place = (select(vec!["a", "b", "c", "d"]), select(vec!["shop", "web"]), scopes);
    (place, any::<bool>(), vec(rule, 0..3), proptest::bool::weighted(0.2)).prop_map(
        |((name, namespace, scope), deny, rules, dry_run): (_, _, Vec<Vec<Clause>>, _)| Policy {
            name: name.into(),
            namespace: namespace.into(),
            scope,
            action: if deny { Action::Deny } else { Action::Allow },
            rules,
            dry_run,
        },
    )
}

fn case() -> impl Strategy<Value = Case> {
    let identities = [None, Some(("web", "front")), Some(("shop", "front")), Some(("web", "back"))];
    let domains = select(vec!["td", "td", "old", "far"]);
    let identity = (select(identities.to_vec()), domains);
    let aliases = select(vec![vec![], vec!["old"], vec!["old", "older", "td"]]);
    let source = select(vec!["10.0.1.1:1", "10.200.0.1:2", "[2001:db8::1]:3"]);
    let destination = select(vec!["10.0.0.2:80", "10.0.0.3:8080", "[2001:db8::2]:80"]);
    let named = select(vec![vec![], vec!["shop/a"], vec!["web/b", "shop/c", "shop/gone"]]);
    (vec(one_policy(), 0..6), identity, source, destination, (named, aliases)).prop_map(
        |(policies, (identity, domain), source, destination, (named, aliases))| {
            let names = named.into_iter().map(Into::into).collect();
            // A key belongs to one policy: the last one sent.
            let mut unique: Vec<Policy> = vec![];
            for policy in policies {
                unique.retain(|other| other.key() != policy.key());
                unique.push(policy);
            }
            Case {
                policies: unique,
                workload: Workload { authorization_policies: names, ..workload() },
                identity: identity.map(|(namespace, account)| Identity::new(domain, namespace, account)),
                source: socket(source),
                destination: socket(destination),
                aliases,
            }
        },
    )
}

proptest! {
    #[test]
    fn the_evaluator_agrees_with_a_literal_reading(case in case()) {
        let mut mesh = snapshot([], []);
        let aliases = case.aliases.iter().map(|name| (*name).into()).collect();
        Arc::make_mut(&mut mesh.mesh).trust_domain_aliases = aliases;
        for policy in &case.policies {
            mesh.policies.insert(Arc::new(policy.clone()));
        }
        let connection = Connection {
            source: case.source,
            identity: case.identity.as_ref(),
            destination: case.destination,
            workload: &case.workload,
        };
        let mut dry_runs = vec![];
        let verdict = check_with(&mesh, &connection, &mut |event| {
            if let Event::DryRun(policy) = event {
                dry_runs.push(policy.name.to_string());
            }
        });
        let decision = match verdict {
            Verdict::Allow { .. } => "allow",
            Verdict::Deny { .. } => "deny",
            Verdict::NoAllow => "none allowed",
        };
        dry_runs.sort();
        let (expected, mut expected_dry_runs) = literal(&case);
        expected_dry_runs.sort();
        prop_assert_eq!((decision, dry_runs), (expected, expected_dry_runs));
    }
}
