//! Finds the start of a WebSocket's frames (RFC 6455, section 5.2), so that a close frame
//! can be inserted between two of them.

/// The reason in a close frame: the server goes away (section 7.4.1, 1001).
const GOING_AWAY: [u8; 2] = 1001_u16.to_be_bytes();

/// The first byte of a close frame: FIN and opcode 8.
const CLOSE: u8 = 0x88;

/// What the bytes after an upgrade are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UpgradedProtocol {
    WebSocket,
    Other,
}

impl UpgradedProtocol {
    /// The protocol of this name.
    pub(crate) fn of(name: &[u8]) -> Self {
        if name.eq_ignore_ascii_case(b"websocket") { Self::WebSocket } else { Self::Other }
    }
}

/// Follows the frames of one direction, without reading their payloads.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    header: [u8; 14],
    /// How many bytes of the current frame's header have passed.
    have: usize,
    /// How many bytes of the current frame's payload are still to come.
    payload: u64,
}

impl Frames {
    /// Notes that these bytes passed.
    pub(crate) fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.payload > 0 {
                let length = usize::try_from(self.payload).unwrap_or(usize::MAX).min(bytes.len());
                self.payload -= length as u64;
                bytes = &bytes[length..];
                continue;
            }
            self.header[self.have] = bytes[0];
            self.have += 1;
            bytes = &bytes[1..];
            if let Some(payload) = self.payload() {
                (self.have, self.payload) = (0, payload);
            }
        }
    }

    /// The length of the payload, once the header is complete.
    fn payload(&self) -> Option<u64> {
        let [_, second, ..] = self.header;
        let (short, is_masked) = (second & 0x7f, second & 0x80 != 0);
        let long = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if self.have < 2 || self.have < 2 + long + if is_masked { 4 } else { 0 } {
            return None;
        }
        let long = &self.header[2..2 + long];
        match long {
            [] => Some(short.into()),
            long => Some(long.iter().fold(0, |length, byte| length << 8 | u64::from(*byte))),
        }
    }

    /// Whether a frame may begin now.
    pub(crate) fn is_between(&self) -> bool {
        self.have == 0 && self.payload == 0
    }
}

/// The close frame to a client. Servers do not mask.
pub(crate) fn close_to_client() -> Vec<u8> {
    let [high, low] = GOING_AWAY;
    vec![CLOSE, 2, high, low]
}

/// The close frame to a server. Clients mask, with an unpredictable key (section 5.3).
pub(crate) fn close_to_server() -> Vec<u8> {
    let mut key = [0; 4];
    // Without random numbers the key is predictable. It masks only two well-known bytes.
    let _ = getrandom::fill(&mut key);
    let mut frame = vec![CLOSE, 0x80 | 2];
    frame.extend_from_slice(&key);
    frame.extend(GOING_AWAY.iter().zip(key).map(|(byte, key)| byte ^ key));
    frame
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(payload: usize, is_masked: bool) -> Vec<u8> {
        let mask = if is_masked { 0x80 } else { 0 };
        let mut frame = vec![0x82];
        match payload {
            0..126 => frame.push(mask | u8::try_from(payload).unwrap()),
            126..65_536 => {
                frame.push(mask | 126);
                frame.extend_from_slice(&u16::try_from(payload).unwrap().to_be_bytes());
            }
            _ => {
                frame.push(mask | 127);
                frame.extend_from_slice(&(payload as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(&[7; 4][..if is_masked { 4 } else { 0 }]);
        frame.resize(frame.len() + payload, 0x88);
        frame
    }

    #[test]
    fn a_close_says_1001() {
        assert_eq!(close_to_client(), [0x88, 2, 0x03, 0xe9]);
        let [0x88, 0x82, key @ .., high, low] = &close_to_server()[..] else { panic!("no close frame") };
        assert_eq!([high ^ key[0], low ^ key[1]], [0x03, 0xe9]);
        for close in [close_to_client(), close_to_server()] {
            let mut frames = Frames::default();
            frames.pass(&close);
            assert!(frames.is_between());
        }
    }

    proptest! {
        #[test]
        fn frames_are_followed_however_they_come(
            payloads in prop::collection::vec((prop_oneof![0..130_usize, 65_530..65_540_usize], any::<bool>()), 1..5),
            length in 1..5000_usize,
        ) {
            let mut boundaries = vec![0];
            let mut bytes = Vec::new();
            for (payload, is_masked) in payloads {
                bytes.extend(frame(payload, is_masked));
                boundaries.push(bytes.len());
            }
            let (mut frames, mut passed) = (Frames::default(), 0);
            for piece in bytes.chunks(length) {
                frames.pass(piece);
                passed += piece.len();
                prop_assert_eq!(frames.is_between(), boundaries.contains(&passed), "{}", passed);
            }
        }

        #[test]
        fn any_bytes_pass(bytes in any::<Vec<u8>>()) {
            Frames::default().pass(&bytes);
        }
    }
}
