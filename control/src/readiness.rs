//! Whether the node may be called ready, and if not, what it waits for. `GET /healthz/ready` on port 15021 answers in
//! the words of the stock node proxy, followed by a line of reason for each part that is pending.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::{Method, StatusCode};
use tokio::sync::watch;

use crate::http::{Answer, Request, Service};

/// A part of the node that has to be ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The mesh has been received once.
    StateManager,
    /// The workload of a dedicated proxy is served.
    Proxy,
    /// Names can be answered: the mesh has been received.
    DnsProxy,
    /// The CNI agent is connected, has named every pod, and all are served.
    WorkloadProxyManager,
}

impl Part {
    /// Its name, as the stock node proxy has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::StateManager => "state manager",
            Self::Proxy => "proxy",
            Self::DnsProxy => "dns proxy",
            Self::WorkloadProxyManager => "workload proxy manager",
        }
    }
}

/// What is pending, with the reason for each part. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<watch::Sender<BTreeMap<Part, String>>>);

impl Readiness {
    /// Everything that is named is pending.
    pub fn pending(parts: &[Part]) -> Self {
        let pending = parts.iter().map(|part| (*part, "starting".to_owned())).collect();
        Self(Arc::new(watch::Sender::new(pending)))
    }

    /// Says why a part is pending, or with `None` that it is ready.
    pub fn set(&self, part: Part, why: Option<String>) {
        self.0.send_if_modified(|pending| match why {
            Some(why) => pending.insert(part, why.clone()) != Some(why),
            None => pending.remove(&part).is_some(),
        });
    }

    /// What is pending, with reasons.
    pub fn parts_pending(&self) -> BTreeMap<Part, String> {
        self.0.borrow().clone()
    }

    /// Waits until a part is ready.
    pub async fn part_ready(&self, part: Part) {
        let mut pending = self.0.subscribe();
        // The sender is held by `self`, so waiting cannot fail.
        drop(pending.wait_for(|pending| !pending.contains_key(&part)).await);
    }

    /// Waits until nothing is pending.
    pub async fn ready(&self) {
        let mut pending = self.0.subscribe();
        // The sender is held by `self`, so waiting cannot fail.
        drop(pending.wait_for(BTreeMap::is_empty).await);
    }
}

/// The readiness server.
#[derive(Debug, Clone)]
pub(crate) struct ReadinessService(pub(crate) Readiness);

impl Service for ReadinessService {
    async fn answer(&self, request: Request) -> Answer {
        if request.path != "/healthz/ready" {
            return Answer::text(StatusCode::NOT_FOUND, "Not Found");
        }
        if request.method != Method::GET {
            return Answer::text(StatusCode::METHOD_NOT_ALLOWED, "Invalid Method");
        }
        let pending = self.0.parts_pending();
        if pending.is_empty() {
            return Answer::text(StatusCode::OK, "ready\n");
        }
        let names: Vec<_> = pending.keys().map(|part| part.name()).collect();
        let mut text = format!("not ready, pending: {}\n", names.join(", "));
        for (part, why) in &pending {
            text.push_str(&format!("{}: {why}\n", part.name()));
        }
        Answer::text(StatusCode::INTERNAL_SERVER_ERROR, text)
    }
}
