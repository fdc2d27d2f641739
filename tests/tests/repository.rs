//! The rules of this repository that a compiler does not check.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Crates that `halo-core` may use: pure ones, without I/O.
const CORE_ALLOWED: &[&str] = &["hickory-proto", "imbl", "ipnet", "prost", "thiserror", "zeroize"];
/// Crates that `halo-shard` may use.
const SHARD_ALLOWED: &[&str] = &[
    "aws-lc-rs",
    "core_affinity",
    "halo-core",
    "hdrhistogram",
    "io-uring",
    "monoio",
    "nix",
    "pin-project-lite",
    "rustls",
    "rustls-webpki",
    "socket2",
    "thiserror",
    "zeroize",
];
/// Crates that must not be in the shard's tree at any depth.
const SHARD_NEVER: &[&str] = &["tokio", "kube", "tonic", "hyper", "halo-control"];
const CORE_NEVER: &[&str] =
    &["tokio", "monoio", "mio", "socket2", "nix", "rustls", "halo-shard", "halo-control"];
const CONTROL_NEVER: &[&str] = &["halo-shard", "monoio"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above").to_owned()
}

/// The names in a crate's normal dependency tree down to `depth`, without the crate itself.
fn tree(package: &str, depth: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{p}"])
        .args(["--package", package, "--depth", depth])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("cargo writes UTF-8");
    let names = text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned);
    names.filter(|name| name != package).collect()
}

#[test]
fn crates_use_only_what_their_place_allows() {
    for (package, allowed) in [("halo-core", CORE_ALLOWED), ("halo-shard", SHARD_ALLOWED)] {
        for name in tree(package, "1") {
            assert!(allowed.contains(&name.as_str()), "{package} may not use {name}");
        }
    }
    for (package, never) in
        [("halo-core", CORE_NEVER), ("halo-shard", SHARD_NEVER), ("halo-control", CONTROL_NEVER)]
    {
        let names = tree(package, "99");
        for name in never {
            assert!(!names.contains(*name), "{package} reaches {name}");
        }
    }
}

#[test]
fn the_hot_path_in_the_architecture_page_exists() {
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("the page exists");
    let mut seen = 0;
    for quoted in page.split('`').skip(1).step_by(2) {
        let Some((file, function)) = quoted.split_once("::").filter(|(file, _)| file.ends_with(".rs")) else {
            continue;
        };
        let source = std::fs::read_to_string(root().join(file)).unwrap_or_else(|_| panic!("no file {file}"));
        let found =
            source.contains(&format!("fn {function}(")) || source.contains(&format!("fn {function}<"));
        assert!(found, "{file} has no function {function}");
        seen += 1;
    }
    assert!(seen >= 18, "the page names only {seen} functions");
}

/// Every Rust source of the workspace.
fn sources() -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])
        .current_dir(root())
        .output()
        .expect("git runs");
    let text = String::from_utf8(output.stdout).expect("git writes UTF-8");
    let files: Vec<_> = text.lines().map(|line| root().join(line)).filter(|path| path.exists()).collect();
    assert!(files.len() > 20, "git lists the sources");
    files
}

#[test]
fn sources_keep_the_house_rules() {
    for path in sources() {
        let text = std::fs::read_to_string(&path).expect("sources are text");
        let name = path.strip_prefix(root()).expect("sources are below").display().to_string();
        assert!(!name.ends_with("/mod.rs"), "{name}: a module is foo.rs beside foo/");
        let is_test = name.contains("tests");
        let lines = text.lines().count();
        assert!(is_test || lines <= 600, "{name}: {lines} lines hold two subjects");
        assert!(
            is_test || text.starts_with("//!") || text.starts_with("#!"),
            "{name}: no header says what it decides"
        );
    }
}

#[test]
fn unsafe_stands_only_where_sockets_need_it() {
    for path in sources() {
        let text = std::fs::read_to_string(&path).expect("sources are text");
        let name = path.strip_prefix(root()).expect("sources are below").display().to_string();
        let allowed =
            ["dataplane/shard/src/socket.rs", "dataplane/shard/src/ring.rs", "dataplane/shard/src/netns.rs"];
        let word = concat!("uns", "afe {");
        assert!(!text.contains(word) || allowed.contains(&name.as_str()), "{name}: unsafe has no place here");
    }
}
