//! Bytes that a stream has not taken yet.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

/// Bytes for a stream that has not taken all of them yet.
#[derive(Debug, Default)]
pub(super) struct WriteBuffer {
    pub(super) bytes: Vec<u8>,
    sent: usize,
    /// Whether the stream may still hold some of them back.
    is_unflushed: bool,
}

impl WriteBuffer {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, ..Self::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    /// Whether the stream must still take bytes, or pass on those that it holds back.
    pub(super) fn is_waiting(&self) -> bool {
        !self.is_empty() || self.is_unflushed
    }

    /// Writes until nothing is left. Tells whether something was written.
    pub(super) fn poll_write(
        &mut self,
        to: &mut (impl AsyncWrite + Unpin),
        context: &mut Context<'_>,
        has_moved: &mut bool,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let written = ready!(Pin::new(&mut *to).poll_write(context, &self.bytes[self.sent..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            (self.sent, self.is_unflushed, *has_moved) = (self.sent + written, true, true);
        }
        self.bytes.clear();
        self.sent = 0;
        if self.is_unflushed {
            ready!(Pin::new(to).poll_flush(context))?;
            self.is_unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes these bytes while the buffer is empty, and keeps those that the stream does not
    /// take.
    pub(super) fn poll_write_now(
        &mut self,
        bytes: &[u8],
        to: &mut (impl AsyncWrite + Unpin),
        context: &mut Context<'_>,
    ) -> io::Result<()> {
        debug_assert!(self.is_empty(), "something waits");
        let mut rest = bytes;
        while !rest.is_empty() {
            match Pin::new(&mut *to).poll_write(context, rest)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => (rest, self.is_unflushed) = (&rest[written..], true),
                Poll::Pending => break,
            }
        }
        self.bytes.clear();
        self.sent = 0;
        self.bytes.extend_from_slice(rest);
        Ok(())
    }
}
