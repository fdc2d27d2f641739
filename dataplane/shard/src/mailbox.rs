//! The one way into a shard from other threads: a queue of messages and a bell.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};

use halo_core::net::Listeners;
use halo_core::report::{ShardReport, View};
use halo_core::snapshot::Snapshot;

/// Called on the shard's thread with the answer to a message.
pub type Reply<T> = Box<dyn FnOnce(T) + Send>;

/// A pod whose listeners the shard is to open.
#[derive(Debug, Clone)]
pub struct PodSpec {
    /// The pod's uid.
    pub uid: Arc<str>,
    /// Pod name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Service account.
    pub service_account: Arc<str>,
    /// Network namespace.
    pub netns: Arc<OwnedFd>,
    /// Which listeners it has.
    pub listeners: Listeners,
    /// The search list of the pod's resolver, where it is known.
    pub dns_search: Option<Arc<[String]>>,
}

/// Why a pod's listeners could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{step}: {cause}")]
pub struct BindError {
    /// What was being done.
    pub step: &'static str,
    /// The operating system's words.
    pub cause: String,
}

/// What a shard can be told.
pub enum Message {
    /// Decide by this generation from the next turn on.
    Publish(Arc<Snapshot>),
    /// Open a pod's listeners.
    AddPod(PodSpec, Reply<Result<(), BindError>>),
    /// Close a pod's listeners and cut its connections.
    RemovePod(Arc<str>, Reply<()>),
    /// Describe yourself, as far as asked.
    Inspect(View, Reply<ShardReport>),
    /// Stop accepting, and answer once every connection has ended or the deadline has cut it.
    Drain(Reply<()>),
}

/// A handle on one shard's mailbox.
#[derive(Clone)]
pub struct Mailbox {
    queue: mpsc::Sender<Message>,
    bell: Arc<UnixStream>,
}

/// The shard's end.
pub(crate) struct Inbox {
    pub(crate) queue: mpsc::Receiver<Message>,
    pub(crate) bell: UnixStream,
}

/// Makes a mailbox.
///
/// # Errors
/// When no socket pair can be made.
pub(crate) fn mailbox() -> std::io::Result<(Mailbox, Inbox)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let (sender, receiver) = mpsc::channel();
    Ok((Mailbox { queue: sender, bell: Arc::new(ours) }, Inbox { queue: receiver, bell: theirs }))
}

impl Mailbox {
    /// Puts a message in and rings. A shard that has ended drops the message, and with it the reply.
    pub fn send(&self, message: Message) {
        if self.queue.send(message).is_ok() {
            // A full socket means that the bell is ringing already.
            let _ = (&*self.bell).write(&[1]);
        }
    }
}
