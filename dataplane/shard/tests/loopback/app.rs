//! Applications in the pod.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

use crate::rig::{DEADLINE, POD};

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

/// Waits until the connection is cut. One that ends in order instead fails the test.
pub(crate) fn until_reset(mut socket: TcpStream) {
    let mut rest = Vec::new();
    let end = socket.read_to_end(&mut rest).map_err(|error| error.kind());
    assert_eq!(end, Err(ErrorKind::ConnectionReset), "a cut looks like an end");
}
