//! The token that a node shows to be let in, and texts that must not be seen.

use std::fmt;
use std::fs;
use std::path::PathBuf;

use zeroize::Zeroizing;

use super::UpstreamError;

/// A text that is wiped when dropped and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// As the value of an `authorization` header (RFC 6750, section 2.1).
    pub(super) fn bearer(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("Bearer {}", self.expose()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Secret(..)")
    }
}

/// Where the token comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// A file, read again for every call: Kubernetes renews it.
    File(PathBuf),
    /// This text.
    Literal(Secret),
    /// There is none.
    None,
}

/// Where it comes from, never the token itself.
impl fmt::Display for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(out),
            Self::Literal(_) => out.write_str("set"),
            Self::None => out.write_str("none"),
        }
    }
}

impl Token {
    /// The token as it is now.
    pub(super) fn read(&self) -> Result<Option<Secret>, UpstreamError> {
        match self {
            Self::None => Ok(None),
            Self::Literal(secret) => Ok(Some(secret.clone())),
            Self::File(path) => {
                let wrong = |reason| UpstreamError::Token { source_name: self.to_string(), reason };
                let text = fs::read_to_string(path).map(Zeroizing::new).map_err(|e| wrong(e.to_string()))?;
                match text.trim() {
                    "" => Err(wrong("the file is empty".to_owned())),
                    token => Ok(Some(Secret::new(token.to_owned()))),
                }
            }
        }
    }
}
