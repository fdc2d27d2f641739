//! Where and how a comparison is made, as far as the machine says.

use std::fs;
use std::path::Path;
use std::process::Command;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::model::About;

/// What is known before the first round.
pub(crate) fn about(workers: Option<usize>) -> About {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut notes = vec![
        format!("Clients, servers and every proxy share the machine's {cores} cores."),
        "CPU is that of the proxy processes; what the kernel does for them outside of their threads is not in it."
            .to_owned(),
        "Pods may use their ports again soon after a connection has closed (tcp_tw_reuse, tcp_max_tw_buckets)."
            .to_owned(),
        "Halo's shards are pinned to cores; other proxies are not.".to_owned(),
        "Beside noise and churn, of which each subject has its own amount, latency tells; CPU does not.".to_owned(),
        "No proxy writes access logs: they log warnings.".to_owned(),
    ];
    notes.push(match workers {
        Some(workers) => format!("Every proxy has {workers} worker threads, or shards."),
        None => {
            "Every proxy has as many worker threads, or shards, as it chooses by itself on this machine; \
                 sidecars have two, as a mesh starts them."
                .to_owned()
        }
    });
    About {
        date: OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
        host: read("/proc/sys/kernel/hostname"),
        kernel: read("/proc/sys/kernel/osrelease"),
        cpu: value(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".into()),
        cores,
        memory_bytes: memory(&read("/proc/meminfo")),
        commit: commit(),
        command: std::env::args().collect::<Vec<_>>().join(" "),
        workers: workers.unwrap_or(0),
        notes,
        ..About::default()
    }
}

fn value(text: &str, key: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn memory(text: &str) -> u64 {
    let kibibytes =
        value(text, "MemTotal").and_then(|v| v.split_ascii_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// The commit of the tree that this program was built from, if that is where it runs.
fn commit() -> String {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR"));
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(tree).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return String::new() };
    let dirty =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|files| !files.is_empty());
    if dirty { format!("{commit}-dirty") } else { commit }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_named() {
        let about = about(None);
        assert!(about.date.ends_with('Z') && !about.kernel.is_empty() && about.cores > 0, "{about:?}");
        assert!(about.memory_bytes > 1 << 20, "{about:?}");
    }

    #[test]
    fn values_are_found_by_their_key() {
        assert_eq!(value("a: 1\nmodel name\t: X 3\n", "model name").as_deref(), Some("X 3"));
        assert_eq!(memory("MemTotal:   2 kB\n"), 2048);
    }
}
