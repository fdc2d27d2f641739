//! A CNI agent that does what no real agent should: it speaks ZDS word by word.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::Path;

use halo::lab::mesh::NAMESPACE;
use halo::lab::topology::Pod;
use halo_core::zds::{self, Request, WorkloadInfo};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, recv, sendmsg};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::socket::PATIENCE;

/// A listening agent.
#[derive(Debug)]
pub struct Listener(Socket);

/// The proxy at the other end.
#[derive(Debug)]
pub struct Peer(Socket);

impl Listener {
    /// Listens on this path.
    pub fn bind(path: &Path) -> Self {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        socket.bind(&SockAddr::unix(path).unwrap()).unwrap();
        socket.listen(4).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    /// Waits for a proxy and its hello.
    pub fn accept(&self) -> Peer {
        let (socket, _) = self.0.accept().expect("a proxy connects");
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let peer = Peer(socket);
        zds::decode_hello(&peer.receive().unwrap()).unwrap();
        peer
    }
}

impl Peer {
    /// Sends a request, with a descriptor or without, and gives the proxy's answer.
    pub fn ask(&self, request: &Request, descriptor: Option<BorrowedFd<'_>>) -> Result<(), String> {
        self.try_ask(request, descriptor).expect("the proxy answers")
    }

    /// As [`Peer::ask`]; the outer error is that of the connection.
    pub fn try_ask(
        &self,
        request: &Request,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<Result<(), String>> {
        let bytes = zds::encode_request(request);
        let raw: Vec<RawFd> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
        let control = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &control[..] };
        let vectors = [IoSlice::new(&bytes)];
        sendmsg::<UnixAddr>(self.0.as_raw_fd(), &vectors, control, MsgFlags::MSG_NOSIGNAL, None)?;
        let answer = zds::decode_response(&self.receive()?).map_err(io::Error::other)?;
        Ok(answer.map_or(Ok(()), Err))
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; zds::DATAGRAM_MAX];
        // Linux does not resume a call on a socket with a timeout by itself.
        let len = loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                received => break received?,
            }
        };
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer.truncate(len);
        Ok(buffer)
    }
}

/// The word that enrols a pod.
pub fn add(pod: &Pod) -> Request {
    let name = || pod.name.as_str().into();
    let info = WorkloadInfo {
        name: name(),
        namespace: NAMESPACE.into(),
        service_account: name(),
        ..WorkloadInfo::default()
    };
    Request::Add { uid: pod.uid.as_str().into(), info }
}
