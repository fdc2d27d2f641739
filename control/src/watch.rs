//! Notices that a file may have changed: written in place, replaced by a rename, or swapped behind symbolic links as
//! Kubernetes does with a ConfigMap, or that it may now be read or not. It watches directories, since a watch on the file
//! would follow the old inode. Reading a file is no change, so that whoever reads it upon a change does not cause one.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use inotify::{EventMask, EventStream, Inotify, WatchMask};
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
    /// Where the path's links end, as far as they lead to a file.
    target: Option<PathBuf>,
    /// Whether a directory of the file could not be watched, so that time has to tell.
    blind: bool,
}

impl FileWatch {
    /// Watches a file, which need not exist yet.
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let events = Inotify::init()?.into_event_stream([0; EVENTS_LEN])?;
        let mut watch = Self { path: path.to_path_buf(), events, target: None, blind: false };
        watch.aim();
        Ok(watch)
    }

    /// Waits for the next change. May also return without one.
    pub(crate) async fn changed(&mut self) {
        if self.blind {
            drop(timeout(RETRY, self.events.next()).await);
        } else {
            self.concerned().await;
        }
        let settled = async { while let Ok(Some(Ok(_))) = timeout(SETTLE, self.events.next()).await {} };
        drop(timeout(SETTLE_MAX, settled).await);
        self.aim();
    }

    /// Waits for an event that concerns the file, among those of its directories.
    async fn concerned(&mut self) {
        loop {
            match self.events.next().await {
                Some(Ok(event)) if self.concerns(event.name.as_deref(), event.mask) => return,
                Some(Ok(_)) => {}
                // The watch failed, which is not known to happen; the file is read from time to time.
                _ => return sleep(RETRY).await,
            }
        }
    }

    /// What happens to other files concerns this one only where links lead elsewhere than before. Reading for any other
    /// reason could meet a file that is half written.
    fn concerns(&self, name: Option<&OsStr>, mask: EventMask) -> bool {
        let linked = self.path.is_symlink();
        let own = name.is_none()
            || name == self.path.file_name()
            || name == self.target.as_deref().and_then(Path::file_name);
        if own {
            // A new file is complete once its writer closes it; a new link is complete at once.
            return linked || !mask.contains(EventMask::CREATE);
        }
        linked && self.path.canonicalize().ok() != self.target
    }

    /// Watches the directories that now lead to the file. Watching one again changes nothing.
    fn aim(&mut self) {
        // A write is seen when the writer closes the file: before that, what is there may be half of it. A file's mode is
        // among its attributes, and some files are refused for it.
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::ATTRIB
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF;
        self.target = self.path.canonicalize().ok();
        // The same directory under two names is one watch to the kernel.
        let directories = [Some(parent(&self.path)), self.target.as_deref().map(parent)];
        self.blind = false;
        for directory in directories.into_iter().flatten() {
            if self.events.watches().add(&directory, mask).is_err() {
                self.blind = true;
            }
        }
    }
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::testing::DEADLINE;

    #[tokio::test]
    async fn a_change_of_mode_is_told_and_a_reading_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        fs::write(&path, "key").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let mut watch = FileWatch::new(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        timeout(DEADLINE, watch.changed()).await.unwrap();
        for _ in 0..3 {
            assert_eq!(fs::read(&path).unwrap(), b"key");
        }
        fs::write(folder.path().join("other"), "noise").unwrap();
        // What was read is not in the queue: the next thing in it is what happens to the other file.
        let event = timeout(DEADLINE, watch.events.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(event.name.as_deref(), Some(OsStr::new("other")));
    }
}
