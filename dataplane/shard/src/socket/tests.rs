//! Sockets on loopback, on io_uring and on epoll.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream as Plain;
use std::rc::Rc;
use std::thread;

use super::*;
use crate::ring::{Ring, RingKind};

/// Runs `with` on both kinds of loop, with a listener on a free port of the test's own namespace.
fn on_each_ring<F: Future<Output = ()>>(with: impl Fn(Rc<Listener>, SocketAddr, Place) -> F) {
    for kind in [RingKind::Auto, RingKind::Epoll] {
        Ring::build(kind).unwrap().run(async {
            let place = Place::home().unwrap();
            let netns = Arc::new(OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net").unwrap()));
            let options =
                SocketOptions { mark: 0, local_congestion: None, ipv6: true, chosen: Options::default() };
            let listener = Rc::new(Listener::bind(&place, &netns, 0, &options).unwrap());
            let port = listener.inner.local_addr().unwrap().port();
            with(listener, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port), place).await;
        });
    }
}

#[test]
fn an_abort_reaches_the_peer_as_a_reset_and_ends_our_own_read() {
    on_each_ring(|listener, address, _| async move {
        let client = thread::spawn(move || {
            let mut client = Plain::connect(address).unwrap();
            client.write_all(b"hello").unwrap();
            client.read(&mut [0; 8]).unwrap_err().kind()
        });
        let (mut socket, _) = listener.accept().await.unwrap();
        let (read, buffer) = socket.reader.read(Vec::with_capacity(16)).await;
        assert_eq!((read.unwrap(), &buffer[..]), (5, &b"hello"[..]));
        let closer = socket.closer();
        ring::spawn(
            async move {
                ring::sleep_ms(5).await;
                closer.abort();
            },
            |_| (),
        );
        let (read, _) = socket.reader.read(buffer).await;
        assert!(!matches!(read, Ok(1..)), "bytes after an abort");
        assert_eq!(client.join().unwrap(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn halves_that_are_dropped_before_the_abort_do_not_turn_it_into_an_end() {
    on_each_ring(|listener, address, _| async move {
        let client = thread::spawn(move || {
            let mut client = Plain::connect(address).unwrap();
            let mut all = Vec::new();
            (client.read_to_end(&mut all).map_err(|error| error.kind()), all)
        });
        let (Socket { reader, mut writer, closer }, _) = listener.accept().await.unwrap();
        let (written, _) = writer.write_all(b"half of an answer".to_vec()).await;
        written.unwrap();
        drop(writer);
        ring::sleep_ms(5).await;
        closer.abort();
        assert_eq!(client.join().unwrap(), (Err(ErrorKind::ConnectionReset), b"half of an answer".to_vec()));
        drop(reader);
    });
}

#[test]
fn an_end_reaches_the_peer_as_an_end_and_the_other_direction_goes_on() {
    on_each_ring(|listener, address, _| async move {
        let client = thread::spawn(move || {
            let mut client = Plain::connect(address).unwrap();
            let mut all = Vec::new();
            client.read_to_end(&mut all).unwrap();
            client.write_all(b"after").unwrap();
            all
        });
        let (mut socket, _) = listener.accept().await.unwrap();
        let (written, _) = socket.writer.write_all(b"before".to_vec()).await;
        written.unwrap();
        socket.closer().end();
        let (read, buffer) = socket.reader.read(Vec::with_capacity(16)).await;
        assert_eq!((read.unwrap(), &buffer[..]), (5, &b"after"[..]));
        assert_eq!(client.join().unwrap(), b"before");
    });
}

#[test]
fn a_write_larger_than_the_sockets_buffer_arrives_whole() {
    const LENGTH: usize = 8 << 20;
    on_each_ring(|listener, address, _| async move {
        let client = thread::spawn(move || {
            let mut client = Plain::connect(address).unwrap();
            let mut all = Vec::new();
            client.read_to_end(&mut all).unwrap();
            all
        });
        let (mut socket, _) = listener.accept().await.unwrap();
        let sent: Vec<u8> = (0..LENGTH).map(|at| (at % 251) as u8).collect();
        let (written, sent) = socket.writer.write_all(sent).await;
        written.unwrap();
        socket.closer().end();
        drop(socket);
        ring::sleep_ms(1).await;
        assert!(client.join().unwrap() == sent, "the bytes differ");
    });
}

#[test]
fn a_refused_dial_is_an_error_of_the_upstream_and_not_of_this_host() {
    on_each_ring(|listener, address, place| async move {
        listener.stop_handle().stop();
        drop(listener);
        ring::sleep_ms(5).await;
        let netns = Arc::new(OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net").unwrap()));
        let options =
            SocketOptions { mark: 0, local_congestion: None, ipv6: true, chosen: Options::default() };
        let dial =
            Dial { place: &place, netns: &netns, options: &options, source: None, local: true, ms_max: 1000 };
        let refused = dial.connect(address).await.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert!(!is_local(&refused));
    });
}

#[test]
fn stopping_a_listener_ends_its_accept() {
    on_each_ring(|listener, _, _| async move {
        let stop = listener.stop_handle();
        ring::spawn(
            async move {
                ring::sleep_ms(5).await;
                stop.stop();
            },
            |_| (),
        );
        assert!(listener.accept().await.is_err());
    });
}
