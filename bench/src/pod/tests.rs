//! Every kind of work, tiny, between a client and a server on loopback.

use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::spawn_local;

use super::client::Client;
use super::*;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A server's HTTP and raw ports.
fn server() -> (SocketAddr, SocketAddr) {
    let http = server::listen((LOOPBACK, 0).into()).unwrap();
    let raw = server::listen((LOOPBACK, 0).into()).unwrap();
    let addresses = (http.local_addr().unwrap(), raw.local_addr().unwrap());
    spawn_local(server::run(http, raw));
    addresses
}

/// A server that reads once and then writes `answer` and closes, over and over.
fn stub(answer: &'static [u8]) -> SocketAddr {
    let listener = server::listen((LOOPBACK, 0).into()).unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer).await;
        }
    });
    address
}

/// Nobody listens here.
fn nobody() -> SocketAddr {
    std::net::TcpListener::bind((LOOPBACK, 0)).unwrap().local_addr().unwrap()
}

/// Prepares, measures and finishes.
async fn perform(work: Work) -> Measured {
    let mut client = Client::default();
    assert_eq!(client.follow(Order::Prepare(work)).await, Answer::Ready);
    let Answer::Measured(measured) = client.follow(Order::Measure(0.1)).await else { panic!("not measured") };
    assert_eq!(client.follow(Order::Finish).await, Answer::Ready);
    measured
}

/// Prepares what cannot be; the client's words.
async fn fail(work: Work) -> String {
    match Client::new(Duration::from_millis(100)).follow(Order::Prepare(work)).await {
        Answer::Failed(words) => words,
        other => panic!("{other:?}"),
    }
}

fn requests(targets: Vec<SocketAddr>, bytes: usize, per_second: Option<u32>) -> Work {
    Work::Requests { targets, bytes, connections: 3, per_second }
}

fn samples(measured: &Measured) -> u64 {
    measured.latency_ns.iter().map(|&(_, count)| count).sum()
}

fn is_clean(measured: &Measured) -> bool {
    measured.errors == 0 && measured.first_error.is_none() && measured.seconds > 0.0
}

#[test]
fn requests_of_any_size_are_answered_in_a_closed_loop() {
    local(async {
        let targets = vec![server().0, server().0];
        for bytes in [0, 1, 1024, 300_000] {
            let measured = perform(requests(targets.clone(), bytes, None)).await;
            assert!(is_clean(&measured) && measured.operations > 0, "{bytes}: {measured:?}");
            assert_eq!(measured.bytes, measured.operations * 2 * bytes as u64);
            assert_eq!(samples(&measured), measured.operations);
        }
    })
    .unwrap();
}

#[test]
fn an_open_loop_sends_what_is_due_and_no_more() {
    local(async {
        let mut client = Client::default();
        let work = requests(vec![server().0], 64, Some(1000));
        assert_eq!(client.follow(Order::Prepare(work)).await, Answer::Ready);
        let mut sum = tally::merge(&[]);
        for _ in 0..2 {
            match client.follow(Order::Measure(0.3)).await {
                Answer::Measured(part) => sum = tally::merge(&[sum, part]),
                other => panic!("{other:?}"),
            }
        }
        assert!(sum.errors == 0 && (300..=900).contains(&sum.operations), "{sum:?}");
    })
    .unwrap();
}

#[test]
fn a_request_that_waits_for_a_connection_pays_for_it() {
    local(async {
        // One connection and an answer that never comes: what is due only waits.
        let listener = server::listen((LOOPBACK, 0).into()).unwrap();
        let target = listener.local_addr().unwrap();
        let release = std::rc::Rc::new(tokio::sync::Notify::new());
        let released = std::rc::Rc::clone(&release);
        spawn_local(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut incoming = http::Incoming::new(http::Kind::Request);
            let mut answer = Vec::new();
            http::answer(&mut answer, 0).unwrap();
            for count in 0.. {
                incoming.next(&mut stream).await.unwrap().unwrap();
                if count == 1 {
                    released.notified().await;
                }
                stream.write_all(&answer).await.unwrap();
            }
        });
        let mut client = Client::default();
        let work = Work::Requests { targets: vec![target], bytes: 0, connections: 1, per_second: Some(1000) };
        let began = Instant::now();
        assert_eq!(client.follow(Order::Prepare(work)).await, Answer::Ready);
        let Answer::Measured(held) = client.follow(Order::Measure(0.1)).await else { panic!("not measured") };
        assert_eq!(held.operations, 0);
        release.notify_one();
        let Answer::Measured(freed) = client.follow(Order::Measure(0.1)).await else {
            panic!("not measured")
        };
        assert!(freed.operations > 50, "{freed:?}");
        let slowest = freed.latency_ns.last().unwrap().0;
        assert!(slowest > 90_000_000 && u128::from(slowest) < 2 * began.elapsed().as_nanos(), "{slowest}");
        client.follow(Order::Finish).await;
    })
    .unwrap();
}

#[test]
fn bulk_flows_both_ways() {
    local(async {
        for way in [Way::Up, Way::Down] {
            let measured = perform(Work::Bulk { targets: vec![server().1], way, streams: 2 }).await;
            assert!(is_clean(&measured) && measured.bytes > 0, "{way:?}: {measured:?}");
            assert!(measured.latency_ns.is_empty() && measured.operations == 0);
        }
    })
    .unwrap();
}

#[test]
fn short_connections_are_opened_one_after_the_other() {
    local(async {
        let targets = vec![server().1, server().1];
        let measured = perform(Work::Connects { targets, concurrency: 80 }).await;
        assert!(is_clean(&measured) && measured.operations > 0, "{measured:?}");
        assert_eq!(samples(&measured), measured.operations);
    })
    .unwrap();
}

#[test]
fn a_visit_reaches_each_target_once_each_time() {
    local(async {
        let targets = vec![server().1, nobody(), server().1];
        let mut client = Client::default();
        assert_eq!(client.follow(Order::Prepare(Work::Visit { targets })).await, Answer::Ready);
        for _ in 0..2 {
            let Answer::Measured(measured) = client.follow(Order::Measure(0.0)).await else { panic!() };
            assert_eq!((measured.operations, measured.errors, samples(&measured)), (2, 1, 2));
        }
    })
    .unwrap();
}

#[test]
fn idle_connections_stay_open_and_none_are_fine_too() {
    local(async {
        for connections in [0, 100] {
            let measured = perform(Work::Idle { targets: vec![server().1], connections }).await;
            assert!(is_clean(&measured) && measured.bytes == 0, "{measured:?}");
            assert_eq!(measured.operations, connections as u64);
        }
    })
    .unwrap();
}

#[test]
fn finishing_closes_every_connection() {
    local(async {
        let listener = server::listen((LOOPBACK, 0).into()).unwrap();
        let target = listener.local_addr().unwrap();
        let peer = spawn_local(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_exact(&mut [0; 2]).await.unwrap();
            stream.write_all(b"x").await.unwrap();
            stream.read(&mut [0]).await.unwrap()
        });
        perform(Work::Idle { targets: vec![target], connections: 1 }).await;
        assert_eq!(peer.await.unwrap(), 0);
    })
    .unwrap();
}

#[test]
fn what_never_becomes_ready_is_named() {
    local(async {
        let target = nobody();
        let works = [
            requests(vec![target], 1, None),
            Work::Bulk { targets: vec![target], way: Way::Up, streams: 3 },
            Work::Connects { targets: vec![target], concurrency: 3 },
            Work::Idle { targets: vec![target], connections: 3 },
        ];
        for work in works {
            let words = fail(work).await;
            let expected = format!("{target}: 0 of 3 connections are ready");
            assert!(words.starts_with(&expected) && words.contains("refused"), "{words}");
        }
        assert!(fail(requests(vec![target], 1, Some(0))).await.contains("rate"));
        assert!(fail(requests(Vec::new(), 1, None)).await.contains("target"));
        let unprepared = Client::default().follow(Order::Measure(1.0)).await;
        assert_eq!(unprepared, Answer::Failed("nothing is prepared".into()));
    })
    .unwrap();
}

#[test]
fn broken_answers_are_errors_with_words() {
    local(async {
        for (answer, words) in [
            (&b""[..], "closed by the peer"),
            (b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", "answered 503"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab", "answered 2 bytes instead of 1"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\na", "closed within a message"),
            (b"nonsense\r\n\r\n", "a broken head"),
        ] {
            let said = fail(requests(vec![stub(answer)], 1, None)).await;
            assert!(said.contains(words), "{said}");
        }
        let work = Work::Bulk { targets: vec![stub(b"")], way: Way::Down, streams: 1 };
        assert!(fail(work).await.contains("closed by the peer"));
    })
    .unwrap();
}

#[test]
fn connections_that_break_are_counted_and_reopened() {
    local(async {
        let one = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n";
        let measured = perform(requests(vec![stub(one)], 1, None)).await;
        assert!(measured.errors > 1, "{measured:?}");
        assert!(measured.first_error.is_some());
        let measured = perform(Work::Bulk { targets: vec![stub(b"abc")], way: Way::Down, streams: 1 }).await;
        assert!(measured.errors > 1 && measured.bytes > 0, "{measured:?}");
        let measured = perform(Work::Idle { targets: vec![stub(b"a")], connections: 1 }).await;
        assert!(measured.errors > 1, "{measured:?}");
    })
    .unwrap();
}

#[test]
fn an_answer_that_ends_its_connection_is_no_error() {
    local(async {
        let last = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\na";
        let measured = perform(requests(vec![stub(last)], 1, None)).await;
        assert!(is_clean(&measured), "{measured:?}");
    })
    .unwrap();
}

#[test]
fn a_server_answers_chunked_requests_and_those_of_proxies() {
    local(async {
        let mut stream = TcpStream::connect(server().0).await.unwrap();
        let requests = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nx-request-id: 1\r\nhost: a\r\n\r\n\
            2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n\
            POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc";
        stream.write_all(requests.as_bytes()).await.unwrap();
        let mut answers = http::Incoming::new(http::Kind::Answer);
        let first = answers.next(&mut stream).await.unwrap().unwrap();
        let second = answers.next(&mut stream).await.unwrap().unwrap();
        assert_eq!((first.status, first.body, second.status, second.body), (200, 5, 200, 3));
        assert_eq!(answers.next(&mut stream).await.unwrap(), None);
    })
    .unwrap();
}

#[test]
fn orders_and_answers_survive_the_wire() {
    let targets = vec![nobody()];
    for order in [Order::Prepare(requests(targets, 1, Some(5))), Order::Measure(0.5), Order::Finish] {
        let line = serde_json::to_string(&order).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<Order>(&line).unwrap(), order);
    }
}
