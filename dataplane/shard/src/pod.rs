//! A pod as one shard holds it: identity, namespace, listeners.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use halo_core::net::{HBONE_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT};

use crate::accept::{self, Capture};
use crate::mailbox::{BindError, PodSpec};
use crate::shard::Shard;
use crate::socket::{Listener, ListenerStop};

/// One pod.
pub(crate) struct Pod {
    pub(crate) uid: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) namespace: Arc<str>,
    pub(crate) service_account: Arc<str>,
    pub(crate) netns: Arc<OwnedFd>,
    /// Open downstream connections, against the limit per pod.
    pub(crate) connections: Cell<usize>,
    stopped: Cell<bool>,
    listeners: RefCell<Vec<ListenerStop>>,
}

impl Pod {
    /// Opens the pod's listeners and starts accepting. On failure nothing stays open.
    ///
    /// # Errors
    /// The step that failed.
    pub(crate) fn open(shard: &Rc<Shard>, spec: PodSpec) -> Result<Rc<Self>, BindError> {
        let captures = [
            (OUTBOUND_PORT, Capture::Outbound),
            (INBOUND_PLAINTEXT_PORT, Capture::InboundPlaintext),
            (HBONE_PORT, Capture::Inbound),
        ];
        let mut bound = Vec::with_capacity(captures.len());
        for (port, capture) in captures {
            let listener = Listener::bind(&shard.place, &spec.netns, port, &shard.sockets)
                .map_err(|(step, error)| BindError { step, cause: format!("port {port}: {error}") })?;
            bound.push((Rc::new(listener), capture));
        }
        let pod = Rc::new(Self {
            uid: spec.uid,
            name: spec.name,
            namespace: spec.namespace,
            service_account: spec.service_account,
            netns: spec.netns,
            connections: Cell::new(0),
            stopped: Cell::new(false),
            listeners: RefCell::new(bound.iter().map(|(listener, _)| listener.stop_handle()).collect()),
        });
        for (listener, capture) in bound {
            shard.spawn(accept::run(shard.clone(), pod.clone(), listener, capture));
        }
        Ok(pod)
    }

    /// Stops accepting.
    pub(crate) fn stop(&self) {
        self.stopped.set(true);
        for listener in self.listeners.take() {
            listener.stop();
        }
    }

    /// Whether [`Pod::stop`] was called.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.get()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The pod `shop/pay` in the test's own namespace, without listeners.
    pub(crate) fn pod() -> Rc<Pod> {
        let netns = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        Rc::new(Pod {
            uid: "pay-0".into(),
            name: "pay-0".into(),
            namespace: "shop".into(),
            service_account: "pay".into(),
            netns: Arc::new(netns.into()),
            connections: Cell::new(0),
            stopped: Cell::new(false),
            listeners: RefCell::default(),
        })
    }
}
