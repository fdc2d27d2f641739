use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::testing::DEADLINE;

/// More than the buffers of both ends hold, as answers of a large mesh are.
const LARGE: usize = 16 << 20;

#[derive(Clone)]
struct Echo;

impl Service for Echo {
    const DEADLINE: Duration = Duration::from_millis(300);

    async fn answer(&self, request: Request) -> Answer {
        match request.path.as_str() {
            "/large" => Answer::text(StatusCode::OK, "x".repeat(LARGE)),
            "/never" => pending().await,
            path => Answer::text(StatusCode::OK, path),
        }
    }
}

async fn start() -> SocketAddr {
    let (listener, address) = listen("test", "127.0.0.1:0".parse().unwrap()).await.unwrap();
    tokio::spawn(serve(listener, Echo));
    address
}

async fn ask(address: SocketAddr, requests: &[&str]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    for path in requests {
        let request = format!("GET {path} HTTP/1.1\r\nHost: halo\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
    }
    stream
}

/// What comes until the connection ends, in order or by a reset.
async fn rest(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    drop(timeout(DEADLINE, stream.read_to_end(&mut answer)).await.expect("the connection does not end"));
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn a_connection_ends_with_its_first_answer() {
    let address = start().await;
    let answer = rest(ask(address, &["/one"]).await).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n/one"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    let answer = rest(ask(address, &["/one", "/two", "/three"]).await).await;
    assert!(answer.matches("HTTP/1.1 200 OK").count() <= 1, "{answer}");
}

#[tokio::test]
async fn clients_that_send_and_never_read_keep_nobody_out() {
    let address = start().await;
    let mut idle = Vec::new();
    for number in 0..CLIENTS_MAX {
        let path = if number % 16 == 0 { "/large" } else { "/never" };
        idle.push(ask(address, &[path, path, path]).await);
    }
    let answer = rest(ask(address, &["/ready"]).await).await;
    assert!(answer.ends_with("\r\n\r\n/ready"), "{answer}");
}

#[tokio::test]
async fn the_oldest_client_that_says_nothing_gives_way_to_the_next_and_one_that_is_served_does_not() {
    let places = Arc::new(Semaphore::new(2));
    let (listener, address) = listen("test", "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (release, released) = tokio::sync::watch::channel(false);
    let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
    let accepting = places.clone();
    tokio::spawn(async move { accept(&listener, Held { begun, released }, &accepting).await });
    let served = ask(address, &["/held"]).await;
    timeout(DEADLINE, begins.recv()).await.unwrap();
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    // The header deadline is not what ends them: the next one is served while they would still have time.
    for stream in silent.drain(..2) {
        assert_eq!(rest(stream).await, "");
    }
    let next = ask(address, &["/next"]).await;
    timeout(DEADLINE, begins.recv()).await.unwrap();
    assert_eq!(rest(silent.remove(0)).await, "");
    release.send(true).unwrap();
    assert!(rest(served).await.ends_with("\r\n\r\n/held") && rest(next).await.ends_with("\r\n\r\n/next"));
}

/// Tells of each request, and answers it once it may.
#[derive(Clone)]
struct Held {
    begun: tokio::sync::mpsc::UnboundedSender<()>,
    released: tokio::sync::watch::Receiver<bool>,
}

impl Service for Held {
    async fn answer(&self, request: Request) -> Answer {
        self.begun.send(()).unwrap();
        drop(self.released.clone().wait_for(|released| *released).await);
        Answer::text(StatusCode::OK, request.path)
    }
}
