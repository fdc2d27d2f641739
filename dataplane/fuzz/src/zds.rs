//! ZDS: the codec fed arbitrary datagrams, and the proxy's session fed an arbitrary history.
//!
//! What decodes survives the encoder. Of the session: each request is answered once, a pod is started and stopped in
//! turn, and what it says it serves is what its effects add up to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use halo_core::zds::{
    Effect, NamespaceId, PodState, Request, WorkloadInfo, ZdsError, ZdsSession, decode_hello, decode_request,
    decode_response, encode_ack, encode_request,
};

use crate::input::Input;

/// Runs one input.
pub fn run(data: &[u8]) {
    codec(data);
    let mut input = Input::new(data);
    let mut agent = Agent::default();
    while !input.is_empty() {
        agent.act(&mut input);
        agent.check();
    }
}

fn codec(data: &[u8]) {
    for descriptors in 0..3 {
        if let Ok(request) = decode_request(data, descriptors) {
            assert_eq!(decode_request(&encode_request(&request), descriptors), Ok(request));
        }
    }
    if let Ok(text) = decode_response(data) {
        let again = decode_response(&encode_ack(text.as_deref())).expect("our own answer decodes");
        match (text, again) {
            (Some(text), Some(again)) => assert!(text.starts_with(&again), "an answer is cut, never changed"),
            (text, again) => assert_eq!(text, again),
        }
    }
    let _ = decode_hello(data);
}

/// How far a pod is, by the effects that named it.
#[derive(Debug, PartialEq, Eq)]
enum Held {
    Starting(u64),
    Running,
    Failed,
}

/// The agent and the shards at the two ends of a session.
#[derive(Default)]
struct Agent {
    session: ZdsSession,
    now_ms: u64,
    connected: bool,
    /// Answers that are due on this connection.
    due: usize,
    attempt: u64,
    held: BTreeMap<Arc<str>, (NamespaceId, Held)>,
    /// Pods named on this connection, until its snapshot.
    named: Option<BTreeSet<Arc<str>>>,
}

impl Agent {
    fn act(&mut self, input: &mut Input<'_>) {
        let choice = input.byte();
        let uid: Arc<str> = ["a", "b", "c"][usize::from(choice >> 6) % 3].into();
        let namespace = NamespaceId { device: 4, inode: u64::from(choice >> 5 & 1) };
        match choice & 15 {
            0 => self.connect(),
            1 => self.disconnect(),
            2..=5 => self.report(&uid, choice, input),
            6 | 7 => {
                self.now_ms += 100 * u64::from(input.byte());
                self.session.handle_timeout(self.now_ms);
            }
            _ if !self.connected || self.session.is_busy() => {}
            8 => self.answer(|session| session.handle_error(&ZdsError::Malformed)),
            9 => self.snapshot(),
            10 => {
                self.name(&uid, true);
                self.request(Request::Keep { uid }, None);
            }
            11 => {
                self.name(&uid, false);
                self.request(Request::Del { uid }, None);
            }
            12 => self.request(Request::Add { uid, info: WorkloadInfo::default() }, None),
            _ => {
                self.name(&uid, true);
                self.request(Request::Add { uid, info: WorkloadInfo::default() }, Some(namespace));
            }
        }
        self.play();
    }

    fn connect(&mut self) {
        self.session.connected();
        self.connected = true;
        self.named = Some(BTreeSet::new());
        self.due = 0;
    }

    fn disconnect(&mut self) {
        self.session.disconnected();
        self.connected = false;
        self.named = None;
        self.due = 0;
    }

    /// Reports a start: the one that runs, or one that never was.
    fn report(&mut self, uid: &Arc<str>, choice: u8, input: &mut Input<'_>) {
        let result = if choice & 16 == 0 { Ok(()) } else { Err("address in use".to_owned()) };
        let held = self.held.get_mut(uid).map(|(_, held)| held);
        let attempt = match held {
            Some(held @ Held::Starting(_)) if choice & 3 != 0 => {
                let Held::Starting(attempt) = *held else { return };
                *held = if result.is_ok() { Held::Running } else { Held::Failed };
                attempt
            }
            // Numbers that were given out grow from 1, and the running one is excluded.
            Some(Held::Starting(running)) => {
                let other = u64::from(input.byte());
                if other == *running { other + 1 } else { other }
            }
            _ => u64::from(input.byte()),
        };
        self.session.started(uid, attempt, result, self.now_ms);
    }

    fn name(&mut self, uid: &Arc<str>, exists: bool) {
        if let Some(named) = &mut self.named {
            named.retain(|other| other != uid);
            named.extend(exists.then(|| uid.clone()));
        }
    }

    fn snapshot(&mut self) {
        let named = self.named.take();
        self.request(Request::SnapshotSent, None);
        if let Some(named) = named {
            let unnamed = |(uid, ..): (&Arc<str>, &WorkloadInfo, PodState)| !named.contains(uid);
            assert!(!self.session.pods().any(unnamed), "a pod outlived a snapshot without it");
        }
    }

    fn request(&mut self, request: Request, namespace: Option<NamespaceId>) {
        self.answer(|session| session.handle(request, namespace));
    }

    fn answer(&mut self, ask: impl FnOnce(&mut ZdsSession)) {
        assert_eq!(self.due, 0);
        self.due = 1;
        ask(&mut self.session);
    }

    fn play(&mut self) {
        while let Some(effect) = self.session.poll_effect() {
            match effect {
                Effect::Start { uid, namespace, attempt, .. } => {
                    assert!(attempt > self.attempt, "an attempt has a number of its own");
                    self.attempt = attempt;
                    let before = self.held.insert(uid, (namespace, Held::Starting(attempt)));
                    assert!(before.is_none_or(|(_, held)| held == Held::Failed), "started twice");
                }
                Effect::Stop { uid, namespace } => {
                    let (started_in, held) = self.held.remove(&uid).expect("what is stopped was started");
                    assert!(started_in == namespace && held != Held::Failed);
                }
                Effect::Forget { uid } => {
                    let (_, held) = self.held.remove(&uid).expect("what is forgotten was known");
                    assert_eq!(held, Held::Failed, "what is served is stopped, not forgotten");
                }
                Effect::Ack { .. } => {
                    self.due = self.due.checked_sub(1).expect("an answer that nobody is waiting for");
                }
            }
        }
    }

    fn check(&self) {
        assert_eq!(self.session.is_busy(), self.due == 1, "an answer is lost");
        let served: Vec<_> = self.session.pods().map(|(uid, _, state)| (uid, state)).collect();
        let state = |held: &Held| match held {
            Held::Starting(_) => PodState::Starting,
            Held::Running => PodState::Running,
            Held::Failed => PodState::Pending,
        };
        let held: Vec<_> = self.held.iter().map(|(uid, (_, held))| (uid, state(held))).collect();
        assert_eq!(served, held);
        let failed = served.iter().any(|(_, state)| *state == PodState::Pending);
        assert!(!self.session.is_ready() || (self.connected && self.named.is_none() && !failed));
        assert!(self.session.poll_timeout().is_some() == failed, "a failed pod is retried");
    }
}
