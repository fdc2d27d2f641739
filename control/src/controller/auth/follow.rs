//! A value that is kept equal to a file. A file that is wrong changes nothing: what was in force stays in force, and
//! the reason is told once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{error, info};

use super::CredentialsError;
use crate::watch::FileWatch;

/// A file that is refused is read again after this: a writer may have been at it.
const CONFIRM: Duration = Duration::from_millis(20);
/// Pause between two readings of a file that cannot be watched.
const POLL: Duration = Duration::from_secs(1);

pub(super) type Load<T> = fn(&Path) -> Result<T, CredentialsError>;

/// What a file says, as last read.
pub(super) struct Followed<T>(watch::Receiver<State<T>>);

struct State<T> {
    value: Arc<T>,
    problem: Option<Arc<str>>,
}

impl<T: Send + Sync + 'static> Followed<T> {
    /// Reads a file, and follows it until the value is dropped.
    pub(super) fn start(path: PathBuf, load: Load<T>) -> Result<Self, CredentialsError> {
        // Watched before it is read, so that no change goes unseen in between.
        let watch = FileWatch::new(&path);
        let (sender, receiver) = watch::channel(State { value: Arc::new(load(&path)?), problem: None });
        let watch = match watch {
            Ok(watch) => Some(watch),
            Err(error) => {
                error!(file = %path.display(), %error, "the file cannot be watched and is read every second");
                None
            }
        };
        tokio::spawn(follow(path, watch, load, sender));
        Ok(Self(receiver))
    }

    pub(super) fn value(&self) -> Arc<T> {
        self.0.borrow().value.clone()
    }

    pub(super) fn problem(&self) -> Option<Arc<str>> {
        self.0.borrow().problem.clone()
    }
}

async fn follow<T>(
    path: PathBuf,
    mut watch: Option<FileWatch>,
    load: Load<T>,
    state: watch::Sender<State<T>>,
) {
    loop {
        let changed = async {
            match &mut watch {
                Some(watch) => watch.changed().await,
                None => sleep(POLL).await,
            }
        };
        tokio::select! {
            () = state.closed() => return,
            () = changed => {}
        }
        let mut read = load(&path);
        if read.is_err() {
            sleep(CONFIRM).await;
            read = load(&path);
        }
        match read {
            Ok(value) => {
                info!(file = %path.display(), "the credentials have been read again");
                state.send_replace(State { value: Arc::new(value), problem: None });
            }
            Err(error) => refuse(&state, &error),
        }
    }
}

fn refuse<T>(state: &watch::Sender<State<T>>, error: &CredentialsError) {
    let problem: Arc<str> = error.to_string().into();
    if state.borrow().problem.as_ref() != Some(&problem) {
        error!(error = %problem, "the credentials are refused; those before stay in force");
        state.send_modify(|state| state.problem = Some(problem));
    }
}
