//! A process of the lab: started in a namespace, watched by id, ended by id.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::netns::Netns;
use super::run::Run;
use super::{Doing, LabError, Result};

/// What to start.
#[derive(Debug)]
pub struct Spec {
    /// Its name in the lab and of its log.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Its whole environment, besides PATH.
    pub environment: Vec<(String, OsString)>,
    /// Where it runs.
    pub netns: Arc<Netns>,
    /// Whether we speak with it over its standard input and output; otherwise its output goes to its log.
    pub piped: bool,
}

/// A running process. Its standard error, and its output unless piped, go to its log.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: i32,
    log: PathBuf,
    child: Mutex<Child>,
}

/// What a process has used since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// CPU time, user and system.
    pub cpu: Duration,
    /// Proportional memory (Pss), bytes; resident memory where the kernel does not say.
    pub memory_bytes: u64,
}

impl Process {
    pub(super) fn spawn(spec: Spec, run: &Run) -> Result<Self> {
        let Spec { name, program, arguments, environment, netns, piped } = spec;
        let log = run.dir().join("logs").join(format!("{name}.log"));
        let file = File::create(&log).doing(format_args!("create {}", log.display()))?;
        let pipe = |file: File| if piped { Stdio::piped() } else { file.into() };
        let mut command = Command::new(&program);
        command
            .args(arguments)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .envs(environment)
            .stdin(if piped { Stdio::piped() } else { Stdio::null() })
            .stdout(pipe(file.try_clone().doing("share the log")?))
            .stderr(file)
            // Ctrl-C on the terminal is ours to handle: we end our processes in order.
            .process_group(0);
        let start = format!("start {} {}", program.display(), name);
        let child = netns.within(|| command.spawn())?.doing(start)?;
        let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
        let process = Self { name, pid, log, child: Mutex::new(child) };
        run.record(pid)?;
        Ok(process)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Takes the pipes of a piped process: its input, and the lines that it prints as they come. Only the first caller has
    /// them.
    pub fn pipes(&self) -> Result<(ChildStdin, Receiver<String>)> {
        let mut child = self.child();
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (input, output) =
            pipes.ok_or_else(|| self.fault("its pipes are taken, or were not asked for"))?;
        let (sender, lines) = channel();
        let read = move || {
            for line in BufReader::new(output).lines().map_while(std::result::Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("pod-output".into()).spawn(read).doing("start a thread")?;
        Ok((input, lines))
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        matches!(self.child().try_wait(), Ok(None))
    }

    /// How it ended; `None` while it runs.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.child().try_wait().ok().flatten()
    }

    /// An error when it does not run, with its exit status and its last words.
    pub fn ensure_running(&self) -> Result<()> {
        match self.child().try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                Err(self.fault(&format!("ended by itself ({status}); its log ends:\n{}", self.log_tail(12))))
            }
            Err(error) => Err(self.fault(&error.to_string())),
        }
    }

    /// Asks `look` again and again as [`wait_for`] does; a process that ends meanwhile is reported at once.
    pub fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut() -> std::result::Result<T, String>,
    ) -> Result<T> {
        wait_for(&format!("{} {what}", self.name), limit, || match self.ensure_running() {
            Ok(()) => look().map(Ok),
            Err(ended) => Ok(Err(ended)),
        })?
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&self, signal: Signal) {
        let mut child = self.child();
        // Not yet waited for, so the id is still ours.
        if matches!(child.try_wait(), Ok(None)) {
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Asks it to end, waits up to `limit`, then kills it. Returns whether it ended by itself.
    pub fn stop(&self, limit: Duration) -> bool {
        self.terminate();
        let deadline = Instant::now() + limit;
        while self.is_running() {
            if Instant::now() >= deadline {
                let mut child = self.child();
                let _ = child.kill();
                let _ = child.wait();
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// What it has used so far.
    pub fn usage(&self) -> Result<Usage> {
        let read = |file: &str| {
            let path = format!("/proc/{}/{file}", self.pid);
            fs::read_to_string(&path).doing(format_args!("read {path}"))
        };
        let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
        let cpu = cpu_ticks(&read("stat")?).ok_or_else(|| self.fault("its stat cannot be read"))?;
        let memory = read("smaps_rollup").ok().and_then(|text| kibibytes(&text, "Pss:"));
        let memory = memory.or_else(|| read("status").ok().and_then(|text| kibibytes(&text, "VmRSS:")));
        Ok(Usage {
            cpu: Duration::from_secs_f64(cpu as f64 / ticks.max(1) as f64),
            memory_bytes: memory.unwrap_or(0) * 1024,
        })
    }

    fn fault(&self, problem: &str) -> LabError {
        LabError::Process { process: self.name.clone(), problem: problem.into() }
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut child = self.child();
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// User and system time of `/proc/<pid>/stat`.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

fn kibibytes(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.split_ascii_whitespace().next()?.parse().ok())
}

/// The `halo` program that belongs to the running one: itself, or for a test its neighbour in the target directory.
pub fn halo_binary() -> Result<PathBuf> {
    let this = std::env::current_exe().doing("find the running program")?;
    let named_halo = |path: &Path| path.file_stem().is_some_and(|stem| stem == "halo");
    let candidates = [Some(this.clone()), this.parent().and_then(Path::parent).map(|dir| dir.join("halo"))];
    let found = candidates.into_iter().flatten().find(|path| named_halo(path) && path.exists());
    found
        .ok_or_else(|| {
            std::io::Error::other(format!("no `halo` beside {}; build the binary", this.display()))
        })
        .doing("find the halo program")
}

/// Asks `look` again and again until it has an answer, at most for `limit`. What it last saw goes into the error.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> std::result::Result<T, String>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match look() {
            Ok(answer) => return Ok(answer),
            Err(seen) if Instant::now() >= deadline => {
                return Err(LabError::Late { what: what.into(), limit, seen });
            }
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}
