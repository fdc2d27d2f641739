//! Enrolment of running pods: redirect rules, the node proxy's listeners, certificates, and last the word to the
//! others that the pods take tunnels. The order is the real agent's, so that no call ever goes out unprotected.

use std::time::{Duration, Instant};

use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

use crate::lab::admin::Certificate;
use crate::lab::mesh::spiffe_id;

use super::report::{Facts, Failure};
use super::stage::{Stage, millis};

const START_MAX: Duration = Duration::from_secs(10);
const READY_MAX: Duration = Duration::from_secs(15);

/// Enrols every pod while it runs.
pub(super) fn enrol(stage: &mut Stage) -> Result<Facts, Failure> {
    for proxy in &stage.proxies {
        proxy.wait_connected(START_MAX)?;
    }
    let (before, started) = (stage.pids(), Instant::now());
    for pod in &stage.topology.pods {
        stage.proxies[pod.node].agent.enrol(pod, &pod.redirect())?;
    }
    for proxy in &stage.proxies {
        proxy.wait_ready(READY_MAX)?;
    }
    stage.mesh.enrolled = stage.topology.pods.iter().map(|pod| pod.name.clone()).collect();
    stage.mesh.publish()?;
    let mut certificates = Vec::new();
    for (index, proxy) in stage.proxies.iter().enumerate() {
        proxy.wait_tunnelled(stage.topology.pods.len(), READY_MAX)?;
        let pods = stage.topology.pods.iter().filter(|pod| pod.node == index);
        let identities: Vec<String> = pods.map(|pod| spiffe_id(&pod.name)).collect();
        certificates.extend(proxy.wait_certificates(&identities, READY_MAX)?);
    }
    let took = started.elapsed();
    let after = stage.pids();
    if before != after {
        let reason = format!("no program in a pod may restart: processes {before:?} became {after:?}");
        return Err(Failure::new(reason));
    }
    let pods = stage.topology.pods.len();
    let line =
        format!("{pods} running pods joined in {:.0} ms; none of their programs restarted", millis(took));
    let mut facts = Facts::new(line).figure("pods", pods).figure("enrolled_ms", millis(took));
    for certificate in &certificates {
        let life = life(certificate)
            .ok_or_else(|| Failure::new(format!("a certificate without a life: {certificate:?}")))?;
        facts = facts.detail("certificate", format!("{}, {life}", certificate.identity));
    }
    let listed: Vec<_> = certificates.iter().map(figure).collect();
    Ok(facts.figure("certificates", listed))
}

fn figure(certificate: &Certificate) -> serde_json::Value {
    serde_json::json!({
        "identity": certificate.identity,
        "valid_from": certificate.valid_from,
        "expires": certificate.expires,
    })
}

/// Until when a certificate is valid, and how long it lives.
fn life(certificate: &Certificate) -> Option<String> {
    let from = OffsetDateTime::parse(&certificate.valid_from, &Rfc3339).ok()?;
    let until = OffsetDateTime::parse(&certificate.expires, &Rfc3339).ok()?;
    let (hour, minute, second) = until.to_offset(UtcOffset::UTC).to_hms();
    let minutes = (until - from).whole_minutes();
    Some(format!("valid {minutes} min, until {hour:02}:{minute:02}:{second:02} UTC"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn life_is_told_in_minutes_and_in_universal_time() {
        let certificate = Certificate {
            identity: String::new(),
            state: "Available".into(),
            valid_from: "2026-03-01T09:00:00Z".into(),
            expires: "2026-03-01T12:00:05.5+02:00".into(),
        };
        let shown = life(&certificate).unwrap();
        assert_eq!(shown, "valid 60 min, until 10:00:05 UTC");
    }
}
