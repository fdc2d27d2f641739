//! Access logs: which events there are, how loud each is, what its line says, and whether a shard is to tell of it at
//! all. Fields, their order and their texts are the stock node proxy's.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::SystemTime;

use crate::labels::{Described, Traffic};
use crate::outcome::Reason;
use crate::report::Direction;

/// What a line of the access log tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// A connection ended, or was refused, with an error.
    Failed,
    /// A connection was refused before anything but its addresses was known.
    Refused,
    /// A connection ended in order.
    Complete,
    /// A connection began.
    Opened,
}

impl Event {
    /// Every event, the loudest first; they differ in level.
    pub const ALL: [Self; 4] = [Self::Failed, Self::Refused, Self::Complete, Self::Opened];

    /// The level of its lines.
    pub fn level(self) -> &'static str {
        match self {
            Self::Failed => "error",
            Self::Refused => "warn",
            Self::Complete => "info",
            Self::Opened => "debug",
        }
    }
}

/// Which events are told of. The setting of log levels alone writes it; every shard reads it, so that a line that
/// nobody wants is not made.
#[derive(Debug, Clone, Default)]
pub struct AccessLevel(Arc<AtomicU8>);

impl AccessLevel {
    /// Tells of the first `count` of [`Event::ALL`]: a level includes all that are louder.
    pub fn set(&self, count: u8) {
        self.0.store(count, Relaxed);
    }

    /// Whether the event is told of.
    pub fn wants(&self, event: Event) -> bool {
        (event as u8) < self.0.load(Relaxed)
    }
}

/// The target of access logs.
pub const TARGET: &str = "access";

/// One line, as data: it becomes text on the thread that writes it.
#[derive(Debug, Clone)]
pub struct AccessLine {
    /// When.
    pub time: SystemTime,
    /// What it tells of.
    pub event: Event,
    /// Which way the connection goes, seen from the pod.
    pub direction: Direction,
    /// The client's address.
    pub source: SocketAddr,
    /// The next hop, or the address that the client dialled; as far as it is known.
    pub destination: Option<SocketAddr>,
    /// The authority of the CONNECT request that carries it.
    pub authority: Option<Box<str>>,
    /// Its ends; nothing is known of them when it is refused at once.
    pub traffic: Option<Arc<Traffic>>,
    /// Bytes from the client side, and back to it.
    pub bytes: (u64, u64),
    /// How long it lasted.
    pub duration_ms: u64,
    /// Why it ended.
    pub reason: Reason,
    /// The policy that refused it, `namespace/name`.
    pub policy: Option<Arc<str>>,
    /// How many of the same pod and reason were refused since the last line and got none.
    pub more: u64,
}

/// The value of a field.
#[derive(Clone, Copy)]
pub enum Value<'a> {
    /// A text, which is quoted.
    Text(&'a str),
    /// Something with a notation of its own, such as an address.
    Shown(&'a dyn fmt::Display),
    /// A number.
    Number(u64),
}

impl Event {
    /// What its lines say.
    pub fn message(self) -> &'static str {
        match self {
            Self::Failed | Self::Complete => "connection complete",
            Self::Refused => "connection failed",
            Self::Opened => "connection opened",
        }
    }
}

impl AccessLine {
    /// Calls `each` with every field that is known, in order; stops at its first error.
    ///
    /// # Errors
    /// Those of `each`.
    pub fn fields<E>(&self, mut each: impl FnMut(&'static str, Value<'_>) -> Result<(), E>) -> Result<(), E> {
        each("src.addr", Value::Shown(&self.source))?;
        if let Some(traffic) = &self.traffic {
            let identity = traffic.source_principal();
            end(&mut each, SOURCE, &traffic.source(), identity.map(|own| own.to_string()))?;
        }
        if let Some(destination) = &self.destination {
            each("dst.addr", Value::Shown(destination))?;
        }
        if let Some(authority) = &self.authority {
            each("dst.hbone_addr", Value::Shown(authority))?;
        }
        if let Some(traffic) = &self.traffic {
            if let Some(service) = &traffic.ends.service {
                each("dst.service", Value::Text(&service.key.hostname))?;
            }
            let identity = traffic.destination_principal().filter(|_| traffic.is_mutual());
            end(&mut each, DESTINATION, &traffic.destination(), identity.map(|own| own.to_string()))?;
        }
        let direction = match self.direction {
            Direction::Outbound => "outbound",
            Direction::Inbound => "inbound",
        };
        each("direction", Value::Text(direction))?;
        let ended = matches!(self.event, Event::Failed | Event::Complete);
        if ended {
            // From the side that reports: what it sent is what the client sent, or what the server answered.
            let (received, sent) = self.bytes;
            let (sent, received) = match self.direction {
                Direction::Outbound => (received, sent),
                Direction::Inbound => (sent, received),
            };
            each("bytes_sent", Value::Number(sent))?;
            each("bytes_recv", Value::Number(received))?;
            each("duration", Value::Text(&format!("{}ms", self.duration_ms)))?;
        }
        if matches!(self.event, Event::Failed | Event::Refused) {
            let text = self.reason.outcome().text;
            match &self.policy {
                Some(policy) => each("error", Value::Text(&format!("{text} by: {policy}")))?,
                None => each("error", Value::Text(text))?,
            }
        }
        if self.more > 0 {
            each("more", Value::Number(self.more))?;
        }
        Ok(())
    }
}

/// Names of the fields of one end: workload, namespace, identity, cluster.
type Names = [&'static str; 4];

const SOURCE: Names = ["src.workload", "src.namespace", "src.identity", "src.cluster"];
const DESTINATION: Names = ["dst.workload", "dst.namespace", "dst.identity", "dst.cluster"];

fn end<E>(
    each: &mut impl FnMut(&'static str, Value<'_>) -> Result<(), E>,
    names: Names,
    described: &Described<'_>,
    identity: Option<String>,
) -> Result<(), E> {
    let pod = if described.pod.is_empty() { described.service } else { described.pod };
    let values = [pod, described.namespace, identity.as_deref().unwrap_or(""), described.cluster];
    for (name, value) in names.into_iter().zip(values).filter(|(_, value)| !value.is_empty()) {
        each(name, Value::Text(value))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::id::Identity;
    use crate::labels::{Ends, Party};
    use crate::report::Transport;
    use crate::workload::Workload;

    fn line(event: Event, direction: Direction) -> AccessLine {
        let workload = |name: &str| {
            let (name, namespace) = (name.into(), "shop".into());
            Party::Known(Arc::new(Workload {
                name,
                namespace,
                cluster_id: "c1".into(),
                ..Default::default()
            }))
        };
        let traffic = Traffic {
            direction,
            transport: Transport::Hbone,
            ends: Ends { source: workload("web-1"), destination: workload("cart-1"), service: None },
            source_identity: Some(Identity::new("td", "shop", "web")),
            destination_identity: None,
        };
        AccessLine {
            policy: None,
            time: SystemTime::UNIX_EPOCH,
            event,
            direction,
            source: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 4000),
            destination: Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 15008)),
            authority: Some("10.0.0.2:80".into()),
            traffic: Some(Arc::new(traffic)),
            bytes: (10, 20),
            duration_ms: 12,
            reason: if event == Event::Complete { Reason::Complete } else { Reason::ConnectFailed },
            more: 0,
        }
    }

    fn text(line: &AccessLine) -> String {
        let mut text = String::new();
        let written = line.fields(|name, value| {
            use fmt::Write;
            match value {
                Value::Text(value) => write!(text, "{name}={value:?} "),
                Value::Shown(value) => write!(text, "{name}={value} "),
                Value::Number(value) => write!(text, "{name}={value} "),
            }
        });
        written.unwrap();
        text.trim_end().to_owned()
    }

    const ENDS: &str = "src.addr=127.0.0.1:4000 src.workload=\"web-1\" src.namespace=\"shop\" \
                        src.identity=\"spiffe://td/ns/shop/sa/web\" src.cluster=\"c1\" \
                        dst.addr=127.0.0.1:15008 dst.hbone_addr=10.0.0.2:80 \
                        dst.workload=\"cart-1\" dst.namespace=\"shop\" \
                        dst.identity=\"spiffe:///ns/shop/sa/\" dst.cluster=\"c1\"";

    #[test]
    fn an_end_has_bytes_as_its_own_side_sent_them() {
        let outbound = text(&line(Event::Complete, Direction::Outbound));
        let rest = "direction=\"outbound\" bytes_sent=10 bytes_recv=20 duration=\"12ms\"";
        assert_eq!(outbound, format!("{ENDS} {rest}"));
        let inbound = text(&line(Event::Failed, Direction::Inbound));
        let rest = "direction=\"inbound\" bytes_sent=20 bytes_recv=10 duration=\"12ms\"";
        let error = Reason::ConnectFailed.outcome().text;
        assert_eq!(inbound, format!("{ENDS} {rest} error=\"{error}\""));
    }

    #[test]
    fn a_beginning_has_neither_bytes_nor_error() {
        assert_eq!(text(&line(Event::Opened, Direction::Inbound)), format!("{ENDS} direction=\"inbound\""));
    }

    #[test]
    fn a_refusal_at_once_has_its_addresses_direction_and_error_alone() {
        let traffic = None;
        let refused =
            AccessLine { traffic, authority: None, more: 3, ..line(Event::Refused, Direction::Inbound) };
        let error = Reason::ConnectFailed.outcome().text;
        let expected = "src.addr=127.0.0.1:4000 dst.addr=127.0.0.1:15008 direction=\"inbound\"";
        assert_eq!(text(&refused), format!("{expected} error=\"{error}\" more=3"));
    }

    #[test]
    fn a_level_includes_the_louder_ones_and_is_shared_by_its_copies() {
        let level = AccessLevel::default();
        let shards = level.clone();
        assert!(Event::ALL.iter().all(|event| !shards.wants(*event)));
        level.set(3);
        let wanted = Event::ALL.map(|event| shards.wants(event));
        assert_eq!(wanted, [true, true, true, false]);
    }
}
