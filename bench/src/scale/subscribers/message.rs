//! The messages of a discovery stream, as light as a subscriber can read them: bytes are passed over as they come, and
//! of each response only its nonce is kept.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message as _;

/// Type of workloads and services.
const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
/// Bytes of gRPC's prefix: a flag, and the message's length.
const PREFIX: usize = 5;
/// Number of `nonce` in a `DeltaDiscoveryResponse`.
const NONCE_FIELD: u64 = 5;
/// The only wire type of its fields: a length, and so many bytes.
const LENGTH_DELIMITED: u64 = 2;

/// `DeltaDiscoveryRequest`, as far as a subscriber to everything needs it.
#[derive(Clone, PartialEq, prost::Message)]
struct Request {
    #[prost(message, optional, tag = "1")]
    node: Option<Node>,
    #[prost(string, tag = "2")]
    type_url: String,
    #[prost(string, tag = "6")]
    response_nonce: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Node {
    #[prost(string, tag = "1")]
    id: String,
}

/// Subscribes to everything.
pub(super) fn subscription(id: &str) -> Bytes {
    let node = Some(Node { id: id.to_owned() });
    framed(&Request { node, type_url: ADDRESS_TYPE.to_owned(), response_nonce: String::new() })
}

/// Acknowledges a response.
pub(super) fn acknowledgement(nonce: String) -> Bytes {
    framed(&Request { node: None, type_url: ADDRESS_TYPE.to_owned(), response_nonce: nonce })
}

fn framed(request: &Request) -> Bytes {
    let len = request.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + len);
    bytes.put_u8(0);
    // A request of ours is a few hundred bytes.
    bytes.put_u32(len as u32);
    request.encode_raw(&mut bytes);
    bytes.freeze()
}

/// Reads responses of which the bytes come in pieces of any size.
#[derive(Debug, Default)]
pub(super) struct Responses {
    /// Bytes of the message that are still to come.
    left: usize,
    place: Place,
    nonce: Vec<u8>,
}

/// Where the next byte is.
#[derive(Debug)]
enum Place {
    /// In gRPC's prefix, of which these bytes have come.
    Prefix(Vec<u8>),
    /// In a field's number and type.
    Tag(Varint),
    /// In the length of this field.
    Length(u64, Varint),
    /// So many bytes before the end of this field.
    Value(u64, usize),
}

impl Default for Place {
    fn default() -> Self {
        Self::Prefix(Vec::new())
    }
}

/// A number of seven bits a byte, the least significant first.
#[derive(Debug, Default)]
struct Varint {
    value: u64,
    shift: u32,
}

impl Varint {
    /// The number, once `byte` is its last.
    fn take(&mut self, byte: u8) -> Result<Option<u64>, &'static str> {
        let bits = u64::from(byte & 0x7f);
        self.value |= bits.checked_shl(self.shift).ok_or("a number of more than 64 bits")?;
        self.shift += 7;
        Ok((byte & 0x80 == 0).then_some(self.value))
    }
}

impl Responses {
    /// Takes bytes; gives the nonces of the responses that end in them.
    pub(super) fn take(&mut self, mut bytes: &[u8]) -> Result<Vec<String>, &'static str> {
        let mut nonces = Vec::new();
        while let Some(&byte) = bytes.first() {
            let used = match &mut self.place {
                Place::Value(field, rest) => {
                    let used = bytes.len().min(*rest);
                    if *field == NONCE_FIELD {
                        self.nonce.extend_from_slice(&bytes[..used]);
                    }
                    *rest -= used;
                    used
                }
                _ => 1,
            };
            if !matches!(self.place, Place::Prefix(_)) {
                self.left = self.left.checked_sub(used).ok_or("a field longer than its message")?;
            }
            self.step(byte)?;
            bytes = &bytes[used..];
            if self.left == 0 && !matches!(self.place, Place::Prefix(_)) {
                if !matches!(self.place, Place::Tag(Varint { shift: 0, .. })) {
                    return Err("a message that ends within a field");
                }
                self.place = Place::default();
                let nonce = std::mem::take(&mut self.nonce);
                nonces.push(String::from_utf8(nonce).map_err(|_| "a nonce that is no text")?);
            }
        }
        Ok(nonces)
    }

    /// Where the byte after this one is.
    fn step(&mut self, byte: u8) -> Result<(), &'static str> {
        match &mut self.place {
            Place::Prefix(have) => {
                have.push(byte);
                if let [flag, length @ ..] = have.as_slice()
                    && let Ok(length) = <[u8; PREFIX - 1]>::try_from(length)
                {
                    if *flag != 0 {
                        return Err("a compressed message");
                    }
                    self.left = u32::from_be_bytes(length) as usize;
                    self.place = Place::Tag(Varint::default());
                }
            }
            Place::Tag(tag) => {
                if let Some(tag) = tag.take(byte)? {
                    if tag & 7 != LENGTH_DELIMITED {
                        return Err("a field that no response has");
                    }
                    self.place = Place::Length(tag >> 3, Varint::default());
                }
            }
            Place::Length(field, length) => {
                if let Some(length) = length.take(byte)? {
                    let length = usize::try_from(length).map_err(|_| "a field longer than any message")?;
                    self.place = Place::Value(*field, length);
                }
            }
            Place::Value(..) => {}
        }
        if let Place::Value(_, 0) = self.place {
            self.place = Place::Tag(Varint::default());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A response, as a control plane sends it.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Response {
        #[prost(bytes, repeated, tag = "2")]
        resources: Vec<Vec<u8>>,
        #[prost(string, tag = "4")]
        type_url: String,
        #[prost(string, tag = "5")]
        nonce: String,
    }

    fn response(resources: usize, nonce: &str) -> Vec<u8> {
        let message =
            Response { resources: vec![vec![7; 300]; resources], type_url: "t".into(), nonce: nonce.into() };
        let body = message.encode_to_vec();
        [&[0], (body.len() as u32).to_be_bytes().as_slice(), &body].concat()
    }

    #[test]
    fn nonces_are_found_however_the_bytes_are_cut() {
        let bytes = [response(3, "1"), response(0, "two"), response(1, "3")].concat();
        for length in [1, 2, 3, 7, 100, bytes.len()] {
            let mut responses = Responses::default();
            let found: Vec<_> =
                bytes.chunks(length).flat_map(|piece| responses.take(piece).unwrap()).collect();
            assert_eq!(found, ["1", "two", "3"], "{length}");
        }
    }

    #[test]
    fn what_is_no_response_is_refused() {
        for (bytes, why) in [
            (&[1, 0, 0, 0, 0][..], "a compressed message"),
            (&[0, 0, 0, 0, 2, 0x08, 1], "a field that no response has"),
            (&[0, 0, 0, 0, 2, 0x12, 5], "a message that ends within a field"),
            (&[0, 0, 0, 0, 3, 0x12, 5, 1, 1, 1], "a field longer than its message"),
        ] {
            assert_eq!(Responses::default().take(bytes), Err(why));
        }
    }

    #[test]
    fn requests_are_whole_messages() {
        let bytes = subscription("node-1");
        assert_eq!(bytes.len(), PREFIX + usize::from(bytes[4]));
        let request = Request::decode(&bytes[PREFIX..]).unwrap();
        assert_eq!((request.node.unwrap().id.as_str(), request.type_url.as_str()), ("node-1", ADDRESS_TYPE));
        let nonce = Request::decode(&acknowledgement("9".into())[PREFIX..]).unwrap().response_nonce;
        assert_eq!(nonce, "9");
    }
}
