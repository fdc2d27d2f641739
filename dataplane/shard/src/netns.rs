//! Network namespaces: the one thing a shard needs of them is that its next socket is made inside a pod's.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::fstat;

/// Which namespace the calling thread is in.
///
/// Entering costs a system call, so the thread stays where its last socket was made: sockets of one pod in a row cost
/// one entry. Nothing else that a shard does depends on the thread's namespace.
pub(crate) struct Place {
    home: Arc<OwnedFd>,
    current: RefCell<Arc<OwnedFd>>,
}

impl Place {
    /// The calling thread's own namespace.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub(crate) fn home() -> io::Result<Self> {
        let home = Arc::new(OwnedFd::from(File::open("/proc/thread-self/ns/net")?));
        Ok(Self { current: RefCell::new(home.clone()), home })
    }

    /// Moves the thread into `netns`, unless it is there.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN, unless the thread is in that very namespace.
    pub(crate) fn enter(&self, netns: &Arc<OwnedFd>) -> io::Result<()> {
        if Arc::ptr_eq(&self.current.borrow(), netns) {
            return Ok(());
        }
        match setns(netns.as_ref(), CloneFlags::CLONE_NEWNET) {
            // Who serves its own namespace alone needs no leave to enter it.
            Err(Errno::EPERM) if are_same(&self.current.borrow(), netns)? => {}
            entered => entered?,
        }
        self.current.replace(netns.clone());
        Ok(())
    }

    /// Leaves `netns` if the thread is in it, so that a pod's namespace can end with the pod.
    pub(crate) fn leave(&self, netns: &Arc<OwnedFd>) {
        if Arc::ptr_eq(&self.current.borrow(), netns) && self.enter(&self.home).is_err() {
            // The thread's own namespace can always be entered again by who could leave it.
            debug_assert!(false, "the home namespace was refused");
        }
    }
}

/// Whether two descriptors are of one namespace.
fn are_same(one: &OwnedFd, other: &OwnedFd) -> io::Result<bool> {
    let (one, other) = (fstat(one)?, fstat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_told_by_what_it_is_rather_than_by_its_descriptor() {
        let open = |kind: &str| OwnedFd::from(File::open(format!("/proc/thread-self/ns/{kind}")).unwrap());
        assert!(are_same(&open("net"), &open("net")).unwrap());
        assert!(!are_same(&open("net"), &open("uts")).unwrap());
    }
}
