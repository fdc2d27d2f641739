//! The text of the nftables transaction. A pure function of the options.

use std::fmt::Write;

use super::{
    CONNECTION_MARK, DNS_PORT, HBONE_PORT, INBOUND_PORT, MARK_MASK, OUTBOUND_PORT, Options, PROXY_MARK,
};

const MANGLE: &str = "istio-ambient-mangle";
const NAT: &str = "istio-ambient-nat";
const RAW: &str = "istio-ambient-raw";
const PREROUTING: &str = "istio-prerouting";
const OUTPUT: &str = "istio-output";

/// One transaction that replaces our tables by those that `options` ask for.
pub fn text(options: &Options) -> String {
    let mut text = removal();
    text += &table(MANGLE, &[mangle_prerouting(), mangle_output()]);
    text += &table(NAT, &[nat_prerouting(options), nat_output(options)]);
    if options.dns {
        text += &table(RAW, &[raw_prerouting(), raw_output()]);
    }
    text
}

/// One transaction that removes our tables. `add` before `delete` makes it succeed where there is none; `destroy`
/// would need Linux 6.3.
pub(super) fn removal() -> String {
    [MANGLE, NAT, RAW].iter().fold(String::new(), |mut text, table| {
        let _ = writeln!(text, "add table inet {table}\ndelete table inet {table}");
        text
    })
}

/// One transaction that empties the chains that capture. The chains stay, and with them the kernel's translation of what
/// is captured already.
pub(super) fn release() -> String {
    format!("add table inet {NAT}\nflush table inet {NAT}\n")
}

struct Chain {
    name: &'static str,
    hook: &'static str,
    rules: Vec<String>,
}

fn table(name: &str, chains: &[Chain]) -> String {
    let mut text = format!("table inet {name} {{\n");
    for Chain { name, hook, rules } in chains {
        let _ = writeln!(text, "\tchain {name} {{\n\t\ttype {hook}; policy accept;");
        for rule in rules {
            let _ = writeln!(text, "\t\t{rule}");
        }
        text += "\t}\n";
    }
    text += "}\n";
    text
}

fn proxied() -> String {
    format!("meta mark & {MARK_MASK:#x} == {PROXY_MARK:#x}")
}

fn unproxied() -> String {
    format!("meta mark & {MARK_MASK:#x} != {PROXY_MARK:#x}")
}

/// Narrows a rule that names no address to the families that are captured.
fn family(options: &Options) -> &'static str {
    if options.ipv6 { "" } else { "meta nfproto ipv4 " }
}

/// The loopback address of each family that is captured: traffic to it stays what it is.
fn loopbacks(options: &Options) -> Vec<&'static str> {
    let mut all = vec!["ip daddr != 127.0.0.1"];
    if options.ipv6 {
        all.push("ip6 daddr != ::1");
    }
    all
}

/// Flows that the proxy opens towards the pod carry the client's source address; their connection is tagged here ...
fn mangle_prerouting() -> Chain {
    let kept = !MARK_MASK;
    let rule = format!("{} counter ct mark set ct mark & {kept:#x} | {CONNECTION_MARK:#x}", proxied());
    Chain { name: PREROUTING, hook: "filter hook prerouting priority -150", rules: vec![rule] }
}

/// ... and here the pod's replies get the mark that routes them back to the proxy instead of out of the pod.
fn mangle_output() -> Chain {
    let rule = format!("ct mark & {MARK_MASK:#x} == {CONNECTION_MARK:#x} counter meta mark set ct mark");
    Chain { name: OUTPUT, hook: "route hook output priority -150", rules: vec![rule] }
}

fn nat_prerouting(options: &Options) -> Chain {
    let family = family(options);
    let mut rules = Vec::new();
    for interface in &options.virtual_interfaces {
        let name = interface.as_str();
        rules.push(format!(
            "{family}iifname \"{name}\" meta l4proto tcp counter redirect to :{OUTBOUND_PORT}"
        ));
        rules.push(format!("{family}iifname \"{name}\" meta l4proto tcp counter return"));
    }
    if !options.inbound_bypass {
        rules.push(format!("ip saddr {} meta l4proto tcp counter accept", options.probe_ipv4));
        if options.ipv6 {
            rules.push(format!("ip6 saddr {} meta l4proto tcp counter accept", options.probe_ipv6));
        }
        for loopback in loopbacks(options) {
            rules.push(format!(
                "{loopback} tcp dport != {HBONE_PORT} {} counter redirect to :{INBOUND_PORT}",
                unproxied()
            ));
        }
    }
    Chain { name: PREROUTING, hook: "nat hook prerouting priority -100", rules }
}

fn nat_output(options: &Options) -> Chain {
    let mut rules = vec![format!("ip daddr {} meta l4proto tcp counter accept", options.probe_ipv4)];
    if options.ipv6 {
        rules.push(format!("ip6 daddr {} meta l4proto tcp counter accept", options.probe_ipv6));
    }
    let loopbacks = loopbacks(options);
    if options.dns {
        let (family, unproxied) = (family(options), unproxied());
        rules.push(format!(
            "{family}oifname != \"lo\" udp dport 53 {unproxied} counter redirect to :{DNS_PORT}"
        ));
        for loopback in &loopbacks {
            rules.push(format!("{loopback} tcp dport 53 {unproxied} counter redirect to :{DNS_PORT}"));
        }
    }
    rules.push(format!("meta l4proto tcp meta mark & {MARK_MASK:#x} == {CONNECTION_MARK:#x} counter accept"));
    for loopback in &loopbacks {
        rules.push(format!("oifname \"lo\" {loopback} counter accept"));
    }
    for loopback in &loopbacks {
        rules.push(format!(
            "{loopback} meta l4proto tcp {} counter redirect to :{OUTBOUND_PORT}",
            unproxied()
        ));
    }
    Chain { name: OUTPUT, hook: "nat hook output priority -100", rules }
}

/// The proxy's own DNS lives in a conntrack zone of its own, so that its answers do not match the pod's redirected
/// questions with the same ports.
fn raw_prerouting() -> Chain {
    let rule = format!("udp sport 53 {} counter ct zone set 1", unproxied());
    Chain { name: PREROUTING, hook: "filter hook prerouting priority -300", rules: vec![rule] }
}

fn raw_output() -> Chain {
    let rule = format!("udp dport 53 {} counter ct zone set 1", proxied());
    Chain { name: OUTPUT, hook: "filter hook output priority -300", rules: vec![rule] }
}
