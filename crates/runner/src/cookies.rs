//! The `Cookie` header without the cookies that no upstream may see. Everything else stays
//! byte for byte.

use std::iter;
use std::sync::Arc;

use http::HeaderName;
use memchr::memchr;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use thiserror::Error;

/// openid-connect's own session cookie.
const SESSION: &str = "session";

/// How many cookies can be named.
const MAX_NAMES: usize = 64;

/// How many bytes the names can have together: a carrier may send them with each request.
const MAX_BYTES: usize = 2048;

/// Names of cookies to remove from a request: see
/// [`Request::remove_cookies`](crate::Request::remove_cookies).
///
/// By default it is `session`, the cookie of the gateway's openid-connect plugin. Each name
/// includes its numbered chunks, in which a session continues that is too long for one
/// cookie: `session2`, `session_2`.
///
/// A config can have a field of this type. In JSON it is a list of up to 64 names, which have
/// at most 2,048 bytes together.
///
/// ```
/// use apisix_plugin_runner::CookieNames;
///
/// let names: CookieNames = serde_json::from_str(r#"["session", "debug"]"#).unwrap();
/// assert_eq!(names.iter().collect::<Vec<_>>(), ["session", "debug"]);
/// assert!(serde_json::from_str::<CookieNames>(r#"["a b"]"#).is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieNames(Arc<[Box<str>]>);

impl Default for CookieNames {
    fn default() -> Self {
        Self([SESSION.into()].into())
    }
}

impl<'de> Deserialize<'de> for CookieNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(Vec::<Box<str>>::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Why a list is no [`CookieNames`].
///
/// ```
/// use apisix_plugin_runner::{CookieNames, CookieNamesError};
///
/// assert_eq!(CookieNames::new(["a b"]), Err(CookieNamesError::Name));
/// ```
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CookieNamesError {
    /// The list has more than 64 names.
    #[error("at most {MAX_NAMES} can be listed")]
    Count,
    /// The names have more than 2,048 bytes together.
    #[error("the names have more than {MAX_BYTES} bytes together")]
    Length,
    /// No cookie can have one of the names.
    #[error("not a cookie's name: letters, digits and !#$%&'*+-.^_`|~ only, at least one")]
    Name,
}

impl CookieNames {
    /// A list of names, which may be empty.
    ///
    /// ```
    /// use apisix_plugin_runner::CookieNames;
    ///
    /// let names = CookieNames::new(["session", "debug"]).unwrap();
    /// assert_eq!(names.iter().collect::<Vec<_>>(), ["session", "debug"]);
    /// ```
    ///
    /// # Errors
    ///
    /// If the list has more than 64 names, more than 2,048 bytes, or a text that is no
    /// cookie's name.
    pub fn new<N: Into<Box<str>>>(names: impl IntoIterator<Item = N>) -> Result<Self, CookieNamesError> {
        let names: Vec<Box<str>> = names.into_iter().take(MAX_NAMES + 1).map(Into::into).collect();
        if names.len() > MAX_NAMES {
            return Err(CookieNamesError::Count);
        }
        if names.iter().map(|name| name.len()).sum::<usize>() > MAX_BYTES {
            return Err(CookieNamesError::Length);
        }
        // The name of a cookie is a token, as that of a header is (RFC 6265, section 4.1.1).
        if !names.iter().all(|name| HeaderName::try_from(&**name).is_ok()) {
            return Err(CookieNamesError::Name);
        }
        Ok(Self(names.into()))
    }

    /// The names, without the numbers of chunks.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|name| &**name)
    }

    /// What is left of the values of a request's `Cookie` headers.
    ///
    /// ```
    /// use apisix_plugin_runner::{CookieNames, EditedCookies};
    ///
    /// let cookies = [&b"a=1; session=x; session_2=y"[..]];
    /// let left = CookieNames::default().remove_from(cookies.into_iter());
    /// assert_eq!(left, EditedCookies::Left(b"a=1".to_vec()));
    /// ```
    pub fn remove_from<'a>(&self, headers: impl Iterator<Item = &'a [u8]> + Clone) -> EditedCookies {
        edit(std::slice::from_ref(self), headers)
    }

    /// Whether a cookie is one of these, or a numbered chunk of one.
    fn contains(&self, cookie: &[u8]) -> bool {
        self.iter().any(|name| is_chunk(cookie, name.as_bytes()))
    }
}

/// What [`CookieNames::remove_from`] leaves of a request's cookies.
///
/// ```
/// use apisix_plugin_runner::{CookieNames, EditedCookies};
///
/// let left = |cookies: &'static str| CookieNames::default().remove_from([cookies.as_bytes()].into_iter());
/// assert_eq!(left("theme=dark"), EditedCookies::Unchanged);
/// assert_eq!(left("session=x"), EditedCookies::Removed);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EditedCookies {
    /// The request has none of the named cookies.
    Unchanged,
    /// None is left.
    Removed,
    /// The value of the one `Cookie` header that replaces all of the request's.
    Left(Vec<u8>),
}

/// Removes all these cookies from the values of a request's `Cookie` headers.
pub(crate) fn edit<'a>(
    removed: &[CookieNames],
    headers: impl Iterator<Item = &'a [u8]> + Clone,
) -> EditedCookies {
    let is_kept = |pair: &&[u8]| {
        let end = memchr(b'=', pair).unwrap_or(pair.len());
        let cookie = pair[..end].trim_ascii();
        !removed.iter().any(|names| names.contains(cookie))
    };
    if headers.clone().all(|header| pairs(header).all(|pair| is_kept(&pair))) {
        return EditedCookies::Unchanged;
    }
    let mut kept = Vec::new();
    for header in headers {
        let mut is_first = true;
        for pair in pairs(header).filter(is_kept) {
            if is_first && !kept.is_empty() {
                // Two headers are as one with this between them (RFC 9113, section 8.2.3).
                kept.extend_from_slice(b"; ");
            } else if !kept.is_empty() {
                kept.push(b';');
            }
            // The space behind a `;` belongs to what was before it once.
            kept.extend_from_slice(if is_first { pair.trim_ascii_start() } else { pair });
            is_first = false;
        }
    }
    // Bytes that no header can have come from no gateway, and belong to no cookie.
    let is_no_header = kept.iter().any(|byte| matches!(byte, b'\r' | b'\n' | b'\0'));
    if is_no_header || kept.iter().all(|byte| matches!(byte, b' ' | b'\t' | b';')) {
        EditedCookies::Removed
    } else {
        EditedCookies::Left(kept)
    }
}

/// The cookies of a header's value, with the spaces around them. A `;` always ends
/// one, even between quotes (RFC 6265, section 5.4).
fn pairs(header: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(header);
    iter::from_fn(move || {
        let text = rest?;
        let end = memchr(b';', text);
        rest = end.map(|end| &text[end + 1..]);
        Some(&text[..end.unwrap_or(text.len())])
    })
}

/// Whether a cookie is the named one or a numbered chunk of it: what is too long
/// for one cookie goes on in `session2` (lua-resty-session 4) or `session_2` (3).
fn is_chunk(name: &[u8], removed: &[u8]) -> bool {
    match name.strip_prefix(removed) {
        Some([]) => true,
        Some(rest) => {
            let number = rest.strip_prefix(b"_").unwrap_or(rest);
            !number.is_empty() && number.iter().all(u8::is_ascii_digit)
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Case {
        remove: CookieNames,
        cookie: Vec<String>,
        /// `null` if nothing changes, empty if nothing is left.
        expected: Option<String>,
    }

    fn edited(names: &CookieNames, headers: &[impl AsRef<[u8]>]) -> EditedCookies {
        names.remove_from(headers.iter().map(AsRef::as_ref))
    }

    #[test]
    fn the_table_of_cases_holds() {
        let cases: Vec<Case> = serde_json::from_str(include_str!("../tests/vectors/cookies.json")).unwrap();
        assert!(cases.len() > 30, "{}", cases.len());
        for Case { remove, cookie, expected } in cases {
            let expected = match expected {
                None => EditedCookies::Unchanged,
                Some(text) if text.is_empty() => EditedCookies::Removed,
                Some(text) => EditedCookies::Left(text.into_bytes()),
            };
            assert_eq!(edited(&remove, &cookie), expected, "{remove:?} {cookie:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_stay() {
        let names = CookieNames::default();
        let found = edited(&names, &[b"a=\xff\x80; session=x; b=\x01".as_slice()]);
        assert_eq!(found, EditedCookies::Left(b"a=\xff\x80; b=\x01".to_vec()));
    }

    #[test]
    fn names_are_tokens() {
        for text in [r#"[""]"#, r#"["a b"]"#, r#"["a="]"#, r#"["a;"]"#, r#"["ü"]"#] {
            assert_eq!(
                serde_json::from_str::<CookieNames>(text).unwrap_err().to_string(),
                "not a cookie's name: letters, digits and !#$%&'*+-.^_`|~ only, at least one",
            );
        }
        let many = format!("[{}]", vec!["\"a\""; 65].join(","));
        assert_eq!(
            serde_json::from_str::<CookieNames>(&many).unwrap_err().to_string(),
            "at most 64 can be listed"
        );
        let long = ["a".repeat(1024), "b".repeat(1024)];
        assert_eq!(CookieNames::new(long.clone()).map(|names| names.iter().count()), Ok(2));
        let longer = CookieNames::new(long.into_iter().chain(["c".to_owned()]));
        assert_eq!(longer.unwrap_err().to_string(), "the names have more than 2048 bytes together");
    }

    /// The names and values of a header, as a server reads them.
    fn read(header: &[u8]) -> Vec<Vec<u8>> {
        let text: Vec<_> =
            header.split(|byte| *byte == b';').map(|pair| pair.trim_ascii().to_vec()).collect();
        text.into_iter().filter(|pair| !pair.is_empty()).collect()
    }

    fn is_session(pair: &[u8]) -> bool {
        let name = pair.split(|byte| *byte == b'=').next().unwrap().trim_ascii();
        let name = String::from_utf8_lossy(name);
        let digits = name.strip_prefix("session").map(|rest| rest.strip_prefix('_').unwrap_or(rest));
        name == "session"
            || digits.is_some_and(|text| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit()))
    }

    proptest! {
        #[test]
        fn the_session_goes_and_all_else_stays(headers in prop::collection::vec(
            "((session|session_?[0-9]{1,2}|sessions|a|b)?(=[a-z\" =]{0,3})?[; ]{0,3}){0,6}", 0..3)) {
            let names = CookieNames::default();
            let before: Vec<_> = headers.iter().flat_map(|header| read(header.as_bytes())).collect();
            let expected: Vec<_> = before.iter().filter(|pair| !is_session(pair)).cloned().collect();
            match edited(&names, &headers) {
                EditedCookies::Unchanged => prop_assert_eq!(before, expected),
                EditedCookies::Removed => prop_assert!(expected.is_empty()),
                EditedCookies::Left(cookies) => {
                    prop_assert!(before.len() > expected.len());
                    prop_assert_eq!(read(&cookies), expected);
                    prop_assert_eq!(edited(&names, &[cookies]), EditedCookies::Unchanged);
                }
            }
        }
    }
}
