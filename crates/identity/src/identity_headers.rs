//! The identity headers of a request, each once, and under no name that could be taken
//! for that of another header.

use memchr::memmem;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use thiserror::Error;

use http::HeaderName;

/// Headers that identify a user or let their owner act as the user. No workspace gets
/// them.
pub static IDENTITY_HEADERS: [HeaderName; 5] = [
    HeaderName::from_static("x-access-token"),
    HeaderName::from_static("x-id-token"),
    HeaderName::from_static("x-raw-id-token"),
    HeaderName::from_static("x-refresh-token"),
    USERINFO,
];

/// The header in which openid-connect passes the userinfo on.
const USERINFO: HeaderName = HeaderName::from_static("x-userinfo");

/// The header that has a scheme before its token (RFC 6750, section 2.1).
pub const AUTHORIZATION: &str = "authorization";

/// Headers with other meanings, which never hold the token.
const NO_SOURCES: [&str; 6] = ["cookie", "host", "origin", "connection", "upgrade", "content-type"];

/// How many headers a token may be looked for in.
const MAX_SOURCES: usize = 8;

/// The headers that may hold the token, in the order in which they are looked at.
///
/// ```
/// use kube_coders_identity::identity_headers::TokenSources;
///
/// let sources: TokenSources = serde_json::from_str(r#"["x-id-token", "authorization"]"#)?;
/// assert_eq!(sources.names()[0], "x-id-token");
/// assert!(serde_json::from_str::<TokenSources>(r#"["cookie"]"#).is_err());
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSources(Vec<HeaderName>);

impl Default for TokenSources {
    fn default() -> Self {
        Self(["x-raw-id-token", "x-access-token", AUTHORIZATION].map(HeaderName::from_static).into())
    }
}

impl TokenSources {
    /// No header at all.
    pub const fn none() -> Self {
        Self(Vec::new())
    }

    /// The headers in the order in which they are searched.
    pub fn names(&self) -> &[HeaderName] {
        &self.0
    }

    /// The headers that a workspace must not receive, except `Authorization`.
    pub fn secrets(&self) -> impl Iterator<Item = &HeaderName> {
        let is_other =
            |name: &&HeaderName| !IDENTITY_HEADERS.contains(name) && name.as_str() != AUTHORIZATION;
        IDENTITY_HEADERS.iter().chain(self.0.iter().filter(is_other))
    }
}

#[derive(Deserialize)]
struct ListedHeader(#[serde(deserialize_with = "apisix_plugin_runner::config::header_name")] HeaderName);

impl<'de> Deserialize<'de> for TokenSources {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let names = Vec::<ListedHeader>::deserialize(deserializer)?;
        let names: Vec<_> = names.into_iter().map(|ListedHeader(name)| name).collect();
        if names.is_empty() || names.len() > MAX_SOURCES {
            return Err(D::Error::custom(format_args!("between 1 and {MAX_SOURCES} headers can be listed")));
        }
        for (at, name) in names.iter().enumerate() {
            if name.as_str().contains('_') {
                return Err(D::Error::custom("gateways drop a header with `_`: name one with `-`"));
            }
            if *name == USERINFO || NO_SOURCES.contains(&name.as_str()) {
                return Err(D::Error::custom(format_args!("{name} holds no token")));
            }
            if names[..at].contains(name) {
                return Err(D::Error::custom(format_args!("{name} is listed twice")));
            }
        }
        Ok(Self(names))
    }
}

/// The identity headers of one request.
///
/// ```
/// use kube_coders_identity::identity_headers::{TokenSources, find};
///
/// let values = |name: &str| (name == "x-userinfo").then_some(&b"e30="[..]).into_iter();
/// let sources = TokenSources::none();
/// let found = find(values, [], &sources, &[])?;
/// assert_eq!((found.userinfo, found.token), (Some(&b"e30="[..]), None));
/// # Ok::<(), kube_coders_identity::identity_headers::HeadersError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdentityHeaders<'f> {
    /// The value of `x-userinfo`: base64 of a JSON object, not yet decoded.
    pub userinfo: Option<&'f [u8]>,
    /// The token of the first source that the request has.
    pub token: Option<TokenHeader<'f>>,
}

/// The first token that was found.
///
/// ```
/// use kube_coders_identity::identity_headers::TokenHeader;
///
/// let token = TokenHeader { text: b"eyJhbGciOi", source: 0 };
/// assert!(token.is_in(b"Bearer eyJhbGciOi"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenHeader<'f> {
    /// The token without a `Bearer` before it.
    pub text: &'f [u8],
    /// Which of the sources held it.
    pub source: usize,
}

impl TokenHeader<'_> {
    /// Whether this header's value has the token in it: gateways pass a token on in a
    /// header of their own and leave it in `Authorization` as well.
    pub fn is_in(&self, value: &[u8]) -> bool {
        !self.text.is_empty() && memmem::find(value, self.text).is_some()
    }
}

/// Why a request's identity headers are ambiguous.
///
/// ```
/// use kube_coders_identity::identity_headers::{TokenSources, find};
///
/// let no_values = |_: &str| std::iter::empty();
/// let sources = TokenSources::none();
/// let error = find(no_values, [&b"x_userinfo"[..]], &sources, &[]).unwrap_err();
/// assert_eq!(error.to_string(), "a header has the name of x-userinfo with `_` for `-`");
/// ```
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum HeadersError {
    /// The request has two headers of this name.
    #[error("{0} is there twice")]
    Twice(HeaderName),
    /// Applications that read `_` as `-` would take the client's header for the trusted one.
    #[error("a header has the name of {0} with `_` for `-`")]
    Twin(HeaderName),
}

/// Finds the identity headers of a request. `values` gives all values of a header, and
/// `underscored` the names of headers that have a `_` in them.
///
/// `reserved` are headers that a later reader of the request believes. A request that has
/// the name of one of them, or of an identity header, with `_` for `-` is refused.
///
/// ```
/// use kube_coders_identity::identity_headers::{TokenSources, find};
///
/// let values = |name: &str| (name == "authorization").then_some(&b"Bearer eyJhbGciOi"[..]).into_iter();
/// let sources = TokenSources::default();
/// let found = find(values, [], &sources, &[])?;
/// assert_eq!(found.token.map(|token| token.text), Some(&b"eyJhbGciOi"[..]));
/// # Ok::<(), kube_coders_identity::identity_headers::HeadersError>(())
/// ```
///
/// # Errors
///
/// An identity header is there twice, or a header has such a name.
pub fn find<'f, V: Iterator<Item = &'f [u8]>>(
    values: impl Fn(&'f str) -> V,
    underscored: impl IntoIterator<Item = &'f [u8]>,
    sources: &'f TokenSources,
    reserved: &[HeaderName],
) -> Result<IdentityHeaders<'f>, HeadersError> {
    for name in underscored {
        refuse_twin(name, sources, reserved)?;
    }
    let only = |name: &'f HeaderName| {
        let mut values = values(name.as_str());
        match (values.next(), values.next()) {
            (value, None) => Ok(value),
            (_, Some(_)) => Err(HeadersError::Twice(name.clone())),
        }
    };
    let [.., userinfo] = &IDENTITY_HEADERS;
    let userinfo = only(userinfo)?;
    let mut token = None;
    // Look at all of them, so a header that is there twice is refused even after the one that is used.
    for (source, name) in sources.0.iter().enumerate() {
        let Some(value) = only(name)? else { continue };
        let text = if name.as_str() == AUTHORIZATION { bearer(value) } else { Some(value) };
        token = token.or(text.map(|text| TokenHeader { text, source }));
    }
    Ok(IdentityHeaders { userinfo, token })
}

/// Refuses a name that software which reads `_` as `-` would take for a header of ours, for
/// example CGI and its successors (RFC 3875, section 4.1.18).
fn refuse_twin(name: &[u8], sources: &TokenSources, reserved: &[HeaderName]) -> Result<(), HeadersError> {
    let plain = |byte: &u8| if *byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    let is_twin = |known: &&HeaderName| {
        name.len() == known.as_str().len() && name.iter().map(plain).eq(known.as_str().bytes())
    };
    match IDENTITY_HEADERS.iter().chain(reserved).chain(&sources.0).find(is_twin) {
        Some(known) => Err(HeadersError::Twin(known.clone())),
        None => Ok(()),
    }
}

/// The token of a bearer authorization; `None` for any other scheme.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked("bearer".len())?;
    let is_bearer = scheme.eq_ignore_ascii_case(b"bearer") && rest.first() == Some(&b' ');
    is_bearer.then(|| rest.trim_ascii_start())
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    const RESERVED: [HeaderName; 1] = [HeaderName::from_static("x-our-own")];

    static SOURCES: LazyLock<TokenSources> = LazyLock::new(TokenSources::default);

    fn found<'f>(
        headers: &'f [(&'f str, &'f str)],
        sources: &'f TokenSources,
        reserved: &[HeaderName],
    ) -> Result<IdentityHeaders<'f>, HeadersError> {
        let values = |name: &'f str| {
            let named = headers.iter().filter(move |(known, _)| known.eq_ignore_ascii_case(name));
            named.map(|(_, value)| value.as_bytes())
        };
        let underscored = headers.iter().map(|(name, _)| name.as_bytes()).filter(|name| name.contains(&b'_'));
        find(values, underscored, sources, reserved)
    }

    fn identity_headers<'f>(headers: &'f [(&'f str, &'f str)]) -> Result<IdentityHeaders<'f>, HeadersError> {
        found(headers, &SOURCES, &RESERVED)
    }

    #[track_caller]
    fn check(headers: &[(&str, &str)], userinfo: Option<&str>, token: Option<(&str, usize)>) {
        let expected = IdentityHeaders {
            userinfo: userinfo.map(str::as_bytes),
            token: token.map(|(text, source)| TokenHeader { text: text.as_bytes(), source }),
        };
        assert_eq!(identity_headers(headers), Ok(expected), "{headers:?}");
    }

    #[track_caller]
    fn refused(headers: &[(&str, &str)], expected: &str) {
        assert_eq!(identity_headers(headers).unwrap_err().to_string(), expected, "{headers:?}");
    }

    #[test]
    fn identity_headers_are_found_without_regard_to_case() {
        check(&[("host", "a"), ("x-userinfo", "b"), ("x-userinfos", "c")], Some("b"), None);
        check(&[("X-Userinfo", "b"), ("X-Raw-ID-Token", "t")], Some("b"), Some(("t", 0)));
        check(&[("x-user-inf", "b"), ("x-id-token", "c")], None, None);
    }

    #[test]
    fn the_first_source_that_is_there_holds_the_token() {
        let all = [("authorization", "Bearer c"), ("x-access-token", "b"), ("x-raw-id-token", "a")];
        check(&all, None, Some(("a", 0)));
        check(&all[..2], None, Some(("b", 1)));
        check(&all[..1], None, Some(("c", 2)));
    }

    #[test]
    fn only_a_bearer_authorization_holds_a_token() {
        check(&[("authorization", "bEARER  c")], None, Some(("c", 2)));
        check(&[("authorization", "Bearer ")], None, Some(("", 2)));
        for value in ["", "Bearer", "Bearerc", "Basic YTpi", "c", "Bearer\tc"] {
            check(&[("authorization", value)], None, None);
        }
    }

    #[test]
    fn an_identity_header_twice_is_refused() {
        refused(&[("x-userinfo", "b"), ("x-userinfo", "b")], "x-userinfo is there twice");
        refused(&[("x-userinfo", "b"), ("X-USERINFO", "b")], "x-userinfo is there twice");
        refused(&[("x-access-token", "b"), ("x-access-token", "b")], "x-access-token is there twice");
        // Even after the one that is used.
        refused(
            &[("x-raw-id-token", "a"), ("authorization", "Bearer b"), ("authorization", "Bearer c")],
            "authorization is there twice",
        );
    }

    #[test]
    fn an_underscore_twin_is_refused() {
        for name in [
            "x_userinfo",
            "X_Userinfo",
            "x-access_token",
            "x_id-token",
            "x_raw_id_token",
            "x_refresh_token",
            "x_our-own",
            "X-Our_Own",
        ] {
            let known = name.to_ascii_lowercase().replace('_', "-");
            refused(&[(name, "b")], &format!("a header has the name of {known} with `_` for `-`"));
            refused(
                &[("x-userinfo", "b"), (name, "b")],
                &format!("a header has the name of {known} with `_` for `-`"),
            );
        }
        check(&[("x_user_info", "b"), ("x_trace", "c"), ("_", "")], None, None);
    }

    #[test]
    fn the_twin_of_a_configured_header_is_refused() {
        let sources: TokenSources = serde_json::from_str(r#"["X-My-Token"]"#).unwrap();
        let twin = [("x_my-token", "a")];
        assert_eq!(found(&twin, &sources, &[]), Err(HeadersError::Twin(sources.names()[0].clone())));
        let exact = [("x-my-token", "a")];
        assert_eq!(found(&exact, &sources, &[]).unwrap().token, Some(TokenHeader { text: b"a", source: 0 }));
    }

    #[test]
    fn token_sources_are_headers_each_once() {
        for (text, expected) in [
            ("[]", "between 1 and 8 headers can be listed"),
            (r#"["a","b","c","d","e","f","g","h","i"]"#, "between 1 and 8 headers can be listed"),
            (r#"["x_token"]"#, "gateways drop a header with `_`: name one with `-`"),
            (r#"["a","A"]"#, "a is listed twice"),
            (r#"["X-Userinfo"]"#, "x-userinfo holds no token"),
            (r#"["Cookie"]"#, "cookie holds no token"),
        ] {
            assert_eq!(serde_json::from_str::<TokenSources>(text).unwrap_err().to_string(), expected);
        }
        assert!(serde_json::from_str::<TokenSources>(r#"["a b"]"#).is_err());
    }
}
