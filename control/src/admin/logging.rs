//! `/logging`: the log levels, told and changed while the node runs.

use hyper::{Method, StatusCode};

use crate::http::{Answer, Request};
use crate::log::{LogControl, LogError};

const USAGE: &str = "\
usage: POST /logging                                    (tells the levels)
usage: POST /logging?level=<level>                      (sets the level of everything)
usage: POST /logging?level=<scope>:<level>,<level>      (sets the levels of scopes; <scope>=<level> is the same)
usage: POST /logging?reset                              (goes back to the levels of the start, then takes level=)

levels: off, error, warn, info, debug, trace
scopes: beginnings of a line's scope, for example access or halo_control::xds
";

/// Answers a request.
pub(super) fn answer(log: Option<&LogControl>, request: &Request) -> Answer {
    if request.method != Method::POST {
        return Answer::text(StatusCode::METHOD_NOT_ALLOWED, format!("Invalid HTTP method\n{USAGE}"));
    }
    let Some(log) = log else {
        return Answer::text(StatusCode::INTERNAL_SERVER_ERROR, "the log is not in this process's hands\n");
    };
    let refused = |why: &str| Answer::text(StatusCode::BAD_REQUEST, format!("{why}\n{USAGE}"));
    let asked = request.parameter("level").filter(|level| !level.is_empty());
    // All of it is read before any of it is done.
    let directives = match asked.map(directives).transpose() {
        Ok(directives) => directives,
        Err(wrong) => return refused(&format!("Invalid level provided: {wrong}")),
    };
    match change(log, request.parameter("reset").is_some(), directives) {
        Ok(()) => Answer::text(StatusCode::OK, format!("current log level is {}\n", log.level())),
        Err(error) => refused(&format!("Failed to set new level: {error}")),
    }
}

fn change(log: &LogControl, reset: bool, directives: Option<String>) -> Result<(), LogError> {
    if reset {
        log.reset()?;
    }
    directives.map_or(Ok(()), |directives| log.set(&directives))
}

/// A list of levels in the form that the log takes; or the first part of it that is wrong, and why.
fn directives(text: &str) -> Result<String, String> {
    text.split(',').map(directive).collect::<Result<Vec<_>, _>>().map(|all| all.join(","))
}

/// `level`, `scope=level` or `scope:level`. A scope may hold pairs of colons.
fn directive(text: &str) -> Result<String, String> {
    let text = text.trim();
    let (scope, level) = match text.split_once('=').or_else(|| text.rsplit_once(':')) {
        Some((scope, level)) => (Some(scope.trim()), level.trim()),
        None => (None, text),
    };
    let Some(level) = self::level(level) else {
        return Err(format!("{text:?}: {level:?} is no level"));
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-' | '.');
    match scope {
        None => Ok(level.to_owned()),
        Some(scope) if !scope.is_empty() && !scope.ends_with(':') && scope.chars().all(plain) => {
            Ok(format!("{scope}={level}"))
        }
        Some(scope) => Err(format!("{text:?}: {scope:?} is no scope")),
    }
}

/// A level by its own name, or by that which other proxies of the mesh have for it.
fn level(text: &str) -> Option<&'static str> {
    Some(match text.to_ascii_lowercase().as_str() {
        "off" | "none" => "off",
        "error" | "critical" => "error",
        "warn" | "warning" => "warn",
        "info" => "info",
        "debug" => "debug",
        "trace" => "trace",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LogFormat;
    use crate::log::Log;

    fn ask(log: &LogControl, method: Method, query: &[(&str, &str)]) -> (StatusCode, String) {
        let query = query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        answer(Some(log), &Request { method, path: "/logging".into(), query, ..Request::default() })
            .into_parts()
    }

    #[test]
    fn levels_are_told_changed_and_reset() {
        let (log, _subscriber) = Log::to(std::io::sink(), "info", LogFormat::Plain).unwrap();
        let log = log.control();
        for (query, level) in [
            (&[][..], "info"),
            (&[("level", "debug")], "debug"),
            (&[("level", "")], "debug"),
            (&[("level", "warning")], "warn"),
            (&[("level", "access=debug,info")], "access=debug,info"),
            (&[("level", "access:trace")], "access=trace,info"),
            (&[("level", "halo_control::xds:critical")], "halo_control::xds=error,access=trace,info"),
            (&[("reset", "")], "info"),
            (&[("level", "access:warn"), ("reset", "true")], "access=warn,info"),
            (&[("reset", ""), ("level", "")], "info"),
        ] {
            let wanted = (StatusCode::OK, format!("current log level is {level}\n"));
            assert_eq!(ask(&log, Method::POST, query), wanted, "{query:?}");
        }
    }

    #[test]
    fn whatever_is_wrong_is_named_and_changes_nothing() {
        let (log, _subscriber) = Log::to(std::io::sink(), "info", LogFormat::Plain).unwrap();
        let log = log.control();
        for (level, named) in [
            ("access", "\"access\": \"access\" is no level"),
            ("debug,access:loud", "\"access:loud\": \"loud\" is no level"),
            ("=debug", "\"=debug\": \"\" is no scope"),
            ("a b=debug", "\"a b=debug\": \"a b\" is no scope"),
            ("debug,", "\"\": \"\" is no level"),
            ("access::debug", "\"access:\" is no scope"),
        ] {
            let (status, text) = ask(&log, Method::POST, &[("reset", ""), ("level", level)]);
            assert_eq!(status, StatusCode::BAD_REQUEST, "{level}");
            assert!(text.starts_with("Invalid level provided: ") && text.contains(named), "{text}");
            assert!(text.contains("usage: POST /logging?level="), "{text}");
        }
        assert_eq!(log.level(), "info");
        let (status, text) = ask(&log, Method::GET, &[("level", "debug")]);
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
        assert!(text.starts_with("Invalid HTTP method\nusage: "), "{text}");
        assert_eq!(log.level(), "info");
    }
}
