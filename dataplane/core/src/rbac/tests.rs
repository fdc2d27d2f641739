use super::*;
use crate::fixture::{ip, pod, snapshot, socket};
use crate::policy::{Rule, ServiceAccountMatch};

mod oracle;

fn policy(name: &str, action: Action, rules: Vec<Rule>) -> Policy {
    let (name, namespace) = (name.into(), "shop".into());
    Policy { name, namespace, scope: Scope::Namespace, action, rules, dry_run: false }
}

/// A policy of one rule with one clause with one match.
fn matching(name: &str, action: Action, one: Match) -> Policy {
    policy(name, action, vec![vec![vec![one]]])
}

fn workload() -> Workload {
    pod("shop", "cart", "10.0.0.2")
}

fn verdict_for(workload: &Workload, policies: Vec<Policy>) -> (Verdict, Vec<String>) {
    let mut mesh = snapshot([], []);
    for policy in policies {
        mesh.policies.insert(Arc::new(policy));
    }
    let identity = Identity::new("td", "web", "front");
    let connection = Connection {
        source: socket("10.0.1.1:40000"),
        identity: Some(&identity),
        destination: socket("10.0.0.2:8080"),
        workload,
    };
    let mut events = vec![];
    let verdict = check_with(&mesh, &connection, &mut |event| {
        events.push(match event {
            Event::DryRun(policy) => format!("dry run {}", policy.name),
            Event::Missing(name) => format!("missing {name}"),
        });
    });
    assert_eq!(check(&mesh, &connection), verdict);
    (verdict, events)
}

fn verdict(policies: Vec<Policy>) -> Verdict {
    verdict_for(&workload(), policies).0
}

fn allowed(policy: Option<&str>) -> Verdict {
    Verdict::Allow { policy: policy.map(Into::into) }
}

fn denied(policy: &str) -> Verdict {
    Verdict::Deny { policy: policy.into() }
}

/// Matches every connection: the empty rule.
fn everything() -> Vec<Rule> {
    vec![vec![]]
}

#[test]
fn without_a_policy_everything_is_admitted() {
    assert_eq!(verdict(vec![]), allowed(None));
}

#[test]
fn deny_is_tried_before_allow() {
    let allow = policy("a", Action::Allow, everything());
    let deny = policy("z", Action::Deny, everything());
    assert_eq!(verdict(vec![allow.clone()]), allowed(Some("shop/a")));
    assert_eq!(verdict(vec![allow, deny]), denied("shop/z"));
}

#[test]
fn an_allow_policy_that_does_not_match_refuses_and_a_deny_policy_does_not() {
    assert_eq!(verdict(vec![policy("a", Action::Allow, vec![])]), Verdict::NoAllow);
    assert_eq!(verdict(vec![policy("a", Action::Deny, vec![])]), allowed(None));
}

#[test]
fn empty_parts_mean_what_the_protocol_says() {
    let port = |port| Match { destination_ports: vec![port], ..Default::default() };
    let table: Vec<(&str, Vec<Rule>, bool)> = vec![
        ("no rules never match", vec![], false),
        ("a rule without clauses matches", vec![vec![]], true),
        ("an empty clause is true", vec![vec![vec![]]], true),
        ("an empty match is skipped", vec![vec![vec![Match::default()]]], false),
        ("an empty match beside another", vec![vec![vec![Match::default(), port(8080)]]], true),
        ("matches are alternatives", vec![vec![vec![port(1), port(8080)]]], true),
        ("clauses are all needed", vec![vec![vec![port(8080)], vec![port(1)]]], false),
        ("an empty clause beside another", vec![vec![vec![], vec![port(1)]]], false),
        ("rules are alternatives", vec![vec![vec![port(1)]], vec![vec![port(8080)]]], true),
    ];
    for (what, rules, expected) in table {
        let refused = verdict(vec![policy("p", Action::Deny, rules.clone())]) == denied("shop/p");
        let admitted = verdict(vec![policy("p", Action::Allow, rules)]) == allowed(Some("shop/p"));
        assert_eq!((refused, admitted), (expected, expected), "{what}");
    }
}

#[test]
fn a_policy_applies_by_scope_namespace_and_name() {
    let scoped = |scope, namespace: &str| Policy {
        scope,
        namespace: namespace.into(),
        ..policy("p", Action::Deny, everything())
    };
    let named = Workload { authorization_policies: ["shop/p".into(), "else/p".into()].into(), ..workload() };
    for (scope, namespace, unnamed_denied, named_denied) in [
        (Scope::Global, "root", true, true),
        (Scope::Namespace, "shop", true, true),
        (Scope::Namespace, "web", false, false),
        (Scope::WorkloadSelector, "shop", false, true),
        (Scope::WorkloadSelector, "else", false, true),
        (Scope::WorkloadSelector, "web", false, false),
    ] {
        let policy = scoped(scope, namespace);
        let is_denied = |workload: &Workload| {
            verdict_for(workload, vec![policy.clone()]).0.reason() == Some(Reason::PolicyDeny)
        };
        assert_eq!(is_denied(&workload()), unnamed_denied, "{scope:?} {namespace}");
        assert_eq!(is_denied(&named), named_denied, "{scope:?} {namespace}, named");
    }
}

#[test]
fn a_named_policy_that_is_missing_is_skipped_and_reported() {
    let named =
        Workload { authorization_policies: ["shop/gone".into(), "shop/p".into()].into(), ..workload() };
    let (verdict, events) = verdict_for(&named, vec![policy("p", Action::Allow, everything())]);
    assert_eq!((verdict, events), (allowed(Some("shop/p")), vec!["missing shop/gone".into()]));
    let (verdict, events) = verdict_for(&named, vec![]);
    assert_eq!(verdict, allowed(None));
    assert_eq!(events, ["missing shop/gone", "missing shop/p"]);
}

#[test]
fn a_dry_run_is_reported_and_enforces_nothing() {
    let dry = |name, action| Policy { dry_run: true, ..policy(name, action, everything()) };
    let (verdict, events) = verdict_for(&workload(), vec![dry("d", Action::Deny), dry("a", Action::Allow)]);
    assert_eq!((verdict, events), (allowed(None), vec!["dry run d".to_owned(), "dry run a".to_owned()]));
    // A dry run of ALLOW does not stand in for an enforced one, and neither does it demand one.
    let enforced = policy("b", Action::Allow, vec![]);
    let (verdict, _) = verdict_for(&workload(), vec![dry("a", Action::Allow), enforced]);
    assert_eq!(verdict, Verdict::NoAllow);
    // After a DENY the ALLOW policies are not looked at.
    let policies =
        vec![policy("c", Action::Deny, everything()), dry("d", Action::Deny), dry("a", Action::Allow)];
    let (verdict, events) = verdict_for(&workload(), policies);
    assert_eq!((verdict, events), (denied("shop/c"), vec!["dry run d".to_owned()]));
}

#[test]
fn what_is_not_understood_never_opens_a_connection() {
    let one = Match { destination_ports: vec![8080], unintelligible: true, ..Default::default() };
    let other = Match { destination_ports: vec![1], unintelligible: true, ..Default::default() };
    let nothing_left = Match { unintelligible: true, ..Default::default() };
    for one in [one, other, nothing_left] {
        assert_eq!(verdict(vec![matching("p", Action::Allow, one.clone())]), Verdict::NoAllow);
        assert_eq!(verdict(vec![matching("p", Action::Deny, one)]), denied("shop/p"));
    }
}

/// Whether one match holds for a connection from 10.0.1.1 with this identity to 10.0.0.2:8080.
fn holds_for(one: &Match, identity: Option<&Identity>) -> bool {
    let mut mesh = snapshot([], []);
    mesh.policies.insert(Arc::new(matching("p", Action::Deny, one.clone())));
    let workload = workload();
    let connection = Connection {
        source: SocketAddr::new(ip("::ffff:10.0.1.1"), 40000),
        identity,
        destination: socket("10.0.0.2:8080"),
        workload: &workload,
    };
    check(&mesh, &connection) == denied("shop/p")
}

#[test]
fn texts_are_compared_exactly_by_prefix_by_suffix_or_by_presence() {
    let identity = Identity::new("td", "web", "front");
    let exact = |text: &str| StringMatch::Exact(text.into());
    let prefix = |text: &str| StringMatch::Prefix(text.into());
    let suffix = |text: &str| StringMatch::Suffix(text.into());
    // Value, then whether it is the namespace "web", the empty namespace, and the principal.
    let table = [
        (exact("web"), true, false, false),
        (exact("Web"), false, false, false),
        (exact(""), false, true, false),
        (prefix("we"), true, false, false),
        (prefix(""), true, true, true),
        (suffix("eb"), true, false, false),
        (StringMatch::Presence, true, false, true),
        (exact("td/ns/web/sa/front"), false, false, true),
        (exact("spiffe://td/ns/web/sa/front"), false, false, true),
        (prefix("td/ns/web/"), false, false, true),
        (prefix("spiffe://td/"), false, false, true),
        (suffix("/sa/front"), false, false, true),
        (suffix("/sa/fron"), false, false, false),
    ];
    for (value, is_namespace, is_empty_namespace, is_principal) in table {
        let namespaces = Match { namespaces: vec![value.clone()], ..Default::default() };
        let principals = Match { principals: vec![value.clone()], ..Default::default() };
        assert_eq!(holds_for(&namespaces, Some(&identity)), is_namespace, "namespace {value:?}");
        assert_eq!(holds_for(&namespaces, None), is_empty_namespace, "no namespace {value:?}");
        assert_eq!(holds_for(&principals, Some(&identity)), is_principal, "principal {value:?}");
        assert!(!holds_for(&principals, None), "no principal {value:?}");
        let not_principals = Match { not_principals: vec![value.clone()], ..Default::default() };
        assert_eq!(holds_for(&not_principals, Some(&identity)), !is_principal, "not principal {value:?}");
        assert!(holds_for(&not_principals, None), "not no principal {value:?}");
        let not_namespaces = Match { not_namespaces: vec![value.clone()], ..Default::default() };
        assert_eq!(holds_for(&not_namespaces, Some(&identity)), !is_namespace, "not namespace {value:?}");
    }
}

#[test]
fn strict_mutual_tls_refuses_a_client_without_identity_alone() {
    let strict = Match { not_principals: vec![StringMatch::Presence], ..Default::default() };
    assert!(holds_for(&strict, None));
    assert!(!holds_for(&strict, Some(&Identity::new("td", "web", "front"))));
    let except_port = Match { not_destination_ports: vec![8080], ..strict };
    assert!(!holds_for(&except_port, None));
}

#[test]
fn a_service_account_is_compared_without_its_trust_domain() {
    let account = |namespace: &str, account: &str| ServiceAccountMatch {
        namespace: namespace.into(),
        service_account: account.into(),
    };
    let identity = Identity::new("other-td", "web", "front");
    for (namespace, name, expected) in
        [("web", "front", true), ("web", "back", false), ("shop", "front", false), ("", "", false)]
    {
        let any = Match { service_accounts: vec![account(namespace, name)], ..Default::default() };
        let none = Match { not_service_accounts: vec![account(namespace, name)], ..Default::default() };
        assert_eq!(holds_for(&any, Some(&identity)), expected);
        assert_eq!(holds_for(&none, Some(&identity)), !expected);
        assert!(!holds_for(&any, None) && holds_for(&none, None));
    }
}

#[test]
fn addresses_and_ports_are_compared_in_canonical_form() {
    let net = |text: &str| vec![text.parse().unwrap()];
    for (range, is_source, is_destination) in [
        ("10.0.1.0/24", true, false),
        ("10.0.0.0/15", true, true),
        ("10.0.0.2/32", false, true),
        ("10.0.0.3/32", false, false),
        ("0.0.0.0/0", true, true),
        ("::/0", false, false),
    ] {
        let table = [
            (Match { source_ips: net(range), ..Default::default() }, is_source),
            (Match { not_source_ips: net(range), ..Default::default() }, !is_source),
            (Match { destination_ips: net(range), ..Default::default() }, is_destination),
            (Match { not_destination_ips: net(range), ..Default::default() }, !is_destination),
        ];
        for (one, expected) in table {
            assert_eq!(holds_for(&one, None), expected, "{one:?}");
        }
    }
    for (ports, expected) in [(vec![8080], true), (vec![1, 8080], true), (vec![1, 2], false)] {
        let any = Match { destination_ports: ports.clone(), ..Default::default() };
        let none = Match { not_destination_ports: ports, ..Default::default() };
        assert_eq!((holds_for(&any, None), holds_for(&none, None)), (expected, !expected));
    }
}

#[test]
fn kinds_are_all_needed_and_a_negative_value_outweighs_a_positive_one() {
    let one = Match {
        destination_ports: vec![8080],
        namespaces: vec![StringMatch::Presence],
        ..Default::default()
    };
    let identity = Identity::new("td", "web", "front");
    assert!(holds_for(&one, Some(&identity)) && !holds_for(&one, None));
    let excluded = Match { not_destination_ports: vec![1, 8080], ..one };
    assert!(!holds_for(&excluded, Some(&identity)));
}

#[test]
fn a_principal_is_compared_under_every_name_of_its_trust_domain() {
    let mesh = Mesh { trust_domain_aliases: ["old".into(), "older".into()].into(), ..Default::default() };
    let destination = workload();
    let is = |client: &str, value: &str| {
        let identity = Identity::new(client, "web", "front");
        let connection = Connection {
            source: socket("10.0.1.1:40000"),
            identity: Some(&identity),
            destination: socket("10.0.0.2:8080"),
            workload: &destination,
        };
        let value = StringMatch::Exact(format!("spiffe://{value}/ns/web/sa/front").into());
        let subject = Subject::new(&mesh, &connection);
        let only = Match { principals: vec![value.clone()], ..Default::default() };
        let others = Match { not_principals: vec![value], ..Default::default() };
        let (only, others) =
            (subject.matches_one(&only, Action::Allow), subject.matches_one(&others, Action::Allow));
        assert_ne!(only, others);
        only
    };
    for (client, value, expected) in [
        ("td", "td", true),
        ("td", "old", true),
        ("old", "td", true),
        ("old", "older", true),
        ("far", "far", true),
        ("far", "td", false),
        ("far", "old", false),
        ("td", "far", false),
    ] {
        assert_eq!(is(client, value), expected, "{client} {value}");
    }
}
