//! One pod's sidecar: its files, its process, and the rules that bring the pod's traffic to it.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use halo::lab::certs::Root;
use halo::lab::mesh::spiffe_id;
use halo::lab::process::{Process, Spec};
use halo::lab::topology::Pod;
use halo::lab::{Lab, Result};
use nix::sys::resource::{Resource, getrlimit};

use super::{Mode, config};
use crate::subject::failed;

/// The group that tells the proxy's own traffic from the pod's. The user stays the superuser, who may read the program
/// wherever it lies.
const GROUP: u32 = 1337;
/// Longer than any comparison; so do Istio's certificates live.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(24 * 3600);
/// A hundred sidecars start at once, on two cores perhaps.
const READY_MAX: Duration = Duration::from_secs(120);
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// A pod's sidecar.
#[derive(Debug)]
pub(super) struct Sidecar {
    pod: Pod,
    config: PathBuf,
    admin: PathBuf,
}

impl Sidecar {
    /// Issues its certificate and writes its configuration.
    pub(super) fn prepare(lab: &Lab, pod: &Pod, mode: Mode, root: &Root) -> Result<Self> {
        let leaf = root.issue_for(&spiffe_id(&pod.name), CERTIFICATE_LIFE)?;
        let directory = leaf.write(&lab.dir().join("sidecars").join(&pod.name))?;
        let (config, admin) = (directory.join("envoy.json"), directory.join("admin.sock"));
        let text = config::bootstrap(&pod.name, mode, &directory, &admin).to_string();
        fs::write(&config, text)
            .map_err(|error| failed(format_args!("write {}", config.display()), error))?;
        Ok(Self { pod: pod.clone(), config, admin })
    }

    /// Starts its process. It needs two descriptors a connection, and does not raise its own limit.
    pub(super) fn start(&self, lab: &Lab, program: &Path, workers: usize) -> Result<Arc<Process>> {
        let (_, descriptors) =
            getrlimit(Resource::RLIMIT_NOFILE).map_err(|error| failed("read the descriptor limit", error))?;
        let words = format!(
            "--nofile={descriptors}:{descriptors} setpriv --regid {GROUP} --clear-groups -- PROGRAM \
             --concurrency {workers} --disable-hot-restart --log-level error -c CONFIG"
        );
        let argument = |word: &str| match word {
            "PROGRAM" => program.into(),
            "CONFIG" => self.config.clone().into(),
            word => OsString::from(word),
        };
        lab.spawn(Spec {
            name: format!("{}-sidecar", self.pod.name),
            program: "prlimit".into(),
            arguments: words.split(' ').map(argument).collect(),
            environment: Vec::new(),
            netns: self.pod.netns.clone(),
            piped: false,
        })
    }

    /// Waits until it serves.
    pub(super) fn wait_ready(&self, process: &Process) -> Result<()> {
        process.wait_for("becoming ready", READY_MAX, || {
            let answer = self.ask("/ready").map_err(|error| error.to_string())?;
            if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(answer) }
        })?;
        process.ensure_running()
    }

    /// Asks its admin page.
    fn ask(&self, path: &str) -> std::io::Result<String> {
        let mut stream = UnixStream::connect(&self.admin)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        stream.set_write_timeout(Some(ANSWER_MAX))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Brings the pod's traffic to it.
    pub(super) fn capture(&self) -> Result<()> {
        self.pod.netns.command("nft", &[&rules()]).map(drop)
    }
}

/// Istio's rules of the redirect mode, for IPv4: everything that comes in, and everything that goes out unless it is the
/// proxy's own or stays in the pod.
fn rules() -> String {
    let (outbound, inbound, source) = (config::OUTBOUND_PORT, config::INBOUND_PORT, config::INBOUND_SOURCE);
    [
        "add table ip sidecar".to_owned(),
        "add chain ip sidecar prerouting { type nat hook prerouting priority -100; }".to_owned(),
        "add chain ip sidecar output { type nat hook output priority -100; }".to_owned(),
        format!("add rule ip sidecar prerouting meta l4proto tcp redirect to :{inbound}"),
        format!("add rule ip sidecar output oifname \"lo\" ip saddr {source} return"),
        format!("add rule ip sidecar output meta skgid {GROUP} return"),
        "add rule ip sidecar output oifname \"lo\" return".to_owned(),
        "add rule ip sidecar output ip daddr 127.0.0.1 return".to_owned(),
        format!("add rule ip sidecar output meta l4proto tcp redirect to :{outbound}"),
    ]
    .join("; ")
}
