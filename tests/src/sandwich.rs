//! A waypoint that knows nothing of tunnels: an ordinary relay in a captured pod, with a node proxy on either side of
//! it. It may be told by a PROXY header whom it serves.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use halo::lab::netns::Netns;

use crate::socket::{self, PATIENCE};

/// Begins every PROXY header of version 2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The TLV that carries the client's identity.
const IDENTITY: u8 = 0xd0;

/// What a PROXY header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The client.
    pub source: SocketAddr,
    /// Where the client wanted to go.
    pub destination: SocketAddr,
    /// The client's identity, where it is proven.
    pub identity: Option<String>,
}

/// A running relay. Its threads end with their connections, and with the test.
#[derive(Debug)]
pub struct Relay {
    headers: Mutex<Receiver<Header>>,
}

impl Relay {
    /// Passes on what comes to this listener from within the namespace: to where the PROXY header says, or to
    /// `onward` without expecting one.
    pub fn start(netns: &Arc<Netns>, listener: TcpListener, onward: Option<SocketAddr>) -> Self {
        let (sender, headers) = channel();
        let netns = netns.clone();
        thread::spawn(move || {
            while let Ok(stream) = socket::accept(&listener) {
                let (netns, sender) = (netns.clone(), sender.clone());
                // What fails here is seen by the client.
                thread::spawn(move || pass(&netns, stream, onward, &sender));
            }
        });
        Self { headers: Mutex::new(headers) }
    }

    /// The next header.
    pub fn header(&self) -> Header {
        self.headers.lock().unwrap().recv_timeout(PATIENCE).expect("a PROXY header comes")
    }
}

fn pass(
    netns: &Netns,
    mut client: TcpStream,
    onward: Option<SocketAddr>,
    headers: &Sender<Header>,
) -> io::Result<()> {
    let target = match onward {
        Some(target) => target,
        None => {
            let header = read_header(&mut client)?;
            let target = header.destination;
            let _ = headers.send(header);
            target
        }
    };
    let server = socket::connect(netns, target)?;
    let (back, forth) = (server.try_clone()?, client.try_clone()?);
    let answers = thread::spawn(move || copy(back, forth));
    copy(client, server)?;
    answers.join().unwrap_or(Ok(()))
}

fn copy(mut from: TcpStream, mut to: TcpStream) -> io::Result<()> {
    io::copy(&mut from, &mut to)?;
    to.shutdown(Shutdown::Write)
}

fn read_header(from: &mut impl Read) -> io::Result<Header> {
    let wrong = |what: &str, bytes: &[u8]| io::Error::other(format!("{what}: {bytes:02x?}"));
    let mut head = [0; 16];
    from.read_exact(&mut head)?;
    if head[..12] != SIGNATURE[..] || head[12] != 0x21 {
        return Err(wrong("no PROXY header of version 2", &head));
    }
    let mut rest = vec![0; usize::from(u16::from_be_bytes([head[14], head[15]]))];
    from.read_exact(&mut rest)?;
    let len = match head[13] {
        0x11 => 4,
        0x21 => 16,
        _ => return Err(wrong("neither TCP over IPv4 nor over IPv6", &head)),
    };
    let address = |at: usize, port: usize| -> Option<SocketAddr> {
        let ip = rest.get(at..at + len)?;
        let v4 = <[u8; 4]>::try_from(ip).map(|octets| IpAddr::from(Ipv4Addr::from(octets)));
        let ip = v4.or_else(|_| <[u8; 16]>::try_from(ip).map(|octets| Ipv6Addr::from(octets).into())).ok()?;
        Some((ip, u16::from_be_bytes(rest.get(port..port + 2)?.try_into().ok()?)).into())
    };
    let (source, destination) = (address(0, 2 * len), address(len, 2 * len + 2));
    let ends = source.zip(destination).ok_or_else(|| wrong("addresses are missing", &rest))?;
    let mut identity = None;
    let mut tlvs = &rest[2 * len + 4..];
    while let [kind, high, low, after @ ..] = tlvs {
        let value_len = usize::from(u16::from_be_bytes([*high, *low]));
        let value = after.get(..value_len).ok_or_else(|| wrong("a value is cut short", &rest))?;
        if *kind == IDENTITY {
            identity = Some(String::from_utf8_lossy(value).into_owned());
        }
        tlvs = &after[value_len..];
    }
    Ok(Header { source: ends.0, destination: ends.1, identity })
}
