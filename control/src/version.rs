//! What this program is, in the words of the stock node proxy.

use std::fmt;

use serde_json::{Map, Value};

/// The build, and the version of the mesh that it is told to be part of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version<'a> {
    /// The mesh's version, as `ISTIO_META_ISTIO_VERSION` tells it.
    pub mesh: &'a str,
}

impl<'a> Version<'a> {
    /// Each part by its name in `config_dump`, in order.
    fn parts(&self) -> [(&'static str, &'a str); 7] {
        [
            ("version", env!("CARGO_PKG_VERSION")),
            ("gitRevision", option_env!("HALO_GIT_REVISION").unwrap_or("unknown")),
            ("rustVersion", option_env!("HALO_RUST_VERSION").unwrap_or(env!("CARGO_PKG_RUST_VERSION"))),
            ("buildProfile", if cfg!(debug_assertions) { "debug" } else { "release" }),
            ("buildStatus", option_env!("HALO_BUILD_STATUS").unwrap_or("unknown")),
            ("istioVersion", self.mesh),
            ("cryptoProvider", "tls-aws-lc"),
        ]
    }

    /// As `config_dump` has it.
    pub(crate) fn to_json(&self) -> Value {
        let parts = self.parts().into_iter().map(|(name, text)| (name.to_owned(), text.into()));
        Value::Object(parts.collect::<Map<_, _>>())
    }
}

/// One line, which tools of the mesh read: `version.BuildInfo{Version:"…", …}`.
impl fmt::Display for Version<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("version.BuildInfo{")?;
        for (index, (name, text)) in self.parts().into_iter().enumerate() {
            let (first, rest) = name.split_at(1);
            let comma = if index == 0 { "" } else { ", " };
            write!(out, "{comma}{}{rest}:{text:?}", first.to_uppercase())?;
        }
        out.write_str("}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_one_line_in_the_words_of_the_stock_proxy() {
        let text = Version { mesh: "1.28.0" }.to_string();
        let start = format!("version.BuildInfo{{Version:{:?}, GitRevision:\"", env!("CARGO_PKG_VERSION"));
        assert!(text.starts_with(&start), "{text}");
        assert!(text.ends_with(", IstioVersion:\"1.28.0\", CryptoProvider:\"tls-aws-lc\"}"), "{text}");
    }
}
