//! Whether this machine can carry the demo. Each thing that it cannot do is one sentence with the remedy.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::thread;

use halo_control::netns;
use halo_control::redirect::{self, Options};
use nix::sched::{CloneFlags, unshare};

use crate::lab::topology::has_ipv6;

/// Everything that must hold before the first namespace is built.
pub(super) fn check() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("building network namespaces needs root; run `sudo halo demo`".into());
    }
    for (program, package) in [("ip", "iproute2"), ("nft", "nftables")] {
        let run = Command::new(program).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if run.is_err() {
            return Err(format!("the program `{program}` is missing; install the package {package}"));
        }
    }
    halo_shard::probe_io_uring().map_err(|error| no_io_uring(&error))?;
    let scratch = scratch().map_err(|error| {
        format!(
            "no network namespace can be created ({error}); the kernel needs CONFIG_NET_NS and the caller \
             CAP_SYS_ADMIN (in a container: --privileged)"
        )
    })?;
    let veth = || {
        Command::new("ip").args(["link", "add", "probe0", "type", "veth", "peer", "name", "probe1"]).output()
    };
    let veth = netns::within(scratch.as_fd(), veth).and_then(|output| output);
    if !veth.as_ref().is_ok_and(|output| output.status.success()) {
        return Err("no veth pair can be created; load it with `modprobe veth` (CONFIG_VETH)".into());
    }
    let options = Options { ipv6: has_ipv6(), ..Options::default() };
    redirect::apply(scratch.as_fd(), &options).map_err(|error| error.to_string())
}

/// A namespace without a name, which goes with its descriptor.
fn scratch() -> io::Result<File> {
    let open = || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let file = File::open("/proc/thread-self/ns/net")?;
        // Routes through `lo` want it up.
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
        if up.success() { Ok(file) } else { Err(io::Error::other("`ip link set lo up` failed")) }
    };
    let thread = thread::Builder::new().name("preflight".into()).spawn(open)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the check panicked")))
}

fn no_io_uring(error: &io::Error) -> String {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    let disabled = disabled.as_deref().map(str::trim).unwrap_or("0");
    match error.raw_os_error() {
        _ if disabled == "1" || disabled == "2" => format!(
            "io_uring is switched off here (kernel.io_uring_disabled={disabled}); allow it with \
             `sysctl kernel.io_uring_disabled=0`"
        ),
        Some(code) if code == nix::errno::Errno::ENOSYS as i32 => {
            "this kernel has no io_uring; use Linux 5.10 or newer with CONFIG_IO_URING=y".into()
        }
        _ => format!(
            "io_uring is refused ({error}); a seccomp profile blocks io_uring_setup most likely: allow it, or in \
             Docker run with --security-opt seccomp=unconfined"
        ),
    }
}
