//! Handshake messages that arrive after the handshake: KeyUpdate, and the session tickets that we ignore.
//!
//! Messages may share a record or span several; nothing is buffered but a header (RFC 8446, sections 4.6 and 5.1).

use rustls::AlertDescription;

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
/// Largest ticket message that is skipped. Fields of two-byte length bound a sane one.
const TICKET_LEN_MAX: usize = 0xffff;
/// Type, three bytes of length, and the one byte of a KeyUpdate.
const KEY_UPDATE_LEN: usize = 5;

/// The peer has changed the key of the records that follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyUpdate {
    /// It asks us to change ours as well.
    pub(super) requested: bool,
}

/// A KeyUpdate message.
pub(super) fn key_update(requested: bool) -> [u8; KEY_UPDATE_LEN] {
    [KEY_UPDATE, 0, 0, 1, u8::from(requested)]
}

/// Where we are in the stream of handshake messages.
#[derive(Debug, Default)]
pub(super) struct Messages {
    header: [u8; KEY_UPDATE_LEN],
    filled: usize,
    skip: usize,
    /// A server sends tickets, a client never does.
    tickets: bool,
}

impl Messages {
    /// `tickets` says whether the peer may send session tickets, which is so when it is the server.
    pub(super) fn new(tickets: bool) -> Self {
        Self { tickets, ..Self::default() }
    }

    /// Whether a message has begun and not ended. Nothing but handshake records may follow then.
    pub(super) fn pending(&self) -> bool {
        self.filled > 0 || self.skip > 0
    }

    /// Takes the content of one handshake record.
    ///
    /// A KeyUpdate must be the last message of its record, because what follows it is under another key.
    pub(super) fn take(&mut self, mut content: &[u8]) -> Result<Option<KeyUpdate>, AlertDescription> {
        if content.is_empty() {
            return Err(AlertDescription::UnexpectedMessage);
        }
        loop {
            let skipped = self.skip.min(content.len());
            self.skip -= skipped;
            content = &content[skipped..];
            let Some((byte, rest)) = content.split_first() else { return Ok(None) };
            content = rest;
            self.header[self.filled] = *byte;
            self.filled += 1;
            if let Some(update) = self.header_grew()? {
                let aligned = content.is_empty();
                return if aligned { Ok(Some(update)) } else { Err(AlertDescription::UnexpectedMessage) };
            }
        }
    }

    fn header_grew(&mut self) -> Result<Option<KeyUpdate>, AlertDescription> {
        let [kind, high, middle, low, body] = self.header;
        let len = u32::from_be_bytes([0, high, middle, low]) as usize;
        match (self.filled, kind) {
            (1, KEY_UPDATE) => {}
            (1, NEW_SESSION_TICKET) if self.tickets => {}
            (1, _) => return Err(AlertDescription::UnexpectedMessage),
            (4, KEY_UPDATE) if len != 1 => return Err(AlertDescription::DecodeError),
            (4, NEW_SESSION_TICKET) => {
                if len > TICKET_LEN_MAX {
                    return Err(AlertDescription::DecodeError);
                }
                self.filled = 0;
                self.skip = len;
            }
            (KEY_UPDATE_LEN, _) => {
                self.filled = 0;
                return match body {
                    0 => Ok(Some(KeyUpdate { requested: false })),
                    1 => Ok(Some(KeyUpdate { requested: true })),
                    _ => Err(AlertDescription::IllegalParameter),
                };
            }
            (_, _) => {}
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICKET: [u8; 7] = [NEW_SESSION_TICKET, 0, 0, 3, 9, 9, 9];

    #[test]
    fn a_ticket_and_a_key_update_may_share_a_record() {
        let content = [&TICKET[..], &TICKET[..], &key_update(true)].concat();
        let mut messages = Messages::new(true);
        assert_eq!(messages.take(&content), Ok(Some(KeyUpdate { requested: true })));
        assert!(!messages.pending());
    }

    #[test]
    fn messages_may_span_records_of_any_size() {
        let content = [&TICKET[..], &key_update(false)].concat();
        for cut in 1..content.len() {
            let mut messages = Messages::new(true);
            assert_eq!(messages.take(&content[..cut]), Ok(None), "cut at {cut}");
            assert_eq!(messages.pending(), cut != TICKET.len(), "cut at {cut}");
            assert_eq!(messages.take(&content[cut..]), Ok(Some(KeyUpdate { requested: false })));
        }
    }

    #[test]
    fn what_is_not_a_post_handshake_message_is_refused() {
        let refused = |tickets, content: &[u8]| Messages::new(tickets).take(content).unwrap_err();
        assert_eq!(refused(true, &[]), AlertDescription::UnexpectedMessage);
        // A ClientHello, and a CertificateRequest, which we never allowed.
        assert_eq!(refused(true, &[1, 0, 0, 0]), AlertDescription::UnexpectedMessage);
        assert_eq!(refused(true, &[13, 0, 0, 0]), AlertDescription::UnexpectedMessage);
        assert_eq!(refused(false, &TICKET), AlertDescription::UnexpectedMessage);
        assert_eq!(refused(true, &[NEW_SESSION_TICKET, 1, 0, 0]), AlertDescription::DecodeError);
        assert_eq!(refused(true, &[KEY_UPDATE, 0, 0, 2, 0, 0]), AlertDescription::DecodeError);
        assert_eq!(refused(true, &[KEY_UPDATE, 0, 0, 1, 2]), AlertDescription::IllegalParameter);
        let two = [key_update(false), key_update(false)].concat();
        assert_eq!(refused(true, &two), AlertDescription::UnexpectedMessage);
    }
}
