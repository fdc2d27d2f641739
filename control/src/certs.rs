//! Keeps a certificate for every identity of the node's pods: one for all pods of an identity, renewed at half its
//! life, tried again when it could not be issued, and forgotten with the identity's last pod. A renewal publishes a new
//! snapshot and touches no traffic.

pub mod keeper;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::future::pending;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use halo_core::certificate::Certificate;
use halo_core::id::Identity;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, error, info, warn};

use crate::ca::CertificateAuthority;
use crate::edit::MeshEdit;
use crate::pods::{Pods, identity};
use crate::publish::{Publisher, PublisherGone};
use keeper::{CertificateKeeper, Event, State};

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
    pub(crate) view: watch::Sender<CertificateView>,
}

type Issued = (Identity, Result<Certificate, String>);

/// Keeps certificates until the publisher goes. Once the pods' sender goes, as it does when the node drains, the pods
/// that it named last still need theirs.
pub(crate) async fn run<A: CertificateAuthority>(mut setup: CertificatesSetup<A>) {
    let mut keeper = CertificateKeeper::default();
    let mut snapshots = setup.publisher.subscribe();
    let mut calls: JoinSet<Issued> = JoinSet::new();
    let mut pods_change = true;
    loop {
        let wanted = wanted(&setup);
        keeper.handle_wanted(&wanted, Instant::now());
        if let Err(gone) = act(&mut keeper, &setup, &mut calls).await {
            return error!(%gone, "certificates are not kept any more");
        }
        setup.view.send_replace(keeper.states().map(|(identity, state)| (identity.clone(), state)).collect());
        tokio::select! {
            changed = setup.pods.changed(), if pods_change => pods_change = changed.is_ok(),
            changed = snapshots.changed() => if changed.is_err() { return },
            issued = next(&mut calls) => report(&mut keeper, issued),
            () = wait_until(keeper.poll_timeout()) => keeper.handle_timeout(Instant::now()),
        }
    }
}

/// The identities of the pods that are there now.
fn wanted<A>(setup: &CertificatesSetup<A>) -> BTreeSet<Identity> {
    let snapshot = setup.publisher.snapshot();
    let pods = setup.pods.borrow();
    pods.values().map(|pod| identity(&snapshot, &pod.info, &setup.trust_domain)).collect()
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

fn report(keeper: &mut CertificateKeeper, (identity, result): Issued) {
    match &result {
        Ok(certificate) => info!(%identity, not_after_s = certificate.not_after_s, "certificate issued"),
        Err(error) => warn!(%identity, error, "certificate not issued"),
    }
    let result = result.map(|certificate| {
        let end = UNIX_EPOCH + Duration::from_secs(certificate.not_after_s);
        (Arc::new(certificate), end.duration_since(SystemTime::now()).unwrap_or_default())
    });
    let random = RandomState::new().hash_one(0);
    keeper.handle_issued(&identity, result, random, Instant::now());
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
