//! Changes to the mesh, as its sources hand them to the publisher.

use std::sync::Arc;

use halo_core::certificate::Certificate;
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
}

impl MeshEdit {
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
        }
    }
}
