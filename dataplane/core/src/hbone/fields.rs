//! From decoded fields to a request, a response or trailers (RFC 9113, sections 8.2, 8.3 and 8.5).

use super::{ConnectResponse, RequestHead};
use crate::h2::ErrorCode;
use crate::h2::hpack::FIELD_OVERHEAD;

#[cfg(test)]
mod tests;

/// The fields of one header block, collected while they are decoded. Once a field is malformed or the list too
/// large, the rest is only looked at by the decoder.
pub(super) struct Fields {
    method: Option<String>,
    scheme: Option<String>,
    path: Option<String>,
    authority: Option<String>,
    status: Option<String>,
    headers: Vec<(String, String)>,
    size: usize,
    size_max: usize,
    error: Option<ErrorCode>,
}

impl Fields {
    /// An empty list that may grow to so many bytes, 32 counted for each field.
    pub(super) fn new(size_max: u32) -> Self {
        Self {
            method: None,
            scheme: None,
            path: None,
            authority: None,
            status: None,
            headers: Vec::new(),
            size: 0,
            size_max: size_max as usize,
            error: None,
        }
    }

    /// Adds a field.
    pub(super) fn push(&mut self, name: &[u8], value: &[u8]) {
        if self.error.is_some() {
            return;
        }
        self.size = self.size.saturating_add(name.len() + value.len() + FIELD_OVERHEAD);
        if self.size > self.size_max {
            self.error = Some(ErrorCode::EnhanceYourCalm);
        } else if self.push_valid(name, value).is_none() {
            self.error = Some(ErrorCode::ProtocolError);
        }
    }

    /// Adds a field, or returns None if it makes the message malformed.
    fn push_valid(&mut self, name: &[u8], value: &[u8]) -> Option<()> {
        value_is_valid(value).then_some(())?;
        let value = String::from_utf8_lossy(value).into_owned();
        let pseudo = match name {
            b":method" => &mut self.method,
            b":scheme" => &mut self.scheme,
            b":path" => &mut self.path,
            b":authority" => &mut self.authority,
            b":status" => &mut self.status,
            _ => {
                name_is_valid(name, &value).then_some(())?;
                self.headers.push((String::from_utf8(name.to_vec()).ok()?, value));
                return Some(());
            }
        };
        // Pseudo-header fields come first, each once (RFC 9113, section 8.3).
        (self.headers.is_empty() && pseudo.is_none()).then(|| *pseudo = Some(value))
    }

    /// The list as a request; the error is the code of the stream error.
    pub(super) fn into_request(self) -> Result<RequestHead, ErrorCode> {
        self.error.map_or(Ok(()), Err)?;
        let method = self.method.filter(|_| self.status.is_none()).ok_or(ErrorCode::ProtocolError)?;
        let method_is_connect = method == "CONNECT";
        let complete = if method_is_connect {
            let addressed = self.authority.as_ref().is_some_and(|authority| !authority.is_empty());
            addressed && self.scheme.is_none() && self.path.is_none()
        } else {
            self.scheme.is_some() && self.path.is_some_and(|path| !path.is_empty())
        };
        if !complete {
            return Err(ErrorCode::ProtocolError);
        }
        Ok(RequestHead { method_is_connect, authority: self.authority, headers: self.headers })
    }

    /// The list as a response; the error is the code of the stream error.
    pub(super) fn into_response(self) -> Result<ConnectResponse, ErrorCode> {
        self.error.map_or(Ok(()), Err)?;
        let of_requests = [&self.method, &self.scheme, &self.path, &self.authority];
        if of_requests.iter().any(|field| field.is_some()) {
            return Err(ErrorCode::ProtocolError);
        }
        let status = self.status.as_deref().and_then(status_code).ok_or(ErrorCode::ProtocolError)?;
        Ok(ConnectResponse { status, headers: self.headers })
    }

    /// The list as trailers, which have no pseudo-header fields (RFC 9113, section 8.1).
    pub(super) fn into_trailers(self) -> Result<(), ErrorCode> {
        self.error.map_or(Ok(()), Err)?;
        let pseudo = [&self.method, &self.scheme, &self.path, &self.authority, &self.status];
        if pseudo.iter().any(|field| field.is_some()) { Err(ErrorCode::ProtocolError) } else { Ok(()) }
    }
}

fn status_code(text: &str) -> Option<u16> {
    let digits = text.len() == 3 && text.bytes().all(|octet| octet.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().filter(|status| *status >= 100)
}

/// Whether a regular field may be in a message at all (RFC 9113, sections 8.2.1 and 8.2.2). Pseudo-header fields that
/// are not known fail on their colon.
fn name_is_valid(name: &[u8], value: &str) -> bool {
    let octets = name.iter().all(|octet| matches!(octet, 0x21..=0x39 | 0x3b..=0x40 | 0x5b..=0x7e));
    let of_connection = matches!(
        name,
        b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade"
    );
    !name.is_empty() && octets && !of_connection && (name != b"te" || value == "trailers")
}

/// RFC 9113, section 8.2.1.
fn value_is_valid(value: &[u8]) -> bool {
    let blank = |octet: Option<&u8>| matches!(octet, Some(b' ' | b'\t'));
    let breaks = value.iter().any(|octet| matches!(octet, b'\0' | b'\r' | b'\n'));
    !breaks && !blank(value.first()) && !blank(value.last())
}
