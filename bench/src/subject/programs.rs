//! Where the programs are that are compared, and what version they say they are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use halo::lab::{LabError, Result};

use super::failed;

const BUILD: &[&str] = &["build", "--release", "--locked", "--bin", "halo"];
/// Time that a program has to say its version, seconds.
const ANSWER_MAX_S: &str = "5";

/// The workspace that this program was built from.
pub(super) fn workspace() -> &'static Path {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.parent().unwrap_or(crate_dir)
}

/// See [`super::halo_binary`].
pub(super) fn halo_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("HALO_BINARY").map(PathBuf::from) {
        let lacking = || LabError::Process {
            process: "HALO_BINARY".into(),
            problem: format!("there is no program at {}; correct it, or unset it", path.display()),
        };
        return if path.is_file() { Ok(path) } else { Err(lacking()) };
    }
    let this = std::env::current_exe().map_err(|error| failed("find the running program", error))?;
    let beside = this.with_file_name("halo");
    // A debug build lies beside a debug build; nobody wants its figures.
    if !cfg!(debug_assertions) && is_current(&beside, &this) {
        return Ok(beside);
    }
    build().map_err(|problem| LabError::Process {
        process: "halo".into(),
        problem: format!("{problem}; build it with `cargo {}`, or set HALO_BINARY", BUILD.join(" ")),
    })
}

/// Whether the file exists and is not older than the other.
fn is_current(file: &Path, other: &Path) -> bool {
    let modified = |path: &Path| -> Option<SystemTime> { fs::metadata(path).ok()?.modified().ok() };
    modified(file).is_some_and(|time| Some(time) >= modified(other))
}

/// Builds the program in the workspace; does nothing where it is up to date.
fn build() -> std::result::Result<PathBuf, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo).args(BUILD).arg("--quiet").current_dir(workspace()).status();
    let status =
        status.map_err(|error| format!("cargo cannot start in {}: {error}", workspace().display()))?;
    if !status.success() {
        return Err("it does not build".into());
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map(|directory| workspace().join(directory));
    let path = target.unwrap_or_else(|| workspace().join("target")).join("release/halo");
    if path.exists() { Ok(path) } else { Err(format!("there is none at {}", path.display())) }
}

/// What a program answers when it is asked for its version; empty where it does not answer. One that starts to work
/// instead is ended.
pub(super) fn version(program: &Path, argument: &str) -> String {
    let output = Command::new("timeout").arg(ANSWER_MAX_S).arg(program).arg(argument).output();
    let output = output.ok().filter(|output| output.status.success());
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    shortened(&text).to_owned()
}

/// The version in a program's answer: `1.40.0` of Envoy's, the `Version` of a stock node proxy's build information,
/// otherwise the first line without the program's name.
fn shortened(answer: &str) -> &str {
    let line = answer.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
    if let Some((_, build)) = line.split_once("version: ") {
        return build.split('/').nth(1).unwrap_or(build);
    }
    if let Some((_, rest)) = line.split_once("Version:\"") {
        return rest.split('"').next().unwrap_or(rest);
    }
    line.split_once(' ').map_or(line, |(_, version)| version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_taken_out_of_what_programs_say() {
        assert_eq!(shortened("halo 0.1.0\n"), "0.1.0");
        assert_eq!(shortened("\n/bin/envoy  version: 9e55/1.40.0/Clean/RELEASE/BoringSSL\n\n"), "1.40.0");
        assert_eq!(shortened("version.BuildInfo{Version:\"1.30.1\", GitRevision:\"62d8\"}"), "1.30.1");
        assert_eq!(shortened(""), "");
    }

    #[test]
    fn a_program_that_cannot_start_or_fails_has_no_version() {
        assert_eq!(version(Path::new("/bin/false"), "--version"), "");
        assert_eq!(version(Path::new("/nowhere/at/all"), "--version"), "");
    }
}
