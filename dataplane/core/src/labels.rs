//! What metrics and logs say about the two ends of a connection.
//!
//! The labels are those of the stock node proxy, in its order. What is not known is `unknown`; the localities are left
//! out where neither end is known.

#[cfg(test)]
mod tests;

use std::fmt::Write;
use std::sync::Arc;

use crate::baggage::Baggage;
use crate::id::Identity;
use crate::outcome::ResponseFlag;
use crate::report::{Direction, Transport};
use crate::service::Service;
use crate::workload::{Workload, WorkloadType};

/// One end of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Party {
    /// Nothing is known.
    #[default]
    Unknown,
    /// A workload of the mesh.
    Known(Arc<Workload>),
    /// Only what the peer says of it. It proves nothing.
    Told(Box<Told>),
}

/// A baggage that is kept. Empty means "not said".
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct Told {
    /// Cluster.
    pub cluster: Box<str>,
    /// Namespace.
    pub namespace: Box<str>,
    /// What made the workload.
    pub workload_type: WorkloadType,
    /// Name of what made the workload.
    pub workload_name: Box<str>,
    /// Canonical service name.
    pub canonical_name: Box<str>,
    /// Canonical revision.
    pub canonical_revision: Box<str>,
    /// Region.
    pub region: Box<str>,
    /// Zone.
    pub zone: Box<str>,
}

/// The longest text of a baggage that is kept, bytes: the longest name that Kubernetes has (RFC 1123 subdomain).
const TOLD_MAX: usize = 253;

/// What is kept of a text: a label is not a place for a peer's essays.
fn kept(text: &str) -> Box<str> {
    let end = (0..=TOLD_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text[..end.unwrap_or(0)].into()
}

impl From<Baggage<'_>> for Told {
    fn from(baggage: Baggage<'_>) -> Self {
        Self {
            cluster: kept(baggage.cluster),
            namespace: kept(baggage.namespace),
            workload_type: baggage.workload_type,
            workload_name: kept(baggage.workload_name),
            canonical_name: kept(baggage.service_name),
            canonical_revision: kept(baggage.service_version),
            region: kept(baggage.region),
            zone: kept(baggage.zone),
        }
    }
}

impl Party {
    /// A workload, if the mesh knows one.
    pub fn known(workload: Option<&Arc<Workload>>) -> Self {
        workload.map_or(Self::Unknown, |workload| Self::Known(workload.clone()))
    }

    /// What a peer says of a workload in the lines of its `baggage`, if it says anything.
    pub fn told<'a>(lines: impl IntoIterator<Item = &'a str>) -> Self {
        let told = Told::from(Baggage::parse(lines));
        if told == Told::default() { Self::Unknown } else { Self::Told(Box::new(told)) }
    }
}

/// Both ends of a connection, and the service that was addressed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ends {
    /// The client's end.
    pub source: Party,
    /// The server's end.
    pub destination: Party,
    /// The service.
    pub service: Option<Arc<Service>>,
}

/// All that labels say of a connection but how it ended; many connections share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traffic {
    /// Which way it goes.
    pub direction: Direction,
    /// How it travels.
    pub transport: Transport,
    /// Its ends.
    pub ends: Ends,
    /// Who the client proved to be.
    pub source_identity: Option<Identity>,
    /// Who the server proved to be.
    pub destination_identity: Option<Identity>,
}

/// The labels of one series of connections, as metrics show them, with a gap for the response flag.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Labels {
    text: Box<str>,
    flag_at: usize,
}

/// What labels and logs say of one end. An empty text is not known.
#[derive(Debug, Clone, Copy, Default)]
pub struct Described<'a> {
    /// Name of what made the workload.
    pub workload: &'a str,
    /// The pod; where it is not known, the nearest to it.
    pub pod: &'a str,
    /// Canonical service.
    pub service: &'a str,
    /// Canonical revision.
    pub revision: &'a str,
    /// Namespace.
    pub namespace: &'a str,
    /// The `app` label.
    pub app: &'a str,
    /// Cluster.
    pub cluster: &'a str,
    /// Region.
    pub region: &'a str,
    /// Zone.
    pub zone: &'a str,
}

impl<'a> Described<'a> {
    fn known(workload: &'a Workload) -> Self {
        Self {
            workload: &workload.workload_name,
            pod: &workload.name,
            service: &workload.canonical_name,
            revision: &workload.canonical_revision,
            namespace: &workload.namespace,
            app: &workload.canonical_name,
            cluster: &workload.cluster_id,
            region: &workload.locality.region,
            zone: &workload.locality.zone,
        }
    }

    fn told(told: &'a Told) -> Self {
        Self {
            workload: &told.workload_name,
            pod: &told.canonical_name,
            service: &told.canonical_name,
            revision: &told.canonical_revision,
            namespace: &told.namespace,
            // As the stock node proxy has it: what a workload says of itself names no application.
            app: &told.workload_name,
            cluster: &told.cluster,
            region: &told.region,
            zone: &told.zone,
        }
    }

    fn of(party: &'a Party) -> Self {
        match party {
            Party::Unknown => Self::default(),
            Party::Known(workload) => Self::known(workload),
            Party::Told(told) => Self::told(told),
        }
    }
}

impl Traffic {
    /// Whether both ends have proven who they are.
    pub fn is_mutual(&self) -> bool {
        self.transport != Transport::Tcp
    }

    /// What is said of the client's end.
    pub fn source(&self) -> Described<'_> {
        Described::of(&self.ends.source)
    }

    /// What is said of the server's end.
    pub fn destination(&self) -> Described<'_> {
        let described = Described::of(&self.ends.destination);
        match &self.ends.destination {
            Party::Told(told) => Described { pod: &told.workload_name, ..described },
            Party::Unknown | Party::Known(_) => described,
        }
    }

    /// The client's principal, where mutual TLS has proven it.
    pub fn source_principal(&self) -> Option<Identity> {
        self.source_identity.clone().filter(|_| self.is_mutual())
    }

    /// The server's principal: what the mesh says of it, over plain TCP too; what its handshake says where the mesh does
    /// not know it.
    pub fn destination_principal(&self) -> Option<Identity> {
        match &self.ends.destination {
            Party::Known(workload) => Some(workload.identity()),
            Party::Told(_) => self.destination_identity.clone().filter(|_| self.is_mutual()),
            Party::Unknown => None,
        }
    }

    /// The labels.
    pub fn labels(&self) -> Labels {
        let mut labels = Builder::default();
        let principal = |identity: Option<Identity>| identity.map_or_else(String::new, |own| own.to_string());
        labels.add("reporter", reporter(self.direction));
        labels.end("source", &self.source(), &principal(self.source_principal()));
        let service = self.ends.service.as_deref();
        labels.add("destination_service", service.map_or("", |service| &service.key.hostname));
        labels.add("destination_service_namespace", service.map_or("", |service| &service.key.namespace));
        labels.add("destination_service_name", service.map_or("", |service| &service.name));
        labels.end("destination", &self.destination(), &principal(self.destination_principal()));
        labels.add("request_protocol", "tcp");
        labels.text.push_str("response_flags=\"");
        let flag_at = labels.text.len();
        labels.text.push_str("\",");
        labels.add("connection_security_policy", if self.is_mutual() { "mutual_tls" } else { "" });
        if self.ends.source != Party::Unknown || self.ends.destination != Party::Unknown {
            for (side, described) in [("source", self.source()), ("destination", self.destination())] {
                labels.add(&format!("{side}_region"), described.region);
                labels.add(&format!("{side}_zone"), described.zone);
            }
        }
        labels.text.pop();
        Labels { text: labels.text.into(), flag_at }
    }
}

/// The labels of lookups of a host for connections of a pod, without braces.
pub fn host_lookup(source: Option<&Workload>, hostname: &str) -> String {
    let mut labels = Builder::default();
    let principal = source.map_or_else(String::new, |source| source.identity().to_string());
    labels.end("source", &source.map(Described::known).unwrap_or_default(), &principal);
    labels.add("hostname", hostname);
    labels.text.pop();
    labels.text
}

/// What metrics call the side that reports.
pub fn reporter(direction: Direction) -> &'static str {
    match direction {
        Direction::Outbound => "source",
        Direction::Inbound => "destination",
    }
}

impl Labels {
    /// Writes the labels, without braces.
    pub fn write(&self, out: &mut String, flag: ResponseFlag) {
        let (before, after) = self.text.split_at(self.flag_at);
        out.push_str(before);
        out.push_str(flag.as_str());
        out.push_str(after);
    }
}

/// Pairs of a name and a value, each followed by a comma.
#[derive(Default)]
struct Builder {
    text: String,
}

impl Builder {
    fn add(&mut self, name: &str, value: &str) {
        let value = if value.is_empty() { "unknown" } else { value };
        // Writing to a text cannot fail.
        let _ = write!(self.text, "{name}=\"");
        escape(&mut self.text, value);
        self.text.push_str("\",");
    }

    /// The labels of one end, in their order.
    fn end(&mut self, side: &str, described: &Described<'_>, principal: &str) {
        for (name, value) in [
            ("workload", described.workload),
            ("canonical_service", described.service),
            ("canonical_revision", described.revision),
            ("workload_namespace", described.namespace),
            ("principal", principal),
            ("app", described.app),
            ("version", described.revision),
            ("cluster", described.cluster),
        ] {
            self.add(&format!("{side}_{name}"), value);
        }
    }
}

/// Writes a label's value: backslash, quote and line feed are escaped (Prometheus text format and OpenMetrics).
pub fn escape(out: &mut String, value: &str) {
    for part in value.split_inclusive(['\\', '"', '\n']) {
        let Some(special) = part.chars().next_back().filter(|c| matches!(c, '\\' | '"' | '\n')) else {
            out.push_str(part);
            continue;
        };
        out.push_str(&part[..part.len() - 1]);
        out.push('\\');
        out.push(if special == '\n' { 'n' } else { special });
    }
}
