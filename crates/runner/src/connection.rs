//! One connection to the gateway: frames in, frames out.

use std::io;
use std::pin::pin;
use std::time::Duration;

use apisix_ext_plugin::frame::{FrameHeader, FrameKind, HEADER, HeaderError};
use bytes::{Buf as _, Bytes, BytesMut};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::single_poll::now_or_never;

/// How much is read at a time, in bytes, and so how much an announced length
/// makes us allocate before its data is there. Ordinary calls fit.
const READ: usize = 8 * 1024;

/// How large a buffer may be and still be kept between frames, in bytes.
const KEPT: usize = 64 * 1024;

/// How long the rest of a frame may take once its first byte is there: as long
/// as the gateway itself gives a send (docs/gateway.md, Connections).
const REST_OF_FRAME: Duration = Duration::from_secs(60);

/// How long a peer may take to read what is written: as long as the gateway
/// itself waits for an answer.
const WRITE: Duration = Duration::from_secs(60);

/// Frames over any stream.
///
/// Reading and writing may be dropped at any point: what was read stays here,
/// and what was not written goes out before the next frame.
#[derive(Debug)]
pub(crate) struct Connection<S> {
    stream: S,
    read: BytesMut,
    unwritten: BytesMut,
}

/// A frame as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: FrameKind,
    pub(crate) payload: Bytes,
}

/// Why there is no frame.
#[derive(Debug, Error)]
pub(crate) enum ReadError {
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error("connection closed in the middle of a frame")]
    Cut,
    #[error("the rest of a frame did not come within {} s", REST_OF_FRAME.as_secs())]
    Slow,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, read: BytesMut::new(), unwritten: BytesMut::new() }
    }

    /// The next frame, or `None` if the peer closed the connection between two
    /// frames.
    pub(crate) async fn read_frame(&mut self) -> Result<Option<Frame>, ReadError> {
        if self.read.is_empty() && !self.read_more().await? {
            return Ok(None);
        }
        match self.buffered_frame()? {
            Some(frame) => Ok(Some(frame)),
            None => timeout(REST_OF_FRAME, self.read_rest()).await.map_err(|_| ReadError::Slow)?.map(Some),
        }
    }

    /// Whether something has come that no `read_frame` has returned.
    pub(crate) fn has_unread(&self) -> bool {
        !self.read.is_empty()
    }

    /// The stream, for a caller that goes on with it. Bytes that were read too early are
    /// lost, so call it only if nothing is unread.
    pub(crate) fn into_stream(self) -> S {
        debug_assert!(self.read.is_empty() && self.unwritten.is_empty(), "something is in between");
        self.stream
    }

    /// Whether the connection is open and nothing has come on it.
    pub(crate) fn is_quiet(&mut self) -> bool {
        self.read.is_empty() && now_or_never(pin!(self.read_more())).is_none()
    }

    async fn read_rest(&mut self) -> Result<Frame, ReadError> {
        loop {
            if !self.read_more().await? {
                return Err(ReadError::Cut);
            }
            if let Some(frame) = self.buffered_frame()? {
                return Ok(frame);
            }
        }
    }

    /// Reads what is there into the buffer; `false` at the end of the stream.
    async fn read_more(&mut self) -> io::Result<bool> {
        if self.read.is_empty() && self.read.capacity() > KEPT {
            self.read = BytesMut::new();
        }
        // The buffer grows with the data that came, never with what was announced.
        self.read.reserve(READ);
        Ok(self.stream.read_buf(&mut self.read).await? > 0)
    }

    fn buffered_frame(&mut self) -> Result<Option<Frame>, HeaderError> {
        let Some(header) = self.read.first_chunk() else { return Ok(None) };
        let FrameHeader { kind, length } = FrameHeader::decode(*header)?;
        if self.read.len() - HEADER < length {
            return Ok(None);
        }
        self.read.advance(HEADER);
        Ok(Some(Frame { kind, payload: self.read.split_to(length).freeze() }))
    }

    async fn write_unwritten(&mut self) -> io::Result<()> {
        while !self.unwritten.is_empty() {
            // Only what was written goes, so that a drop loses nothing.
            match self.stream.write(&self.unwritten).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => self.unwritten.advance(written),
            }
        }
        Ok(())
    }

    /// Writes a frame, after whatever an earlier, dropped write left behind.
    pub(crate) async fn write_frame(&mut self, kind: FrameKind, payload: &[u8]) -> io::Result<()> {
        let header = FrameHeader { kind, length: payload.len() }
            .encode()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "payload too long for a frame"))?;
        self.unwritten.reserve(HEADER + payload.len());
        self.unwritten.extend_from_slice(&header);
        self.unwritten.extend_from_slice(payload);
        // Most peers take a frame immediately, so no timer is set.
        let written = now_or_never(pin!(self.write_unwritten()));
        match written {
            Some(written) => written?,
            None => timeout(WRITE, self.write_unwritten()).await.map_err(|_| io::ErrorKind::TimedOut)??,
        }
        if self.unwritten.capacity() > KEPT {
            self.unwritten = BytesMut::new();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::duplex;

    use super::*;

    fn frame_bytes(kind: u8, payload: &[u8]) -> Vec<u8> {
        let [.., high, middle, low] = payload.len().to_be_bytes();
        [&[kind, high, middle, low], payload].concat()
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime")
    }

    #[test]
    fn an_announced_length_allocates_nothing_before_its_data() {
        runtime().block_on(async {
            let (mut peer, ours) = duplex(64);
            let mut connection = Connection::new(ours);
            peer.write_all(&[2, 255, 255, 255, 0]).await.expect("written");
            let slow = connection.read_frame().await.expect_err("the rest never comes");
            assert_eq!(slow.to_string(), "the rest of a frame did not come within 60 s");
            assert!(connection.read.capacity() <= 2 * READ, "{}", connection.read.capacity());
        });
    }

    #[test]
    fn a_connection_cut_inside_a_frame_is_an_error_and_between_frames_is_the_end() {
        runtime().block_on(async {
            let (mut peer, ours) = duplex(64);
            peer.write_all(&frame_bytes(1, b"x")).await.expect("written");
            peer.write_all(&[1, 0]).await.expect("written");
            drop(peer);
            let mut connection = Connection::new(ours);
            assert_eq!(&connection.read_frame().await.expect("a frame").expect("a frame").payload[..], b"x");
            let cut = connection.read_frame().await.expect_err("cut");
            assert_eq!(cut.to_string(), "connection closed in the middle of a frame");

            let (peer, ours) = duplex(64);
            drop(peer);
            assert_eq!(Connection::new(ours).read_frame().await.expect("the end"), None);
        });
    }

    #[test]
    fn a_dropped_write_goes_out_whole_before_the_next_frame() {
        runtime().block_on(async {
            let (mut peer, ours) = duplex(3);
            let mut connection = Connection::new(ours);
            let dropped =
                timeout(Duration::from_millis(1), connection.write_frame(FrameKind::ExtraInfo, b"first"))
                    .await;
            assert!(dropped.is_err(), "the pipe holds 3 bytes");
            let expected = [frame_bytes(3, b"first"), frame_bytes(2, b"second")].concat();
            let mut got = vec![0; expected.len()];
            let (written, read) = tokio::join!(
                connection.write_frame(FrameKind::RequestCall, b"second"),
                peer.read_exact(&mut got)
            );
            written.expect("written");
            read.expect("read");
            assert_eq!(got, expected);
        });
    }

    #[test]
    fn a_peer_that_does_not_read_is_given_up() {
        runtime().block_on(async {
            let (_peer, ours) = duplex(3);
            let written = Connection::new(ours).write_frame(FrameKind::ExtraInfo, b"longer").await;
            assert_eq!(written.expect_err("nothing reads").kind(), io::ErrorKind::TimedOut);
        });
    }

    #[test]
    fn a_large_frame_leaves_no_large_buffer() {
        runtime().block_on(async {
            let payload = vec![7; 1 << 20];
            let (peer, ours) = duplex(1 << 16);
            let (mut peer, mut ours) = (Connection::new(peer), Connection::new(ours));
            let (written, frame) =
                tokio::join!(peer.write_frame(FrameKind::PrepareConf, &payload), ours.read_frame());
            written.expect("written");
            assert_eq!(frame.expect("a frame").expect("a frame").payload, payload);
            let (written, frame) =
                tokio::join!(peer.write_frame(FrameKind::PrepareConf, b""), ours.read_frame());
            written.expect("written");
            assert_eq!(frame.expect("a frame").expect("a frame").payload, Bytes::new());
            assert!(ours.read.capacity() <= KEPT && peer.unwritten.capacity() <= KEPT);
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_split_of_the_stream_gives_the_same_frames(
            frames in prop::collection::vec((0u8..=4, prop::collection::vec(any::<u8>(), 0..40)), 0..5),
            pipe in 1usize..50,
        ) {
            runtime().block_on(async {
                let stream: Vec<u8> = frames.iter().flat_map(|(kind, payload)| frame_bytes(*kind, payload)).collect();
                let (mut peer, ours) = duplex(pipe);
                let mut connection = Connection::new(ours);
                let write = async {
                    peer.write_all(&stream).await.expect("written");
                    drop(peer);
                };
                let read = async {
                    let mut got = Vec::new();
                    while let Some(frame) = connection.read_frame().await.expect("a frame") {
                        got.push((frame.kind as u8, frame.payload.to_vec()));
                    }
                    got
                };
                let ((), got) = tokio::join!(write, read);
                assert_eq!(got, frames);
            });
        }
    }
}
