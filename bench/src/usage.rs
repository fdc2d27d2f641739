//! What processes have spent, as the kernel accounts for it.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::model::Spent;

/// How long a counter of system calls gets to attach and to print what it counted.
const COUNTER_MS: u64 = 200;

/// What one process has spent since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    cpu_ns: u64,
    switches: u64,
}

impl Usage {
    /// Of a process and all its threads; what cannot be read, because it has ended, is zero.
    pub(crate) fn of(pid: i32) -> Self {
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Self::default() };
        let mut total = Self::default();
        for thread in threads.flatten() {
            let read = |name: &str| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
            // On CPU, waiting to run, timeslices (Documentation/scheduler/sched-stats.rst).
            let on_cpu = read("schedstat").split_ascii_whitespace().next().and_then(|ns| ns.parse().ok());
            total.cpu_ns += on_cpu.unwrap_or(0);
            let status = read("status");
            let switches = ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"];
            total.switches += switches.iter().filter_map(|key| number(&status, key)).sum::<u64>();
        }
        total
    }

    /// What was spent from `earlier` to now, with the memory that is held now.
    pub(crate) fn since(self, earlier: Self, name: &str, pid: i32) -> Spent {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let (rollup, status) = (read("smaps_rollup"), read("status"));
        let memory = number(&rollup, "Pss:").or_else(|| number(&status, "VmRSS:"));
        Spent {
            name: name.to_owned(),
            cpu_s: self.cpu_ns.saturating_sub(earlier.cpu_ns) as f64 / 1e9,
            switches: self.switches.saturating_sub(earlier.switches),
            memory_bytes: memory.unwrap_or(0) * 1024,
            memory_peak_bytes: number(&status, "VmHWM:").unwrap_or(0) * 1024,
            system_calls: None,
        }
    }
}

/// What several processes spent, as one.
pub(crate) fn sum<'a>(name: &str, parts: impl IntoIterator<Item = &'a Spent>) -> Spent {
    let mut total = Spent { name: name.to_owned(), ..Spent::default() };
    for part in parts {
        total.cpu_s += part.cpu_s;
        total.switches += part.switches;
        total.memory_bytes += part.memory_bytes;
        total.memory_peak_bytes += part.memory_peak_bytes;
    }
    total
}

/// The number behind a key, as the files of `/proc` have it.
fn number(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Counts the system calls of one process with `perf`, where that is installed and allowed.
#[derive(Debug)]
pub(crate) struct SystemCalls(Child);

impl SystemCalls {
    /// Starts counting.
    pub(crate) fn count(pid: i32) -> Option<Self> {
        let pid = pid.to_string();
        let child = Command::new("perf")
            .args(["stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-p", &pid])
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .ok()?;
        thread::sleep(Duration::from_millis(COUNTER_MS));
        Some(Self(child))
    }

    /// Ends counting and says how many there were; `None` when `perf` could not count.
    pub(crate) fn finish(self) -> Option<u64> {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).ok()?);
        // It prints its counts when it is interrupted. One that has failed already has ended.
        let _ = kill(pid, Signal::SIGINT);
        let output = self.0.wait_with_output().ok()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        text.lines().find(|line| line.contains("sys_enter"))?.split(',').next()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_of_every_thread_is_counted() {
        let pid = nix::unistd::getpid().as_raw();
        let before = Usage::of(pid);
        let work = || (0..3_000_000_u64).fold(0, |sum, n| sum ^ std::hint::black_box(n));
        let (done, waiting) = std::sync::mpsc::channel();
        let (end, hold) = std::sync::mpsc::channel::<()>();
        thread::spawn(move || {
            done.send(work()).unwrap();
            hold.recv().unwrap();
        });
        waiting.recv().unwrap();
        let spent = Usage::of(pid).since(before, "me", pid);
        end.send(()).unwrap();
        assert!(spent.cpu_s > 0.0 && spent.memory_bytes > 0, "{spent:?}");
        assert!(spent.memory_peak_bytes >= spent.memory_bytes / 2, "{spent:?}");
    }

    #[test]
    fn a_process_that_is_gone_has_spent_nothing() {
        assert_eq!(Usage::of(i32::MAX), Usage::default());
    }

    #[test]
    fn sums_name_the_whole() {
        let part = Spent { cpu_s: 1.5, switches: 2, memory_bytes: 3, ..Spent::default() };
        let total = sum("all", [&part, &part]);
        assert_eq!(
            (total.name.as_str(), total.cpu_s, total.switches, total.memory_bytes),
            ("all", 3.0, 4, 6)
        );
    }
}
