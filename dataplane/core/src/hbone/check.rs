//! The invariants of a session, asserted after each call in debug builds.

use super::HboneSession;
use super::receive::Reading;

impl HboneSession {
    /// Asserts the invariants that [`HboneSession`] lists.
    pub(super) fn check(&self) {
        if !cfg!(debug_assertions) || self.ended.is_some() {
            return;
        }
        let unread = match self.reader.reading {
            Reading::PadLength(data) | Reading::Data(data) => Some((data.stream, data.remaining)),
            _ => None,
        };
        let (mut open, mut outstanding) = (0, 0);
        for stream in self.streams.iter() {
            let window = &stream.receive_window;
            let expected = unread.filter(|(id, _)| *id == stream.id).map_or(0, |(_, bytes)| bytes);
            assert_eq!(window.undelivered(), i64::from(expected), "credit of {:?} is lost", stream.id);
            assert!(!stream.is_closed() || window.outstanding() > 0, "{:?} is kept for nothing", stream.id);
            open += usize::from(!stream.is_closed());
            outstanding += window.outstanding();
        }
        assert_eq!(self.open_count, open, "open streams are miscounted");
        assert_eq!(self.receive_window.outstanding(), outstanding, "outstanding bytes are miscounted");
        let expected = unread.map_or(0, |(_, bytes)| i64::from(bytes));
        assert_eq!(self.receive_window.undelivered(), expected, "connection credit is lost");
    }
}
