//! What a node proxy tells of its work: metrics and access lines.

use std::collections::BTreeMap;

use halo::lab::node::NodeProxy;
use halo::lab::process::wait_for;
use serde_json::Value;

use crate::rig::SOON;

/// The variable that makes access lines readable for [`access`].
pub const JSON_LOG: (&str, &str) = ("LOG_FORMAT", "json");

/// One sample of a metrics page.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The metric.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// The samples of a metrics page.
pub fn samples(page: &str) -> Vec<Sample> {
    page.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
}

fn sample(line: &str) -> Option<Sample> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let mut rest = labels.strip_suffix('}')?;
    let mut all = BTreeMap::new();
    // The lab's labels hold no quotes, so that none is escaped.
    while let Some((key, after)) = rest.split_once("=\"") {
        let (text, after) = after.split_once('"')?;
        all.insert(key.to_owned(), text.to_owned());
        rest = after.trim_start_matches(',');
    }
    Some(Sample { name: name.to_owned(), labels: all, value: value.parse().ok()? })
}

/// The sum of a metric over the series with these labels; `None` without such a series.
pub fn total(proxy: &NodeProxy, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let samples = samples(&proxy.metrics().unwrap());
    let has =
        |sample: &Sample| labels.iter().all(|(key, text)| sample.labels.get(*key).is_some_and(|t| t == text));
    let found: Vec<_> = samples.iter().filter(|s| s.name == name && has(s)).map(|s| s.value).collect();
    (!found.is_empty()).then(|| found.into_iter().sum())
}

/// Waits until the sum of a metric over the series with these labels is this.
pub fn await_total(proxy: &NodeProxy, name: &str, labels: &[(&str, &str)], expected: f64) {
    let what = format!("{name}{labels:?} being {expected}");
    let told = wait_for(&what, SOON, || match total(proxy, name, labels) {
        Some(sum) if sum == expected => Ok(()),
        _ => {
            let page = proxy.metrics().unwrap();
            let lines = page.lines().filter(|line| line.starts_with(name));
            Err(lines.collect::<Vec<_>>().join("\n"))
        }
    });
    told.unwrap();
}

/// Waits for an access line with this message and these fields.
pub fn access(proxy: &NodeProxy, message: &str, fields: &[(&str, &str)]) -> Value {
    let is_told = |line: &Value, (key, text): &(&str, &str)| match &line[*key] {
        Value::String(told) => told == text,
        told => text.parse::<f64>().is_ok_and(|number| told.as_f64() == Some(number)),
    };
    let found = wait_for(&format!("an access line {message:?} with {fields:?}"), SOON, || {
        let log = std::fs::read_to_string(proxy.process.log()).unwrap_or_default();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let lines: Vec<_> = lines.filter(|line| line["scope"] == "access").collect();
        let found = lines
            .iter()
            .find(|line| line["message"] == message && fields.iter().all(|field| is_told(line, field)));
        let told = || lines.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        found.cloned().ok_or_else(told)
    });
    found.unwrap()
}

#[cfg(test)]
mod tests {
    use super::samples;

    #[test]
    fn sample_has_its_labels_and_its_value() {
        let page = "# HELP a b\na_total{x=\"1\",y=\"two, 3\"} 7\nplain 0.5\n# EOF\n";
        let all = samples(page);
        assert_eq!((all.len(), all[0].name.as_str(), all[0].value), (2, "a_total", 7.0));
        assert_eq!(all[0].labels["y"], "two, 3");
        assert_eq!((all[1].labels.len(), all[1].value), (0, 0.5));
    }
}
