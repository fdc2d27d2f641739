//! `halo node` as an operator starts it wrongly.

#![allow(clippy::unwrap_used)]

use std::process::Command;

#[test]
fn core_outside_the_cpuset_is_refused_at_start_with_the_variable_and_the_value() {
    let usable = core_affinity::get_core_ids().unwrap();
    let foreign = (0..1024).find(|id| usable.iter().all(|core| core.id != *id));
    let foreign = foreign.expect("a machine with fewer than 1024 cores").to_string();
    for flag in [true, false] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_halo"));
        command.arg("node").env_clear();
        match flag {
            true => command.args(["--cores", &foreign]),
            false => command.env("HALO_CORES", &foreign),
        };
        let output = command.output().unwrap();
        // The log is on standard output.
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let wanted = format!("HALO_CORES={foreign:?}: core {foreign} does not exist or is outside");
        assert!(said.contains(&wanted), "{said}");
    }
}

fn halo(arguments: &[&str]) -> (Option<i32>, String, String) {
    run(Command::new(env!("CARGO_BIN_EXE_halo")).args(arguments))
}

/// How a command ended, and what it said on its output and on its error output.
fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.env_clear().output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn version_and_help_are_commands_and_whatever_is_unknown_exits_1_with_its_name() {
    let (code, said, _) = halo(&["version"]);
    assert_eq!(code, Some(0));
    assert!(said.starts_with("version.BuildInfo{Version:\"") && said.ends_with("}\n"), "{said}");
    let (code, said, _) = halo(&["help"]);
    assert_eq!(code, Some(0));
    assert!(["node", "proxy", "controller", "version"].iter().all(|name| said.contains(name)), "{said}");
    let (code, said, _) = halo(&["help", "node"]);
    assert!(code == Some(0) && said.contains("NODE_NAME"), "{said}");
    for (arguments, named) in
        [(&["prox"][..], "prox"), (&["help", "prox"], "prox"), (&["node", "--speed"], "--speed")]
    {
        let (code, said, error) = halo(arguments);
        assert_eq!((code, said.as_str()), (Some(1), ""), "{arguments:?}");
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn without_a_command_a_person_is_helped_and_the_stock_name_starts_the_proxy() {
    let (code, _, error) = halo(&[]);
    assert!(code == Some(1) && error.contains("Usage: halo"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let stock = folder.path().join("ztunnel");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_halo"), &stock).unwrap();
    // A setting that is refused shows that the proxy starts, and ends it.
    for arguments in [&[][..], &["proxy"], &["proxy", "ztunnel", "--anything"]] {
        let mut command = Command::new(&stock);
        let output = command.args(arguments).env_clear().env("PROXY_MODE", "neither").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("PROXY_MODE=\"neither\": expected shared or dedicated"), "{said}");
    }
}
