//! The parts that read what the gateway and workspaces send, for `crate::fuzzing`.

use std::time::Duration;

use super::chunked::{self, Decoder, Piece};
use super::framing::{self, Framing};
use super::head::{HeadEnd, RequestHead, ResponseHead, Version};
use super::headers::{self, Named, ResponseForm};
use crate::stamp::STAMP_HEADER;

/// The whole head at the start of these bytes.
fn whole(bytes: &[u8]) -> Option<&[u8]> {
    let length = HeadEnd::default().find(bytes).ok()??;
    Some(&bytes[..length])
}

/// What goes out is one head, says the same of the body, and nothing of the stamp.
pub(crate) fn request_head(bytes: &[u8]) {
    let Some(Ok(head)) = whole(bytes).map(RequestHead::parse) else { return };
    let Ok(framing) = framing::of_request(&head) else { return };
    let Ok(named) = Named::in_fields(&head.fields) else { return };
    let protocols = headers::wanted_protocols(&head, &named);
    let mut output = Vec::new();
    headers::write_request(&head, head.target, &named, framing, protocols, &mut output);
    let lines = head.fields.len();
    // One line more may be added for the coding, and two for an upgrade.
    if lines + 3 > super::head::MAX_FIELDS || output.len() > super::head::MAX_HEAD {
        return;
    }
    assert_eq!(whole(&output).map(<[u8]>::len), Some(output.len()), "{}", output.escape_ascii());
    let again = RequestHead::parse(&output).expect("a head");
    assert_eq!((again.method, again.target), (head.method, head.target));
    assert_eq!(framing::of_request(&again), Ok(framing), "{}", output.escape_ascii());
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
    decoder.is_done().then_some(data)
}
