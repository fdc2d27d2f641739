//! One captured connection that asks for a route, and what was tried for it before.

use std::net::IpAddr;

use super::{Attempt, Captured};
use crate::balance;
use crate::net::{HostTarget, Target};
use crate::outcome::Reason;
use crate::service::Service;
use crate::snapshot::Snapshot;
use crate::workload::Workload;

/// What a decision is made from.
#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) captured: &'a Captured<'a>,
    pub(super) random: u64,
    pub(super) failed: &'a [Attempt],
    /// Whether the connection may leave the network: a gateway is told a service.
    pub(super) crosses: bool,
}

/// Choices that one connection may need, each with random bits of its own: the waypoint, the endpoint, the gateway.
#[derive(Clone, Copy)]
pub(super) enum Draw {
    Waypoint = 21,
    Endpoint = 0,
    Gateway = 42,
}

impl Ask<'_> {
    /// A number for one choice, uniform over all of `u64`. A choice reads the highest bits, so that others are independent
    /// of it.
    pub(super) fn draw(&self, draw: Draw) -> u64 {
        self.random.rotate_left(draw as u32)
    }

    /// Why there is no route, if another one was tried before.
    pub(super) fn exhausted(&self) -> Option<Reason> {
        (!self.failed.is_empty()).then_some(Reason::NoHealthyUpstream)
    }

    /// Whether this workload was tried.
    pub(super) fn tried(&self, workload: &Workload) -> bool {
        self.failed.iter().any(|attempt| attempt.workload == workload.uid)
    }

    /// Where to reach a workload's `port`: at the address that `requested` makes the best, by DNS if it has none, and on a
    /// retry at an address that was not tried, of the other family if there is one.
    pub(super) fn target(
        &self,
        workload: &Workload,
        service: Option<&Service>,
        requested: IpAddr,
        port: u16,
    ) -> Option<Target> {
        let mut tried = self.failed.iter().filter(|attempt| attempt.workload == workload.uid);
        let Some(last) = tried.clone().next_back() else {
            let ip = balance::address(workload, service, requested);
            return ip.map(|ip| address(ip, port)).or_else(|| host(workload, service, requested, port));
        };
        let untried = |ip: &IpAddr| !tried.clone().any(|attempt| attempt.ip == Some(*ip));
        let mut left = balance::addresses(workload, service).filter(untried);
        let other_family = |ip: &IpAddr| last.ip.is_none_or(|last| last.is_ipv4() != ip.is_ipv4());
        let found = left.clone().find(other_family).or_else(|| left.next());
        found.map(|ip| address(ip, port)).or_else(|| {
            let own = |ip: IpAddr| workload.addresses.contains(&ip);
            let by_name = tried.any(|attempt| attempt.ip.is_none_or(|ip| !own(ip)));
            if by_name { None } else { host(workload, service, requested, port) }
        })
    }
}

fn address(ip: IpAddr, port: u16) -> Target {
    Target::Address((ip, port).into())
}

fn host(workload: &Workload, service: Option<&Service>, requested: IpAddr, port: u16) -> Option<Target> {
    let (ipv4, ipv6) = balance::families(service);
    let hostname = workload.hostname.clone();
    let found = HostTarget { hostname, port, ipv4, ipv6, ipv6_first: requested.is_ipv6() };
    (!workload.hostname.is_empty()).then_some(Target::Host(found))
}
