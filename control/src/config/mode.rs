//! Whom the node proxy serves: every pod that the node's agent names, or the one workload whose namespace it shares.

use halo_core::zds::WorkloadInfo;

use super::raw::{ConfigError, Reason};
use super::resolved::refuse;

/// Whom the node proxy serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProxyMode {
    /// The pods that the node's CNI agent names, each in its own network namespace.
    Shared,
    /// One workload, in the process's own network namespace, without an agent.
    Dedicated(WorkloadInfo),
}

/// Which of the modes was asked for, before it is known for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Shared,
    Dedicated,
}

/// `shared` or `dedicated`.
pub(super) fn kind(text: &str) -> Result<Kind, Reason> {
    super::raw::word(text, &[("shared", Kind::Shared), ("dedicated", Kind::Dedicated)])
}

/// `namespace/name/serviceaccount`, none of them empty.
pub(super) fn workload(text: &str) -> Result<WorkloadInfo, Reason> {
    match text.split('/').collect::<Vec<_>>()[..] {
        [namespace, name, service_account]
            if ![namespace, name, service_account].iter().any(|part| part.is_empty()) =>
        {
            Ok(WorkloadInfo {
                name: name.into(),
                namespace: namespace.into(),
                service_account: service_account.into(),
                ..WorkloadInfo::default()
            })
        }
        _ => Err("expected namespace/name/serviceaccount".to_owned()),
    }
}

/// The mode, with whom it serves.
pub(super) fn settle(kind: Kind, workload: Option<WorkloadInfo>) -> Result<ProxyMode, ConfigError> {
    match (kind, workload) {
        (Kind::Shared, _) => Ok(ProxyMode::Shared),
        (Kind::Dedicated, Some(workload)) => Ok(ProxyMode::Dedicated(workload)),
        (Kind::Dedicated, None) => {
            let reason =
                "PROXY_WORKLOAD_INFO is not set; it names the workload as namespace/name/serviceaccount";
            Err(refuse("PROXY_MODE", "dedicated", reason))
        }
    }
}

/// Takes anything, and does nothing with it.
pub(super) fn ignored(_: &str) {}

/// Takes `true` alone.
pub(super) fn proxy(text: &str) -> Result<(), Reason> {
    match super::raw::boolean(text)? {
        true => Ok(()),
        false => {
            Err("this node proxy does not capture DNS without TCP; leave the variable out, or take the pods out of the mesh"
                .into())
        }
    }
}

/// Takes `false` alone.
pub(super) fn fake_ca(text: &str) -> Result<(), Reason> {
    match super::raw::boolean(text)? {
        false => Ok(()),
        true => Err("an authority that every process may be is for tests of the stock node proxy; set CA_ADDRESS, or \
                     HALO_CA_DIR to a directory that the nodes share"
            .into()),
    }
}
