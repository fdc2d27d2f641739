//! Every accepted byte is delivered, or the connection is seen to break: never a clean end with fewer bytes.
#![allow(clippy::unwrap_used)]

use halo::lab::node::NodeOptions;
use halo::lab::topology::NodePlan;
use halo_tests::exchange::{self, Order, Reset, Script, Side};
use halo_tests::random::Random;
use halo_tests::{Rig, socket};

const PORT: u16 = 9000;
const GIB: u64 = 1 << 30;
const KIB: u64 = 1 << 10;
/// Connections at once.
const PARALLEL: usize = 24;

/// Mostly short, some long: messages, pages, files.
fn size(random: &mut Random) -> u64 {
    match random.below(16) {
        0 => 0,
        1..=7 => random.below(64 * KIB),
        8..=12 => random.below(1024 * KIB),
        13 | 14 => random.below(8 * 1024 * KIB),
        _ => random.below(32 * 1024 * KIB),
    }
}

fn side(random: &mut Random) -> Side {
    if random.once_in(2) { Side::Client } else { Side::Server }
}

fn script(id: u64, random: &mut Random) -> Script {
    let order = [Order::ClientFirst, Order::ServerFirst, Order::Together][random.below(3) as usize];
    let mut script = Script::new(id, size(random), size(random), order);
    if random.once_in(8) {
        script.slow = Some(side(random));
    }
    if random.once_in(4) {
        let (by, sending) = (side(random), random.once_in(2));
        let total = if (by == Side::Client) == sending { script.up } else { script.down };
        script.reset = (total > 0).then(|| Reset { by, sending, at: random.below(total) });
    }
    script
}

/// Scripts that carry `total` bytes.
fn scripts(random: &mut Random, total: u64) -> Vec<Script> {
    let (mut scripts, mut sum) = (Vec::new(), 0);
    while sum < total {
        let script = script(scripts.len() as u64 + 1, random);
        if script.reset.is_none() {
            sum += script.up + script.down;
        }
        scripts.push(script);
    }
    scripts
}

fn with_variable(name: &str, value: &str) -> NodeOptions {
    NodeOptions { environment: vec![(name.into(), value.into())], ..NodeOptions::default() }
}

fn through_both_proxies(options: NodeOptions, total: u64) {
    let rig = Rig::web_and_shop(options);
    let scripts = scripts(&mut Random::from_environment(), total);
    let listener = socket::listen(rig.netns("shop"), PORT);
    let reports = exchange::run(&scripts, rig.netns("web"), rig.address("shop", PORT), &listener, PARALLEL);
    exchange::judge_all(&scripts, &reports);
    assert!(rig.counter(1, "tunnels_accepted") > 0, "the traffic took no tunnel");
    for node in [0, 1] {
        assert_eq!(rig.counter(node, "closed_defect"), 0);
    }
}

#[test]
fn a_gibibyte_arrives_whole_or_is_seen_to_break() {
    through_both_proxies(NodeOptions::default(), GIB);
}

#[test]
fn nothing_is_lost_with_rustls_records() {
    through_both_proxies(with_variable("HALO_RECORDS", "rustls"), GIB / 8);
}

#[test]
fn nothing_is_lost_on_epoll() {
    through_both_proxies(with_variable("HALO_RING", "epoll"), GIB / 8);
}

#[test]
fn nothing_is_lost_across_two_shards() {
    through_both_proxies(NodeOptions { shards: 2, ..NodeOptions::default() }, GIB / 8);
}

#[test]
fn the_scenario_itself_loses_nothing_without_proxies() {
    let plan = [NodePlan::new("node-a", &["web"]), NodePlan::new("node-b", &["shop"])];
    let rig = Rig::build(&plan, NodeOptions::default());
    let scripts = scripts(&mut Random::from_environment(), GIB / 8);
    let listener = socket::listen(rig.netns("shop"), PORT);
    let reports = exchange::run(&scripts, rig.netns("web"), rig.address("shop", PORT), &listener, PARALLEL);
    exchange::judge_all(&scripts, &reports);
}
