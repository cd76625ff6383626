//! The parts that read what the gateway and workspaces send, for `crate::fuzzing`.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use super::asked::Asked;
use super::chunked::{self, Decoder, Piece};
use super::framing::{self, Framing};
use super::head::{Field, HeadEnd, RequestHead, ResponseHead, Version};
use super::headers::{self, ResponseForm};
use crate::stamp::{MIN_KEY, STAMP_HEADER, StampKey};

static KEY: LazyLock<StampKey> = LazyLock::new(|| StampKey::new(&[7; MIN_KEY]).expect("long enough"));

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
    // A fuzzer makes no stamp, so each head gets a good one behind its first line.
    let first_line = start.iter().position(|byte| *byte == b'\n').map_or(start.len(), |at| at + 1);
    let stamp = format!("{STAMP_HEADER}: {}\r\n", *STAMP);
    let stamped = [&start[..first_line], stamp.as_bytes(), &start[first_line..]].concat();
    let Ok(asked) = Asked::read(&stamped, &KEY, SystemTime::UNIX_EPOCH) else { return };
    let head = RequestHead::parse(&stamped).expect("what was read has a head");
    let output = &asked.head;
    // One line more may be added for the coding, and two for an upgrade.
    if head.fields.len() + 3 > super::head::MAX_FIELDS || output.len() > super::head::MAX_HEAD {
        return;
    }
    assert_eq!(whole(output).map(<[u8]>::len), Some(output.len()), "{}", output.escape_ascii());
    let again = RequestHead::parse(output).expect("a head");
    assert_eq!(again.method, head.method);
    assert!(head.target.ends_with(again.target) || again.target == b"/", "{}", output.escape_ascii());
    assert!(again.target.starts_with(b"/") || again.target == b"*", "{}", output.escape_ascii());
    let hosts: Vec<_> =
        again.fields.iter().filter(|field| field.is("host")).map(|field| field.value).collect();
    match hosts[..] {
        [] => assert_eq!(asked.version, Version::Http10),
        // Whom a URL names is whom the workspace reads of.
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

/// What goes out is one head, and says of the body what will be sent.
pub(crate) fn response_head(bytes: &[u8]) {
    let Some(Ok(head)) = whole(bytes).map(ResponseHead::parse) else { return };
    let Ok(framing) = framing::of_response(&head, false) else { return };
    let is_chunked = matches!(framing, Framing::Chunked | Framing::UntilClose);
    let form = ResponseForm {
        version: Version::Http11,
        is_chunked,
        protocol: None,
        is_last: false,
        retry_after: (head.status == 503).then_some(Duration::from_secs(5)),
    };
    let mut output = Vec::new();
    if headers::write_response(&head, &form, &mut output).is_err() {
        return;
    }
    if head.fields.len() + 2 > super::head::MAX_FIELDS || output.len() > super::head::MAX_HEAD {
        return;
    }
    assert_eq!(whole(&output).map(<[u8]>::len), Some(output.len()), "{}", output.escape_ascii());
    let again = ResponseHead::parse(&output).expect("a head");
    assert_eq!(again.status, head.status);
    let expected = if is_chunked { Framing::Chunked } else { framing };
    assert_eq!(framing::of_response(&again, false), Ok(expected), "{}", output.escape_ascii());
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
        let passing = headers::passing_trailers(decoder.trailers());
        let head = [b"GET / HTTP/1.1\r\n", &passing[..], b"\r\n"].concat();
        let head = RequestHead::parse(&head).expect("fields");
        let says_form = |field: &Field<'_>| field.is("content-length") || field.is("transfer-encoding");
        assert!(!head.fields.iter().any(says_form), "{}", passing.escape_ascii());
    }
    decoder.is_done().then_some(data)
}
