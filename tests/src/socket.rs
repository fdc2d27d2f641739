//! TCP sockets in namespaces, with deadlines on everything.

use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use halo::lab::netns::Netns;
use halo_core::net::canonical;
use socket2::{SockRef, Socket};

/// A connect, a read or a write that takes longer has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Listens on every address of the namespace. Accepting gives up after [`PATIENCE`].
pub fn listen(netns: &Netns, port: u16) -> TcpListener {
    let bind = || {
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
            .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
    };
    let listener = netns.within(bind).unwrap();
    patient_listener(netns, port, listener)
}

/// As [`listen`], on the loopback address alone.
pub fn listen_at_home(netns: &Netns, port: u16) -> TcpListener {
    let listener = netns.within(|| TcpListener::bind((Ipv4Addr::LOCALHOST, port))).unwrap();
    patient_listener(netns, port, listener)
}

fn patient_listener(netns: &Netns, port: u16, listener: io::Result<TcpListener>) -> TcpListener {
    let listener = listener.unwrap_or_else(|error| panic!("listen on {port} in {}: {error}", netns.name()));
    // Linux applies the receive timeout of a listening socket to accept.
    SockRef::from(&listener).set_read_timeout(Some(PATIENCE)).unwrap();
    listener
}

/// Connects from inside the namespace.
pub fn connect(netns: &Netns, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = netns.within(|| TcpStream::connect_timeout(&to, PATIENCE)).map_err(io::Error::other)??;
    patient(stream)
}

/// Accepts one connection.
pub fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    accept_from(listener).map(|(stream, _)| stream)
}

/// Accepts one connection, and tells who the client is.
pub fn accept_from(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (stream, client) = listener.accept()?;
    // A listener for both families shows IPv4 clients as mapped addresses.
    Ok((patient(stream)?, canonical(client)))
}

fn patient(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Closes with a reset, whatever is unsent or unread.
pub fn reset(stream: TcpStream) {
    let socket = Socket::from(stream);
    // A socket that the peer reset already cannot fail worse.
    let _ = socket.set_linger(Some(Duration::ZERO));
}

/// How a connection ended, as its reader saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// In order: a read gave no bytes.
    Eof,
    /// By a reset.
    Reset,
    /// Not at all, within the patience.
    Open,
}

/// Whether the error says that the connection was reset.
pub fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// Whether the error says that time is up.
pub fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Whether the call may be made again: time is up, or it was interrupted. Linux does not resume a call on a socket with
/// a timeout by itself, not even after a stop that no handler saw.
pub fn is_pause(error: &io::Error) -> bool {
    is_timeout(error) || error.kind() == io::ErrorKind::Interrupted
}

/// Reads until the connection ends.
pub fn end_of(stream: &mut TcpStream) -> End {
    let (started, mut buffer) = (Instant::now(), [0; 4096]);
    while started.elapsed() < PATIENCE {
        match stream.read(&mut buffer) {
            Ok(0) => return End::Eof,
            Ok(_) => {}
            Err(error) if is_reset(&error) => return End::Reset,
            Err(error) if is_timeout(&error) => return End::Open,
            Err(error) if is_pause(&error) => {}
            Err(error) => panic!("{error}"),
        }
    }
    End::Open
}
