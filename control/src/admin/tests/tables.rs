//! The tables that operators' tools make of a dump, in their columns and with their fallbacks.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::shapes::{Certificate, Dump, Gateway, X509};

/// Columns as wide as their widest cell, this many spaces between two.
fn table(head: &[&str], rows: Vec<Vec<String>>, gap: usize) -> String {
    let head = head.iter().map(|&title| title.to_owned()).collect();
    let all: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| all.iter().map(|row| row[column].len()).max().unwrap_or(0) + gap;
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = width(column);
            format!("{cell:<width$}")
        });
        format!("{}\n", cells.collect::<String>().trim_end())
    };
    all.iter().map(line).collect()
}

/// What follows the network in `network/address`.
fn address(of: &str) -> &str {
    of.split_once('/').map_or(of, |(_, address)| address)
}

fn waypoint(dump: &Dump, gateway: Option<&Gateway>) -> String {
    let Some(Gateway { destination, .. }) = gateway else { return "None".to_owned() };
    let named = dump.services.iter().find(|service| {
        service.vips.contains(destination)
            || *destination == format!("{}/{}", service.namespace, service.hostname)
    });
    named.map_or_else(|| "NA".to_owned(), |service| service.name.clone())
}

pub(super) fn workloads(dump: &Dump) -> String {
    let row = |one: &super::shapes::Workload| {
        let ip = one.workload_ips.first().map(ToString::to_string).unwrap_or_default();
        let node = one.node.clone().unwrap_or_default();
        let via = waypoint(dump, one.waypoint.as_ref());
        vec![one.namespace.clone(), one.name.clone(), ip, node, via, one.protocol.clone()]
    };
    let mut rows: Vec<_> = dump.workloads.iter().map(row).collect();
    rows.sort();
    table(&["NAMESPACE", "POD NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL"], rows, 1)
}

pub(super) fn services(dump: &Dump) -> String {
    let row = |one: &super::shapes::Service| {
        let vip = one.vips.first().map(|vip| address(vip).to_owned()).unwrap_or_default();
        let healthy = one.endpoints.values().filter(|endpoint| endpoint.status == "Healthy").count();
        let endpoints = format!("{healthy}/{}", one.endpoints.len());
        vec![one.namespace.clone(), one.name.clone(), vip, waypoint(dump, one.waypoint.as_ref()), endpoints]
    };
    let mut rows: Vec<_> = dump.services.iter().map(row).collect();
    rows.sort();
    table(&["NAMESPACE", "SERVICE NAME", "SERVICE VIP", "WAYPOINT", "ENDPOINTS"], rows, 1)
}

pub(super) fn policies(dump: &Dump) -> String {
    let row = |one: &super::shapes::Policy| {
        [&one.namespace, &one.name, &one.action, &one.scope].map(Clone::clone).to_vec()
    };
    let mut rows: Vec<_> = dump.policies.iter().map(row).collect();
    rows.sort();
    table(&["NAMESPACE", "POLICY NAME", "ACTION", "SCOPE"], rows, 1)
}

pub(super) fn certificates(dump: &Dump, now: OffsetDateTime) -> String {
    let head =
        ["CERTIFICATE NAME", "TYPE", "STATUS", "VALID CERT", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE"];
    table(&head, dump.certificates.iter().flat_map(|one| of_identity(one, now)).collect(), 5)
}

fn of_identity(one: &Certificate, now: OffsetDateTime) -> Vec<Vec<String>> {
    let status = one.state.split(':').next().unwrap_or_default();
    let row = |kind: &str, rest: [String; 4]| {
        [one.identity.clone(), kind.to_owned(), status.to_owned()].into_iter().chain(rest).collect()
    };
    if one.cert_chain.is_empty() {
        let none = || "NA".to_owned();
        return vec![row("NA", ["false".to_owned(), none(), none(), none()])];
    }
    let chain = one.cert_chain.iter().enumerate();
    let chain = chain.map(|(place, x509)| (if place == 0 { "Leaf" } else { "Intermediate" }, x509));
    let all = chain.chain(one.root_certs.iter().map(|x509| ("Root", x509)));
    all.map(|(kind, x509)| row(kind, columns(x509, now))).collect()
}

fn columns(x509: &X509, now: OffsetDateTime) -> [String; 4] {
    let time = |text: &str| OffsetDateTime::parse(text, &Rfc3339).unwrap();
    let valid = time(&x509.valid_from) < now && now < time(&x509.expiration_time);
    [
        valid.to_string(),
        hexadecimal(&x509.serial_number),
        x509.expiration_time.clone(),
        x509.valid_from.clone(),
    ]
}

/// A decimal number of any length, in hexadecimal.
fn hexadecimal(decimal: &str) -> String {
    let mut digits: Vec<u32> = decimal.chars().map(|digit| digit.to_digit(10).unwrap()).collect();
    let mut out = Vec::new();
    while digits.iter().any(|digit| *digit != 0) {
        let mut rest = 0;
        for digit in &mut digits {
            let value = rest * 10 + *digit;
            (*digit, rest) = (value / 16, value % 16);
        }
        out.push(char::from_digit(rest, 16).unwrap());
    }
    out.iter().rev().collect()
}

/// Addresses by the name of what is there: a service, else a workload.
fn names(dump: &Dump) -> BTreeMap<IpAddr, String> {
    let workloads = dump
        .workloads
        .iter()
        .flat_map(|one| one.workload_ips.iter().map(|ip| (*ip, format!("{}.{}", one.name, one.namespace))));
    let services = dump
        .services
        .iter()
        .flat_map(|one| one.vips.iter().map(|vip| (address(vip).parse().unwrap(), one.hostname.clone())));
    workloads.chain(services).collect()
}

pub(super) fn connections(dump: &Dump) -> String {
    let names = names(dump);
    let named = |socket: SocketAddr| match names.get(&socket.ip()) {
        Some(name) => format!("{name}:{}", socket.port()),
        None => socket.to_string(),
    };
    let target = |text: Option<&String>| match text.map(|text| (text, text.parse())) {
        Some((_, Ok(socket))) => named(socket),
        Some((text, Err(_))) => text.clone(),
        None => String::new(),
    };
    let mut rows = Vec::new();
    for state in dump.workload_state.values() {
        let name = format!("{}.{}", state.info.name, state.info.namespace);
        let mut row = |direction: &str, ends: [SocketAddr; 2], asked, protocol: &String| {
            let [local, remote] = ends.map(named);
            rows.push(vec![name.clone(), direction.to_owned(), local, remote, asked, protocol.clone()]);
        };
        for one in &state.connections.inbound {
            row("Inbound", [one.actual_dst, one.src], target(one.original_dst.as_ref()), &one.protocol);
        }
        for one in &state.connections.outbound {
            row("Outbound", [one.src, one.actual_dst], target(one.original_dst.as_ref()), &one.protocol);
        }
    }
    rows.sort();
    table(&["WORKLOAD", "DIRECTION", "LOCAL", "REMOTE", "REMOTE TARGET", "PROTOCOL"], rows, 1)
}

/// Every table under its title.
pub(super) fn all(dump: &Dump, now: OffsetDateTime) -> String {
    let parts = [
        ("WORKLOAD", workloads(dump)),
        ("SERVICE", services(dump)),
        ("POLICY", policies(dump)),
        ("SECRET", certificates(dump, now)),
        ("CONNECTIONS", connections(dump)),
    ];
    parts.map(|(title, text)| format!("\n------ {title} INFO ------\n\n{text}")).concat()
}
