//! Applications in the pod.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

use halo_core::net::OUTBOUND_PORT;

use crate::rig::{DEADLINE, POD, SERVICE};

/// An application that echoes, and ends its direction when its client does. It runs until the process ends.
pub(crate) fn echo() -> SocketAddr {
    let listener = TcpListener::bind((POD, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            thread::spawn(move || copy(client.unwrap()));
        }
    });
    address
}

fn copy(mut client: TcpStream) {
    let mut chunk = [0; 16 * 1024];
    // A client that is cut is what some tests are about.
    while let Ok(length @ 1..) = client.read(&mut chunk) {
        if client.write_all(&chunk[..length]).is_err() {
            return;
        }
    }
}

/// An application whose connections the test holds in its hand.
pub(crate) struct Held {
    listener: TcpListener,
}

impl Held {
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind((POD, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self { listener }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// The next connection, which has been made.
    pub(crate) fn accept(&self) -> TcpStream {
        let begin = Instant::now();
        loop {
            match self.listener.accept() {
                Ok((socket, _)) => {
                    socket.set_nonblocking(false).unwrap();
                    socket.set_read_timeout(Some(DEADLINE)).unwrap();
                    socket.set_write_timeout(Some(DEADLINE)).unwrap();
                    return socket;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            assert!(begin.elapsed() < DEADLINE, "nobody connects");
            thread::yield_now();
        }
    }
}

/// A connection of the pod to the service, captured.
pub(crate) fn connect() -> TcpStream {
    try_connect().unwrap()
}

fn try_connect() -> io::Result<TcpStream> {
    let service = SocketAddr::from((SERVICE, OUTBOUND_PORT));
    try_connect_from(POD, service)
}

/// A connection from one of the namespace's addresses.
pub(crate) fn connect_from(source: Ipv4Addr, to: SocketAddr) -> TcpStream {
    try_connect_from(source, to).unwrap()
}

fn try_connect_from(source: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect_timeout(&to.into(), DEADLINE)?;
    let socket = TcpStream::from(socket);
    socket.set_read_timeout(Some(DEADLINE))?;
    socket.set_write_timeout(Some(DEADLINE))?;
    Ok(socket)
}

/// Connects to the service, which must be refused.
pub(crate) fn until_refused() {
    // The reset may come before the application has looked at its new connection.
    match try_connect() {
        Ok(socket) => until_reset(socket),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

/// Waits until the connection is cut. One that ends in order instead fails the test.
pub(crate) fn until_reset(mut socket: TcpStream) {
    let mut rest = Vec::new();
    let end = socket.read_to_end(&mut rest).map_err(|error| error.kind());
    assert_eq!(end, Err(ErrorKind::ConnectionReset), "a cut looks like an end");
}
