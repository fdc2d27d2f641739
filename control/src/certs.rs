//! Keeps a certificate for every identity of the node's pods: one for all pods of an identity, renewed at half its
//! life, tried again when it could not be issued, and forgotten with the identity's last pod. Workloads that the mesh
//! places on the node get theirs before their pod comes. A renewal publishes a new snapshot and touches no traffic.

pub mod keeper;
#[cfg(test)]
mod tests;
mod totals;

use std::collections::BTreeSet;
use std::future::pending;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use halo_core::certificate::Certificate;
use halo_core::demand::Question;
use halo_core::id::Identity;
use halo_core::snapshot::Snapshot;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{debug, error, info, warn};

use crate::ca::CertificateAuthority;
use crate::edit::MeshEdit;
use crate::once::Told;
use crate::pods::{Pods, identity};
use crate::publish::{Publisher, PublisherGone};
use keeper::{CertificateKeeper, Event, Life, Moment, State};
pub use totals::CertificateTotals;

/// Identities that get a certificate before a pod has them: several times the pods that a node has.
const EXPECTED_MAX: usize = 1024;

/// The state of every certificate, in order of identity.
pub type CertificateView = Vec<(Identity, State)>;

/// Where certificates come from and what they are for.
pub(crate) struct CertificatesSetup<A> {
    pub(crate) authority: A,
    pub(crate) ttl: Duration,
    /// For pods that the mesh does not know yet.
    pub(crate) trust_domain: Arc<str>,
    pub(crate) publisher: Publisher,
    pub(crate) pods: watch::Receiver<Pods>,
    /// What connections wait for. Questions about anything but certificates are passed over.
    pub(crate) questions: mpsc::Receiver<Question>,
    pub(crate) view: watch::Sender<CertificateView>,
    pub(crate) totals: Arc<CertificateTotals>,
}

type Issued = (Identity, Result<Certificate, String>);

/// Keeps certificates until the publisher goes. Once the pods' sender goes, as it does when the node drains, the pods
/// that it named last still need theirs.
pub(crate) async fn run<A: CertificateAuthority>(mut setup: CertificatesSetup<A>) {
    let mut keeper = CertificateKeeper::default();
    let mut snapshots = setup.publisher.subscribe();
    let mut own = setup.publisher.own_identities();
    let mut calls: JoinSet<Issued> = JoinSet::new();
    let mut told = Told::default();
    let (mut pods_change, mut questions_come) = (true, true);
    let mut snapshot = snapshots.borrow_and_update().clone();
    let mut anew = true;
    loop {
        if std::mem::take(&mut anew) {
            let pods = of_pods(&setup, &snapshot);
            let expected = expected(&own.borrow_and_update());
            keeper.handle_wanted(&pods, &expected, Moment::now());
        }
        // At every turn, so that a busy mesh does not keep putting it off.
        keeper.handle_timeout(Moment::now());
        if let Err(gone) = act(&mut keeper, &setup, &mut calls).await {
            return error!(%gone, "certificates are not kept any more");
        }
        show(&keeper, &setup);
        tokio::select! {
            changed = setup.pods.changed(), if pods_change => (pods_change, anew) = (changed.is_ok(), true),
            other = mesh_changed(&mut snapshots, &mut snapshot) => match other {
                true => anew = true,
                false => return,
            },
            changed = own.changed() => match changed {
                Ok(()) => anew = true,
                Err(_) => return,
            },
            question = setup.questions.recv(), if questions_come => match question {
                Some(Question::Certificate(identity)) => keeper.handle_question(&identity, Moment::now()),
                Some(_) => {}
                None => questions_come = false,
            },
            issued = next(&mut calls) => report(&mut keeper, &setup.totals, &mut told, issued),
            () = wait_until(keeper.poll_timeout(Moment::now())) => {}
        }
    }
}

/// Waits for a generation whose workloads differ from those of the last one; `false` when there will be none. The
/// keeper's own publications, and changes of services and policies, are not worth a look at every pod.
async fn mesh_changed(snapshots: &mut watch::Receiver<Arc<Snapshot>>, last: &mut Arc<Snapshot>) -> bool {
    while snapshots.changed().await.is_ok() {
        let next = snapshots.borrow_and_update().clone();
        let same = next.workloads.same(&last.workloads);
        *last = next;
        if !same {
            return true;
        }
    }
    false
}

/// The identities of the pods that are there now.
fn of_pods<A>(setup: &CertificatesSetup<A>, snapshot: &Snapshot) -> BTreeSet<Identity> {
    let pods = setup.pods.borrow();
    pods.values().map(|pod| identity(snapshot, &pod.info, &setup.trust_domain)).collect()
}

/// The identities that pods are expected to have, up to a bound.
fn expected(own: &BTreeSet<Identity>) -> BTreeSet<Identity> {
    own.iter().take(EXPECTED_MAX).cloned().collect()
}

/// Shows where things stand, where that has changed.
fn show<A>(keeper: &CertificateKeeper, setup: &CertificatesSetup<A>) {
    setup.totals.stand(keeper.in_flight(), keeper.expiry());
    setup.view.send_if_modified(|view| {
        let same =
            |((old, was), (new, is)): (&(Identity, State), (&Identity, State))| old == new && was.same(&is);
        let unchanged = view.len() == keeper.states().count() && view.iter().zip(keeper.states()).all(same);
        if !unchanged {
            *view = keeper.states().map(|(identity, state)| (identity.clone(), state)).collect();
        }
        !unchanged
    });
}

async fn act<A: CertificateAuthority>(
    keeper: &mut CertificateKeeper,
    setup: &CertificatesSetup<A>,
    calls: &mut JoinSet<Issued>,
) -> Result<(), PublisherGone> {
    let mut edits = Vec::new();
    while let Some(event) = keeper.poll_event() {
        match event {
            Event::Request(identity) => {
                let (authority, ttl) = (setup.authority.clone(), setup.ttl);
                calls.spawn(async move {
                    // On a task of its own, so that a failure of the authority is an answer like any other.
                    let asked = identity.clone();
                    let issue = async move { authority.issue(asked, ttl, SystemTime::now()).await };
                    let result = match tokio::spawn(issue).await {
                        Ok(result) => result.map_err(|error| error.to_string()),
                        Err(failure) => Err(format!("internal error: {failure}")),
                    };
                    (identity, result)
                });
            }
            Event::Publish(certificate) => edits.push(MeshEdit::Certificate(certificate)),
            Event::Withdraw(identity) => edits.push(MeshEdit::RemoveCertificate(identity)),
        }
    }
    let changes = edits.len();
    if changes > 0 {
        let generation = setup.publisher.publish(edits).await?;
        debug!(changes, generation, "certificates published");
    }
    Ok(())
}

fn report(
    keeper: &mut CertificateKeeper,
    totals: &CertificateTotals,
    told: &mut Told,
    (identity, result): Issued,
) {
    let now = Moment::now();
    let result = result.and_then(|certificate| in_life(certificate, now.wall));
    match &result {
        Ok((certificate, _)) => {
            totals.count_issued(keeper.has(&identity));
            info!(%identity, not_after_s = certificate.not_after_s, "certificate issued");
        }
        Err(error) => {
            totals.count_failed();
            // An authority that is down fails every identity with the same words.
            if let Some(left_out) = told.now(error, now.instant) {
                warn!(%identity, error, left_out, "certificate not issued");
            }
        }
    }
    let random = RandomState::new().hash_one(0);
    keeper.handle_issued(&identity, result, random, now);
}

/// A certificate with its life, unless that has ended already: one more of its kind at once would be no better.
fn in_life(certificate: Certificate, now: SystemTime) -> Result<(Arc<Certificate>, Life), String> {
    let life = Life { start: time_of(certificate.not_before_s), end: time_of(certificate.not_after_s) };
    match life.end <= now {
        true => Err("the certificate that was issued has expired by this node's clock".to_owned()),
        false => Ok((Arc::new(certificate), life)),
    }
}

fn time_of(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// The next call to end; never, while there is none.
async fn next(calls: &mut JoinSet<Issued>) -> Issued {
    loop {
        match calls.join_next().await {
            Some(Ok(issued)) => return issued,
            Some(Err(failure)) => {
                warn!(%failure, "a request for a certificate failed; a defect in this program")
            }
            None => return pending().await,
        }
    }
}

async fn wait_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => pending().await,
    }
}
