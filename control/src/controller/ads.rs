//! The discovery service's streams. A stream is a response body that, whenever the connection has room for more, takes
//! requests and editions, hands them to the [`Subscriber`], and gives out what it answers. So a slow client holds one
//! piece of a response and no queue, and its requests wait in the connection's window.

mod message;
mod place;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_stream::Stream;
use tokio_stream::wrappers::WatchStream;
use tonic::codec::Codec;
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;
use tracing::{debug, error, info, warn};

use super::stats::{Counted, Loss, Stats};
use super::subscriber::{Client, Content, Event, Subscriber};
use super::world::{Edition, ResourceType, World};
use crate::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
pub(crate) use message::Piece;
use message::{Message, TooLong};
use place::{Place, Places};

/// Bytes of a request: a client that comes back names every resource that it holds.
const REQUEST_LEN_MAX: usize = 64 * 1024 * 1024;
/// Streams that are sent everything at the same time.
const FULL_PUSHES_MAX: usize = 16;
/// How long a stream may keep its place among them: a client that does not read keeps nobody else out.
const FULL_PUSH_PLACE_MAX: Duration = Duration::from_secs(30);
/// Inputs that a stream takes in a row before others have their turn.
const INPUTS_MAX: usize = 64;
/// Characters of a client's reason for refusing a response that are logged.
const REASON_LEN_MAX: usize = 2048;

/// The discovery service. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Ads {
    world: World,
    stats: Arc<Stats>,
    places: Places,
    /// Turns true when every stream must end.
    closing: watch::Receiver<bool>,
}

impl Ads {
    pub(crate) fn new(world: World, stats: Arc<Stats>, closing: watch::Receiver<bool>) -> Self {
        let places = Places::new(FULL_PUSHES_MAX, FULL_PUSH_PLACE_MAX);
        Self { world, stats, places, closing }
    }

    /// Begins a stream with a client's requests.
    pub(crate) fn stream<B>(&self, requests: B, terms: Terms) -> AdsBody
    where
        B: Body + Send + 'static,
        B::Error: Into<tonic::codegen::StdError>,
    {
        let decoder = ProstCodec::<DeltaDiscoveryResponse, DeltaDiscoveryRequest>::default().decoder();
        let editions = self.world.subscribe();
        let subscriber = Subscriber::new(editions.borrow().clone());
        AdsBody {
            requests: Streaming::new_request(decoder, requests, None, Some(REQUEST_LEN_MAX)),
            editions: WatchStream::from_changes(editions),
            closing: WatchStream::from_changes(self.closing.clone()),
            subscriber,
            ads: self.clone(),
            place: Place::None,
            making: None,
            sending: None,
            end: None,
            counted: vec![self.stats.streams.enter()],
            age: terms.ends.map(|ends| Box::pin(sleep_until(ends))),
            share: terms.share,
        }
    }
}

/// A response, ready to be sent.
struct Made {
    kind: Option<ResourceType>,
    /// Whether it carries everything as it is in the table.
    full: bool,
    message: Result<Message, TooLong>,
}

fn make(subscriber: &mut Subscriber, placed: bool) -> Option<Made> {
    let push = subscriber.poll_response(placed)?;
    let kind = ResourceType::of(&push.type_url);
    let full = matches!(push.content, Content::Everything(_));
    Some(Made { kind, full, message: Message::new(push) })
}

/// What a stream may have of its connection.
#[derive(Debug, Default)]
pub(crate) struct Terms {
    /// When it ends, whatever its client does.
    pub(crate) ends: Option<Instant>,
    /// Its share of what its connection may have.
    pub(crate) share: Option<OwnedSemaphorePermit>,
}

/// One stream's responses.
pub(crate) struct AdsBody {
    requests: Streaming<DeltaDiscoveryRequest>,
    editions: WatchStream<Arc<Edition>>,
    closing: WatchStream<bool>,
    subscriber: Subscriber,
    ads: Ads,
    place: Place,
    /// The subscriber, away while its response is made.
    making: Option<JoinHandle<(Subscriber, Option<Made>)>>,
    sending: Option<Message>,
    /// How the stream ends, and whether that has been said.
    end: Option<(Status, bool)>,
    /// What this stream counts as.
    counted: Vec<Counted>,
    age: Option<Pin<Box<Sleep>>>,
    /// Given back when the stream ends.
    share: Option<OwnedSemaphorePermit>,
}

impl Body for AdsBody {
    type Data = Piece;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, Infallible>>> {
        let this = self.get_mut();
        for _ in 0..INPUTS_MAX {
            if let Some(message) = &mut this.sending {
                let piece = message.next();
                if message.is_finished() {
                    // At once: the stream may not be polled again before its client has read.
                    this.sending = None;
                    this.place = Place::None;
                }
                return Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))));
            }
            if let Some((status, said)) = &mut this.end {
                this.share = None;
                let trailers = (!std::mem::replace(said, true)).then(|| trailers(status));
                return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
            }
            if this.making.is_some() {
                ready!(this.poll_made(context));
            } else if !this.poll_response(context) {
                ready!(this.poll_input(context));
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl AdsBody {
    /// Begins to send or to make the next response, if one is due and may be sent now.
    fn poll_response(&mut self, context: &mut Context<'_>) -> bool {
        let placed = self.poll_place(context).is_ready();
        if self.subscriber.is_costly(placed) {
            let unused = Subscriber::new(Arc::default());
            let mut subscriber = std::mem::replace(&mut self.subscriber, unused);
            self.making = Some(tokio::task::spawn_blocking(move || {
                let made = make(&mut subscriber, placed);
                (subscriber, made)
            }));
            return true;
        }
        match make(&mut self.subscriber, placed) {
            Some(made) => self.send(made),
            None => return false,
        }
        true
    }

    /// Takes back the subscriber with the response that was made away from here.
    fn poll_made(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(making) = &mut self.making else { return Poll::Ready(()) };
        let made = ready!(Pin::new(making).poll(context));
        self.making = None;
        match made {
            Ok((subscriber, made)) => {
                self.subscriber = subscriber;
                if let Some(made) = made {
                    self.send(made);
                }
            }
            Err(error) => {
                error!(%error, "a response could not be made; its stream ends");
                self.finish(Loss::Defect, Status::internal("a response could not be made"));
            }
        }
        Poll::Ready(())
    }

    fn send(&mut self, made: Made) {
        match made.message {
            Ok(message) => {
                if let Some(stats) = made.kind.map(|kind| self.ads.stats.of(kind)) {
                    stats.pushes.one();
                    stats.full_pushes.add(u64::from(made.full));
                    stats.bytes.add(message.len() as u64);
                }
                self.sending = Some(message);
            }
            Err(error) => self.finish(Loss::TooLong, Status::resource_exhausted(error.to_string())),
        }
    }

    /// Ready when everything may be sent. Whoever does not want it has no place, and waits for none.
    fn poll_place(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.subscriber.wants_everything() {
            return self.place.poll(&self.ads.places, context);
        }
        self.place = Place::None;
        Poll::Pending
    }

    /// Whether requests may be taken. Before the source has been read, and while a client that reported what it holds
    /// waits for its place, they wait in the connection's window, which holds the client back.
    fn takes_requests(&self) -> bool {
        self.subscriber.is_known() && !(self.subscriber.is_laden() && matches!(self.place, Place::Waiting(_)))
    }

    /// Takes one input; pending when there is none.
    fn poll_input(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.takes_requests()
            && let Poll::Ready(request) = Pin::new(&mut self.requests).poll_next(context)
        {
            match request {
                Some(Ok(request)) => self.handle_request(request),
                Some(Err(status)) => self.handle_failure(status),
                // The client has nothing more to ask, and will acknowledge nothing.
                None => self.end = Some((Status::ok(""), false)),
            }
            return Poll::Ready(());
        }
        if let Poll::Ready(Some(edition)) = Pin::new(&mut self.editions).poll_next(context) {
            self.subscriber.handle_edition(edition);
            return Poll::Ready(());
        }
        if let Poll::Ready(Some(true) | None) = Pin::new(&mut self.closing).poll_next(context) {
            self.finish(Loss::Shutdown, Status::unavailable("the control plane is shutting down"));
            return Poll::Ready(());
        }
        if let Some(age) = &mut self.age
            && age.as_mut().poll(context).is_ready()
        {
            self.finish(
                Loss::Age,
                Status::unavailable("the stream or its credentials are too old; connect again"),
            );
            return Poll::Ready(());
        }
        Poll::Pending
    }

    fn handle_request(&mut self, request: DeltaDiscoveryRequest) {
        let event = match self.subscriber.handle_request(request) {
            Ok(event) => event,
            Err(violation) => {
                let client = self.client();
                warn!(client, reason = %violation, "a subscriber broke the protocol; its stream ends");
                return self.finish(Loss::Violation, Status::invalid_argument(violation.to_string()));
            }
        };
        let (client, stats) = (self.client(), &self.ads.stats);
        match event {
            Event::Subscribed(kind) => {
                let node = self.subscriber.client().and_then(|client| client.node.clone());
                info!(client, node = node.as_deref(), kind = kind.label(), "subscribed");
                let counted = stats.of(kind).subscribers.enter();
                self.counted.push(counted);
            }
            Event::Acknowledged(kind) => stats.of(kind).acknowledged.one(),
            Event::Refused(kind, reason) => {
                stats.of(kind).refused.one();
                let reason: String = reason.chars().take(REASON_LEN_MAX).collect();
                warn!(client, kind = kind.label(), reason, "a subscriber refused resources");
            }
            Event::Unknown(type_url) => {
                debug!(client, type_url, "a subscription to a type that is not served")
            }
            Event::Stale => debug!(client, "an answer to a response that does not wait for one"),
            Event::Changed => {}
        }
    }

    fn handle_failure(&mut self, status: Status) {
        // What tonic cannot decode it blames on itself.
        let unreadable = matches!(status.code(), Code::Internal | Code::OutOfRange | Code::ResourceExhausted);
        if !unreadable {
            debug!(client = self.client(), reason = status.message(), "a stream was cut off");
            return self.finish(Loss::Transport, status);
        }
        let reason = format!("a request cannot be read: {}", status.message());
        warn!(client = self.client(), reason, "a subscriber broke the protocol; its stream ends");
        self.finish(Loss::Unreadable, Status::invalid_argument(reason));
    }

    fn finish(&mut self, why: Loss, status: Status) {
        self.ads.stats.lost(why).one();
        self.end = Some((status, false));
    }

    fn client(&self) -> &str {
        self.subscriber.client().map_or("(unnamed)", |Client { id, .. }| id)
    }
}

impl Drop for AdsBody {
    /// Whoever is let go of before the end was lost by the transport.
    fn drop(&mut self) {
        if self.end.is_none() {
            self.ads.stats.lost(Loss::Transport).one();
        }
    }
}

/// The end of a stream.
fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        // Only a message that is no header's text fails, and then the code is there.
        trailers.remove(Status::GRPC_MESSAGE);
    }
    trailers
}

/// The empty half of a piece.
pub(crate) fn piece(bytes: Bytes) -> Piece {
    bytes::Buf::chain(Bytes::new(), bytes)
}
