//! What a scale run has found: figures, each with the most that it may be, as a table and as JSON.

use comfy_table::{CellAlignment, Table};
use console::Style;
use serde::Serialize;

use super::Plan;
use crate::model::About;
use crate::report::{format, table};

/// How a figure is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Unit {
    Bytes,
    Microseconds,
    Cores,
    Count,
    Ratio,
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Figure {
    /// The part that found it.
    pub(super) part: &'static str,
    /// What it is.
    pub(super) name: String,
    pub(super) value: f64,
    pub(super) unit: Unit,
    /// The goal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) at_most: Option<f64>,
}

impl Figure {
    pub(super) fn new(part: &'static str, name: impl Into<String>, value: f64, unit: Unit) -> Self {
        Self { part, name: name.into(), value, unit, at_most: None }
    }

    /// With a goal.
    pub(super) fn at_most(self, limit: f64) -> Self {
        Self { at_most: Some(limit), ..self }
    }

    fn is_met(&self) -> Option<bool> {
        self.at_most.map(|limit| self.value <= limit)
    }
}

/// A whole run.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Findings {
    pub(super) about: About,
    pub(super) plan: Plan,
    pub(super) figures: Vec<Figure>,
    /// Parts that failed, and why.
    pub(super) failures: Vec<String>,
}

impl Findings {
    /// As one JSON object.
    pub(super) fn json(&self) -> Result<String, serde_json::Error> {
        let count = |met| self.figures.iter().filter(|figure| figure.is_met() == Some(met)).count();
        let mut value = serde_json::to_value(self)?;
        value["goals"] = serde_json::json!({ "met": count(true), "missed": count(false) });
        Ok(format!("{value}\n"))
    }

    /// As a table with the goals.
    pub(super) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(table::STYLE).set_header(["part", "figure", "measured", "goal", ""]);
        for index in [2, 3] {
            if let Some(column) = table.column_mut(index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let mut last = "";
        for figure in &self.figures {
            let part = if figure.part == last { "" } else { figure.part };
            last = figure.part;
            let goal = figure.at_most.map(|limit| format!("≤ {}", written(limit, figure.unit)));
            let mark = figure.is_met().map_or("", |met| if met { "✓" } else { "✗" });
            let value = written(figure.value, figure.unit);
            table.add_row([part, &figure.name, &value, &goal.unwrap_or_default(), mark]);
        }
        let (met, missed) = (Style::new().green(), Style::new().red());
        let mut page = String::from("\n");
        for line in table.to_string().lines() {
            let line = line.replace('✓', &met.apply_to("✓ met").to_string());
            let line = line.replace('✗', &missed.apply_to("✗ missed").to_string());
            page.push_str(&format!(" {}\n", line.trim_end()));
        }
        for failure in &self.failures {
            page.push_str(&format!("\n  {}\n", missed.apply_to(failure)));
        }
        page
    }
}

/// A value with its unit.
fn written(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Bytes if value >= 10_240.0 * 1024.0 => format!("{:.0} MiB", value / 1024.0 / 1024.0),
        Unit::Bytes if value >= 10_240.0 => format!("{:.1} KiB", value / 1024.0),
        Unit::Bytes => format!("{value:.0} B"),
        Unit::Microseconds => format::time(value),
        Unit::Cores => format!("{value:.2} cores"),
        Unit::Count => format::quantity(value),
        Unit::Ratio => format!("{value:.2}×"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_judged_and_written_beside_their_figures() {
        let figures = vec![
            Figure::new("node", "resident", 300.0 * 1024.0 * 1024.0, Unit::Bytes)
                .at_most(1024.0 * 1024.0 * 200.0),
            Figure::new("node", "a change", 870.0, Unit::Microseconds).at_most(1000.0),
            Figure::new("node", "workloads", 200_000.0, Unit::Count),
        ];
        let plan = Plan::tiny();
        let findings = Findings { about: About::default(), plan, figures, failures: vec!["it broke".into()] };
        let page = findings.table();
        for said in ["300 MiB   ≤ 200 MiB   ✗ missed", "870 µs   ≤ 1.00 ms   ✓ met", "200 000", "it broke"]
        {
            assert!(page.contains(said), "{said} in {page}");
        }
        let json: serde_json::Value = serde_json::from_str(&findings.json().unwrap()).unwrap();
        assert_eq!(json["goals"], serde_json::json!({ "met": 1, "missed": 1 }));
        assert_eq!(json["figures"][1]["at_most"], 1000.0);
    }
}
