//! The endpoints of one service.

use std::sync::Arc;

use imbl::OrdMap;

use super::index::Entry;
use crate::service::ServiceKey;
use crate::workload::{PortMap, Workload};

/// So many endpoints are kept as a list, which is small and quick to read, but copied for each change.
const LISTED_MAX: usize = 64;

/// A workload in its role for one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// The workload's own ports for this service.
    pub ports: PortMap,
}

/// The endpoints of a service, in order of uid.
#[derive(Debug, Clone)]
pub(super) struct Endpoints {
    service: ServiceKey,
    /// Up to `LISTED_MAX`; empty when there are more.
    listed: Box<[Endpoint]>,
    /// All of them when there are more.
    mapped: OrdMap<Arc<str>, Endpoint>,
}

impl Entry for Arc<Endpoints> {
    type Key = ServiceKey;

    fn key(&self) -> &ServiceKey {
        &self.service
    }
}

impl Endpoints {
    pub(super) fn new(service: ServiceKey, endpoint: Endpoint) -> Self {
        Self { service, listed: [endpoint].into(), mapped: OrdMap::new() }
    }

    /// Adds an endpoint, or replaces that of the same workload.
    pub(super) fn insert(&mut self, endpoint: Endpoint) {
        if !self.mapped.is_empty() {
            self.mapped.insert(endpoint.workload.uid.clone(), endpoint);
            return;
        }
        match self.place(&endpoint.workload.uid) {
            Ok(place) => self.listed[place] = endpoint,
            Err(place) => {
                let mut listed = std::mem::take(&mut self.listed).into_vec();
                listed.reserve_exact(1);
                listed.insert(place, endpoint);
                if listed.len() > LISTED_MAX {
                    let keyed = listed.into_iter().map(|endpoint| (endpoint.workload.uid.clone(), endpoint));
                    self.mapped = keyed.collect();
                } else {
                    self.listed = listed.into();
                }
            }
        }
    }

    /// Removes the endpoint of the workload with this uid.
    pub(super) fn remove(&mut self, uid: &str) {
        if let Ok(place) = self.place(uid) {
            let mut listed = std::mem::take(&mut self.listed).into_vec();
            listed.remove(place);
            self.listed = listed.into();
        }
        self.mapped.remove(uid);
        // Half the bound, so that a service around it does not change its form with every update.
        if (1..=LISTED_MAX / 2).contains(&self.mapped.len()) {
            self.listed =
                std::mem::take(&mut self.mapped).into_iter().map(|(_, endpoint)| endpoint).collect();
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.listed.iter().chain(self.mapped.values())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.listed.is_empty() && self.mapped.is_empty()
    }

    /// Where the endpoint of a workload is in the list, or where it would be.
    fn place(&self, uid: &str) -> Result<usize, usize> {
        self.listed.binary_search_by(|endpoint| (*endpoint.workload.uid).cmp(uid))
    }
}
