//! A named network namespace: made with `ip netns`, so that `ip netns exec` finds it too.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::{Doing, LabError, Result};

/// Where `ip netns` keeps its names.
pub const NAMES: &str = "/run/netns";

/// One namespace. Dropping it closes our descriptor; the name stays until the run is removed.
#[derive(Debug)]
pub struct Netns {
    name: String,
    fd: Arc<OwnedFd>,
}

impl Netns {
    pub(super) fn create(name: &str) -> Result<Self> {
        run("ip", &["netns", "add", name])?;
        let path = Path::new(NAMES).join(name);
        let fd = File::open(&path).doing(format_args!("open {}", path.display()))?;
        let netns = Self { name: name.to_owned(), fd: Arc::new(fd.into()) };
        netns.command("ip", &["link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// Its full name, as `ip netns exec` wants it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its descriptor, to hand to the node proxy.
    pub fn fd(&self) -> Arc<OwnedFd> {
        self.fd.clone()
    }

    /// Its path.
    pub fn path(&self) -> PathBuf {
        Path::new(NAMES).join(&self.name)
    }

    /// Runs `work` inside the namespace, on a thread of its own.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        halo_control::netns::within(self.fd.as_fd(), work)
            .doing(format_args!("enter namespace {}", self.name))
    }

    /// Runs a program inside the namespace and returns what it printed.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Result<String> {
        self.within(|| run(program, arguments))?
    }

    /// Runs lines of `ip` commands inside the namespace, up to the first that fails.
    pub(super) fn ip_batch(&self, lines: &str) -> Result<()> {
        self.within(|| run_with("ip", &["-batch", "-"], lines))?.map(drop)
    }

    /// Writes a setting below `/proc/sys/net` of the namespace.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{key}");
        self.within(|| std::fs::write(&path, value))?.doing(format_args!("write {value} to {path}"))
    }
}

/// Runs a program to its end and returns what it printed.
pub(super) fn run(program: &str, arguments: &[&str]) -> Result<String> {
    run_with(program, arguments, "")
}

/// As [`run`], with this text, at most what a pipe holds, for the program to read.
fn run_with(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    let line = || format!("{program} {}", arguments.join(" "));
    let output = || {
        let mut child = Command::new(program)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that ends before it has read everything says why on stderr.
            let _ = stdin.write_all(input.as_bytes());
        }
        child.wait_with_output()
    };
    let output = output().doing(format_args!("start `{}`", line()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let command = if input.is_empty() { line() } else { format!("{}` with `{}", line(), input.trim()) };
    Err(LabError::Command { command, stderr })
}
