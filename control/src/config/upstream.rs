//! Which control plane and which certificate authority a node uses, and how it reaches them.

#[cfg(test)]
mod tests;

use std::num::NonZeroU16;
use std::path::PathBuf;

use http::{HeaderName, HeaderValue, Uri};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};

use super::CaSource;
use super::raw::{ConfigError, Files, Reason, TOKEN};
use super::resolved::{Draft, refuse};
use crate::grpc::{Roots, Secret, Token, UpstreamConfig};

/// The control plane in Kubernetes, where no other is named.
const ISTIOD: &str = "https://istiod.istio-system.svc:15012";
/// Where Kubernetes mounts the control plane's root.
const ROOT: &str = "./var/run/secrets/istio/root-cert.pem";

/// What variables say of one upstream.
pub(super) struct UpstreamDraft {
    pub(super) address: Option<String>,
    /// Whether the address was set to nothing.
    pub(super) disabled: bool,
    pub(super) roots: Roots,
    pub(super) alt_hostname: Option<String>,
    pub(super) headers: Vec<(String, String)>,
}

impl Default for UpstreamDraft {
    fn default() -> Self {
        let roots = Roots::File(ROOT.into());
        Self { address: None, disabled: false, roots, alt_hostname: None, headers: Vec::new() }
    }
}

impl UpstreamDraft {
    pub(super) fn at(&mut self, text: &str) -> Result<(), Reason> {
        self.address = Some(address(text)?);
        Ok(())
    }

    fn settle(self, address: String, cluster: &str, token: Token) -> UpstreamConfig {
        UpstreamConfig {
            address,
            roots: self.roots,
            alt_hostname: self.alt_hostname,
            token,
            client_certificate: None,
            cluster: cluster.to_owned(),
            headers: self.headers,
        }
    }
}

/// Decides where the mesh and certificates come from.
pub(super) fn settle(draft: &mut Draft, files: &Files) -> Result<(), ConfigError> {
    let client_certificate = client_certificate(draft)?;
    let discovery = match draft.discovery.as_deref() {
        Some(text) => {
            let wrong = |reason: Reason| refuse("PROXY_CONFIG", text, format!("discoveryAddress: {reason}"));
            Some(address(text).map_err(wrong)?)
        }
        None => draft.kubernetes.then(|| ISTIOD.to_owned()),
    };
    // A local source is for a node without a control plane; one that has both says so.
    let fallback = discovery.filter(|_| draft.config.local.is_none());
    let token =
        draft.token.take().unwrap_or(if files.token { Token::File(TOKEN.into()) } else { Token::None });
    let cluster = draft.config.cluster.clone();

    let mut xds = std::mem::take(&mut draft.xds);
    let at = xds.address.take().or_else(|| fallback.clone()).filter(|_| !xds.disabled);
    draft.config.xds =
        at.map(|at| UpstreamConfig { client_certificate, ..xds.settle(at, &cluster, token.clone()) });
    let mut ca = std::mem::take(&mut draft.ca);
    draft.config.ca = match (draft.ca_dir.take(), ca.address.take()) {
        (Some(directory), Some(address)) => {
            let reason = format!(
                "HALO_CA_DIR (or --ca-dir) is set too, to {}; certificates come from one place",
                directory.display()
            );
            return Err(refuse("CA_ADDRESS", &address, reason));
        }
        (Some(directory), None) => CaSource::Directory(directory),
        (None, address) => match address.or(fallback).filter(|_| !ca.disabled) {
            Some(address) => CaSource::Remote(ca.settle(address, &cluster, token)),
            None => CaSource::Memory,
        },
    };
    Ok(())
}

fn client_certificate(draft: &mut Draft) -> Result<Option<(PathBuf, PathBuf)>, ConfigError> {
    match (draft.client_certificate.take(), draft.client_key.take()) {
        (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
        (None, None) => Ok(None),
        (Some(path), None) => {
            Err(refuse("HALO_XDS_CLIENT_CERT", &path.display().to_string(), "HALO_XDS_CLIENT_KEY is not set"))
        }
        (None, Some(path)) => {
            Err(refuse("HALO_XDS_CLIENT_KEY", &path.display().to_string(), "HALO_XDS_CLIENT_CERT is not set"))
        }
    }
}

/// An address; without a scheme it is of TLS.
fn address(text: &str) -> Result<String, Reason> {
    let expected = || "expected https://host:port, http://host:port or host:port".to_owned();
    let full = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let uri: Uri = full.parse().map_err(|_| expected())?;
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(expected)?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(bare).map_err(|_| expected())?;
    let authority = uri.authority().map(ToString::to_string).ok_or_else(expected)?;
    // The parser takes a port that is no number for no port.
    let port = match authority.strip_prefix(host) {
        Some("") => true,
        Some(port) => port.strip_prefix(':').is_some_and(|port| port.parse::<NonZeroU16>().is_ok()),
        None => false,
    };
    let plain = port && matches!(uri.path(), "" | "/") && uri.query().is_none();
    match uri.scheme_str() {
        Some(scheme @ ("https" | "http")) if plain => Ok(format!("{scheme}://{authority}")),
        _ => Err(expected()),
    }
}

/// A file, PEM text, or `SYSTEM`.
pub(super) fn roots(text: &str) -> Result<Roots, Reason> {
    if text == "SYSTEM" {
        return Ok(Roots::System);
    }
    if !text.contains("-----BEGIN") {
        return Ok(Roots::File(text.into()));
    }
    match CertificateDer::pem_slice_iter(text.as_bytes()).next() {
        Some(Ok(_)) => Ok(Roots::Inline(text.to_owned())),
        _ => Err("expected a file, PEM certificates, or SYSTEM".to_owned()),
    }
}

pub(super) fn hostname(text: &str) -> Result<String, Reason> {
    match ServerName::try_from(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("expected a host name or an IP address".to_owned()),
    }
}

/// A path, or the token itself. A token of Kubernetes (RFC 7519) holds no slash and begins with neither.
pub(super) fn token(text: &str) -> Token {
    match text.starts_with(['/', '.']) {
        true => Token::File(text.into()),
        false => Token::Literal(Secret::new(text.to_owned())),
    }
}

pub(super) fn header(name: &str, value: &str) -> Result<(String, String), Reason> {
    let name = HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| "what follows the second underscore is not the name of a header".to_owned())?;
    // Names of this kind carry bytes in a form of their own (gRPC over HTTP/2, "Custom-Metadata").
    if name.as_str().ends_with("-bin") {
        return Err("a header whose name ends in -bin is not text".to_owned());
    }
    HeaderValue::from_str(value)
        .map_err(|_| "the value holds characters that a header cannot carry".to_owned())?;
    Ok((name.to_string(), value.to_owned()))
}

pub(super) fn json(text: &str) -> Result<serde_json::Value, Reason> {
    serde_json::from_str(text).map_err(|error| format!("expected JSON: {error}"))
}
