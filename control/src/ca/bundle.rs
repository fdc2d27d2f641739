//! The roots that workloads trust: the authority's own, and those of a file beside it. A root is replaced in steps: its
//! successor is trusted before it signs, and it stays trusted until the last certificate that it signed has ended.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tracing::{info, warn};

use super::{CaError, Facts, root};

/// The file's name.
const EXTRA: &str = "extra-roots.pem";
/// A file that was written less than this ago may be half written, and is read by the next who asks.
const SETTLE: Duration = Duration::from_millis(100);

/// The roots, kept equal to the file by whoever asks for them.
#[derive(Debug)]
pub(super) struct Bundle {
    own: Vec<u8>,
    path: Option<PathBuf>,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// The file that was last judged; `None` if there was none.
    stamp: Option<Stamp>,
    extra: Vec<Extra>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Extra {
    der: Vec<u8>,
    not_after: SystemTime,
}

/// What changes with a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: SystemTime,
    changed_ns: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Option<Self>> {
        let found = match fs::metadata(path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let changed_ns = (found.ctime(), found.ctime_nsec());
        let (device, inode, len) = (found.dev(), found.ino(), found.len());
        Ok(Some(Self { device, inode, len, modified: found.modified()?, changed_ns }))
    }

    /// Whether a writer may be at the file. A time in the future is another clock's, and says nothing.
    fn is_fresh(&self, now: SystemTime) -> bool {
        now.duration_since(self.modified).is_ok_and(|age| age < SETTLE)
    }
}

impl Bundle {
    /// One root alone.
    pub(super) fn of(own: &[u8]) -> Self {
        Self { own: own.to_vec(), path: None, held: Mutex::default() }
    }

    /// A root and those of the directory's file, which need not be there.
    pub(super) fn open(own: &[u8], directory: &Path) -> Result<Self, CaError> {
        let path = directory.join(EXTRA);
        let stamp = Stamp::of(&path).map_err(|error| root::file_error(&path, error))?;
        let extra = if stamp.is_some() { read(&path)? } else { Vec::new() };
        Ok(Self { own: own.to_vec(), path: Some(path), held: Mutex::new(Held { stamp, extra }) })
    }

    /// The roots that are trusted at a time, the authority's own first; X.509 DER.
    pub(super) fn roots(&self, now: SystemTime) -> Vec<Vec<u8>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = &self.path {
            held.follow(path, now);
        }
        // A peer takes a root as it is, whatever its dates; one that has ended is left out here.
        let extra = held.extra.iter().filter(|extra| extra.not_after > now && extra.der != self.own);
        [self.own.clone()].into_iter().chain(extra.map(|extra| extra.der.clone())).collect()
    }
}

impl Held {
    /// Reads the file if it is another than before. One that is wrong changes nothing.
    fn follow(&mut self, path: &Path, now: SystemTime) {
        let Ok(stamp) = Stamp::of(path) else { return };
        if stamp == self.stamp || stamp.is_some_and(|stamp| stamp.is_fresh(now)) {
            return;
        }
        self.stamp = stamp;
        match if stamp.is_some() { read(path) } else { Ok(Vec::new()) } {
            Ok(extra) => {
                info!(file = %path.display(), roots = extra.len(), "the extra roots have changed");
                self.extra = extra;
            }
            Err(error) => warn!(%error, "the extra roots are refused; those before stay in force"),
        }
    }
}

fn read(path: &Path) -> Result<Vec<Extra>, CaError> {
    let text = fs::read(path).map_err(|error| root::file_error(path, error))?;
    let wrong = |reason| CaError::Root { path: path.display().to_string(), reason };
    let certificates = root::certificates(&text).ok_or_else(|| wrong("not PEM certificates"))?;
    let judge = |der: &Vec<u8>| {
        let facts = Facts::of(der).map_err(|_| wrong("one of them is not an X.509 certificate"))?;
        if !facts.is_ca {
            return Err(wrong("one of them is not the certificate of an authority"));
        }
        Ok(Extra { der: der.clone(), not_after: facts.not_after() })
    };
    let mut extra: Vec<Extra> = Vec::new();
    for der in &certificates {
        let next = judge(der)?;
        if !extra.contains(&next) {
            extra.push(next);
        }
    }
    Ok(extra)
}
