//! A response of the delta protocol, read no further than to its resources: the whole mesh is one response, and its
//! parts are decoded one at a time.

use bytes::{Buf, Bytes};
use prost::DecodeError;
use prost::encoding::{self, DecodeContext, decode_key, skip_field};

use crate::proto::discovery::Resource;

/// A `DeltaDiscoveryResponse`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Response {
    pub(crate) type_url: String,
    pub(crate) nonce: String,
    /// Each an encoded `Resource`.
    pub(crate) resources: Vec<Bytes>,
    pub(crate) removed: Vec<String>,
    /// Bytes of the whole message.
    pub(crate) len: usize,
}

impl Response {
    /// Reads a message that is all of `bytes`. What of it lies in one piece there is not copied.
    pub(crate) fn decode(bytes: &mut impl Buf) -> Result<Self, DecodeError> {
        let mut response = Self { len: bytes.remaining(), ..Self::default() };
        let context = DecodeContext::default;
        while bytes.has_remaining() {
            let (field, wire) = decode_key(bytes)?;
            match field {
                2 => {
                    let mut resource = Bytes::new();
                    encoding::bytes::merge(wire, &mut resource, bytes, context())?;
                    response.resources.push(resource);
                }
                4 => encoding::string::merge(wire, &mut response.type_url, bytes, context())?,
                5 => encoding::string::merge(wire, &mut response.nonce, bytes, context())?,
                6 => encoding::string::merge_repeated(wire, &mut response.removed, bytes, context())?,
                _ => skip_field(wire, field, bytes, context())?,
            }
        }
        Ok(response)
    }

    /// The names of its resources; of those that cannot be read there is none.
    pub(crate) fn names(&self) -> impl Iterator<Item = String> {
        let read = |bytes: &Bytes| prost::Message::decode(bytes.clone()).ok();
        self.resources.iter().filter_map(read).map(|resource: Resource| resource.name)
    }
}

#[cfg(test)]
impl From<crate::proto::discovery::DeltaDiscoveryResponse> for Response {
    fn from(message: crate::proto::discovery::DeltaDiscoveryResponse) -> Self {
        Self::decode(&mut prost::Message::encode_to_vec(&message).as_slice()).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::proto::discovery::DeltaDiscoveryResponse;

    #[test]
    fn a_response_is_read_as_the_definitions_have_it() {
        let resource =
            |name: &str| Resource { name: name.into(), version: "1".into(), ..Resource::default() };
        let message = DeltaDiscoveryResponse {
            system_version_info: "info".into(),
            resources: vec![resource("a"), resource("b")],
            type_url: "type".into(),
            nonce: "7".into(),
            removed_resources: vec!["c".into(), "d".into()],
        };
        let response = Response::from(message.clone());
        assert_eq!((response.type_url.as_str(), response.nonce.as_str()), ("type", "7"));
        assert!(response.names().eq(["a", "b"]) && response.removed == ["c", "d"]);
        assert_eq!(response.len, message.encoded_len());
        let bytes = message.encode_to_vec();
        assert!(Response::decode(&mut &bytes[..bytes.len() - 1]).is_err());
    }
}
