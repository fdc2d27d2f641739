//! Pods that no agent names, in the process's own network namespace: the workload that a dedicated proxy serves, and the
//! node proxy's own pod, whose metrics peers read through the mesh.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use halo_core::net::Listeners;
use halo_core::zds::{PodState, WorkloadInfo};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::pods::{PodView, Pods};
use crate::readiness::{Part, Readiness};
use crate::shards::{Pod, Shards};

/// Pause before a pod that could not be opened is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// The resolver's configuration of the process.
const RESOLVER: &str = "/etc/resolv.conf";

/// A pod of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resident {
    /// Who it is.
    pub(crate) info: WorkloadInfo,
    /// Which listeners it has.
    pub(crate) listeners: Listeners,
    /// The part of the node that is ready once the pod is served.
    pub(crate) part: Option<Part>,
}

impl Resident {
    /// The key among pods. Kubernetes' uids hold no slash.
    fn uid(&self) -> Arc<str> {
        format!("{}/{}", self.info.namespace, self.info.name).into()
    }

    fn pod(&self) -> std::io::Result<Pod> {
        let netns: OwnedFd = File::open("/proc/thread-self/ns/net")?.into();
        let resolver = std::fs::read_to_string(RESOLVER).unwrap_or_default();
        Ok(Pod {
            uid: self.uid(),
            name: self.info.name.clone(),
            namespace: self.info.namespace.clone(),
            service_account: self.info.service_account.clone(),
            netns: Arc::new(netns),
            listeners: self.listeners,
            dns_search: Some(search_list(&resolver)),
        })
    }
}

/// Opens the pod once the mesh is known, as often as that takes.
pub(crate) async fn open<S: Shards>(
    resident: Resident,
    shards: S,
    view: watch::Sender<Pods>,
    readiness: Readiness,
) {
    let show = |state| {
        let shown = PodView { info: resident.info.clone(), state, resident: true };
        view.send_modify(|pods| drop(pods.insert(resident.uid(), shown)));
    };
    show(PodState::Starting);
    readiness.part_ready(Part::StateManager).await;
    let mut told = None;
    loop {
        let opened = match resident.pod() {
            Ok(pod) => shards.add_pod(pod).await.map_err(|error| error.to_string()),
            Err(error) => Err(format!("the process's network namespace: {error}")),
        };
        let Err(error) = opened else { break };
        show(PodState::Pending);
        if let Some(part) = resident.part {
            readiness.set(part, Some(error.clone()));
        }
        if told.as_ref() != Some(&error) {
            warn!(uid = %resident.uid(), error, "the proxy's own pod is not served and is tried again");
            told = Some(error);
        }
        sleep(RETRY).await;
    }
    info!(uid = %resident.uid(), "the proxy's own pod is served");
    show(PodState::Running);
    if let Some(part) = resident.part {
        readiness.set(part, None);
    }
}

/// The domains that names are looked up in: of `search` and `domain` lines the last counts (resolv.conf(5)).
fn search_list(text: &str) -> Arc<[String]> {
    let mut list = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if matches!(words.next(), Some("search" | "domain")) {
            list = words.map(|domain| domain.trim_end_matches('.').to_owned()).collect();
        }
    }
    list.into()
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::testing::{DEADLINE, FakeShards};

    fn resident() -> Resident {
        let info = WorkloadInfo {
            name: "pay-0".into(),
            namespace: "shop".into(),
            service_account: "pay".into(),
            ..WorkloadInfo::default()
        };
        Resident { info, listeners: Listeners::Captured, part: Some(Part::Proxy) }
    }

    #[test]
    fn the_last_search_list_of_the_resolver_counts() {
        let text = "nameserver 10.96.0.10\ndomain old.example\nsearch shop.svc.cluster.local svc.cluster.local.\n# search no\n";
        assert_eq!(*search_list(text), ["shop.svc.cluster.local", "svc.cluster.local"]);
        assert!(search_list("").is_empty());
    }

    #[tokio::test]
    async fn a_resident_is_opened_once_the_mesh_is_known_and_tried_again_when_that_fails() {
        let (shards, readiness) =
            (FakeShards::default(), Readiness::pending(&[Part::StateManager, Part::Proxy]));
        shards.break_pod("shop/pay-0", "in use");
        let (view, mut pods) = watch::channel(Pods::new());
        let opening = tokio::spawn(open(resident(), shards.clone(), view, readiness.clone()));
        let state = |wanted| move |pods: &Pods| pods.get("shop/pay-0").is_some_and(|pod| pod.state == wanted);
        timeout(DEADLINE, pods.wait_for(state(PodState::Starting))).await.unwrap().unwrap();
        assert!(shards.calls().is_empty());
        readiness.set(Part::StateManager, None);
        timeout(DEADLINE, pods.wait_for(state(PodState::Pending))).await.unwrap().unwrap();
        assert!(readiness.parts_pending()[&Part::Proxy].contains("in use"));
        shards.broken.lock().unwrap().clear();
        timeout(DEADLINE, pods.wait_for(state(PodState::Running))).await.unwrap().unwrap();
        timeout(DEADLINE, opening).await.unwrap().unwrap();
        assert!(readiness.parts_pending().is_empty());
        shards.pods_are(&["shop/pay-0"]).await;
    }
}
