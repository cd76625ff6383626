//! The parts that read what the gateway and workspaces send, for `crate::fuzzing`.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use super::http::chunked::{self, Decoder, Piece};
use super::http::framing::{self, Answers, Framing};
use super::http::head::{HeadEnd, HeaderField, HttpVersion, RawRequestHead, RawResponseHead};
use super::http::headers::{self, Persistence, ResponseForm};
use super::http::websocket::{Frames, close_to_client, close_to_server};
use super::stamped_request::StampedRequest;
use apisix_plugin_runner::CookieNames;

use crate::route::key_file::{KeyBytes, MIN_KEY};
use crate::route::stamp::{STAMP_HEADER, StampKey};

static KEY: LazyLock<StampKey> =
    LazyLock::new(|| StampKey::new(&KeyBytes::new(&[7; MIN_KEY]).expect("long enough")));

static STAMP: LazyLock<String> = LazyLock::new(|| {
    let upstream = "http://127.0.0.1:1".parse().expect("an upstream");
    KEY.make(&upstream, SystemTime::UNIX_EPOCH + Duration::from_secs(60))
});

/// The whole head at the start of these bytes.
fn whole(bytes: &[u8]) -> Option<&[u8]> {
    let length = HeadEnd::default().find(bytes).ok()??;
    Some(&bytes[..length])
}

/// What goes out is one head for one host, says the same of the body, and nothing of the
/// stamp.
pub(crate) fn request_head(bytes: &[u8]) {
    let Some(start) = whole(bytes) else { return };
    // A fuzzer makes no stamp, so each head gets a valid one after its first line.
    let first_line = start.iter().position(|byte| *byte == b'\n').map_or(start.len(), |at| at + 1);
    let stamp = format!("{STAMP_HEADER}: {}\r\n", *STAMP);
    let stamped = [&start[..first_line], stamp.as_bytes(), &start[first_line..]].concat();
    let Ok(asked) = StampedRequest::read(&stamped, &KEY, SystemTime::UNIX_EPOCH) else { return };
    let head = RawRequestHead::parse(&stamped).expect("what was read has a head");
    let output = &asked.head;
    // One line more may be added for the coding, and two for an upgrade.
    if head.fields.len() + 3 > super::http::head::MAX_FIELDS || output.len() > super::http::head::MAX_HEAD {
        return;
    }
    assert_eq!(whole(output).map(<[u8]>::len), Some(output.len()), "{}", output.escape_ascii());
    let again = RawRequestHead::parse(output).expect("a head");
    assert_eq!(again.method, head.method);
    assert!(head.target.ends_with(again.target) || again.target == b"/", "{}", output.escape_ascii());
    assert!(again.target.starts_with(b"/") || again.target == b"*", "{}", output.escape_ascii());
    let hosts: Vec<_> =
        again.fields.iter().filter(|field| field.is("host")).map(|field| field.value).collect();
    match hosts[..] {
        [] => assert_eq!(asked.version, HttpVersion::Http10),
        // The host in a URL is the host that the workspace sees.
        [host] if head.target.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(b"http")) => {
            let named = [b"://", host].concat().to_ascii_lowercase();
            let target = head.target.to_ascii_lowercase();
            assert!(target.windows(named.len()).any(|part| part == named), "{}", head.target.escape_ascii());
        }
        [_] => {}
        _ => panic!("{}", output.escape_ascii()),
    }
    assert_eq!(framing::of_request(&again), Ok(asked.framing), "{}", output.escape_ascii());
    assert!(!again.fields.iter().any(|field| field.is(STAMP_HEADER)), "{}", output.escape_ascii());
}

/// A response's head leaves as one head that describes the body as it is sent.
pub(crate) fn response_head(bytes: &[u8]) {
    let Some(Ok(head)) = whole(bytes).map(RawResponseHead::parse) else { return };
    let Ok(framing) = framing::of_response(&head, Answers::OtherMethod) else { return };
    let is_chunked = matches!(framing, Framing::Chunked | Framing::UntilClose);
    let removed_cookies = CookieNames::default();
    let form = ResponseForm {
        version: HttpVersion::Http11,
        is_chunked,
        protocol: None,
        persistence: Persistence::KeepAlive,
        retry_after: (head.status == 503).then_some(Duration::from_secs(5)),
        removed_cookies: &removed_cookies,
    };
    let mut output = Vec::new();
    if headers::write_response(&head, &form, &mut output).is_err() {
        return;
    }
    if head.fields.len() + 2 > super::http::head::MAX_FIELDS || output.len() > super::http::head::MAX_HEAD {
        return;
    }
    assert_eq!(whole(&output).map(<[u8]>::len), Some(output.len()), "{}", output.escape_ascii());
    let again = RawResponseHead::parse(&output).expect("a head");
    assert_eq!(again.status, head.status);
    let expected = if is_chunked { Framing::Chunked } else { framing };
    assert_eq!(framing::of_response(&again, Answers::OtherMethod), Ok(expected), "{}", output.escape_ascii());
}

/// However the bytes come in, the same data comes out, and it is the same once more.
pub(crate) fn chunks(bytes: &[u8]) {
    let whole = decoded(bytes, bytes.len().max(1));
    assert_eq!(whole, decoded(bytes, 1));
    if let Some(data) = whole {
        let mut again = Vec::new();
        if !data.is_empty() {
            chunked::encode(&data, &mut again);
        }
        chunked::encode_end(b"", &mut again);
        assert_eq!(decoded(&again, 7), Some(data));
    }
}

/// However the bytes come in, a frame ends at the same places, and there a close can follow.
pub(crate) fn websocket(bytes: &[u8]) {
    let (mut whole, mut pieces) = (Frames::default(), Frames::default());
    whole.pass(bytes);
    for byte in bytes {
        pieces.pass(std::slice::from_ref(byte));
    }
    let is_between = ends_a_frame(bytes);
    assert_eq!(whole.is_between(), is_between, "{}", bytes.escape_ascii());
    assert_eq!(pieces.is_between(), is_between, "{}", bytes.escape_ascii());
    if is_between {
        for close in [close_to_client(), close_to_server()] {
            whole.pass(&close);
            assert!(whole.is_between(), "{}", bytes.escape_ascii());
        }
    }
}

/// Whether these bytes are whole WebSocket frames (RFC 6455, section 5.2).
fn ends_a_frame(mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let [_, second, ..] = bytes else { return false };
        let long = match second & 0x7f {
            126 => bytes.get(2..4),
            127 => bytes.get(2..10),
            _ => Some(&bytes[1..2]),
        };
        let Some(long) = long else { return false };
        let is_short = second & 0x7f < 126;
        let number = long.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let payload = if is_short { number & 0x7f } else { number };
        let header = 2 + if is_short { 0 } else { long.len() } + if second & 0x80 == 0 { 0 } else { 4 };
        let length = usize::try_from(payload).unwrap_or(usize::MAX).saturating_add(header);
        let Some(rest) = bytes.get(length..) else { return false };
        bytes = rest;
    }
    true
}

fn decoded(bytes: &[u8], at_a_time: usize) -> Option<Vec<u8>> {
    let (mut decoder, mut data) = (Decoder::default(), Vec::new());
    for mut piece in bytes.chunks(at_a_time) {
        while !piece.is_empty() && !decoder.is_done() {
            let (found, read) = decoder.next(piece).ok()?;
            if let Piece::Data(found) = found {
                data.extend_from_slice(found);
            }
            piece = &piece[read..];
        }
    }
    if decoder.is_done() {
        // What passes of trailers is fields that say nothing of a message's form.
        let passing = headers::passing_trailers(decoder.trailers(), STAMP_HEADER);
        let head = [b"GET / HTTP/1.1\r\n", &passing[..], b"\r\n"].concat();
        let head = RawRequestHead::parse(&head).expect("fields");
        let says_form = |field: &HeaderField<'_>| field.is("content-length") || field.is("transfer-encoding");
        assert!(!head.fields.iter().any(says_form), "{}", passing.escape_ascii());
    }
    decoder.is_done().then_some(data)
}
