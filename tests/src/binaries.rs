//! Where the programs under test are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The `halo` program: `HALO_BINARY`, or the release build of this tree, which is brought up to date first so that no
/// scenario runs against yesterday's proxy.
pub fn halo() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            if let Some(path) = std::env::var_os("HALO_BINARY") {
                return path.into();
            }
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let arguments = ["build", "--quiet", "--release", "--locked", "--bin", "halo"];
            let status = Command::new(cargo).args(arguments).current_dir(workspace()).status().unwrap();
            assert!(status.success(), "the halo binary does not build");
            let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
            target.unwrap_or_else(|| workspace().join("target")).join("release/halo")
        })
        .clone()
}

/// The Envoy program: `HALO_ENVOY`, or where `tests/run` installs it.
pub fn envoy() -> PathBuf {
    let path = std::env::var_os("HALO_ENVOY").map(PathBuf::from);
    let path = path.unwrap_or_else(|| workspace().join("target/envoy/envoy/_bin/envoy"));
    assert!(path.exists(), "no Envoy at {}: run tests/run once, or set HALO_ENVOY", path.display());
    path
}
