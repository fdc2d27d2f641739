//! The two forms in which metrics are written: Prometheus' text format 0.0.4, and OpenMetrics 1.0. A family without
//! samples is left out; both forms end with `# EOF`, as the stock node proxy's do.

use std::fmt::{self, Write};

/// A form of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Format {
    /// Prometheus' text format 0.0.4.
    #[default]
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// What an `Accept` header asks for: OpenMetrics where it is named and not liked less than text.
    pub(crate) fn accepted(accept: &str) -> Self {
        let quality = |wanted: &str| {
            let named = accept.split(',').filter_map(|item| {
                let mut parts = item.split(';').map(str::trim);
                parts.next().filter(|kind| kind.eq_ignore_ascii_case(wanted))?;
                Some(quality(parts))
            });
            named.fold(0.0, f32::max)
        };
        let open_metrics = quality("application/openmetrics-text");
        match open_metrics > 0.0 && open_metrics >= quality("text/plain") {
            true => Self::OpenMetrics,
            false => Self::Prometheus,
        }
    }

    /// Its `Content-Type`.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The `q` among an item's parameters; 1 unless it is there (RFC 9110, section 12.4.2).
pub(crate) fn quality<'a>(mut parameters: impl Iterator<Item = &'a str>) -> f32 {
    let quality = parameters.find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("q").then(|| value.trim().parse().unwrap_or(0.0))
    });
    quality.unwrap_or(1.0)
}

/// A text under construction.
#[derive(Debug, Default)]
pub(crate) struct Text {
    text: String,
    format: Format,
    /// The head of the family that has no sample yet.
    head: String,
}

impl Text {
    /// Begins a text of this form.
    pub(crate) fn new(format: Format) -> Self {
        Self { format, ..Self::default() }
    }

    /// A counter without labels.
    pub(crate) fn counter(&mut self, name: &str, help: &str, total: u64) {
        self.single(name, "counter", help, total);
    }

    /// A gauge without labels.
    pub(crate) fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.single(name, "gauge", help, value);
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.head(name, kind, help);
        self.sample(name, "", value);
    }

    /// Begins a family; nothing is written of it before its first sample. The name of a counter ends in `_total`. A name
    /// that ends in a unit says so.
    pub(crate) fn head(&mut self, name: &str, kind: &str, help: &str) {
        let family = name.strip_suffix("_total").filter(|_| kind == "counter").unwrap_or(name);
        let unit = ["bytes", "nanoseconds", "seconds"].into_iter().find(|unit| ends_in(family, unit));
        let name = if self.format == Format::OpenMetrics { family } else { name };
        self.head.clear();
        // Writing to a text cannot fail, here and below.
        let _ = writeln!(self.head, "# HELP {name} {help}");
        let _ = writeln!(self.head, "# TYPE {name} {kind}");
        if let Some(unit) = unit.filter(|_| self.format == Format::OpenMetrics) {
            let _ = writeln!(self.head, "# UNIT {name} {unit}");
        }
    }

    /// A sample; `labels` with their braces, or nothing.
    pub(crate) fn sample(&mut self, name: &str, labels: &str, value: impl fmt::Display) {
        self.text.push_str(&self.head);
        self.head.clear();
        let _ = writeln!(self.text, "{name}{labels} {value}");
    }

    /// A sample of which `labels` writes the labels, without braces.
    pub(crate) fn labelled(&mut self, name: &str, labels: impl FnOnce(&mut String), value: u64) {
        self.text.push_str(&self.head);
        self.head.clear();
        self.text.push_str(name);
        self.text.push('{');
        labels(&mut self.text);
        let _ = writeln!(self.text, "}} {value}");
    }

    /// Makes room.
    pub(crate) fn reserve(&mut self, bytes: usize) {
        self.text.reserve(bytes);
    }

    /// Ends the text.
    pub(crate) fn finish(mut self) -> String {
        self.text.push_str("# EOF\n");
        self.text
    }
}

fn ends_in(family: &str, unit: &str) -> bool {
    family.strip_suffix(unit).is_some_and(|rest| rest.ends_with('_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_is_written_where_it_is_named_and_not_liked_less_than_text() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;\
                          q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        for (accept, format) in [
            ("", Format::Prometheus),
            ("*/*", Format::Prometheus),
            ("text/html, application/json", Format::Prometheus),
            (prometheus, Format::OpenMetrics),
            ("application/json, Application/OpenMetrics-Text; other stuff", Format::OpenMetrics),
            ("text/plain;version=0.0.4;q=0.6, application/openmetrics-text;q=0.5", Format::Prometheus),
            ("application/openmetrics-text;q=0", Format::Prometheus),
        ] {
            assert_eq!(Format::accepted(accept), format, "{accept}");
        }
    }

    #[test]
    fn a_counter_has_its_suffix_in_the_head_of_prometheus_text_alone() {
        let write = |format| {
            let mut text = Text::new(format);
            text.head("empty_total", "counter", "Nothing of it is seen.");
            text.counter("sent_bytes_total", "Bytes.", 3);
            text.gauge("open", "Open.", 4);
            text.finish()
        };
        let expected = "# HELP sent_bytes_total Bytes.\n# TYPE sent_bytes_total counter\nsent_bytes_total 3\n\
                        # HELP open Open.\n# TYPE open gauge\nopen 4\n# EOF\n";
        assert_eq!(write(Format::Prometheus), expected);
        let expected = "# HELP sent_bytes Bytes.\n# TYPE sent_bytes counter\n# UNIT sent_bytes bytes\n\
                        sent_bytes_total 3\n# HELP open Open.\n# TYPE open gauge\nopen 4\n# EOF\n";
        assert_eq!(write(Format::OpenMetrics), expected);
    }
}
