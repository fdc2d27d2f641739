//! One log line: time, level, scope, message, fields; as text with tabs, or as a JSON object (the stock node proxy's
//! two forms). Whatever is written, a line stays one line.

use std::fmt::{self, Write};
use std::time::SystemTime;

use time::OffsetDateTime;

use crate::config::LogFormat;

/// Targets in front of which the text form says nothing.
const OWN: [&str; 2] = ["halo_control::", "halo::"];

/// A line under construction.
pub(crate) struct Line<'a> {
    out: &'a mut dyn Write,
    json: bool,
    /// What separates the next field from what is before it, in the text form.
    separator: &'static str,
}

impl<'a> Line<'a> {
    /// Begins a line.
    pub(crate) fn begin(
        out: &'a mut dyn Write,
        format: LogFormat,
        time: SystemTime,
        level: &str,
    ) -> Result<Self, fmt::Error> {
        let json = format == LogFormat::Json;
        if json {
            write!(out, "{{\"level\":\"{level}\",\"time\":\"{}\"", Rfc3339(time))?;
        } else {
            write!(out, "{}\t{level}\t", Rfc3339(time))?;
        }
        Ok(Self { out, json, separator: "\t" })
    }

    /// Says what the line is about; once, before all else.
    pub(crate) fn scope(&mut self, target: &str) -> fmt::Result {
        if self.json {
            self.key("scope")?;
            return quoted(self.out, target);
        }
        let own = OWN.iter().find_map(|own| target.strip_prefix(own));
        self.out.write_str(own.unwrap_or(target))
    }

    /// Adds a span to the scope; only in the text form, right after it. `fields` are formatted already.
    pub(crate) fn span(&mut self, name: &str, fields: &str) -> fmt::Result {
        match fields.is_empty() {
            true => write!(self.out, ":{name}"),
            false => write!(self.out, ":{name}{{{fields}}}"),
        }
    }

    /// Says what happened, before every field.
    pub(crate) fn message(&mut self, message: fmt::Arguments<'_>) -> fmt::Result {
        if self.json {
            return self.shown("message", message);
        }
        self.out.write_char('\t')?;
        write!(Guarded(self.out, false), "{message}")?;
        self.out.write_char('\t')?;
        self.separator = "";
        Ok(())
    }

    /// A field that is text: quoted in both forms.
    pub(crate) fn text(&mut self, name: &str, value: &str) -> fmt::Result {
        self.key(name)?;
        quoted(self.out, value)
    }

    /// A field in its own notation: quoted in JSON alone.
    pub(crate) fn shown(&mut self, name: &str, value: fmt::Arguments<'_>) -> fmt::Result {
        self.key(name)?;
        if !self.json {
            return write!(Guarded(self.out, false), "{value}");
        }
        self.out.write_char('"')?;
        write!(Guarded(self.out, true), "{value}")?;
        self.out.write_char('"')
    }

    /// A field that needs no quotes in either form: a number, a truth, a JSON value.
    pub(crate) fn bare(&mut self, name: &str, value: impl fmt::Display) -> fmt::Result {
        self.key(name)?;
        write!(self.out, "{value}")
    }

    /// Ends the line.
    pub(crate) fn end(self) -> fmt::Result {
        self.out.write_str(if self.json { "}\n" } else { "\n" })
    }

    fn key(&mut self, name: &str) -> fmt::Result {
        if self.json {
            self.out.write_char(',')?;
            quoted(self.out, name)?;
            return self.out.write_char(':');
        }
        let separator = std::mem::replace(&mut self.separator, " ");
        write!(self.out, "{separator}{name}=")
    }
}

/// The text in double quotes, with what JSON and Rust both escape alike.
pub(super) fn quoted(out: &mut dyn Write, text: &str) -> fmt::Result {
    out.write_char('"')?;
    Guarded(out, true).write_str(text)?;
    out.write_char('"')
}

/// Escapes what would end the line; and, if so asked, what would end a quoted text.
pub(super) struct Guarded<'a>(&'a mut dyn Write, bool);

impl<'a> Guarded<'a> {
    /// Guards the line alone.
    pub(super) fn line(out: &'a mut dyn Write) -> Self {
        Self(out, false)
    }
}

impl Write for Guarded<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let special = |c: char| c.is_control() || self.1 && matches!(c, '"' | '\\');
        let mut rest = text;
        while let Some(at) = rest.find(special) {
            let (before, after) = rest.split_at(at);
            self.0.write_str(before)?;
            let mut characters = after.chars();
            match characters.next() {
                Some('\n') => self.0.write_str("\\n")?,
                Some('\r') => self.0.write_str("\\r")?,
                Some('\t') => self.0.write_str("\\t")?,
                Some(c @ ('"' | '\\')) => write!(self.0, "\\{c}")?,
                Some(c) => write!(self.0, "\\u{:04x}", u32::from(c))?,
                None => {}
            }
            rest = characters.as_str();
        }
        self.0.write_str(rest)
    }
}

/// A time as RFC 3339 has it, in UTC, to the microsecond.
struct Rfc3339(SystemTime);

impl fmt::Display for Rfc3339 {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = OffsetDateTime::from(self.0);
        let (year, month, day) = time.to_calendar_date();
        let (hour, minute, second, micro) = time.to_hms_micro();
        let month = u8::from(month);
        write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micro:06}Z")
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn line(format: LogFormat) -> String {
        let mut out = String::new();
        let time = UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_042);
        let mut line = Line::begin(&mut out, format, time, "info").unwrap();
        line.scope("halo_control::xds").unwrap();
        line.message(format_args!("taken\nand \"held\"")).unwrap();
        line.text("name", "a \"b\"\n\u{7f}").unwrap();
        line.shown("address", format_args!("[::1]:80\n")).unwrap();
        line.bare("count", 3).unwrap();
        line.end().unwrap();
        out
    }

    #[test]
    fn a_text_line_has_tabs_between_its_parts_and_quotes_around_texts() {
        let expected = "2023-11-14T22:13:20.000042Z\tinfo\txds\ttaken\\nand \"held\"\t\
                        name=\"a \\\"b\\\"\\n\\u007f\" address=[::1]:80\\n count=3\n";
        assert_eq!(line(LogFormat::Plain), expected);
    }

    #[test]
    fn a_json_line_is_one_object_with_its_keys_in_order() {
        let text = line(LogFormat::Json);
        let read: serde_json::Map<_, _> = serde_json::from_str(&text).unwrap();
        let keys: Vec<_> = read.keys().map(String::as_str).collect();
        assert_eq!(keys, ["level", "time", "scope", "message", "name", "address", "count"]);
        assert_eq!(read["scope"], "halo_control::xds");
        assert_eq!(read["message"], "taken\nand \"held\"");
        assert_eq!(read["name"], "a \"b\"\n\u{7f}");
        assert_eq!(read["count"], 3);
        assert_eq!(text.matches('\n').count(), 1);
    }

    #[test]
    fn a_field_without_a_message_follows_the_scope() {
        let mut out = String::new();
        let mut line = Line::begin(&mut out, LogFormat::Plain, UNIX_EPOCH, "warn").unwrap();
        line.scope("access").unwrap();
        line.span("tunnel", "id=3").unwrap();
        line.text("k", "v").unwrap();
        line.end().unwrap();
        assert_eq!(out, "1970-01-01T00:00:00.000000Z\twarn\taccess:tunnel{id=3}\tk=\"v\"\n");
    }
}
