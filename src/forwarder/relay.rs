//! A body on its way from one connection to the next. It is never held as a whole: only
//! what the next connection has not taken waits, and until then nothing more is read.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::buffered_stream::BufferedStream;
use super::http::chunked::{self, ChunkError, Decoder, Piece};
use super::http::framing::Framing;
use super::http::websocket::{Frames, Pings, UpgradedProtocol};
use super::write_buffer::WriteBuffer;
use crate::route::stamp::STAMP_HEADER;

/// How much is read at a time. More takes no fewer instructions for each byte.
pub(super) const SCRATCH: usize = 64 * 1024;

thread_local! {
    /// Holds a piece between reading and writing it. No piece stays here while another task
    /// runs, so one buffer per thread is enough.
    static PIECE: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
}

/// How the receiver learns where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    /// By the length in the head, or by the connection's end.
    Plain,
    Chunked,
    /// With those fields after the last chunk that may pass.
    ChunkedWithTrailers,
}

/// Why a body did not pass completely.
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

/// A body on its way, and the bytes that go before it.
#[derive(Debug)]
pub(super) struct Relay {
    left: Left,
    coding: Coding,
    unsent: WriteBuffer,
    /// The frames of a WebSocket.
    frames: Option<Frames>,
    /// The forwarder's own pings, whose pongs do not pass. Present after the first one.
    pings: Option<Box<Pings>>,
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
    /// A body that ends this way. The bytes of `before` go first.
    pub(super) fn new(before: WriteBuffer, framing: Framing, coding: Coding) -> Self {
        let left = match framing {
            Framing::None | Framing::Length(0) => Left::Nothing,
            Framing::Length(length) => Left::Length(length),
            Framing::Chunked => Left::Chunked(Decoder::default()),
            Framing::UntilClose => Left::UntilClose,
        };
        Self { left, coding, unsent: before, frames: None, pings: None, has_moved: false, has_sent: false }
    }

    /// The bytes of one direction of a tunnel, up to its end.
    pub(super) fn of_tunnel(protocol: UpgradedProtocol) -> Self {
        let relay = Self::new(WriteBuffer::default(), Framing::UntilClose, Coding::Plain);
        Self { frames: (protocol == UpgradedProtocol::WebSocket).then(Frames::default), ..relay }
    }

    /// Ends a tunnel's direction with this close frame, if a frame may begin here. Whatever
    /// else arrives is not passed on.
    pub(super) fn end_with(&mut self, frame: Vec<u8>) {
        self.insert(frame);
        self.left = Left::Nothing;
    }

    /// Sends this frame, if a frame may begin here.
    pub(super) fn insert(&mut self, frame: Vec<u8>) {
        if self.may_insert() {
            self.unsent.bytes.extend(frame);
        }
    }

    /// Whether a frame may begin here.
    pub(super) fn may_insert(&self) -> bool {
        self.frames.as_ref().is_some_and(Frames::may_insert) && !matches!(self.left, Left::Nothing)
    }

    /// A ping for the side that these bytes come from. Its pong does not pass.
    pub(super) fn next_ping(&mut self) -> Vec<u8> {
        self.pings.get_or_insert_with(|| Box::new(Pings::new())).next_ping()
    }

    /// Whether something was read or written since the last call.
    pub(super) fn take_moved(&mut self) -> bool {
        self.has_sent |= self.has_moved;
        std::mem::take(&mut self.has_moved)
    }

    /// Whether anything was ever written.
    pub(super) fn has_sent(&self) -> bool {
        self.has_sent || self.has_moved
    }

    /// From now on the body is only read, and nothing is passed on.
    pub(super) fn discard(&mut self) {
        (self.unsent, self.coding) = (WriteBuffer::default(), Coding::Plain);
    }

    /// How many bytes are still to be read at most, if known.
    pub(super) fn left(&self) -> Option<u64> {
        match self.left {
            Left::Nothing => Some(0),
            Left::Length(left) => Some(left),
            Left::Chunked(_) | Left::UntilClose => None,
        }
    }

    /// Which side the body waits for.
    pub(super) fn waits_for(&self) -> WaitsFor {
        if self.unsent.is_waiting() { WaitsFor::Writing } else { WaitsFor::Reading }
    }

    /// Takes what was read early, so that it is sent together with the bytes before it.
    pub(super) fn take_early<S>(&mut self, from: &mut BufferedStream<S>) -> Result<(), PassError> {
        let used = self.take(from.unused())?;
        from.use_up(used);
        Ok(())
    }

    /// Passes everything that can pass now. Ready once the whole body has passed.
    pub(super) fn poll_pass<R, W>(
        &mut self,
        from: &mut BufferedStream<R>,
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
        from: &mut BufferedStream<R>,
        to: &mut W,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), PassError>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        PIECE.with_borrow_mut(|piece| {
            let wanted = match self.left {
                // The next message stays unread.
                Left::Length(left) => usize::try_from(left).map_or(SCRATCH, |left| left.min(SCRATCH)),
                _ => SCRATCH,
            };
            let mut buffer = ReadBuf::new(&mut piece[..wanted]);
            ready!(Pin::new(&mut from.stream).poll_read(context, &mut buffer)).map_err(PassError::Read)?;
            let read = buffer.filled();
            if read.is_empty() {
                return Poll::Ready(self.end());
            }
            if self.remove_pongs(read) {
                return Poll::Ready(Ok(()));
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

    /// Takes these bytes without owed pongs, if any is owed. A pong alone is no activity.
    fn remove_pongs(&mut self, bytes: &[u8]) -> bool {
        let (Some(pings), Some(frames)) = (&mut self.pings, &mut self.frames) else { return false };
        let is_owed = pings.is_owed();
        if is_owed {
            pings.remove_pongs(bytes, frames, &mut self.unsent.bytes);
            self.has_moved |= !self.unsent.is_empty();
        }
        is_owed
    }

    /// Takes as much of these bytes as belongs to the body, and says how much.
    fn take(&mut self, bytes: &[u8]) -> Result<usize, PassError> {
        if matches!(self.left, Left::UntilClose) && self.remove_pongs(bytes) {
            return Ok(bytes.len());
        }
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
                                &super::http::headers::passing_trailers(decoder.trailers(), STAMP_HEADER),
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
        if let Some(pings) = &mut self.pings {
            self.unsent.bytes.extend(pings.take_held());
        }
        if self.coding != Coding::Plain {
            chunked::encode_end(b"", &mut self.unsent.bytes);
        }
        Ok(())
    }
}
