//! The steps about policy: a new connection is refused at once, an open one is cut, and an allow policy lets exactly
//! its client in.

use std::thread;
use std::time::{Duration, Instant};

use crate::lab::mesh::{Action, Policy};
use crate::lab::pod::Outcome;
use crate::lab::process::wait_for;

use super::report::{Facts, Failure};
use super::stage::{Stage, millis};
use super::traffic::answered;

/// "At once", generously: file change, adoption by every shard, and a busy machine.
const EFFECT_MAX: Duration = Duration::from_secs(3);
/// Name under which the clients keep a connection.
const KEPT: &str = "kept";

fn policy(name: &str, action: Action, client: &str) -> Policy {
    Policy { name: name.into(), action, pod: "shop".into(), clients: vec![client.into()] }
}

/// Puts policies in place of the old ones; gives the moment.
fn publish(stage: &mut Stage, policies: Vec<Policy>) -> Result<Instant, Failure> {
    stage.mesh.policies = policies;
    let now = Instant::now();
    stage.mesh.publish()?;
    Ok(now)
}

/// Waits until a new request of `intruder` is refused, or answered again.
fn await_intruder(stage: &Stage, what: &str, refused: bool) -> Result<String, Failure> {
    let ask = stage.ask();
    let said = wait_for(what, EFFECT_MAX, || {
        let outcome = stage.intruder.get(&ask).map_err(|error| error.to_string())?;
        match outcome {
            Outcome::Failed { reason, .. } if refused => Ok(reason),
            Outcome::Answer { status: 200, body, .. } if !refused => Ok(body),
            other => Err(format!("{other:?}")),
        }
    })?;
    Ok(said)
}

/// Denies `intruder`, with a connection of both clients open.
pub(super) fn deny(stage: &mut Stage) -> Result<Facts, Failure> {
    let ask = stage.ask();
    answered("intruder, before any policy", stage.holder.open(KEPT, &ask)?)?;
    answered("web, before any policy", stage.web.open(KEPT, &ask)?)?;
    let holder = stage.holder.clone();
    let watch = thread::Builder::new()
        .name("watch".into())
        .spawn(move || holder.await_close(KEPT).map(|outcome| (outcome, Instant::now())))
        .map_err(|error| Failure::new(format!("cannot start a thread: {error}")))?;
    let since = publish(stage, vec![policy("no-intruder", Action::Deny, "intruder")])?;
    stage.cut = Some((watch, since));
    let symptom = await_intruder(stage, "a new connection of intruder being refused", true)?;
    let effect = since.elapsed();
    answered("web, which no policy denies", stage.web.get(&ask)?)?;
    let line =
        format!("DENY intruder: refused {:.0} ms later ({symptom}); web is still answered", millis(effect));
    Ok(Facts::new(line).figure("effect_ms", millis(effect)).figure("symptom", symptom))
}

/// The intruder's open connection is cut; the other's is not.
pub(super) fn live(stage: &mut Stage) -> Result<Facts, Failure> {
    let nothing = || Failure::new("no connection is being watched");
    let (watch, since) = stage.cut.take().ok_or_else(nothing)?;
    let watched = watch.join().map_err(|_| Failure::new("the watch on the open connection panicked"))?;
    let (outcome, at) = watched?;
    if !matches!(outcome, Outcome::Closed { .. }) {
        return Err(Failure::new(format!("the intruder's open connection should be cut; got {outcome:?}")));
    }
    answered("web on its open connection", stage.web.again(KEPT, &stage.ask())?)?;
    stage.web.close(KEPT)?;
    let cut = millis(at.saturating_duration_since(since));
    let line = format!("its open connection was cut {cut:.0} ms after the policy; web's lives on");
    Ok(Facts::new(line).figure("cut_ms", cut))
}

/// Allows only `web`, then removes all policies.
pub(super) fn allow(stage: &mut Stage) -> Result<Facts, Failure> {
    publish(stage, vec![policy("only-web", Action::Allow, "web")])?;
    let shop = stage.topology.pod("shop")?.node;
    stage.proxies[shop].wait_policies(&["only-web"], EFFECT_MAX)?;
    answered("web, which the policy allows", stage.web.get(&stage.ask())?)?;
    await_intruder(stage, "intruder being refused by an allow policy for web", true)?;
    let since = publish(stage, Vec::new())?;
    await_intruder(stage, "intruder being answered again without policies", false)?;
    let effect = millis(since.elapsed());
    let line =
        format!("ALLOW web only: web passes, intruder does not; removed: it passes {effect:.0} ms later");
    Ok(Facts::new(line).figure("effect_ms", effect))
}
