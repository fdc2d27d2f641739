//! The parts of a process: the tasks of its control thread, joined, so that none of them ends unnoticed.

use std::collections::HashMap;
use std::future::pending;

use tokio::task::{self, AbortHandle, JoinError, JoinSet};

/// How a part ended that should not have; a defect in this program.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    /// It panicked.
    #[error("{part}: {error}")]
    Failed {
        /// Which part.
        part: &'static str,
        /// The runtime's words.
        error: JoinError,
    },
    /// It returned, and its work is left undone.
    #[error("{part}: it ended before the process")]
    Ended {
        /// Which part.
        part: &'static str,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    /// As long as the process's.
    Whole,
    /// Until it has nothing more to do.
    UntilDone,
}

/// Every part that runs.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    tasks: JoinSet<()>,
    names: HashMap<task::Id, (&'static str, Life)>,
}

impl Parts {
    /// Starts a part that lives as long as the process.
    pub(crate) fn spawn(
        &mut self,
        name: &'static str,
        part: impl Future<Output = ()> + Send + 'static,
    ) -> AbortHandle {
        self.start(name, Life::Whole, part)
    }

    /// Starts a part that may end once it has nothing more to do.
    pub(crate) fn spawn_until_done(
        &mut self,
        name: &'static str,
        part: impl Future<Output = ()> + Send + 'static,
    ) -> AbortHandle {
        self.start(name, Life::UntilDone, part)
    }

    fn start(
        &mut self,
        name: &'static str,
        life: Life,
        part: impl Future<Output = ()> + Send + 'static,
    ) -> AbortHandle {
        let task = self.tasks.spawn(part);
        self.names.insert(task.id(), (name, life));
        task
    }

    /// The first part to end that should not have.
    pub(crate) async fn failure(&mut self) -> PartError {
        loop {
            let (id, error) = match self.tasks.join_next_with_id().await {
                Some(Ok((id, ()))) => (id, None),
                Some(Err(error)) => (error.id(), Some(error)),
                None => pending().await,
            };
            let (part, life) = self.names.remove(&id).unwrap_or(("an unnamed part", Life::Whole));
            match (error, life) {
                (Some(error), _) => return PartError::Failed { part, error },
                (None, Life::Whole) => return PartError::Ended { part },
                (None, Life::UntilDone) => {}
            }
        }
    }

    /// Cuts every part off, and waits until all have ended.
    pub(crate) async fn shutdown(&mut self) {
        self.tasks.shutdown().await;
    }
}
