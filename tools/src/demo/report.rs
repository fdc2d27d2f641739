//! What the demo found out: steps with figures, in order, and their JSON form.

use std::time::Duration;

use comfy_table::Table;
use serde_json::{Map, Value, json};

use crate::lab::LabError;
use crate::lab::node::NodeProxy;

/// Lines of a node's log that a failure carries.
const LOG_LINES: usize = 10;

/// The steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Topology,
    Plaintext,
    Enrol,
    Encrypted,
    ServerFirst,
    PolicyDeny,
    PolicyLive,
    PolicyAllow,
    Load,
    Cleanup,
}

impl Step {
    /// All but the cleanup, in order.
    pub(super) const ACTS: [Self; 9] = [
        Self::Topology,
        Self::Plaintext,
        Self::Enrol,
        Self::Encrypted,
        Self::ServerFirst,
        Self::PolicyDeny,
        Self::PolicyLive,
        Self::PolicyAllow,
        Self::Load,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Topology => "topology",
            Self::Plaintext => "plaintext",
            Self::Enrol => "enrol",
            Self::Encrypted => "encrypted",
            Self::ServerFirst => "server_first",
            Self::PolicyDeny => "policy_deny",
            Self::PolicyLive => "policy_live",
            Self::PolicyAllow => "policy_allow",
            Self::Load => "load",
            Self::Cleanup => "cleanup",
        }
    }

    /// What is going on, while it goes on.
    pub(super) fn doing(self) -> &'static str {
        match self {
            Self::Topology => "building nodes and pods",
            Self::Plaintext => "calling without the mesh, and measuring it",
            Self::Enrol => "enrolling the running pods",
            Self::Encrypted => "calling again, through the mesh",
            Self::ServerFirst => "waiting for a server that speaks first",
            Self::PolicyDeny => "denying the intruder",
            Self::PolicyLive => "watching connections that were already open",
            Self::PolicyAllow => "allowing one, then everyone",
            Self::Load => "measuring with the mesh",
            Self::Cleanup => "cleaning up",
        }
    }
}

/// What a step found out.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// One line.
    pub(super) line: String,
    /// More lines, each with a label.
    pub(super) details: Vec<(String, String)>,
    /// Tables for the end of the page.
    pub(super) tables: Vec<Table>,
    /// Figures.
    pub(super) figures: Map<String, Value>,
}

impl Facts {
    pub(super) fn new(line: impl Into<String>) -> Self {
        Self { line: line.into(), ..Self::default() }
    }

    pub(super) fn detail(mut self, label: impl Into<String>, text: impl Into<String>) -> Self {
        self.details.push((label.into(), text.into()));
        self
    }

    pub(super) fn figure(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.figures.insert(name.into(), value.into());
        self
    }
}

/// Why a step failed.
#[derive(Debug, Default)]
pub(super) struct Failure {
    /// Which check, and what was observed.
    reason: String,
    /// Figures that were observed nevertheless.
    figures: Map<String, Value>,
    /// The ends of the nodes' logs.
    logs: Vec<(String, String)>,
}

impl Failure {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), ..Self::default() }
    }

    pub(super) fn figure(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.figures.insert(name.into(), value.into());
        self
    }

    pub(super) fn with_logs(mut self, proxies: &[NodeProxy]) -> Self {
        let tail = |proxy: &NodeProxy| (proxy.process.name().into(), proxy.process.log_tail(LOG_LINES));
        self.logs = proxies.iter().map(tail).collect();
        self
    }
}

impl From<LabError> for Failure {
    fn from(error: LabError) -> Self {
        // Further lines are those of a log, which the failure carries anyway.
        Self::new(error.to_string().lines().next().unwrap_or_default())
    }
}

/// A step that is over.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) step: Step,
    pub(super) ok: bool,
    pub(super) took: Duration,
    /// The line of facts, or the reason.
    pub(super) line: String,
    pub(super) details: Vec<(String, String)>,
    pub(super) tables: Vec<Table>,
    pub(super) logs: Vec<(String, String)>,
    figures: Map<String, Value>,
}

impl Done {
    fn json(&self) -> Value {
        let took_ms = u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX);
        let mut object = Map::new();
        object.insert("name".into(), self.step.name().into());
        object.insert("ok".into(), self.ok.into());
        object.insert("took_ms".into(), took_ms.into());
        object.extend(self.figures.clone());
        if !self.ok {
            object.insert("error".into(), self.line.clone().into());
            let logs = self.logs.iter().map(|(node, tail)| (node.clone(), tail.clone().into()));
            object.insert("log_tails".into(), Value::Object(logs.collect()));
        }
        object.into()
    }
}

/// The steps that are over.
#[derive(Debug, Default)]
pub(super) struct Report {
    steps: Vec<Done>,
    /// The steps are interrupted: what they still find out is about a stage that is being taken away.
    pub(super) interrupted: bool,
}

impl Report {
    pub(super) fn add(&mut self, step: Step, took: Duration, result: Result<Facts, Failure>) -> &Done {
        let done = match result {
            Ok(Facts { line, details, tables, figures }) => {
                Done { step, ok: true, took, line, details, tables, logs: Vec::new(), figures }
            }
            Err(Failure { reason, figures, logs }) => Done {
                step,
                ok: false,
                took,
                line: reason,
                details: Vec::new(),
                tables: Vec::new(),
                logs,
                figures,
            },
        };
        self.steps.push(done);
        &self.steps[self.steps.len() - 1]
    }

    /// Whether every step ran and none failed.
    pub(super) fn is_ok(&self) -> bool {
        !self.interrupted && self.steps.len() > Step::ACTS.len() && self.steps.iter().all(|done| done.ok)
    }

    pub(super) fn tables(&self) -> impl Iterator<Item = &Table> {
        self.steps.iter().flat_map(|done| &done.tables)
    }

    pub(super) fn took(&self) -> Duration {
        self.steps.iter().map(|done| done.took).sum()
    }

    pub(super) fn json(&self) -> Value {
        let ran = |step: Step| self.steps.iter().find(|done| done.step == step).map(Done::json);
        let skipped = |step: Step| json!({"name": step.name(), "ok": false, "skipped": true});
        let all = Step::ACTS.into_iter().chain([Step::Cleanup]);
        let steps: Vec<Value> = all.map(|step| ran(step).unwrap_or_else(|| skipped(step))).collect();
        let mut object = json!({"ok": self.is_ok(), "steps": steps});
        if self.interrupted {
            object["interrupted"] = true.into();
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(value: &Value) -> Vec<&str> {
        value["steps"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect()
    }

    #[test]
    fn object_is_ok_only_when_every_step_ran_and_was() {
        let mut report = Report::default();
        for step in Step::ACTS {
            report.add(step, Duration::from_millis(5), Ok(Facts::new("fine").figure("marker_seen", 4)));
        }
        assert_eq!(report.json()["ok"], false);
        report.add(Step::Cleanup, Duration::ZERO, Ok(Facts::default()));
        let object = report.json();
        assert_eq!(object["ok"], true);
        assert_eq!(object["steps"][1]["marker_seen"], 4);
        let wanted = "topology plaintext enrol encrypted server_first policy_deny policy_live policy_allow load cleanup";
        assert_eq!(names(&object), wanted.split(' ').collect::<Vec<_>>());
        report.interrupted = true;
        assert_eq!(report.json()["ok"], false);
    }

    #[test]
    fn failed_step_says_why_and_the_rest_are_skipped() {
        let mut report = Report::default();
        report.add(Step::Topology, Duration::ZERO, Ok(Facts::default()));
        report.add(Step::Plaintext, Duration::ZERO, Err(Failure::new("no answer").figure("marker_seen", 0)));
        report.add(Step::Cleanup, Duration::ZERO, Ok(Facts::default()));
        let object = report.json();
        assert_eq!((&object["ok"], &object["steps"][1]["error"]), (&json!(false), &json!("no answer")));
        assert_eq!(object["steps"][1]["marker_seen"], 0);
        assert_eq!(object["steps"][2], json!({"name": "enrol", "ok": false, "skipped": true}));
        assert_eq!(object["steps"][9]["ok"], true);
    }
}
