use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SerialNumber,
};

use super::*;
use crate::testing::{DEADLINE, FakeShards, publisher};

/// A list of a new authority that revokes one serial number; PEM and DER.
fn list(serial: u64) -> (String, Vec<u8>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::CrlSign];
    let issuer = Issuer::new(params, key);
    let now = SystemTime::now();
    let list = CertificateRevocationListParams {
        this_update: now.into(),
        next_update: (now + Duration::from_secs(3600)).into(),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&issuer).unwrap();
    (list.pem().unwrap(), list.der().to_vec())
}

#[test]
fn a_file_holds_any_number_of_lists_as_pem_or_as_der() {
    let ((one_pem, one), (two_pem, two)) = (list(1), list(2));
    let both = Some(Revocations { lists: vec![one.clone(), two.clone()] });
    assert_eq!(parse(format!("# lists\n{one_pem}\n{two_pem}").as_bytes()), Ok(both.clone()));
    assert_eq!(parse(&[one.as_slice(), &two].concat()), Ok(both));
    assert_eq!(parse(&one), Ok(Some(Revocations { lists: vec![one] })));
    assert_eq!(parse(b" \n"), Ok(None));
}

#[test]
fn what_is_not_a_list_is_refused_with_its_place() {
    let (pem, der) = list(1);
    let root = crate::testing::authority::TestRoot::new("root").pem;
    assert_eq!(parse(root.as_bytes()), Err(CrlError::NoList));
    assert_eq!(parse(b"rubbish"), Err(CrlError::NotDer { after: 0 }));
    assert_eq!(parse(&[der.as_slice(), b"\n"].concat()), Err(CrlError::NotDer { after: 1 }));
    assert_eq!(parse(&der[..der.len() - 1]), Err(CrlError::NotDer { after: 0 }));
    let cut = pem.replace("-----END X509 CRL-----", "");
    assert!(matches!(parse(cut.as_bytes()), Err(CrlError::Pem(_))), "{:?}", parse(cut.as_bytes()));
    let hollow = "-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n";
    let error = parse(format!("{pem}{hollow}").as_bytes()).unwrap_err();
    assert!(matches!(error, CrlError::Unusable { index: 1, .. }), "{error}");
}

#[tokio::test]
async fn a_bad_file_leaves_the_old_lists_in_force_and_an_empty_one_takes_them_away() {
    let shards = FakeShards::default();
    let publisher = publisher(&shards);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("crl.pem");
    let ((one, one_der), (two, two_der)) = (list(1), list(2));
    let following = tokio::spawn(run(path.clone(), publisher, Duration::ZERO));
    let in_force = async |lists: Option<&Vec<u8>>| {
        let wanted = lists.map(|list| Revocations { lists: vec![list.clone()] });
        shards.snapshot_where(|snapshot| snapshot.revocations.as_deref() == wanted.as_ref()).await.generation
    };
    std::fs::write(&path, &one).unwrap();
    let first = in_force(Some(&one_der)).await;
    std::fs::write(&path, "rubbish").unwrap();
    std::fs::write(&path, &two).unwrap();
    let second = in_force(Some(&two_der)).await;
    assert_eq!(second, first + 1, "the bad file made a generation");
    std::fs::write(&path, "").unwrap();
    in_force(None).await;
    following.abort();
    assert!(tokio::time::timeout(DEADLINE, following).await.unwrap().unwrap_err().is_cancelled());
}

#[tokio::test]
async fn a_file_that_is_gone_leaves_its_lists_in_force() {
    let shards = FakeShards::default();
    let publisher = publisher(&shards);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("crl.pem");
    let (pem, der) = list(1);
    std::fs::write(&path, &pem).unwrap();
    let mut follower = Follower { publisher: publisher.clone(), judged: None };
    follower.read(&path, "crl").await.unwrap();
    std::fs::remove_file(&path).unwrap();
    follower.read(&path, "crl").await.unwrap();
    assert_eq!(publisher.snapshot().revocations.as_ref().unwrap().lists, [der]);
    std::fs::write(&path, &pem).unwrap();
    follower.read(&path, "crl").await.unwrap();
    assert_eq!(publisher.snapshot().generation, 1, "the same lists made a generation");
}
