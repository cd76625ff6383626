//! A stream with what was read of it too early, and bytes that a stream has not
//! taken yet.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

/// How much is read at a time where a head may begin: most heads, and with them
/// most responses of an editor, are shorter.
const HEAD_READ: usize = 8 * 1024;

/// A stream whose heads are read with whatever comes behind them.
#[derive(Debug)]
pub(super) struct Buffered<S> {
    pub(super) stream: S,
    bytes: Vec<u8>,
    /// How many of the bytes were used.
    used: usize,
}

impl<S> Buffered<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, bytes: Vec::new(), used: 0 }
    }

    /// What was read and is not used.
    pub(super) fn unused(&self) -> &[u8] {
        &self.bytes[self.used..]
    }

    /// What was used since the last [`forget_used`](Self::forget_used).
    pub(super) fn used(&self) -> &[u8] {
        &self.bytes[..self.used]
    }

    pub(super) fn use_up(&mut self, length: usize) {
        self.used += length;
        debug_assert!(self.used <= self.bytes.len(), "more than there is");
    }

    /// Puts behind what is unused what another reader of the stream read too much.
    pub(super) fn give_back(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn forget_used(&mut self) {
        if self.used == self.bytes.len() {
            self.bytes.clear();
            // Whoever sent one large head is not likely to send another at once.
            self.bytes.shrink_to(2 * HEAD_READ);
        } else {
            self.bytes.drain(..self.used);
        }
        self.used = 0;
    }

    /// The same, where no head comes any more: it keeps no memory for one.
    pub(super) fn without_heads(mut self) -> Self {
        self.forget_used();
        self.bytes.shrink_to_fit();
        self
    }
}

impl<S: AsyncRead + Unpin> Buffered<S> {
    /// Reads more behind what is unused; 0 bytes are the end.
    pub(super) fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.bytes.capacity() - self.bytes.len() < HEAD_READ / 8 {
            self.bytes.reserve(HEAD_READ);
        }
        poll_read_buf(Pin::new(&mut self.stream), context, &mut self.bytes)
    }
}

/// Bytes for a stream that has not taken them all yet.
#[derive(Debug, Default)]
pub(super) struct Unsent {
    pub(super) bytes: Vec<u8>,
    sent: usize,
    /// Whether the stream may keep some of them back.
    is_unflushed: bool,
}

impl Unsent {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, ..Self::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    /// Whether the stream is waited for: to take bytes, or to pass those on that it keeps.
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

    /// Writes these bytes, before which nothing waits, and keeps what is not taken.
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
