//! Work inside another network namespace: a short-lived thread enters it, does the work and ends, so that no other
//! thread of the process ever changes its namespace.

use std::io;
use std::os::fd::BorrowedFd;
use std::thread;

use nix::sched::{CloneFlags, setns};

/// Runs `work` on a thread of its own inside `netns` and returns what it returns. Sockets that it opens and processes
/// that it starts belong to that namespace. Blocks the caller.
///
/// Errors: no thread can be started, the descriptor is not a network namespace, the process lacks CAP_SYS_ADMIN, or
/// `work` panicked.
pub fn within<T, F>(netns: BorrowedFd<'_>, work: F) -> io::Result<T>
where
    T: Send,
    F: FnOnce() -> T + Send,
{
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".into()).spawn_scoped(scope, move || {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the work inside the namespace panicked")))
    })
}
