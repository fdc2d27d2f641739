//! Notices that a file may have changed: written in place, replaced by a rename, or swapped behind symbolic links as
//! Kubernetes does with a ConfigMap. It watches directories, since a watch on the file would follow the old inode.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use inotify::{EventStream, Inotify, WatchMask};
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;

/// Events that come this close together are one change.
const SETTLE: Duration = Duration::from_millis(10);
/// A change is told this long after its first event at the latest, however busy the directory is.
const SETTLE_MAX: Duration = Duration::from_millis(20);
/// Attempts to watch a directory that is gone, or to read from a watch that failed.
const RETRY: Duration = Duration::from_secs(1);
/// Bytes of events read at once.
const EVENTS_LEN: usize = 4096;

/// Changes of one file.
pub(crate) struct FileWatch {
    path: PathBuf,
    events: EventStream<[u8; EVENTS_LEN]>,
    /// Whether a directory of the file could not be watched, so that time has to tell.
    blind: bool,
}

impl FileWatch {
    /// Watches a file, which need not exist yet.
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let events = Inotify::init()?.into_event_stream([0; EVENTS_LEN])?;
        let mut watch = Self { path: path.to_path_buf(), events, blind: false };
        watch.aim();
        Ok(watch)
    }

    /// Waits for the next change. May also return without one.
    pub(crate) async fn changed(&mut self) {
        if self.blind {
            drop(timeout(RETRY, self.events.next()).await);
        } else if !matches!(self.events.next().await, Some(Ok(_))) {
            sleep(RETRY).await;
        }
        let settled = async { while let Ok(Some(Ok(_))) = timeout(SETTLE, self.events.next()).await {} };
        drop(timeout(SETTLE_MAX, settled).await);
        self.aim();
    }

    /// Watches the directories that now lead to the file. Watching one again changes nothing.
    fn aim(&mut self) {
        // A write is seen when the writer closes the file: before that, what is there may be half of it.
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF;
        self.blind = false;
        for directory in directories(&self.path) {
            if self.events.watches().add(&directory, mask).is_err() {
                self.blind = true;
            }
        }
    }
}

/// The directory of the path, and the one where its links end.
fn directories(path: &Path) -> BTreeSet<PathBuf> {
    let parent = |path: &Path| match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let target = path.canonicalize().ok().map(|target| parent(&target));
    let own = parent(path);
    // The same directory under two names is one watch to the kernel.
    [Some(own), target].into_iter().flatten().collect()
}
