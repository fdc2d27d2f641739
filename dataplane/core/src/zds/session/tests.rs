use super::*;

const HERE: NamespaceId = NamespaceId { device: 4, inode: 100 };
const THERE: NamespaceId = NamespaceId { device: 4, inode: 200 };

/// A session with the shard's side played by the test.
struct Rig {
    session: ZdsSession,
    now_ms: u64,
}

/// What one request led to, in order: `start`, `stop`, `forget`, `ok` or `error`.
type Words = Vec<&'static str>;

impl Rig {
    fn new() -> Self {
        let mut session = ZdsSession::new();
        session.connected();
        Self { session, now_ms: 1_000 }
    }

    fn reconnect(&mut self) -> Words {
        self.session.disconnected();
        let words = self.play(true);
        self.session.connected();
        words
    }

    /// Handles a request; every start that it leads to succeeds or fails.
    fn request(&mut self, request: Request, namespace: Option<NamespaceId>, starts: bool) -> Words {
        self.session.handle(request, namespace);
        self.play(starts)
    }

    fn add(&mut self, uid: &str, namespace: NamespaceId, starts: bool) -> Words {
        let request = Request::Add { uid: uid.into(), info: WorkloadInfo::default() };
        self.request(request, Some(namespace), starts)
    }

    fn keep(&mut self, uid: &str) -> Words {
        self.request(Request::Keep { uid: uid.into() }, None, true)
    }

    fn del(&mut self, uid: &str) -> Words {
        self.request(Request::Del { uid: uid.into() }, None, true)
    }

    fn snapshot(&mut self) -> Words {
        self.request(Request::SnapshotSent, None, true)
    }

    fn advance(&mut self, ms: u64, starts: bool) -> Words {
        self.now_ms += ms;
        self.session.handle_timeout(self.now_ms);
        self.play(starts)
    }

    fn play(&mut self, starts: bool) -> Words {
        let mut words = Words::new();
        while let Some(effect) = self.session.poll_effect() {
            words.push(match effect {
                Effect::Start { uid, attempt, .. } => {
                    let result = if starts { Ok(()) } else { Err("address in use".into()) };
                    self.session.started(&uid, attempt, result, self.now_ms);
                    "start"
                }
                Effect::Stop { .. } => "stop",
                Effect::Forget { .. } => "forget",
                Effect::Ack { error: None } => "ok",
                Effect::Ack { error: Some(_) } => "error",
            });
        }
        words
    }

    fn state(&self, uid: &str) -> Option<PodState> {
        self.session.pods().find(|(other, ..)| &***other == uid).map(|(.., state)| state)
    }
}

#[test]
fn a_new_pod_is_started_and_answered_once_it_runs() {
    let mut rig = Rig::new();
    let request = Request::Add { uid: "a".into(), info: WorkloadInfo::default() };
    rig.session.handle(request, Some(HERE));
    let Some(Effect::Start { uid, namespace, attempt, .. }) = rig.session.poll_effect() else {
        panic!("no start");
    };
    assert_eq!((&*uid, namespace, rig.session.poll_effect()), ("a", HERE, None));
    assert!(rig.session.is_busy());
    rig.session.started("a", attempt, Ok(()), 0);
    assert_eq!(rig.session.poll_effect(), Some(Effect::Ack { error: None }));
    assert!(!rig.session.is_busy());
    assert_eq!(rig.state("a"), Some(PodState::Running));
}

#[test]
fn the_same_pod_in_the_same_namespace_is_left_alone() {
    let mut rig = Rig::new();
    assert_eq!(rig.add("a", HERE, true), ["start", "ok"]);
    assert_eq!(rig.add("a", HERE, true), ["ok"]);
}

#[test]
fn the_same_pod_in_another_namespace_is_replaced() {
    let mut rig = Rig::new();
    rig.add("a", HERE, true);
    assert_eq!(rig.add("a", THERE, true), ["stop", "start", "ok"]);
    assert_eq!(rig.add("a", THERE, true), ["ok"]);
}

#[test]
fn a_kept_pod_outlives_the_snapshot_and_any_other_is_stopped() {
    let mut rig = Rig::new();
    rig.add("kept", HERE, true);
    rig.add("gone", THERE, true);
    rig.snapshot();
    assert!(rig.reconnect().is_empty());
    assert_eq!(rig.keep("kept"), ["ok"]);
    assert_eq!(rig.keep("stranger"), ["ok"]);
    assert_eq!(rig.snapshot(), ["stop", "ok"]);
    assert_eq!(rig.state("kept"), Some(PodState::Running));
    assert_eq!((rig.state("gone"), rig.state("stranger")), (None, None));
}

#[test]
fn a_keep_after_the_snapshot_is_refused_and_changes_nothing() {
    let mut rig = Rig::new();
    rig.add("a", HERE, true);
    rig.snapshot();
    assert_eq!(rig.keep("a"), ["error"]);
    assert_eq!(rig.state("a"), Some(PodState::Running));
    assert!(rig.session.is_ready());
}

#[test]
fn a_del_before_the_snapshot_takes_effect_with_the_snapshot() {
    let mut rig = Rig::new();
    rig.add("a", HERE, true);
    assert_eq!(rig.del("a"), ["ok"]);
    assert_eq!(rig.state("a"), Some(PodState::Running));
    assert_eq!(rig.snapshot(), ["stop", "ok"]);
}

#[test]
fn a_del_before_the_snapshot_forgets_a_pending_pod() {
    let mut rig = Rig::new();
    rig.add("a", HERE, false);
    assert_eq!(rig.del("a"), ["forget", "ok"]);
    assert_eq!(rig.session.poll_timeout(), None);
    assert_eq!(rig.snapshot(), ["ok"]);
}

#[test]
fn a_del_after_the_snapshot_stops_at_once_and_an_unknown_uid_is_fine() {
    let mut rig = Rig::new();
    rig.add("a", HERE, true);
    rig.snapshot();
    assert_eq!(rig.del("a"), ["stop", "ok"]);
    assert_eq!(rig.del("a"), ["ok"]);
}

#[test]
fn a_second_snapshot_is_refused_and_stops_nothing() {
    let mut rig = Rig::new();
    rig.snapshot();
    rig.add("a", HERE, true);
    assert_eq!(rig.snapshot(), ["error"]);
    assert_eq!(rig.state("a"), Some(PodState::Running));
    rig.reconnect();
    rig.keep("a");
    assert_eq!(rig.snapshot(), ["ok"]);
}

#[test]
fn a_failed_start_is_answered_with_its_error_and_retried_every_five_seconds() {
    let mut rig = Rig::new();
    rig.snapshot();
    assert!(rig.session.is_ready());
    assert_eq!(rig.add("a", HERE, false), ["start", "error"]);
    assert_eq!(rig.state("a"), Some(PodState::Pending));
    assert!(!rig.session.is_ready());
    assert_eq!(rig.session.poll_timeout(), Some(rig.now_ms + RETRY_MS));
    assert!(rig.advance(RETRY_MS - 1, true).is_empty());
    assert_eq!(rig.advance(1, false), ["start"]);
    assert_eq!(rig.session.poll_timeout(), Some(rig.now_ms + RETRY_MS));
    assert_eq!(rig.advance(RETRY_MS, true), ["start"]);
    assert_eq!(rig.state("a"), Some(PodState::Running));
    assert!(rig.session.is_ready());
}

#[test]
fn a_later_add_or_del_overtakes_a_pending_pod() {
    let mut rig = Rig::new();
    rig.snapshot();
    rig.add("a", HERE, false);
    rig.add("b", HERE, false);
    assert_eq!(rig.add("a", THERE, true), ["start", "ok"]);
    assert_eq!(rig.del("b"), ["forget", "ok"]);
    assert_eq!(rig.session.poll_timeout(), None);
}

#[test]
fn an_add_during_a_retry_is_answered_by_it() {
    let mut rig = Rig::new();
    rig.add("a", HERE, false);
    rig.session.handle_timeout(rig.now_ms + RETRY_MS);
    let Some(Effect::Start { attempt, .. }) = rig.session.poll_effect() else { panic!("no start") };
    assert!(rig.add("a", HERE, true).is_empty());
    rig.session.started("a", attempt, Ok(()), rig.now_ms);
    assert_eq!(rig.play(true), ["ok"]);
}

#[test]
fn the_result_of_an_overtaken_start_is_ignored() {
    let mut rig = Rig::new();
    rig.add("a", HERE, false);
    rig.session.handle_timeout(rig.now_ms + RETRY_MS);
    let Some(Effect::Start { attempt, .. }) = rig.session.poll_effect() else { panic!("no start") };
    assert_eq!(rig.add("a", THERE, true), ["stop", "start", "ok"]);
    rig.session.started("a", attempt, Err("gone".into()), rig.now_ms);
    assert_eq!((rig.state("a"), rig.play(true)), (Some(PodState::Running), vec![]));
}

#[test]
fn a_lost_connection_keeps_what_runs_and_forgets_what_is_pending() {
    let mut rig = Rig::new();
    rig.add("runs", HERE, true);
    rig.add("fails", THERE, false);
    rig.snapshot();
    rig.session.disconnected();
    assert_eq!(rig.play(true), ["forget"]);
    assert!(!rig.session.is_ready());
    rig.session.connected();
    assert!(!rig.session.is_ready());
    assert_eq!(rig.add("runs", HERE, true), ["ok"]);
    assert_eq!(rig.snapshot(), ["ok"]);
    assert!(rig.session.is_ready());
}

#[test]
fn a_start_that_outlives_its_connection_is_not_answered_and_not_retried() {
    let mut rig = Rig::new();
    for uid in ["works", "fails"] {
        rig.session.disconnected();
        rig.session.connected();
        let request = Request::Add { uid: uid.into(), info: WorkloadInfo::default() };
        rig.session.handle(request, Some(HERE));
        let Some(Effect::Start { attempt, .. }) = rig.session.poll_effect() else { panic!("no start") };
        assert!(rig.reconnect().is_empty());
        let result = if uid == "works" { Ok(()) } else { Err("gone".into()) };
        rig.session.started(uid, attempt, result, rig.now_ms);
    }
    assert_eq!(rig.play(true), ["forget"]);
    assert_eq!((rig.state("works"), rig.state("fails")), (Some(PodState::Running), None));
}

#[test]
fn a_start_that_outlives_its_connection_is_retried_once_the_agent_keeps_its_pod() {
    let mut rig = Rig::new();
    let request = Request::Add { uid: "a".into(), info: WorkloadInfo::default() };
    rig.session.handle(request, Some(HERE));
    let Some(Effect::Start { attempt, .. }) = rig.session.poll_effect() else { panic!("no start") };
    assert!(rig.reconnect().is_empty());
    assert_eq!((rig.keep("a"), rig.snapshot()), (vec!["ok"], vec!["ok"]));
    rig.session.started("a", attempt, Err("busy".into()), rig.now_ms);
    assert_eq!(rig.state("a"), Some(PodState::Pending));
    assert!(!rig.session.is_ready());
    assert_eq!(rig.advance(5_000, true), ["start"]);
    assert_eq!(rig.state("a"), Some(PodState::Running));
}

#[test]
fn an_answer_that_can_no_longer_be_sent_is_dropped() {
    let mut rig = Rig::new();
    rig.session.handle(Request::Keep { uid: "a".into() }, None);
    assert!(rig.reconnect().is_empty());
}

#[test]
fn a_broken_datagram_is_refused_and_the_session_goes_on() {
    let mut rig = Rig::new();
    rig.session.handle_error(&ZdsError::Malformed);
    assert_eq!(rig.play(true), ["error"]);
    let request = Request::Add { uid: "a".into(), info: WorkloadInfo::default() };
    assert_eq!(rig.request(request, None, true), ["error"]);
    assert_eq!(rig.state("a"), None);
    assert_eq!(rig.add("a", HERE, true), ["start", "ok"]);
}

#[test]
fn readiness_needs_a_connection_a_snapshot_and_nothing_pending() {
    let mut session = ZdsSession::new();
    assert!(!session.is_ready());
    session.connected();
    assert!(!session.is_ready());
    session.handle(Request::SnapshotSent, None);
    assert!(session.is_ready());
    session.disconnected();
    assert!(!session.is_ready());
}
