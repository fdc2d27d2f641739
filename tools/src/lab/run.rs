//! One run's traces on the machine: its directory under `/run/halo-lab`, its namespaces by prefix, its processes by id.
//!
//! A run is dead when its owner is: process ids are kept with the process's start time, so that a recycled id is
//! never mistaken for ours. The owner's file is there before the run's directory has its final name.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::netns::{NAMES, run};
use super::{Doing, LabError, Result};

const ROOT: &str = "/run/halo-lab";

/// A process, for as long as the machine is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessId {
    /// Its id.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub started: u64,
}

impl ProcessId {
    /// The process that has this id now.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the program's name in parentheses, which may itself hold spaces and parentheses.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace();
        if fields.next()? == "Z" {
            return None;
        }
        Some(Self { pid, started: fields.nth(18)?.parse().ok()? })
    }

    /// Whether it still runs.
    pub fn is_running(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    fn parse(line: &str) -> Option<Self> {
        let (pid, started) = line.trim().split_once(' ')?;
        Some(Self { pid: pid.parse().ok()?, started: started.parse().ok()? })
    }

    fn line(self) -> String {
        format!("{} {}\n", self.pid, self.started)
    }
}

/// A run of the lab.
#[derive(Debug)]
pub struct Run {
    id: String,
    dir: PathBuf,
}

impl Run {
    /// Starts a run that this process owns.
    pub(super) fn create() -> Result<Self> {
        let id = fresh_id();
        let (draft, dir) = (Path::new(ROOT).join(format!(".{id}")), Path::new(ROOT).join(&id));
        let owner = ProcessId::of(own_pid())
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
            .doing("read /proc/self/stat")?;
        fs::create_dir_all(draft.join("logs"))
            .doing(format_args!("create {} (run as root)", draft.display()))?;
        fs::write(draft.join("owner"), owner.line()).doing("record the owner")?;
        fs::rename(&draft, &dir).doing(format_args!("create {}", dir.display()))?;
        Ok(Self { id, dir })
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn prefix(&self) -> String {
        prefix(&self.id)
    }

    /// Remembers a process, for a sweep after our own death.
    pub(super) fn record(&self, pid: i32) -> Result<()> {
        let Some(process) = ProcessId::of(pid) else { return Ok(()) };
        let path = self.dir.join("processes");
        let mut file =
            fs::OpenOptions::new().create(true).append(true).open(path).doing("record a process")?;
        file.write_all(process.line().as_bytes()).doing("record a process")
    }

    /// Removes the namespaces and the directory; returns the number of namespaces. Its processes are the caller's.
    pub(super) fn remove(&self) -> Result<usize> {
        let removed = remove_namespaces(&self.prefix())?;
        remove_dir(&self.dir)?;
        Ok(removed)
    }
}

/// Removes what dead runs left behind and returns their ids.
pub fn sweep() -> Result<Vec<String>> {
    let entries = match fs::read_dir(ROOT) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).doing(format_args!("read {ROOT}")),
    };
    let mut swept = Vec::new();
    for entry in entries.flatten() {
        let (dir, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let Some(owner) = fs::read_to_string(dir.join("owner")).ok().and_then(|s| ProcessId::parse(&s))
        else {
            continue;
        };
        if owner.is_running() {
            continue;
        }
        let id = name.trim_start_matches('.');
        kill_recorded(&dir);
        remove_namespaces(&prefix(id))?;
        remove_dir(&dir)?;
        swept.push(id.to_owned());
    }
    Ok(swept)
}

fn kill_recorded(dir: &Path) {
    let lines = fs::read_to_string(dir.join("processes")).unwrap_or_default();
    for process in lines.lines().filter_map(ProcessId::parse).filter(|p| p.is_running()) {
        // It may end by itself between the look and the signal, which is as good.
        let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
    }
}

fn remove_namespaces(prefix: &str) -> Result<usize> {
    let Ok(entries) = fs::read_dir(NAMES) else { return Ok(0) };
    let names = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    let mut removed = 0;
    for name in names.filter(|name| name.starts_with(prefix)) {
        match run("ip", &["netns", "del", &name]) {
            Ok(_) => removed += 1,
            // Two sweeps may meet.
            Err(LabError::Command { .. }) if !Path::new(NAMES).join(&name).exists() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(removed)
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).doing(format_args!("remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

fn prefix(id: &str) -> String {
    format!("halo-{id}-")
}

fn own_pid() -> i32 {
    nix::unistd::getpid().as_raw()
}

/// Four characters are enough to read and to type; a clash with a living run fails on its directory.
fn fresh_id() -> String {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    const LETTERS: &[u8] = b"bcdfghjkmnpqrstvwxz23456789";
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    let nth = u64::from(RUNS.fetch_add(1, Ordering::Relaxed));
    let mut seed = (nanos ^ (u64::from(own_pid().unsigned_abs()) << 32) ^ (nth << 56))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(29);
    let mut id = String::new();
    for _ in 0..4 {
        id.push(char::from(LETTERS[(seed % LETTERS.len() as u64) as usize]));
        seed /= LETTERS.len() as u64;
    }
    id
}
