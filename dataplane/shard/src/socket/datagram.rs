//! UDP sockets in pods' namespaces, for DNS. They never block: whoever reads waits until there is something, without a
//! buffer, and then takes what is there.

use std::io;
use std::net::{SocketAddr, UdpSocket as StdSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use monoio::net::udp::UdpSocket;
use nix::sys::socket::sockopt;
use nix::sys::socket::{MsgFlags, SockaddrIn, SockaddrIn6, SockaddrLike, SockaddrStorage};
use socket2::{Domain, Protocol, Socket as RawSocket, Type};

use super::SocketOptions;
use crate::netns::Place;

/// Datagrams that may wait on a listener, in bytes as the kernel counts them: each costs it a few hundred besides.
const RECEIVE_BYTES: usize = 1024 * 1024;

/// A UDP socket.
pub(crate) struct Datagrams(UdpSocket);

impl Datagrams {
    /// Binds an address of `netns` that other shards and processes may bind too.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn bind(
        place: &Place,
        netns: &Arc<OwnedFd>,
        address: SocketAddr,
        options: &SocketOptions,
    ) -> io::Result<Self> {
        place.enter(netns)?;
        let socket = socket(address, options)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_port(true)?;
        // Room for a burst. Without the capability to go beyond the system's bound that is what it gets.
        let _ = nix::sys::socket::setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BYTES);
        socket.bind(&address.into())?;
        Self::register(socket)
    }

    /// A socket of `netns` on a port that the kernel draws at random, which hears only `peer`.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn connect(
        place: &Place,
        netns: &Arc<OwnedFd>,
        peer: SocketAddr,
        options: &SocketOptions,
    ) -> io::Result<Self> {
        place.enter(netns)?;
        let socket = socket(peer, options)?;
        socket.connect(&peer.into())?;
        Self::register(socket)
    }

    fn register(socket: RawSocket) -> io::Result<Self> {
        UdpSocket::from_std(StdSocket::from(socket)).map(Self)
    }

    /// Waits until there is something to receive. May be dropped at any point.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.0.readable(false).await
    }

    /// Takes the next datagram and its sender; what does not fit the buffer is cut off.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is none.
    pub(crate) fn receive_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let (length, sender) = nix::sys::socket::recvfrom::<SockaddrStorage>(self.0.as_raw_fd(), buffer)?;
        let sender = sender.as_ref().and_then(address).ok_or(io::ErrorKind::InvalidData)?;
        Ok((length, sender))
    }

    /// Takes the next datagram of the peer.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is none; what else the kernel says, such as that nobody listens there.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(nix::sys::socket::recv(self.0.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?)
    }

    /// Sends a datagram, or fails at once.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn send_to(&self, bytes: &[u8], peer: SocketAddr) -> io::Result<()> {
        let flags = MsgFlags::MSG_DONTWAIT;
        let fd = self.0.as_raw_fd();
        match peer {
            SocketAddr::V4(peer) => nix::sys::socket::sendto(fd, bytes, &SockaddrIn::from(peer), flags)?,
            SocketAddr::V6(peer) => nix::sys::socket::sendto(fd, bytes, &SockaddrIn6::from(peer), flags)?,
        };
        Ok(())
    }

    /// Sends a datagram to the peer, or fails at once.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        nix::sys::socket::send(self.0.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT)?;
        Ok(())
    }
}

fn socket(address: SocketAddr, options: &SocketOptions) -> io::Result<RawSocket> {
    let domain = Domain::for_address(address);
    let socket = RawSocket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if options.mark != 0 {
        socket.set_mark(options.mark)?;
    }
    Ok(socket)
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(ipv4) = storage.as_sockaddr_in() {
        return Some(SocketAddr::V4((*ipv4).into()));
    }
    storage
        .as_sockaddr_in6()
        .filter(|ipv6| ipv6.family().is_some())
        .map(|ipv6| SocketAddr::V6((*ipv6).into()))
}
