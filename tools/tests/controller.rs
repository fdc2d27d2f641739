//! `halo controller` as an operator starts it wrongly.

#![allow(clippy::unwrap_used)]

use std::process::Command;

/// What a start with these flags and variables says as it fails.
fn refused(flags: &[&str], variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_halo"));
    command.arg("controller").args(flags).env_clear().envs(variables.iter().copied());
    let output = command.output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!output.status.success(), "{said}");
    said
}

#[test]
fn a_wrong_flag_or_variable_stops_the_start_with_its_name_its_value_and_the_reason() {
    let cases: [(&str, &str, &str, &[&str]); 4] = [
        ("--listen", "HALO_CONTROLLER_LISTEN", "nowhere", &["invalid socket address"]),
        (
            "--trusted-account",
            "HALO_CONTROLLER_TRUSTED_ACCOUNTS",
            "ztunnel",
            &["expected <namespace>/<name>"],
        ),
        ("--log", "HALO_CONTROLLER_LOG", "halo=loudly", &["invalid"]),
        ("--server-name", "HALO_CONTROLLER_SERVER_NAMES", "not a name", &["a DNS name or an IP address"]),
    ];
    for (flag, variable, value, reasons) in cases {
        for said in [
            refused(&["--from-file", "mesh.yaml", flag, value], &[]),
            refused(&["--from-file", "mesh.yaml"], &[(variable, value)]),
        ] {
            for expected in [flag, value].iter().chain(reasons) {
                assert!(said.contains(expected), "{expected:?} is not in: {said}");
            }
        }
    }
}

#[test]
fn a_state_file_must_be_named_and_a_file_of_credentials_must_be_there() {
    assert!(refused(&[], &[]).contains("--from-file"));
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (mesh, ca, tokens) = (path("mesh.yaml"), path("ca"), path("tokens.yaml"));
    let local = ["--listen", "127.0.0.1:0", "--health", "127.0.0.1:0", "--from-file", &mesh, "--ca-dir", &ca];
    let said = refused(&[&local[..], &["--tokens", &tokens]].concat(), &[]);
    assert!(said.contains(&tokens) && said.contains("No such file"), "{said}");
    let open = ["--listen", "[::]:0", "--health", "127.0.0.1:0", "--from-file", &mesh, "--ca-dir", &ca];
    let said = refused(&open, &[]);
    assert!(said.contains("callers are not asked for credentials") && said.contains("--tokens"), "{said}");
    let both = refused(&[&local[..], &["--tokens", &tokens, "--jwks", &tokens]].concat(), &[]);
    assert!(both.contains("--tokens") && both.contains("--jwks"), "{both}");
}
