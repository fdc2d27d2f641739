//! One stream of the delta protocol: requests out, responses in.
//!
//! It reads gRPC's messages itself. The usual reader puts a message together in one buffer, and keeps that buffer as
//! large as the largest message was for as long as the stream lives; here that is the whole mesh.

use std::collections::VecDeque;
use std::pin::Pin;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::StatusCode;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower::ServiceExt;

use super::response::Response;
use crate::proto::DISCOVERY_PATH;
use crate::proto::discovery::DeltaDiscoveryRequest;

#[cfg(test)]
mod tests;

/// Bytes of a response.
const RESPONSE_MAX: usize = 200 << 20;
/// Bytes before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

type Opening = dyn Future<Output = Result<http::Response<Body>, Status>> + Send;

/// What comes from the server.
pub(super) enum Heard {
    /// It has taken the call.
    Accepted,
    Response(Response),
}

/// A stream.
pub(super) struct Stream(State);

enum State {
    /// Servers may open it with their first response only.
    Opening(Pin<Box<Opening>>),
    Open(Body, Messages),
    Ended,
}

impl Stream {
    /// Calls the server. Requests are sent as they come from the queue.
    pub(super) fn open(
        channel: Channel,
        metadata: MetadataMap,
        requests: mpsc::Receiver<DeltaDiscoveryRequest>,
    ) -> Self {
        let frames =
            ReceiverStream::new(requests).map(|request| Ok::<_, Status>(Frame::data(framed(&request))));
        let mut request = http::Request::new(Body::new(StreamBody::new(frames)));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = http::Uri::from_static(DISCOVERY_PATH);
        *request.version_mut() = http::Version::HTTP_2;
        *request.headers_mut() = metadata.into_headers();
        let fixed = [(http::header::TE, "trailers"), (http::header::CONTENT_TYPE, "application/grpc")];
        for (name, value) in fixed {
            request.headers_mut().insert(name, http::HeaderValue::from_static(value));
        }
        let call =
            async move { channel.oneshot(request).await.map_err(|error| Status::from_error(error.into())) };
        Self(State::Opening(Box::pin(call)))
    }

    /// What comes next; `None` is the stream's end in order. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Result<Option<Heard>, Status> {
        loop {
            match &mut self.0 {
                State::Opening(call) => {
                    let response = call.as_mut().await?;
                    self.0 = match refusal(&response) {
                        Some(status) if status.code() == Code::Ok => State::Ended,
                        Some(status) => return Err(status),
                        None => State::Open(response.into_body(), Messages::default()),
                    };
                    if matches!(self.0, State::Open(..)) {
                        return Ok(Some(Heard::Accepted));
                    }
                }
                State::Open(body, messages) => {
                    if let Some(response) = messages.next()? {
                        return Ok(Some(Heard::Response(response)));
                    }
                    let Some(frame) = body.frame().await.transpose()? else {
                        messages.end()?;
                        self.0 = State::Ended;
                        continue;
                    };
                    match frame.into_data() {
                        Ok(data) => messages.push(data),
                        Err(frame) => {
                            let status = frame.trailers_ref().and_then(Status::from_header_map);
                            self.0 = State::Ended;
                            if let Some(status) = status.filter(|status| status.code() != Code::Ok) {
                                return Err(status);
                            }
                        }
                    }
                }
                State::Ended => return Ok(None),
            }
        }
    }
}

/// What a server says instead of opening a stream.
fn refusal(response: &http::Response<Body>) -> Option<Status> {
    if let Some(status) = Status::from_header_map(response.headers()) {
        return Some(status);
    }
    // As gRPC has it for servers and proxies that do not speak it.
    let code = match response.status() {
        StatusCode::OK => return None,
        StatusCode::BAD_REQUEST => Code::Internal,
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN => Code::PermissionDenied,
        StatusCode::NOT_FOUND => Code::Unimplemented,
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Code::Unavailable,
        _ => Code::Unknown,
    };
    Some(Status::new(code, format!("the server answered with HTTP status {}", response.status())))
}

/// A message, uncompressed, behind its prefix.
fn framed(message: &impl Message) -> Bytes {
    let len = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + len);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(len).expect("a request is far below four gigabytes"));
    message.encode_raw(&mut bytes);
    bytes.freeze()
}

/// Messages of which the bytes come in pieces.
#[derive(Debug, Default)]
struct Messages {
    pieces: Pieces,
    /// Length of the message whose prefix has been read.
    expected: Option<usize>,
}

impl Messages {
    fn push(&mut self, piece: Bytes) {
        self.pieces.len += piece.len();
        if !piece.is_empty() {
            self.pieces.queue.push_back(piece);
        }
    }

    /// The next message, once it is there whole.
    fn next(&mut self) -> Result<Option<Response>, Status> {
        let expected = match self.expected {
            Some(expected) => expected,
            None if self.pieces.len < PREFIX => return Ok(None),
            None => {
                let (compressed, len) = (self.pieces.get_u8(), self.pieces.get_u32() as usize);
                if compressed != 0 {
                    return Err(Status::internal("a response is compressed, which was not asked for"));
                }
                if len > RESPONSE_MAX {
                    let text =
                        format!("a response of {len} bytes is more than the {RESPONSE_MAX} that are taken");
                    return Err(Status::out_of_range(text));
                }
                *self.expected.insert(len)
            }
        };
        if self.pieces.len < expected {
            return Ok(None);
        }
        self.expected = None;
        let read = Response::decode(&mut (&mut self.pieces).take(expected));
        read.map(Some).map_err(|error| Status::internal(format!("a response cannot be read: {error}")))
    }

    /// Nothing comes any more.
    fn end(&self) -> Result<(), Status> {
        if self.pieces.len == 0 && self.expected.is_none() {
            return Ok(());
        }
        Err(Status::internal("the stream ended within a response"))
    }
}

/// Bytes in pieces, as they came: nothing is copied that lies within one.
#[derive(Debug, Default)]
struct Pieces {
    /// None is empty.
    queue: VecDeque<Bytes>,
    len: usize,
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        self.queue.front().map_or(&[], |piece| piece)
    }

    fn advance(&mut self, mut count: usize) {
        self.len = self.len.checked_sub(count).expect("no more is read than there is");
        while let Some(piece) = self.queue.front_mut() {
            let used = count.min(piece.len());
            piece.advance(used);
            count -= used;
            if !piece.is_empty() {
                return;
            }
            self.queue.pop_front();
        }
    }

    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        match self.queue.front_mut() {
            Some(piece) if piece.len() > len => {
                self.len -= len;
                piece.split_to(len)
            }
            _ => {
                let mut bytes = BytesMut::with_capacity(len);
                bytes.put(self.take(len));
                bytes.freeze()
            }
        }
    }
}
