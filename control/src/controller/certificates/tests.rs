use std::fs;
use std::os::unix::fs::PermissionsExt;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use prost::Message;
use prost_types::Value;
use rcgen::{CertificateParams, KeyPair};
use tower::ServiceExt;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;

use super::*;
use crate::controller::auth::Credentials;

const TOKENS: &str = "\
- {token: node-token, serviceAccount: mesh/proxy, node: node-1}
- {token: lost-token, serviceAccount: mesh/proxy}
- {token: cart-token, serviceAccount: shop/cart, node: node-1}
";
const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const METHOD: &str = "http://halo/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// A request whose csr is `PEM`, for an hour, that impersonates [`CART`]. Made by another encoder.
const IMPERSONATING: &str = "0a0350454d18901c22420a400a14496d706572736f6e617465644964656e7469747912281a2673\
    70696666653a2f2f636c75737465722e6c6f63616c2f6e732f73686f702f73612f63617274";
/// The same with nothing but the csr.
const BARE: &str = "0a0350454d";
/// A duration of -1, and a number for the identity.
const NONSENSE: &str = "0a0350454d18ffffffffffffffffff0122230a210a14496d706572736f6e617465644964656e746974\
    791209110000000000001c40";
/// The chain `leaf`, `between`, `roots`.
const RESPONSE: &str = "0a046c6561660a076265747765656e0a05726f6f7473";

fn bytes(hex: &str) -> Vec<u8> {
    hex.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn metadata(name: &str, kind: Kind) -> Struct {
    Struct { fields: [(name.to_owned(), Value { kind: Some(kind) })].into() }
}

fn impersonating(identity: &str) -> Option<Struct> {
    Some(metadata(IMPERSONATED, Kind::StringValue(identity.into())))
}

fn csr() -> String {
    CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
}

fn request(validity_duration: i64, metadata: Option<Struct>) -> IstioCertificateRequest {
    IstioCertificateRequest { csr: csr(), validity_duration, metadata }
}

/// A service of the list [`TOKENS`] in which cart and till are on `node-1`, and bank is on `node-2`.
fn service() -> CertificateService {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.yaml");
    fs::write(&path, TOKENS).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    with_credentials(Credentials::Tokens(path))
}

fn with_credentials(credentials: Credentials) -> CertificateService {
    let authenticator = Authenticator::new(credentials).unwrap().with_peers_of("cluster.local".into());
    let runs = |node: &str, identity: &Identity| {
        let placed =
            [("node-1", CART), ("node-1", "spiffe://cluster.local/ns/shop/sa/till"), ("node-2", BANK)];
        placed.contains(&(node, &identity.to_string()))
    };
    let config = CertificateConfig {
        trust_domain: "cluster.local".into(),
        trusted_accounts: ["mesh/proxy".to_owned()].into(),
        ttl: Duration::from_secs(7200),
    };
    let authority = EmbeddedCa::in_memory("cluster.local", SystemTime::now()).unwrap();
    CertificateService::new(config, Arc::new(authenticator), authority, Arc::new(runs))
}

const BANK: &str = "spiffe://cluster.local/ns/bank/sa/vault";

/// Calls over HTTP, as the server does.
async fn call(
    service: &CertificateService,
    token: Option<&str>,
    message: &[u8],
) -> Result<IstioCertificateResponse, Status> {
    let mut framed = vec![0];
    framed.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    framed.extend(message);
    let body = tonic::body::Body::new(Full::new(Bytes::from(framed)));
    let mut request = http::Request::post(METHOD).header("content-type", "application/grpc");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(body).unwrap();
    let response = service.clone().into_server().oneshot(request).await.unwrap();
    if let Some(status) = Status::from_header_map(response.headers()) {
        return Err(status);
    }
    let body = response.into_body().collect().await.unwrap();
    let status = body.trailers().and_then(Status::from_header_map);
    let bytes = body.to_bytes();
    match status {
        Some(status) if status.code() != Code::Ok => Err(status),
        _ => Ok(IstioCertificateResponse::decode(&bytes[5..]).unwrap()),
    }
}

async fn ask(
    service: &CertificateService,
    token: &str,
    request: &IstioCertificateRequest,
) -> Result<IstioCertificateResponse, Status> {
    call(service, Some(token), &request.encode_to_vec()).await
}

/// The identity and the seconds of life of what was issued.
fn leaf(response: &IstioCertificateResponse) -> (String, i64) {
    let (_, pem) = parse_x509_pem(response.cert_chain[0].as_bytes()).unwrap();
    let leaf = pem.parse_x509().unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    let [GeneralName::URI(uri)] = names.value.general_names[..] else { panic!("{names:?}") };
    let validity = leaf.validity();
    (uri.to_owned(), validity.not_after.timestamp() - validity.not_before.timestamp() - 60)
}

#[test]
fn messages_are_those_of_another_encoder() {
    let cases = [
        (IMPERSONATING, 3600, impersonating(CART)),
        (BARE, 0, None),
        (NONSENSE, -1, Some(metadata(IMPERSONATED, Kind::NumberValue(7.0)))),
    ];
    for (hex, validity_duration, metadata) in cases {
        let message = IstioCertificateRequest { csr: "PEM".into(), validity_duration, metadata };
        assert_eq!(message.encode_to_vec(), bytes(hex));
        assert_eq!(IstioCertificateRequest::decode(&*bytes(hex)).unwrap(), message);
    }
    let chain = ["leaf", "between", "roots"].map(str::to_owned).to_vec();
    let message = IstioCertificateResponse { cert_chain: chain };
    assert_eq!(message.encode_to_vec(), bytes(RESPONSE));
    assert_eq!(IstioCertificateResponse::decode(&*bytes(RESPONSE)).unwrap(), message);
}

#[tokio::test]
async fn a_node_proxy_gets_a_certificate_for_what_runs_on_its_node() {
    let service = service();
    let response = ask(&service, "node-token", &request(3600, impersonating(CART))).await.unwrap();
    assert_eq!(leaf(&response), (CART.to_owned(), 3600));
    assert_eq!(response.cert_chain.len(), 2);
    assert_eq!(response.cert_chain[1], service.authority.root_pem());
    assert_eq!(service.counts(), CertificateCounts { issued: 1, refused: BTreeMap::new() });
}

#[tokio::test]
async fn a_caller_gets_its_own_identity_without_metadata() {
    let service = service();
    let others = Some(metadata("WorkloadName", Kind::StringValue("cart".into())));
    for metadata in [None, Some(Struct::default()), others] {
        let response = ask(&service, "cart-token", &request(0, metadata)).await.unwrap();
        assert_eq!(leaf(&response), (CART.to_owned(), 7200));
    }
}

#[tokio::test]
async fn a_life_is_as_long_as_is_asked_up_to_the_longest() {
    let service = service();
    for (asked, given) in [(0, 7200), (1, 1), (86_400, 86_400), (86_401, 86_400), (i64::MAX, 86_400)] {
        let response = ask(&service, "cart-token", &request(asked, None)).await.unwrap();
        assert_eq!(leaf(&response).1, given, "{asked}");
    }
}

#[tokio::test]
async fn every_refusal_has_its_status_and_its_label() {
    let service = service();
    let number = Some(metadata(IMPERSONATED, Kind::NumberValue(7.0)));
    let signer = Some(metadata(SIGNER, Kind::StringValue("other".into())));
    let cases = [
        ("wrong-token", 0, None, Code::Unauthenticated, "unknown", "not in the list"),
        ("node-token", 0, impersonating(BANK), Code::PermissionDenied, "not_on_node", "on node node-1"),
        (
            "node-token",
            0,
            impersonating("spiffe://other/ns/shop/sa/cart"),
            Code::PermissionDenied,
            "not_on_node",
            "spiffe://other/ns/shop/sa/cart",
        ),
        (
            "lost-token",
            0,
            impersonating(CART),
            Code::PermissionDenied,
            "node_unknown",
            "the node of mesh/proxy",
        ),
        (
            "cart-token",
            0,
            impersonating(CART),
            Code::PermissionDenied,
            "untrusted",
            "shop/cart is not a trusted",
        ),
        (
            "node-token",
            0,
            impersonating(""),
            Code::InvalidArgument,
            "identity",
            "metadata.ImpersonatedIdentity: ",
        ),
        ("node-token", 0, impersonating("shop/cart"), Code::InvalidArgument, "identity", "not of the form"),
        (
            "node-token",
            0,
            number,
            Code::InvalidArgument,
            "identity",
            "metadata.ImpersonatedIdentity: not a string",
        ),
        ("node-token", 0, signer, Code::InvalidArgument, "signer", "metadata.CertSigner: "),
        ("cart-token", -1, None, Code::InvalidArgument, "validity", "validity_duration: -1"),
    ];
    for (token, validity, metadata, code, label, told) in cases {
        let before = service.counts().refused.get(label).copied().unwrap_or(0);
        let status = ask(&service, token, &request(validity, metadata)).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(told) && !status.message().contains("-token"), "{status}");
        assert_eq!(service.counts().refused.get(label), Some(&(before + 1)), "{label}");
    }
    let message = request(0, None).encode_to_vec();
    let status = call(&service, None, &message).await.unwrap_err();
    assert_eq!((status.code(), service.counts().refused["missing"]), (Code::Unauthenticated, 1));
    // What another encoder made of nonsense, and of a request whose csr is none.
    let status = call(&service, Some("node-token"), &bytes(NONSENSE)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let status = call(&service, Some("node-token"), &bytes(IMPERSONATING)).await.unwrap_err();
    assert_eq!(status.message(), "csr: certificate signing request: not PEM of the type CERTIFICATE REQUEST");
    assert_eq!((status.code(), service.counts().refused["csr"]), (Code::InvalidArgument, 1));
    assert_eq!(service.counts().issued, 0);
}

#[tokio::test]
async fn without_credentials_identities_are_named_and_never_ones_own() {
    let service = with_credentials(Credentials::None);
    let response = call(&service, None, &request(0, impersonating(BANK)).encode_to_vec()).await.unwrap();
    assert_eq!(leaf(&response).0, BANK);
    let status = call(&service, None, &request(0, None).encode_to_vec()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
}

#[tokio::test]
async fn requests_beyond_the_limit_are_told_to_come_again() {
    let service = service();
    let turns = service.signing.clone().acquire_many_owned(SIGNING_MAX as u32).await.unwrap();
    let waiting = {
        let service = service.clone();
        tokio::spawn(async move { ask(&service, "cart-token", &request(0, None)).await })
    };
    while service.pending.available_permits() == PENDING_MAX {
        tokio::task::yield_now().await;
    }
    let rest = service.pending.clone().acquire_many_owned(PENDING_MAX as u32 - 1).await.unwrap();
    let status = ask(&service, "cart-token", &request(0, None)).await.unwrap_err();
    assert_eq!((status.code(), service.counts().refused["busy"]), (Code::Unavailable, 1));
    drop((turns, rest));
    assert_eq!(leaf(&waiting.await.unwrap().unwrap()).0, CART);
    assert_eq!(service.pending.available_permits(), PENDING_MAX);
}

#[tokio::test]
async fn a_message_that_is_too_long_is_not_read() {
    let service = service();
    let long = IstioCertificateRequest { csr: "x".repeat(MESSAGE_LEN_MAX), ..Default::default() };
    let status = ask(&service, "cart-token", &long).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_message_makes_the_service_panic_or_issue(
        message in prop::collection::vec(any::<u8>(), 0..300),
        text in ".{0,100}",
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let service = service();
            assert!(call(&service, Some("node-token"), &message).await.is_err());
            assert!(ask(&service, "node-token", &request(0, impersonating(&text))).await.is_err());
            assert_eq!(service.counts().issued, 0);
        });
    }
}

#[tokio::test]
async fn an_identity_that_would_break_a_line_is_refused_and_names_make_no_lines_of_their_own() {
    let service = service();
    for name in ["a\nb", "a b", "\u{1b}[31m", "ü"] {
        let identity = format!("spiffe://cluster.local/ns/shop/sa/{name}");
        let status = ask(&service, "node-token", &request(0, impersonating(&identity))).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(!status.message().contains(name), "{status}");
    }
    let refused = |name: &str| Refusal::NotOnNode {
        node: "node-1".into(),
        identity: Identity::new("cluster.local", "shop", name),
    };
    assert_eq!(refused("one").key(), refused("two").key());
}
