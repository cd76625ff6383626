//! Header names, lookup without regard to case, and what a header change may be.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _};
use thiserror::Error;

/// The name of an HTTP header, in lower case.
///
/// Deserialises from text, so that a plugin's config can hold one: what is no
/// name is refused when the conf is prepared.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct HeaderName(http::HeaderName);

impl HeaderName {
    /// A name known when the program is written.
    ///
    /// # Panics
    ///
    /// If the text is no header name in lower case; in a `const`, the compiler
    /// says so.
    #[must_use]
    pub const fn from_static(name: &'static str) -> Self {
        Self(http::HeaderName::from_static(name))
    }

    /// The name in lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl AsRef<str> for HeaderName {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Debug for HeaderName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), formatter)
    }
}

impl fmt::Display for HeaderName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl From<http::HeaderName> for HeaderName {
    fn from(name: http::HeaderName) -> Self {
        Self(name)
    }
}

impl From<&HeaderName> for HeaderName {
    fn from(name: &HeaderName) -> Self {
        name.clone()
    }
}

impl TryFrom<&str> for HeaderName {
    type Error = ChangeError;

    fn try_from(name: &str) -> Result<Self, ChangeError> {
        http::HeaderName::from_bytes(name.as_bytes()).map(Self).map_err(|_| ChangeError::Name)
    }
}

impl TryFrom<String> for HeaderName {
    type Error = ChangeError;

    fn try_from(name: String) -> Result<Self, ChangeError> {
        Self::try_from(name.as_str())
    }
}

impl<'de> Deserialize<'de> for HeaderName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::try_from(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// A change that the protocol can't carry, or that the gateway would carry out
/// as something else.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChangeError {
    /// A header's name is empty or holds a byte that no name may.
    #[error("not a header name: letters, digits and !#$%&'*+-.^_`|~ only, at least one")]
    Name,
    /// A header's value would delete the header instead.
    #[error("empty value for header \"{0}\": the gateway would delete it, so use remove_header")]
    EmptyValue(Box<str>),
    /// A header's value holds CR, LF or NUL.
    #[error("the value for header \"{0}\" holds a CR, LF or NUL")]
    Value(Box<str>),
    /// The gateway does not let a runner change this request header.
    #[error("request header \"{name}\" can't be changed: {why}")]
    Fixed {
        /// The header's name.
        name: Box<str>,
        /// What the gateway does instead.
        why: &'static str,
    },
    /// The gateway does not let a runner set this response header.
    #[error("response header \"{0}\" can't be set: the gateway ignores it")]
    FixedResponse(Box<str>),
    /// A path does not begin with `/`.
    #[error("a path begins with \"/\": without, the gateway takes it for a part of the upstream's name")]
    Path,
    /// An argument has no name.
    #[error("an argument needs a name")]
    ArgName,
    /// A body is empty, which says "unchanged".
    #[error("an empty body leaves the body as it was: the protocol can't say empty")]
    EmptyBody,
    /// A status that the gateway can't send.
    #[error(
        "status {0} can't be sent: 200 to 599 can, without 444 and 499, at which the gateway closes the connection"
    )]
    Status(u16),
    /// The changes of one call are more than the limit.
    #[error("the changes of this call are more than {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
}

impl From<std::convert::Infallible> for ChangeError {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

/// Response headers that a rewrite can't add (GATEWAY.md, "What a rewrite can
/// and cannot say").
pub(crate) const IGNORED_RESPONSE_HEADERS: [&str; 10] = [
    "connection",
    "content-length",
    "transfer-encoding",
    "location",
    "server",
    "www-authenticate",
    "content-encoding",
    "content-type",
    "content-location",
    "content-language",
];

/// Whether a plugin may set or remove this request header.
pub(crate) fn check_request_header(name: &HeaderName) -> Result<(), ChangeError> {
    let why = match name.as_str() {
        "content-length" => "a length without its body stalls the request, and a new body brings its own",
        "connection" | "upgrade" | "transfer-encoding" => "the gateway sets it itself",
        "x-real-ip" => "the gateway sets it itself, after the runner",
        _ => return Ok(()),
    };
    Err(ChangeError::Fixed { name: name.as_str().into(), why })
}

/// Whether a rewrite may add this response header.
pub(crate) fn check_added_response_header(name: &HeaderName) -> Result<(), ChangeError> {
    match IGNORED_RESPONSE_HEADERS.contains(&name.as_str()) {
        true => Err(ChangeError::FixedResponse(name.as_str().into())),
        false => Ok(()),
    }
}

/// Whether a header may have this value.
pub(crate) fn check_value(name: &HeaderName, value: &[u8]) -> Result<(), ChangeError> {
    if value.is_empty() {
        return Err(ChangeError::EmptyValue(name.as_str().into()));
    }
    if value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
        return Err(ChangeError::Value(name.as_str().into()));
    }
    Ok(())
}

/// Whether the gateway sends this status as it is.
pub(crate) fn check_status(status: u16) -> Result<(), ChangeError> {
    match status {
        444 | 499 => Err(ChangeError::Status(status)),
        200..=599 => Ok(()),
        _ => Err(ChangeError::Status(status)),
    }
}

/// The headers of a frame, in its order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Headers<'f>(Vec<(&'f [u8], &'f [u8])>);

impl<'f> Headers<'f> {
    pub(crate) fn new(headers: Vec<(&'f [u8], &'f [u8])>) -> Self {
        Self(headers)
    }

    pub(crate) fn all(&self) -> impl ExactSizeIterator<Item = (&'f [u8], &'f [u8])> + '_ {
        self.0.iter().copied()
    }

    pub(crate) fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'f [u8]> + 'a {
        let same = |other: &[u8]| other.eq_ignore_ascii_case(name.as_bytes());
        self.0.iter().filter(move |(other, _)| same(other)).map(|(_, value)| *value)
    }

    pub(crate) fn first(&self, name: &str) -> Option<&'f [u8]> {
        self.0.iter().find(|(other, _)| other.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| *value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lower_case_and_checked() {
        assert_eq!(HeaderName::try_from("X-Name").expect("a name").as_str(), "x-name");
        for text in ["", "a b", "a:", "ü", "a\r\n", "a\0"] {
            let error = HeaderName::try_from(text).expect_err(text);
            assert_eq!(
                error.to_string(),
                "not a header name: letters, digits and !#$%&'*+-.^_`|~ only, at least one"
            );
        }
    }

    #[test]
    fn headers_are_found_without_regard_to_case_and_in_order() {
        let headers = Headers::new([(&b"a"[..], &b"1"[..]), (b"B", b"2"), (b"b", b"3")].to_vec());
        assert_eq!(headers.first("b"), Some(&b"2"[..]));
        assert_eq!(headers.named("b").collect::<Vec<_>>(), [b"2", b"3"]);
        assert_eq!(headers.first("c"), None);
    }

    #[track_caller]
    fn refused(result: Result<(), ChangeError>, message: &str) {
        assert_eq!(result.expect_err("refused").to_string(), message);
    }

    #[test]
    fn what_the_gateway_would_not_carry_is_refused_with_its_reason() {
        let name = HeaderName::from_static;
        refused(
            check_request_header(&name("content-length")),
            "request header \"content-length\" can't be changed: a length without its body stalls the request, and a new body brings its own",
        );
        for fixed in ["connection", "upgrade", "transfer-encoding"] {
            refused(
                check_request_header(&name(fixed)),
                &format!("request header \"{fixed}\" can't be changed: the gateway sets it itself"),
            );
        }
        refused(
            check_request_header(&name("x-real-ip")),
            "request header \"x-real-ip\" can't be changed: the gateway sets it itself, after the runner",
        );
        assert_eq!(check_request_header(&name("host")), Ok(()));
        refused(
            check_value(&name("x-a"), b""),
            "empty value for header \"x-a\": the gateway would delete it, so use remove_header",
        );
        for value in [&b"a\rb"[..], b"a\nb", b"\0"] {
            refused(check_value(&name("x-a"), value), "the value for header \"x-a\" holds a CR, LF or NUL");
        }
        assert_eq!(check_value(&name("x-a"), b"\xff\t "), Ok(()));
        for ignored in IGNORED_RESPONSE_HEADERS {
            refused(
                check_added_response_header(&name(ignored)),
                &format!("response header \"{ignored}\" can't be set: the gateway ignores it"),
            );
        }
    }

    #[test]
    fn a_status_that_the_gateway_would_not_send_is_refused() {
        for status in (0..200).chain([444, 499]).chain(600..=u16::MAX) {
            refused(
                check_status(status),
                &format!(
                    "status {status} can't be sent: 200 to 599 can, without 444 and 499, at which the gateway closes the connection"
                ),
            );
        }
        for status in (200..600).filter(|status| ![444, 499].contains(status)) {
            assert_eq!(check_status(status), Ok(()));
        }
    }
}
