//! Many requests on connections that stay open, each answer checked to be that of its own request.

use std::io;
use std::net::SocketAddr;
use std::thread;

use halo::lab::http::{Connection, Message};
use halo::lab::netns::Netns;
use halo::lab::process::wait_for;

use crate::rig::SOON;
use crate::socket::PATIENCE;

/// Sends `count` requests over `connections` connections to the lab's HTTP server `name`; panics unless every answer
/// is right.
pub fn run(netns: &Netns, target: SocketAddr, name: &str, (count, connections): (usize, usize)) {
    let faults: Vec<String> = thread::scope(|scope| {
        let drive = |nth| move || drive(netns, target, name, (nth, count / connections));
        let threads: Vec<_> = (0..connections).map(|nth| scope.spawn(drive(nth))).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap().err()).map(|e| e.to_string()).collect()
    });
    assert!(faults.is_empty(), "{} of {connections} connections to {target}: {faults:?}", faults.len());
}

fn drive(netns: &Netns, target: SocketAddr, name: &str, (nth, count): (usize, usize)) -> io::Result<()> {
    let open = || Connection::open(target, PATIENCE);
    let mut connection = netns.within(open).map_err(io::Error::other)??;
    for request in 0..count {
        let (path, marker) = (format!("/c{nth}/r{request}"), format!("m{}", nth * 1_000_003 + request));
        let answer = connection.request("GET", &path, &[("x-marker".into(), marker.clone())])?;
        let text = answer.text();
        let right = text.starts_with(&format!("{name} answers "))
            && text.ends_with(&format!(" {path} {marker}\n"))
            && answer.status() == Some(200);
        if !right {
            return Err(io::Error::other(format!("request {request}: {} {text}", answer.start)));
        }
    }
    Ok(())
}

/// One request on a connection of its own: the answer's body.
pub fn one(netns: &Netns, target: SocketAddr) -> io::Result<String> {
    answer(netns, target).map(|answer| answer.text())
}

/// One request on a connection of its own: the answer, which says 200.
pub fn answer(netns: &Netns, target: SocketAddr) -> io::Result<Message> {
    answer_of(netns, target, "/")
}

/// As [`answer`], for a path.
pub fn answer_of(netns: &Netns, target: SocketAddr, path: &str) -> io::Result<Message> {
    let ask = || Connection::open(target, PATIENCE)?.request("GET", path, &[]);
    let answer = netns.within(ask).map_err(io::Error::other)??;
    match answer.status() {
        Some(200) => Ok(answer),
        _ => Err(io::Error::other(answer.start)),
    }
}

/// As [`answer`], again and again until there is one.
pub fn await_answer(netns: &Netns, target: SocketAddr) -> Message {
    wait_for(&format!("{target} answering {}", netns.name()), SOON, || {
        answer(netns, target).map_err(|error| error.to_string())
    })
    .unwrap()
}
