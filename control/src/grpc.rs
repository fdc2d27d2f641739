//! A connection to a control plane: where it is, whom to believe there, and what to show it.
//!
//! An [`Upstream`] holds one channel. It is made anew when the last one has ended, or when the roots or the client
//! certificate have changed; a change that does not lead to a channel leaves the old one in use. The token is read
//! again for every call, since Kubernetes renews it. What goes over the channel is not known here.

mod channel;
mod error;
#[cfg(test)]
mod tests;
mod tls;
mod token;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};
use tonic::transport::Channel;
use tracing::{info, warn};

use channel::Life;
pub use error::UpstreamError;
use tls::Materials;
pub use token::{Secret, Token};

/// A change of roots that did not lead to a channel is tried again after this.
const REBUILD_PAUSE: Duration = Duration::from_secs(10);

/// Which certificates vouch for a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// Those in a PEM file, which is read again for every use.
    File(PathBuf),
    /// Those in this PEM text.
    Inline(String),
    /// Those that the system trusts.
    System,
}

impl fmt::Display for Roots {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(out),
            Self::Inline(_) => out.write_str("the inline roots"),
            Self::System => out.write_str("the system's roots"),
        }
    }
}

/// How a control plane is reached.
#[derive(Clone, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// `https://host:port`, or `http://host:port` without TLS.
    pub address: String,
    /// Who vouches for the server.
    pub roots: Roots,
    /// A name that the server's certificate may carry instead of the address's host.
    pub alt_hostname: Option<String>,
    /// What the node shows to be let in.
    pub token: Token,
    /// Certificate and key that the node shows in the handshake, PEM files.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// Name of the node's cluster.
    pub cluster: String,
    /// Further headers of every call.
    pub headers: Vec<(String, String)>,
}

/// Leaves out the headers' values, which may be secrets.
impl fmt::Debug for UpstreamConfig {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        out.debug_struct("UpstreamConfig")
            .field("address", &self.address)
            .field("roots", &self.roots)
            .field("alt_hostname", &self.alt_hostname)
            .field("token", &self.token)
            .field("client_certificate", &self.client_certificate)
            .field("cluster", &self.cluster)
            .field("headers", &headers)
            .finish()
    }
}

/// A control plane and the channel to it.
#[derive(Debug)]
pub(crate) struct Upstream {
    config: UpstreamConfig,
    current: Option<Current>,
    refused: Option<Refused>,
    /// Connections that were made.
    made: u64,
}

#[derive(Debug)]
struct Current {
    channel: Channel,
    life: Arc<Life>,
    materials: Option<Materials>,
}

/// A change that did not lead to a channel.
#[derive(Debug)]
struct Refused {
    materials: Result<Option<Materials>, UpstreamError>,
    at: Instant,
}

impl Upstream {
    pub(crate) fn new(config: UpstreamConfig) -> Self {
        Self { config, current: None, refused: None, made: 0 }
    }

    /// The address that it was given.
    pub(crate) fn address(&self) -> &str {
        &self.config.address
    }

    /// A channel over a connection that is there. Takes as long as connecting may take: about ten seconds.
    pub(crate) async fn channel(&mut self) -> Result<Channel, UpstreamError> {
        let materials = Materials::read(&self.config);
        if self.current.as_ref().is_some_and(|current| current.life.ended()) {
            self.current = None;
        }
        let Some(current) = &self.current else {
            return self.connect(materials?).await;
        };
        let kept = current.channel.clone();
        let refused = self.refused.as_ref().filter(|refused| refused.materials == materials);
        if materials.as_ref() == Ok(&current.materials)
            || refused.is_some_and(|refused| refused.at.elapsed() < REBUILD_PAUSE)
        {
            return Ok(kept);
        }
        let told = refused.is_some();
        Ok(self.replace(materials, told).await.unwrap_or(kept))
    }

    /// Makes a channel of changed materials. Without one, the channel in use stays.
    async fn replace(
        &mut self,
        materials: Result<Option<Materials>, UpstreamError>,
        told: bool,
    ) -> Option<Channel> {
        let attempt = match materials.clone() {
            Ok(materials) => self.connect(materials).await,
            Err(error) => Err(error),
        };
        match attempt {
            Ok(channel) => {
                info!(address = self.config.address, "connected anew, with the roots that are there now");
                Some(channel)
            }
            Err(error) => {
                if !told {
                    warn!(%error, "the changed roots do not lead to a connection; the one in use stays");
                }
                self.refused = Some(Refused { materials, at: Instant::now() });
                None
            }
        }
    }

    async fn connect(&mut self, materials: Option<Materials>) -> Result<Channel, UpstreamError> {
        let (channel, life) = channel::connect(&self.config, materials.as_ref()).await?;
        self.current = Some(Current { channel: channel.clone(), life, materials });
        self.refused = None;
        self.made += 1;
        Ok(channel)
    }

    /// The number of the connection that the last channel belongs to.
    pub(crate) fn connection(&self) -> u64 {
        self.made
    }

    /// Makes no more calls over a connection that went silent; calls that are out go on. A later connection is kept.
    pub(crate) fn abandon(&mut self, connection: u64) {
        if self.made == connection {
            self.current = None;
        }
    }

    /// Puts on a call what lets the node in. The token is read now.
    pub(crate) fn authorize(&self, metadata: &mut MetadataMap) -> Result<(), UpstreamError> {
        if let Some(token) = self.config.token.read()? {
            let wrong = |_| UpstreamError::Token {
                source_name: self.config.token.to_string(),
                reason: "it holds characters that a header cannot carry".to_owned(),
            };
            let bearer = token.bearer();
            let mut value = AsciiMetadataValue::try_from(bearer.as_str()).map_err(wrong)?;
            value.set_sensitive(true);
            metadata.insert("authorization", value);
        }
        if !self.config.cluster.is_empty() {
            metadata.insert("clusterid", header_value("clusterid", &self.config.cluster)?);
        }
        for (name, value) in &self.config.headers {
            let key = AsciiMetadataKey::from_bytes(name.as_bytes())
                .map_err(|_| UpstreamError::Header { name: name.clone() })?;
            let mut value = header_value(name, value)?;
            value.set_sensitive(true);
            metadata.insert(key, value);
        }
        Ok(())
    }
}

fn header_value(name: &str, value: &str) -> Result<AsciiMetadataValue, UpstreamError> {
    AsciiMetadataValue::try_from(value).map_err(|_| UpstreamError::Header { name: name.to_owned() })
}
