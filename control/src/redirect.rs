//! The redirect rules inside a pod's network namespace, which bring the pod's TCP to the node proxy.
//!
//! [`apply`] makes the namespace match [`Options`], whatever it held before; [`remove`] takes away exactly what
//! `apply` may have put there. Both replace our own nftables tables in one transaction and leave foreign tables,
//! rules and routes alone. They block while `ip` and `nft` run: call them off the control thread.
//!
//! Order: routes come before the rules that mark packets for them, and leave after those.

mod command;
mod rules;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use crate::netns;
use command::Command;

pub use rules::text;

/// Mark of every packet that the proxy sends from a pod's namespace.
pub const PROXY_MARK: u32 = 0x539;
/// Mark of connections that the proxy opened towards the pod from a client's address.
pub const CONNECTION_MARK: u32 = 0x111;
/// The bits of a mark that belong to us.
pub const MARK_MASK: u32 = 0xfff;
/// Captured outbound TCP.
pub const OUTBOUND_PORT: u16 = 15001;
/// Captured inbound TCP that came outside a tunnel.
pub const INBOUND_PORT: u16 = 15006;
/// Tunnels; never redirected.
pub const HBONE_PORT: u16 = 15008;
/// Captured DNS.
pub const DNS_PORT: u16 = 15053;
/// Routing table that loops marked packets back to the proxy.
pub const ROUTE_TABLE: u32 = 100;
/// Priority of the routing rule.
pub const RULE_PRIORITY: u32 = 32764;

/// What to capture in one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Capture IPv6 too. Wants a namespace whose `lo` has IPv6 enabled.
    pub ipv6: bool,
    /// Capture DNS, both UDP and TCP.
    pub dns: bool,
    /// Leave inbound traffic alone, for gateways that must see their clients; outbound is still captured.
    pub inbound_bypass: bool,
    /// Interfaces whose inbound TCP is the traffic of something nested in the pod (a virtual machine), and therefore
    /// outbound.
    pub virtual_interfaces: Vec<Interface>,
    /// Source of the host's probes, which bypass the proxy.
    pub probe_ipv4: Ipv4Addr,
    /// Source of the host's IPv6 probes.
    pub probe_ipv6: Ipv6Addr,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ipv6: false,
            dns: false,
            inbound_bypass: false,
            virtual_interfaces: Vec::new(),
            probe_ipv4: Ipv4Addr::new(169, 254, 7, 127),
            probe_ipv6: Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff),
        }
    }
}

/// The name of a network interface, safe to write into a rule. It comes from a pod's annotation, which anybody who
/// may create pods chooses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface(String);

impl Interface {
    /// Accepts 1 to 15 letters, digits, `.`, `_` and `-`; anything else is `None`.
    pub fn new(name: &str) -> Option<Self> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
        let fits = (1..=15).contains(&name.len()) && name.bytes().all(allowed);
        fits.then(|| Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why the rules are not in place.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    /// The namespace cannot be entered.
    #[error(
        "enter the pod's network namespace: {0}; run as root with CAP_SYS_ADMIN, and with the pod still alive"
    )]
    Enter(#[source] io::Error),
    /// A program cannot be started.
    #[error("start `{command}`: {cause}; install {package} on the node")]
    Start {
        /// The command line.
        command: String,
        /// The operating system's words.
        cause: io::Error,
        /// The package that carries the program.
        package: &'static str,
    },
    /// A program refused.
    #[error("`{command}` failed: {stderr}; {remedy}")]
    Refused {
        /// The command line.
        command: String,
        /// What it printed, trimmed.
        stderr: String,
        /// What a person can do.
        remedy: &'static str,
    },
}

/// Puts the rules and routes in place, replacing earlier ones of ours. Running it again changes nothing.
pub fn apply(netns: BorrowedFd<'_>, options: &Options) -> Result<(), RedirectError> {
    let document = text(options);
    enter(netns, || {
        add_routes(Family::V4)?;
        if options.ipv6 {
            add_routes(Family::V6)?;
        }
        Command::nft(&document).run()?;
        if !options.ipv6 {
            remove_routes(Family::V6)?;
        }
        Ok(())
    })
}

/// Stops capturing new connections. Those that are captured stay translated, so that the proxy's last words reach the
/// application: without the translation a reset never arrives, and an idle connection stays open for ever. [`remove`]
/// follows when the proxy has let go of the pod.
pub fn release(netns: BorrowedFd<'_>) -> Result<(), RedirectError> {
    let document = rules::release();
    enter(netns, || Command::nft(&document).run())
}

/// Takes the rules and routes away. Removing what is not there succeeds.
pub fn remove(netns: BorrowedFd<'_>) -> Result<(), RedirectError> {
    let document = rules::removal();
    enter(netns, || {
        Command::nft(&document).run()?;
        remove_routes(Family::V4)?;
        remove_routes(Family::V6)
    })
}

fn enter(
    netns: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<(), RedirectError> + Send,
) -> Result<(), RedirectError> {
    netns::within(netns, work).map_err(RedirectError::Enter)?
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn flag(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }
}

fn rule(family: Family, verb: &str) -> Command {
    let mark = format!("{CONNECTION_MARK:#x}/{MARK_MASK:#x}");
    let (priority, table) = (RULE_PRIORITY.to_string(), ROUTE_TABLE.to_string());
    Command::ip(&[family.flag(), "rule", verb, "fwmark", &mark, "pref", &priority, "lookup", &table])
}

fn route(family: Family, verb: &str) -> Command {
    let table = ROUTE_TABLE.to_string();
    Command::ip(&[family.flag(), "route", verb, "local", "default", "dev", "lo", "table", &table])
}

fn add_routes(family: Family) -> Result<(), RedirectError> {
    // The kernel refuses a rule that it already has, field by field: that refusal is the idempotence.
    rule(family, "add").tolerate(&["File exists"]).run()?;
    route(family, "replace").run()
}

fn remove_routes(family: Family) -> Result<(), RedirectError> {
    // A kernel without IPv6 has nothing of ours in it.
    let absent = [
        "No such file or directory",
        "No such process",
        "FIB table does not exist",
        "not supported",
        "No such device",
    ];
    rule(family, "del").tolerate(&absent).run()?;
    route(family, "del").tolerate(&absent).run()
}
