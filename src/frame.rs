//! A frame's header: one byte of kind, three bytes of payload length.

use thiserror::Error;

/// How many bytes stand before a payload.
pub(crate) const HEADER: usize = 4;

/// How long a payload may be, in bytes: what three bytes can say.
pub(crate) const MAX_PAYLOAD: usize = (1 << 24) - 1;

/// What a payload is. An answer has its call's kind, or is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Kind {
    Error = 0,
    PrepareConf = 1,
    RequestCall = 2,
    ExtraInfo = 3,
    ResponseCall = 4,
    /// No gateway's: another runner wants to take over (`takeover`).
    TakeOver = b'T',
}

impl TryFrom<u8> for Kind {
    type Error = HeaderError;

    fn try_from(byte: u8) -> Result<Self, HeaderError> {
        match byte {
            0 => Ok(Self::Error),
            1 => Ok(Self::PrepareConf),
            2 => Ok(Self::RequestCall),
            3 => Ok(Self::ExtraInfo),
            4 => Ok(Self::ResponseCall),
            b'T' => Ok(Self::TakeOver),
            _ => Err(HeaderError { kind: byte }),
        }
    }
}

/// A frame begins with a byte that is no kind.
///
/// What follows it can't be trusted to be a length, so the connection is lost.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("frame of kind {kind}, which is none from 0 to 4")]
pub(crate) struct HeaderError {
    kind: u8,
}

/// What stands before a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    /// In bytes.
    pub(crate) length: usize,
}

impl Header {
    pub(crate) fn decode(bytes: [u8; HEADER]) -> Result<Self, HeaderError> {
        let [kind, high, middle, low] = bytes;
        Ok(Self {
            kind: kind.try_into()?,
            length: usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low),
        })
    }

    /// `None` for a payload that is too long for a frame.
    pub(crate) fn encode(self) -> Option<[u8; HEADER]> {
        if self.length > MAX_PAYLOAD {
            return None;
        }
        let [.., high, middle, low] = self.length.to_be_bytes();
        Some([self.kind as u8, high, middle, low])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_kind_that_is_none_is_refused() {
        for kind in (5..=u8::MAX).filter(|kind| *kind != b'T') {
            let error = Header::decode([kind, 0, 0, 0]).expect_err("no such kind");
            assert_eq!(error.to_string(), format!("frame of kind {kind}, which is none from 0 to 4"));
        }
    }

    #[test]
    fn a_payload_that_is_too_long_has_no_header() {
        assert_eq!(Header { kind: Kind::PrepareConf, length: MAX_PAYLOAD + 1 }.encode(), None);
        assert_eq!(
            Header { kind: Kind::PrepareConf, length: MAX_PAYLOAD }.encode(),
            Some([1, 255, 255, 255])
        );
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_itself(kind in 0u8..=4, length in 0..=MAX_PAYLOAD) {
            let header = Header { kind: kind.try_into().expect("a kind"), length };
            let bytes = header.encode().expect("not too long");
            prop_assert_eq!(Header::decode(bytes), Ok(header));
        }
    }
}
