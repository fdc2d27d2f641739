use super::*;

fn config() -> UpstreamConfig {
    UpstreamConfig {
        address: "https://localhost:15012".into(),
        roots: Roots::Inline(String::new()),
        alt_hostname: None,
        token: Token::Literal(Secret::new("tell nobody".into())),
        client_certificate: None,
        cluster: String::new(),
        headers: vec![("x-key".into(), "nor this".into())],
    }
}

#[test]
fn what_must_not_be_seen_is_not_printed() {
    let upstream = Upstream::new(config());
    let mut metadata = MetadataMap::new();
    upstream.authorize(&mut metadata).unwrap();
    assert_eq!(metadata.get("authorization").unwrap(), "Bearer tell nobody");
    assert_eq!(metadata.get("x-key").unwrap(), "nor this");
    assert!(metadata.get("clusterid").is_none(), "a cluster without a name was named");
    for text in [format!("{upstream:?}"), format!("{metadata:?}"), upstream.config.token.to_string()] {
        assert!(!text.contains("tell nobody") && !text.contains("nor this"), "{text}");
    }
}

#[test]
fn what_a_header_cannot_carry_is_refused_by_name() {
    let token = UpstreamConfig { token: Token::Literal(Secret::new("a\nb".into())), ..config() };
    let name = UpstreamConfig { headers: vec![("a b".into(), "c".into())], ..config() };
    let value = UpstreamConfig { headers: vec![("x-key".into(), "a\nb".into())], ..config() };
    for (config, words) in [(token, "token: set: "), (name, "\"a b\""), (value, "\"x-key\"")] {
        let error = Upstream::new(config).authorize(&mut MetadataMap::new()).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

async fn refused(config: UpstreamConfig) -> String {
    Upstream::new(config).channel().await.unwrap_err().to_string()
}

#[tokio::test]
async fn whatever_is_not_usable_is_told_by_its_place() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_owned();
    let root = crate::testing::authority::TestRoot::new("root").pem;
    let client = |path: &PathBuf| UpstreamConfig {
        roots: Roots::Inline(root.clone()),
        client_certificate: Some((path.clone(), path.clone())),
        ..config()
    };
    let shown = path.display();
    for (config, words) in [
        (config(), "roots of trust: the inline roots: no PEM certificate in it".to_owned()),
        (
            UpstreamConfig { roots: Roots::File(path.clone()), ..config() },
            format!("{shown}: no PEM certificate"),
        ),
        (
            UpstreamConfig { roots: Roots::File("/no/root".into()), ..config() },
            "/no/root: No such file".into(),
        ),
        (UpstreamConfig { address: "http://".into(), ..config() }, "\"http://\" is not an address".into()),
        (
            UpstreamConfig { address: "http://127.0.0.1:1".into(), ..config() },
            "127.0.0.1:1: Connection refused".into(),
        ),
        (client(&path), format!("client certificate: {shown}: no PEM certificate")),
        (client(&"/no/key".into()), "client certificate: /no/key: No such file".into()),
    ] {
        let error = refused(config).await;
        assert!(error.contains(&words), "{error:?} does not say {words:?}");
    }
}

#[test]
fn the_systems_roots_are_used_or_their_absence_is_told() {
    let config = UpstreamConfig { roots: Roots::System, ..config() };
    match Materials::read(&config) {
        Ok(materials) => drop(materials.unwrap().client_config(&config).unwrap()),
        Err(error) => assert!(error.to_string().contains("none of /etc/ssl/certs/ca-certificates.crt, ")),
    }
}
