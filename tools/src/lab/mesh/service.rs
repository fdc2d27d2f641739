//! Services of the lab.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use super::fields::{self, Field};
use super::{NAMESPACE, TRUST_DOMAIN};

/// A service and the pods behind it.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its addresses, on the network without a name; none for a headless service.
    pub vips: Vec<IpAddr>,
    /// Its ports, and the pods' ports behind them.
    pub ports: BTreeMap<u16, u16>,
    /// Names of the pods behind it.
    pub backends: Vec<String>,
    fields: Vec<Field>,
}

impl Service {
    /// A service with one address and one port in front of one pod.
    pub fn new(name: &str, address: impl Into<SocketAddr>, backend: &str, target_port: u16) -> Self {
        let address = address.into();
        Self {
            name: name.into(),
            vips: vec![address.ip()],
            ports: BTreeMap::from([(address.port(), target_port)]),
            backends: vec![backend.into()],
            fields: Vec::new(),
        }
    }

    /// A service without an address.
    pub fn headless(name: &str, (port, target_port): (u16, u16), backends: &[&str]) -> Self {
        let service = Self::new(name, ([0, 0, 0, 0], port), "", target_port);
        Self { vips: Vec::new(), ..service }.backends(backends)
    }

    /// The same with these pods behind it.
    pub fn backends(self, pods: &[&str]) -> Self {
        Self { backends: pods.iter().map(|&pod| pod.into()).collect(), ..self }
    }

    /// The same with one more address.
    pub fn vip(mut self, address: impl Into<IpAddr>) -> Self {
        self.vips.push(address.into());
        self
    }

    /// The same with one more field of the file.
    pub fn with(mut self, field: Field) -> Self {
        self.fields.push(field);
        self
    }

    /// Its host name.
    pub fn hostname(&self) -> String {
        format!("{}.{NAMESPACE}.svc.{TRUST_DOMAIN}", self.name)
    }

    /// Its name in references: `namespace/hostname`.
    pub fn key(&self) -> String {
        format!("{NAMESPACE}/{}", self.hostname())
    }

    pub(super) fn target_ports(&self) -> Value {
        let ports = self.ports.iter().map(|(port, target)| (port.to_string(), json!(target)));
        Value::Object(ports.collect())
    }

    pub(super) fn entry(&self) -> Value {
        let mut entry = json!({
            "name": self.name,
            "namespace": NAMESPACE,
            "hostname": self.hostname(),
            "vips": self.vips.iter().map(|vip| format!("/{vip}")).collect::<Vec<_>>(),
            "ports": self.target_ports(),
        });
        fields::write(&mut entry, self.fields.iter());
        entry
    }
}
