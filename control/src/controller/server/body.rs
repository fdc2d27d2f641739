//! The bodies of responses, as one type.

use std::pin::Pin;
use std::task::{Context, Poll};

use http_body::{Body, Frame};
use tonic::Status;

use crate::controller::ads::{AdsBody, Piece, piece};

/// A response's body.
pub(crate) enum ReplyBody {
    /// A discovery stream.
    Ads(Box<AdsBody>),
    /// Any other.
    Other(tonic::body::Body),
}

impl Default for ReplyBody {
    fn default() -> Self {
        Self::Other(tonic::body::Body::empty())
    }
}

impl Body for ReplyBody {
    type Data = Piece;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, Status>>> {
        match self.get_mut() {
            Self::Ads(body) => {
                let frame = Pin::new(&mut **body).poll_frame(context);
                frame.map(|frame| frame.map(|frame| frame.map_err(|never| match never {})))
            }
            Self::Other(body) => {
                let frame = Pin::new(body).poll_frame(context);
                frame.map(|frame| frame.map(|frame| frame.map(|frame| frame.map_data(piece))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Ads(_) => false,
            Self::Other(body) => body.is_end_stream(),
        }
    }
}
