//! Names: a server with a few records of its own, and a client that asks one question. Both speak the wire form by
//! themselves, so that the node proxy is not checked with its own words.

pub mod wire;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use halo::lab::netns::Netns;
use socket2::SockRef;

use crate::socket::{self, PATIENCE};
use wire::{Answer, Kind, Record};

const PORT: u16 = 53;
/// How soon the server notices that it is over.
const TURN: Duration = Duration::from_millis(50);

/// A name server in a pod.
#[derive(Debug)]
pub struct NameServer {
    asked: Arc<Mutex<Vec<(String, Kind)>>>,
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl NameServer {
    /// Answers for these names on port 53, over UDP and TCP; every other name does not exist.
    pub fn start(netns: &Netns, records: &[(&str, Record)]) -> Self {
        let records: Vec<_> =
            records.iter().map(|(name, record)| ((*name).to_owned(), record.clone())).collect();
        let (asked, over) = (Arc::new(Mutex::default()), Arc::new(AtomicBool::new(false)));
        let any = (Ipv6Addr::UNSPECIFIED, PORT);
        let open = || UdpSocket::bind(any).or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)));
        let udp = netns.within(open).unwrap().unwrap();
        udp.set_read_timeout(Some(TURN)).unwrap();
        let tcp = socket::listen(netns, PORT);
        SockRef::from(&tcp).set_read_timeout(Some(TURN)).unwrap();
        let zone = Zone { records: Arc::new(records), asked: Arc::clone(&asked), over: Arc::clone(&over) };
        let other = zone.clone();
        let threads =
            vec![thread::spawn(move || zone.serve_udp(&udp)), thread::spawn(move || other.serve_tcp(&tcp))];
        Self { asked, over, threads }
    }

    /// How often it was asked for a name.
    pub fn asked(&self, name: &str, kind: Kind) -> usize {
        self.asked.lock().unwrap().iter().filter(|(n, k)| n == name && *k == kind).count()
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[derive(Clone)]
struct Zone {
    records: Arc<Vec<(String, Record)>>,
    asked: Arc<Mutex<Vec<(String, Kind)>>>,
    over: Arc<AtomicBool>,
}

impl Zone {
    fn serve_udp(&self, socket: &UdpSocket) {
        let mut buffer = [0; 4096];
        while !self.over.load(Ordering::Acquire) {
            if let Ok((len, client)) = socket.recv_from(&mut buffer) {
                let answer = self.answer(&buffer[..len], wire::DATAGRAM_MAX);
                answer.map(|bytes| socket.send_to(&bytes, client));
            }
        }
    }

    fn serve_tcp(&self, listener: &TcpListener) {
        while !self.over.load(Ordering::Acquire) {
            let Ok(mut stream) = socket::accept(listener) else { continue };
            // A client that ends the conversation ends it for us too.
            while let Ok(query) = wire::read_framed(&mut stream) {
                let Some(answer) = self.answer(&query, usize::MAX) else { break };
                if wire::write_framed(&mut stream, &answer).is_err() {
                    break;
                }
            }
        }
    }

    fn answer(&self, query: &[u8], len_max: usize) -> Option<Vec<u8>> {
        let (name, kind) = wire::question(query)?;
        self.asked.lock().unwrap().push((name.clone(), kind));
        let known: Vec<_> = self.records.iter().filter(|(known, _)| *known == name).collect();
        let records: Vec<_> = known.iter().map(|(_, r)| r).filter(|record| record.kind() == kind).collect();
        wire::answer(query, known.is_empty(), &records, len_max)
    }
}

/// Asks for a name from within the namespace, over UDP. The server's address hardly matters where DNS is captured.
pub fn ask(netns: &Netns, server: SocketAddr, name: &str, kind: Kind) -> io::Result<Answer> {
    let any: SocketAddr =
        if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = netns.within(|| UdpSocket::bind(any)).map_err(io::Error::other)??;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(server)?;
    socket.send(&wire::query(name, kind))?;
    let mut buffer = [0; 4096];
    loop {
        match socket.recv(&mut buffer) {
            Ok(len) => return wire::read_answer(&buffer[..len]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// As [`ask`], over TCP.
pub fn ask_tcp(netns: &Netns, server: SocketAddr, name: &str, kind: Kind) -> io::Result<Answer> {
    let mut stream = socket::connect(netns, server)?;
    wire::write_framed(&mut stream, &wire::query(name, kind))?;
    wire::read_answer(&wire::read_framed(&mut stream)?)
}
