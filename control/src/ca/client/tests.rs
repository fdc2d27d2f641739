use std::path::PathBuf;

use prost::Message;
use rcgen::CertificateSigningRequestParams;
use tempfile::TempDir;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::ParsedExtension;

use super::*;
use crate::grpc::{Roots, Token};
use crate::testing::DEADLINE;
use crate::testing::authority::{Answer, TestAuthority, TestRoot, later};

fn identity() -> Identity {
    Identity::new("cluster.local", "shop", "cart")
}

/// A server, the roots and the token that its clients are given, and the root of its workloads.
struct Bench {
    folder: TempDir,
    server_root: TestRoot,
    workload_root: Arc<TestRoot>,
    server: TestAuthority,
}

impl Bench {
    async fn start(names: &[&str], end: SystemTime) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (server_root, workload_root) = (TestRoot::new("server"), Arc::new(TestRoot::new("workload")));
        std::fs::write(folder.path().join("root.pem"), &server_root.pem).unwrap();
        std::fs::write(folder.path().join("token"), "first\n").unwrap();
        let server = TestAuthority::start(server_root.server(names, end), good(&workload_root)).await;
        Self { folder, server_root, workload_root, server }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn config(&self) -> UpstreamConfig {
        UpstreamConfig {
            address: format!("https://localhost:{}", self.server.address.port()),
            roots: Roots::File(self.file("root.pem")),
            alt_hostname: None,
            token: Token::File(self.file("token")),
            client_certificate: None,
            cluster: "one".into(),
            headers: vec![("X-Extra".into(), "more".into())],
        }
    }

    fn client(&self) -> RemoteCa {
        RemoteCa::new(Upstream::new(self.config()), DEADLINE)
    }
}

fn good(root: &Arc<TestRoot>) -> Arc<Answer> {
    let root = root.clone();
    Arc::new(move |request| Some(Ok(vec![root.sign(&request.csr, |_| ()), root.pem.clone()])))
}

/// An answer whose leaf the test changes.
fn changed(
    root: &Arc<TestRoot>,
    change: impl Fn(&mut CertificateSigningRequestParams) + Send + Sync + 'static,
) -> Arc<Answer> {
    let root = root.clone();
    Arc::new(move |request| Some(Ok(vec![root.sign(&request.csr, &change), root.pem.clone()])))
}

async fn issue(client: &RemoteCa) -> Result<Certificate, CaError> {
    client.issue(identity(), Duration::from_secs(86_400), SystemTime::now()).await
}

async fn error(client: &RemoteCa) -> String {
    issue(client).await.unwrap_err().to_string()
}

/// The serial number, key and roots are those of the answer, and the key is of the leaf.
#[tokio::test]
async fn a_certificate_is_for_a_key_that_the_authority_never_saw() {
    let bench = Bench::start(&["localhost"], later()).await;
    let client = bench.client();
    let (one, two) = (issue(&client).await.unwrap(), issue(&client).await.unwrap());
    assert_eq!(one.identity, identity());
    assert_ne!(one.key.pkcs8_der(), two.key.pkcs8_der());
    let key = KeyPair::try_from(one.key.pkcs8_der()).unwrap();
    let (_, leaf) = X509Certificate::from_der(&one.chain[0]).unwrap();
    assert_eq!(&*leaf.public_key().subject_public_key.data, key.public_key_raw());
    assert_eq!((one.chain.len(), one.roots.len()), (1, 1));
    assert_eq!(one.serial, leaf.raw_serial());
    assert_eq!(bench.server.connections(), 1, "the calls share a connection");
}

#[tokio::test]
async fn a_request_names_the_identity_in_one_critical_san_and_as_impersonated() {
    let bench = Bench::start(&["localhost"], later()).await;
    issue(&bench.client()).await.unwrap();
    let [call] = &bench.server.calls()[..] else { panic!("one call") };
    assert_eq!(call.message.validity_duration, 86_400);
    let asked = &call.message.metadata.as_ref().unwrap().fields["ImpersonatedIdentity"];
    assert_eq!(asked.kind, Some(Kind::StringValue("spiffe://cluster.local/ns/shop/sa/cart".into())));
    let header = |name: &str| call.headers.get(name).unwrap().to_str().unwrap().to_owned();
    assert_eq!(header("authorization"), "Bearer first");
    assert_eq!((header("clusterid"), header("x-extra")), ("one".into(), "more".into()));
    let (_, pem) = x509_parser::pem::parse_x509_pem(call.message.csr.as_bytes()).unwrap();
    assert_eq!(pem.label, "CERTIFICATE REQUEST");
    let (_, csr) = X509CertificationRequest::from_der(&pem.contents).unwrap();
    csr.verify_signature().unwrap();
    assert_eq!(csr.certification_request_info.subject.iter().count(), 0);
    let names = csr.requested_extensions().unwrap().find_map(|extension| match extension {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    let [GeneralName::URI(uri)] = names.unwrap()[..] else { panic!("{names:?}") };
    assert_eq!(uri, "spiffe://cluster.local/ns/shop/sa/cart");
    let san_critical = [0x06, 0x03, 0x55, 0x1d, 0x11, 0x01, 0x01, 0xff];
    assert!(pem.contents.windows(san_critical.len()).any(|window| window == san_critical));
}

/// The bytes were made by `protoc --encode` of the service's definitions.
#[test]
fn the_messages_are_those_of_the_services_definitions() {
    let hex = |text: &str| -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    };
    let csr = "-----BEGIN CERTIFICATE REQUEST-----\nMIH=\n-----END CERTIFICATE REQUEST-----\n";
    let asked = request(&identity(), csr.into(), Duration::from_secs(86_400));
    let golden = hex(concat!(
        "0a4b2d2d2d2d2d424547494e204345525449464943415445205245515545",
        "53542d2d2d2d2d0a4d49483d0a2d2d2d2d2d454e44204345525449464943",
        "41544520524551554553542d2d2d2d2d0a1880a30522420a400a14496d70",
        "6572736f6e617465644964656e7469747912281a267370696666653a2f2f",
        "636c75737465722e6c6f63616c2f6e732f73686f702f73612f63617274",
    ));
    assert_eq!(asked.encode_to_vec(), golden);
    let golden =
        hex(concat!("0a046c6561660a0c696e7465726d6564696174650a11726f6f74206f6e65", "0a726f6f742074776f",));
    let response = IstioCertificateResponse::decode(golden.as_slice()).unwrap();
    assert_eq!(response.cert_chain, ["leaf", "intermediate", "root one\nroot two"]);
}

#[tokio::test]
async fn the_middle_of_an_answer_is_the_chain_and_its_end_the_roots() {
    let bench = Bench::start(&["localhost"], later()).await;
    let (root, other) = (bench.workload_root.clone(), TestRoot::new("other"));
    bench.server.set_answer(Arc::new(move |request| {
        let roots = format!("{}\n{}", other.pem, root.pem);
        Some(Ok(vec![root.sign(&request.csr, |_| ()), other.pem.clone(), roots]))
    }));
    let issued = issue(&bench.client()).await.unwrap();
    assert_eq!((issued.chain.len(), issued.roots.len()), (2, 2));
    assert_eq!(issued.chain[1], issued.roots[0]);
}

#[tokio::test]
async fn each_wrong_answer_is_refused_with_its_own_words() {
    let bench = Bench::start(&["localhost"], later()).await;
    let (client, root) = (bench.client(), &bench.workload_root);
    let uri = |text: &str| SanType::URI(Ia5String::try_from(text).unwrap());
    let fixed = |texts: &[&str]| -> Arc<Answer> {
        let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
        Arc::new(move |_| Some(Ok(texts.clone())))
    };
    let past = |hours: u64| SystemTime::now() - Duration::from_secs(hours * 3600);
    let foreign = root.sign(&signing_request(&identity(), &KeyPair::generate().unwrap()).unwrap(), |_| ());
    let (one, two) = (uri("spiffe://cluster.local/ns/shop/sa/admin"), uri("https://cart.shop"));
    let cases: [(Arc<Answer>, &str); 9] = [
        (fixed(&[]), "it holds no certificate"),
        (fixed(&[&root.pem]), "it holds a certificate and no roots"),
        (fixed(&["leaf", &root.pem]), "part 0 of it is not PEM certificates"),
        (fixed(&[&root.pem, ""]), "part 1 of it is not PEM certificates"),
        (fixed(&[&foreign, &root.pem]), "another key than the one in the request"),
        (
            changed(root, move |csr| csr.params.subject_alt_names = vec![one.clone()]),
            "for spiffe://cluster.local/ns/shop/sa/admin, not spiffe://cluster.local/ns/shop/sa/cart",
        ),
        (changed(root, move |csr| csr.params.subject_alt_names = vec![two.clone()]), "no SPIFFE ID"),
        (
            changed(root, move |csr| {
                (csr.params.not_before, csr.params.not_after) = (past(2).into(), past(1).into());
            }),
            "expired 3600 s ago; compare the clocks",
        ),
        (
            changed(root, move |csr| csr.params.not_before = (later() + Duration::from_secs(60)).into()),
            "validity ends before it starts",
        ),
    ];
    for (answer, words) in cases {
        bench.server.set_answer(answer);
        let error = error(&client).await;
        assert!(error.contains(words), "{error:?} does not say {words:?}");
    }
}

#[tokio::test]
async fn a_refusal_is_told_with_the_authoritys_code_and_words() {
    let bench = Bench::start(&["localhost"], later()).await;
    bench.server.set_answer(Arc::new(|_| Some(Err(Status::permission_denied("no such pod")))));
    let refused = issue(&bench.client()).await.unwrap_err();
    assert!(
        matches!(&refused, CaError::Refused { code: 7, message, .. } if message == "no such pod"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_server_that_the_roots_do_not_vouch_for_is_not_trusted() {
    let bench = Bench::start(&["localhost"], later()).await;
    std::fs::write(bench.file("root.pem"), TestRoot::new("other").pem).unwrap();
    let error = error(&bench.client()).await;
    assert!(error.contains("not trusted: none of") && error.contains("root.pem vouches"), "{error}");
    assert_eq!(bench.server.connections(), 0);
}

#[tokio::test]
async fn a_server_whose_certificate_has_expired_is_not_trusted() {
    let bench = Bench::start(&["localhost"], SystemTime::now() - Duration::from_secs(60)).await;
    let error = error(&bench.client()).await;
    assert!(error.contains("not trusted: certificate expired"), "{error}");
}

#[tokio::test]
async fn a_server_may_go_by_the_alternative_host_name_and_by_no_third() {
    let bench = Bench::start(&["istiod.istio-system.svc"], later()).await;
    let client = |alt: Option<&str>| {
        let config = UpstreamConfig { alt_hostname: alt.map(Into::into), ..bench.config() };
        RemoteCa::new(Upstream::new(config), DEADLINE)
    };
    let wrong = error(&client(None)).await;
    assert!(wrong.contains("not trusted: certificate not valid for name \"localhost\""), "{wrong}");
    assert!(issue(&client(Some("istiod.istio-system.svc"))).await.is_ok());
    let wrong = error(&client(Some("istiod.other.svc"))).await;
    assert!(wrong.contains("nor for the alternative host name \"istiod.other.svc\""), "{wrong}");
    let other = Bench::start(&["localhost"], later()).await;
    let config = UpstreamConfig { alt_hostname: Some("x.y".into()), ..other.config() };
    assert!(issue(&RemoteCa::new(Upstream::new(config), DEADLINE)).await.is_ok());
}

#[tokio::test]
async fn the_token_is_read_again_for_every_call() {
    let bench = Bench::start(&["localhost"], later()).await;
    let client = bench.client();
    issue(&client).await.unwrap();
    std::fs::write(bench.file("token"), "second").unwrap();
    issue(&client).await.unwrap();
    let shown: Vec<_> =
        bench.server.calls().iter().map(|call| call.headers.get("authorization").unwrap().clone()).collect();
    assert_eq!(shown, ["Bearer first", "Bearer second"]);
    std::fs::write(bench.file("token"), " \n").unwrap();
    assert!(error(&client).await.contains("the file is empty"));
    std::fs::remove_file(bench.file("token")).unwrap();
    assert!(error(&client).await.contains("No such file"));
    assert_eq!(bench.server.calls().len(), 2, "a call without its token is not made");
}

#[tokio::test]
async fn changed_roots_are_used_for_the_next_call_and_bad_ones_leave_the_connection() {
    let bench = Bench::start(&["localhost"], later()).await;
    let (client, next) = (bench.client(), TestRoot::new("next"));
    let roots = bench.file("root.pem");
    issue(&client).await.unwrap();
    for bad in [next.pem.as_str(), "rubbish", ""] {
        std::fs::write(&roots, bad).unwrap();
        issue(&client).await.unwrap();
        issue(&client).await.unwrap();
    }
    assert_eq!(bench.server.connections(), 1);
    bench.server.set_tls(next.server(&["localhost"], later()));
    std::fs::write(&roots, format!("{}{}", bench.server_root.pem, next.pem)).unwrap();
    issue(&client).await.unwrap();
    assert_eq!(bench.server.connections(), 2);
    issue(&client).await.unwrap();
    assert_eq!(bench.server.connections(), 2);
}

#[tokio::test]
async fn a_server_that_is_gone_is_told_and_found_again_when_it_is_back() {
    let bench = Bench::start(&["localhost"], later()).await;
    let client = bench.client();
    issue(&client).await.unwrap();
    let (address, tls) = (bench.server.address, bench.server_root.server(&["localhost"], later()));
    let answer = good(&bench.workload_root);
    let Bench { server, folder: _folder, .. } = bench;
    drop(server);
    let gone = async {
        // The first call may meet the connection before its end is known.
        while !matches!(issue(&client).await, Err(CaError::Upstream(UpstreamError::Unreachable { .. }))) {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, gone).await.unwrap();
    let words = error(&client).await;
    assert!(words.contains("cannot be reached: ") && words.contains("Connection refused"), "{words}");
    let _server = TestAuthority::start_at(address, tls, answer).await;
    issue(&client).await.unwrap();
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up_on() {
    let bench = Bench::start(&["localhost"], later()).await;
    bench.server.set_answer(Arc::new(|_| None));
    let client = RemoteCa::new(Upstream::new(bench.config()), Duration::from_millis(200));
    assert!(error(&client).await.ends_with("did not answer within 0.2 s"));
    assert_eq!((bench.server.calls().len(), bench.server.connections()), (1, 1));
    bench.server.set_answer(good(&bench.workload_root));
    issue(&RemoteCa { answer_max: DEADLINE, ..client }).await.unwrap();
    assert_eq!(bench.server.connections(), 2, "a connection that went silent was used again");
}

#[tokio::test]
async fn a_server_that_cannot_answer_does_not_get_the_next_call_over_the_same_connection() {
    let bench = Bench::start(&["localhost"], later()).await;
    let client = bench.client();
    let answers: [(fn() -> Status, usize); 4] = [
        (|| Status::unavailable("not ready"), 2),
        (|| Status::internal("x"), 3),
        (|| Status::unknown("x"), 4),
        (|| Status::permission_denied("no such pod"), 4),
    ];
    for (answer, connections) in answers {
        bench.server.set_answer(Arc::new(move |_| Some(Err(answer()))));
        assert!(matches!(issue(&client).await, Err(CaError::Refused { .. })));
        bench.server.set_answer(good(&bench.workload_root));
        issue(&client).await.unwrap();
        assert_eq!(bench.server.connections(), connections);
    }
}

#[tokio::test]
async fn calls_that_wait_together_make_one_connection() {
    let bench = Bench::start(&["localhost"], later()).await;
    let client = bench.client();
    let (a, b, c) = tokio::join!(issue(&client), issue(&client), issue(&client));
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    assert_eq!(bench.server.connections(), 1);
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_a_server_that_wants_one() {
    let bench = Bench::start(&["localhost"], later()).await;
    let clients = TestRoot::new("clients");
    bench.server.set_tls(bench.server_root.server_of_clients(&["localhost"], &clients));
    let wrong = error(&bench.client()).await;
    assert!(wrong.contains("CertificateRequired"), "{wrong}");
    let (certificate, key) = clients.client();
    let paths = (bench.file("client.pem"), bench.file("client.key"));
    std::fs::write(&paths.0, certificate).unwrap();
    std::fs::write(&paths.1, key).unwrap();
    let config = UpstreamConfig { client_certificate: Some(paths), ..bench.config() };
    issue(&RemoteCa::new(Upstream::new(config), DEADLINE)).await.unwrap();
}
