//! Finds the start of a WebSocket's frames (RFC 6455, section 5.2), so that a frame of the
//! forwarder's can be inserted between two of them, and the answer to it removed.

/// The reason in a close frame: the server goes away (section 7.4.1, 1001).
const GOING_AWAY: [u8; 2] = 1001_u16.to_be_bytes();

/// The first byte of a close frame: FIN and opcode 8.
const CLOSE: u8 = 0x88;

/// The first byte of a ping frame: FIN and opcode 9.
const PING: u8 = 0x89;

/// The first byte of a pong frame: FIN and opcode 10.
const PONG: u8 = 0x8a;

/// The part of a frame's first byte that says what the frame is.
const OPCODE: u8 = 0x0f;

/// What a ping carries and its pong repeats (section 5.5.3).
const MARK: usize = 8;

/// A client's pong frame with a mark: two bytes, the masking key, the mark.
const MARKED_PONG: usize = 2 + 4 + MARK;

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
    /// Whether a close frame has begun. No frame may follow it (section 5.5.1).
    has_closed: bool,
}

impl Frames {
    /// Notes that these bytes passed.
    pub(crate) fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = &bytes[self.pass_some(bytes)..];
        }
    }

    /// Notes that the first of these bytes passed, at most up to the end of a frame. Tells how
    /// many.
    fn pass_some(&mut self, bytes: &[u8]) -> usize {
        if self.payload > 0 {
            let length = usize::try_from(self.payload).unwrap_or(usize::MAX).min(bytes.len());
            self.payload -= length as u64;
            return length;
        }
        self.header[self.have] = bytes[0];
        self.have += 1;
        if let Some(payload) = self.payload() {
            self.has_closed |= self.header[0] & OPCODE == CLOSE & OPCODE;
            (self.have, self.payload) = (0, payload);
        }
        1
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

    /// Whether a frame of the forwarder's may be inserted now.
    pub(crate) fn may_insert(&self) -> bool {
        self.is_between() && !self.has_closed
    }
}

/// The pings that were sent to a client, and the pongs that it owes. They carry a mark that
/// the workspace does not know, so the pongs to its own pings are told apart.
#[derive(Debug)]
pub(crate) struct Pings {
    mark: [u8; MARK],
    owed: u32,
    /// The start of a frame that may be an owed pong.
    held: Vec<u8>,
}

impl Pings {
    pub(crate) fn new() -> Self {
        let mut mark = [0; MARK];
        // Without random numbers, a pong to a workspace's ping could be taken for an owed one.
        let _ = getrandom::fill(&mut mark);
        Self { mark, owed: 0, held: Vec::new() }
    }

    /// The next ping frame, whose pong is owed from now on.
    pub(crate) fn next_ping(&mut self) -> Vec<u8> {
        self.owed = self.owed.saturating_add(1);
        let mut frame = vec![PING, u8::try_from(MARK).expect("a mark is short")];
        frame.extend_from_slice(&self.mark);
        frame
    }

    /// Whether a pong may arrive that the workspace does not get. A client may leave out pongs
    /// to all pings but the last, so this may stay so.
    pub(crate) fn is_owed(&self) -> bool {
        self.owed > 0
    }

    /// Appends these bytes of a client to `output`, without owed pongs.
    pub(crate) fn remove_pongs(&mut self, mut bytes: &[u8], frames: &mut Frames, output: &mut Vec<u8>) {
        while let Some((first, rest)) = bytes.split_first() {
            if !self.is_owed() || !frames.is_between() {
                let passed = frames.pass_some(bytes);
                output.extend_from_slice(&bytes[..passed]);
                bytes = &bytes[passed..];
                continue;
            }
            self.held.push(*first);
            bytes = rest;
            if !self.may_be_pong() {
                frames.pass(&self.held);
                output.append(&mut self.held);
            } else if self.held.len() == MARKED_PONG {
                self.held = Vec::new();
                self.owed -= 1;
            }
        }
    }

    /// The bytes that were held back.
    pub(crate) fn take_held(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    fn may_be_pong(&self) -> bool {
        self.held.iter().enumerate().all(|(index, byte)| match index {
            0 => *byte == PONG,
            1 => usize::from(*byte) == 0x80 | MARK,
            2..6 => true,
            // The key has four bytes and is used in turn (section 5.3).
            _ => byte ^ self.held[2 + (index - 6) % 4] == self.mark[index - 6],
        })
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

    fn pong(mark: &[u8], key: [u8; 4]) -> Vec<u8> {
        let mut frame = vec![PONG, 0x80 | u8::try_from(mark.len()).unwrap()];
        frame.extend_from_slice(&key);
        frame.extend(mark.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
        frame
    }

    #[test]
    fn nothing_is_inserted_after_a_close() {
        let mut frames = Frames::default();
        frames.pass(&close_to_client()[..3]);
        assert!(!frames.may_insert() && !frames.is_between());
        frames.pass(&close_to_client()[3..]);
        assert!(!frames.may_insert() && frames.is_between());
    }

    #[test]
    fn only_owed_pongs_are_removed() {
        let mut pings = Pings::new();
        let ping = pings.next_ping();
        assert_eq!(ping[..2], [0x89, 8]);
        let (owed, mut other_mark) = (pong(&ping[2..], [1, 2, 3, 4]), ping[2..].to_vec());
        other_mark[7] ^= 1;
        // Pongs to the workspace's own pings, one that nobody asked for, and one within a frame.
        let others = [
            pong(&other_mark, [1, 2, 3, 4]),
            pong(&ping[2..9], [5; 4]),
            pong(b"", [5; 4]),
            frame(20, true),
            [&[0x82, 0x80 | 14, 0, 0, 0, 0][..], &owed].concat(),
        ];
        for length in 1..40 {
            let mut pings = Pings { mark: pings.mark, owed: 1, held: Vec::new() };
            let (mut frames, mut output) = (Frames::default(), Vec::new());
            let all = [others.concat(), owed.clone(), others[3].clone(), owed.clone()].concat();
            for piece in all.chunks(length) {
                pings.remove_pongs(piece, &mut frames, &mut output);
            }
            assert!(!pings.is_owed() && frames.is_between());
            // The second one answers nothing.
            assert_eq!(output, [others.concat(), others[3].clone(), owed.clone()].concat(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn bytes_that_are_no_pong_pass_unchanged(bytes in any::<Vec<u8>>(), length in 1..20_usize) {
            let (mut pings, mut frames, mut output) = (Pings::new(), Frames::default(), Vec::new());
            pings.next_ping();
            for piece in bytes.chunks(length) {
                pings.remove_pongs(piece, &mut frames, &mut output);
            }
            output.extend(pings.take_held());
            prop_assert_eq!(output, bytes);
        }

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
