//! Changes to the mesh, as its sources hand them to the publisher.

use std::sync::Arc;

use halo_core::certificate::{Certificate, Revocations};
use halo_core::demand::Question;
use halo_core::id::Identity;
use halo_core::policy::Policy;
use halo_core::service::{Service, ServiceKey};
use halo_core::snapshot::Snapshot;
use halo_core::workload::Workload;

/// One change. Each costs O(log n) of the snapshot it is applied to.
#[derive(Debug, Clone)]
pub enum MeshEdit {
    /// Adds or replaces a workload.
    Workload(Arc<Workload>),
    /// Removes the workload with this uid.
    RemoveWorkload(Arc<str>),
    /// Adds or replaces a service.
    Service(Arc<Service>),
    /// Removes the service with this key.
    RemoveService(ServiceKey),
    /// Adds or replaces a policy.
    Policy(Arc<Policy>),
    /// Removes the policy with this key, `namespace/name`.
    RemovePolicy(Arc<str>),
    /// Adds or replaces the certificate of its identity.
    Certificate(Arc<Certificate>),
    /// Removes the certificate of an identity.
    RemoveCertificate(Identity),
    /// Records that the control plane has answered a question; the answer itself is in other edits.
    Answered(Question),
    /// Forgets that it has, so that the question is asked again when it matters.
    Unanswered(Question),
    /// Replaces what is known to be revoked.
    Revocations(Option<Arc<Revocations>>),
}

impl MeshEdit {
    /// Whether it would change anything: sources also tell what is known already, after a new connection for example.
    /// A certificate is compared by reference.
    pub(crate) fn changes(&self, snapshot: &Snapshot) -> bool {
        match self {
            Self::Workload(workload) => snapshot.workloads.get(&workload.uid) != Some(workload),
            Self::RemoveWorkload(uid) => snapshot.workloads.get(uid).is_some(),
            Self::Service(service) => snapshot.services.get(&service.key) != Some(service),
            Self::RemoveService(key) => snapshot.services.get(key).is_some(),
            Self::Policy(policy) => snapshot.policies.get(&policy.key()) != Some(policy),
            Self::RemovePolicy(key) => snapshot.policies.get(key).is_some(),
            Self::Certificate(certificate) => {
                let held = snapshot.certificates.get(&certificate.identity);
                !held.is_some_and(|held| Arc::ptr_eq(held, certificate))
            }
            Self::RemoveCertificate(identity) => snapshot.certificates.contains_key(identity),
            Self::Answered(question) => !snapshot.answered.contains(question),
            Self::Unanswered(question) => snapshot.answered.contains(question),
            Self::Revocations(revocations) => snapshot.revocations != *revocations,
        }
    }

    /// Applies the change.
    pub(crate) fn apply(self, snapshot: &mut Snapshot) {
        match self {
            Self::Workload(workload) => snapshot.workloads.insert(workload),
            Self::RemoveWorkload(uid) => drop(snapshot.workloads.remove(&uid)),
            Self::Service(service) => snapshot.services.insert(service),
            Self::RemoveService(key) => drop(snapshot.services.remove(&key)),
            Self::Policy(policy) => snapshot.policies.insert(policy),
            Self::RemovePolicy(key) => drop(snapshot.policies.remove(&key)),
            Self::Certificate(certificate) => {
                drop(snapshot.certificates.insert(certificate.identity.clone(), certificate));
            }
            Self::RemoveCertificate(identity) => drop(snapshot.certificates.remove(&identity)),
            Self::Answered(question) => drop(snapshot.answered.insert(question)),
            Self::Unanswered(question) => drop(snapshot.answered.remove(&question)),
            Self::Revocations(revocations) => snapshot.revocations = revocations,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use halo_core::net::NetworkAddress;

    use super::*;

    #[test]
    fn an_answer_is_remembered_until_it_is_forgotten() {
        let address = NetworkAddress { network: "n1".into(), ip: Ipv4Addr::LOCALHOST.into() };
        let question = Question::Address(address);
        let mut snapshot = Snapshot::default();
        MeshEdit::Answered(question.clone()).apply(&mut snapshot);
        assert!(snapshot.answered.contains(&question));
        MeshEdit::Unanswered(question).apply(&mut snapshot);
        assert!(snapshot.answered.is_empty());
    }

    #[test]
    fn revocations_are_replaced_as_a_whole() {
        let mut snapshot = Snapshot::default();
        for revocations in [Some(Arc::new(Revocations { lists: vec![vec![1]] })), None] {
            MeshEdit::Revocations(revocations.clone()).apply(&mut snapshot);
            assert_eq!(snapshot.revocations, revocations);
        }
    }
}
