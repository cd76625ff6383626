//! The chunked coding (RFC 9112, section 7.1). It is removed on one connection and applied
//! again on the next, so only the data is passed on as it was sent.

use std::io::Write as _;

use thiserror::Error;

use super::head;

/// How many digits a chunk's size may have: 64 bits.
const MAX_DIGITS: u32 = 16;

/// How many bytes of extensions a chunk may have. No known program uses any.
const MAX_EXTENSIONS: u32 = 1024;

/// How many bytes the fields after the last chunk may have in total.
const MAX_TRAILERS: usize = 8 * 1024;

/// Why bytes are not validly chunked.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum ChunkError {
    #[error("a chunk's size is not a hexadecimal number of 1 to {MAX_DIGITS} digits")]
    Size,
    #[error("a chunk's extensions are longer than {MAX_EXTENSIONS} bytes, or contain a control character")]
    Extensions,
    #[error("a chunk does not end with CR and LF at the place that its size gives")]
    End,
    #[error("the last chunk is not followed by header lines of at most {MAX_TRAILERS} bytes")]
    Trailers,
}

/// Removes the coding, however the bytes are split.
#[derive(Debug)]
pub(crate) struct Decoder {
    state: DecoderState,
    /// The header lines after the last chunk, with their ends.
    trailers: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DecoderState {
    Size {
        size: u64,
        digits: u32,
    },
    Extensions {
        size: u64,
        length: u32,
    },
    SizeEnd {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataReturn,
    DataEnd,
    /// In a line after the last chunk, which begins at `line_start`.
    Trailers {
        line_start: usize,
    },
    Done,
}

/// A piece of what was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'b> {
    Data(&'b [u8]),
    /// The end, and the trailers before it.
    End,
    /// More bytes are needed.
    Nothing,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { state: DecoderState::Size { size: 0, digits: 0 }, trailers: Vec::new() }
    }
}

impl Decoder {
    pub(crate) fn is_done(&self) -> bool {
        self.state == DecoderState::Done
    }

    /// The header lines after the last chunk, each with its end.
    pub(crate) fn trailers(&self) -> &[u8] {
        &self.trailers
    }

    /// The next piece at the start of these bytes, and how many of them were read
    /// for it.
    pub(crate) fn next<'b>(&mut self, bytes: &'b [u8]) -> Result<(Piece<'b>, usize), ChunkError> {
        let mut read = 0;
        while let Some(byte) = bytes.get(read) {
            self.state = match self.state {
                DecoderState::Data { left } => {
                    let length = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - read);
                    self.state = match left - length as u64 {
                        0 => DecoderState::DataReturn,
                        left => DecoderState::Data { left },
                    };
                    return Ok((Piece::Data(&bytes[read..read + length]), read + length));
                }
                DecoderState::Trailers { line_start } => self.trailer(*byte, line_start)?,
                DecoderState::Done => return Ok((Piece::End, read)),
                state => between(state, *byte)?,
            };
            read += 1;
        }
        let piece = if self.is_done() { Piece::End } else { Piece::Nothing };
        Ok((piece, read))
    }

    fn trailer(&mut self, byte: u8, line_start: usize) -> Result<DecoderState, ChunkError> {
        self.trailers.push(byte);
        if self.trailers.len() > MAX_TRAILERS {
            return Err(ChunkError::Trailers);
        }
        if byte != b'\n' {
            return Ok(DecoderState::Trailers { line_start });
        }
        let line = self.trailers[line_start..].strip_suffix(b"\r\n").ok_or(ChunkError::Trailers)?;
        if line.is_empty() {
            self.trailers.truncate(line_start);
            return Ok(DecoderState::Done);
        }
        head::field(line).map_err(|_| ChunkError::Trailers)?;
        Ok(DecoderState::Trailers { line_start: self.trailers.len() })
    }
}

/// The state after a byte that is neither data nor after the last chunk.
fn between(state: DecoderState, byte: u8) -> Result<DecoderState, ChunkError> {
    match (state, byte) {
        (DecoderState::Size { size, digits }, byte) if byte.is_ascii_hexdigit() => {
            if digits == MAX_DIGITS {
                return Err(ChunkError::Size);
            }
            let digit = char::from(byte).to_digit(16).map_or(0, u64::from);
            Ok(DecoderState::Size { size: size << 4 | digit, digits: digits + 1 })
        }
        (DecoderState::Size { digits: 0, .. }, _) => Err(ChunkError::Size),
        (DecoderState::Size { size, .. } | DecoderState::Extensions { size, .. }, b'\r') => {
            Ok(DecoderState::SizeEnd { size })
        }
        (DecoderState::Size { size, .. }, b';' | b' ' | b'\t') => {
            Ok(DecoderState::Extensions { size, length: 1 })
        }
        (DecoderState::Size { .. }, _) => Err(ChunkError::Size),
        (DecoderState::Extensions { size, length }, byte) => {
            let is_control = byte.is_ascii_control() && byte != b'\t';
            match !is_control && length < MAX_EXTENSIONS {
                true => Ok(DecoderState::Extensions { size, length: length + 1 }),
                false => Err(ChunkError::Extensions),
            }
        }
        (DecoderState::SizeEnd { size: 0 }, b'\n') => Ok(DecoderState::Trailers { line_start: 0 }),
        (DecoderState::SizeEnd { size }, b'\n') => Ok(DecoderState::Data { left: size }),
        (DecoderState::DataReturn, b'\r') => Ok(DecoderState::DataEnd),
        (DecoderState::DataEnd, b'\n') => Ok(DecoderState::Size { size: 0, digits: 0 }),
        _ => Err(ChunkError::End),
    }
}

/// Encodes data, which must not be empty.
pub(crate) fn encode(data: &[u8], output: &mut Vec<u8>) {
    debug_assert!(!data.is_empty(), "an empty chunk is the last one");
    write!(output, "{:x}\r\n", data.len()).expect("memory takes all");
    output.extend_from_slice(data);
    output.extend_from_slice(b"\r\n");
}

/// Encodes the last chunk, with these header lines after it.
pub(crate) fn encode_end(trailers: &[u8], output: &mut Vec<u8>) {
    output.extend_from_slice(b"0\r\n");
    output.extend_from_slice(trailers);
    output.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The data and trailers of a body that comes in pieces of this length, and what
    /// follows it.
    fn decode(bytes: &[u8], length: usize) -> Result<(Vec<u8>, Vec<u8>, usize), ChunkError> {
        let (mut decoder, mut data, mut at) = (Decoder::default(), Vec::new(), 0);
        let mut end = 0;
        while at < bytes.len() && !decoder.is_done() {
            end = (end + length).min(bytes.len()).max(at + 1);
            while at < end && !decoder.is_done() {
                let (piece, read) = decoder.next(&bytes[at..end])?;
                at += read;
                if let Piece::Data(piece) = piece {
                    assert!(!piece.is_empty());
                    data.extend_from_slice(piece);
                }
            }
        }
        assert!(decoder.is_done(), "not over");
        Ok((data, decoder.trailers().to_vec(), at))
    }

    #[track_caller]
    fn check(text: &str, data: &str, trailers: &str, behind: &str) {
        for length in 1..=text.len() {
            let expected = (data.into(), trailers.into(), text.len() - behind.len());
            assert_eq!(decode(text.as_bytes(), length), Ok(expected), "{text:?} by {length}");
        }
    }

    #[track_caller]
    fn refused(text: &str, expected: &str) {
        for length in 1..=text.len() {
            let error = decode(text.as_bytes(), length).unwrap_err();
            assert_eq!(error.to_string(), expected, "{text:?} by {length}");
        }
    }

    #[test]
    fn the_coding_is_taken_off() {
        check("3\r\nabc\r\n0\r\n\r\n", "abc", "", "");
        check("0\r\n\r\nGET", "", "", "GET");
        check("A\r\n0123456789\r\n0003\r\n\r\n\0\r\n000\r\n\r\n", "0123456789\r\n\0", "", "");
        check("1;a=b;c=\"d e\"\r\nx\r\n0;last\r\n\r\n", "x", "", "");
        check("1 ; a\r\nx\r\n0 \r\n\r\n", "x", "", "");
        check("0\r\nX-Sum: 1\r\nY: 2\r\n\r\nnext", "", "X-Sum: 1\r\nY: 2\r\n", "next");
    }

    #[test]
    fn an_ambiguous_head_is_refused() {
        let size = "a chunk's size is not a hexadecimal number of 1 to 16 digits";
        let end = "a chunk does not end with CR and LF at the place that its size gives";
        let extensions = "a chunk's extensions are longer than 1024 bytes, or contain a control character";
        let trailers = "the last chunk is not followed by header lines of at most 8192 bytes";
        for text in [
            "\r\n",
            "x\r\n",
            "-1\r\n",
            "+1\r\n",
            "0x1\r\n",
            " 1\r\n",
            "1_0\r\n",
            "1\n",
            "00000000000000001\r\n",
        ] {
            refused(text, size);
        }
        for text in ["1\rx", "1\r\nx\nn", "1\r\nxy\r\n", "1\r\nx\r\r", "0\r\r\n"] {
            refused(text, end);
        }
        refused("1;a\nx", extensions);
        refused("1;a\0", extensions);
        refused(&format!("1;{}", "a".repeat(1024)), extensions);
        for text in
            ["0\r\n\n", "0\r\nX\r\n", "0\r\nX : 1\r\n", "0\r\n X: 1\r\n", "0\r\nX: 1\n", "0\r\nX: \r1\r\n"]
        {
            refused(text, trailers);
        }
        assert_eq!(decode(format!("0\r\nX: {}", "1".repeat(8200)).as_bytes(), 99), Err(ChunkError::Trailers));
    }

    #[test]
    fn the_largest_size_is_read() {
        let mut decoder = Decoder::default();
        let (piece, read) = decoder.next(b"ffffffffffffffff\r\nabc").unwrap();
        assert_eq!((piece, read), (Piece::Data(&b"abc"[..]), 21));
        assert_eq!(decoder.state, DecoderState::Data { left: u64::MAX - 3 });
    }

    proptest! {
        #[test]
        fn an_added_layer_can_be_removed(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
            length in 1..50_usize,
        ) {
            let mut encoded = Vec::new();
            for chunk in &chunks {
                encode(chunk, &mut encoded);
            }
            encode_end(b"", &mut encoded);
            let whole = encoded.len();
            prop_assert_eq!(decode(&encoded, length), Ok((chunks.concat(), Vec::new(), whole)));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in any::<Vec<u8>>()) {
            let mut decoder = Decoder::default();
            let mut rest = &bytes[..];
            while let Ok((_, read)) = decoder.next(rest) {
                if read == 0 { break; }
                rest = &rest[read..];
            }
        }
    }
}
