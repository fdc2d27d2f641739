//! The control plane's part: the workloads, services and policies of the lab as a stock local configuration file,
//! which node proxies and the controller watch. A new version replaces the old one by rename, so that no reader sees
//! half of it.
//!
//! What most scenarios need has a type. Everything else that the file can say is said with [`fields`], which win over
//! what the lab writes by itself, and with whole entries in [`Mesh::extra`].

mod document;
pub mod fields;
mod policy;
mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::topology::{Pod, Topology};
use super::{Doing, Result};
use document::Written;
pub use fields::Field;
pub use policy::{Action, Policy, Scope};
pub use service::Service;

/// Trust domain of the lab.
pub const TRUST_DOMAIN: &str = "cluster.local";
/// Kubernetes namespace of every pod in the lab.
pub const NAMESPACE: &str = "demo";

/// The SPIFFE ID of a service account in the lab.
pub fn spiffe_id(service_account: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{service_account}")
}

/// The key by which the mesh knows a pod.
pub fn uid(pod: &str) -> String {
    format!("Kubernetes//Pod/{NAMESPACE}/{pod}")
}

/// Whole entries, in the form of the file.
#[derive(Debug, Clone, Default)]
pub struct Extra {
    /// Workloads beside the pods.
    pub workloads: Vec<Value>,
    /// Services.
    pub services: Vec<Value>,
    /// Policies.
    pub policies: Vec<Value>,
}

/// The state of the mesh that the proxies are told.
#[derive(Debug)]
pub struct Mesh {
    path: PathBuf,
    pods: Vec<(Pod, String)>,
    fields: BTreeMap<String, Vec<Field>>,
    /// Names of the pods that other proxies reach through tunnels.
    pub enrolled: BTreeSet<String>,
    /// Services.
    pub services: Vec<Service>,
    /// Policies.
    pub policies: Vec<Policy>,
    /// Names of the pods that refuse clients without a proven identity.
    pub strict: BTreeSet<String>,
    /// What none of the above can say.
    pub extra: Extra,
}

impl Mesh {
    /// A mesh of all pods of the topology, none enrolled, kept in this file. Nothing is written yet.
    pub fn new(path: &Path, topology: &Topology) -> Self {
        let node = |pod: &Pod| topology.nodes[pod.node].name.clone();
        Self {
            path: path.to_owned(),
            pods: topology.pods.iter().map(|pod| (pod.clone(), node(pod))).collect(),
            fields: BTreeMap::new(),
            enrolled: BTreeSet::new(),
            services: Vec::new(),
            policies: Vec::new(),
            strict: BTreeSet::new(),
            extra: Extra::default(),
        }
    }

    /// Leaves a pod out of the mesh, as one that the control plane does not know.
    pub fn forget(&mut self, name: &str) {
        self.pods.retain(|(pod, _)| pod.name != name);
    }

    /// Says one more thing about a pod's workload; an earlier field of the same name is replaced.
    pub fn set(&mut self, pod: &str, field: Field) {
        self.fields.entry(pod.to_owned()).or_default().push(field);
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces the file.
    pub fn publish(&self) -> Result<()> {
        let draft = self.path.with_extension("new");
        fs::write(&draft, self.text()?).doing(format_args!("write {}", draft.display()))?;
        fs::rename(&draft, &self.path).doing(format_args!("replace {}", self.path.display()))
    }

    /// The file's text.
    pub fn text(&self) -> Result<String> {
        let strict = self.strict.iter().map(|pod| policy::strict(pod));
        let document = json!({
            "workloads": self.workloads(),
            "services": join(self.services.iter().map(Service::entry), &self.extra.services),
            "policies": join(self.policies.iter().map(Policy::entry).chain(strict), &self.extra.policies),
        });
        serde_saphyr::to_string(&Written(&document))
            .map_err(|error| std::io::Error::other(error.to_string()))
            .doing("write the mesh as YAML")
    }

    /// How many workloads of the mesh take tunnels.
    pub fn tunnelled(&self) -> usize {
        self.workloads().iter().filter(|workload| workload["protocol"] == "HBONE").count()
    }

    fn workloads(&self) -> Vec<Value> {
        join(self.pods.iter().map(|(pod, node)| self.workload(pod, node)), &self.extra.workloads)
    }

    fn workload(&self, pod: &Pod, node: &str) -> Value {
        let name = &pod.name;
        let services = self.services.iter().filter(|service| service.backends.contains(name));
        let services: BTreeMap<_, _> = services.map(|s| (s.key(), s.target_ports())).collect();
        let policies = self.policies.iter().filter(|policy| policy.pod == *name).map(|p| p.name.clone());
        let policies = policies.chain(self.strict.get(name).map(|pod| policy::strict_name(pod)));
        let policies: Vec<_> = policies.map(|policy| format!("{NAMESPACE}/{policy}")).collect();
        let mut workload = json!({
            "uid": uid(name),
            "name": name,
            "namespace": NAMESPACE,
            "trustDomain": TRUST_DOMAIN,
            "serviceAccount": name,
            "workloadName": name,
            "workloadType": "pod",
            "canonicalName": name,
            "canonicalRevision": "latest",
            "node": node,
            "clusterId": "Kubernetes",
            "status": "Healthy",
            "protocol": if self.enrolled.contains(name) { "HBONE" } else { "TCP" },
            "workloadIps": pod.addresses.iter().collect::<Vec<_>>(),
            "services": services,
        });
        if !policies.is_empty() {
            workload["authorizationPolicies"] = json!(policies);
        }
        fields::write(&mut workload, self.fields.get(name).into_iter().flatten());
        workload
    }
}

fn join(entries: impl Iterator<Item = Value>, extra: &[Value]) -> Vec<Value> {
    entries.chain(extra.iter().cloned()).collect()
}
