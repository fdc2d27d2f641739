//! Carries an exchange with the node's servers, over sockets of the pod's namespace that carry the mark.

use std::io;

use halo_core::dns::exchange::{Exchange, Failed, Send};
use halo_core::dns::message::{Message, Protocol, Question};

use super::{Dns, random};
use crate::pod::Pod;
use crate::ring;
use crate::socket::{Datagrams, Dial};
use crate::wake::either;

/// Longest message of a server over TCP that is read; longer ones are left unread.
const REPLY_MAX: usize = u16::MAX as usize;

/// Datagrams taken before other tasks have their turn.
const BATCH_MAX: usize = 32;

/// Asks the servers until one answers.
pub(super) async fn exchange(dns: &Dns, pod: &Pod, question: &Question) -> Result<Message, Failed> {
    let mut exchange = Exchange::new(question.clone(), dns.config.servers.clone(), ring::now_ms());
    loop {
        if let Some(done) = exchange.poll_done() {
            return done.cloned();
        }
        let random = random().ok_or(Failed::NoAnswer)?;
        let Some(send) = exchange.poll_send(random as u16, ring::now_ms()) else { continue };
        if pod.is_gone() {
            return Err(Failed::NoAnswer);
        }
        dns.counters.dns_tries.increment();
        match send.protocol {
            Protocol::Udp => over_udp(dns, pod, &mut exchange, &send).await,
            Protocol::Tcp => over_tcp(dns, pod, &mut exchange, send).await,
        }
        if pod.is_gone() {
            return Err(Failed::NoAnswer);
        }
    }
}

/// Sends one datagram, and hands over what comes back until the exchange wants something else.
async fn over_udp(dns: &Dns, pod: &Pod, exchange: &mut Exchange, send: &Send) {
    let socket = Datagrams::connect(&dns.place, &pod.netns, send.server, &dns.sockets);
    let Ok(socket) = socket.and_then(|socket| socket.send(&send.bytes).map(|()| socket)) else {
        exchange.handle_failed();
        return;
    };
    while let Some(until_ms) = exchange.poll_timeout() {
        let wait_ms = until_ms.saturating_sub(ring::now_ms());
        let came = either(socket.readable(), pod.dns.stopped.next());
        match ring::within_ms(wait_ms.max(1), came).await {
            None => exchange.handle_timeout(ring::now_ms()),
            Some(_) if pod.is_gone() => return,
            Some(_) => {
                if !receive(dns, &socket, exchange) {
                    // Others have their turn: a socket that is always ready would never let go.
                    ring::sleep_ms(1).await;
                }
            }
        }
        // A peer that sends without end does not stop the clock.
        exchange.handle_timeout(ring::now_ms());
    }
}

/// Hands what has come to the exchange; `false` when there may be more than is taken at once.
pub(super) fn receive(dns: &Dns, socket: &Datagrams, exchange: &mut Exchange) -> bool {
    let mut buffer = dns.buffer.borrow_mut();
    for _ in 0..BATCH_MAX {
        match socket.receive(&mut buffer) {
            Ok(length) => {
                if exchange.handle_message(&buffer[..length]) {
                    return true;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => {
                exchange.handle_failed();
                return true;
            }
        }
    }
    false
}

/// Asks over a connection of its own.
async fn over_tcp(dns: &Dns, pod: &Pod, exchange: &mut Exchange, send: Send) {
    let Some(until_ms) = exchange.poll_timeout() else { return };
    let wait_ms = until_ms.saturating_sub(ring::now_ms()).max(1);
    match over_connection(dns, pod, send, wait_ms).await {
        Ok(message) if exchange.handle_message(&message) => {}
        // Nothing else comes on this connection.
        Ok(_) | Err(_) => exchange.handle_failed(),
    }
}

async fn over_connection(dns: &Dns, pod: &Pod, send: Send, wait_ms: u64) -> io::Result<Vec<u8>> {
    let dial = Dial {
        place: &dns.place,
        netns: &pod.netns,
        options: &dns.sockets,
        source: None,
        local: false,
        ms_max: wait_ms,
    };
    let mut socket = dial.connect(send.server).await?;
    let (closer, held) = (socket.closer(), socket.closer());
    let _deadline = dns.timers.after(wait_ms, move || closer.abort());
    let _held = pod.dns.hold(held);
    if pod.is_gone() {
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    let length = u16::try_from(send.bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend(send.bytes);
    socket.writer.write_all(framed).await.0?;
    let mut buffer = Vec::with_capacity(2_048);
    loop {
        let due = buffer.first_chunk().map_or(2, |length| 2 + usize::from(u16::from_be_bytes(*length)));
        if buffer.len() >= due && due > 2 {
            buffer.truncate(due);
            buffer.drain(..2);
            return Ok(buffer);
        }
        if due == 2 && buffer.len() >= 2 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        buffer.reserve((due - buffer.len()).min(REPLY_MAX));
        let (read, kept) = socket.reader.read(buffer).await;
        buffer = kept;
        if read? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}
