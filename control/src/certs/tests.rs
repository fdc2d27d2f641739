use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use halo_core::snapshot::{Mesh, Snapshot};
use halo_core::workload::{Protocol, Workload};
use halo_core::zds::{PodState, WorkloadInfo};

use super::*;
use crate::ca::{CaError, EmbeddedCa};
use crate::pods::PodView;
use crate::testing::FakeShards;

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

/// The life of a certificate whose validity begins when it arrives.
fn fresh(now: Moment, left: Duration) -> Life {
    Life { start: now.wall, end: now.wall + left }
}

/// How long after `now` the keeper is due.
fn due(keeper: &CertificateKeeper, now: Moment) -> Option<Duration> {
    keeper.poll_timeout(now).map(|due| due - now.instant)
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
    let (mut keeper, start, second) = (CertificateKeeper::default(), Moment::now(), Duration::from_secs(1));
    keeper.handle_wanted(&set(&["a"]), &set(&[]), start);
    keeper.handle_wanted(&set(&["a"]), &set(&[]), start);
    assert_eq!(requests(&mut keeper), ["request a"]);
    keeper.handle_issued(&who("a"), Ok((issue("a"), fresh(start, 100 * second))), MIDDLE, start);
    assert_eq!(requests(&mut keeper), ["publish a"]);
    assert_eq!(due(&keeper, start), Some(50 * second));
    keeper.handle_timeout(start + 49 * second);
    assert!(requests(&mut keeper).is_empty());
    keeper.handle_timeout(start + 50 * second);
    assert_eq!(requests(&mut keeper), ["request a"]);
    keeper.handle_wanted(&set(&[]), &set(&[]), start);
    assert_eq!(requests(&mut keeper), ["withdraw a"]);
    // It comes back while the old request is out: the answer serves it.
    keeper.handle_wanted(&set(&["a"]), &set(&[]), start);
    assert!(requests(&mut keeper).is_empty());
    keeper.handle_issued(&who("a"), Ok((issue("a"), fresh(start, second))), MIDDLE, start);
    assert_eq!(requests(&mut keeper), ["publish a"]);
}

#[test]
fn a_failed_renewal_backs_off_and_the_certificate_stays_until_it_expires() {
    let (mut keeper, start, second) = (CertificateKeeper::default(), Moment::now(), Duration::from_secs(1));
    keeper.handle_wanted(&set(&["a"]), &set(&[]), start);
    requests(&mut keeper);
    keeper.handle_issued(&who("a"), Ok((issue("a"), fresh(start, 10 * second))), MIDDLE, start);
    requests(&mut keeper);
    let mut now = start + 5 * second;
    for pause in [1, 2, 4] {
        keeper.handle_timeout(now);
        assert!(requests(&mut keeper).ends_with(&["request a".to_owned()]));
        keeper.handle_issued(&who("a"), Err("down".into()), MIDDLE, now);
        now = now + pause * second;
    }
    assert!(matches!(keeper.states().next(), Some((_, State::Available(_)))));
    keeper.handle_timeout(start + 10 * second);
    // Without a certificate the attempt is made at once.
    assert_eq!(requests(&mut keeper), ["withdraw a", "request a"]);
    assert!(matches!(keeper.states().next(), Some((_, State::Unavailable(error))) if &*error == "down"));
    keeper.handle_issued(&who("a"), Err("down".into()), MIDDLE, now);
    for _ in 0..40 {
        now = now + due(&keeper, now).unwrap();
        keeper.handle_timeout(now);
        requests(&mut keeper);
        keeper.handle_issued(&who("a"), Err("down".into()), MIDDLE, now);
    }
    assert_eq!(due(&keeper, now), Some(150 * second));
}

#[test]
fn identities_that_fail_together_are_not_tried_again_together() {
    let (start, ms) = (Moment::now(), Duration::from_millis(1));
    let attempt = |random| {
        let mut keeper = CertificateKeeper::default();
        keeper.handle_wanted(&set(&["a"]), &set(&[]), start);
        requests(&mut keeper);
        keeper.handle_issued(&who("a"), Err("down".into()), random, start);
        due(&keeper, start).unwrap()
    };
    assert_eq!(attempt(0), 800 * ms);
    assert_eq!(attempt(MIDDLE), 1000 * ms);
    assert!((1199 * ms..=1200 * ms).contains(&attempt(u64::MAX)));
    assert!(attempt(1 << 62) < attempt(3 << 62));
}

#[test]
fn at_most_eight_requests_are_in_flight_and_new_identities_come_first_but_for_the_last_place() {
    let (mut keeper, start) = (CertificateKeeper::default(), Moment::now());
    let names: Vec<_> = (0..20).map(|number| format!("s{number}")).collect();
    let wanted: Vec<&str> = names.iter().map(String::as_str).collect();
    keeper.handle_wanted(&set(&wanted), &set(&[]), start);
    let first = requests(&mut keeper);
    assert_eq!(first.len(), 8);
    let done: Vec<_> = first[..2].iter().map(|event| event.strip_prefix("request ").unwrap()).collect();
    for name in &done {
        let life = fresh(start, Duration::from_secs(2));
        keeper.handle_issued(&who(name), Ok((issue(name), life)), MIDDLE, start);
    }
    // Two renewals are due, and twelve identities wait for their first certificate.
    keeper.handle_timeout(start + Duration::from_secs(1));
    let next = |keeper: &mut CertificateKeeper| -> Vec<_> {
        requests(keeper).into_iter().filter(|event| event.starts_with("request")).collect()
    };
    assert_eq!(next(&mut keeper), ["request s16".to_owned(), format!("request {}", done[0])]);
    // While that renewal is in flight, no other has a place of its own.
    keeper.handle_issued(&who("s10"), Err("down".into()), MIDDLE, start + Duration::from_secs(1));
    assert_eq!(next(&mut keeper), ["request s17"]);
    keeper.handle_issued(&who(done[0]), Err("down".into()), MIDDLE, start + Duration::from_secs(1));
    assert_eq!(next(&mut keeper), [format!("request {}", done[1])]);
}

#[test]
fn a_second_attempt_at_a_first_certificate_comes_before_renewals_that_are_due() {
    let (mut keeper, start, second) = (CertificateKeeper::default(), Moment::now(), Duration::from_secs(1));
    let names: Vec<_> = (0..20).map(|number| format!("s{number:02}")).collect();
    let mut wanted: Vec<&str> = names.iter().map(String::as_str).collect();
    keeper.handle_wanted(&set(&wanted), &set(&[]), start);
    let certificate = issue("any");
    loop {
        let asked = requests(&mut keeper);
        let mut asked = asked.iter().filter_map(|event| event.strip_prefix("request ")).peekable();
        if asked.peek().is_none() {
            break;
        }
        asked.for_each(|name| {
            keeper.handle_issued(
                &who(name),
                Ok((certificate.clone(), fresh(start, 8 * second))),
                MIDDLE,
                start,
            )
        });
    }
    wanted.push("waiting");
    keeper.handle_wanted(&set(&wanted), &set(&[]), start + 2 * second);
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
    let (mut keeper, start, second) = (CertificateKeeper::default(), Moment::now(), Duration::from_secs(1));
    let names: Vec<_> = (0..9).map(|number| format!("s{number}")).collect();
    let wanted: Vec<&str> = names.iter().map(String::as_str).collect();
    let certificate = issue("any");
    keeper.handle_wanted(&set(&["t", "u", "v"]), &set(&[]), start);
    assert_eq!(requests(&mut keeper).len(), 3);
    keeper.handle_issued(&who("t"), Ok((certificate.clone(), fresh(start, 100 * second))), MIDDLE, start);
    for name in ["u", "v"] {
        keeper.handle_issued(
            &who(name),
            Ok((certificate.clone(), fresh(start, 104 * second))),
            MIDDLE,
            start,
        );
    }
    requests(&mut keeper);
    let mut all = wanted.clone();
    all.extend(["t", "u", "v"]);
    keeper.handle_wanted(&set(&all), &set(&[]), start);
    assert_eq!(requests(&mut keeper).len(), 8);
    keeper.handle_timeout(start + 52 * second);
    // The certificate of `t` is gone, and so it is no renewal any more; `s8` has waited longer still. The first place that
    // is free is kept for a renewal.
    keeper.handle_timeout(start + 100 * second);
    assert_eq!(requests(&mut keeper), ["withdraw t"]);
    let mut next = Vec::new();
    for name in ["s0", "s1", "s2", "s3"] {
        keeper.handle_issued(
            &who(name),
            Ok((certificate.clone(), fresh(start + 100 * second, 100 * second))),
            MIDDLE,
            start + 100 * second,
        );
        next.extend(requests(&mut keeper).into_iter().filter(|event| event.starts_with("request")));
    }
    assert_eq!(next, ["request u", "request s8", "request t", "request v"]);
}

#[test]
fn requests_go_out_in_order_of_who_waits() {
    let (mut keeper, start, second) = (CertificateKeeper::default(), Moment::now(), Duration::from_secs(1));
    let first: Vec<_> = (0..8).map(|number| format!("s{number}")).collect();
    let mut pods: Vec<&str> = first.iter().map(String::as_str).collect();
    keeper.handle_wanted(&set(&pods), &set(&[]), start);
    requests(&mut keeper);
    for name in &first {
        keeper.handle_issued(&who(name), Ok((issue(name), fresh(start, 10 * second))), MIDDLE, start);
    }
    requests(&mut keeper);
    // Renewals have waited longest, then a workload without a pod, then pods, then a pod that a connection waits for.
    keeper.handle_timeout(start + 5 * second);
    let late = start + 6 * second;
    keeper.handle_wanted(&set(&pods), &set(&["expected"]), late);
    pods.extend(["pod", "waiting"]);
    keeper.handle_wanted(&set(&pods), &set(&["expected", "pod"]), late + second);
    keeper.handle_question(&who("waiting"), late + 2 * second);
    keeper.handle_question(&who("s7"), late + 2 * second);
    keeper.handle_question(&who("nobody"), late + 2 * second);
    let order = requests(&mut keeper);
    assert_eq!(order[..4], ["request waiting", "request pod", "request expected", "request s0"]);
    assert_eq!((order.len(), keeper.in_flight()), (8, 8));
}

#[test]
fn a_workload_without_a_pod_keeps_its_certificate_until_both_are_gone() {
    let (mut keeper, start, second) = (CertificateKeeper::default(), Moment::now(), Duration::from_secs(1));
    keeper.handle_wanted(&set(&[]), &set(&["a"]), start);
    assert_eq!(requests(&mut keeper), ["request a"]);
    keeper.handle_issued(&who("a"), Ok((issue("a"), fresh(start, 100 * second))), MIDDLE, start);
    assert_eq!(requests(&mut keeper), ["publish a"]);
    for (pods, expected) in [(&["a"][..], &["a"][..]), (&["a"], &[]), (&[], &["a"])] {
        keeper.handle_wanted(&set(pods), &set(expected), start);
        assert!(requests(&mut keeper).is_empty());
    }
    keeper.handle_wanted(&set(&[]), &set(&[]), start);
    assert_eq!(requests(&mut keeper), ["withdraw a"]);
}

#[test]
fn a_question_hastens_an_attempt_but_never_within_a_second_of_the_last_nor_much_where_many_have_failed() {
    let (mut keeper, start, ms) = (CertificateKeeper::default(), Moment::now(), Duration::from_millis(1));
    keeper.handle_wanted(&set(&["a"]), &set(&[]), start);
    requests(&mut keeper);
    let mut now = start;
    for _ in 0..3 {
        keeper.handle_issued(&who("a"), Err("down".into()), MIDDLE, now);
        now = now + due(&keeper, now).unwrap();
        keeper.handle_timeout(now);
        assert_eq!(requests(&mut keeper), ["request a"]);
    }
    keeper.handle_issued(&who("a"), Err("down".into()), MIDDLE, now);
    assert_eq!(due(&keeper, now), Some(8_000 * ms));
    // A hundred questions make one attempt, a second after the last.
    for step in 0..100 {
        keeper.handle_question(&who("a"), now + step * ms);
        assert!(requests(&mut keeper).is_empty());
    }
    assert_eq!(due(&keeper, now), Some(1_000 * ms));
    keeper.handle_timeout(now + 1_000 * ms);
    assert_eq!(requests(&mut keeper), ["request a"]);
    // From the fifth failure on the authority is left alone for longer, but not for as long as without a question.
    now = now + 1_000 * ms;
    for backoff in [16_000, 32_000] {
        keeper.handle_issued(&who("a"), Err("down".into()), MIDDLE, now);
        assert_eq!(due(&keeper, now), Some(backoff * ms));
        keeper.handle_question(&who("a"), now + 5_000 * ms);
        assert!(requests(&mut keeper).is_empty());
        assert_eq!(due(&keeper, now), Some(15_000 * ms));
        now = now + 15_000 * ms;
        keeper.handle_question(&who("a"), now);
        assert_eq!(requests(&mut keeper), ["request a"]);
    }
}

#[test]
fn after_a_quarter_of_an_hour_of_failing_every_pause_is_the_longest() {
    let (mut keeper, start) = (CertificateKeeper::default(), Moment::now());
    keeper.handle_wanted(&set(&["a"]), &set(&[]), start);
    requests(&mut keeper);
    let mut now = start;
    while now < start + Duration::from_secs(15 * 60) {
        keeper.handle_issued(&who("a"), Err("down".into()), 0, now);
        let pause = due(&keeper, now).unwrap();
        assert!(pause <= Duration::from_secs(120), "the longest pause less a fifth");
        now = now + pause;
        keeper.handle_timeout(now);
        requests(&mut keeper);
    }
    keeper.handle_issued(&who("a"), Err("down".into()), 0, now);
    assert_eq!(due(&keeper, now), Some(Duration::from_secs(150)));
    keeper.handle_timeout(now + Duration::from_secs(150));
    requests(&mut keeper);
    keeper.handle_issued(&who("a"), Ok((issue("a"), fresh(now, Duration::from_secs(100)))), 0, now);
    assert_eq!(due(&keeper, now), Some(Duration::from_secs(50)), "a success ends the series");
}

#[test]
fn a_certificate_is_renewed_at_half_of_its_validity_or_soon_where_it_comes_old() {
    let (start, second) = (Moment::now(), Duration::from_secs(1));
    for (age, left, renewal) in [(0, 100, 50), (20, 80, 30), (40, 60, 15), (90, 8, 2), (0, 0, 0)] {
        let mut keeper = CertificateKeeper::default();
        keeper.handle_wanted(&set(&["a"]), &set(&[]), start);
        requests(&mut keeper);
        let life = Life { start: start.wall - age * second, end: start.wall + left * second };
        keeper.handle_issued(&who("a"), Ok((issue("a"), life)), MIDDLE, start);
        assert_eq!(due(&keeper, start), Some(renewal * second), "age {age} left {left}");
        assert_eq!(keeper.expiry(), Some(start.wall + left * second));
    }
}

#[test]
fn a_wall_clock_that_goes_on_alone_ends_lives_and_brings_renewals_forward() {
    let (start, second) = (Moment::now(), Duration::from_secs(1));
    let issued = || {
        let mut keeper = CertificateKeeper::default();
        keeper.handle_wanted(&set(&["a"]), &set(&[]), start);
        requests(&mut keeper);
        keeper.handle_issued(&who("a"), Ok((issue("a"), fresh(start, 3600 * second))), MIDDLE, start);
        requests(&mut keeper);
        keeper
    };
    let suspended = |time| Moment { instant: start.instant + 10 * second, wall: start.wall + time };
    // The clock is looked at before the half of the life is over.
    assert_eq!(due(&issued(), start), Some(60 * second));
    let mut keeper = issued();
    keeper.handle_timeout(suspended(1799 * second));
    assert!(requests(&mut keeper).is_empty());
    keeper.handle_timeout(suspended(1800 * second));
    assert_eq!(requests(&mut keeper), ["request a"]);
    // A renewal that fails is not tried again before its pause is over.
    keeper.handle_issued(&who("a"), Err("down".into()), MIDDLE, suspended(1800 * second));
    keeper.handle_timeout(suspended(1900 * second));
    assert!(requests(&mut keeper).is_empty());
    keeper = issued();
    keeper.handle_timeout(suspended(3600 * second));
    assert_eq!(requests(&mut keeper), ["withdraw a", "request a"]);
    keeper = issued();
    keeper.handle_question(&who("a"), suspended(3599 * second));
    assert!(requests(&mut keeper).is_empty());
    keeper.handle_question(&who("a"), suspended(3600 * second));
    assert_eq!(requests(&mut keeper), ["withdraw a", "request a"]);
}

#[test]
fn an_expired_certificate_is_not_asked_for_again_within_a_second_of_the_last_answer() {
    let (mut keeper, start, ms) = (CertificateKeeper::default(), Moment::now(), Duration::from_millis(1));
    keeper.handle_wanted(&set(&["a"]), &set(&[]), start);
    requests(&mut keeper);
    let life = Life { start: start.wall, end: start.wall + 4_000 * ms };
    keeper.handle_issued(&who("a"), Ok((issue("a"), life)), MIDDLE, start);
    requests(&mut keeper);
    let stepped = Moment { instant: start.instant + 100 * ms, wall: start.wall + 4_000 * ms };
    keeper.handle_question(&who("a"), stepped);
    keeper.handle_timeout(stepped + 899 * ms);
    assert_eq!(requests(&mut keeper), ["withdraw a"]);
    keeper.handle_timeout(stepped + 900 * ms);
    assert_eq!(requests(&mut keeper), ["request a"]);
}

#[test]
fn a_clock_that_is_behind_puts_no_renewal_off() {
    let (start, hour) = (Moment::now(), Duration::from_secs(3600));
    let mut keeper = CertificateKeeper::default();
    keeper.handle_wanted(&set(&["a"]), &set(&[]), start);
    requests(&mut keeper);
    let life = Life { start: start.wall + 1000 * hour, end: start.wall + 1024 * hour };
    keeper.handle_issued(&who("a"), Ok((issue("a"), life)), MIDDLE, start);
    requests(&mut keeper);
    keeper.handle_timeout(start + 12 * hour);
    assert_eq!(requests(&mut keeper), ["request a"]);
    assert!(keeper.has(&who("a")), "its end is as it is written");
}

#[test]
fn a_certificate_that_comes_expired_is_a_failure() {
    let expired = Arc::unwrap_or_clone(issue("a"));
    let end = time_of(expired.not_after_s);
    assert!(in_life(expired.clone(), end).unwrap_err().contains("has expired"));
    assert_eq!(in_life(expired, end - Duration::from_secs(1)).unwrap().1.end, end);
}

fn pods(list: &[(&str, &str)]) -> Pods {
    let view = |name: &str, account: &str| PodView {
        info: WorkloadInfo {
            name: name.into(),
            namespace: "shop".into(),
            service_account: account.into(),
            ..WorkloadInfo::default()
        },
        state: PodState::Running,
        resident: false,
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
    questions: mpsc::Sender<Question>,
    view: watch::Receiver<CertificateView>,
    totals: Arc<CertificateTotals>,
}

fn start(ttl: Duration, failures: usize) -> Bench {
    let shards = FakeShards::default();
    let mesh = Arc::new(Mesh { node: "here".into(), ..Mesh::default() });
    let (publisher, publishing) = Publisher::new(Snapshot { mesh, ..Snapshot::default() }, shards.clone());
    tokio::spawn(publishing);
    let (pods, receiver) = watch::channel(Pods::new());
    let (sender, view) = watch::channel(CertificateView::new());
    let (questions, asked) = mpsc::channel(16);
    let totals = Arc::new(CertificateTotals::default());
    let authority = EmbeddedCa::in_memory("td", SystemTime::now()).unwrap();
    tokio::spawn(run(CertificatesSetup {
        authority: Flaky(authority, Arc::new(AtomicUsize::new(failures))),
        ttl,
        trust_domain: "td".into(),
        publisher: publisher.clone(),
        pods: receiver,
        questions: asked,
        view: sender,
        totals: totals.clone(),
    }));
    Bench { shards, publisher, pods, questions, view, totals }
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
    let generations = bench.shards.certificates.lock().unwrap().clone();
    let held: Vec<_> = generations.iter().map(|held| held.contains_key(&who("cart"))).collect();
    let first = held.iter().position(|held| *held).unwrap();
    assert!(held[first..].iter().all(|held| *held), "a generation lacks the certificate: {held:?}");
}

#[tokio::test]
async fn certificates_are_renewed_also_after_the_last_word_on_pods() {
    let Bench { shards, publisher: _publisher, pods: sender, view: _view, .. } =
        start(Duration::from_secs(2), 0);
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

fn workload(uid: &str, account: &str) -> MeshEdit {
    MeshEdit::Workload(Arc::new(Workload {
        uid: uid.into(),
        name: uid.into(),
        namespace: "shop".into(),
        service_account: account.into(),
        trust_domain: "td".into(),
        node: "here".into(),
        protocol: Protocol::Hbone,
        ..Workload::default()
    }))
}

#[tokio::test]
async fn a_workload_of_the_node_has_its_certificate_before_its_pod_comes() {
    let bench = start(Duration::from_secs(3600), 0);
    bench.publisher.publish(vec![workload("w", "cart")]).await.unwrap();
    let snapshot = bench.shards.snapshot_where(|snapshot| snapshot.certificates.len() == 1).await;
    let certificate = snapshot.certificates.get(&who("cart")).unwrap().clone();
    bench.pods.send_replace(pods(&[("w", "cart")]));
    bench.publisher.publish(vec![MeshEdit::RemoveWorkload("w".into())]).await.unwrap();
    bench.publisher.publish(vec![workload("x", "web")]).await.unwrap();
    let snapshot = bench.shards.snapshot_where(|snapshot| snapshot.certificates.len() == 2).await;
    assert!(Arc::ptr_eq(&certificate, snapshot.certificates.get(&who("cart")).unwrap()));
    bench.pods.send_replace(Pods::new());
    bench.shards.snapshot_where(|snapshot| snapshot.certificates.len() == 1).await;
    assert_eq!((bench.totals.issued(), bench.totals.failed(), bench.totals.rotations()), (2, 0, 0));
}

#[tokio::test]
async fn a_question_shortens_the_wait_of_an_identity_that_fails() {
    let mut bench = start(Duration::from_secs(3600), 4);
    bench.pods.send_replace(pods(&[("one", "cart")]));
    let unavailable = |view: &CertificateView| matches!(view.as_slice(), [(_, State::Unavailable(_))]);
    tokio::time::timeout(crate::testing::DEADLINE, bench.view.wait_for(unavailable)).await.unwrap().unwrap();
    // Without questions the fifth attempt would come after 15 s, later than the deadline of the test.
    let asking = tokio::spawn(async move {
        while bench.questions.send(Question::Certificate(who("cart"))).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    bench.shards.snapshot_where(|snapshot| snapshot.certificates.len() == 1).await;
    assert_eq!((bench.totals.issued(), bench.totals.failed()), (1, 4));
    asking.abort();
}
