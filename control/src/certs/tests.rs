use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use halo_core::snapshot::Snapshot;
use halo_core::workload::Workload;
use halo_core::zds::{PodState, WorkloadInfo};

use super::*;
use crate::ca::{CaError, EmbeddedCa};
use crate::pods::PodView;
use crate::testing::{FakeShards, publisher};

/// The random number that leaves a pause as it is.
const MIDDLE: u64 = 1 << 63;

fn who(account: &str) -> Identity {
    Identity::new("td", "shop", account)
}

fn set(accounts: &[&str]) -> BTreeSet<Identity> {
    accounts.iter().map(|account| who(account)).collect()
}

fn issue(account: &str) -> Arc<Certificate> {
    let ca = EmbeddedCa::in_memory("td", SystemTime::now()).unwrap();
    let issued = futures_now(ca.issue(who(account), Duration::from_secs(60), SystemTime::now()));
    Arc::new(issued.unwrap())
}

/// Runs a future that is ready at once.
fn futures_now<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(future)
}

fn requests(keeper: &mut CertificateKeeper) -> Vec<String> {
    std::iter::from_fn(|| keeper.poll_event())
        .map(|event| match event {
            Event::Request(identity) => format!("request {}", identity.service_account),
            Event::Publish(certificate) => format!("publish {}", certificate.identity.service_account),
            Event::Withdraw(identity) => format!("withdraw {}", identity.service_account),
        })
        .collect()
}

#[test]
fn an_identity_is_requested_once_renewed_at_half_its_life_and_withdrawn_when_it_goes() {
    let (mut keeper, start, second) = (CertificateKeeper::default(), Instant::now(), Duration::from_secs(1));
    keeper.handle_wanted(&set(&["a"]), start);
    keeper.handle_wanted(&set(&["a"]), start);
    assert_eq!(requests(&mut keeper), ["request a"]);
    keeper.handle_issued(&who("a"), Ok((issue("a"), 100 * second)), MIDDLE, start);
    assert_eq!(requests(&mut keeper), ["publish a"]);
    assert_eq!(keeper.poll_timeout(), Some(start + 50 * second));
    keeper.handle_timeout(start + 49 * second);
    assert!(requests(&mut keeper).is_empty());
    keeper.handle_timeout(start + 50 * second);
    assert_eq!(requests(&mut keeper), ["request a"]);
    keeper.handle_wanted(&set(&[]), start);
    assert_eq!(requests(&mut keeper), ["withdraw a"]);
    // It comes back while the old request is out: the answer serves it.
    keeper.handle_wanted(&set(&["a"]), start);
    assert!(requests(&mut keeper).is_empty());
    keeper.handle_issued(&who("a"), Ok((issue("a"), second)), MIDDLE, start);
    assert_eq!(requests(&mut keeper), ["publish a"]);
}

#[test]
fn a_failed_renewal_backs_off_and_the_certificate_stays_until_it_expires() {
    let (mut keeper, start, second) = (CertificateKeeper::default(), Instant::now(), Duration::from_secs(1));
    keeper.handle_wanted(&set(&["a"]), start);
    requests(&mut keeper);
    keeper.handle_issued(&who("a"), Ok((issue("a"), 10 * second)), MIDDLE, start);
    requests(&mut keeper);
    let mut now = start + 5 * second;
    for pause in [1, 2, 4] {
        keeper.handle_timeout(now);
        assert!(requests(&mut keeper).ends_with(&["request a".to_owned()]));
        keeper.handle_issued(&who("a"), Err("down".into()), MIDDLE, now);
        now += pause * second;
    }
    assert!(matches!(keeper.states().next(), Some((_, State::Available(_)))));
    keeper.handle_timeout(start + 10 * second);
    assert_eq!(requests(&mut keeper), ["withdraw a"]);
    assert!(matches!(keeper.states().next(), Some((_, State::Unavailable(error))) if &*error == "down"));
    for _ in 0..40 {
        now = keeper.poll_timeout().unwrap();
        keeper.handle_timeout(now);
        requests(&mut keeper);
        keeper.handle_issued(&who("a"), Err("down".into()), MIDDLE, now);
    }
    assert_eq!(keeper.poll_timeout(), Some(now + 150 * second));
}

#[test]
fn identities_that_fail_together_are_not_tried_again_together() {
    let (start, ms) = (Instant::now(), Duration::from_millis(1));
    let attempt = |random| {
        let mut keeper = CertificateKeeper::default();
        keeper.handle_wanted(&set(&["a"]), start);
        requests(&mut keeper);
        keeper.handle_issued(&who("a"), Err("down".into()), random, start);
        keeper.poll_timeout().unwrap() - start
    };
    assert_eq!(attempt(0), 800 * ms);
    assert_eq!(attempt(MIDDLE), 1000 * ms);
    assert!((1199 * ms..=1200 * ms).contains(&attempt(u64::MAX)));
    assert!(attempt(1 << 62) < attempt(3 << 62));
}

#[test]
fn at_most_eight_requests_are_in_flight_and_new_identities_come_first() {
    let (mut keeper, start) = (CertificateKeeper::default(), Instant::now());
    let names: Vec<_> = (0..20).map(|number| format!("s{number}")).collect();
    let wanted: Vec<&str> = names.iter().map(String::as_str).collect();
    keeper.handle_wanted(&set(&wanted), start);
    let first = requests(&mut keeper);
    assert_eq!(first.len(), 8);
    let done = first[0].strip_prefix("request ").unwrap();
    keeper.handle_issued(&who(done), Ok((issue(done), Duration::ZERO)), MIDDLE, start);
    keeper.handle_timeout(start + Duration::from_secs(1));
    let next = requests(&mut keeper);
    assert_eq!(next.iter().filter(|event| event.starts_with("request")).count(), 1);
    assert!(!next.contains(&format!("request {done}")), "a renewal overtook a first certificate");
}

#[test]
fn a_second_attempt_at_a_first_certificate_comes_before_renewals_that_are_due() {
    let (mut keeper, start, second) = (CertificateKeeper::default(), Instant::now(), Duration::from_secs(1));
    let names: Vec<_> = (0..20).map(|number| format!("s{number:02}")).collect();
    let mut wanted: Vec<&str> = names.iter().map(String::as_str).collect();
    keeper.handle_wanted(&set(&wanted), start);
    let certificate = issue("any");
    loop {
        let asked = requests(&mut keeper);
        let mut asked = asked.iter().filter_map(|event| event.strip_prefix("request ")).peekable();
        if asked.peek().is_none() {
            break;
        }
        asked.for_each(|name| {
            keeper.handle_issued(&who(name), Ok((certificate.clone(), 8 * second)), MIDDLE, start)
        });
    }
    wanted.push("waiting");
    keeper.handle_wanted(&set(&wanted), start + 2 * second);
    assert_eq!(requests(&mut keeper), ["request waiting"]);
    keeper.handle_issued(&who("waiting"), Err("down".into()), MIDDLE, start + 2 * second);
    // Twenty renewals and the second attempt are due at once, for eight places.
    keeper.handle_timeout(start + 4 * second);
    let taken = requests(&mut keeper);
    assert_eq!(taken.len(), 8);
    assert_eq!(taken[0], "request waiting");
    assert_eq!(taken[1], "request s00");
}

#[test]
fn a_renewal_whose_certificate_expires_while_it_waits_comes_first() {
    let (mut keeper, start, second) = (CertificateKeeper::default(), Instant::now(), Duration::from_secs(1));
    let names: Vec<_> = (0..9).map(|number| format!("s{number}")).collect();
    let wanted: Vec<&str> = names.iter().map(String::as_str).collect();
    let certificate = issue("any");
    keeper.handle_wanted(&set(&["t", "u"]), start);
    assert_eq!(requests(&mut keeper).len(), 2);
    keeper.handle_issued(&who("t"), Ok((certificate.clone(), 100 * second)), MIDDLE, start);
    keeper.handle_issued(&who("u"), Ok((certificate.clone(), 104 * second)), MIDDLE, start);
    requests(&mut keeper);
    let mut all = wanted.clone();
    all.extend(["t", "u"]);
    keeper.handle_wanted(&set(&all), start);
    assert_eq!(requests(&mut keeper).len(), 8);
    keeper.handle_timeout(start + 52 * second);
    // The certificate of `t` is gone, and so it is no renewal any more; `s8` has waited longer still.
    keeper.handle_timeout(start + 100 * second);
    assert_eq!(requests(&mut keeper), ["withdraw t"]);
    let mut next = Vec::new();
    for name in ["s0", "s1", "s2"] {
        keeper.handle_issued(
            &who(name),
            Ok((certificate.clone(), 100 * second)),
            MIDDLE,
            start + 100 * second,
        );
        next.extend(requests(&mut keeper).into_iter().filter(|event| event.starts_with("request")));
    }
    assert_eq!(next, ["request s8", "request t", "request u"]);
}

fn pods(list: &[(&str, &str)]) -> Pods {
    let view = |name: &str, account: &str| PodView {
        info: WorkloadInfo { name: name.into(), namespace: "shop".into(), service_account: account.into() },
        state: PodState::Running,
    };
    list.iter().map(|(name, account)| ((*name).into(), view(name, account))).collect::<BTreeMap<_, _>>()
}

/// Fails a number of times before it issues.
#[derive(Clone)]
struct Flaky(EmbeddedCa, Arc<AtomicUsize>);

impl CertificateAuthority for Flaky {
    async fn issue(
        &self,
        identity: Identity,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Certificate, CaError> {
        let left = self.1.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if left.is_ok() { Err(CaError::Expired) } else { self.0.issue(identity, ttl, now).await }
    }
}

struct Bench {
    shards: FakeShards,
    publisher: Publisher,
    pods: watch::Sender<Pods>,
    view: watch::Receiver<CertificateView>,
}

fn start(ttl: Duration, failures: usize) -> Bench {
    let shards = FakeShards::default();
    let publisher = publisher(&shards);
    let (pods, receiver) = watch::channel(Pods::new());
    let (sender, view) = watch::channel(CertificateView::new());
    let authority = EmbeddedCa::in_memory("td", SystemTime::now()).unwrap();
    tokio::spawn(run(CertificatesSetup {
        authority: Flaky(authority, Arc::new(AtomicUsize::new(failures))),
        ttl,
        trust_domain: "td".into(),
        publisher: publisher.clone(),
        pods: receiver,
        view: sender,
    }));
    Bench { shards, publisher, pods, view }
}

#[tokio::test]
async fn pods_of_one_identity_share_a_certificate_until_the_last_is_gone() {
    let bench = start(Duration::from_secs(3600), 0);
    bench.pods.send_replace(pods(&[("one", "cart"), ("two", "cart"), ("three", "web")]));
    let snapshot = bench.shards.snapshot_where(|snapshot| snapshot.certificates.len() == 2).await;
    let certificate = snapshot.certificates.get(&who("cart")).unwrap().clone();
    bench.pods.send_replace(pods(&[("two", "cart")]));
    let snapshot = bench.shards.snapshot_where(|snapshot| snapshot.certificates.len() == 1).await;
    assert!(Arc::ptr_eq(&certificate, snapshot.certificates.get(&who("cart")).unwrap()));
    bench.pods.send_replace(Pods::new());
    bench.shards.snapshot_where(|snapshot| snapshot.certificates.is_empty()).await;
}

#[tokio::test]
async fn the_trust_domain_is_that_of_the_pods_workload_once_it_is_known() {
    let bench = start(Duration::from_secs(3600), 0);
    bench.pods.send_replace(pods(&[("one", "cart")]));
    bench.shards.snapshot_where(|snapshot| snapshot.certificates.contains_key(&who("cart"))).await;
    let workload = Workload {
        uid: "w".into(),
        name: "one".into(),
        namespace: "shop".into(),
        service_account: "cart".into(),
        trust_domain: "other".into(),
        ..Workload::default()
    };
    bench.publisher.publish(vec![MeshEdit::Workload(Arc::new(workload))]).await.unwrap();
    let other = Identity::new("other", "shop", "cart");
    let holds =
        |snapshot: &Snapshot| snapshot.certificates.contains_key(&other) && snapshot.certificates.len() == 1;
    bench.shards.snapshot_where(holds).await;
}

#[tokio::test]
async fn a_certificate_of_two_seconds_is_renewed_while_it_is_valid() {
    let bench = start(Duration::from_secs(2), 0);
    bench.pods.send_replace(pods(&[("one", "cart")]));
    let mut serial: Option<Vec<u8>> = None;
    for _ in 0..3 {
        let before = serial.clone();
        let new = |snapshot: &Snapshot| {
            let found = snapshot.certificates.get(&who("cart"));
            found.is_some_and(|certificate| Some(&certificate.serial) != before.as_ref())
        };
        let snapshot = bench.shards.snapshot_where(new).await;
        let certificate = snapshot.certificates.get(&who("cart")).unwrap();
        serial = Some(certificate.serial.clone());
    }
}

#[tokio::test]
async fn certificates_are_renewed_also_after_the_last_word_on_pods() {
    let Bench { shards, publisher: _publisher, pods: sender, view: _view } = start(Duration::from_secs(2), 0);
    sender.send_replace(pods(&[("one", "cart")]));
    let first = shards.snapshot_where(|snapshot| snapshot.certificates.len() == 1).await;
    drop(sender);
    let serial = |snapshot: &Snapshot| {
        snapshot.certificates.get(&who("cart")).map(|certificate| certificate.serial.clone())
    };
    let renewed = |snapshot: &Snapshot| serial(snapshot).is_some_and(|new| Some(new) != serial(&first));
    shards.snapshot_where(renewed).await;
}

#[tokio::test]
async fn a_failure_is_shown_and_tried_again() {
    let mut bench = start(Duration::from_secs(3600), 1);
    bench.pods.send_replace(pods(&[("one", "cart")]));
    let unavailable = |view: &CertificateView| matches!(view.as_slice(), [(_, State::Unavailable(_))]);
    tokio::time::timeout(crate::testing::DEADLINE, bench.view.wait_for(unavailable)).await.unwrap().unwrap();
    bench.shards.snapshot_where(|snapshot| snapshot.certificates.len() == 1).await;
}
