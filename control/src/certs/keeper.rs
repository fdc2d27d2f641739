//! Decides when a certificate is requested, published, renewed and withdrawn. It requests nothing itself.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Add;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use halo_core::certificate::Certificate;
use halo_core::id::Identity;

/// Requests in flight.
const REQUESTS_MAX: usize = 8;
/// Least time between a certificate and its renewal, whatever is left of its life.
const RENEWAL_MIN: Duration = Duration::from_millis(500);
/// Pause after the first failure; it doubles. Each pause is spread by a fifth either way.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// Failures after which a question shortens a pause to [`RETRY_MIN`]; after more of them the authority is down rather
/// than busy, and it is left alone for [`ASKED_PAUSE`].
const ASKED_FAILURES: u32 = 4;
/// Pause after many failures, while connections wait.
const ASKED_PAUSE: Duration = Duration::from_secs(15);
/// Longest pause between attempts, before it is spread.
const RETRY_MAX: Duration = Duration::from_secs(150);
/// Longest time until the lives of certificates are looked at again: the wall clock, which they are written in, may be
/// set, and goes on while the machine is suspended.
const LOOK: Duration = Duration::from_secs(60);
/// After failing for this long, every pause is the longest, and not spread any more.
const FAILING_MAX: Duration = Duration::from_secs(15 * 60);

/// How much an identity's request matters; more is first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// It has a certificate, which is to be renewed.
    Background,
    /// A workload of the node has it, and no pod yet.
    Warmup,
    /// A pod has it, and its connections are refused.
    Pod,
    /// A connection waits for it.
    RealTime,
}

/// A moment by both clocks. Pauses are counted by the one that is never set; lives of certificates are written in the
/// other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    /// By the clock that is never set.
    pub instant: Instant,
    /// By the wall clock.
    pub wall: SystemTime,
}

impl Moment {
    /// This moment.
    pub fn now() -> Self {
        Self { instant: Instant::now(), wall: SystemTime::now() }
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self { instant: self.instant + duration, wall: self.wall + duration }
    }
}

/// A certificate's validity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// When it begins.
    pub start: SystemTime,
    /// When it ends.
    pub end: SystemTime,
}

impl Life {
    /// In how long it is renewed: at half of its validity. One that comes old is renewed after a quarter of what is left,
    /// so that an authority that gives no better is not asked without pause. One that begins only later, by a clock
    /// that is behind, has no more left than its validity.
    fn renewal(self, now: SystemTime) -> Duration {
        let whole = self.end.duration_since(self.start).unwrap_or_default();
        let age = now.duration_since(self.start).unwrap_or_default();
        let left = self.end.duration_since(now).unwrap_or_default().min(whole);
        (whole / 2).saturating_sub(age).max(left / 4).max(RENEWAL_MIN)
    }
}

/// What the caller has to do.
#[derive(Debug, Clone)]
pub enum Event {
    /// Ask for a certificate, and report it with `handle_issued`.
    Request(Identity),
    /// Put a certificate in force.
    Publish(Arc<Certificate>),
    /// Take the identity's certificate out of force.
    Withdraw(Identity),
}

/// The state of one certificate, in the words of `config_dump`.
#[derive(Debug, Clone)]
pub enum State {
    /// Not issued yet, and nothing has failed.
    Initializing,
    /// In force. A renewal may be failing; this one is valid still.
    Available(Arc<Certificate>),
    /// None is in force, and why.
    Unavailable(Arc<str>),
}

impl State {
    /// Whether both are the same state, without comparing what certificates hold.
    pub(super) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Initializing, Self::Initializing) => true,
            (Self::Available(one), Self::Available(other)) => Arc::ptr_eq(one, other),
            (Self::Unavailable(one), Self::Unavailable(other)) => one == other,
            _ => false,
        }
    }
}

/// A certificate in force.
#[derive(Debug)]
struct Held {
    certificate: Arc<Certificate>,
    end: SystemTime,
    /// When it is renewed, should that come before the phase's time by the other clock.
    renewal: SystemTime,
}

#[derive(Debug)]
struct Entry {
    certificate: Option<Held>,
    error: Option<Arc<str>>,
    failures: u32,
    /// The first failure since the last success, and the last one.
    failing: Option<(Instant, Instant)>,
    /// The last answer of either kind.
    answered: Option<Instant>,
    /// Whether a pod has the identity.
    pod: bool,
    /// Whether a connection waits.
    asked: bool,
    phase: Phase,
}

impl Entry {
    /// No certificate yet, and no failure.
    fn new(phase: Phase) -> Self {
        Self {
            certificate: None,
            error: None,
            failures: 0,
            failing: None,
            answered: None,
            pod: false,
            asked: false,
            phase,
        }
    }

    fn priority(&self) -> Priority {
        match (&self.certificate, self.asked, self.pod) {
            (Some(_), ..) => Priority::Background,
            (None, true, _) => Priority::RealTime,
            (None, false, true) => Priority::Pod,
            (None, false, false) => Priority::Warmup,
        }
    }

    /// Schedules the next attempt after one that failed.
    fn fail(&mut self, error: String, random: u64, now: Instant) {
        let since = self.failing.map_or(now, |(since, _)| since);
        let pause = match now.saturating_duration_since(since) >= FAILING_MAX {
            true => RETRY_MAX,
            false => spread(RETRY_MIN.saturating_mul(1 << self.failures.min(16)).min(RETRY_MAX), random),
        };
        self.error = Some(error.into());
        self.failures = self.failures.saturating_add(1);
        self.failing = Some((since, now));
        self.answered = Some(now);
        self.asked = false;
        self.phase = Phase::Scheduled(now + pause);
    }

    /// Takes a certificate, and schedules its renewal.
    fn succeed(&mut self, certificate: Arc<Certificate>, life: Life, now: Moment) {
        let renewal = now + life.renewal(now.wall);
        self.certificate = Some(Held { certificate, end: life.end, renewal: renewal.wall });
        self.error = None;
        self.failures = 0;
        self.failing = None;
        self.answered = Some(now.instant);
        self.asked = false;
        self.phase = Phase::Scheduled(renewal.instant);
    }

    /// Queues the next attempt, if its time has come by either clock. The pauses after failures are by one only.
    fn fall_due(&mut self, now: Moment) {
        let Phase::Scheduled(at) = self.phase else { return };
        let renewal = self.certificate.as_ref().filter(|_| self.failing.is_none()).map(|held| held.renewal);
        if at <= now.instant || renewal.is_some_and(|renewal| renewal <= now.wall) {
            self.phase = Phase::Queued(now.instant);
        }
    }

    /// Lets go of a certificate whose life has ended, and makes the next attempt now or soon; says whether it did.
    fn expire(&mut self, now: Moment) -> bool {
        if self.certificate.take_if(|held| held.end <= now.wall).is_none() {
            return false;
        }
        self.error.get_or_insert_with(|| "the certificate has expired".into());
        self.hasten(RETRY_MIN, now.instant);
        true
    }

    /// Brings the next attempt forward to this pause after the last answer, if it was to come later.
    fn hasten(&mut self, pause: Duration, now: Instant) {
        if let Phase::Scheduled(at) = self.phase {
            let soonest = self.answered.map_or(now, |last| last + pause).min(at);
            self.phase = if soonest <= now { Phase::Queued(now) } else { Phase::Scheduled(soonest) };
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Waits since this time for one of the places for requests.
    Queued(Instant),
    /// Requested.
    InFlight,
    /// Requested again at this time: a renewal, or another attempt.
    Scheduled(Instant),
}

/// Certificates of the node's identities.
///
/// Order of calls: any `handle_*`, then `poll_event` until `None`; `handle_timeout` once `poll_timeout` has passed. Each
/// [`Event::Request`] is answered by one `handle_issued`, also after its identity is no longer wanted.
///
/// Requests are made in order of [`Priority`]; among equals, the one that has waited longest is first. A renewal has the
/// last of the eight places while no other is in flight: the certificates that are in force outlive a storm of requests
/// that all fail.
///
/// Invariants, checked after every call in debug builds: no more than eight requests are in flight, counting those of
/// identities that are gone; an entry in flight was requested.
#[derive(Debug, Default)]
pub struct CertificateKeeper {
    entries: BTreeMap<Identity, Entry>,
    /// Identities in flight, wanted or not.
    in_flight: BTreeSet<Identity>,
    events: VecDeque<Event>,
}

impl CertificateKeeper {
    /// Takes the identities that are wanted from now on: those of pods, and those that pods are expected to have.
    pub fn handle_wanted(&mut self, pods: &BTreeSet<Identity>, expected: &BTreeSet<Identity>, now: Moment) {
        let wanted = |identity: &Identity| pods.contains(identity) || expected.contains(identity);
        let gone: Vec<_> = self.entries.keys().filter(|identity| !wanted(identity)).cloned().collect();
        for identity in gone {
            if self.entries.remove(&identity).is_some_and(|entry| entry.certificate.is_some()) {
                self.events.push_back(Event::Withdraw(identity));
            }
        }
        for identity in pods.union(expected) {
            if !self.entries.contains_key(identity) {
                let in_flight = self.in_flight.contains(identity);
                let phase = if in_flight { Phase::InFlight } else { Phase::Queued(now.instant) };
                self.entries.insert(identity.clone(), Entry::new(phase));
            }
        }
        for (identity, entry) in &mut self.entries {
            entry.pod = pods.contains(identity);
        }
        self.check();
    }

    /// A connection waits for an identity's certificate: there is none, or its life has ended. One that has failed is
    /// tried again at once, but not within a second of the last failure, nor within 15 s once it has failed more than
    /// four times. Identities that are not wanted, and those that have a certificate, stay as they are.
    pub fn handle_question(&mut self, identity: &Identity, now: Moment) {
        if let Some(entry) = self.entries.get_mut(identity) {
            if entry.expire(now) {
                self.events.push_back(Event::Withdraw(identity.clone()));
            }
            if entry.certificate.is_none() {
                entry.asked = true;
                let pause = if entry.failures > ASKED_FAILURES { ASKED_PAUSE } else { RETRY_MIN };
                entry.hasten(pause, now.instant);
            }
        }
        self.check();
    }

    /// Takes the answer to a request: a certificate with its life, or why there is none. `random` is uniform over all of
    /// `u64`; it spreads the next attempts of identities that failed together.
    pub fn handle_issued(
        &mut self,
        identity: &Identity,
        result: Result<(Arc<Certificate>, Life), String>,
        random: u64,
        now: Moment,
    ) {
        self.in_flight.remove(identity);
        if let Some(entry) = self.entries.get_mut(identity) {
            match result {
                Ok((certificate, life)) => {
                    self.events.push_back(Event::Publish(certificate.clone()));
                    entry.succeed(certificate, life, now);
                }
                Err(error) => entry.fail(error, random, now.instant),
            }
        }
        self.check();
    }

    /// The next thing to do; `None` once all is done.
    pub fn poll_event(&mut self) -> Option<Event> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        if self.in_flight.len() == REQUESTS_MAX {
            return None;
        }
        let last_is_renewals = self.in_flight.len() + 1 == REQUESTS_MAX && !self.is_renewing();
        let queued = self.entries.iter_mut().filter_map(|(identity, entry)| match entry.phase {
            Phase::Queued(since) => {
                let other = last_is_renewals && entry.certificate.is_none();
                Some(((other, Reverse(entry.priority()), since), identity, entry))
            }
            Phase::InFlight | Phase::Scheduled(_) => None,
        });
        let (_, identity, entry) = queued.min_by_key(|(rank, ..)| *rank)?;
        entry.phase = Phase::InFlight;
        let identity = identity.clone();
        self.in_flight.insert(identity.clone());
        self.check();
        Some(Event::Request(identity))
    }

    /// Whether a renewal is in flight.
    fn is_renewing(&self) -> bool {
        self.entries.values().any(|entry| entry.phase == Phase::InFlight && entry.certificate.is_some())
    }

    /// When `handle_timeout` is due: within a minute, as long as there is a certificate.
    pub fn poll_timeout(&self, now: Moment) -> Option<Instant> {
        let due = |entry: &Entry| {
            let request = match entry.phase {
                Phase::Scheduled(at) => Some(at),
                Phase::Queued(_) | Phase::InFlight => None,
            };
            let look = entry
                .certificate
                .as_ref()
                .map(|held| now.instant + held.end.duration_since(now.wall).unwrap_or_default().min(LOOK));
            request.into_iter().chain(look).min()
        };
        self.entries.values().filter_map(due).min()
    }

    /// Queues what is due, and withdraws what has expired.
    pub fn handle_timeout(&mut self, now: Moment) {
        for (identity, entry) in &mut self.entries {
            entry.fall_due(now);
            if entry.expire(now) {
                self.events.push_back(Event::Withdraw(identity.clone()));
            }
        }
        self.check();
    }

    /// The state of every certificate, in order of identity.
    pub fn states(&self) -> impl Iterator<Item = (&Identity, State)> {
        self.entries.iter().map(|(identity, entry)| {
            let state = match (&entry.certificate, &entry.error) {
                (Some(held), _) => State::Available(held.certificate.clone()),
                (None, Some(error)) => State::Unavailable(error.clone()),
                (None, None) => State::Initializing,
            };
            (identity, state)
        })
    }

    /// Requests that are out.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// When the first of the certificates in force ends.
    pub fn expiry(&self) -> Option<SystemTime> {
        self.entries.values().filter_map(|entry| entry.certificate.as_ref()).map(|held| held.end).min()
    }

    /// Whether an identity has a certificate.
    pub fn has(&self, identity: &Identity) -> bool {
        self.entries.get(identity).is_some_and(|entry| entry.certificate.is_some())
    }

    fn check(&self) {
        debug_assert!(self.in_flight.len() <= REQUESTS_MAX, "too many requests in flight");
        let requested = |(identity, entry): (&Identity, &Entry)| {
            (entry.phase == Phase::InFlight) == self.in_flight.contains(identity)
        };
        debug_assert!(self.entries.iter().all(requested), "an entry and its request disagree");
    }
}

/// A pause between four fifths and six fifths of the one that is given.
fn spread(pause: Duration, random: u64) -> Duration {
    let width_ns = (pause * 2 / 5).as_nanos();
    // Neither step overflows: a pause of minutes is less than 2^40 ns, and the result is less than the width.
    let more_ns = (u128::from(random) * width_ns) >> 64;
    pause * 4 / 5 + Duration::from_nanos(more_ns as u64)
}
