//! One response as a gRPC message: a head of its own, then bytes that all subscribers share.

use std::vec;

use bytes::buf::Chain;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::sync::Arc;

use crate::controller::subscriber::{Content, Push};
use crate::controller::world::{Resource, Table};

/// A piece of a message: what is this stream's own, then what is shared.
pub(crate) type Piece = Chain<Bytes, Bytes>;

/// Bytes of single resources that are sent as one piece. They are copied into it, which costs less than to encrypt and
/// send each by itself.
const PIECE_LEN: usize = 64 * 1024;
/// Fields of a `DeltaDiscoveryResponse`.
const TYPE_URL_FIELD: u32 = 4;
const NONCE_FIELD: u32 = 5;
const REMOVED_FIELD: u32 = 6;

/// A message that is being sent.
#[derive(Debug)]
pub(crate) struct Message {
    head: Option<Bytes>,
    rest: Rest,
    len: usize,
    /// Bytes that are still to come, with the head.
    left: usize,
}

#[derive(Debug)]
enum Rest {
    Table(Table, usize),
    Encoded(Bytes),
    Resources(vec::IntoIter<Arc<Resource>>),
}

/// A message longer than the four bytes of gRPC's length can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a response of {0} bytes is more than gRPC can carry; subscribe on demand")]
pub(crate) struct TooLong(usize);

impl Message {
    pub(crate) fn new(push: Push) -> Result<Self, TooLong> {
        let mut fields = BytesMut::new();
        prost::encoding::string::encode(TYPE_URL_FIELD, &push.type_url, &mut fields);
        prost::encoding::string::encode(NONCE_FIELD, &push.nonce, &mut fields);
        for name in &push.removed {
            prost::encoding::string::encode(REMOVED_FIELD, &name.to_string(), &mut fields);
        }
        let (rest, rest_len) = match push.content {
            Content::Everything(table) => {
                let len = table.bytes();
                (Rest::Table(table, 0), len)
            }
            Content::Encoded(encoded) => {
                let len = encoded.len();
                (Rest::Encoded(encoded), len)
            }
            Content::Resources(resources) => {
                let len = resources.iter().map(|resource| resource.encoded.len()).sum();
                (Rest::Resources(resources.into_iter()), len)
            }
        };
        let len = fields.len() + rest_len;
        let mut head = BytesMut::with_capacity(fields.len() + 5);
        // Not compressed.
        head.put_u8(0);
        head.put_u32(u32::try_from(len).map_err(|_| TooLong(len))?);
        head.extend_from_slice(&fields);
        let left = head.len() + rest_len;
        Ok(Self { head: Some(head.freeze()), rest, len, left })
    }

    /// Bytes of the message, without gRPC's prefix.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether every piece has been taken.
    pub(crate) fn is_finished(&self) -> bool {
        self.left == 0
    }
}

impl Iterator for Message {
    type Item = Piece;

    /// The next piece; at least one comes, and none is empty.
    fn next(&mut self) -> Option<Piece> {
        let rest = self.rest.next();
        let head = self.head.take();
        if head.is_none() && rest.is_none() {
            return None;
        }
        let piece = head.unwrap_or_default().chain(rest.unwrap_or_default());
        self.left -= piece.remaining();
        Some(piece)
    }
}

impl Rest {
    fn next(&mut self) -> Option<Bytes> {
        match self {
            Self::Table(table, index) => {
                while *index < table.segments() {
                    *index += 1;
                    let segment = table.segment(*index - 1);
                    if !segment.is_empty() {
                        return Some(segment);
                    }
                }
                None
            }
            Self::Encoded(encoded) => Some(std::mem::take(encoded)).filter(|encoded| !encoded.is_empty()),
            Self::Resources(resources) => {
                let first = resources.next()?;
                if resources.len() == 0 || first.encoded.len() >= PIECE_LEN {
                    return Some(first.encoded.clone());
                }
                let mut piece = BytesMut::from(&first.encoded[..]);
                while piece.len() < PIECE_LEN
                    && let Some(resource) = resources.next()
                {
                    piece.extend_from_slice(&resource.encoded);
                }
                Some(piece.freeze())
            }
        }
    }
}
