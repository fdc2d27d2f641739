//! Keeps the revocations in force equal to a file of certificate revocation lists. A file that cannot be read or is
//! wrong changes nothing: what was in force stays in force, and the error is told once. A file that is found empty is
//! read again before its lists are taken away: a writer may have been caught between emptying and filling it.

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use halo_core::certificate::Revocations;
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;
use tracing::{error, info, warn};
use webpki::OwnedCertRevocationList;
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use crate::edit::MeshEdit;
use crate::publish::{Publisher, PublisherGone};
use crate::watch::FileWatch;

/// A changed file is read this long after its change: tools that renew several lists write one after the other.
pub(crate) const SETTLE: Duration = Duration::from_secs(2);

/// Pause between two readings of a file that cannot be watched, for want of inotify instances for example.
const POLL: Duration = Duration::from_secs(5);

/// What is wrong with a file of revocation lists.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Read(String),
    /// Its PEM is broken.
    #[error("not PEM: {0}")]
    Pem(String),
    /// It is PEM of other things.
    #[error("it holds PEM, and no block X509 CRL")]
    NoList,
    /// It is neither PEM nor DER of a list.
    #[error("what follows list {after} is neither PEM nor DER of a certificate revocation list")]
    NotDer {
        /// Lists before it.
        after: usize,
    },
    /// A list is of a kind that is not supported.
    #[error("list {index} is not usable: {reason}")]
    Unusable {
        /// Which, from 0.
        index: usize,
        /// The verifier's words.
        reason: String,
    },
}

/// The lists of a file, PEM or DER, one after the other. An empty file is of none.
pub fn parse(bytes: &[u8]) -> Result<Option<Revocations>, CrlError> {
    if bytes.trim_ascii().is_empty() {
        return Ok(None);
    }
    let marker = b"-----BEGIN";
    let lists = if bytes.windows(marker.len()).any(|window| window == marker) {
        of_pem(bytes)
    } else {
        of_der(bytes)
    }?;
    for (index, list) in lists.iter().enumerate() {
        // What the shards could not use must not reach them.
        OwnedCertRevocationList::from_der(list)
            .map_err(|error| CrlError::Unusable { index, reason: error.to_string() })?;
    }
    Ok(Some(Revocations { lists }))
}

fn of_pem(text: &[u8]) -> Result<Vec<Vec<u8>>, CrlError> {
    let lists = CertificateRevocationListDer::pem_slice_iter(text)
        .map(|list| list.map(|list| list.to_vec()).map_err(|error| CrlError::Pem(error.to_string())))
        .collect::<Result<Vec<_>, _>>()?;
    if lists.is_empty() { Err(CrlError::NoList) } else { Ok(lists) }
}

fn of_der(mut bytes: &[u8]) -> Result<Vec<Vec<u8>>, CrlError> {
    let mut lists = Vec::new();
    while !bytes.is_empty() {
        let (rest, _) = CertificateRevocationList::from_der(bytes)
            .map_err(|_| CrlError::NotDer { after: lists.len() })?;
        lists.push(bytes[..bytes.len() - rest.len()].to_vec());
        bytes = rest;
    }
    Ok(lists)
}

/// Follows a file until the publisher goes. `settle` is [`SETTLE`], or shorter in tests.
pub(crate) async fn run(path: PathBuf, publisher: Publisher, settle: Duration) {
    let name = path.display().to_string();
    let mut watch = match FileWatch::new(&path) {
        Ok(watch) => Some(watch),
        Err(error) => {
            error!(file = name, %error, "the file cannot be watched and is read from time to time");
            None
        }
    };
    let mut follower = Follower { publisher, judged: None, emptied: false };
    loop {
        match follower.read(&path, &name).await {
            Ok(Reading::Judged) => {}
            Ok(Reading::Doubtful) => {
                tokio::time::sleep(settle).await;
                continue;
            }
            Err(gone) => return error!(%gone, "revocations are not followed any more"),
        }
        match &mut watch {
            Some(watch) => {
                watch.changed().await;
                tokio::time::sleep(settle).await;
            }
            None => tokio::time::sleep(POLL).await,
        }
    }
}

/// What a reading came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// The text was judged, now or before.
    Judged,
    /// It would take every list away, and is to be read once more.
    Doubtful,
}

struct Follower {
    publisher: Publisher,
    /// What was judged last, so that it is judged once.
    judged: Option<Result<Vec<u8>, CrlError>>,
    /// Whether the last reading was doubtful.
    emptied: bool,
}

impl Follower {
    async fn read(&mut self, path: &Path, name: &str) -> Result<Reading, PublisherGone> {
        let read = tokio::fs::read(path).await.map_err(|error| CrlError::Read(error.to_string()));
        let doubted = std::mem::take(&mut self.emptied);
        if self.judged.as_ref() == Some(&read) {
            return Ok(Reading::Judged);
        }
        let parsed = read.as_deref().map_err(Clone::clone).and_then(parse);
        if parsed == Ok(None) && !doubted && self.publisher.snapshot().revocations.is_some() {
            self.emptied = true;
            return Ok(Reading::Doubtful);
        }
        self.judged = Some(read);
        match parsed {
            Ok(revocations) => {
                let lists = revocations.as_ref().map_or(0, |revocations| revocations.lists.len());
                if self.publisher.snapshot().revocations.as_deref() != revocations.as_ref() {
                    let edit = MeshEdit::Revocations(revocations.map(Arc::new));
                    let generation = self.publisher.publish(vec![edit]).await?;
                    info!(file = name, lists, generation, "revocations in force");
                }
            }
            Err(error) => {
                warn!(file = name, %error, "the revocations are not taken; what was in force stays in force");
            }
        }
        Ok(Reading::Judged)
    }
}
