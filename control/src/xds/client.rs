//! Keeps a stream to the control plane for ever. What comes over it is judged by [`Session`]; this module sends,
//! publishes, waits and counts.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use halo_core::demand::Question;
use tokio::sync::{mpsc, watch};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tracing::{info, warn};

use super::backoff::Backoff;
use super::refused::{NAME_LEN_MAX, NAMED_MAX, REASON_LEN_MAX, cut};
use super::response::Response;
use super::session::{KEYS_MAX, Push, Scope, Session};
use super::stream::{Heard, Stream};
use super::{Received, XdsSetup, XdsStatus};
use crate::edit::MeshEdit;
use crate::grpc::Upstream;
use crate::once::Told;
use crate::pods::Pods;
use crate::proto::discovery::DeltaDiscoveryRequest;
use crate::proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use crate::publish::{Publisher, PublisherGone};

#[cfg(test)]
mod tests;

/// Time for the first response of a stream, while the node cannot serve without it.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Requests that wait for the connection.
const REQUESTS_MAX: usize = 16;

/// Follows a control plane until the publisher ends.
pub(crate) async fn run(setup: XdsSetup) {
    follow(setup, SILENCE_MAX).await;
}

async fn follow(setup: XdsSetup, silence_max: Duration) {
    let XdsSetup { mut upstream, node, on_demand, publisher, questions, pods, status, cluster } = setup;
    let scope = if on_demand { Scope::OnDemand { keys_max: KEYS_MAX } } else { Scope::Wildcard };
    let session = Session::new(node, cluster, scope);
    let inputs = Inputs { questions: Some(questions), pods: Some(pods) };
    let mut client = Client {
        address: upstream.address().into(),
        session,
        publisher,
        inputs,
        status,
        told: Told::default(),
        backoff: Backoff::default(),
        silence_max,
    };
    let ended = async {
        client.take_pods().await?;
        loop {
            client.attempt(&mut upstream).await?;
            let pause = client.backoff.pause(RandomState::new().hash_one(0));
            client.meanwhile(tokio::time::sleep(pause)).await?;
        }
    };
    let ended: Result<(), PublisherGone> = ended.await;
    if let Err(error) = ended {
        warn!(%error, "the control plane is not followed any more");
    }
}

/// What concerns the session besides the stream.
struct Inputs {
    questions: Option<mpsc::Receiver<Question>>,
    pods: Option<watch::Receiver<Pods>>,
}

enum Input {
    Question(Question),
    Pods,
}

impl Inputs {
    /// The next input; never, once nobody can give one.
    async fn next(&mut self) -> Input {
        loop {
            tokio::select! {
                question = received(&mut self.questions) => match question {
                    Some(question) => return Input::Question(question),
                    None => self.questions = None,
                },
                changed = changed(&mut self.pods) => {
                    if changed {
                        return Input::Pods;
                    }
                    self.pods = None;
                }
            }
        }
    }
}

async fn received(questions: &mut Option<mpsc::Receiver<Question>>) -> Option<Question> {
    match questions {
        Some(questions) => questions.recv().await,
        None => std::future::pending().await,
    }
}

async fn changed(pods: &mut Option<watch::Receiver<Pods>>) -> bool {
    match pods {
        Some(pods) => pods.changed().await.is_ok(),
        None => std::future::pending().await,
    }
}

/// How a stream ended.
struct End {
    lasted: Duration,
    /// Whether a response came.
    received: bool,
    result: Result<(), Status>,
}

struct Client {
    address: Box<str>,
    session: Session,
    publisher: Publisher,
    inputs: Inputs,
    status: watch::Sender<XdsStatus>,
    told: Told,
    backoff: Backoff,
    /// Time for the first response while not everything is synced.
    silence_max: Duration,
}

impl Client {
    /// Connects and follows the stream to its end.
    async fn attempt(&mut self, upstream: &mut Upstream) -> Result<(), PublisherGone> {
        let connected = self.meanwhile(upstream.channel()).await?;
        let mut metadata = MetadataMap::new();
        let ready = connected.and_then(|channel| {
            upstream.authorize(&mut metadata)?;
            Ok(channel)
        });
        let channel = match ready {
            Ok(channel) => channel,
            Err(error) => {
                self.backoff.failed();
                self.status.send_modify(|status| status.counters.terminations.connection_error += 1);
                self.fail("the control plane cannot be used", error.to_string());
                return Ok(());
            }
        };
        let connection = upstream.connection();
        self.session.connected();
        let (requests, queue) = mpsc::channel(REQUESTS_MAX);
        let end = self.follow(requests, Stream::open(channel, metadata, queue)).await?;
        self.session.disconnected();
        if !end.received {
            // Behind the same address there may be another server that answers.
            upstream.abandon(connection);
        }
        self.settle(end);
        Ok(())
    }

    /// Sends and receives until the stream ends.
    async fn follow(
        &mut self,
        requests: mpsc::Sender<DeltaDiscoveryRequest>,
        mut responses: Stream,
    ) -> Result<End, PublisherGone> {
        let start = Instant::now();
        let mut silence = std::pin::pin!(tokio::time::sleep(self.silence_max));
        let mut waiting = None;
        let mut received = false;
        loop {
            if waiting.is_none() {
                waiting = self.session.poll_request();
            }
            tokio::select! {
                permit = requests.reserve(), if waiting.is_some() && !requests.is_closed() => {
                    // Without a receiver the stream is about to end, which the responses tell.
                    if let (Ok(permit), Some(request)) = (permit, waiting.take()) {
                        permit.send(request);
                    }
                }
                response = responses.next() => match response {
                    Ok(Some(Heard::Accepted)) => self.report_connected(),
                    Ok(Some(Heard::Response(response))) => {
                        // A server that takes the connection may still refuse the stream.
                        if !std::mem::replace(&mut received, true) {
                            info!(address = %self.address, "the control plane sends the mesh");
                        }
                        self.take(response).await?;
                    }
                    Ok(None) => return Ok(End { lasted: start.elapsed(), received, result: Ok(()) }),
                    Err(status) => return Ok(End { lasted: start.elapsed(), received, result: Err(status) }),
                },
                () = &mut silence, if !received && !self.session.synced() => {
                    let text = format!("no response within {} s", self.silence_max.as_secs_f64());
                    let result = Err(Status::unavailable(text));
                    return Ok(End { lasted: start.elapsed(), received, result });
                }
                input = self.inputs.next() => self.take_input(input).await?,
            }
        }
    }

    /// Waits for something else while there is no stream. What comes up is remembered for the next one.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Result<T, PublisherGone> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                input = self.inputs.next() => self.take_input(input).await?,
            }
        }
    }

    async fn take_input(&mut self, input: Input) -> Result<(), PublisherGone> {
        match input {
            Input::Question(question) => {
                let before = self.session.counters();
                let edits = self.session.demand(question);
                let after = self.session.counters();
                if after.demands_refused > before.demands_refused {
                    let why = "the key is too long, or the node's pods alone lead to as many as may be";
                    self.tell("questions are refused", why);
                }
                if after.demands_evicted > before.demands_evicted {
                    let why = "as many keys are subscribed as may be";
                    self.tell("what was not asked about for longest is not followed any more", why);
                }
                self.publish(edits).await
            }
            Input::Pods => self.take_pods().await,
        }
    }

    async fn take_pods(&mut self) -> Result<(), PublisherGone> {
        let Some(pods) = &mut self.inputs.pods else { return Ok(()) };
        let edits = {
            let pods = pods.borrow_and_update();
            self.session.set_pods(pods.values().map(|pod| (&*pod.info.namespace, &*pod.info.name)))
        };
        self.publish(edits).await
    }

    /// Puts a response in force, as one generation.
    async fn take(&mut self, response: Response) -> Result<(), PublisherGone> {
        let bytes = response.len as u64;
        let mut known = true;
        self.status.send_modify(|status| {
            let counters = &mut status.counters;
            let Received { messages, bytes: total } = match response.type_url.as_str() {
                ADDRESS_TYPE => &mut counters.addresses,
                AUTHORIZATION_TYPE => &mut counters.policies,
                _ => {
                    known = false;
                    &mut counters.others
                }
            };
            *messages += 1;
            *total += bytes;
        });
        if !known {
            let reason = format!("nobody asked for the type {:?}", response.type_url);
            self.tell("a response is passed over", &reason);
        }
        let Push { edits, rejected, not_understood } = self.session.handle_response(response);
        self.tell_rejected(&rejected);
        for (policy, what) in not_understood.iter().take(NAMED_MAX) {
            let (policy, what) = (cut(policy, NAME_LEN_MAX), cut(what, REASON_LEN_MAX));
            if let Some(left_out) = self.told.now(&format!("{policy}: {what}"), Instant::now()) {
                let text = "a part of a policy is not understood; an ALLOW admits nobody by it, a DENY refuses by it";
                warn!(policy, what, left_out, "{text}");
            }
        }
        self.publish(edits).await?;
        self.report_connected();
        Ok(())
    }

    /// Logs a few of what a response had refused: a control plane decides how many there are, and what they say.
    fn tell_rejected(&mut self, rejected: &[(String, String)]) {
        for (name, reason) in rejected.iter().take(NAMED_MAX) {
            let (name, reason) = (cut(name, NAME_LEN_MAX), cut(reason, REASON_LEN_MAX));
            if let Some(left_out) = self.told.now(reason, Instant::now()) {
                warn!(
                    name,
                    reason, left_out, "a resource is refused; what was in force for it stays in force"
                );
            }
        }
        let more = rejected.len().saturating_sub(NAMED_MAX);
        if more > 0
            && let Some(left_out) = self.told.now("more resources are refused", Instant::now())
        {
            warn!(more, left_out, "more resources of the same response are refused");
        }
    }

    async fn publish(&mut self, edits: Vec<MeshEdit>) -> Result<(), PublisherGone> {
        self.publisher.publish(edits).await?;
        let counters = self.session.counters();
        self.status.send_if_modified(|status| {
            let news = status.counters.session != counters;
            status.counters.session = counters;
            news
        });
        Ok(())
    }

    /// Records how a stream ended, and what that means for the next one.
    fn settle(&mut self, end: End) {
        let restart = end.result.as_ref().is_err_and(is_restart);
        if !end.received && end.result.as_ref().is_err_and(is_too_large) {
            self.session.too_large();
        }
        self.backoff.ended(end.lasted, end.received || restart);
        self.status.send_modify(|status| {
            let terminations = &mut status.counters.terminations;
            match &end.result {
                Ok(()) => terminations.complete += 1,
                Err(_) if restart => terminations.reconnect += 1,
                Err(_) => terminations.error += 1,
            }
        });
        let reason = match end.result {
            Ok(()) => "the control plane ended the stream".to_owned(),
            Err(status) => format!("{:?}: {}", status.code(), status.message()),
        };
        self.fail("the stream to the control plane has ended", reason);
    }

    fn report_connected(&self) {
        let synced = self.session.synced();
        let error = self.troubles();
        self.status.send_if_modified(|status| {
            let news =
                !status.connected || status.synced != synced || status.error.as_deref() != error.as_deref();
            status.connected = true;
            status.synced = synced;
            status.error = error.map(Into::into);
            news
        });
    }

    /// What is waited for, and what is refused.
    fn troubles(&self) -> Option<String> {
        let missing: Vec<_> = self.session.missing().collect();
        let mut troubles = Vec::new();
        let mut waited = missing.clone();
        for (type_url, refused) in self.session.refused() {
            waited.retain(|missing| *missing != type_url);
            let why = if missing.contains(&type_url) {
                "not ready, since what a refused policy denies would be let through: "
            } else {
                ""
            };
            let (count, short, text) = (refused.len(), short(type_url), refused.text());
            troubles.push(format!("{why}{count} of {short} refused: {text}"));
        }
        if !waited.is_empty() {
            let waited: Vec<_> = waited.into_iter().map(short).collect();
            troubles.push(format!("waiting for the first push of {}", waited.join(" and ")));
        }
        (!troubles.is_empty()).then(|| format!("connected; {}", troubles.join("; ")))
    }

    fn fail(&mut self, what: &'static str, reason: String) {
        self.tell(what, &reason);
        self.status.send_modify(|status| {
            status.connected = false;
            status.error = Some(reason.into());
        });
    }

    fn tell(&mut self, what: &'static str, reason: &str) {
        if let Some(left_out) = self.told.now(reason, Instant::now()) {
            warn!(reason, left_out, "{what}");
        }
    }
}

/// Whether a stream ends so when its server restarts or sheds load, which says nothing against the next attempt.
fn is_restart(status: &Status) -> bool {
    match status.code() {
        Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => true,
        Code::Unavailable => {
            let text = status.message();
            text.contains("transport is closing") || text.contains("received prior goaway")
        }
        _ => false,
    }
}

/// Whether a server would not read a request because of its size.
fn is_too_large(status: &Status) -> bool {
    let text = status.message();
    matches!(status.code(), Code::ResourceExhausted | Code::OutOfRange)
        && (text.contains("larger than max") || text.contains("too large"))
}

/// A type URL without what all have in common.
fn short(type_url: &str) -> &str {
    type_url.strip_prefix("type.googleapis.com/").unwrap_or(type_url)
}
