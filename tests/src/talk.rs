//! A short conversation of known length, for what is counted by the byte.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};

use halo::lab::netns::Netns;

use crate::socket;

/// What the client says.
pub const ASKED: &[u8] = b"hello world";
/// What the server says, twice as much.
pub const ANSWERED: &[u8] = b"hello worldhello world";

/// Holds one conversation: asks, is answered, and both ends close. Gives the address of the client as the server saw
/// it.
pub fn talk(client: &Netns, target: SocketAddr, listener: &TcpListener) -> io::Result<SocketAddr> {
    let mut client = socket::connect(client, target)?;
    client.write_all(ASKED)?;
    let (mut server, from) = socket::accept_from(listener)?;
    let mut heard = vec![0; ASKED.len()];
    server.read_exact(&mut heard)?;
    assert_eq!(heard, ASKED);
    server.write_all(ANSWERED)?;
    drop(server);
    let mut heard = Vec::new();
    client.read_to_end(&mut heard)?;
    assert_eq!(heard, ANSWERED);
    Ok(from)
}
