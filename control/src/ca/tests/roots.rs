use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).unwrap();
}

/// Later than a writer could still be at a file.
fn later() -> SystemTime {
    now() + Duration::from_secs(1)
}

#[test]
fn a_key_that_others_can_read_is_refused_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("root-key.pem");
    EmbeddedCa::in_directory(folder.path(), "td", now()).unwrap();
    for mode in [0o640, 0o604, 0o644, 0o620, 0o666] {
        std::fs::set_permissions(&key, PermissionsExt::from_mode(mode)).unwrap();
        let error = EmbeddedCa::in_directory(folder.path(), "td", now()).unwrap_err().to_string();
        let remedy = format!("chmod 600 {}", key.display());
        assert!(error.contains(&format!("mode {mode:04o}")) && error.ends_with(&remedy), "{error}");
    }
    for mode in [0o400, 0o600] {
        std::fs::set_permissions(&key, PermissionsExt::from_mode(mode)).unwrap();
        EmbeddedCa::in_directory(folder.path(), "td", now()).unwrap();
    }
}

#[test]
fn a_root_that_is_there_is_loaded_from_where_nothing_can_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let made = EmbeddedCa::in_directory(folder.path(), "td", now()).unwrap();
    // No lock can be taken here, whoever runs this.
    std::fs::remove_file(folder.path().join(".lock")).unwrap();
    std::fs::create_dir(folder.path().join(".lock")).unwrap();
    let loaded = EmbeddedCa::in_directory(folder.path(), "td", now()).unwrap();
    assert_eq!(loaded.root_der(), made.root_der());
}

#[test]
fn extra_roots_are_in_every_answer_and_follow_their_file() {
    let folder = tempfile::tempdir().unwrap();
    let other = |name| EmbeddedCa::in_memory(name, now()).unwrap();
    let (old, new) = (other("old"), other("new"));
    write(folder.path(), "extra-roots.pem", &old.root_pem());
    let ca = EmbeddedCa::in_directory(folder.path(), "td", now()).unwrap();
    let roots = |at| {
        let issued = ca.sign_request(&request(), &identity(), HOUR, at).unwrap();
        let told = root::certificates(issued.chain_pem.last().unwrap().as_bytes()).unwrap();
        assert_eq!(ca.sign(identity(), HOUR, at).unwrap().roots, told);
        told
    };
    assert_eq!(roots(later()), [ca.root_der(), old.root_der()]);
    // The own root is not told twice, nor another.
    write(folder.path(), "extra-roots.pem", &(pem(ca.root_der()) + &new.root_pem() + &new.root_pem()));
    assert_eq!(roots(later()), [ca.root_der(), new.root_der()]);
    for wrong in ["rubbish\n", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        write(folder.path(), "extra-roots.pem", wrong);
        assert_eq!(roots(later()), [ca.root_der(), new.root_der()]);
        let error = EmbeddedCa::in_directory(folder.path(), "td", now()).unwrap_err().to_string();
        assert!(error.contains("extra-roots.pem: "), "{error}");
    }
    std::fs::remove_file(folder.path().join("extra-roots.pem")).unwrap();
    assert_eq!(roots(later()), [ca.root_der()]);
    assert_eq!(root::certificates(ca.root_pem().as_bytes()).unwrap(), [ca.root_der()]);
}

#[test]
fn an_extra_root_that_has_ended_is_not_told() {
    let folder = tempfile::tempdir().unwrap();
    let start = now();
    let old = EmbeddedCa::in_memory("old", start - HOUR * 24 * 365).unwrap();
    write(folder.path(), "extra-roots.pem", &old.root_pem());
    let ca = EmbeddedCa::in_directory(folder.path(), "td", start).unwrap();
    let count = |at| ca.sign(identity(), HOUR, at).unwrap().roots.len();
    assert_eq!((count(start), count(start + HOUR * 24 * 365 * 9 + HOUR * 24 * 30)), (2, 1));
}

#[test]
fn an_extra_root_that_is_no_authority_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let ca = EmbeddedCa::in_memory("td", now()).unwrap();
    let leaf = ca.sign(identity(), HOUR, now()).unwrap();
    write(folder.path(), "extra-roots.pem", &pem(&leaf.chain[0]));
    let error = EmbeddedCa::in_directory(folder.path(), "td", now()).unwrap_err().to_string();
    assert!(error.ends_with("not the certificate of an authority"), "{error}");
}

#[test]
fn a_file_that_may_be_half_written_is_read_a_moment_later() {
    let folder = tempfile::tempdir().unwrap();
    let ca = EmbeddedCa::in_directory(folder.path(), "td", now()).unwrap();
    write(folder.path(), "extra-roots.pem", &EmbeddedCa::in_memory("new", now()).unwrap().root_pem());
    let written = std::fs::metadata(folder.path().join("extra-roots.pem")).unwrap().modified().unwrap();
    let count = |at| ca.sign(identity(), HOUR, at).unwrap().roots.len();
    assert_eq!((count(written), count(written + Duration::from_millis(100))), (1, 2));
}

/// Makes a root, and below it an authority that its key's form is given for, as other tools write them.
fn foreign_authority(folder: &Path, key: &str, constraints: &str) {
    let ca = "-addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign";
    openssl(
        folder,
        &format!(
            "req -x509 -newkey rsa:2048 -nodes -days 30 -keyout top-key.pem -out top.pem -subj /C=XX/O=Top/CN=top {ca}"
        ),
    );
    openssl(
        folder,
        &format!(
            "req -new -newkey {key} -nodes -keyout root-key.pem -out ca.csr -subj /DC=example/O=Mesh/CN=mesh"
        ),
    );
    let extensions = format!("{constraints}\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n");
    write(folder, "extensions", &extensions);
    let sign = "x509 -req -in ca.csr -CA top.pem -CAkey top-key.pem -CAcreateserial -days 20 -extfile extensions -out ca.pem";
    openssl(folder, sign);
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    write(folder, "root-cert.pem", &(read("ca.pem") + &read("top.pem")));
    std::fs::set_permissions(folder.join("root-key.pem"), PermissionsExt::from_mode(0o600)).unwrap();
}

const AUTHORITY: &str =
    "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,digitalSignature,keyCertSign";

#[test]
fn an_authority_below_a_foreign_root_issues_chains_that_openssl_verifies() {
    for key in ["rsa:2048", "ec -pkeyopt ec_paramgen_curve:P-384", "ed25519"] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        foreign_authority(folder, key, AUTHORITY);
        let ca = EmbeddedCa::in_directory(folder, "cluster.local", now()).unwrap();
        let issued = ca.sign_request(&request(), &identity(), HOUR, now()).unwrap();
        let [leaf, between, roots] = &issued.chain_pem[..] else { panic!("{:?}", issued.chain_pem) };
        assert_eq!(der(roots), der(&std::fs::read_to_string(folder.join("top.pem")).unwrap()));
        write(folder, "leaf.pem", leaf);
        write(folder, "between.pem", between);
        write(folder, "roots.pem", roots);
        openssl(
            folder,
            "verify -x509_strict -purpose sslclient -CAfile roots.pem -untrusted between.pem leaf.pem",
        );
        let own = ca.sign(identity(), HOUR, now()).unwrap();
        assert_eq!((own.chain.len(), own.roots), (2, vec![ca.root_der().to_vec()]));
        assert_eq!(ca.server_certificate(&["a".into()], HOUR, now()).unwrap().chain.len(), 2);
    }
}

#[test]
fn keys_in_the_older_forms_are_read() {
    for (make, convert) in [
        ("ec -pkeyopt ec_paramgen_curve:P-256", "ec -in root-key.pem -out old.pem"),
        ("rsa:2048", "rsa -traditional -in root-key.pem -out old.pem"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        foreign_authority(folder, make, AUTHORITY);
        openssl(folder, convert);
        let old = std::fs::read_to_string(folder.join("old.pem")).unwrap();
        assert!(old.contains("EC PRIVATE KEY") || old.contains("RSA PRIVATE KEY"));
        write(folder, "root-key.pem", &old);
        EmbeddedCa::in_directory(folder, "cluster.local", now()).unwrap();
    }
}

#[test]
fn a_chain_that_would_not_verify_is_refused() {
    let key = "ec -pkeyopt ec_paramgen_curve:P-256";
    let error = |folder: &Path| EmbeddedCa::in_directory(folder, "td", now()).unwrap_err().to_string();
    for (constraints, told) in [
        ("basicConstraints=critical,CA:FALSE", "not the certificate of an authority"),
        (
            "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,digitalSignature",
            "key usage does not let it",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        foreign_authority(folder.path(), key, constraints);
        assert!(error(folder.path()).contains(told), "{}", error(folder.path()));
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    foreign_authority(folder, key, AUTHORITY);
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let namesake = tempfile::tempdir().unwrap();
    foreign_authority(namesake.path(), key, AUTHORITY);
    let namesake = std::fs::read_to_string(namesake.path().join("top.pem")).unwrap();
    for (chain, told) in [
        (read("ca.pem") + &namesake, "each must be signed by the next"),
        (read("top.pem") + &read("ca.pem"), "its path length"),
        (read("top.pem"), "not the key of root-cert.pem"),
        (read("ca.pem").repeat(9), "more than 8"),
        ("rubbish".into(), "not a PEM certificate"),
    ] {
        write(folder, "root-cert.pem", &chain);
        assert!(error(folder).contains(told), "{told}: {}", error(folder));
    }
    // An authority alone is a root that is trusted for itself.
    write(folder, "root-cert.pem", &read("ca.pem"));
    let ca = EmbeddedCa::in_directory(folder, "td", now()).unwrap();
    assert_eq!(ca.root_der(), der(&read("ca.pem")));
}
