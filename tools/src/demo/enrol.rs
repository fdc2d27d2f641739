//! Enrolment of running pods: redirect rules, the node proxy's listeners, certificates, and last the word to the
//! others that the pods take tunnels. The order is the real agent's, so that no call ever goes out unprotected.

use std::time::{Duration, Instant};

use halo_control::redirect::Options;
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

use crate::lab::LabError;
use crate::lab::admin::Certificate;
use crate::lab::mesh::spiffe_id;
use crate::lab::node::NodeProxy;
use crate::lab::process::wait_for;

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
        stage.proxies[pod.node].agent.enrol(pod, &Options::default())?;
    }
    for proxy in &stage.proxies {
        proxy.wait_ready(READY_MAX)?;
    }
    stage.mesh.enrolled = stage.topology.pods.iter().map(|pod| pod.name.clone()).collect();
    stage.mesh.publish()?;
    let mut certificates = Vec::new();
    for (index, proxy) in stage.proxies.iter().enumerate() {
        adopted(stage, proxy)?;
        let pods = stage.topology.pods.iter().filter(|pod| pod.node == index);
        let identities: Vec<String> = pods.map(|pod| spiffe_id(&pod.name)).collect();
        certificates.extend(issued(proxy, &identities)?);
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

/// Waits until the proxy knows that every pod takes tunnels.
fn adopted(stage: &Stage, proxy: &NodeProxy) -> Result<(), LabError> {
    let what = format!("{} learning that all pods are enrolled", proxy.process.name());
    wait_for(&what, READY_MAX, || {
        proxy.process.ensure_running().map_err(|error| error.to_string())?;
        let dump = proxy.dump().map_err(|error| error.to_string())?;
        let workloads = dump.all["workloads"].as_array().cloned().unwrap_or_default();
        let enrolled = workloads.iter().filter(|workload| workload["protocol"] == "HBONE").count();
        match enrolled == stage.topology.pods.len() {
            true => Ok(()),
            false => Err(format!("{enrolled} of {} workloads", stage.topology.pods.len())),
        }
    })
}

/// Waits until the proxy holds a certificate for each identity.
fn issued(proxy: &NodeProxy, identities: &[String]) -> Result<Vec<Certificate>, LabError> {
    let what = format!("{} holding a certificate for each pod", proxy.process.name());
    wait_for(&what, READY_MAX, || {
        proxy.process.ensure_running().map_err(|error| error.to_string())?;
        let dump = proxy.dump().map_err(|error| error.to_string())?;
        let of = |identity: &String| {
            let ours = |c: &&Certificate| c.identity == *identity && c.state == "Available";
            dump.certificates.iter().find(ours).cloned()
        };
        let found: Option<Vec<_>> = identities.iter().map(of).collect();
        found.ok_or_else(|| format!("{:?}", dump.certificates))
    })
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
