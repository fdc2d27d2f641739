//! `halo node`: boots the shards and the control thread and wires one to the other.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crate::heap;
use halo_control::config::raw::{MESH_CONFIG, RESOLV_CONF, TOKEN};
use halo_control::config::resolved::VARIABLES;
use halo_control::config::{
    Config, ConfigError, Files, Overrides, PrintFormat, RecordsMode, RingMode, Variables,
};
use halo_control::log::Log;
use halo_control::node::{NodeError, Wiring};
use halo_control::questions::{self, Asked};
use halo_control::shards::{Pod, PodError, Shards};
use halo_control::version::Version;
use halo_core::report::{ShardReport, View};
use halo_core::snapshot::Snapshot;
use halo_shard::tls::RecordsKind;
use halo_shard::{
    AccessOutput, Ask, DnsConfig, Mailbox, Message, PodSpec, RingKind, ShardConfig, StartError,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// How long the control thread's runtime may take to end.
const RUNTIME_END_MAX: Duration = Duration::from_secs(1);
/// The process's exit code after a second SIGINT, as shells have it.
pub(crate) const INTERRUPTED: i32 = 130;

/// Flags of `halo node`; each wins over its variable.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = variables())]
pub struct Options {
    /// Name of this node
    #[arg(long)]
    node: Option<String>,
    /// File of workloads, services and policies
    #[arg(long)]
    local: Option<PathBuf>,
    /// The CNI agent's socket
    #[arg(long)]
    zds: Option<PathBuf>,
    /// Directory with the root of the embedded certificate authority
    #[arg(long)]
    ca_dir: Option<PathBuf>,
    /// Shards: a number, a percentage of the cores, or 0 for every core
    #[arg(long)]
    shards: Option<String>,
    /// Cores that shards are pinned to, in turn, for example `0-3,6`
    #[arg(long)]
    cores: Option<String>,
    /// Kernel interface: auto, io_uring or epoll
    #[arg(long)]
    ring: Option<String>,
    /// Record layer of tunnels: sealed or rustls
    #[arg(long)]
    records: Option<String>,
    /// Address of the admin server
    #[arg(long)]
    admin: Option<SocketAddr>,
    /// Address of the readiness server
    #[arg(long)]
    readiness: Option<SocketAddr>,
    /// Address of the metrics server
    #[arg(long)]
    metrics: Option<SocketAddr>,
    /// Log filter, for example `info,halo_control=debug`
    #[arg(long)]
    log: Option<String>,
    /// Print the configuration as understood, and exit
    #[arg(long, value_name = "FORMAT", num_args = 0..=1, default_missing_value = "yaml")]
    print_config: Option<Format>,
}

/// Forms of `--print-config`.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    Yaml,
    Json,
}

/// Every variable that is read, for `--help`.
fn variables() -> String {
    let mut text = String::from("Environment:\n");
    for variable in VARIABLES {
        text.push_str(&format!("  {:<36} {} [{}]\n", variable.name, variable.meaning, variable.default));
    }
    text
}

/// Runs `halo node` with these flags and the process's environment.
pub fn main(options: Options) -> ExitCode {
    let print = options.print_config;
    let files = match files() {
        Ok(files) => files,
        Err(error) => return fail(&error),
    };
    let variables = std::env::vars().collect::<Variables>().with_files(files);
    let config = match Config::read(&variables, &options.into()) {
        Ok(config) => config,
        Err(error) => return fail(&error),
    };
    if let Some(format) = print {
        let format = match format {
            Format::Yaml => PrintFormat::Yaml,
            Format::Json => PrintFormat::Json,
        };
        return say(&config.print(format));
    }
    // Kept to the end: the last lines say why the process ends.
    let log = match Log::start(&config.log_filter, config.log_format) {
        Ok(log) => log,
        Err(error) => return fail(&error),
    };
    tracing::info!("version: {}", Version { mesh: &config.mesh_version });
    tracing::info!("running with config: {}", config.print(PrintFormat::Yaml));
    match run(config, &log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the node proxy ends");
            ExitCode::FAILURE
        }
    }
}

/// The files that count beside variables and flags.
fn files() -> Result<Files, Error> {
    let token = Path::new(TOKEN).exists();
    Ok(Files { mesh_config: text(MESH_CONFIG)?, token, resolv_conf: text(RESOLV_CONF)? })
}

/// The text of a file, if it is there.
fn text(path: &'static str) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::File { path, error }),
    }
}

impl From<Options> for Overrides {
    fn from(options: Options) -> Self {
        Self {
            node: options.node,
            local: options.local,
            zds: options.zds,
            ca_dir: options.ca_dir,
            shards: options.shards,
            cores: options.cores,
            ring: options.ring,
            records: options.records,
            admin: options.admin,
            readiness: options.readiness,
            metrics: options.metrics,
            log: options.log,
            arguments: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        }
    }
}

#[allow(clippy::print_stdout, reason = "the answer of --print-config")]
fn say(text: &str) -> ExitCode {
    println!("{text}");
    ExitCode::SUCCESS
}

#[allow(clippy::print_stderr, reason = "logging has not begun")]
fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("halo node: {error}");
    ExitCode::FAILURE
}

/// Why the node proxy ended in failure.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The configuration asks for what this machine does not have.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file that is there cannot be read.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: &'static str,
        /// The operating system's words.
        error: std::io::Error,
    },
    /// A shard did not start.
    #[error(transparent)]
    Shard(#[from] StartError),
    /// The control thread did not start, or failed.
    #[error(transparent)]
    Control(#[from] NodeError),
    /// The control thread's runtime or signal handlers could not be made.
    #[error("the control thread cannot start: {0}")]
    Runtime(#[from] std::io::Error),
}

/// Runs the node proxy until SIGTERM or SIGINT, and drains. A second SIGINT ends the process at once.
///
/// # Errors
/// [`Error`], with the remedy where there is one.
fn run(config: Config, log: &Log) -> Result<(), Error> {
    // A proxy needs three sockets for each connection. With the old limit it still works, and says so when it is reached.
    let _ = raise_descriptor_limit();
    let cores = cores(&config, &usable_cores())?;
    let (asked, questions) = questions::queues();
    let shards = Handles::start(&config, &cores, (asked, log))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let flush = log.flusher();
    let stop = runtime.block_on(async {
        Stop::listen(move || {
            flush();
            std::process::exit(INTERRUPTED);
        })
    })?;
    let wiring = Wiring { questions, log: Some(log.control()), heap: heap::profiler() };
    let ended = runtime.block_on(halo_control::node::run(config, shards, wiring, stop.requested()));
    // A rendering or a profile that nobody waits for any more does not hold the process up.
    runtime.shutdown_timeout(RUNTIME_END_MAX);
    Ok(ended?)
}

/// The cores that shards are pinned to: those asked for, or all that the process may use.
fn cores(config: &Config, usable: &[usize]) -> Result<Vec<usize>, ConfigError> {
    let Some(cores) = &config.cores else {
        return Ok(usable.to_vec());
    };
    cores.within(usable)?;
    Ok(cores.list().to_vec())
}

/// The cores of this process's cpuset; none when the kernel does not say, and then nothing is pinned.
pub(crate) fn usable_cores() -> Vec<usize> {
    core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect()
}

/// Raises the process's limit on open descriptors as far as the system lets it; the soft limit is often 1024.
///
/// # Errors
/// What the kernel says; the old limit then stands.
pub fn raise_descriptor_limit() -> std::io::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// The signals that end the process in order.
pub(crate) struct Stop(oneshot::Receiver<()>);

impl Stop {
    /// From now on, and until the process ends, the signals are caught: SIGTERM and the first SIGINT ask it to end, a
    /// second SIGINT is for `at_once` to end it. Needs a tokio runtime.
    pub(crate) fn listen(at_once: impl FnOnce() + Send + 'static) -> std::io::Result<Self> {
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let (ask, asked) = oneshot::channel();
        tokio::spawn(async move {
            let (mut ask, mut interrupts) = (Some(ask), 0);
            while interrupts < 2 {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => interrupts += 1,
                }
                // Nobody listens once the process ends for another reason.
                let _ = ask.take().map(|ask| ask.send(()));
            }
            at_once();
        });
        Ok(Self(asked))
    }

    /// Waits for the first of them.
    pub(crate) async fn requested(self) {
        // The sender lives as long as the runtime.
        let _ = self.0.await;
    }
}

/// The shards of this process, as the control thread sees them.
#[derive(Clone)]
struct Handles(Arc<[Mailbox]>);

impl Handles {
    /// Starts the shards, each pinned to the next of these cores. They ask through `asked`, and tell
    /// of connections in `log`.
    fn start(config: &Config, cores: &[usize], (asked, log): (Asked, &Log)) -> Result<Self, Error> {
        let ask: Ask = Arc::new(move |question| asked.ask(question));
        let count = config.shards_on(cores.len());
        if count > 1 && !config.options.port_reuse {
            let reason = format!(
                "{count} shards would share the ports in pods; set ZTUNNEL_WORKER_THREADS to 1 or leave it out"
            );
            let (variable, value) = ("INPOD_PORT_REUSE".into(), "false".into());
            return Err(ConfigError { variable, value, reason }.into());
        }
        let access = AccessOutput { level: log.control().access(), sink: Arc::new(log.access_lines()) };
        let mut mailboxes = Vec::with_capacity(count);
        for index in 0..count {
            let (mailbox, _) = halo_shard::start(ShardConfig {
                index,
                core: cores.get(index % cores.len().max(1)).copied(),
                limits: config.limits.clone(),
                records: records(config.records),
                ipv6: config.ipv6,
                options: config.options,
                ring: ring(config.ring),
                access: access.clone(),
                series_expiry_ms: millis(config.metrics_expiry),
                ask: ask.clone(),
                dns: DnsConfig {
                    capture: config.dns.capture,
                    listen: config.dns.listen.clone(),
                    servers: config.dns.servers.as_slice().into(),
                },
            })?;
            mailboxes.push(mailbox);
        }
        Ok(Self(mailboxes.into()))
    }

    /// Sends every shard a message and collects their answers, in the shards' order. A shard that ended is left out.
    async fn ask<T: Send + 'static>(&self, message: impl Fn(Box<dyn FnOnce(T) + Send>) -> Message) -> Vec<T> {
        let mut answers = Vec::with_capacity(self.0.len());
        for mailbox in self.0.iter() {
            let (reply, answer) = oneshot::channel();
            mailbox.send(message(Box::new(move |value| {
                // Nobody waits any more once the process is ending.
                let _ = reply.send(value);
            })));
            answers.push(answer);
        }
        let mut collected = Vec::with_capacity(answers.len());
        for answer in answers {
            collected.extend(answer.await);
        }
        collected
    }
}

impl Shards for Handles {
    fn publish(&self, snapshot: Arc<Snapshot>) {
        for mailbox in self.0.iter() {
            mailbox.send(Message::Publish(snapshot.clone()));
        }
    }

    async fn add_pod(&self, pod: Pod) -> Result<(), PodError> {
        let uid = pod.uid.clone();
        let spec = PodSpec {
            uid: pod.uid,
            name: pod.name,
            namespace: pod.namespace,
            service_account: pod.service_account,
            netns: pod.netns,
            listeners: pod.listeners,
            dns_search: pod.dns_search,
        };
        let answers = self.ask(|reply| Message::AddPod(spec.clone(), reply)).await;
        let missing = answers.len() < self.0.len();
        let failed = answers.into_iter().find_map(Result::err);
        let error = match failed {
            Some(error) => PodError { uid: uid.clone(), step: error.step, cause: error.cause },
            None if missing => {
                PodError { uid: uid.clone(), step: "ask a shard", cause: "it has ended".into() }
            }
            None => return Ok(()),
        };
        self.remove_pod(uid).await;
        Err(error)
    }

    async fn remove_pod(&self, uid: Arc<str>) {
        self.ask(|reply| Message::RemovePod(uid.clone(), reply)).await;
    }

    fn count(&self) -> usize {
        self.0.len()
    }

    async fn inspect(&self, view: View) -> Vec<ShardReport> {
        self.ask(|reply| Message::Inspect(view, reply)).await
    }

    async fn drain(&self) {
        self.ask(Message::Drain).await;
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn records(mode: RecordsMode) -> RecordsKind {
    match mode {
        RecordsMode::Sealed => RecordsKind::Sealed,
        RecordsMode::Rustls => RecordsKind::Rustls,
    }
}

fn ring(mode: RingMode) -> RingKind {
    match mode {
        RingMode::Auto => RingKind::Auto,
        RingMode::IoUring => RingKind::IoUring,
        RingMode::Epoll => RingKind::Epoll,
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal, raise};
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn a_signal_asks_for_the_end_and_the_second_sigint_comes_through_though_nobody_waits_any_more() {
        let (told, mut at_once) = oneshot::channel();
        let stop = Stop::listen(move || told.send(()).unwrap()).unwrap();
        let mut interrupt = signal(SignalKind::interrupt()).unwrap();
        raise(Signal::SIGTERM).unwrap();
        stop.requested().await;
        raise(Signal::SIGINT).unwrap();
        interrupt.recv().await;
        for _ in 0..100 {
            yield_now().await;
        }
        assert!(at_once.try_recv().is_err(), "one SIGINT after a SIGTERM ends the process at once");
        raise(Signal::SIGINT).unwrap();
        at_once.await.unwrap();
    }
}
