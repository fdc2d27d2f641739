//! What the mesh itself answers: services by name, and the pods behind headless ones.
//!
//! A service that the client does not see counts as absent. A name that no service has is forwarded, and so is every
//! question about a type or class that the mesh knows nothing of. Each candidate name costs a few lookups in the
//! snapshot's tables, never a look through all services.

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::rr::rdata::{A, AAAA, CNAME, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::TTL_S;
use super::message::Question;
use super::names::{self, Candidate, Place, fully_qualified};
use crate::balance;
use crate::net::NetworkAddress;
use crate::resolve::lookup;
use crate::service::{HealthPolicy, IpFamilies, Service};
use crate::snapshot::{Endpoint, Snapshot};
use crate::workload::{Health, Workload};

#[cfg(test)]
mod tests;

/// Addresses in one answer. More would not fit a message, and no client uses as many.
pub const ADDRESSES_MAX: usize = 512;
/// SRV records in one answer, each with up to two addresses besides.
pub const TARGETS_MAX: usize = 256;

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    /// The pod's own workload.
    pub workload: &'a Workload,
    /// The search list of its resolver, where it is known.
    pub search: Option<&'a [String]>,
    /// Whether the node proxy serves IPv6.
    pub ipv6: bool,
}

/// What to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// These records, and no others.
    Own {
        /// Answers; none means that there is such a name, but nothing of the type.
        answers: Vec<Record>,
        /// Addresses of what the answers name.
        additionals: Vec<Record>,
    },
    /// These records, and whatever the servers know of the records of the asked type at `target`.
    Alias {
        /// Aliases that lead to the target.
        answers: Vec<Record>,
        /// The name to ask the servers for.
        target: Name,
    },
    /// Whatever the servers say.
    Forward,
}

impl Answer {
    fn none() -> Self {
        Self::Own { answers: Vec::new(), additionals: Vec::new() }
    }
}

/// Decides what to answer. `random` is uniform over all of `u64`; it orders the addresses.
pub fn answer(snapshot: &Snapshot, client: &Client<'_>, question: &Question, random: u64) -> Answer {
    if question.class != DNSClass::IN {
        return Answer::Forward;
    }
    let Some(host) = names::host(&question.name) else { return Answer::Forward };
    let place = Place::new(&client.workload.namespace, &snapshot.mesh.cluster_domain, client.search);
    let asked = Asked { snapshot, client, question, place: &place, random };
    match question.record_type {
        RecordType::A | RecordType::AAAA => asked.addresses(&host),
        RecordType::SRV => asked.targets(&host),
        _ => Answer::Forward,
    }
}

struct Asked<'a> {
    snapshot: &'a Snapshot,
    client: &'a Client<'a>,
    question: &'a Question,
    place: &'a Place,
    random: u64,
}

/// What has a name.
enum Found<'a> {
    Service(&'a Arc<Service>),
    /// One pod of a headless service.
    Pod(&'a Arc<Service>, &'a Arc<Workload>),
}

impl<'a> Found<'a> {
    fn service(&self) -> &'a Arc<Service> {
        match self {
            Self::Service(service) | Self::Pod(service, _) => service,
        }
    }
}

impl<'a> Asked<'a> {
    /// The first of the candidates that something has; `wildcard` where it is a service that covers the name.
    fn find(&self, host: &str) -> Option<(Found<'a>, Candidate, bool)> {
        for candidate in names::candidates(host, self.place) {
            if let Some(service) = self.service(&candidate.name) {
                return Some((Found::Service(service), candidate, candidate_is_wildcard(host)));
            }
            if let Some(pod) = self.pod(&candidate.name) {
                return Some((pod, candidate, false));
            }
            let covering = names::wildcards(&candidate.name).find_map(|name| self.service(&name));
            if let Some(service) = covering {
                return Some((Found::Service(service), candidate, true));
            }
        }
        None
    }

    /// The service with exactly this host name, of those that the client sees and that can be answered for.
    fn service(&self, host: &str) -> Option<&'a Arc<Service>> {
        let named = self.snapshot.services.with_hostname(host).filter(|service| {
            !service.vips.is_empty()
                || self.place.is_cluster_service(&service.key.hostname)
                || self.is_external_name(service)
        });
        lookup::preferred(self.snapshot, &self.client.workload.namespace, named)
    }

    /// Whether a service without virtual address says that its host is an alias of others: none of its endpoints has an
    /// address. Endpoints that have some are where connections to them go, not what the name stands for; the servers say
    /// that.
    fn is_external_name(&self, service: &'a Service) -> bool {
        let own = &*service.key.hostname;
        let alias = |hostname: &str| !hostname.is_empty() && hostname != own;
        !candidate_is_wildcard(own)
            && self.endpoints(service).all(|endpoint| endpoint.workload.addresses.is_empty())
            && self.endpoints(service).any(|endpoint| alias(&endpoint.workload.hostname))
    }

    /// The pod `pod.service` or `10-0-0-1.service` of a headless service of the cluster.
    fn pod(&self, host: &str) -> Option<Found<'a>> {
        let (label, host) = host.split_once('.')?;
        if !self.place.is_cluster_service(host) {
            return None;
        }
        let service = self.service(host).filter(|service| service.vips.is_empty())?;
        let serves = |workload: &&Arc<Workload>| {
            workload.services.get(&service.key).is_some() && usable(service, workload)
        };
        let workloads = &self.snapshot.workloads;
        let named = workloads.named(&service.key.namespace, &label.into()).find(serves);
        let by_address = || {
            let ip = dashed(label)?;
            let network = self.client.workload.network.clone();
            workloads.at(&NetworkAddress { network, ip }).find(serves)
        };
        Some(Found::Pod(service, named.or_else(by_address)?))
    }

    fn endpoints(&self, service: &'a Service) -> impl Iterator<Item = &'a Endpoint> {
        let all = self.snapshot.workloads.endpoints(&service.key);
        all.filter(|endpoint| usable(service, &endpoint.workload))
    }

    fn addresses(&self, host: &str) -> Answer {
        let Some((found, candidate, wildcard)) = self.find(host) else { return Answer::Forward };
        let family = self.question.record_type;
        if !self.offers(found.service(), family) {
            return Answer::none();
        }
        let (mut answers, owner) = self.aliases(&candidate, wildcard);
        let mut addresses = self.addresses_of(&found, family);
        if addresses.is_empty() {
            return match self.alias_of(&found, host, &owner) {
                Some((record, target)) => {
                    answers.push(record);
                    Answer::Alias { answers, target }
                }
                None => Answer::none(),
            };
        }
        shuffle(&mut addresses, self.random);
        addresses.truncate(ADDRESSES_MAX);
        answers.extend(addresses.into_iter().map(|ip| address(owner.clone(), ip)));
        Answer::Own { answers, additionals: Vec::new() }
    }

    /// The alias from the asked name to the one without its search domain, and the owner of the addresses.
    fn aliases(&self, candidate: &Candidate, wildcard: bool) -> (Vec<Record>, Name) {
        let asked = &self.question.name;
        let stripped = candidate.stripped.filter(|_| !wildcard);
        match stripped.and_then(|labels| names::first_labels(asked, labels)) {
            Some(short) => (vec![alias(asked.clone(), short.clone())], short),
            None => (Vec::new(), asked.clone()),
        }
    }

    /// Whether a service has addresses of a family at all.
    fn offers(&self, service: &Service, family: RecordType) -> bool {
        match family {
            RecordType::AAAA => self.client.ipv6 && service.ip_families != Some(IpFamilies::Ipv4),
            _ => service.ip_families != Some(IpFamilies::Ipv6),
        }
    }

    fn addresses_of(&self, found: &Found<'a>, family: RecordType) -> Vec<IpAddr> {
        let of_family = |ip: &&IpAddr| ip.is_ipv6() == (family == RecordType::AAAA);
        let one = |workload: &Workload| workload.addresses.iter().find(of_family).copied();
        match found {
            Found::Pod(_, workload) => one(workload).into_iter().collect(),
            Found::Service(service) if service.vips.is_empty() => {
                self.endpoints(service).filter_map(|endpoint| one(&endpoint.workload)).collect()
            }
            Found::Service(service) => {
                let network = &self.client.workload.network;
                let vips = service.vips.iter().filter(|vip| vip.network == *network);
                vips.map(|vip| &vip.ip).filter(of_family).copied().collect()
            }
        }
    }

    /// The alias to a host that the endpoints of a service without addresses name: an external name.
    fn alias_of(&self, found: &Found<'a>, host: &str, owner: &Name) -> Option<(Record, Name)> {
        let Found::Service(service) = found else { return None };
        if !service.vips.is_empty() || self.endpoints(service).any(|end| !end.workload.addresses.is_empty()) {
            return None;
        }
        let named = |endpoint: &&Endpoint| {
            let hostname = &*endpoint.workload.hostname;
            !hostname.is_empty() && hostname != host && hostname != &*service.key.hostname
        };
        let mut named: Vec<_> = self.endpoints(service).filter(named).collect();
        shuffle(&mut named, self.random);
        let target = fully_qualified(&named.first()?.workload.hostname)?;
        Some((alias(owner.clone(), target.clone()), target))
    }

    /// SRV records: of every port of a service, or of one that is asked for by number.
    fn targets(&self, host: &str) -> Answer {
        let (port, host) = match port_of(host) {
            Some((Some(port), rest)) => (Some(port), rest),
            // A port's name: only the servers know it.
            Some((None, _)) => return Answer::Forward,
            None => (None, host),
        };
        let Some((Found::Service(service), _, false)) = self.find(host) else { return Answer::Forward };
        if !self.place.is_cluster_service(&service.key.hostname) {
            return Answer::Forward;
        }
        let ports: Vec<u16> =
            service.ports.keys().copied().filter(|listed| port.is_none_or(|port| port == *listed)).collect();
        if ports.is_empty() && port.is_some() {
            return Answer::Forward;
        }
        if service.vips.is_empty() {
            self.pods(service, &ports)
        } else {
            self.virtual_target(service, &ports)
        }
    }

    fn virtual_target(&self, service: &'a Arc<Service>, ports: &[u16]) -> Answer {
        let Some(target) = fully_qualified(&service.key.hostname) else { return Answer::Forward };
        let answers = ports.iter().take(TARGETS_MAX).map(|port| self.target(*port, target.clone()));
        let answers: Vec<_> = answers.collect();
        let additionals = self.both_families(&Found::Service(service), &target);
        Answer::Own { additionals: if answers.is_empty() { Vec::new() } else { additionals }, answers }
    }

    fn pods(&self, service: &'a Arc<Service>, ports: &[u16]) -> Answer {
        let (mut answers, mut additionals) = (Vec::new(), Vec::new());
        let mut endpoints: Vec<_> = self.endpoints(service).collect();
        shuffle(&mut endpoints, self.random);
        for endpoint in endpoints {
            let workload = &endpoint.workload;
            let Some(target) = pod_name(service, workload) else { continue };
            let before = answers.len();
            for port in ports.iter().filter_map(|port| balance::target_port(service, &endpoint.ports, *port))
            {
                answers.push(self.target(port, target.clone()));
            }
            if answers.len() > before {
                additionals.extend(self.both_families(&Found::Pod(service, workload), &target));
            }
            if answers.len() >= TARGETS_MAX {
                break;
            }
        }
        answers.truncate(TARGETS_MAX);
        Answer::Own { answers, additionals }
    }

    fn target(&self, port: u16, target: Name) -> Record {
        let data = SRV::new(0, 100, port, target);
        Record::from_rdata(self.question.name.clone(), TTL_S, RData::SRV(data))
    }

    fn both_families(&self, found: &Found<'a>, owner: &Name) -> Vec<Record> {
        let families = [RecordType::A, RecordType::AAAA];
        let offered = families.into_iter().filter(|family| self.offers(found.service(), *family));
        let addresses = offered.flat_map(|family| self.addresses_of(found, family));
        addresses.map(|ip| address(owner.clone(), ip)).collect()
    }
}

/// Whether a name that was asked for is itself a wildcard's.
fn candidate_is_wildcard(host: &str) -> bool {
    host.starts_with("*.")
}

/// Whether an endpoint may be told of: ready, unless the service wants those that are not too.
fn usable(service: &Service, workload: &Workload) -> bool {
    let policy = service.load_balancer.as_ref().map(|balancer| balancer.health_policy);
    workload.health == Health::Healthy || policy == Some(HealthPolicy::AllowAll)
}

/// The address that a label says with dashes in place of dots or colons.
fn dashed(label: &str) -> Option<IpAddr> {
    let ipv4 = label.replace('-', ".").parse().map(IpAddr::V4);
    ipv4.or_else(|_| label.replace('-', ":").parse().map(IpAddr::V6)).ok()
}

/// The port in `_port._tcp.rest`: its number, or `None` in place of it where it is a name or of another protocol.
fn port_of(host: &str) -> Option<(Option<u16>, &str)> {
    let (port, rest) = host.strip_prefix('_')?.split_once('.')?;
    let (protocol, rest) = rest.strip_prefix('_')?.split_once('.')?;
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    let number = Some(port).filter(|_| digits && protocol == "tcp").and_then(|port| port.parse().ok());
    Some((number, rest))
}

/// The name of a pod of a headless service; by its address where its own name is no label.
fn pod_name(service: &Service, workload: &Workload) -> Option<Name> {
    let label = |text: &str| {
        let valid = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=63).contains(&text.len()) && text.bytes().all(valid)
    };
    let own = &*workload.name;
    if label(own) && workload.namespace == service.key.namespace {
        return fully_qualified(&format!("{own}.{}", service.key.hostname));
    }
    let dashed = workload.addresses.first()?.to_string().replace(['.', ':'], "-");
    fully_qualified(&format!("{dashed}.{}", service.key.hostname))
}

fn address(owner: Name, ip: IpAddr) -> Record {
    let data = match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    };
    Record::from_rdata(owner, TTL_S, data)
}

fn alias(owner: Name, target: Name) -> Record {
    Record::from_rdata(owner, TTL_S, RData::CNAME(CNAME(target)))
}

/// Puts items in a random order (Fisher–Yates, with the numbers of SplitMix64).
pub fn shuffle<T>(items: &mut [T], random: u64) {
    let mut state = random;
    for last in (1..items.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let place = (u128::from(mixed ^ (mixed >> 31)) * (last as u128 + 1)) >> 64;
        items.swap(last, place as usize);
    }
}
