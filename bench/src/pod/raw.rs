//! Bulk bytes on raw streams, whose content means nothing: one buffer serves every stream of the process, so that the
//! load does not push what it measures out of the processor's caches.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes that are read or written at a time.
const CHUNK: usize = 256 * 1024;

/// The buffer.
#[derive(Debug, Clone)]
pub(super) struct Scratch(Rc<RefCell<Vec<u8>>>);

impl Default for Scratch {
    fn default() -> Self {
        Self(Rc::new(RefCell::new(vec![0; CHUNK])))
    }
}

impl Scratch {
    /// Reads once and forgets what was read; how many bytes, 0 at the stream's end.
    pub(super) async fn read(&self, stream: &mut TcpStream) -> io::Result<usize> {
        poll_fn(|context| {
            let mut bytes = self.0.borrow_mut();
            let mut buffer = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut *stream).poll_read(context, &mut buffer))?;
            Poll::Ready(Ok(buffer.filled().len()))
        })
        .await
    }

    /// Writes once; how many bytes the socket has accepted.
    pub(super) async fn write(&self, stream: &mut TcpStream) -> io::Result<usize> {
        poll_fn(|context| Pin::new(&mut *stream).poll_write(context, &self.0.borrow())).await
    }
}
