use proptest::prelude::*;
use rcgen::PKCS_ED25519;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn issued_to(csr: &str) -> Result<Issued, CaError> {
    EmbeddedCa::in_memory("cluster.local", now()).unwrap().sign_request(csr, &identity(), HOUR, now())
}

fn refused(csr: &str) -> RequestError {
    match issued_to(csr) {
        Err(CaError::Request(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_request_gives_its_key_and_nothing_else_to_the_certificate() {
    let csr = request();
    let issued = issued_to(&csr).unwrap();
    let [leaf, _] = &issued.chain_pem[..] else { panic!("{:?}", issued.chain_pem) };
    let leaf = der(leaf);
    let (_, leaf) = X509Certificate::from_der(&leaf).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical);
    let [GeneralName::URI(uri)] = names.value.general_names[..] else { panic!("{names:?}") };
    assert_eq!(uri, identity().to_string());
    assert_eq!(leaf.subject().iter().count(), 0);
    assert!(!leaf.is_ca() && leaf.basic_constraints().unwrap().is_none());
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    let der = CertificateSigningRequestDer::from_pem_slice(csr.as_bytes()).unwrap();
    let (_, parsed) = X509CertificationRequest::from_der(&der).unwrap();
    assert_eq!(leaf.public_key().raw, parsed.certification_request_info.subject_pki.raw);
}

#[test]
fn a_key_that_comes_twice_gets_two_serial_numbers() {
    let (ca, csr) = (EmbeddedCa::in_memory("td", now()).unwrap(), request());
    let serial = || {
        let issued = ca.sign_request(&csr, &identity(), HOUR, now()).unwrap();
        Facts::of(&der(&issued.chain_pem[0])).unwrap().serial
    };
    assert_ne!(serial(), serial());
}

#[test]
fn a_life_is_bounded_by_the_longest_and_by_the_root() {
    let (ca, start) = (EmbeddedCa::in_memory("td", now()).unwrap().with_life_max(HOUR * 2), now());
    let end = |ca: &EmbeddedCa, ttl, at| {
        let issued = ca.sign_request(&request(), &identity(), ttl, at).unwrap();
        let facts = Facts::of(&der(&issued.chain_pem[0])).unwrap();
        assert_eq!(facts.not_after(), issued.not_after);
        let at_s = at.duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(facts.not_before_s, at_s - 60);
        facts.not_after_s - at_s
    };
    assert_eq!(end(&ca, HOUR, start), 3600);
    assert_eq!(end(&ca, HOUR * 3, start), 7200);
    assert_eq!(end(&ca, Duration::MAX, start), 7200);
    let root_end = Facts::of(ca.root_der()).unwrap().not_after();
    assert_eq!(end(&ca, HOUR, root_end - HOUR / 2), 1800);
    let late = ca.sign_request(&request(), &identity(), HOUR, root_end);
    assert!(matches!(late, Err(CaError::Expired)), "{late:?}");
}

#[test]
fn openssl_verifies_what_is_issued_to_every_kind_of_key() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let ca = EmbeddedCa::in_directory(&folder.join("ca"), "cluster.local", now()).unwrap();
    let kinds = [
        "ec -pkeyopt ec_paramgen_curve:P-256",
        "ec -pkeyopt ec_paramgen_curve:P-384",
        "ed25519",
        "rsa:2048",
        "rsa:3072 -sha384",
    ];
    for kind in kinds {
        let made = format!("req -new -nodes -newkey {kind} -keyout key.pem -out csr.pem -subj /CN=other");
        openssl(folder, &made);
        let csr = std::fs::read_to_string(folder.join("csr.pem")).unwrap();
        let issued = ca.sign_request(&csr, &identity(), HOUR, now()).unwrap();
        std::fs::write(folder.join("leaf.pem"), &issued.chain_pem[0]).unwrap();
        std::fs::write(folder.join("roots.pem"), &issued.chain_pem[1]).unwrap();
        for purpose in ["sslserver", "sslclient"] {
            let verify = format!("verify -x509_strict -purpose {purpose} -CAfile roots.pem leaf.pem");
            assert!(openssl(folder, &verify).contains("leaf.pem: OK"), "{kind}");
        }
        let keys = ("pkey -in key.pem -pubout", "x509 -in leaf.pem -noout -pubkey");
        assert_eq!(openssl(folder, keys.0), openssl(folder, keys.1));
    }
}

#[test]
fn weak_and_unknown_keys_are_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    for (kind, expected) in [
        ("rsa:1024", RequestError::RsaSize { bits: 1024 }),
        ("rsa:2047", RequestError::RsaSize { bits: 2047 }),
        ("ec -pkeyopt ec_paramgen_curve:P-521", RequestError::KeyType),
        ("ec -pkeyopt ec_paramgen_curve:secp256k1", RequestError::KeyType),
        ("ed448", RequestError::KeyType),
        ("rsa:2048 -sha1", RequestError::Sha1),
    ] {
        let made = format!("req -new -nodes -newkey {kind} -keyout key.pem -out csr.pem -subj /CN=other");
        openssl(folder.path(), &made);
        let csr = std::fs::read_to_string(folder.path().join("csr.pem")).unwrap();
        assert_eq!(refused(&csr), expected, "{kind}");
    }
    openssl(folder.path(), "ecparam -name prime256v1 -genkey -noout -out whole.pem");
    openssl(folder.path(), "ec -in whole.pem -conv_form compressed -out key.pem");
    openssl(folder.path(), "req -new -key key.pem -out csr.pem -subj /CN=other");
    let csr = std::fs::read_to_string(folder.path().join("csr.pem")).unwrap();
    assert_eq!(refused(&csr), RequestError::Point);
}

fn csr_pem(der: &[u8]) -> String {
    pem(der).replace("CERTIFICATE-", "CERTIFICATE REQUEST-")
}

/// Bytes of a request up to the end of what its signature covers.
fn signed_len(der: &[u8]) -> usize {
    let (_, request) = X509CertificationRequest::from_der(der).unwrap();
    let info = request.certification_request_info.raw;
    info.as_ptr() as usize - der.as_ptr() as usize + info.len()
}

#[test]
fn a_request_that_was_changed_on_its_way_is_refused() {
    let der = CertificateSigningRequestDer::from_pem_slice(request().as_bytes()).unwrap().to_vec();
    assert!(issued_to(&csr_pem(&der)).is_ok());
    // What follows the signed part only says how it is signed; some of it can be written in two ways.
    for at in 0..signed_len(&der) {
        let mut changed = der.clone();
        changed[at] ^= 1;
        assert!(issued_to(&csr_pem(&changed)).is_err(), "accepted with byte {at} of {} changed", der.len());
    }
    let longer = [&der[..], &[0]].concat();
    assert_eq!(refused(&csr_pem(&longer)), RequestError::Structure);
    assert_eq!(refused(&csr_pem(&der[..der.len() - 1])), RequestError::Structure);
}

#[test]
fn what_is_no_request_is_refused_before_it_is_parsed_for_long() {
    for (text, expected) in [
        (String::new(), RequestError::Pem),
        ("rubbish".into(), RequestError::Pem),
        (pem(EmbeddedCa::in_memory("td", now()).unwrap().root_der()), RequestError::Pem),
        (csr_pem(b""), RequestError::Structure),
        (csr_pem(b"rubbish"), RequestError::Structure),
        ("x".repeat(CSR_LEN_MAX + 1), RequestError::Long { len: CSR_LEN_MAX + 1 }),
    ] {
        assert_eq!(refused(&text), expected, "{text:.80}");
    }
}

#[test]
fn a_server_certificate_carries_dns_names_and_addresses_and_verifies() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let ca = EmbeddedCa::in_memory("td", now()).unwrap();
    let names = ["halo.halo-system.svc", "localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let issued = ca.server_certificate(&names, HOUR, now()).unwrap();
    let [leaf] = &issued.chain[..] else { panic!("{:?}", issued.chain) };
    std::fs::write(folder.join("leaf.pem"), pem(leaf)).unwrap();
    std::fs::write(folder.join("roots.pem"), ca.root_pem()).unwrap();
    let verify = "verify -x509_strict -purpose sslserver -CAfile roots.pem";
    for name in ["hostname localhost", "hostname halo.halo-system.svc", "ip 127.0.0.1", "ip ::1"] {
        openssl(folder, &format!("{verify} -verify_{name} leaf.pem"));
    }
    assert_eq!(Facts::of(leaf).unwrap().not_after(), issued.not_after);
    let key = KeyPair::try_from(issued.key.pkcs8_der()).unwrap();
    let (_, leaf) = X509Certificate::from_der(leaf).unwrap();
    assert_eq!(*leaf.public_key().subject_public_key.data, *key.public_key_raw());
    assert!(!leaf.extended_key_usage().unwrap().unwrap().value.client_auth);
    for wrong in ["", "a b", "https://a", "*.a", "a/b"] {
        let error = ca.server_certificate(&[wrong.to_owned()], HOUR, now()).unwrap_err().to_string();
        assert_eq!(error, format!("{wrong:?} is neither a DNS name nor an IP address"));
    }
}

#[test]
fn an_ed25519_key_is_issued_to() {
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    assert!(issued_to(&csr).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_bytes_make_the_authority_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), text in ".{0,300}") {
        prop_assert!(request::public_key(&text).is_err());
        prop_assert!(request::public_key(&csr_pem(&bytes)).is_err());
    }

    #[test]
    fn no_change_of_a_request_makes_the_authority_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        keep in any::<prop::sample::Index>(),
    ) {
        let whole = CertificateSigningRequestDer::from_pem_slice(request().as_bytes()).unwrap().to_vec();
        let mut der = whole.clone();
        for (at, byte) in changes {
            let at = at.index(der.len());
            der[at] = byte;
        }
        let (kept, signed) = (keep.index(der.len()), signed_len(&whole));
        prop_assert!(request::public_key(&csr_pem(&der)).is_err() || der[..signed] == whole[..signed]);
        prop_assert!(request::public_key(&csr_pem(&der[..kept])).is_err());
    }
}
