//! A body on its way from one connection to the next, never held as a whole: what
//! the next one does not take is all that waits, and nothing more is read until it
//! has been taken.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::buffered::{Buffered, Unsent};
use super::chunked::{self, ChunkError, Decoder, Piece};
use super::framing::Framing;
use super::websocket::Frames;

/// How much is read at a time. More takes no fewer instructions for each byte.
pub(super) const SCRATCH: usize = 64 * 1024;

thread_local! {
    /// Where a piece stands between being read and being written. No piece stays
    /// there while others run, so one for a thread is enough.
    static PIECE: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
}

/// How a body's end is said on the next connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    /// By a length that stands in the head, or by the connection's end.
    Plain,
    Chunked,
    /// With the fields that came behind the last chunk, those that may pass.
    ChunkedWithTrailers,
}

/// Why a body did not pass as a whole.
#[derive(Debug, Error)]
pub(super) enum PassError {
    #[error("reading the body: {0}")]
    Read(#[source] io::Error),
    #[error("the body ended too early")]
    Ended,
    #[error("the body: {0}")]
    Malformed(#[from] ChunkError),
    #[error("passing the body on: {0}")]
    Write(#[source] io::Error),
}

/// A body that passes, behind bytes that go before it.
#[derive(Debug)]
pub(super) struct Relay {
    left: Left,
    coding: Coding,
    unsent: Unsent,
    /// The frames that pass, where they are a WebSocket's.
    frames: Option<Frames>,
    has_moved: bool,
    has_sent: bool,
}

/// What is still to come.
#[derive(Debug)]
enum Left {
    Length(u64),
    Chunked(Decoder),
    UntilClose,
    Nothing,
}

/// What a relay waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WaitsFor {
    Reading,
    Writing,
}

impl Relay {
    /// A body that ends this way; `before` goes first.
    pub(super) fn new(before: Unsent, framing: Framing, coding: Coding) -> Self {
        let left = match framing {
            Framing::None | Framing::Length(0) => Left::Nothing,
            Framing::Length(length) => Left::Length(length),
            Framing::Chunked => Left::Chunked(Decoder::default()),
            Framing::UntilClose => Left::UntilClose,
        };
        Self { left, coding, unsent: before, frames: None, has_moved: false, has_sent: false }
    }

    /// The bytes of one direction of a tunnel, up to its end.
    pub(super) fn of_tunnel(is_websocket: bool) -> Self {
        let relay = Self::new(Unsent::default(), Framing::UntilClose, Coding::Plain);
        Self { frames: is_websocket.then(Frames::default), ..relay }
    }

    /// Says these bytes last, if they are a frame and may stand there, and nothing
    /// more of what may come.
    pub(super) fn end_with(&mut self, frame: Vec<u8>) {
        if self.frames.as_ref().is_some_and(Frames::is_between) && !matches!(self.left, Left::Nothing) {
            self.unsent.bytes.extend(frame);
        }
        self.left = Left::Nothing;
    }

    /// Whether something was read or written since this was asked last.
    pub(super) fn take_moved(&mut self) -> bool {
        self.has_sent |= self.has_moved;
        std::mem::take(&mut self.has_moved)
    }

    /// Whether anything was ever written.
    pub(super) fn has_sent(&self) -> bool {
        self.has_sent || self.has_moved
    }

    /// From now on the rest is only read: nothing of it, or before it, goes on.
    pub(super) fn discard(&mut self) {
        (self.unsent, self.coding) = (Unsent::default(), Coding::Plain);
    }

    /// How much is still to be read at the most, if that is known.
    pub(super) fn left(&self) -> Option<u64> {
        match self.left {
            Left::Nothing => Some(0),
            Left::Length(left) => Some(left),
            Left::Chunked(_) | Left::UntilClose => None,
        }
    }

    /// Which side holds the body up.
    pub(super) fn waits_for(&self) -> WaitsFor {
        if self.unsent.is_waiting() { WaitsFor::Writing } else { WaitsFor::Reading }
    }

    /// Takes what was read early, so that it goes out with what is before it.
    pub(super) fn take_early<S>(&mut self, from: &mut Buffered<S>) -> Result<(), PassError> {
        let used = self.take(from.unused())?;
        from.use_up(used);
        Ok(())
    }

    /// Passes all that can pass now; ready once the whole body has.
    pub(super) fn poll_pass<R, W>(
        &mut self,
        from: &mut Buffered<R>,
        to: &mut W,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), PassError>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            ready!(self.unsent.poll_write(to, context, &mut self.has_moved)).map_err(PassError::Write)?;
            if matches!(self.left, Left::Nothing) {
                return Poll::Ready(Ok(()));
            }
            if from.unused().is_empty() {
                ready!(self.poll_piece(from, to, context))?;
            } else {
                self.take_early(from)?;
            }
        }
    }

    /// Reads a piece and writes as much of it as is taken.
    fn poll_piece<R, W>(
        &mut self,
        from: &mut Buffered<R>,
        to: &mut W,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), PassError>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        PIECE.with_borrow_mut(|piece| {
            let wanted = match self.left {
                // Not a byte of the next message: it stays where it is.
                Left::Length(left) => usize::try_from(left).map_or(SCRATCH, |left| left.min(SCRATCH)),
                _ => SCRATCH,
            };
            let mut buffer = ReadBuf::new(&mut piece[..wanted]);
            ready!(Pin::new(&mut from.stream).poll_read(context, &mut buffer)).map_err(PassError::Read)?;
            let read = buffer.filled();
            if read.is_empty() {
                return Poll::Ready(self.end());
            }
            self.has_moved = true;
            if self.coding == Coding::Plain && !matches!(self.left, Left::Chunked(_)) {
                self.count(read);
                let written = self.unsent.poll_write_now(read, to, context);
                return Poll::Ready(written.map_err(PassError::Write));
            }
            let used = self.take(read)?;
            from.give_back(&read[used..]);
            Poll::Ready(Ok(()))
        })
    }

    /// Takes as much of these bytes as belongs to the body, and says how much.
    fn take(&mut self, bytes: &[u8]) -> Result<usize, PassError> {
        let length = match &mut self.left {
            Left::Nothing => return Ok(0),
            Left::Chunked(_) => return self.take_chunks(bytes),
            Left::UntilClose => bytes.len(),
            Left::Length(left) => usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len())),
        };
        self.count(&bytes[..length]);
        match self.coding {
            Coding::Plain => self.unsent.bytes.extend_from_slice(&bytes[..length]),
            _ if length > 0 => chunked::encode(&bytes[..length], &mut self.unsent.bytes),
            _ => {}
        }
        Ok(length)
    }

    fn take_chunks(&mut self, bytes: &[u8]) -> Result<usize, PassError> {
        let Left::Chunked(decoder) = &mut self.left else { return Ok(0) };
        let output = &mut self.unsent.bytes;
        let mut used = 0;
        loop {
            let (piece, read) = decoder.next(&bytes[used..])?;
            used += read;
            match (piece, self.coding) {
                (Piece::Nothing, _) => return Ok(used),
                (Piece::Data(data), Coding::Plain) => output.extend_from_slice(data),
                (Piece::Data(data), _) => chunked::encode(data, output),
                (Piece::End, coding) => {
                    match coding {
                        Coding::Plain => {}
                        Coding::Chunked => chunked::encode_end(b"", output),
                        Coding::ChunkedWithTrailers => {
                            chunked::encode_end(
                                &super::headers::passing_trailers(decoder.trailers()),
                                output,
                            );
                        }
                    }
                    self.left = Left::Nothing;
                    return Ok(used);
                }
            }
        }
    }

    /// Counts bytes of a body that has a length, and follows those of a tunnel.
    fn count(&mut self, passed: &[u8]) {
        if let Some(frames) = &mut self.frames {
            frames.pass(passed);
        }
        if let Left::Length(left) = &mut self.left {
            *left -= passed.len() as u64;
            if *left == 0 {
                self.left = Left::Nothing;
            }
        }
    }

    /// The connection that the body came on has ended.
    fn end(&mut self) -> Result<(), PassError> {
        if !matches!(self.left, Left::UntilClose) {
            return Err(PassError::Ended);
        }
        self.left = Left::Nothing;
        if self.coding != Coding::Plain {
            chunked::encode_end(b"", &mut self.unsent.bytes);
        }
        Ok(())
    }
}
