//! What processes have spent, as the kernel accounts for it.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use perf_event::events::Tracepoint;
use perf_event::{Builder, Counter};

use crate::model::Spent;

/// A total, and when it was read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    at: Instant,
    total: u64,
}

impl Reading {
    /// A total that was read just now.
    pub(crate) fn now(total: u64) -> Self {
        Self { at: Instant::now(), total }
    }

    /// How much has come since `earlier`. What lies between two readings is somewhat longer than what was measured; with
    /// `steady_s`, the share of so many seconds in it, which is right for what goes on evenly.
    pub(crate) fn since(self, earlier: Self, steady_s: Option<f64>) -> f64 {
        let added = self.total.saturating_sub(earlier.total) as f64;
        let span_s = self.at.saturating_duration_since(earlier.at).as_secs_f64();
        match steady_s {
            Some(seconds) if span_s > seconds => added * seconds / span_s,
            _ => added,
        }
    }
}

/// What one process has spent since it started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    cpu_ns: Reading,
    switches: Reading,
}

impl Usage {
    /// Of each process with all its threads; what cannot be read, because it has ended, is zero. All CPU clocks are read
    /// before anything else is, which takes the kernel longer.
    pub(crate) fn of(pids: &[i32]) -> Vec<Self> {
        let clocks: Vec<_> = pids.iter().map(|pid| Reading::now(cpu_ns(*pid))).collect();
        let switches = pids.iter().map(|pid| Reading::now(switches(*pid)));
        clocks.into_iter().zip(switches).map(|(cpu_ns, switches)| Self { cpu_ns, switches }).collect()
    }

    /// What was spent from `earlier` to now, as [`Reading::since`] has it, with the memory that is held now.
    pub(crate) fn since(self, earlier: Self, steady_s: Option<f64>, (name, pid): (&str, i32)) -> Spent {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let (rollup, status) = (read("smaps_rollup"), read("status"));
        let memory = number(&rollup, "Pss:").or_else(|| number(&status, "VmRSS:"));
        Spent {
            name: name.to_owned(),
            cpu_s: self.cpu_ns.since(earlier.cpu_ns, steady_s) / 1e9,
            switches: self.switches.since(earlier.switches, steady_s).round() as u64,
            memory_bytes: memory.unwrap_or(0) * 1024,
            memory_peak_bytes: number(&status, "VmHWM:").unwrap_or(0) * 1024,
            system_calls: None,
            ring_operations: None,
        }
    }
}

/// CPU time of a process, with that of the threads that have ended.
fn cpu_ns(pid: i32) -> u64 {
    let time = clock_getcpuclockid(Pid::from_raw(pid)).and_then(|clock| clock.now());
    time.map_or(0, |time| u64::try_from(Duration::from(time).as_nanos()).unwrap_or(u64::MAX))
}

/// Memory of this process that is in RAM.
pub(crate) fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    number(&status, "VmRSS:").unwrap_or(0) * 1024
}

/// Context switches of a process's threads, voluntary and not.
fn switches(pid: i32) -> u64 {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let status = |path: std::path::PathBuf| fs::read_to_string(path.join("status")).unwrap_or_default();
    let of = |status: String| -> u64 {
        let keys = ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"];
        keys.iter().filter_map(|key| number(&status, key)).sum()
    };
    threads.flatten().map(|thread| of(status(thread.path()))).sum()
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

/// Where the kernel says by which number it counts entries into system calls: with tracefs of its own, and within
/// debugfs.
const ENTRIES: [&str; 2] = [
    "/sys/kernel/tracing/events/raw_syscalls/sys_enter/id",
    "/sys/kernel/debug/tracing/events/raw_syscalls/sys_enter/id",
];

/// Counts the system calls of processes, where the kernel allows it.
#[derive(Debug)]
pub(crate) struct SystemCalls(Vec<Option<Vec<Counter>>>);

impl SystemCalls {
    /// Counts from now on; `None` where the kernel does not.
    pub(crate) fn count(pids: &[i32]) -> Option<Self> {
        let id = ENTRIES.iter().find_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok())?;
        let counters: Vec<_> = pids.iter().map(|pid| counters(*pid, Tracepoint::with_id(id)).ok()).collect();
        counters.iter().any(Option::is_some).then_some(Self(counters))
    }

    /// How many there were so far, of each process; `None` where they are not counted.
    pub(crate) fn read(&mut self) -> Vec<Option<Reading>> {
        let of = |counters: &mut Vec<Counter>| -> Option<Reading> {
            let total = counters.iter_mut().map(|counter| counter.read().ok()).sum::<Option<u64>>();
            total.map(Reading::now)
        };
        self.0.iter_mut().map(|counters| counters.as_mut().and_then(of)).collect()
    }
}

/// A counter for each thread of a process, and for those that they start.
fn counters(pid: i32, event: Tracepoint) -> io::Result<Vec<Counter>> {
    let mut counters = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let Some(thread) = thread?.file_name().to_str().and_then(|id| id.parse().ok()) else { continue };
        let mut counter =
            Builder::new(event).observe_pid(thread).any_cpu().include_kernel().inherit(true).build()?;
        counter.enable()?;
        counters.push(counter);
    }
    Ok(counters)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn work_of_every_thread_is_counted() {
        let pid = nix::unistd::getpid().as_raw();
        let before = Usage::of(&[pid])[0];
        let work = || (0..3_000_000_u64).fold(0, |sum, n| sum ^ std::hint::black_box(n));
        let (done, waiting) = std::sync::mpsc::channel();
        let (end, hold) = std::sync::mpsc::channel::<()>();
        thread::spawn(move || {
            done.send(work()).unwrap();
            hold.recv().unwrap();
        });
        waiting.recv().unwrap();
        let spent = Usage::of(&[pid])[0].since(before, None, ("me", pid));
        end.send(()).unwrap();
        assert!(spent.cpu_s > 0.0 && spent.memory_bytes > 0, "{spent:?}");
        assert!(spent.memory_peak_bytes >= spent.memory_bytes / 2, "{spent:?}");
    }

    /// Larger than any process's id.
    const NOBODY: i32 = (1 << 22) + 1;

    #[test]
    fn a_process_that_is_gone_has_spent_nothing() {
        let gone = Usage::of(&[NOBODY])[0];
        assert_eq!((gone.cpu_ns.total, gone.switches.total), (0, 0));
    }

    #[test]
    fn work_of_a_thread_that_has_ended_is_counted() {
        let pid = nix::unistd::getpid().as_raw();
        let before = Usage::of(&[pid])[0];
        let work = || (0..3_000_000_u64).fold(0, |sum, n| sum ^ std::hint::black_box(n));
        let took = Instant::now();
        thread::spawn(work).join().unwrap();
        let least = took.elapsed().as_secs_f64() / 100.0;
        let spent = Usage::of(&[pid])[0].since(before, None, ("me", pid));
        assert!(spent.cpu_s > least, "{spent:?}");
    }

    #[test]
    fn what_goes_on_evenly_is_cut_to_what_was_measured() {
        let began = Instant::now();
        let earlier = Reading { at: began, total: 100 };
        let later = Reading { at: began + Duration::from_secs(4), total: 300 };
        assert_eq!(later.since(earlier, None), 200.0);
        assert_eq!(later.since(earlier, Some(2.0)), 100.0);
        assert_eq!(later.since(earlier, Some(5.0)), 200.0);
        assert_eq!(earlier.since(later, Some(1.0)), 0.0);
    }

    #[test]
    fn system_calls_of_every_thread_are_counted_where_the_kernel_allows_it() {
        let (begin, waits) = std::sync::mpsc::channel::<()>();
        let earlier = thread::spawn(move || {
            waits.recv().unwrap();
            (0..500).for_each(|_| drop(fs::metadata("/")));
        });
        let Some(mut calls) = SystemCalls::count(&[nix::unistd::getpid().as_raw()]) else { return };
        let before = calls.read()[0].unwrap();
        begin.send(()).unwrap();
        earlier.join().unwrap();
        thread::spawn(|| (0..500).for_each(|_| drop(fs::metadata("/")))).join().unwrap();
        assert!(calls.read()[0].unwrap().since(before, None) >= 1000.0);
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
