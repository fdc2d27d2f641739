use bytes::{BufMut, BytesMut};
use http_body_util::StreamBody;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::*;
use crate::controller::subscriber::tests::request;
use crate::controller::world::tests::workload;
use crate::testing::DEADLINE;

/// A stream without a connection.
struct Client {
    requests: mpsc::Sender<Result<Frame<Bytes>, Infallible>>,
    body: Pin<Box<AdsBody>>,
}

fn frame(request: &DeltaDiscoveryRequest) -> Frame<Bytes> {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(request.encoded_len() as u32);
    request.encode(&mut framed).unwrap();
    Frame::data(framed.freeze())
}

impl Client {
    async fn new(ads: &Ads, subscribe: &[&str]) -> Self {
        let (requests, queue) = mpsc::channel(4);
        let client = Self {
            requests,
            body: Box::pin(ads.stream(StreamBody::new(ReceiverStream::new(queue)), Terms::default())),
        };
        client.send(&request(subscribe, &[])).await;
        client
    }

    /// A client of everything that comes back with so many names that are gone.
    async fn laden(ads: &Ads, names: usize) -> Self {
        let (requests, queue) = mpsc::channel(4);
        let body = Box::pin(ads.stream(StreamBody::new(ReceiverStream::new(queue)), Terms::default()));
        let client = Self { requests, body };
        let held = (0..names).map(|number| (format!("gone{number}"), "1".to_owned())).collect();
        let first = DeltaDiscoveryRequest { initial_resource_versions: held, ..request(&[], &[]) };
        client.send(&first).await;
        client
    }

    async fn send(&self, request: &DeltaDiscoveryRequest) {
        self.requests.send(Ok(frame(request))).await.unwrap();
    }

    fn poll(&mut self) -> Poll<Option<Frame<Piece>>> {
        let mut context = Context::from_waker(std::task::Waker::noop());
        self.body.as_mut().poll_frame(&mut context).map(|frame| frame.map(|frame| frame.unwrap()))
    }

    async fn frame(&mut self) -> Option<Frame<Piece>> {
        let next = std::future::poll_fn(|context| self.body.as_mut().poll_frame(context));
        tokio::time::timeout(DEADLINE, next).await.expect("no frame in time").map(|frame| frame.unwrap())
    }

    /// The next response with its pieces, acknowledged.
    async fn next(&mut self) -> (DeltaDiscoveryResponse, Vec<Piece>) {
        let (mut bytes, mut pieces) = (BytesMut::new(), Vec::new());
        loop {
            let piece = self.frame().await.expect("the stream ended").into_data().expect("the stream ended");
            bytes.extend_from_slice(piece.first_ref());
            bytes.extend_from_slice(piece.last_ref());
            pieces.push(piece);
            let len = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
            if bytes.len() == len + 5 {
                break;
            }
        }
        let response = DeltaDiscoveryResponse::decode(&bytes[5..]).unwrap();
        let ack = DeltaDiscoveryRequest { response_nonce: response.nonce.clone(), ..request(&[], &[]) };
        self.send(&ack).await;
        (response, pieces)
    }
}

fn ads(workloads: usize) -> (World, watch::Sender<bool>, Ads) {
    let world = World::default();
    world.apply((0..workloads).map(|number| workload(&format!("w{number}"), "10.0.0.1", "n", &[])).collect());
    let (close, closing) = watch::channel(false);
    let ads = Ads::new(world.clone(), Arc::default(), closing);
    (world, close, ads)
}

#[tokio::test]
async fn a_thousand_subscribers_share_the_bytes_of_everything_and_of_a_change() {
    const SUBSCRIBERS: usize = 1000;
    let (world, _close, ads) = ads(1000);
    let (mut clients, mut first) = (Vec::new(), None);
    for _ in 0..SUBSCRIBERS {
        let mut client = Client::new(&ads, &[]).await;
        let (response, pieces) = client.next().await;
        assert_eq!(response.resources.len(), 1000);
        let places: Vec<_> = pieces.iter().map(|piece| piece.last_ref().as_ptr()).collect();
        // Pieces live as long as one is held, so the first client's stay.
        let (_, expected) = first.get_or_insert((pieces, places.clone()));
        assert_eq!(*expected, places, "everything was copied for a subscriber");
        clients.push(client);
    }
    world.apply(vec![workload("w7", "10.0.0.9", "n", &[]), workload("w8", "10.0.0.9", "n", &[])]);
    let mut shared = None;
    for client in &mut clients {
        let (response, pieces) = client.next().await;
        assert_eq!((response.resources.len(), pieces.len()), (2, 1));
        assert!(
            pieces[0].first_ref().len() < 100,
            "a subscriber's own part is {:?}",
            pieces[0].first_ref().len()
        );
        let place = pieces[0].last_ref().as_ptr();
        assert_eq!(*shared.get_or_insert(place), place, "a change was copied for a subscriber");
    }
    let stats = ads.stats.of(ResourceType::Address);
    assert_eq!((stats.subscribers.value(), stats.pushes.total()), (1000, 2000));
    drop(clients);
    assert_eq!(ads.stats.lost(Loss::Transport).total(), SUBSCRIBERS as u64);
    assert_eq!((stats.subscribers.value(), ads.stats.streams.value()), (0, 0));
}

#[tokio::test]
async fn only_so_many_are_sent_everything_at_a_time() {
    let (_world, _close, ads) = ads(1000);
    let mut clients = Vec::new();
    for _ in 0..FULL_PUSHES_MAX {
        let mut client = Client::new(&ads, &[]).await;
        // It takes one piece and stops.
        assert!(client.frame().await.is_some());
        clients.push(client);
    }
    let mut late = Client::new(&ads, &[]).await;
    assert!(late.poll().is_pending());
    let mut on_demand = Client::new(&ads, &["one//Pod/a/w1"]).await;
    assert_eq!(on_demand.next().await.0.resources.len(), 1);
    // Whoever ends leaves its place.
    clients.pop();
    assert_eq!(late.next().await.0.resources.len(), 1000);
}

#[tokio::test]
async fn whoever_turns_to_keys_while_it_waits_leaves_the_queue() {
    let (_world, _close, ads) = ads(1000);
    let mut stalled = Vec::new();
    for _ in 0..FULL_PUSHES_MAX {
        let mut client = Client::new(&ads, &[]).await;
        assert!(client.frame().await.is_some());
        stalled.push(client);
    }
    let mut turned = Vec::new();
    for _ in 0..FULL_PUSHES_MAX {
        let mut client = Client::new(&ads, &[]).await;
        assert!(client.poll().is_pending());
        client.send(&request(&["one//Pod/a/w1"], &["*"])).await;
        assert_eq!(client.next().await.0.resources.len(), 1);
        turned.push(client);
    }
    let mut late = Client::new(&ads, &[]).await;
    assert!(late.poll().is_pending());
    drop(stalled);
    assert_eq!(late.next().await.0.resources.len(), 1000);
}

#[tokio::test]
async fn whoever_comes_back_waits_for_a_place_too_and_is_read_no_further_meanwhile() {
    let (_world, _close, ads) = ads(1000);
    let mut stalled = Vec::new();
    for _ in 0..FULL_PUSHES_MAX {
        let mut client = Client::new(&ads, &[]).await;
        assert!(client.frame().await.is_some());
        stalled.push(client);
    }
    let mut back = Client::laden(&ads, 3).await;
    assert!(back.poll().is_pending());
    for _ in 0..3 {
        back.send(&request(&["one//Pod/a/w1"], &[])).await;
        assert!(back.poll().is_pending());
    }
    assert_eq!(back.requests.capacity(), 1, "requests were taken from a client that waits");
    drop(stalled);
    let (response, _) = back.next().await;
    assert_eq!((response.resources.len(), response.removed_resources.len()), (1000, 3));
}

#[tokio::test]
async fn what_a_client_holds_is_compared_even_if_it_is_much() {
    let (_world, _close, ads) = ads(1000);
    let mut back = Client::laden(&ads, 20_000).await;
    let (response, _) = back.next().await;
    assert_eq!((response.resources.len(), response.removed_resources.len()), (1000, 20_000));
    assert!(back.poll().is_pending());
}

#[tokio::test]
async fn requests_wait_until_there_is_a_mesh() {
    let (world, (_close, closing)) = (World::default(), watch::channel(false));
    let ads = Ads::new(world.clone(), Arc::default(), closing);
    let mut client = Client::laden(&ads, 3).await;
    assert!(client.poll().is_pending());
    assert_eq!(ads.stats.of(ResourceType::Address).subscribers.value(), 0, "a request was taken");
    world.apply(vec![workload("w1", "10.0.0.1", "n", &[])]);
    assert_eq!(client.next().await.0.resources.len(), 1);
}

fn poll(place: &mut Place, places: &Places) -> Poll<()> {
    place.poll(places, &mut Context::from_waker(std::task::Waker::noop()))
}

async fn placed(place: &mut Place, places: &Places) {
    let polled = std::future::poll_fn(|context| place.poll(places, context));
    tokio::time::timeout(DEADLINE, polled).await.expect("the place was never given");
}

#[tokio::test]
async fn whoever_is_sent_everything_and_does_not_read_gives_way_after_a_while() {
    let places = Places::new(1, Duration::from_millis(1));
    let (mut kept, mut next) = (Place::None, Place::None);
    placed(&mut kept, &places).await;
    placed(&mut next, &places).await;
    assert!(poll(&mut kept, &places).is_pending(), "a place that was taken away still counts");
}

#[tokio::test]
async fn a_place_that_is_given_to_a_stream_that_nobody_polls_is_given_on() {
    let places = Places::new(1, Duration::from_millis(1));
    let (mut first, mut stalled, mut last) = (Place::None, Place::None, Place::None);
    placed(&mut first, &places).await;
    assert!(poll(&mut stalled, &places).is_pending());
    drop(first);
    placed(&mut last, &places).await;
}

#[tokio::test]
async fn a_request_that_is_no_message_ends_the_stream_with_its_reason() {
    let (_world, _close, ads) = ads(1);
    let (requests, queue) = mpsc::channel(4);
    let body = ads.stream(StreamBody::new(ReceiverStream::new(queue)), Terms::default());
    let mut client = Client { requests, body: Box::pin(body) };
    // Field 2 of two bytes that are no UTF-8.
    let broken = Bytes::from_static(&[0, 0, 0, 0, 4, 0x12, 2, 0xff, 0xfe]);
    client.requests.send(Ok(Frame::data(broken))).await.unwrap();
    let trailers = client.frame().await.unwrap().into_trailers().expect("no trailers");
    assert_eq!(trailers["grpc-status"], "3");
    assert!(trailers["grpc-message"].to_str().unwrap().starts_with("a%20request%20cannot%20be%20read"));
    assert!(client.frame().await.is_none());
    assert_eq!(ads.stats.lost(Loss::Unreadable).total(), 1);
}

#[tokio::test]
async fn a_client_that_has_nothing_more_to_say_ends_well() {
    let (_world, _close, ads) = ads(1);
    let mut client = Client::new(&ads, &[]).await;
    client.next().await;
    let (unused, _) = mpsc::channel(1);
    client.requests = unused;
    let trailers = client.frame().await.unwrap().into_trailers().expect("no trailers");
    assert_eq!(trailers["grpc-status"], "0");
}
