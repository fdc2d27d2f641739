//! Our client against the server of the `h2` crate, which echoes.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::*;

/// What the client does.
struct Load {
    requests: usize,
    concurrent: usize,
    /// Bytes of each request.
    len: usize,
    /// Bytes of each DATA frame at most.
    message_max: usize,
    /// Whether small frames are held back.
    pace: bool,
}

#[derive(Default)]
struct Job {
    answered: bool,
    sent: usize,
    end_sent: bool,
    received: usize,
}

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
enum Finish {
    AllEchoed,
    GoneAway(ErrorCode),
}

/// Echoes each stream; `lag` is how many turns of the runtime a stream takes to look at its next message.
async fn serve(io: DuplexStream, builder: ::h2::server::Builder, lag: usize) {
    let Ok(mut connection) = builder.handshake::<_, Bytes>(io).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(echo(request, respond, lag));
    }
}

async fn echo(
    request: http::Request<::h2::RecvStream>,
    mut respond: ::h2::server::SendResponse<Bytes>,
    lag: usize,
) -> Result<(), ::h2::Error> {
    assert_eq!(request.method(), http::Method::CONNECT);
    assert_eq!(request.uri().authority().unwrap(), "10.0.0.1:80");
    assert_eq!(request.headers()["baggage"], "k8s.cluster.name=Kubernetes");
    let mut send = respond.send_response(http::Response::new(()), false)?;
    let mut body = request.into_body();
    while let Some(bytes) = body.data().await {
        let bytes = bytes?;
        for _ in 0..lag {
            tokio::task::yield_now().await;
        }
        body.flow_control().release_capacity(bytes.len())?;
        send.send_data(bytes, false)?;
    }
    send.send_data(Bytes::new(), true)
}

struct Client {
    pump: Pump,
    jobs: BTreeMap<StreamId, Job>,
    settled: bool,
    next: StreamId,
    opened: usize,
    done: usize,
    gone: Option<ErrorCode>,
}

impl Client {
    async fn run(mut self, load: &Load) -> Finish {
        let mut input = Vec::new();
        while self.done < load.requests {
            self.open(load);
            self.send(load);
            let open = self.pump.turn(&mut input).await;
            self.receive(&input, load);
            if let Some(code) = self.gone {
                return Finish::GoneAway(code);
            }
            assert!(open, "the server closed after {} requests", self.done);
        }
        assert_eq!(self.pump.session.streams(), 0);
        Finish::AllEchoed
    }

    fn open(&mut self, load: &Load) {
        // Streams beyond a limit that is not known yet would be refused.
        while self.settled && self.opened < load.requests && self.jobs.len() < load.concurrent {
            match self.pump.session.open(&connect_request()) {
                Ok(stream) => self.jobs.insert(stream, Job::default()),
                Err(OpenError::StreamLimit) => return,
                Err(error) => panic!("{error}"),
            };
            self.opened += 1;
        }
    }

    fn send(&mut self, load: &Load) {
        // In turn, so that a stream which was held is not held again behind the same others.
        let start = self.next;
        let in_turn = |stream: &StreamId| (*stream < start, *stream);
        let mut streams: Vec<StreamId> = self.jobs.keys().copied().collect();
        streams.sort_by_key(in_turn);
        for stream in &streams {
            let Some(job) = self.jobs.get_mut(stream) else { continue };
            if !job.answered || job.end_sent {
                continue;
            }
            let count_max = load.message_max.min(self.pump.session.sendable(*stream));
            let until = load.len.min(job.sent + count_max);
            let bytes: Vec<u8> = (job.sent..until).map(|place| pattern(stream.0, place)).collect();
            let (count, ended) = self.pump.send(*stream, &bytes, until == load.len, load.pace);
            job.sent += count;
            job.end_sent = ended;
            if count > 0 {
                self.next = StreamId(stream.0 + 1);
            }
        }
    }

    fn receive(&mut self, input: &[u8], load: &Load) {
        let events = feed(&mut self.pump.session, input).unwrap();
        for event in events {
            match event {
                Event::Response { stream, response, end_stream: false } => {
                    assert_eq!(response.status, 200);
                    self.jobs.get_mut(&stream).unwrap().answered = true;
                }
                Event::Data { stream, bytes } => {
                    let job = self.jobs.get_mut(&stream).unwrap();
                    for byte in bytes {
                        assert_eq!(*byte, pattern(stream.0, job.received));
                        job.received += 1;
                    }
                    self.pump.session.consumed(stream, bytes.len(), 0);
                }
                Event::End { stream } => {
                    assert_eq!(self.jobs.remove(&stream).unwrap().received, load.len);
                    self.done += 1;
                }
                Event::GoAway { code, .. } => self.gone = Some(code),
                Event::Settings => self.settled = true,
                other => panic!("{other:?}"),
            }
        }
    }
}

async fn run(seed: u64, load: &Load, builder: ::h2::server::Builder, lag: usize) -> Finish {
    let random = &mut Random::new(seed);
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let server = tokio::spawn(serve(theirs, builder, lag));
    let config = random_config(random);
    let piece_max = [13, 100, 3_000, 256 * 1024][random.below(4)];
    let pump = Pump::new(ours, HboneSession::client(config, 0), piece_max);
    let client = Client {
        pump,
        jobs: BTreeMap::new(),
        settled: false,
        next: StreamId(0),
        opened: 0,
        done: 0,
        gone: None,
    };
    let run = tokio::time::timeout(RUN_MAX, client.run(load)).await;
    let finish = run.unwrap_or_else(|_| panic!("seed {seed} is stuck"));
    server.await.unwrap();
    finish
}

#[tokio::test]
async fn a_server_of_the_h2_crate_echoes_all_bytes_whatever_the_windows() {
    for seed in 0..32 {
        let random = &mut Random::new(seed + 1_000);
        let mut choose = |choices: &[u32]| choices[random.below(choices.len())];
        let mut builder = ::h2::server::Builder::new();
        builder
            .initial_window_size(choose(&[10, 1_000, 65_535, 1 << 20]))
            .initial_connection_window_size(choose(&[65_535, 16 << 20]))
            .max_frame_size(choose(&[16_384, 1 << 20]))
            .max_concurrent_streams(choose(&[1, 5, 100]))
            .header_table_size(choose(&[0, 4_096]));
        let message_max = choose(&[300, 20_000, 100_000]) as usize;
        let load = Load { requests: 20, concurrent: 10, len: 8_000, message_max, pace: true };
        assert_eq!(run(seed, &load, builder, 0).await, Finish::AllEchoed, "seed {seed}");
    }
}

#[tokio::test]
async fn ten_thousand_requests_run_over_one_session() {
    let mut builder = ::h2::server::Builder::new();
    builder.max_concurrent_streams(100);
    let load = Load { requests: 10_000, concurrent: 100, len: 20, message_max: 20, pace: true };
    assert_eq!(run(3, &load, builder, 0).await, Finish::AllEchoed);
}

/// One-byte messages on many slow streams, against a server with default windows and so the least of budgets.
fn one_byte_messages(pace: bool) -> (Load, ::h2::server::Builder) {
    let mut builder = ::h2::server::Builder::new();
    builder.max_concurrent_streams(400);
    (Load { requests: 400, concurrent: 400, len: 30, message_max: 1, pace }, builder)
}

#[tokio::test]
async fn one_byte_messages_on_many_slow_streams_do_not_exhaust_the_budget_of_the_h2_crate() {
    for seed in 0..4 {
        let (load, builder) = one_byte_messages(true);
        assert_eq!(run(seed, &load, builder, 3).await, Finish::AllEchoed, "seed {seed}");
    }
}

#[tokio::test]
async fn without_the_hold_the_h2_crate_ends_the_session() {
    let (load, builder) = one_byte_messages(false);
    assert_eq!(run(3, &load, builder, 3).await, Finish::GoneAway(ErrorCode::EnhanceYourCalm));
}
