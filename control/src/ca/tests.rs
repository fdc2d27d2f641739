mod issue;
mod roots;

use std::os::unix::fs::PermissionsExt;

use rcgen::CertificateParams;
use x509_parser::extensions::GeneralName;

use super::*;

fn now() -> SystemTime {
    SystemTime::now()
}

fn identity() -> Identity {
    Identity::new("cluster.local", "shop", "cart")
}

#[test]
fn a_leaf_is_a_svid_of_its_root() {
    let (ca, now) = (EmbeddedCa::in_memory("cluster.local", now()).unwrap(), now());
    let issued = ca.sign(identity(), Duration::from_secs(3600), now).unwrap();
    let (_, root) = X509Certificate::from_der(ca.root_der()).unwrap();
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
    leaf.verify_signature(Some(root.public_key())).unwrap();
    root.verify_signature(None).unwrap();
    assert!(root.is_ca() && !leaf.is_ca());
    assert_eq!(leaf.issuer(), root.subject());
    assert_eq!(leaf.subject().iter().count(), 0);
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical);
    let [GeneralName::URI(uri)] = names.value.general_names[..] else { panic!("{names:?}") };
    assert_eq!(uri, "spiffe://cluster.local/ns/shop/sa/cart");
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    let now_s = now.duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert_eq!((issued.not_before_s, issued.not_after_s), (now_s - 60, now_s + 3600));
    assert_eq!(issued.serial, leaf.raw_serial());
    assert_eq!(issued.roots, [ca.root_der()]);
}

#[test]
fn every_leaf_has_its_own_key_and_serial() {
    let ca = EmbeddedCa::in_memory("td", now()).unwrap();
    let issue = || ca.sign(identity(), Duration::from_secs(60), now()).unwrap();
    let (one, two) = (issue(), issue());
    assert_ne!(one.serial, two.serial);
    assert_ne!(one.key.pkcs8_der(), two.key.pkcs8_der());
}

#[test]
fn a_leaf_never_outlives_its_root() {
    let start = now();
    let ca = EmbeddedCa::in_memory("td", start).unwrap();
    let year = Duration::from_secs(365 * 24 * 3600);
    let issued = ca.sign(identity(), year * 20, start).unwrap();
    assert_eq!(issued.not_after_s, Facts::of(ca.root_der()).unwrap().not_after_s);
    assert!(matches!(ca.sign(identity(), year, start + year * 11), Err(CaError::Expired)));
}

#[test]
fn processes_that_start_together_share_one_root() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("ca");
    let roots: Vec<_> = std::thread::scope(|scope| {
        let open = || EmbeddedCa::in_directory(&directory, "td", now()).unwrap().root_der().to_vec();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(roots.iter().all(|root| *root == roots[0]));
    let mode = std::fs::metadata(directory.join("root-key.pem")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let again = EmbeddedCa::in_directory(&directory, "td", now()).unwrap();
    let issued = again.sign(identity(), Duration::from_secs(60), now()).unwrap();
    let (_, root) = X509Certificate::from_der(&roots[0]).unwrap();
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
    leaf.verify_signature(Some(root.public_key())).unwrap();
}

#[test]
fn a_root_that_is_not_whole_is_refused_and_one_that_was_never_finished_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    std::fs::write(file("root-key.pem"), "left by a crash").unwrap();
    let ca = EmbeddedCa::in_directory(folder.path(), "td", now()).unwrap();
    let key = std::fs::read(file("root-key.pem")).unwrap();
    let other = KeyPair::generate().unwrap().serialize_pem();
    for (name, content, told) in [
        ("root-key.pem", other.as_str(), "not the key of root-cert.pem"),
        ("root-key.pem", "rubbish", "not a PEM private key"),
    ] {
        std::fs::write(file(name), content).unwrap();
        let error = EmbeddedCa::in_directory(folder.path(), "td", now()).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
    std::fs::write(file("root-key.pem"), key).unwrap();
    let again = EmbeddedCa::in_directory(folder.path(), "td", now()).unwrap();
    assert_eq!(again.root_der(), ca.root_der());
    let late = now() + Duration::from_secs(11 * 365 * 24 * 3600);
    assert!(EmbeddedCa::in_directory(folder.path(), "td", late).unwrap_err().to_string().contains("expired"));
    std::fs::remove_file(file("root-key.pem")).unwrap();
    assert!(matches!(EmbeddedCa::in_directory(folder.path(), "td", now()), Err(CaError::File { .. })));
}

/// Runs openssl in a folder and gives what it wrote; it must succeed.
fn openssl(folder: &Path, arguments: &str) -> String {
    let mut command = std::process::Command::new("openssl");
    let ran = command.args(arguments.split(' ')).current_dir(folder).output();
    let ran = ran.expect("these tests need the openssl program");
    let told = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(ran.status.success(), "openssl {arguments}: {told}");
    String::from_utf8_lossy(&ran.stdout).into_owned() + &told
}

/// A request of a new key, with names that nobody should be given.
fn request() -> String {
    let mut params = CertificateParams::new(vec!["admin.example".to_owned()]).unwrap();
    let wanted = "spiffe://cluster.local/ns/kube-system/sa/admin".try_into().unwrap();
    params.subject_alt_names.push(rcgen::SanType::URI(wanted));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
}

/// The DER of the first certificate of a PEM text.
fn der(pem: &str) -> Vec<u8> {
    root::certificates(pem.as_bytes()).unwrap().remove(0)
}
