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
async fn a_file_is_followed_and_one_that_stays_empty_takes_the_lists_away() {
    let shards = FakeShards::default();
    let publisher = publisher(&shards);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("crl.pem");
    let ((one, one_der), (two, two_der)) = (list(1), list(2));
    let following = tokio::spawn(run(path.clone(), publisher, Duration::ZERO));
    let in_force = async |lists: Option<&Vec<u8>>| {
        let wanted = lists.map(|list| Revocations { lists: vec![list.clone()] });
        shards.snapshot_where(|snapshot| snapshot.revocations.as_deref() == wanted.as_ref()).await;
    };
    for (pem, der) in [(&one, &one_der), (&two, &two_der)] {
        std::fs::write(&path, pem).unwrap();
        in_force(Some(der)).await;
    }
    std::fs::write(&path, "").unwrap();
    in_force(None).await;
    following.abort();
    assert!(tokio::time::timeout(DEADLINE, following).await.unwrap().unwrap_err().is_cancelled());
}

/// A file, one who follows it reading by reading, and the lists in force.
struct Bench {
    path: PathBuf,
    follower: Follower,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let follower =
            Follower { publisher: publisher(&FakeShards::default()), judged: None, emptied: false };
        Self { path: folder.path().join("crl.pem"), follower, _folder: folder }
    }

    async fn read(&mut self, text: &str) -> Reading {
        std::fs::write(&self.path, text).unwrap();
        self.follower.read(&self.path, "crl").await.unwrap()
    }

    fn in_force(&self) -> Option<Vec<Vec<u8>>> {
        self.follower.publisher.snapshot().revocations.as_ref().map(|revocations| revocations.lists.clone())
    }
}

#[tokio::test]
async fn a_bad_file_leaves_the_old_lists_in_force() {
    let mut bench = Bench::new();
    let ((one, one_der), (two, two_der)) = (list(1), list(2));
    assert_eq!(bench.read(&one).await, Reading::Judged);
    assert_eq!(bench.read("rubbish").await, Reading::Judged);
    assert_eq!(bench.in_force(), Some(vec![one_der]));
    assert_eq!(bench.follower.publisher.snapshot().generation, 1, "the bad file made a generation");
    assert_eq!(bench.read(&two).await, Reading::Judged);
    assert_eq!(bench.in_force(), Some(vec![two_der]));
}

#[tokio::test]
async fn a_file_that_is_caught_empty_is_read_again_before_its_lists_go() {
    let mut bench = Bench::new();
    let (pem, der) = list(1);
    assert_eq!(bench.read("").await, Reading::Judged, "nothing is in force that could go");
    bench.read(&pem).await;
    for caught in ["", "\n"] {
        assert_eq!(bench.read(caught).await, Reading::Doubtful);
        assert_eq!(bench.in_force(), Some(vec![der.clone()]));
        assert_eq!(bench.read(&pem).await, Reading::Judged);
    }
    assert_eq!(bench.follower.publisher.snapshot().generation, 1);
    // Rubbish in between is no confirmation.
    for (text, reading) in [
        ("", Reading::Doubtful),
        ("rubbish", Reading::Judged),
        ("", Reading::Doubtful),
        ("", Reading::Judged),
    ] {
        assert!(bench.in_force().is_some());
        assert_eq!(bench.read(text).await, reading);
    }
    assert_eq!(bench.in_force(), None);
}

#[tokio::test]
async fn a_file_that_is_gone_leaves_its_lists_in_force() {
    let shards = FakeShards::default();
    let publisher = publisher(&shards);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("crl.pem");
    let (pem, der) = list(1);
    std::fs::write(&path, &pem).unwrap();
    let mut follower = Follower { publisher: publisher.clone(), judged: None, emptied: false };
    follower.read(&path, "crl").await.unwrap();
    std::fs::remove_file(&path).unwrap();
    follower.read(&path, "crl").await.unwrap();
    assert_eq!(publisher.snapshot().revocations.as_ref().unwrap().lists, [der]);
    std::fs::write(&path, &pem).unwrap();
    follower.read(&path, "crl").await.unwrap();
    assert_eq!(publisher.snapshot().generation, 1, "the same lists made a generation");
}
