//! Texts into values: the forms that variables take, and why one is refused.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use super::ShardCount;

/// A variable or flag that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable}={value:?}: {reason}")]
pub struct ConfigError {
    /// Name of the variable or flag.
    pub variable: Cow<'static, str>,
    /// What it was set to, unless that is a secret.
    pub value: String,
    /// What is wrong with that.
    pub reason: String,
}

/// What the node finds in files whose places are fixed.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// The text of [`MESH_CONFIG`], if it is there.
    pub mesh_config: Option<String>,
    /// Whether there is a [`TOKEN`].
    pub token: bool,
    /// The text of [`RESOLV_CONF`], if it is there.
    pub resolv_conf: Option<String>,
}

/// The mesh's configuration, of which `defaultConfig` counts.
pub const MESH_CONFIG: &str = "./etc/istio/config/mesh";
/// How the node proxy's own names are resolved (resolv.conf(5)), of which the servers count.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The token of the node's service account.
pub const TOKEN: &str = "./var/run/secrets/tokens/istio-token";

/// Environment variables, by name, and what the files say that count beside them.
#[derive(Clone, Default)]
pub struct Variables {
    values: BTreeMap<String, String>,
    files: Files,
}

/// Names only: a value may be a secret.
impl fmt::Debug for Variables {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_set().entries(self.values.keys()).finish()
    }
}

impl Variables {
    /// The value of a variable, if it is set. An empty value counts as not set.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether a variable is set, and set to nothing.
    pub fn is_set_empty(&self, name: &str) -> bool {
        self.values.get(name).is_some_and(String::is_empty)
    }

    /// Variables whose name begins so, with the rest of it, in order. An empty value counts as not set.
    pub fn starting_with<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let values = self.values.iter().filter(|(_, value)| !value.is_empty());
        values.filter_map(move |(name, value)| Some((name.strip_prefix(prefix)?, value.as_str())))
    }

    /// The same variables beside these files.
    pub fn with_files(self, files: Files) -> Self {
        Self { files, ..self }
    }

    /// What the files say.
    pub fn files(&self) -> &Files {
        &self.files
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Variables {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let values = pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Self { values, files: Files::default() }
    }
}

/// Why a text is not of the form that its variable takes.
pub(super) type Reason = String;

/// Any type that parses itself, with what was expected.
pub(super) fn parse<T: FromStr>(text: &str, expected: &str) -> Result<T, Reason> {
    text.parse().map_err(|_| format!("expected {expected}"))
}

pub(super) fn boolean(text: &str) -> Result<bool, Reason> {
    parse(text, "true or false")
}

/// A number within bounds, both included.
pub(super) fn number(text: &str, least: u32, most: u32) -> Result<u32, Reason> {
    let expected = || format!("expected a number from {least} to {most}");
    let number = text.parse().map_err(|_| expected())?;
    if (least..=most).contains(&number) { Ok(number) } else { Err(expected()) }
}

/// A packet mark, decimal or `0x` and hexadecimal.
pub(super) fn mark(text: &str) -> Result<u32, Reason> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "expected a 32-bit number, decimal or 0x and hexadecimal".to_owned())
}

/// One or more of a number with its unit, `1h30m`, `5m`, `10s`, `250ms`; or a number alone, of seconds.
pub(super) fn duration(text: &str) -> Result<Duration, Reason> {
    duration_ms(text)
        .map(Duration::from_millis)
        .ok_or_else(|| "expected a duration such as 10s, 5m, 1h30m, 250ms, or 30 for seconds".to_owned())
}

fn duration_ms(text: &str) -> Option<u64> {
    if let Ok(seconds) = text.parse::<u64>() {
        return seconds.checked_mul(1_000);
    }
    let mut total: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let unit_ms = match &rest[..letters] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        rest = &rest[letters..];
        total = total.checked_add(number.checked_mul(unit_ms)?)?;
    }
    (!text.is_empty()).then_some(total)
}

/// A duration above zero.
pub(super) fn duration_some(text: &str) -> Result<Duration, Reason> {
    let duration = duration(text)?;
    if duration.is_zero() { Err("must be longer than 0".to_owned()) } else { Ok(duration) }
}

/// A duration in the unit of [`halo_core::limits::Limits`].
pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// `N`, `P%`, or 0 for every core.
pub(super) fn shard_count(text: &str) -> Result<ShardCount, Reason> {
    let expected =
        || "expected a number of threads, a percentage such as 50%, or 0 for every core".to_owned();
    match text.strip_suffix('%') {
        Some(percent) => {
            let percent: NonZeroU32 = percent.trim().parse().map_err(|_| expected())?;
            if percent.get() > 100 { Err(expected()) } else { Ok(ShardCount::Percent(percent)) }
        }
        None => {
            let count = number(text, 0, 1024).map_err(|_| expected())?;
            Ok(NonZeroU32::new(count).map_or(ShardCount::EveryCore, ShardCount::Count))
        }
    }
}

/// One of a few words.
pub(super) fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, Reason> {
    let found = words.iter().find(|(word, _)| *word == text);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        format!("expected {}", known.join(" or "))
    })
}
