//! Unix SEQPACKET sockets with descriptor passing, on tokio. One datagram is one message; a message that does not fit,
//! or whose descriptors do not, is delivered as such and never silently shortened.

use std::io;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Bytes of one message, as both sides of ZDS read it.
pub(crate) const MESSAGE_LEN_MAX: usize = 1024;
/// Descriptors of one message that are received; more than one is an error to the caller, but not a leak.
const DESCRIPTORS_MAX: usize = 4;
/// Proxies that wait to be accepted.
const BACKLOG: i32 = 16;

/// One message as it arrived.
#[derive(Debug)]
pub(crate) struct Datagram {
    /// Its bytes, at most [`MESSAGE_LEN_MAX`].
    pub(crate) bytes: Vec<u8>,
    /// Its descriptors, closed on exec.
    pub(crate) descriptors: Vec<OwnedFd>,
    /// Bytes were cut off.
    pub(crate) bytes_truncated: bool,
    /// Descriptors were cut off.
    pub(crate) descriptors_truncated: bool,
}

/// A connected socket.
#[derive(Debug)]
pub(crate) struct Seqpacket(Ready);

/// A listening socket.
#[derive(Debug)]
pub(crate) struct SeqpacketListener(Ready);

/// A descriptor whose readiness tokio reports. The stream type is used for that alone, never to read or write:
/// registering a bare descriptor is an unsafe operation in tokio.
#[derive(Debug)]
struct Ready(UnixStream);

impl Ready {
    fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self(UnixStream::from_std(socket.into())?))
    }

    /// Repeats an operation until it does not say that it would block.
    async fn io<T>(
        &self,
        interest: Interest,
        mut operation: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        self.0.async_io(interest, || operation(self.0.as_fd())).await
    }
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

impl SeqpacketListener {
    /// Listens on a path, replacing a socket that an earlier process left there.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = socket()?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(Self(Ready::new(socket)?))
    }

    /// The next peer.
    pub(crate) async fn accept(&self) -> io::Result<Seqpacket> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accept = |listener: BorrowedFd<'_>| Ok(rustix::net::accept_with(listener, flags)?);
        let socket = self.0.io(Interest::READABLE, accept).await?;
        Ok(Seqpacket(Ready::new(socket)?))
    }
}

impl Seqpacket {
    /// Connects at once or fails: a full backlog is `WouldBlock`, and worth another attempt.
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let socket = socket()?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self(Ready::new(socket)?))
    }

    /// Sends one message, with at most one descriptor.
    pub(crate) async fn send(&self, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let send = |socket: BorrowedFd<'_>| {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let passed = descriptor.as_slice();
            if !passed.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(passed));
            }
            Ok(rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
        };
        let sent = self.0.io(Interest::WRITABLE, send).await?;
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// The next message; `None` once the peer is gone.
    pub(crate) async fn receive(&self) -> io::Result<Option<Datagram>> {
        self.0.io(Interest::READABLE, receive).await
    }
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Datagram>> {
    let mut buffer = [0; MESSAGE_LEN_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let into = &mut [IoSliceMut::new(&mut buffer)];
    let message = rustix::net::recvmsg(socket, into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = part {
            descriptors.extend(received);
        }
    }
    // An empty message and the end of the stream look alike; no ZDS message is empty.
    if message.bytes == 0 && !message.flags.contains(ReturnFlags::TRUNC) {
        return Ok(None);
    }
    Ok(Some(Datagram {
        bytes: buffer[..message.bytes.min(MESSAGE_LEN_MAX)].to_vec(),
        descriptors,
        bytes_truncated: message.flags.contains(ReturnFlags::TRUNC),
        descriptors_truncated: message.flags.contains(ReturnFlags::CTRUNC),
    }))
}
