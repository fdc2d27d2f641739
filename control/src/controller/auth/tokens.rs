//! A list of tokens and whose they are, for clusters without an issuer of tokens.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{Digest, SHA256, digest};
use serde::Deserialize;
use zeroize::{Zeroize, Zeroizing};

use super::{Caller, CredentialsError, TOKEN_LEN_MAX, is_name};

/// Permissions of anyone but the owner.
const OTHERS: u32 = 0o077;

/// Tokens, as hashes, and their callers.
pub(super) struct TokenList(Vec<(Digest, Caller)>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Entry {
    token: String,
    service_account: String,
    #[serde(default)]
    node: Option<String>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.token.zeroize();
    }
}

impl TokenList {
    pub(super) fn load(path: &Path) -> Result<Self, CredentialsError> {
        let failed = |error| CredentialsError::File { path: path.display().to_string(), error };
        let mut file = File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
        if mode & OTHERS != 0 {
            return Err(CredentialsError::Exposed { path: path.display().to_string(), mode });
        }
        let mut text = Zeroizing::new(String::new());
        file.read_to_string(&mut text).map_err(failed)?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, CredentialsError> {
        let options = serde_saphyr::options! { with_snippet: false };
        // The reader's own words may quote the text, and with it a token; only the line is told.
        let entries: Vec<Entry> = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            let line = error.location().map_or(0, |location| location.line());
            CredentialsError::Form { path: path.display().to_string(), line }
        })?;
        let mut list: Vec<(Digest, Caller)> = Vec::with_capacity(entries.len());
        for (index, entry) in entries.iter().enumerate() {
            let hash = digest(&SHA256, entry.token.as_bytes());
            let twice = list.iter().any(|(other, _)| other.as_ref() == hash.as_ref());
            let caller = if twice { Err("its token is that of an earlier entry") } else { caller(entry) };
            let wrong = |reason| CredentialsError::Entry {
                path: path.display().to_string(),
                entry: index + 1,
                reason,
            };
            list.push((hash, caller.map_err(wrong)?));
        }
        Ok(Self(list))
    }

    /// Whose a token is. Takes as long for every token, found or not.
    pub(super) fn caller(&self, token: &str) -> Option<Caller> {
        let hash = digest(&SHA256, token.as_bytes());
        let mut found = None;
        for (entry, caller) in &self.0 {
            if verify_slices_are_equal(entry.as_ref(), hash.as_ref()).is_ok() {
                found = Some(caller);
            }
        }
        found.cloned()
    }
}

fn caller(entry: &Entry) -> Result<Caller, &'static str> {
    let token = entry.token.as_str();
    if token.is_empty() || token.len() > TOKEN_LEN_MAX || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(
            "its token is empty, longer than 16384 bytes, or has characters that a header cannot carry",
        );
    }
    let account = entry.service_account.split_once('/');
    let (namespace, name) = account.filter(|(namespace, name)| is_name(namespace) && is_name(name)).ok_or(
        "its serviceAccount is not <namespace>/<name>, each of lower case letters, digits, dashes and dots",
    )?;
    if entry.node.as_deref().is_some_and(|node| !is_name(node)) {
        return Err("its node is not a name of lower case letters, digits, dashes and dots");
    }
    let node = entry.node.as_deref().map(Into::into);
    Ok(Caller { namespace: namespace.into(), service_account: name.into(), node, pod: None, expires: None })
}
