//! The CNI agent's part: it serves one node's ZDS socket and enrols pods, redirect rules first, as the real agent
//! does. A thread of its own drives the socket, so that callers may block.

use std::future::Future;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use halo_control::cni::server::{PodInfo, ZdsServer};
use halo_control::redirect::{self, Options};
use tokio::runtime::{Builder, Handle};
use tokio::sync::Notify;

use super::mesh::NAMESPACE;
use super::process::Process;
use super::topology::Pod;
use super::{Doing, LabError, Result};

/// The proxy may bind its listeners and fetch a certificate before it acknowledges.
const ACK_MAX: Duration = Duration::from_secs(10);
/// How often a proxy that is awaited is looked after.
const LOOK: Duration = Duration::from_millis(100);

/// The agent of one node.
#[derive(Debug)]
pub struct Agent {
    path: PathBuf,
    server: Option<ZdsServer>,
    handle: Handle,
    over: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    /// Serves a ZDS socket.
    pub fn start(path: &Path) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build().doing("start a runtime")?;
        let (handle, over) = (runtime.handle().clone(), Arc::new(Notify::new()));
        let ends = over.clone();
        let drive = move || runtime.block_on(ends.notified());
        let thread = thread::Builder::new().name("cni-agent".into()).spawn(drive).doing("start a thread")?;
        let server = {
            let _inside = handle.enter();
            ZdsServer::bind(path).doing(format_args!("listen on {}", path.display()))?
        };
        Ok(Self { path: path.to_owned(), server: Some(server), handle, over, thread: Some(thread) })
    }

    /// The socket that the proxy connects to.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until a proxy is connected and has taken its snapshot.
    /// `process`, the proxy, ending meanwhile is reported at once.
    pub fn wait_connected(&self, process: &Process, limit: Duration) -> Result<()> {
        let connected = || {
            self.wait("the node proxy connecting to its agent", LOOK, async {
                self.server()?.connected().await;
                Ok(())
            })
        };
        for _ in 0..limit.as_millis() / LOOK.as_millis() {
            if connected().is_ok() {
                return Ok(());
            }
            process.ensure_running()?;
        }
        connected()
    }

    /// Ends, as an agent does that is being replaced: the proxy is on its own, with the pods that it has.
    pub fn stop(&mut self) {
        self.server = None;
    }

    /// Starts again after [`Agent::stop`], as a new agent that has found these pods on its node.
    pub fn resume(&mut self, pods: &[&Pod]) -> Result<()> {
        let mut known = Vec::new();
        for pod in pods {
            known.push((info(pod), pod.netns.fd().try_clone().doing("share a namespace")?));
        }
        let _inside = self.handle.enter();
        let server = ZdsServer::bind_with(&self.path, known);
        self.server = Some(server.doing(format_args!("listen on {}", self.path.display()))?);
        Ok(())
    }

    /// Enrols a running pod: redirects its traffic, then hands its namespace to the proxy and awaits the answer.
    pub fn enrol(&self, pod: &Pod, options: &Options) -> Result<()> {
        let netns = pod.netns.fd();
        redirect::apply(netns.as_fd(), options)?;
        let fd = netns.try_clone().doing("share a namespace")?;
        let info = info(pod);
        self.wait(&format!("enrolling {}", pod.name), ACK_MAX, async {
            self.server()?.add(info, fd).await.map_err(|problem| self.fault(problem))
        })
    }

    /// Takes a pod out of the mesh, while it runs: new connections pass the proxy by, then the proxy lets go of those
    /// that it has, and the rules go last.
    pub fn remove(&self, pod: &Pod) -> Result<()> {
        let netns = pod.netns.fd();
        let released = redirect::release(netns.as_fd());
        let told = self.wait(&format!("removing {}", pod.name), ACK_MAX, async {
            self.server()?.del(&pod.uid).await.map_err(|problem| self.fault(problem))
        });
        // The proxy and the rules are told whatever became of the other.
        let removed = redirect::remove(netns.as_fd());
        told?;
        removed?;
        Ok(released?)
    }

    fn wait<T>(&self, what: &str, limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
        let timed = async { tokio::time::timeout(limit, work).await };
        self.handle.block_on(timed).unwrap_or_else(|_| {
            Err(LabError::Late { what: what.into(), limit, seen: "no answer from the proxy".into() })
        })
    }

    fn server(&self) -> Result<&ZdsServer> {
        self.server.as_ref().ok_or(LabError::Closed)
    }

    fn fault(&self, problem: String) -> LabError {
        LabError::Process { process: format!("agent at {}", self.path.display()), problem }
    }
}

fn info(pod: &Pod) -> PodInfo {
    PodInfo {
        uid: pod.uid.clone(),
        name: pod.name.clone(),
        namespace: NAMESPACE.into(),
        service_account: pod.name.clone(),
        dns_search: pod.dns_search.clone(),
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.server = None;
        self.over.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
