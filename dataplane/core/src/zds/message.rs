//! The messages of `zds.proto`, with the numbers of the wire.

/// `Version.V1`; 0 is `NOT_USED`.
pub(super) const VERSION_V1: i32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ZdsHello {
    // An enumeration on the wire; kept as its number so that an unknown version can be named in the refusal.
    #[prost(int32, tag = "1")]
    pub(super) version: i32,
}

// Number 4 was the trust domain; an old agent may still send it, and it is ignored.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct WorkloadInfo {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) namespace: String,
    #[prost(string, tag = "3")]
    pub(super) service_account: String,
    // Ours alone, with a number far from those of the protocol, which others skip.
    #[prost(string, repeated, tag = "100")]
    pub(super) dns_search: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AddWorkload {
    #[prost(string, tag = "1")]
    pub(super) uid: String,
    #[prost(message, optional, tag = "2")]
    pub(super) workload_info: Option<WorkloadInfo>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct KeepWorkload {
    #[prost(string, tag = "1")]
    pub(super) uid: String,
}

// The number is 2 here, unlike in the other requests.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DelWorkload {
    #[prost(string, tag = "2")]
    pub(super) uid: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SnapshotSent {}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct WorkloadRequest {
    #[prost(oneof = "Payload", tags = "1, 2, 3, 5")]
    pub(super) payload: Option<Payload>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Payload {
    #[prost(message, tag = "1")]
    Add(AddWorkload),
    #[prost(message, tag = "2")]
    Del(DelWorkload),
    #[prost(message, tag = "3")]
    SnapshotSent(SnapshotSent),
    #[prost(message, tag = "5")]
    Keep(KeepWorkload),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Ack {
    #[prost(string, tag = "1")]
    pub(super) error: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct WorkloadResponse {
    #[prost(oneof = "Reply", tags = "1")]
    pub(super) payload: Option<Reply>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Reply {
    #[prost(message, tag = "1")]
    Ack(Ack),
}
