//! The control plane's part: the workloads, services and policies of the lab as a stock local configuration file,
//! which node proxies watch. A new version replaces the old one by rename, so that no reader sees half of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddrV4};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::topology::{Pod, Topology};
use super::{Doing, Result};

/// Trust domain of the lab.
pub const TRUST_DOMAIN: &str = "cluster.local";
/// Kubernetes namespace of every pod in the lab.
pub const NAMESPACE: &str = "demo";

/// The SPIFFE ID of a service account in the lab.
pub fn spiffe_id(service_account: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{service_account}")
}

/// A service with one backend pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its address and port.
    pub address: SocketAddrV4,
    /// The pod behind it.
    pub backend: String,
    /// The pod's port.
    pub target_port: u16,
}

impl Service {
    /// Its host name.
    pub fn hostname(&self) -> String {
        format!("{}.{NAMESPACE}.svc.{TRUST_DOMAIN}", self.name)
    }

    fn key(&self) -> String {
        format!("{NAMESPACE}/{}", self.hostname())
    }
}

/// What a policy does with a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Action {
    /// Only matches may pass.
    Allow,
    /// Matches may not pass.
    Deny,
}

/// A policy on one pod, about the service accounts of its clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// What it does.
    pub action: Action,
    /// The pod that it protects.
    pub pod: String,
    /// The clients that it is about, by service account.
    pub clients: Vec<String>,
}

/// The state of the mesh that the proxies are told.
#[derive(Debug)]
pub struct Mesh {
    path: PathBuf,
    pods: Vec<(Pod, String)>,
    /// Names of the pods that other proxies reach through tunnels.
    pub enrolled: BTreeSet<String>,
    /// Services.
    pub services: Vec<Service>,
    /// Policies.
    pub policies: Vec<Policy>,
    /// Names of the pods that refuse clients without a proven identity.
    pub strict: BTreeSet<String>,
}

impl Mesh {
    /// A mesh of all pods of the topology, none enrolled, kept in this file. Nothing is written yet.
    pub fn new(path: &Path, topology: &Topology) -> Self {
        let node = |pod: &Pod| topology.nodes[pod.node].name.clone();
        Self {
            path: path.to_owned(),
            pods: topology.pods.iter().map(|pod| (pod.clone(), node(pod))).collect(),
            enrolled: BTreeSet::new(),
            services: Vec::new(),
            policies: Vec::new(),
            strict: BTreeSet::new(),
        }
    }

    /// Leaves a pod out of the mesh, as one that the control plane does not know.
    pub fn forget(&mut self, name: &str) {
        self.pods.retain(|(pod, _)| pod.name != name);
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
        let document = Document {
            workloads: self.pods.iter().map(|(pod, node)| self.workload(pod, node)).collect(),
            services: self.services.iter().map(service).collect(),
            policies: self
                .policies
                .iter()
                .map(policy)
                .chain(self.strict.iter().map(|pod| strict(pod)))
                .collect(),
        };
        serde_saphyr::to_string(&document)
            .map_err(|error| std::io::Error::other(error.to_string()))
            .doing("write the mesh as YAML")
    }

    fn workload(&self, pod: &Pod, node: &str) -> Workload {
        let name = pod.name.clone();
        let services = self.services.iter().filter(|service| service.backend == name);
        let policies = self.policies.iter().filter(|policy| policy.pod == name).map(|p| p.name.clone());
        let policies = policies.chain(self.strict.get(&name).map(|pod| strict_name(pod)));
        Workload {
            uid: format!("Kubernetes//Pod/{NAMESPACE}/{name}"),
            namespace: NAMESPACE,
            trust_domain: TRUST_DOMAIN,
            service_account: name.clone(),
            workload_name: name.clone(),
            workload_type: "pod",
            canonical_name: name.clone(),
            canonical_revision: "latest",
            node: node.to_owned(),
            cluster_id: "Kubernetes",
            status: "Healthy",
            protocol: if self.enrolled.contains(&name) { "HBONE" } else { "TCP" },
            workload_ips: pod.addresses().collect(),
            services: services.map(|s| (s.key(), ports(s))).collect(),
            authorization_policies: policies.map(|policy| format!("{NAMESPACE}/{policy}")).collect(),
            name,
        }
    }
}

fn ports(service: &Service) -> BTreeMap<u16, u16> {
    BTreeMap::from([(service.address.port(), service.target_port)])
}

fn service(service: &Service) -> ServiceEntry {
    ServiceEntry {
        name: service.name.clone(),
        namespace: NAMESPACE,
        hostname: service.hostname(),
        vips: vec![format!("/{}", service.address.ip())],
        ports: ports(service),
    }
}

fn policy(policy: &Policy) -> PolicyEntry {
    // Principals are written without their scheme, as the control plane writes them.
    let principal = |client: &String| Exact { exact: spiffe_id(client).replacen("spiffe://", "", 1) };
    let principals = policy.clients.iter().map(principal).collect();
    let clients = PolicyMatch { principals, ..PolicyMatch::default() };
    PolicyEntry {
        name: policy.name.clone(),
        namespace: NAMESPACE,
        scope: "WorkloadSelector",
        action: policy.action,
        rules: vec![vec![vec![clients]]],
    }
}

fn strict_name(pod: &str) -> String {
    format!("strict-{pod}")
}

/// What a control plane makes of "mutual TLS is required": whoever has no identity at all is denied.
fn strict(pod: &str) -> PolicyEntry {
    let anonymous = PolicyMatch { not_principals: vec![Presence::default()], ..PolicyMatch::default() };
    PolicyEntry {
        name: strict_name(pod),
        namespace: NAMESPACE,
        scope: "WorkloadSelector",
        action: Action::Deny,
        rules: vec![vec![vec![anonymous]]],
    }
}

#[derive(Debug, Serialize)]
struct Document {
    workloads: Vec<Workload>,
    services: Vec<ServiceEntry>,
    policies: Vec<PolicyEntry>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Workload {
    uid: String,
    name: String,
    namespace: &'static str,
    trust_domain: &'static str,
    service_account: String,
    workload_name: String,
    workload_type: &'static str,
    canonical_name: String,
    canonical_revision: &'static str,
    node: String,
    cluster_id: &'static str,
    status: &'static str,
    protocol: &'static str,
    workload_ips: Vec<IpAddr>,
    services: BTreeMap<String, BTreeMap<u16, u16>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    authorization_policies: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ServiceEntry {
    name: String,
    namespace: &'static str,
    hostname: String,
    vips: Vec<String>,
    ports: BTreeMap<u16, u16>,
}

#[derive(Debug, Serialize)]
struct PolicyEntry {
    name: String,
    namespace: &'static str,
    scope: &'static str,
    action: Action,
    rules: Vec<Vec<Vec<PolicyMatch>>>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct PolicyMatch {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    principals: Vec<Exact>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_principals: Vec<Presence>,
}

/// Any identity.
#[derive(Debug, Default, Serialize)]
struct Presence {
    #[serde(rename = "Presence")]
    any: [(); 0],
}

#[derive(Debug, Serialize)]
struct Exact {
    #[serde(rename = "Exact")]
    exact: String,
}
