//! TCP sockets as a shard uses them: listeners and connections inside pods' namespaces, with owned buffers.
//!
//! Options are set on listeners where Linux lets accepted sockets inherit them (TCP_NODELAY, keepalive, mark,
//! congestion control), so that accepting costs no extra system call. Under io_uring sockets are blocking, because a
//! non-blocking one answers EAGAIN instead of waiting; under epoll they are non-blocking.

use std::cell::UnsafeCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use halo_core::net::{OUTBOUND_PORT, canonical};
use halo_core::options::{Options, OriginalSource};
use monoio::buf::{IoBuf, SliceMut};
use monoio::io::{AsyncReadRent, AsyncWriteRent};
use monoio::net::{TcpListener, TcpStream};
use nix::libc;
use socket2::{Domain, Protocol, SockRef, Socket as RawSocket, TcpKeepalive, Type};

use crate::netns::Place;
use crate::ring;

mod datagram;
pub(crate) use datagram::Datagrams;

/// Connections that wait to be accepted on one listener.
const BACKLOG: i32 = 1024;
/// What every socket of this process carries.
#[derive(Debug, Clone)]
pub(crate) struct SocketOptions {
    /// SO_MARK, so that the pod's redirect rules let our packets pass.
    pub(crate) mark: u32,
    /// Congestion control for legs inside a pod, where the host's default does worse on loopback.
    pub(crate) local_congestion: Option<&'static str>,
    /// Whether listeners take IPv6 beside IPv4.
    pub(crate) ipv6: bool,
    pub(crate) chosen: Options,
}

impl SocketOptions {
    /// The options for this host: cubic inside pods where the host's default is bbr.
    pub(crate) fn for_host(mark: u32, ipv6: bool, chosen: Options) -> Self {
        let default = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
        let bbr = default.is_ok_and(|name| name.trim() == "bbr");
        Self { mark, local_congestion: bbr.then_some("cubic"), ipv6, chosen }
    }

    fn apply(&self, socket: &RawSocket) -> io::Result<()> {
        if self.mark != 0 {
            socket.set_mark(self.mark)?;
        }
        socket.set_tcp_nodelay(true)?;
        let seconds = |count: u32| Duration::from_secs(count.into());
        if let Some(keepalive) = self.chosen.keepalive {
            let probes = TcpKeepalive::new()
                .with_time(seconds(keepalive.time_s))
                .with_interval(seconds(keepalive.interval_s))
                .with_retries(keepalive.retries);
            socket.set_tcp_keepalive(&probes)?;
        }
        if let Some(timeout) = self.chosen.user_timeout_s {
            socket.set_tcp_user_timeout(Some(seconds(timeout)))?;
        }
        Ok(())
    }

    /// Lets a socket use addresses that are not the pod's.
    fn apply_transparent(&self, socket: &RawSocket, ipv4: bool) -> io::Result<bool> {
        let set = match (self.chosen.original_source, ipv4) {
            (OriginalSource::Never, _) => return Ok(false),
            (_, true) => socket.set_ip_transparent_v4(true),
            (_, false) => socket.set_ip_transparent_v6(true),
        };
        match (self.chosen.original_source, set) {
            (OriginalSource::Auto, Err(_)) => Ok(false),
            (_, set) => set.map(|()| true),
        }
    }

    /// Best effort: a host without cubic keeps its default.
    fn apply_local(&self, socket: &RawSocket) {
        if let Some(name) = self.local_congestion {
            let _ = socket.set_tcp_congestion(name.as_bytes());
        }
    }
}

/// A listening socket of one pod on one shard.
pub(crate) struct Listener {
    inner: TcpListener,
}

/// Stops a [`Listener`] whose accept is in flight. It keeps the socket alive.
pub(crate) struct ListenerStop {
    listener: Rc<Listener>,
}

impl Listener {
    /// Binds `port` on every address of `netns`, dual-stack where the namespace has IPv6. Several shards and
    /// processes may bind the same port: the kernel spreads connections over them (SO_REUSEPORT).
    ///
    /// # Errors
    /// The operation that failed and the kernel's answer.
    pub(crate) fn bind(
        place: &Place,
        netns: &Arc<OwnedFd>,
        port: u16,
        options: &SocketOptions,
    ) -> Result<Self, (&'static str, io::Error)> {
        place.enter(netns).map_err(|error| ("enter the network namespace", error))?;
        let ipv4 = || listening(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port), options);
        let ipv6 = || listening(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port), options);
        let socket = if options.ipv6 {
            ipv6().or_else(|error| if no_ipv6(&error) { ipv4() } else { Err(error) })
        } else {
            ipv4()
        };
        let socket = socket.map_err(|error| ("bind a listener", error))?;
        Self::register(socket).map_err(|error| ("register a listener", error))
    }

    /// Binds one address of `netns`, as [`Listener::bind`] binds all.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn bind_to(
        place: &Place,
        netns: &Arc<OwnedFd>,
        address: SocketAddr,
        options: &SocketOptions,
    ) -> io::Result<Self> {
        place.enter(netns)?;
        listening(address, options).and_then(Self::register)
    }

    fn register(socket: RawSocket) -> io::Result<Self> {
        TcpListener::from_std(StdListener::from(socket)).map(|inner| Self { inner })
    }

    /// Waits for the next connection. Never drop this future: the runtime would leak the accepted socket.
    pub(crate) async fn accept(&self) -> io::Result<(Socket, SocketAddr)> {
        let (stream, peer) = self.inner.accept().await?;
        Ok((Socket::new(stream), canonical(peer)))
    }

    /// The port it is bound to.
    #[cfg(test)]
    pub(crate) fn port(&self) -> u16 {
        self.inner.local_addr().unwrap().port()
    }

    /// A handle that ends the accept in flight.
    pub(crate) fn stop_handle(self: &Rc<Self>) -> ListenerStop {
        ListenerStop { listener: self.clone() }
    }
}

impl ListenerStop {
    /// Ends the accept in flight with an error, and refuses connections from now on.
    pub(crate) fn stop(&self) {
        // A listener that is already shut down answers ENOTCONN, which is what is wanted.
        let _ = nix::sys::socket::shutdown(self.listener.inner.as_raw_fd(), nix::sys::socket::Shutdown::Both);
    }
}

/// Whether an address cannot be bound because the namespace has no such family, or no such address.
pub(crate) fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn listening(address: SocketAddr, options: &SocketOptions) -> io::Result<RawSocket> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(options.chosen.port_reuse)?;
    // Accepted sockets answer from addresses that are not the pod's. One kernel flag serves both families.
    options.apply_transparent(&socket, true)?;
    options.apply(&socket)?;
    if address.port() == OUTBOUND_PORT {
        options.apply_local(&socket);
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(!ring::is_uring())?;
    Ok(socket)
}

/// One TCP connection.
pub(crate) struct Socket {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
    closer: Closer,
}

/// The receiving half of a [`Socket`].
pub(crate) struct Reader(Rc<UnsafeCell<TcpStream>>);
/// The sending half of a [`Socket`]. Dropping it sends nothing, where the runtime's own half would send FIN: a task
/// that fails drops its half before anyone can cut the connection, and the peer would take the cut for an end.
pub(crate) struct Writer(Rc<UnsafeCell<TcpStream>>);

/// Ends a connection from outside the tasks that read and write it. It does not keep the socket open.
#[derive(Clone)]
pub(crate) struct Closer {
    alive: Weak<UnsafeCell<TcpStream>>,
    fd: RawFd,
}

impl Socket {
    fn new(stream: TcpStream) -> Self {
        let fd = stream.as_raw_fd();
        let stream = Rc::new(UnsafeCell::new(stream));
        let closer = Closer { alive: Rc::downgrade(&stream), fd };
        Self { reader: Reader(stream.clone()), writer: Writer(stream), closer }
    }

    /// A handle that ends the connection from outside.
    pub(crate) fn closer(&self) -> Closer {
        self.closer.clone()
    }

    /// The address that the peer connected to, before any redirect: SO_ORIGINAL_DST, else the local address.
    ///
    /// `peer` is the connection's client, whose family is the connection's.
    pub(crate) fn original_destination(&self, peer: SocketAddr) -> io::Result<SocketAddr> {
        self.closer.with(|socket| {
            let original = match peer {
                SocketAddr::V4(_) => socket.original_dst_v4(),
                SocketAddr::V6(_) => socket.original_dst_v6(),
            };
            original.and_then(address).or_else(|_| address(socket.local_addr()?))
        })
    }

    /// The connection's own address.
    pub(crate) fn local_address(&self) -> io::Result<SocketAddr> {
        self.closer.with(|socket| address(socket.local_addr()?))
    }
}

fn address(address: socket2::SockAddr) -> io::Result<SocketAddr> {
    let address = address.as_socket().ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
    Ok(canonical(address))
}

impl Closer {
    /// Runs `action` on the socket while it is certainly open; ENOTCONN once it is closed.
    fn with<T>(&self, action: impl FnOnce(&RawSocket) -> io::Result<T>) -> io::Result<T> {
        let Some(_open) = self.alive.upgrade() else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        // SAFETY: `_open` owns the stream that owns `fd`, so the descriptor stays open and ours for the borrow's life.
        let fd = unsafe { BorrowedFd::borrow_raw(self.fd) };
        action(&SockRef::from(&fd))
    }

    /// Sends FIN: no more bytes will follow.
    pub(crate) fn end(&self) {
        // A socket that is already closed or reset has nothing left to end.
        let _ = self.with(|socket| socket.shutdown(std::net::Shutdown::Write));
    }

    /// Ends the read in flight as if the peer had sent its end; nothing is sent.
    pub(crate) fn end_reading(&self) {
        // A socket that is already closed or reset has ended its reads.
        let _ = self.with(|socket| socket.shutdown(std::net::Shutdown::Read));
    }

    /// Sends RST at once and ends both halves with an error, so that the peer can tell a cut from an end.
    pub(crate) fn abort(&self) {
        let reset = self.with(|socket| {
            socket.set_linger(Some(Duration::ZERO))?;
            disconnect(socket.as_raw_fd())
        });
        if reset.is_err() {
            // Closing with a linger of zero sends the RST; this only ends what is in flight.
            let _ = self.with(|socket| socket.shutdown(std::net::Shutdown::Both));
        }
    }
}

/// Dissolves a TCP association: the kernel sends RST and fails pending operations with ECONNRESET (connect(2),
/// AF_UNSPEC).
fn disconnect(fd: RawFd) -> io::Result<()> {
    let unspecified = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    let length = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the address is a live, initialised `sockaddr` of exactly `length` bytes; the kernel only reads it. The
    // caller holds the descriptor open.
    let answer = unsafe { libc::connect(fd, &raw const unspecified, length) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Reader {
    /// Waits until a read would not wait: without a buffer, which an idle connection would hold for nothing.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        // SAFETY: as for `Reader::read`; polling leaves the stream's own state alone.
        let stream = unsafe { &*self.0.get() };
        // On epoll a short read leaves the readiness set that it has used up: the kernel is asked again.
        stream.readable(false).await
    }

    /// Reads into the spare capacity of `buffer` behind its content, which is kept. 0 is the peer's end, or no spare
    /// capacity. Never drop this future: bytes it has taken would be lost.
    pub(crate) async fn read(&mut self, buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        let room = buffer.capacity() - buffer.len();
        self.read_up_to(buffer, room).await
    }

    /// As [`Reader::read`], but at most `max` bytes.
    pub(crate) async fn read_up_to(&mut self, buffer: Vec<u8>, max: usize) -> (io::Result<usize>, Vec<u8>) {
        let start = buffer.len();
        let end = buffer.capacity().min(start + max);
        // SAFETY: a read leaves the stream's own state alone but for the descriptor's count, which one thread uses; the
        // borrow lasts for one operation, `&mut self` keeps reads apart, and the writer makes only writes of the same
        // kind. The runtime's own halves rest on this too.
        let stream = unsafe { &mut *self.0.get() };
        if start == 0 && end == buffer.capacity() {
            return stream.read(buffer).await;
        }
        let (result, slice) = stream.read(SliceMut::new(buffer, start, end)).await;
        (result, slice.into_inner())
    }
}

impl Writer {
    /// Writes all of `buffer` and gives it back. Never drop this future before it is done, unless the socket is cut.
    pub(crate) async fn write_all(&mut self, mut buffer: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        let length = buffer.len();
        let mut sent = 0;
        while sent < length {
            // SAFETY: as for `Reader::read`, with the halves exchanged.
            let stream = unsafe { &mut *self.0.get() };
            let (result, slice) = stream.write(buffer.slice(sent..length)).await;
            buffer = slice.into_inner();
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buffer),
                Ok(written) => sent += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (Err(error), buffer),
            }
        }
        (Ok(()), buffer)
    }
}

/// How to open a connection.
pub(crate) struct Dial<'a> {
    pub(crate) place: &'a Place,
    pub(crate) netns: &'a Arc<OwnedFd>,
    pub(crate) options: &'a SocketOptions,
    /// Send from this address, though it may not be ours, so that the application sees its client.
    pub(crate) source: Option<IpAddr>,
    /// The far end is inside the pod.
    pub(crate) local: bool,
    pub(crate) ms_max: u64,
}

impl Dial<'_> {
    /// Opens a connection.
    ///
    /// # Errors
    /// TimedOut after `ms_max`; else what the kernel says. A local failure to make the socket is
    /// [`io::ErrorKind::Other`] or a descriptor limit; see [`is_local`].
    pub(crate) async fn connect(&self, destination: SocketAddr) -> io::Result<Socket> {
        self.place.enter(self.netns)?;
        let socket = self.socket(destination)?;
        match socket.connect(&destination.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let stream = TcpStream::from_std(StdStream::from(socket))?;
        let Some(ready) = ring::within_ms(self.ms_max, stream.writable(false)).await else {
            return Err(io::ErrorKind::TimedOut.into());
        };
        ready?;
        let connected = Socket::new(stream);
        connected.closer.with(|socket| {
            if let Some(error) = socket.take_error()? {
                return Err(error);
            }
            if ring::is_uring() { set_blocking(socket) } else { Ok(()) }
        })?;
        Ok(connected)
    }

    fn socket(&self, destination: SocketAddr) -> io::Result<RawSocket> {
        let socket = RawSocket::new(
            Domain::for_address(destination),
            Type::STREAM.nonblocking(),
            Some(Protocol::TCP),
        )?;
        self.options.apply(&socket)?;
        if self.local {
            self.options.apply_local(&socket);
        }
        // Binding to an address that is not the pod's needs no IP_FREEBIND besides (inet_can_nonlocal_bind).
        if let Some(source) = self.source.filter(|source| source.is_ipv4() == destination.is_ipv4())
            && self.options.apply_transparent(&socket, source.is_ipv4())?
        {
            // The port is chosen at connect, per four-tuple, so one client address is not limited to 28 000 ports.
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::IpBindAddressNoPort, &true)?;
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        Ok(socket)
    }
}

/// Makes a socket of ours blocking. Its one flag is O_NONBLOCK, so none need be read first.
fn set_blocking(socket: &RawSocket) -> io::Result<()> {
    nix::fcntl::fcntl(socket, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty()))?;
    Ok(())
}

/// Whether a failure to connect is this host's: a limit on descriptors, ports or memory, or a missing capability.
pub(crate) fn is_local(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EMFILE
                | libc::ENFILE
                | libc::ENOBUFS
                | libc::ENOMEM
                | libc::EPERM
                | libc::EADDRNOTAVAIL
                | libc::EADDRINUSE
        )
    )
}

#[cfg(test)]
mod tests;
