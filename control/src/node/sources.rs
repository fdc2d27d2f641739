//! Where the mesh comes from: the local source, a control plane, both or neither, and what of it is still to come.

use std::sync::Arc;

use halo_core::demand::Question;
use tokio::sync::{mpsc, watch};
use tracing::warn;

use crate::config::Config;
use crate::crl;
use crate::grpc::Upstream;
use crate::local::Defaults;
use crate::pods::Pods;
use crate::publish::Publisher;
use crate::readiness::{Part, Readiness};
use crate::source::{self, SourceStatus};
use crate::xds::{self, XdsSetup, XdsStatus};

use crate::parts::Parts;

/// How the sources fare; what is not configured has none.
#[derive(Debug, Clone)]
pub(crate) struct Sources {
    /// The local source.
    pub(crate) local: Option<watch::Receiver<SourceStatus>>,
    /// The control plane, with its address.
    pub(crate) xds: Option<(Arc<str>, watch::Receiver<XdsStatus>)>,
}

/// Starts what is configured. `questions` is what shards ask about workloads and services; without a control plane nobody
/// answers it.
pub(super) fn start(
    config: &Config,
    publisher: &Publisher,
    pods: watch::Receiver<Pods>,
    questions: mpsc::Receiver<Question>,
    parts: &mut Parts,
) -> Sources {
    let local = config.local.clone().map(|local| {
        let (sender, status) = watch::channel(SourceStatus::default());
        let defaults = Defaults {
            trust_domain: config.trust_domain.as_str().into(),
            cluster: config.cluster.as_str().into(),
        };
        let follower = source::run(local, defaults, publisher.clone(), sender);
        parts.spawn_until_done("local source", follower);
        status
    });
    let xds = config.xds.clone().map(|upstream| {
        let (status_sender, status) = watch::channel(XdsStatus::default());
        let address: Arc<str> = upstream.address.as_str().into();
        let setup = XdsSetup {
            upstream: Upstream::new(upstream),
            node: xds::node(&config.facts),
            on_demand: config.xds_on_demand,
            publisher: publisher.clone(),
            questions,
            pods,
            status: status_sender,
            cluster: config.cluster.as_str().into(),
        };
        parts.spawn("xDS client", xds::run(setup));
        (address, status)
    });
    if let Some(path) = config.crl_path.clone() {
        parts.spawn("revocations", crl::run(path, publisher.clone(), crl::SETTLE));
    }
    if local.is_none() && xds.is_none() {
        // Nothing will come, so nothing is waited for: the node serves pods and knows no mesh.
        warn!("no source of workloads is configured");
    }
    Sources { local, xds }
}

/// Keeps the readiness of the mesh's state: ready once every source has delivered, and from then on.
pub(super) async fn follow(mut sources: Sources, readiness: Readiness) {
    loop {
        let why = sources.awaited();
        readiness.set(Part::StateManager, why.clone());
        if why.is_none() || !sources.changed().await {
            return;
        }
    }
}

impl Sources {
    /// How the local source fares.
    pub(crate) fn local_status(&self) -> Option<SourceStatus> {
        self.local.as_ref().map(|status| status.borrow().clone())
    }

    /// The control plane's address, and how the subscription fares.
    pub(crate) fn xds_status(&self) -> Option<(Arc<str>, XdsStatus)> {
        self.xds.as_ref().map(|(address, status)| (address.clone(), status.borrow().clone()))
    }

    /// What has not delivered yet, and why; `None` once all have.
    fn awaited(&mut self) -> Option<String> {
        let mut whys = Vec::new();
        if let Some(local) = &mut self.local {
            let status = local.borrow_and_update();
            let why = status.error.as_deref().unwrap_or("the local source has not been read");
            whys.extend((!status.synced).then(|| why.to_owned()));
        }
        if let Some((address, xds)) = &mut self.xds {
            let status = xds.borrow_and_update();
            let why = status.error.as_deref().unwrap_or("it is being connected to");
            whys.extend((!status.synced).then(|| format!("the control plane at {address}: {why}")));
        }
        (!whys.is_empty()).then(|| whys.join("; "))
    }

    /// Waits for a change; false once there can be none, for every source has ended. One that has ended, as a text that
    /// is read once does, ends no other.
    async fn changed(&mut self) -> bool {
        tokio::select! {
            true = told(self.local.as_mut()) => true,
            true = told(self.xds.as_mut().map(|(_, status)| status)) => true,
            else => false,
        }
    }
}

/// Waits for a source to tell something new; false once it cannot any more.
async fn told<T>(status: Option<&mut watch::Receiver<T>>) -> bool {
    match status {
        Some(status) => status.changed().await.is_ok(),
        None => false,
    }
}
