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
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let wanted = format!("HALO_CORES={foreign:?}: core {foreign} does not exist or is outside");
        assert!(said.contains(&wanted), "{said}");
    }
}
