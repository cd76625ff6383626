//! Header names, and lookup without regard to case.

use std::cmp::Ordering;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _};

use crate::changes::ChangeError;

/// The name of an HTTP header, in lower case.
///
/// Deserialises from text, so that a plugin's config can hold one: what is no
/// name is refused when the conf is prepared.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct HeaderName(http::HeaderName);

impl Ord for HeaderName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl PartialOrd for HeaderName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

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

    pub(crate) fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'f [u8]> + Clone + 'a {
        let same = move |other: &[u8]| other.eq_ignore_ascii_case(name.as_bytes());
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
}
