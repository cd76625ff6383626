//! How a message's body ends (RFC 9112, section 6).
//!
//! Two readers that disagree here see different requests in the same bytes. So a
//! message that says it in two ways, or in an odd one, is refused, from the gateway
//! as from a workspace.

use thiserror::Error;

use super::head::{Field, RequestHead, ResponseHead, Version};

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none.
    None,
    Length(u64),
    Chunked,
    /// With its connection. Responses only.
    UntilClose,
}

/// Why nobody can say how a body ends.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(super) enum FramingError {
    #[error("content-length stands there twice")]
    TwoLengths,
    #[error("content-length is no number")]
    Length,
    #[error("content-length stands beside transfer-encoding")]
    LengthAndCoding,
    #[error("transfer-encoding is another than chunked, or stands there twice")]
    Coding,
    #[error("transfer-encoding in a message of HTTP/1.0")]
    CodingInHttp10,
}

/// How a request's body ends.
pub(super) fn of_request(head: &RequestHead<'_>) -> Result<Framing, FramingError> {
    Ok(said(head.version, &head.fields)?.unwrap_or(Framing::None))
}

/// How the body of a response to such a request ends.
pub(super) fn of_response(head: &ResponseHead<'_>, to_head_request: bool) -> Result<Framing, FramingError> {
    let said = said(head.version, &head.fields)?;
    if to_head_request || has_no_body(head.status) {
        return Ok(Framing::None);
    }
    Ok(said.unwrap_or(Framing::UntilClose))
}

/// Whether no response with this status has a body, whatever its headers say.
pub(super) fn has_no_body(status: u16) -> bool {
    matches!(status, 100..=199 | 204 | 304)
}

/// What the headers say, if they say anything.
fn said(version: Version, fields: &[Field<'_>]) -> Result<Option<Framing>, FramingError> {
    let (mut length, mut is_chunked) = (None, false);
    for field in fields {
        match field.name.len() {
            14 if field.is("content-length") => {
                if length.is_some() {
                    return Err(FramingError::TwoLengths);
                }
                length = Some(number(field.value)?);
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
        (None, true) if version == Version::Http10 => Err(FramingError::CodingInHttp10),
        (None, true) => Ok(Some(Framing::Chunked)),
        (Some(length), false) => Ok(Some(Framing::Length(length))),
        (None, false) => Ok(None),
    }
}

fn number(digits: &[u8]) -> Result<u64, FramingError> {
    // `parse` would take a sign.
    match str::from_utf8(digits) {
        Ok(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
            text.parse().map_err(|_| FramingError::Length)
        }
        _ => Err(FramingError::Length),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(version: &str, lines: &str) -> Result<Framing, String> {
        let head = format!("POST / {version}\r\n{lines}\r\n");
        of_request(&RequestHead::parse(head.as_bytes()).unwrap()).map_err(|error| error.to_string())
    }

    fn response(status: u16, lines: &str, to_head_request: bool) -> Result<Framing, String> {
        let head = format!("HTTP/1.1 {status} \r\n{lines}\r\n");
        let head = ResponseHead::parse(head.as_bytes()).unwrap();
        of_response(&head, to_head_request).map_err(|error| error.to_string())
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
    fn what_says_it_in_two_ways_or_in_an_odd_one_is_refused() {
        let coding = "transfer-encoding is another than chunked, or stands there twice";
        let length = "content-length is no number";
        for (lines, expected) in [
            ("Content-Length: 5\r\nContent-Length: 5\r\n", "content-length stands there twice"),
            ("Content-Length: 5\r\nContent-Length: 6\r\n", "content-length stands there twice"),
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
                "content-length stands beside transfer-encoding",
            ),
            (
                "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
                "content-length stands beside transfer-encoding",
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
            assert_eq!(response(200, lines, false), Err(expected.to_owned()), "{lines:?}");
            assert_eq!(response(200, lines, true), Err(expected.to_owned()), "{lines:?}");
        }
        assert_eq!(
            request("HTTP/1.0", "Transfer-Encoding: chunked\r\n"),
            Err("transfer-encoding in a message of HTTP/1.0".to_owned())
        );
    }

    #[test]
    fn a_response_has_a_body_by_its_status_and_its_request() {
        assert_eq!(response(200, "", false), Ok(Framing::UntilClose));
        assert_eq!(response(200, "Content-Length: 5\r\n", false), Ok(Framing::Length(5)));
        assert_eq!(response(200, "Transfer-Encoding: chunked\r\n", false), Ok(Framing::Chunked));
        assert_eq!(response(200, "Content-Length: 5\r\n", true), Ok(Framing::None));
        for status in [100, 101, 103, 204, 304] {
            assert_eq!(response(status, "Content-Length: 5\r\n", false), Ok(Framing::None), "{status}");
        }
        assert_eq!(response(205, "", false), Ok(Framing::UntilClose));
    }
}
