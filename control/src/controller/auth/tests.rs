mod jwt;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::testing::DEADLINE;

const LIST: &str = "\
- {token: alpha-token, serviceAccount: mesh/proxy, node: node-1}
- token: beta-token
  serviceAccount: shop/cart
";

fn headers(value: &str) -> HeaderMap {
    HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(value).unwrap())])
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

/// Puts a file in place of another, complete at once.
fn replace(path: &Path, text: &str) {
    let draft = path.with_extension("new");
    write(&draft, text);
    fs::rename(draft, path).unwrap();
}

struct Bench {
    folder: tempfile::TempDir,
    authenticator: Authenticator,
}

impl Bench {
    fn tokens(text: &str) -> Result<Self, CredentialsError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.yaml");
        write(&path, text);
        let authenticator = Authenticator::new(Credentials::Tokens(path))?;
        Ok(Self { folder, authenticator })
    }

    fn caller(&self, value: &str) -> Result<Caller, AuthError> {
        self.authenticator.authenticate(&headers(value), None)
    }
}

/// Waits until something holds of a file that is followed.
async fn until(holds: impl Fn() -> bool) {
    let waited = async {
        while !holds() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waited).await.expect("the file was not followed in time");
}

fn caller(account: &str, node: Option<&str>) -> Caller {
    let (namespace, name) = account.split_once('/').unwrap();
    Caller {
        namespace: namespace.into(),
        service_account: name.into(),
        node: node.map(Into::into),
        pod: None,
        expires: None,
    }
}

fn peer(trust_domain: &str) -> Peer {
    let not_after = SystemTime::now() + DEADLINE;
    Peer { identity: Identity::new(trust_domain, "shop", "cart"), not_after }
}

#[tokio::test]
async fn a_token_of_the_list_tells_its_caller() {
    let bench = Bench::tokens(LIST).unwrap();
    assert_eq!(bench.caller("Bearer alpha-token"), Ok(caller("mesh/proxy", Some("node-1"))));
    assert_eq!(bench.caller("bearer  beta-token "), Ok(caller("shop/cart", None)));
    for (value, expected) in [
        ("Bearer alpha-toke", AuthError::Unknown),
        ("Bearer alpha-token2", AuthError::Unknown),
        ("Bearer alpha-token beta-token", AuthError::Unknown),
        ("Bearer", AuthError::Scheme),
        ("Bearer ", AuthError::Scheme),
        ("alpha-token", AuthError::Scheme),
        ("Basic alpha-token", AuthError::Scheme),
        ("", AuthError::Scheme),
    ] {
        assert_eq!(bench.caller(value), Err(expected), "{value}");
    }
    assert_eq!(bench.caller(&format!("Bearer {}", "a".repeat(TOKEN_LEN_MAX + 1))), Err(AuthError::Long));
    let mut two = headers("Bearer alpha-token");
    two.append(AUTHORIZATION, HeaderValue::from_static("Bearer beta-token"));
    assert_eq!(bench.authenticator.authenticate(&two, None), Err(AuthError::Scheme));
    let none = bench.authenticator.authenticate(&HeaderMap::new(), None);
    assert_eq!(none, Err(AuthError::Missing));
}

#[tokio::test]
async fn a_client_certificate_stands_for_a_token_in_its_trust_domain_only() {
    let bench = Bench::tokens(LIST).unwrap();
    let none = HeaderMap::new();
    let closed = bench.authenticator.authenticate(&none, Some(&peer("td")));
    assert_eq!(closed, Err(AuthError::Missing));
    let authenticator = bench.authenticator.with_peers_of("td".into());
    let good = peer("td");
    let expected = Caller { expires: Some(good.not_after), ..caller("shop/cart", None) };
    assert_eq!(authenticator.authenticate(&none, Some(&good)), Ok(expected));
    let late = authenticator.authenticate_at(&none, Some(&good), good.not_after);
    assert_eq!(late, Err(AuthError::CertificateExpired));
    assert_eq!(authenticator.authenticate(&none, Some(&peer("other"))), Err(AuthError::TrustDomain));
    assert_eq!(authenticator.authenticate(&none, None), Err(AuthError::Missing));
    let wrong = authenticator.authenticate(&headers("Bearer wrong"), Some(&peer("td")));
    assert_eq!(wrong, Err(AuthError::Unknown));
    let token = authenticator.authenticate(&headers("Bearer alpha-token"), Some(&peer("td")));
    assert_eq!(token, Ok(caller("mesh/proxy", Some("node-1"))));
}

#[test]
fn without_credentials_everyone_is_anyone() {
    let open = Authenticator::new(Credentials::None).unwrap();
    assert!(open.is_open() && open.problem().is_none());
    let told = open.authenticate(&headers("Bearer whatever"), Some(&peer("td"))).unwrap();
    assert!(told.is_anyone() && told.to_string() == "anyone");
}

#[tokio::test]
async fn a_wrong_list_is_refused_by_its_place_and_without_its_tokens() {
    let secret = "hidden-secret";
    for (text, told) in [
        ("- hidden-secret", "line 1 is wrong"),
        ("- token: a\n  serviceAccount: a/b\n- token: [hidden-secret]", "line 3 is wrong"),
        ("- {token: a, serviceAccount: a/b, hidden-secret: 1}", "line 1 is wrong"),
        ("token: hidden-secret", "is wrong"),
        ("- {token: hidden-secret}", "is wrong"),
        ("hidden-secret: [", "is wrong"),
        ("- {token: hidden-secret, serviceAccount: a}", "entry 1: its serviceAccount is not"),
        ("- {token: hidden-secret, serviceAccount: a/b/c}", "entry 1: its serviceAccount is not"),
        ("- {token: hidden-secret, serviceAccount: /b}", "entry 1: its serviceAccount is not"),
        ("- {token: hidden-secret, serviceAccount: A/b}", "entry 1: its serviceAccount is not"),
        ("- {token: hidden-secret, serviceAccount: a/b, node: a/b}", "entry 1: its node is not"),
        ("- {token: '', serviceAccount: a/b}", "entry 1: its token is empty"),
        ("- {token: hidden-secret more, serviceAccount: a/b}", "entry 1: its token is empty, longer"),
        (
            "- {token: hidden-secret, serviceAccount: a/b}\n- {token: hidden-secret, serviceAccount: a/c}",
            "entry 2: its token is that of an earlier entry",
        ),
    ] {
        let Err(error) = Bench::tokens(text) else { panic!("{text} was accepted") };
        let text = format!("{error} {error:?}");
        assert!(text.contains(told) && text.contains("tokens.yaml"), "{told}: {text}");
        assert!(!text.contains(secret), "{text}");
    }
}

#[tokio::test]
async fn a_list_that_is_not_for_its_owner_alone_is_refused_with_the_remedy() {
    let bench = Bench::tokens(LIST).unwrap();
    let path = bench.folder.path().join("tokens.yaml");
    for (mode, refused) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true), (0o644, true)] {
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        let told = Authenticator::new(Credentials::Tokens(path.clone())).err().map(|error| error.to_string());
        assert_eq!(told.is_some(), refused, "{told:?}");
        let remedy = format!("(mode {mode:04o}), and it holds tokens; run: chmod 600 {}", path.display());
        assert!(told.is_none_or(|told| told.ends_with(&remedy)));
    }
    let missing = Authenticator::new(Credentials::Tokens(bench.folder.path().join("none")));
    assert!(matches!(missing, Err(CredentialsError::File { .. })));
}

#[tokio::test]
async fn a_list_is_followed_and_a_wrong_one_keeps_the_one_before() {
    let bench = Bench::tokens(LIST).unwrap();
    let path = bench.folder.path().join("tokens.yaml");
    replace(&path, "- {token: gamma-token, serviceAccount: a/b}");
    until(|| bench.caller("Bearer gamma-token").is_ok()).await;
    assert_eq!(bench.caller("Bearer alpha-token"), Err(AuthError::Unknown));
    replace(&path, "- {token: delta-token}");
    until(|| bench.authenticator.problem().is_some()).await;
    let problem = bench.authenticator.problem().unwrap();
    assert!(problem.contains("line 1 is wrong") && !problem.contains("delta"), "{problem}");
    assert!(bench.caller("Bearer gamma-token").is_ok());
    replace(&path, "- {token: delta-token, serviceAccount: a/b}");
    until(|| bench.authenticator.problem().is_none()).await;
    assert!(bench.caller("Bearer delta-token").is_ok());
    assert_eq!(bench.caller("Bearer gamma-token"), Err(AuthError::Unknown));
}

const ALL: [AuthError; 16] = [
    AuthError::Missing,
    AuthError::Scheme,
    AuthError::Long,
    AuthError::Unknown,
    AuthError::Malformed,
    AuthError::Critical,
    AuthError::Key,
    AuthError::Algorithm,
    AuthError::Signature,
    AuthError::Claims,
    AuthError::Expired,
    AuthError::Early,
    AuthError::Audience,
    AuthError::Issuer,
    AuthError::TrustDomain,
    AuthError::CertificateExpired,
];

#[test]
fn every_refusal_has_a_line_a_label_and_a_status_of_its_own_kind() {
    let labels: std::collections::BTreeSet<_> = ALL.iter().map(|error| error.label()).collect();
    let lines: std::collections::BTreeSet<_> = ALL.iter().map(ToString::to_string).collect();
    assert_eq!((labels.len(), lines.len()), (ALL.len(), ALL.len()));
    for error in ALL {
        let status = Status::from(error);
        assert!(matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied));
        assert!(!status.message().contains('\n'), "{status}");
    }
}

#[test]
fn names_that_would_change_an_identity_are_not_names() {
    for name in ["a", "a-b.c", "0"] {
        assert!(is_name(name), "{name}");
    }
    let long = "a".repeat(NAME_LEN_MAX + 1);
    for name in ["", "a/b", "A", "a b", "ü", "a:b", "a_b", &long] {
        assert!(!is_name(name), "{name}");
    }
}

proptest! {
    #[test]
    fn no_token_but_that_of_the_list_is_accepted(token in "[!-~]{1,64}") {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let told = runtime.block_on(async { Bench::tokens(LIST).unwrap().caller(&format!("Bearer {token}")) });
        let listed = ["alpha-token", "beta-token"].contains(&token.as_str());
        prop_assert_eq!(told.err(), (!listed).then_some(AuthError::Unknown));
    }
}
