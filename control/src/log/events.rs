//! What the process says of itself, through `tracing`, in the form of [`Line`].

use std::fmt::{self, Debug, Write};
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use super::line::{Guarded, Line, quoted};
use crate::config::LogFormat;

/// Formats events and the fields of spans.
#[derive(Debug, Clone, Copy)]
pub(super) struct Events(pub(super) LogFormat);

impl<S, N> FormatEvent<S, N> for Events
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let mut line = Line::begin(&mut writer, self.0, SystemTime::now(), level(metadata.level()))?;
        line.scope(metadata.target())?;
        if self.0 == LogFormat::Plain {
            spans(context, |name, fields| line.span(name, fields))?;
        }
        let mut fields = Fields { line: &mut line, result: Ok(()) };
        event.record(&mut fields);
        fields.result?;
        if self.0 == LogFormat::Json {
            spans(context, |name, fields| line.bare(name, format_args!("{{{fields}}}")))?;
        }
        line.end()
    }
}

fn spans<S, N>(context: &FmtContext<'_, S, N>, mut each: impl FnMut(&str, &str) -> fmt::Result) -> fmt::Result
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
        let extensions = span.extensions();
        let fields = extensions.get::<FormattedFields<N>>().map_or("", |fields| fields.fields.as_str());
        each(span.metadata().name(), fields)?;
    }
    Ok(())
}

fn level(level: &Level) -> &'static str {
    match *level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

struct Fields<'a, 'b> {
    line: &'a mut Line<'b>,
    result: fmt::Result,
}

impl Fields<'_, '_> {
    fn add(&mut self, field: &Field, add: impl FnOnce(&mut Line<'_>, &str) -> fmt::Result) {
        // Fields of events that come from the `log` crate and repeat the metadata.
        if self.result.is_ok() && !field.name().starts_with("log.") {
            self.result = add(self.line, field.name());
        }
    }
}

impl Visit for Fields<'_, '_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field, |line, name| match name {
            "message" => line.message(format_args!("{value:?}")),
            name => line.shown(name, format_args!("{value:?}")),
        });
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, |line, name| match name {
            "message" => line.message(format_args!("{value}")),
            name => line.text(name, value),
        });
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, |line, name| line.bare(name, value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, |line, name| line.bare(name, value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, |line, name| line.bare(name, value));
    }
}

impl<'writer> FormatFields<'writer> for Events {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut pairs = Pairs { writer, json: self.0 == LogFormat::Json, first: true, result: Ok(()) };
        fields.record(&mut pairs);
        pairs.result
    }
}

/// The fields of a span: `k=v k=v`, or the inside of a JSON object.
struct Pairs<'writer> {
    writer: Writer<'writer>,
    json: bool,
    first: bool,
    result: fmt::Result,
}

impl Pairs<'_> {
    fn pair(&mut self, name: &str, value: &str) -> fmt::Result {
        let first = std::mem::replace(&mut self.first, false);
        match (self.json, first) {
            (_, true) => {}
            (true, false) => self.writer.write_char(',')?,
            (false, false) => self.writer.write_char(' ')?,
        }
        if !self.json {
            write!(self.writer, "{name}=")?;
            return Guarded::line(&mut self.writer).write_str(value);
        }
        quoted(&mut self.writer, name)?;
        self.writer.write_char(':')?;
        quoted(&mut self.writer, value)
    }
}

impl Visit for Pairs<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if self.result.is_ok() {
            self.result = self.pair(field.name(), &format!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match self.json {
            true if self.result.is_ok() => self.result = self.pair(field.name(), value),
            true => {}
            false => self.record_debug(field, &value),
        }
    }
}
