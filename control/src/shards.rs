//! What the control thread needs of the data plane. The binary implements it over the shards' mailboxes, so that
//! this crate never names a shard.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use halo_core::net::Listeners;
use halo_core::report::{ShardReport, View};
use halo_core::snapshot::Snapshot;

/// A pod that the node's CNI agent enrolled.
#[derive(Debug, Clone)]
pub struct Pod {
    /// The pod's Kubernetes uid, the key of all later messages about it.
    pub uid: Arc<str>,
    /// Pod name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Service account.
    pub service_account: Arc<str>,
    /// The pod's network namespace.
    pub netns: Arc<OwnedFd>,
    /// Which listeners it has.
    pub listeners: Listeners,
    /// The search list of the pod's resolver, where it is known.
    pub dns_search: Option<Arc<[String]>>,
}

/// Why a pod could not be taken on; nothing of it is left behind, and the attempt may be repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pod {uid}: {step}: {cause}")]
pub struct PodError {
    /// The pod.
    pub uid: Arc<str>,
    /// What was being done, for example `bind 15008`.
    pub step: &'static str,
    /// The operating system's words.
    pub cause: String,
}

/// The shards of this process.
pub trait Shards: Clone + Send + Sync + 'static {
    /// Hands every shard a new generation. Returns at once; each shard adopts the newest between two turns.
    fn publish(&self, snapshot: Arc<Snapshot>);
    /// Opens the pod's listeners on every shard; done when all are bound.
    fn add_pod(&self, pod: Pod) -> impl Future<Output = Result<(), PodError>> + Send;
    /// Closes the pod's listeners and cuts its connections; done when every shard has.
    fn remove_pod(&self, uid: Arc<str>) -> impl Future<Output = ()> + Send;
    /// How many there are.
    fn count(&self) -> usize;
    /// Asks every shard what it is doing, as far as `view` wants to know. One that has ended is left
    /// out.
    fn inspect(&self, view: View) -> impl Future<Output = Vec<ShardReport>> + Send;
    /// Stops accepting, lets streams finish until the deadline, then cuts what is left; done when all is closed.
    fn drain(&self) -> impl Future<Output = ()> + Send;
}
