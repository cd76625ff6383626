//! A frame's header: one byte of kind, three bytes of payload length.

use thiserror::Error;

/// The length of a frame's header in bytes.
pub const HEADER: usize = 4;

/// How long a payload may be, in bytes: what three bytes can say.
pub const MAX_PAYLOAD: usize = (1 << 24) - 1;

/// What a payload is. An answer has its call's kind, or is an error.
///
/// ```
/// use apisix_ext_plugin::frame::FrameKind;
///
/// assert_eq!(FrameKind::try_from(2), Ok(FrameKind::RequestCall));
/// assert_eq!(FrameKind::ExtraInfo as u8, 3);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// An answer: the call failed.
    Error = 0,
    /// Prepare a route's confs; the answer is a conf token.
    PrepareConf = 1,
    /// Decide about a request.
    RequestCall = 2,
    /// A question of the runner's while it holds a call, and the gateway's answer.
    ExtraInfo = 3,
    /// Look at a response.
    ResponseCall = 4,
}

impl TryFrom<u8> for FrameKind {
    type Error = HeaderError;

    fn try_from(byte: u8) -> Result<Self, HeaderError> {
        match byte {
            0 => Ok(Self::Error),
            1 => Ok(Self::PrepareConf),
            2 => Ok(Self::RequestCall),
            3 => Ok(Self::ExtraInfo),
            4 => Ok(Self::ResponseCall),
            _ => Err(HeaderError { kind: byte }),
        }
    }
}

/// A frame begins with a byte that is no kind.
///
/// What follows it can't be trusted to be a length, so the connection is lost.
///
/// ```
/// use apisix_ext_plugin::frame::FrameHeader;
///
/// // An HTTP client has connected to the socket.
/// let error = FrameHeader::decode(*b"GET ").unwrap_err();
/// assert_eq!(error.to_string(), "frame of kind 71, which is none from 0 to 4");
/// ```
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("frame of kind {kind}, which is none from 0 to 4")]
pub struct HeaderError {
    kind: u8,
}

/// The header in front of a payload.
///
/// ```
/// use apisix_ext_plugin::frame::{FrameHeader, FrameKind};
///
/// let header = FrameHeader { kind: FrameKind::RequestCall, length: 300 };
/// assert_eq!(header.encode(), Some([2, 0, 1, 44]));
/// assert_eq!(FrameHeader::decode([2, 0, 1, 44])?, header);
/// # Ok::<(), apisix_ext_plugin::frame::HeaderError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the payload is.
    pub kind: FrameKind,
    /// The payload's length in bytes.
    pub length: usize,
}

impl FrameHeader {
    /// Reads a header.
    ///
    /// # Errors
    ///
    /// A first byte that is no kind.
    pub fn decode(bytes: [u8; HEADER]) -> Result<Self, HeaderError> {
        let [kind, high, middle, low] = bytes;
        Ok(Self {
            kind: kind.try_into()?,
            length: usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low),
        })
    }

    /// Writes a header; `None` for a payload that is too long for a frame.
    #[must_use]
    pub fn encode(self) -> Option<[u8; HEADER]> {
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
    fn an_unknown_frame_kind_is_refused() {
        for kind in 5..=u8::MAX {
            let error = FrameHeader::decode([kind, 0, 0, 0]).expect_err("no such kind");
            assert_eq!(error.to_string(), format!("frame of kind {kind}, which is none from 0 to 4"));
        }
    }

    #[test]
    fn a_payload_that_is_too_long_has_no_header() {
        assert_eq!(FrameHeader { kind: FrameKind::PrepareConf, length: MAX_PAYLOAD + 1 }.encode(), None);
        assert_eq!(
            FrameHeader { kind: FrameKind::PrepareConf, length: MAX_PAYLOAD }.encode(),
            Some([1, 255, 255, 255])
        );
    }

    proptest! {
        #[test]
        fn an_encoded_value_decodes_to_itself(kind in 0u8..=4, length in 0..=MAX_PAYLOAD) {
            let header = FrameHeader { kind: kind.try_into().expect("a kind"), length };
            let bytes = header.encode().expect("not too long");
            prop_assert_eq!(FrameHeader::decode(bytes), Ok(header));
        }
    }
}
