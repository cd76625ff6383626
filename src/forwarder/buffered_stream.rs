//! A stream together with the bytes that were read from it and not used yet.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncRead;
use tokio_util::io::poll_read_buf;

/// How much is read at a time if a head may begin. Most heads, and with them most
/// responses of an editor, are shorter.
const HEAD_READ: usize = 8 * 1024;

/// A stream whose heads are read together with the bytes after them.
#[derive(Debug)]
pub(super) struct BufferedStream<S> {
    pub(super) stream: S,
    bytes: Vec<u8>,
    /// How many of the bytes were used.
    used: usize,
}

impl<S> BufferedStream<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, bytes: Vec::new(), used: 0 }
    }

    /// The bytes that were read and not used yet.
    pub(super) fn unused(&self) -> &[u8] {
        &self.bytes[self.used..]
    }

    /// The bytes that were used since the last [`forget_used`](Self::forget_used).
    pub(super) fn used(&self) -> &[u8] {
        &self.bytes[..self.used]
    }

    pub(super) fn use_up(&mut self, length: usize) {
        self.used += length;
        debug_assert!(self.used <= self.bytes.len(), "more than there is");
    }

    /// Adds bytes to the unused ones that another reader of the stream read too many.
    pub(super) fn give_back(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn forget_used(&mut self) {
        if self.used == self.bytes.len() {
            self.bytes.clear();
            // A large head is rarely followed by another large one.
            self.bytes.shrink_to(2 * HEAD_READ);
        } else {
            self.bytes.drain(..self.used);
        }
        self.used = 0;
    }

    /// Releases the memory for heads, because none follows.
    pub(super) fn without_heads(mut self) -> Self {
        self.forget_used();
        self.bytes.shrink_to_fit();
        self
    }
}

impl<S: AsyncRead + Unpin> BufferedStream<S> {
    /// Reads more bytes after the unused ones. 0 bytes mean the end.
    pub(super) fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.bytes.capacity() - self.bytes.len() < HEAD_READ / 8 {
            self.bytes.reserve(HEAD_READ);
        }
        poll_read_buf(Pin::new(&mut self.stream), context, &mut self.bytes)
    }
}
