//! The steps that call and look at the wire: without the mesh, with it, and a server that speaks first.

use std::time::Duration;

use crate::lab::admin::Connected;
use crate::lab::capture::Seen;
use crate::lab::mesh::spiffe_id;
use crate::lab::pod::{Ask, Outcome};

use super::report::{Facts, Failure};
use super::stage::{SERVICE_NAME, Stage};

const PAGE_MAX: Duration = Duration::from_secs(3);

/// The body of an answer with status 200.
pub(super) fn answered(who: &str, outcome: Outcome) -> Result<String, Failure> {
    match outcome {
        Outcome::Answer { status: 200, body, .. } => Ok(body),
        Outcome::Answer { status, body, .. } => {
            Err(Failure::new(format!("{who}: wanted 200, got {status} {}", body.trim())))
        }
        Outcome::Failed { reason, took_us } => {
            Err(Failure::new(format!("{who}: no answer: {reason} after {took_us} µs")))
        }
        other => Err(Failure::new(format!("{who}: wanted an answer, got {other:?}"))),
    }
}

/// Refuses with the name of the check and everything that the capture saw.
fn check(holds: bool, rule: &str, seen: &Seen) -> Result<(), Failure> {
    if holds {
        return Ok(());
    }
    Err(Failure::new(format!("{rule}; the capture saw {seen:?}")).figure("marker_seen", seen.markers))
}

/// The requests that are made without and with the mesh: to the service and to the pod behind it.
fn requests(stage: &Stage) -> Result<usize, Failure> {
    let client = stage.topology.pod("web")?.address;
    let requests: [(&str, Ask); 2] =
        [("web to the service", stage.ask()), ("web to the pod", stage.ask_pod()?)];
    for (who, ask) in &requests {
        let body = answered(who, stage.web.get(ask)?)?;
        if !body.starts_with(&format!("shop answers {client}:")) {
            return Err(Failure::new(format!(
                "{who}: the server should see the client's own address {client}; it says: {}",
                body.trim()
            )));
        }
    }
    Ok(requests.len())
}

/// Without the mesh, the marker can be read on the wire.
pub(super) fn plaintext(stage: &mut Stage) -> Result<Facts, Failure> {
    let capture = stage.capture()?;
    let requests = requests(stage)? + usize::from(hear(stage)? > 0);
    let seen = capture.finish()?;
    check(seen.markers > 0, "the capture should find the marker in plaintext", &seen)?;
    check(seen.tunnel_segments == 0, "nothing should use port 15008 yet", &seen)?;
    stage.no_mesh = stage.load()?;
    if stage.no_mesh.requests == 0 || stage.no_mesh.errors > 0 {
        return Err(Failure::new(format!("the load without the mesh failed: {:?}", stage.no_mesh))
            .figure("marker_seen", seen.markers));
    }
    let line =
        format!("{requests} calls cross readable: the capture finds their marker {} times", seen.markers);
    Ok(Facts::new(line)
        .figure("marker_seen", seen.markers)
        .figure("requests", requests)
        .figure("segments", seen.segments))
}

/// With the mesh, the same requests cross as TLS 1.3 on port 15008 and nothing else does.
pub(super) fn encrypted(stage: &mut Stage) -> Result<Facts, Failure> {
    let capture = stage.capture()?;
    let requests = requests(stage)?;
    answered("web on a connection to look at", stage.web.open("shown", &stage.ask())?)?;
    let call = call(stage);
    stage.web.close("shown")?;
    let seen = capture.finish()?;
    check(seen.gaps == 0, "the capture should be complete", &seen)?;
    check(seen.markers == 0, "the marker should not be readable", &seen)?;
    check(seen.other_segments == 0, "everything should use port 15008", &seen)?;
    check(seen.tunnels_without_tls == 0, "every tunnel should be TLS", &seen)?;
    check(seen.tls13_handshakes > 0 && seen.older_handshakes == 0, "handshakes should be TLS 1.3", &seen)?;
    check(seen.data_records > 0, "the calls should cross as TLS records", &seen)?;
    let call = call?;
    let line = format!(
        "the same calls cross as TLS 1.3 on 15008 ({} handshakes, {} records): marker found 0 times",
        seen.tls13_handshakes, seen.data_records
    );
    let facts = Facts::new(line)
        .detail("caller", call.source_identity.clone())
        .detail("called", format!("{} (service {SERVICE_NAME})", call.destination_identity))
        .detail("source", format!("{}, seen by the server as its client's own address", call.source));
    Ok(facts
        .figure("marker_seen", seen.markers)
        .figure("requests", requests + 1)
        .figure("tls13_handshakes", seen.tls13_handshakes)
        .figure("tls_records", seen.data_records)
        .figure("packets_on_15008", seen.tunnel_segments)
        .figure("packets_elsewhere", seen.other_segments)
        .figure("caller", call.source_identity)
        .figure("called", call.destination_identity))
}

/// The open call from `web` to `shop` as the callee's node proxy reports it.
fn call(stage: &Stage) -> Result<Connected, Failure> {
    let shop = stage.topology.pod("shop")?;
    let (caller, called) = (spiffe_id("web"), spiffe_id("shop"));
    let proxy = &stage.proxies[shop.node];
    let what = "reporting the call from web to shop with both identities";
    let found = proxy.wait_dump(what, PAGE_MAX, |dump| {
        let wanted = |c: &&Connected| {
            c.pod == shop.uid && c.source_identity == caller && c.destination_identity == called
        };
        let found = dump.connections.iter().find(wanted).cloned();
        found.ok_or_else(|| format!("{:?}", dump.connections))
    })?;
    Ok(found)
}

/// Waits for the greeter's banner; microseconds.
fn hear(stage: &Stage) -> Result<u64, Failure> {
    match stage.web.hear(stage.greeter()?)? {
        Outcome::Heard { line, took_us } if line.contains(&stage.marker) => Ok(took_us),
        other => Err(Failure::new(format!("web should hear the greeter's banner first; got {other:?}"))),
    }
}

/// A server that speaks first is heard, encrypted.
pub(super) fn server_first(stage: &mut Stage) -> Result<Facts, Failure> {
    let capture = stage.capture()?;
    let took_us = hear(stage)?;
    let seen = capture.finish()?;
    check(seen.gaps == 0 && seen.markers == 0, "the banner should not be readable", &seen)?;
    check(seen.tunnel_segments > 0 && seen.other_segments == 0, "the banner should cross on 15008", &seen)?;
    let line = format!("the banner arrives after {:.1} ms, encrypted", took_us as f64 / 1000.0);
    Ok(Facts::new(line).figure("banner_us", took_us).figure("marker_seen", seen.markers))
}
