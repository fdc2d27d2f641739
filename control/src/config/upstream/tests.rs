use super::super::{Config, Overrides, PrintFormat, Variables};
use super::*;

type Pairs<'a> = &'a [(&'a str, &'a str)];

fn read(pairs: Pairs<'_>) -> Result<Config, ConfigError> {
    let resolv_conf = Some("nameserver 10.96.0.10".to_owned());
    read_beside(pairs, Files { resolv_conf, ..Files::default() })
}

fn read_beside(pairs: Pairs<'_>, files: Files) -> Result<Config, ConfigError> {
    let variables: Variables = pairs.iter().copied().collect();
    Config::read(&variables.with_files(files), &Overrides::default())
}

/// The addresses of the control plane and of the authority; `memory` or `dir` where there is none.
fn places(pairs: Pairs<'_>) -> (Option<String>, String) {
    let config = read(pairs).unwrap();
    let ca = match config.ca {
        CaSource::Memory => "memory".to_owned(),
        CaSource::Directory(_) => "dir".to_owned(),
        CaSource::Remote(ca) => ca.address,
    };
    (config.xds.map(|xds| xds.address), ca)
}

const KUBERNETES: (&str, &str) = ("KUBERNETES_SERVICE_HOST", "10.96.0.1");
const CANARY: (&str, &str) = ("PROXY_CONFIG", "discoveryAddress: istiod-canary.istio-system.svc:15012");
const CANARY_AT: &str = "https://istiod-canary.istio-system.svc:15012";

#[test]
fn where_the_mesh_and_certificates_come_from_follows_from_what_is_set() {
    let cases: &[(Pairs<'_>, Option<&str>, &str)] = &[
        (&[], None, "memory"),
        (&[KUBERNETES], Some(ISTIOD), ISTIOD),
        (&[KUBERNETES, CANARY], Some(CANARY_AT), CANARY_AT),
        (&[CANARY], Some(CANARY_AT), CANARY_AT),
        (&[CANARY, ("XDS_ADDRESS", "a:1")], Some("https://a:1"), CANARY_AT),
        (&[CANARY, ("XDS_ADDRESS", ""), ("CA_ADDRESS", "")], None, "memory"),
        (&[KUBERNETES, ("CA_ADDRESS", "http://[::1]:1")], Some(ISTIOD), "http://[::1]:1"),
        (&[KUBERNETES, ("CA_ADDRESS", "")], Some(ISTIOD), "memory"),
        (&[KUBERNETES, ("HALO_CA_DIR", "/ca")], Some(ISTIOD), "dir"),
        (&[KUBERNETES, ("HALO_CA_DIR", "/ca"), ("CA_ADDRESS", "")], Some(ISTIOD), "dir"),
        // A local source takes the place of what nobody asked for.
        (&[KUBERNETES, CANARY, ("LOCAL_XDS_PATH", "/mesh")], None, "memory"),
        (&[KUBERNETES, ("LOCAL_XDS", "x"), ("CA_ADDRESS", "a:1")], None, "https://a:1"),
        (&[("LOCAL_XDS", "x"), ("XDS_ADDRESS", "https://a:1/")], Some("https://a:1"), "memory"),
    ];
    for (pairs, xds, ca) in cases {
        assert_eq!(places(pairs), (xds.map(str::to_owned), (*ca).to_owned()), "{pairs:?}");
    }
}

#[test]
fn an_upstream_is_made_of_its_own_variables_and_the_shared_token() {
    let config = read(&[
        ("XDS_ADDRESS", "istiod:15012"),
        ("CA_ADDRESS", "ca:15012"),
        ("XDS_ROOT_CA", "SYSTEM"),
        ("ALT_XDS_HOSTNAME", "istiod.other.svc"),
        ("AUTH_TOKEN", "eyJ.hush.x"),
        ("XDS_HEADER_X-Tenant", "hush too"),
        ("CA_HEADER_b", "c"),
        ("CA_HEADER_a", "d"),
        ("HALO_XDS_CLIENT_CERT", "/cert"),
        ("HALO_XDS_CLIENT_KEY", "/key"),
        ("CLUSTER_ID", "one"),
        ("XDS_ON_DEMAND", "true"),
        ("CRL_PATH", "/crl"),
    ])
    .unwrap();
    let CaSource::Remote(ca) = &config.ca else { panic!("{:?}", config.ca) };
    let xds = config.xds.as_ref().unwrap();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(xds.roots, Roots::System);
    assert_eq!(ca.roots, Roots::File(ROOT.into()));
    assert_eq!((xds.alt_hostname.as_deref(), ca.alt_hostname.as_deref()), (Some("istiod.other.svc"), None));
    assert_eq!(xds.token, Token::Literal(Secret::new("eyJ.hush.x".into())));
    assert_eq!((&xds.token, &xds.cluster), (&ca.token, &ca.cluster));
    assert_eq!(xds.headers, [pair("x-tenant", "hush too")]);
    assert_eq!(ca.headers, [pair("a", "d"), pair("b", "c")]);
    assert_eq!(xds.client_certificate, Some(("/cert".into(), "/key".into())));
    assert_eq!(ca.client_certificate, None);
    assert!(config.xds_on_demand && config.crl_path == Some("/crl".into()));
    let printed = format!("{}{config:?}", config.print(PrintFormat::Yaml));
    assert!(printed.contains("x-tenant") && !printed.contains("hush"), "{printed}");
}

#[test]
fn a_token_is_a_path_a_text_or_the_one_that_kubernetes_mounts() {
    let token = |pairs: Pairs<'_>, token| {
        let pairs: Vec<_> = pairs.iter().copied().chain([("XDS_ADDRESS", "a:1")]).collect();
        read_beside(&pairs, Files { token, ..Files::default() }).unwrap().xds.unwrap().token
    };
    assert_eq!(token(&[], false), Token::None);
    assert_eq!(token(&[], true), Token::File(TOKEN.into()));
    assert_eq!(token(&[("AUTH_TOKEN", "/t")], true), Token::File("/t".into()));
    assert_eq!(token(&[("AUTH_TOKEN", "./t")], false), Token::File("./t".into()));
    assert_eq!(token(&[("AUTH_TOKEN", "ey")], true), Token::Literal(Secret::new("ey".into())));
}

#[test]
fn roots_are_a_file_or_pem() {
    assert_eq!(roots("./root.pem"), Ok(Roots::File("./root.pem".into())));
    let pem = crate::testing::authority::TestRoot::new("root").pem;
    assert_eq!(roots(&pem), Ok(Roots::Inline(pem.clone())));
    assert!(roots("-----BEGIN CERTIFICATE-----\nrubbish").is_err());
}

#[test]
fn a_wrong_variable_is_named_and_a_secret_is_not_told() {
    for (name, value, reason) in [
        ("XDS_ADDRESS", "ftp://a:1", "https://host:port"),
        ("XDS_ADDRESS", "https://", "https://host:port"),
        ("XDS_ADDRESS", "https://a b:1", "https://host:port"),
        ("XDS_ADDRESS", "https://user@a:1", "https://host:port"),
        ("CA_ADDRESS", "https://a:1/path", "https://host:port"),
        ("CA_ADDRESS", "a:99999", "https://host:port"),
        ("CA_ROOT_CA", "-----BEGIN CERTIFICATE-----", "PEM certificates, or SYSTEM"),
        ("ALT_CA_HOSTNAME", "a b", "host name"),
        ("XDS_ON_DEMAND", "yes", "true or false"),
        ("INSTANCE_IP", "node-1", "an IP address"),
        ("ISTIO_METAJSON_LABELS", "{", "expected JSON"),
        ("PROXY_CONFIG", "concurrency: many", "ProxyConfig"),
        ("HALO_XDS_CLIENT_CERT", "/c", "HALO_XDS_CLIENT_KEY is not set"),
        ("HALO_XDS_CLIENT_KEY", "/k", "HALO_XDS_CLIENT_CERT is not set"),
    ] {
        let error = read(&[(name, value)]).unwrap_err();
        assert_eq!((&*error.variable, error.value.as_str()), (name, value));
        assert!(error.reason.contains(reason), "{error}");
    }
    for name in ["XDS_HEADER_a b", "CA_HEADER_a-bin", "CA_HEADER_a"] {
        let error = read(&[(name, "secret\n")]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{name}=\"(not shown)\": ")), "{error}");
    }
    let error = read(&[("PROXY_CONFIG", "discoveryAddress: 'a b'")]).unwrap_err().to_string();
    assert!(error.starts_with("PROXY_CONFIG=\"a b\": discoveryAddress: expected"), "{error}");
    let files = Files { mesh_config: Some("[]".into()), ..Files::default() };
    let error = read_beside(&[], files).unwrap_err();
    assert_eq!(error.variable, "./etc/istio/config/mesh");
}

#[test]
fn two_authorities_are_one_too_many() {
    let error = read(&[("CA_ADDRESS", "a:1"), ("HALO_CA_DIR", "/ca")]).unwrap_err().to_string();
    assert!(
        error.starts_with("CA_ADDRESS=\"https://a:1\": HALO_CA_DIR (or --ca-dir) is set too, to /ca"),
        "{error}"
    );
}

#[test]
fn what_is_hardly_meant_is_warned_of() {
    let warnings = |pairs| read(pairs).unwrap().warnings();
    assert!(warnings(&[]).is_empty() && warnings(&[KUBERNETES]).is_empty());
    let [alone] = &warnings(&[KUBERNETES, ("CA_ADDRESS", "")])[..] else { panic!("one warning") };
    assert!(
        alone.contains("no other node trusts") && alone.contains("set CA_ADDRESS, or HALO_CA_DIR"),
        "{alone}"
    );
    let [plain] = &warnings(&[("CA_ADDRESS", "http://a:1"), ("AUTH_TOKEN", "x")])[..] else {
        panic!("one warning")
    };
    assert_eq!(plain, "the node's token goes to http://a:1 without encryption");
}

#[test]
fn metadata_is_merged_from_the_mesh_the_proxys_configuration_and_variables() {
    let mesh = concat!(
        "trustDomain: x\n",
        "defaultConfig:\n  concurrency: 3\n  statsPort: 1\n  tracing: {}\n",
        "  proxyMetadata: { ISTIO_META_A: mesh, B: mesh, C: mesh }\n",
    );
    let proxy = "{\"proxyMetadata\": {\"B\": \"proxy\", \"ISTIO_META_C\": \"proxy\"}, \"statsPort\": 2, \"proxyAdminPort\": 4}";
    let files = Files { mesh_config: Some(mesh.into()), ..Files::default() };
    let pairs = [
        ("PROXY_CONFIG", proxy),
        ("ISTIO_META_C", "variable"),
        ("ISTIO_METAJSON_L", "{\"a\": 1}"),
        ("NODE_NAME", "n"),
    ];
    let config = read_beside(&pairs, files.clone()).unwrap();
    let metadata: Vec<_> = config.facts.metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(metadata, [("A", "mesh"), ("B", "proxy"), ("C", "variable")]);
    assert_eq!(config.facts.json["L"], serde_json::json!({ "a": 1 }));
    assert_eq!(
        (config.facts.node_name.as_str(), config.facts.instance_ip.to_string()),
        ("n", "1.1.1.1".into())
    );
    assert_eq!((config.metrics.port(), config.admin.port(), config.shards.on(64)), (2, 4, 3));
    let wins =
        [("ZTUNNEL_WORKER_THREADS", "5"), ("HALO_ADMIN_ADDR", "[::1]:9"), ("HALO_METRICS_ADDR", "[::1]:8")];
    let config = read_beside(&wins, files).unwrap();
    assert_eq!((config.metrics.port(), config.admin.port(), config.shards.on(64)), (8, 9, 5));
    let zero = read(&[("PROXY_CONFIG", "concurrency: 0")]).unwrap();
    assert_eq!(zero.shards.on(8), 8);
}
