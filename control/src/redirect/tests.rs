use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command as Process;

use super::*;

/// A network namespace without a name: it lives as long as the descriptor.
fn namespace() -> File {
    let file = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root");
        File::open("/proc/thread-self/ns/net").unwrap()
    })
    .join()
    .unwrap();
    show(&file, "ip link set lo up");
    file
}

fn show(netns: &File, command: &str) -> String {
    let output = netns::within(netns.as_fd(), || Process::new("sh").args(["-c", command]).output().unwrap());
    let output = output.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Everything that the rules may touch, without counters' values and handles.
fn state(netns: &File) -> String {
    show(
        netns,
        "nft -s list ruleset; ip -4 rule; ip -6 rule; ip -4 route show table all; ip -6 route show table all",
    )
}

fn everything() -> Options {
    Options {
        ipv6: true,
        dns: true,
        virtual_interfaces: vec![Interface::new("tap0").unwrap()],
        ..Options::default()
    }
}

#[test]
fn text_is_the_golden_one() {
    assert_eq!(text(&Options::default()), include_str!("golden/default.nft"));
    assert_eq!(text(&everything()), include_str!("golden/everything.nft"));
}

#[test]
fn inbound_bypass_leaves_prerouting_empty_and_outbound_captured() {
    let text = text(&Options { inbound_bypass: true, ..Options::default() });
    assert!(!text.contains("15006"), "{text}");
    assert!(text.contains("redirect to :15001"), "{text}");
}

#[test]
fn interface_that_could_break_out_of_the_rule_is_refused() {
    for name in ["", "a\"b", "a b", "a;b", "a\nb", "sixteen-letters-", "é"] {
        assert_eq!(Interface::new(name), None, "{name:?}");
    }
    assert_eq!(Interface::new("veth0.1_a-b").unwrap().as_str(), "veth0.1_a-b");
}

#[test]
fn apply_twice_is_apply_once() {
    let netns = namespace();
    for options in [Options::default(), everything()] {
        apply(netns.as_fd(), &options).unwrap();
        let once = state(&netns);
        apply(netns.as_fd(), &options).unwrap();
        assert_eq!(state(&netns), once);
        assert_eq!(once.matches("fwmark 0x111/0xfff lookup 100").count(), if options.ipv6 { 2 } else { 1 });
    }
}

#[test]
fn apply_replaces_what_other_options_left() {
    let (changed, fresh) = (namespace(), namespace());
    apply(changed.as_fd(), &everything()).unwrap();
    apply(changed.as_fd(), &Options::default()).unwrap();
    apply(fresh.as_fd(), &Options::default()).unwrap();
    assert_eq!(state(&changed), state(&fresh));
}

#[test]
fn remove_restores_the_namespace_and_spares_foreign_rules() {
    let netns = namespace();
    show(
        &netns,
        "nft add table inet foreign; ip rule add fwmark 0x222 lookup 7; ip route add local 10.9.9.9 dev lo table 7",
    );
    let before = state(&netns);
    apply(netns.as_fd(), &everything()).unwrap();
    remove(netns.as_fd()).unwrap();
    assert_eq!(state(&netns), before);
    remove(netns.as_fd()).unwrap();
    assert_eq!(state(&netns), before);
}

#[test]
fn outbound_connection_arrives_at_the_proxy_with_its_original_destination() {
    let netns = namespace();
    show(
        &netns,
        "ip link add e0 type veth peer name e1 && ip addr add 10.7.0.1/24 dev e0 && ip link set e0 up",
    );
    apply(netns.as_fd(), &Options::default()).unwrap();
    netns::within(netns.as_fd(), || {
        let proxy = std::net::TcpListener::bind(("0.0.0.0", OUTBOUND_PORT)).unwrap();
        let asked = "10.7.0.99:80".parse().unwrap();
        std::net::TcpStream::connect_timeout(&asked, std::time::Duration::from_secs(5)).unwrap();
        let (captured, _) = proxy.accept().unwrap();
        let original =
            nix::sys::socket::getsockopt(&captured, nix::sys::socket::sockopt::OriginalDst).unwrap();
        assert_eq!(u16::from_be(original.sin_port), 80);
        assert_eq!(u32::from_be(original.sin_addr.s_addr), u32::from(Ipv4Addr::new(10, 7, 0, 99)));
    })
    .unwrap();
}

#[test]
fn release_lets_new_connections_pass_and_keeps_the_translation_of_old_ones() {
    let netns = namespace();
    apply(netns.as_fd(), &Options::default()).unwrap();
    release(netns.as_fd()).unwrap();
    let kept = show(&netns, "nft list table inet istio-ambient-nat");
    assert!(!kept.contains("redirect") && kept.matches("type nat hook").count() == 2, "{kept}");
    assert!(show(&netns, "nft list table inet istio-ambient-mangle").contains("ct mark"));
    remove(netns.as_fd()).unwrap();
    release(netns.as_fd()).unwrap();
    remove(netns.as_fd()).unwrap();
}

#[test]
fn refusal_names_the_command_the_words_and_the_remedy() {
    let netns = namespace();
    let error =
        netns::within(netns.as_fd(), || Command::nft("nonsense\n").run().unwrap_err()).unwrap().to_string();
    for part in ["`nft -f -` failed", "syntax error", "CAP_NET_ADMIN"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn descriptor_that_is_no_namespace_is_refused() {
    let file = File::open("/dev/null").unwrap();
    let error = apply(file.as_fd(), &Options::default()).unwrap_err();
    assert!(error.to_string().starts_with("enter the pod's network namespace"), "{error}");
}
