//! What a worker does with HTTP: a request after the other on one connection, as soon as it has the last answer, or as
//! they become due.

use std::io;
use std::time::Instant;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::http::{self, Incoming, Kind};
use super::load::{Opening, Worker, closed, within};
use super::pace::Dues;

/// An open connection of a client.
struct Connection {
    stream: TcpStream,
    incoming: Incoming,
    request: Vec<u8>,
    /// Length of a request's body, which is that of its answer.
    length: usize,
}

impl Connection {
    /// Connects.
    async fn open(worker: &Worker, length: usize) -> io::Result<Self> {
        let stream = worker.connect().await?;
        let request = http::request(worker.target, length);
        Ok(Self { stream, incoming: Incoming::new(Kind::Answer), request, length })
    }

    /// One request and its answer; whether the connection can carry another.
    async fn exchange(&mut self) -> io::Result<bool> {
        let exchange = async {
            self.stream.write_all(&self.request).await?;
            self.incoming.next(&mut self.stream).await
        };
        let answer = within(exchange).await?.ok_or_else(closed)?;
        if answer.status != 200 {
            return Err(io::Error::other(format!("answered {}", answer.status)));
        }
        if answer.body != self.length as u64 {
            let problem = format!("answered {} bytes instead of {}", answer.body, self.length);
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        Ok(!answer.close)
    }

    /// Payload of an exchange, both ways, bytes.
    fn payload(&self) -> u64 {
        2 * self.length as u64
    }
}

/// Sends the next request when it has the answer, until the connection ends.
pub(super) async fn closed_loop(worker: &Worker, opening: Opening<'_>, length: usize) -> io::Result<()> {
    let mut connection = Connection::open(worker, length).await?;
    let (mut opening, mut is_open) = (Some(opening), true);
    while is_open {
        let began = Instant::now();
        is_open = connection.exchange().await?;
        if let Some(opening) = opening.take() {
            opening.carried();
        }
        worker.load.tally.done(began, connection.payload());
    }
    Ok(())
}

/// Sends what is due and no other connection has taken, until the connection ends. Latency counts from the due time.
/// While the load is prepared nothing is due, so the worker's first connection sends a request of its own.
pub(super) async fn open_loop(
    worker: &Worker,
    opening: Opening<'_>,
    length: usize,
    dues: &Dues,
) -> io::Result<()> {
    let mut connection = Connection::open(worker, length).await?;
    let mut is_open = true;
    if opening.is_first() {
        is_open = connection.exchange().await?;
    }
    opening.carried();
    while is_open {
        let due = dues.next().await;
        is_open = connection.exchange().await?;
        worker.load.tally.done(due, connection.payload());
    }
    Ok(())
}
