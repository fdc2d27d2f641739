//! ZDS messages as the node agent writes and reads them (`istio.workload.zds`). One datagram is one bare message;
//! which one is fixed by direction and order.

use prost::Message;

/// The only version of the protocol.
pub(crate) const VERSION_1: i32 = 1;

/// First message of a proxy.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Hello {
    #[prost(int32, tag = "1")]
    pub(crate) version: i32,
}

/// Who a pod is.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Info {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) namespace: String,
    #[prost(string, tag = "3")]
    pub(crate) service_account: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Add {
    #[prost(string, tag = "1")]
    pub(crate) uid: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) info: Option<Info>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Keep {
    #[prost(string, tag = "1")]
    pub(crate) uid: String,
}

/// Its only field has number 2, not 1.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Del {
    #[prost(string, tag = "2")]
    pub(crate) uid: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SnapshotSent {}

/// Number 4 is unused.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Payload {
    #[prost(message, tag = "1")]
    Add(Add),
    #[prost(message, tag = "2")]
    Del(Del),
    #[prost(message, tag = "3")]
    SnapshotSent(SnapshotSent),
    #[prost(message, tag = "5")]
    Keep(Keep),
}

/// Every message of the node agent.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Request {
    #[prost(oneof = "Payload", tags = "1, 2, 3, 5")]
    pub(crate) payload: Option<Payload>,
}

/// Empty on success.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Ack {
    #[prost(string, tag = "1")]
    pub(crate) error: String,
}

/// Every later message of a proxy.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Response {
    #[prost(message, optional, tag = "1")]
    pub(crate) ack: Option<Ack>,
}
