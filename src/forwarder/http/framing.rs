//! How a message's body ends (RFC 9112, section 6).
//!
//! Two servers that disagree here see different requests in the same bytes. So a message
//! that gives its length in two ways or in an unusual way is rejected, from the gateway as
//! from a workspace.

use kube_coders_identity::parse_digits;
use thiserror::Error;

use super::head::{HeaderField, HttpVersion, RawRequestHead, RawResponseHead};

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is no body.
    None,
    Length(u64),
    Chunked,
    /// The body ends with its connection. Responses only.
    UntilClose,
}

/// Why the end of a body is unclear.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum FramingError {
    #[error("content-length is repeated")]
    TwoLengths,
    #[error("content-length is not a number")]
    Length,
    #[error("the message has both content-length and transfer-encoding")]
    LengthAndCoding,
    #[error("transfer-encoding is repeated or not chunked")]
    Coding,
    #[error("a message of HTTP/1.0 has transfer-encoding")]
    CodingInHttp10,
}

/// What a response answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answers {
    /// A HEAD request, whose response has no body.
    Head,
    OtherMethod,
}

/// How a request's body ends.
pub(crate) fn of_request(head: &RawRequestHead<'_>) -> Result<Framing, FramingError> {
    Ok(said(head.version, &head.fields)?.unwrap_or(Framing::None))
}

/// How a response's body ends.
pub(crate) fn of_response(head: &RawResponseHead<'_>, answers: Answers) -> Result<Framing, FramingError> {
    let said = said(head.version, &head.fields)?;
    if answers == Answers::Head || has_no_body(head.status) {
        return Ok(Framing::None);
    }
    Ok(said.unwrap_or(Framing::UntilClose))
}

/// Whether no response with this status has a body, whatever its headers say.
pub(crate) fn has_no_body(status: u16) -> bool {
    matches!(status, 100..=199 | 204 | 304)
}

/// The framing that the headers give, if they give one.
fn said(version: HttpVersion, fields: &[HeaderField<'_>]) -> Result<Option<Framing>, FramingError> {
    let (mut length, mut is_chunked) = (None, false);
    for field in fields {
        match field.name.len() {
            14 if field.is("content-length") => {
                if length.is_some() {
                    return Err(FramingError::TwoLengths);
                }
                length = Some(parse_digits(field.value).ok_or(FramingError::Length)?);
            }
            17 if field.is("transfer-encoding") => {
                if is_chunked || !field.value.eq_ignore_ascii_case(b"chunked") {
                    return Err(FramingError::Coding);
                }
                is_chunked = true;
            }
            _ => {}
        }
    }
    match (length, is_chunked) {
        (Some(_), true) => Err(FramingError::LengthAndCoding),
        (None, true) if version == HttpVersion::Http10 => Err(FramingError::CodingInHttp10),
        (None, true) => Ok(Some(Framing::Chunked)),
        (Some(length), false) => Ok(Some(Framing::Length(length))),
        (None, false) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(version: &str, lines: &str) -> Result<Framing, String> {
        let head = format!("POST / {version}\r\n{lines}\r\n");
        of_request(&RawRequestHead::parse(head.as_bytes()).unwrap()).map_err(|error| error.to_string())
    }

    fn response(status: u16, lines: &str, answers: Answers) -> Result<Framing, String> {
        let head = format!("HTTP/1.1 {status} \r\n{lines}\r\n");
        let head = RawResponseHead::parse(head.as_bytes()).unwrap();
        of_response(&head, answers).map_err(|error| error.to_string())
    }

    #[test]
    fn a_request_says_how_its_body_ends_or_has_none() {
        for (lines, expected) in [
            ("", Framing::None),
            ("Content-Length: 0\r\n", Framing::Length(0)),
            ("content-length:  18446744073709551615 \r\n", Framing::Length(u64::MAX)),
            ("Transfer-Encoding: Chunked\r\n", Framing::Chunked),
            ("X-Content-Length: 5\r\n", Framing::None),
        ] {
            assert_eq!(request("HTTP/1.1", lines), Ok(expected), "{lines:?}");
        }
        assert_eq!(request("HTTP/1.0", "Content-Length: 5\r\n"), Ok(Framing::Length(5)));
    }

    #[test]
    fn a_contradictory_or_odd_framing_is_refused() {
        let coding = "transfer-encoding is repeated or not chunked";
        let length = "content-length is not a number";
        for (lines, expected) in [
            ("Content-Length: 5\r\nContent-Length: 5\r\n", "content-length is repeated"),
            ("Content-Length: 5\r\nContent-Length: 6\r\n", "content-length is repeated"),
            ("Content-Length: 5, 5\r\n", length),
            ("Content-Length: +5\r\n", length),
            ("Content-Length: -5\r\n", length),
            ("Content-Length: 0x5\r\n", length),
            ("Content-Length: 5 5\r\n", length),
            ("Content-Length: \r\n", length),
            ("Content-Length: 18446744073709551616\r\n", length),
            ("Content-Length: \u{665}\r\n", length),
            (
                "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
                "the message has both content-length and transfer-encoding",
            ),
            (
                "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
                "the message has both content-length and transfer-encoding",
            ),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", coding),
            ("Transfer-Encoding: gzip, chunked\r\n", coding),
            ("Transfer-Encoding: chunked, identity\r\n", coding),
            ("Transfer-Encoding: identity\r\n", coding),
            ("Transfer-Encoding: xchunked\r\n", coding),
            ("Transfer-Encoding: chunked;a=b\r\n", coding),
            ("Transfer-Encoding: \"chunked\"\r\n", coding),
            ("Transfer-Encoding: \r\n", coding),
        ] {
            assert_eq!(request("HTTP/1.1", lines), Err(expected.to_owned()), "{lines:?}");
            assert_eq!(response(200, lines, Answers::OtherMethod), Err(expected.to_owned()), "{lines:?}");
            assert_eq!(response(200, lines, Answers::Head), Err(expected.to_owned()), "{lines:?}");
        }
        assert_eq!(
            request("HTTP/1.0", "Transfer-Encoding: chunked\r\n"),
            Err("a message of HTTP/1.0 has transfer-encoding".to_owned())
        );
    }

    #[test]
    fn a_response_has_a_body_by_its_status_and_its_request() {
        assert_eq!(response(200, "", Answers::OtherMethod), Ok(Framing::UntilClose));
        assert_eq!(response(200, "Content-Length: 5\r\n", Answers::OtherMethod), Ok(Framing::Length(5)));
        assert_eq!(
            response(200, "Transfer-Encoding: chunked\r\n", Answers::OtherMethod),
            Ok(Framing::Chunked)
        );
        assert_eq!(response(200, "Content-Length: 5\r\n", Answers::Head), Ok(Framing::None));
        for status in [100, 101, 103, 204, 304] {
            assert_eq!(
                response(status, "Content-Length: 5\r\n", Answers::OtherMethod),
                Ok(Framing::None),
                "{status}"
            );
        }
        assert_eq!(response(205, "", Answers::OtherMethod), Ok(Framing::UntilClose));
    }
}
