//! The client of the `h2` crate against our server, which echoes.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::*;

#[derive(Default)]
struct Job {
    pending: Vec<u8>,
    ended: bool,
}

/// Echoes each stream until the client closes the connection. Credit returns when the echo is sent.
async fn serve(mut pump: Pump) {
    let mut jobs: BTreeMap<StreamId, Job> = BTreeMap::new();
    let mut input = Vec::new();
    while pump.turn(&mut input).await {
        for event in feed(&mut pump.session, &input).unwrap() {
            match event {
                Event::Request { stream, request, end_stream } => {
                    assert!(request.method_is_connect);
                    assert_eq!(request.authority.as_deref(), Some("10.0.0.1:80"));
                    pump.session.respond(stream, &response(200), false);
                    jobs.insert(stream, Job { ended: end_stream, ..Job::default() });
                }
                Event::Data { stream, bytes } => {
                    jobs.get_mut(&stream).unwrap().pending.extend_from_slice(bytes);
                }
                Event::End { stream } => jobs.get_mut(&stream).unwrap().ended = true,
                Event::Reset { stream, .. } => drop(jobs.remove(&stream)),
                Event::Settings | Event::GoAway { .. } => {}
                other @ Event::Response { .. } => panic!("{other:?}"),
            }
        }
        jobs.retain(|stream, job| {
            let (count, ended) = pump.send(*stream, &job.pending, job.ended, true);
            job.pending.drain(..count);
            pump.session.consumed(*stream, count, 0);
            !ended
        });
    }
    assert_eq!(pump.session.streams.len(), 0);
}

/// Sends `len` bytes in pieces, and checks the echo.
async fn exchange(mut sender: ::h2::client::SendRequest<Bytes>, len: usize, piece: usize) {
    sender = sender.ready().await.unwrap();
    let request = http::Request::connect("10.0.0.1:80").header("baggage", "a=b").body(()).unwrap();
    let (response, mut send) = sender.send_request(request, false).unwrap();
    let id = u32::from(send.stream_id());
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    let write = async move {
        let mut sent = 0;
        while sent < len {
            let until = len.min(sent + piece);
            let bytes: Vec<u8> = (sent..until).map(|place| pattern(id, place)).collect();
            send.send_data(bytes.into(), until == len).unwrap();
            sent = until;
            tokio::task::yield_now().await;
        }
    };
    let read = async move {
        let mut received = 0;
        while let Some(bytes) = body.data().await {
            let bytes = bytes.unwrap();
            for byte in &bytes {
                assert_eq!(*byte, pattern(id, received));
                received += 1;
            }
            // The stream may have ended meanwhile, and its credit returned.
            let _ = body.flow_control().release_capacity(bytes.len());
        }
        assert_eq!(received, len);
    };
    tokio::join!(write, read);
}

async fn run(seed: u64, builder: ::h2::client::Builder, requests: usize, (len, piece): (usize, usize)) {
    let random = &mut Random::new(seed);
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let piece_max = [13, 100, 3_000, 256 * 1024][random.below(4)];
    let session = HboneSession::server(random_config(random), 0);
    let server = tokio::spawn(serve(Pump::new(ours, session, piece_max)));
    let (sender, connection) = builder.handshake::<_, Bytes>(theirs).await.unwrap();
    let connection = tokio::spawn(connection);
    // Few enough at once that a client which does not know the limit yet is not refused for flooding.
    let workers = (0..20).map(|_| {
        let sender = sender.clone();
        tokio::spawn(async move {
            for _ in 0..requests / 20 {
                exchange(sender.clone(), len, piece).await;
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        let run = tokio::time::timeout(RUN_MAX, worker).await;
        run.unwrap_or_else(|_| panic!("seed {seed} is stuck")).unwrap();
    }
    drop(sender);
    connection.await.unwrap().unwrap();
    server.await.unwrap();
}

#[tokio::test]
async fn a_client_of_the_h2_crate_gets_all_bytes_back_whatever_the_windows() {
    for seed in 0..32 {
        let random = &mut Random::new(seed + 2_000);
        let mut choose = |choices: &[u32]| choices[random.below(choices.len())];
        let mut builder = ::h2::client::Builder::new();
        builder
            .initial_window_size(choose(&[10, 1_000, 65_535, 1 << 20]))
            .initial_connection_window_size(choose(&[65_535, 16 << 20]))
            .max_frame_size(choose(&[16_384, 1 << 20]))
            .header_table_size(choose(&[0, 4_096]))
            .initial_max_send_streams(1)
            .enable_push(false);
        let piece = choose(&[300, 20_000, 100_000]) as usize;
        run(seed, builder, 20, (8_000, piece)).await;
    }
}

#[tokio::test]
async fn a_client_of_the_h2_crate_makes_ten_thousand_requests() {
    let mut builder = ::h2::client::Builder::new();
    builder.initial_max_send_streams(1);
    run(3, builder, 10_000, (20, 20)).await;
}

#[tokio::test]
async fn echoes_of_one_byte_do_not_exhaust_the_budget_of_the_h2_crate() {
    for seed in 0..4 {
        let mut builder = ::h2::client::Builder::new();
        builder.initial_max_send_streams(1);
        run(seed, builder, 400, (50, 1)).await;
    }
}
