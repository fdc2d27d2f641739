use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use super::*;

/// A time that the tokens are about.
const NOW_S: u64 = 1_900_000_000;

/// The private keys of an issuer, made by another program.
struct Issuer {
    rsa: EncodingKey,
    other: EncodingKey,
    p256: EncodingKey,
    p384: EncodingKey,
    ed: EncodingKey,
    rsa_pem: String,
}

fn genpkey(arguments: &str) -> String {
    let made = Command::new("openssl").arg("genpkey").args(arguments.split(' ')).output();
    String::from_utf8(made.expect("these tests need the openssl program").stdout).unwrap()
}

fn issuer() -> &'static Issuer {
    static ISSUER: OnceLock<Issuer> = OnceLock::new();
    ISSUER.get_or_init(|| {
        let rsa_pem = genpkey("-algorithm RSA -pkeyopt rsa_keygen_bits:2048");
        let other = genpkey("-algorithm RSA -pkeyopt rsa_keygen_bits:2048");
        let p256 = genpkey("-algorithm EC -pkeyopt ec_paramgen_curve:P-256");
        let p384 = genpkey("-algorithm EC -pkeyopt ec_paramgen_curve:P-384");
        let ed = genpkey("-algorithm ed25519");
        Issuer {
            rsa: EncodingKey::from_rsa_pem(rsa_pem.as_bytes()).unwrap(),
            other: EncodingKey::from_rsa_pem(other.as_bytes()).unwrap(),
            p256: EncodingKey::from_ec_pem(p256.as_bytes()).unwrap(),
            p384: EncodingKey::from_ec_pem(p384.as_bytes()).unwrap(),
            ed: EncodingKey::from_ed_pem(ed.as_bytes()).unwrap(),
            rsa_pem,
        }
    })
}

/// A public key as a set has it; without `alg`, unless one is added.
fn jwk(key: &EncodingKey, algorithm: Algorithm, id: &str, more: &Value) -> Value {
    let mut jwk = serde_json::to_value(Jwk::from_encoding_key(key, algorithm).unwrap()).unwrap();
    let fields = jwk.as_object_mut().unwrap();
    fields.remove("alg");
    fields.insert("kid".into(), id.into());
    for (name, value) in more.as_object().into_iter().flatten() {
        fields.insert(name.clone(), value.clone());
    }
    jwk
}

fn set() -> Value {
    let issuer = issuer();
    json!({"keys": [
        {"kty": "oct", "kid": "shared", "k": "c2VjcmV0"},
        {"kty": "new", "kid": "unknown"},
        jwk(&issuer.rsa, Algorithm::RS256, "rsa", &json!({"use": "sig", "alg": "RS256"})),
        jwk(&issuer.rsa, Algorithm::RS256, "any-rsa", &json!({})),
        jwk(&issuer.rsa, Algorithm::RS256, "enc", &json!({"use": "enc"})),
        jwk(&issuer.rsa, Algorithm::RS256, "ops", &json!({"key_ops": ["sign"]})),
        jwk(&issuer.rsa, Algorithm::RS256, "small", &json!({"n": URL_SAFE_NO_PAD.encode([0xff; 128])})),
        jwk(&issuer.p256, Algorithm::ES256, "p256", &json!({})),
        jwk(&issuer.p384, Algorithm::ES384, "p384", &json!({})),
        jwk(&issuer.ed, Algorithm::EdDSA, "ed", &json!({})),
    ]})
}

/// The claims of a bound token as an API server gives them.
fn claims() -> Value {
    json!({
        "aud": ["istio-ca"],
        "exp": NOW_S + 3600,
        "iat": NOW_S,
        "nbf": NOW_S,
        "iss": "https://kubernetes.default.svc.cluster.local",
        "jti": "3d5c2a1f",
        "kubernetes.io": {
            "namespace": "istio-system",
            "node": {"name": "node-1", "uid": "a"},
            "pod": {"name": "proxy-x", "uid": "b"},
            "serviceaccount": {"name": "ztunnel", "uid": "c"},
            "warnafter": NOW_S + 1000,
        },
        "sub": "system:serviceaccount:istio-system:ztunnel",
    })
}

fn with(pointer: &str, value: Value) -> Value {
    let mut claims = claims();
    *claims.pointer_mut(pointer).unwrap() = value;
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name).unwrap();
    claims
}

fn sign(id: Option<&str>, algorithm: Algorithm, key: &EncodingKey, claims: &Value) -> String {
    let mut header = Header::new(algorithm);
    header.kid = id.map(str::to_owned);
    jsonwebtoken::encode(&header, claims, key).unwrap()
}

fn rs256(claims: &Value) -> String {
    sign(Some("rsa"), Algorithm::RS256, &issuer().rsa, claims)
}

fn encoded(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn start(set: &Value, name: Option<&str>) -> Result<Bench, CredentialsError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jwks.json");
    write(&path, &set.to_string());
    let credentials = Credentials::Jwks { path, issuer: name.map(Into::into), audience: AUDIENCE.into() };
    Ok(Bench { authenticator: Authenticator::new(credentials)?, folder })
}

/// What is told of a token's caller, without the end of the token.
fn judge(bench: &Bench, token: &str) -> Result<Caller, AuthError> {
    let now = UNIX_EPOCH + Duration::from_secs(NOW_S);
    let told = bench.authenticator.authenticate_at(&headers(&format!("Bearer {token}")), None, now);
    if let Err(error) = &told {
        let text = format!("{error} {error:?} {:?}", Status::from(*error));
        assert!(token.split('.').all(|part| part.len() < 8 || !text.contains(part)), "{text}");
    }
    told.map(|caller| {
        assert!(caller.expires.is_none_or(|expires| expires > now), "it is accepted and has expired");
        Caller { expires: None, ..caller }
    })
}

#[tokio::test]
async fn a_token_tells_when_it_ceases_to_be_accepted() {
    let bench = start(&set(), None).unwrap();
    let now = UNIX_EPOCH + Duration::from_secs(NOW_S);
    let value = format!("Bearer {}", rs256(&claims()));
    let told = bench.authenticator.authenticate_at(&headers(&value), None, now).unwrap();
    let expires = told.expires.unwrap();
    assert_eq!(expires, now + Duration::from_secs(3600 + 60));
    let late = bench.authenticator.authenticate_at(&headers(&value), None, expires);
    assert_eq!(late, Err(AuthError::Expired));
}

fn node_proxy(node: Option<&str>) -> Caller {
    Caller { pod: Some("proxy-x".into()), ..caller("istio-system/ztunnel", node) }
}

#[tokio::test]
async fn a_bound_token_tells_account_pod_and_node_whatever_its_algorithm() {
    let (bench, keys) =
        (start(&set(), Some("https://kubernetes.default.svc.cluster.local")).unwrap(), issuer());
    for (id, algorithm, key) in [
        ("rsa", Algorithm::RS256, &keys.rsa),
        ("any-rsa", Algorithm::RS512, &keys.rsa),
        ("any-rsa", Algorithm::PS256, &keys.rsa),
        ("p256", Algorithm::ES256, &keys.p256),
        ("p384", Algorithm::ES384, &keys.p384),
        ("ed", Algorithm::EdDSA, &keys.ed),
    ] {
        let token = sign(Some(id), algorithm, key, &claims());
        assert_eq!(judge(&bench, &token), Ok(node_proxy(Some("node-1"))), "{id}");
    }
}

#[tokio::test]
async fn a_token_that_another_program_signed_is_accepted() {
    let bench = start(&set(), None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let message = format!("{}.{}", encoded(&json!({"alg": "RS256", "kid": "rsa"})), encoded(&claims()));
    fs::write(folder.path().join("key.pem"), &issuer().rsa_pem).unwrap();
    fs::write(folder.path().join("message"), &message).unwrap();
    let signing = Command::new("openssl")
        .args(["dgst", "-sha256", "-sign", "key.pem", "message"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(signing.stdout));
    assert_eq!(judge(&bench, &token), Ok(node_proxy(Some("node-1"))));
}

#[tokio::test]
async fn the_node_of_a_token_without_one_is_that_of_its_pod() {
    let bench = start(&set(), None).unwrap();
    let mut claims = claims();
    claims["kubernetes.io"].as_object_mut().unwrap().remove("node");
    let token = rs256(&claims);
    assert_eq!(judge(&bench, &token), Ok(node_proxy(None)));
    let nodes = |namespace: &str, pod: &str| {
        ((namespace, pod) == ("istio-system", "proxy-x")).then(|| Arc::from("node-7"))
    };
    let Bench { authenticator, folder } = bench;
    let bench = Bench { authenticator: authenticator.with_nodes(Arc::new(nodes)), folder };
    assert_eq!(judge(&bench, &token), Ok(node_proxy(Some("node-7"))));
    assert_eq!(judge(&bench, &rs256(&self::claims())), Ok(node_proxy(Some("node-1"))));
    claims["kubernetes.io"]["pod"]["name"] = "stranger".into();
    assert_eq!(judge(&bench, &rs256(&claims)).unwrap().node, None);
    // A token that is bound to nothing is its account's.
    assert_eq!(judge(&bench, &rs256(&without("kubernetes.io"))), Ok(caller("istio-system/ztunnel", None)));
}

#[tokio::test]
async fn claims_that_do_not_hold_are_refused_each_by_its_reason() {
    let bench = start(&set(), Some("https://kubernetes.default.svc.cluster.local")).unwrap();
    for (claims, expected) in [
        (with("/exp", json!(NOW_S - 60)), AuthError::Expired),
        (with("/exp", json!(0)), AuthError::Expired),
        (with("/exp", json!(-1e300)), AuthError::Expired),
        (with("/exp", json!("tomorrow")), AuthError::Claims),
        (without("exp"), AuthError::Claims),
        (with("/nbf", json!(NOW_S + 61)), AuthError::Early),
        (with("/nbf", json!("today")), AuthError::Claims),
        (with("/aud", json!(["api"])), AuthError::Audience),
        (with("/aud", json!("api")), AuthError::Audience),
        (with("/aud", json!([])), AuthError::Audience),
        (with("/aud", json!(7)), AuthError::Claims),
        (without("aud"), AuthError::Audience),
        (with("/iss", json!("https://other")), AuthError::Issuer),
        (without("iss"), AuthError::Issuer),
        (without("sub"), AuthError::Claims),
        (with("/sub", json!("system:node:node-1")), AuthError::Claims),
        (with("/sub", json!("system:serviceaccount:istio-system")), AuthError::Claims),
        (with("/sub", json!("system:serviceaccount:istio-system:other")), AuthError::Claims),
        (with("/sub", json!("system:serviceaccount:other:ztunnel")), AuthError::Claims),
        (with("/sub", json!("system:serviceaccount:istio-system:ztunnel:x")), AuthError::Claims),
        (with("/kubernetes.io/node/name", json!("a/b")), AuthError::Claims),
        (with("/kubernetes.io/node/name", json!("")), AuthError::Claims),
        (with("/kubernetes.io/pod/name", json!(7)), AuthError::Claims),
        (with("/kubernetes.io/serviceaccount/name", json!("other")), AuthError::Claims),
        (with("/kubernetes.io", json!({})), AuthError::Claims),
        (json!([]), AuthError::Claims),
        (json!("text"), AuthError::Claims),
    ] {
        assert_eq!(judge(&bench, &rs256(&claims)), Err(expected), "{claims}");
    }
    for claims in [
        with("/exp", json!(NOW_S - 59)),
        with("/exp", json!(NOW_S as f64 + 0.5)),
        with("/nbf", json!(NOW_S + 60)),
        with("/aud", json!("istio-ca")),
        with("/aud", json!(["api", "istio-ca"])),
        without("nbf"),
    ] {
        assert!(judge(&bench, &rs256(&claims)).is_ok(), "{claims}");
    }
}

#[tokio::test]
async fn a_signature_counts_only_with_its_own_key_and_algorithm() {
    let (bench, keys) = (start(&set(), None).unwrap(), issuer());
    let shared = EncodingKey::from_secret(b"secret");
    let public = EncodingKey::from_secret(keys.rsa_pem.as_bytes());
    for (id, algorithm, key, expected) in [
        (None, Algorithm::RS256, &keys.rsa, AuthError::Key),
        (Some(""), Algorithm::RS256, &keys.rsa, AuthError::Key),
        (Some("other"), Algorithm::RS256, &keys.rsa, AuthError::Key),
        // Keys that are in the set and verify nothing.
        (Some("shared"), Algorithm::HS256, &shared, AuthError::Key),
        (Some("enc"), Algorithm::RS256, &keys.rsa, AuthError::Key),
        (Some("ops"), Algorithm::RS256, &keys.rsa, AuthError::Key),
        (Some("small"), Algorithm::RS256, &keys.rsa, AuthError::Key),
        // A key's type and `alg` decide, not the token.
        (Some("rsa"), Algorithm::HS256, &public, AuthError::Algorithm),
        (Some("any-rsa"), Algorithm::HS256, &public, AuthError::Algorithm),
        (Some("p256"), Algorithm::HS256, &public, AuthError::Algorithm),
        (Some("rsa"), Algorithm::RS512, &keys.rsa, AuthError::Algorithm),
        (Some("rsa"), Algorithm::PS256, &keys.rsa, AuthError::Algorithm),
        (Some("p256"), Algorithm::RS256, &keys.rsa, AuthError::Algorithm),
        (Some("p384"), Algorithm::ES256, &keys.p256, AuthError::Algorithm),
        // Another's signature.
        (Some("any-rsa"), Algorithm::RS256, &keys.other, AuthError::Signature),
    ] {
        let token = sign(id, algorithm, key, &claims());
        assert_eq!(judge(&bench, &token), Err(expected), "{id:?} {algorithm:?}");
    }
}

#[tokio::test]
async fn what_is_no_signed_token_is_refused() {
    let bench = start(&set(), None).unwrap();
    let good = rs256(&claims());
    let [head, body, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!("{good}") };
    let header = |value: Value| format!("{}.{body}.{signature}", encoded(&value));
    let other = encoded(&with("/sub", json!("system:serviceaccount:kube-system:admin")));
    for (token, expected) in [
        (header(json!({"alg": "none", "kid": "rsa"})), AuthError::Malformed),
        (format!("{}.{body}.", encoded(&json!({"alg": "none", "kid": "rsa"}))), AuthError::Malformed),
        (header(json!({"alg": "NONE", "kid": "rsa"})), AuthError::Malformed),
        (header(json!({"kid": "rsa"})), AuthError::Malformed),
        (header(json!({"alg": "RS256", "kid": "rsa", "crit": ["exp"]})), AuthError::Critical),
        (header(json!({"alg": "RS256", "kid": "rsa", "typ": "x"})), AuthError::Signature),
        (format!("{head}.{body}."), AuthError::Signature),
        (format!("{head}.{body}"), AuthError::Malformed),
        (format!("{head}.{other}.{signature}"), AuthError::Signature),
        (format!("{head}.{body}.{signature}.x"), AuthError::Malformed),
        (format!("{head}.{body}.!{signature}"), AuthError::Malformed),
        (format!("{body}.{body}.{signature}"), AuthError::Malformed),
        ("a.b.c".into(), AuthError::Malformed),
        ("rubbish".into(), AuthError::Malformed),
        ("..".into(), AuthError::Malformed),
    ] {
        assert_eq!(judge(&bench, &token), Err(expected), "{token:.60}");
    }
    assert!(judge(&bench, &good).is_ok());
}

#[tokio::test]
async fn a_set_without_a_key_that_verifies_is_refused_and_one_that_changes_is_followed() {
    let (mut all, keys) = (set(), issuer());
    let usable = ["rsa", "any-rsa", "p256", "p384", "ed"];
    all["keys"].as_array_mut().unwrap().retain(|key| !usable.contains(&key["kid"].as_str().unwrap()));
    let mut nameless = jwk(&keys.rsa, Algorithm::RS256, "x", &json!({}));
    nameless.as_object_mut().unwrap().remove("kid");
    for wrong in [all, json!({"keys": []}), json!({"keys": [nameless]}), json!({}), json!([]), json!("x")] {
        let Err(error) = start(&wrong, None) else { panic!("{wrong} was accepted") };
        assert!(matches!(error, CredentialsError::KeySet { .. }), "{error}");
    }

    let only = |id| json!({"keys": [jwk(&keys.rsa, Algorithm::RS256, id, &json!({}))]});
    let bench = start(&only("one"), None).unwrap();
    let path = bench.folder.path().join("jwks.json");
    let token = |id| sign(Some(id), Algorithm::RS256, &keys.rsa, &claims());
    assert!(judge(&bench, &token("one")).is_ok());
    replace(&path, &only("two").to_string());
    until(|| judge(&bench, &token("two")).is_ok()).await;
    assert_eq!(judge(&bench, &token("one")), Err(AuthError::Key));
    fs::remove_file(&path).unwrap();
    until(|| bench.authenticator.problem().is_some()).await;
    assert!(judge(&bench, &token("two")).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_token_makes_the_authenticator_panic_or_repeat_it(
        text in "[!-~]{1,300}",
        parts in prop::array::uniform3("[A-Za-z0-9_-]{8,60}"),
        flip in any::<prop::sample::Index>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let bench = start(&set(), None).unwrap();
            let header = encoded(&json!({"alg": "RS256", "kid": "rsa"}));
            let [one, two, three] = parts;
            let mut changed = rs256(&claims()).into_bytes();
            let at = flip.index(changed.len());
            changed[at] ^= 1;
            for token in [text, format!("{one}.{two}.{three}"), format!("{header}.{two}.{three}")] {
                assert!(judge(&bench, &token).is_err());
            }
            // The last character may hold bits that mean nothing.
            if at + 1 < changed.len() {
                let changed = String::from_utf8(changed).unwrap();
                assert!(judge(&bench, &changed).is_err(), "accepted with character {at} changed");
            }
        });
    }
}
