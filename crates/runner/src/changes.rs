//! What plugins want changed of a request, and which changes there can be.

use http::HeaderName;
use http::header::InvalidHeaderName;
use thiserror::Error;

use crate::cache::Cacheable;
use crate::cookies::{self, CookieNames, EditedCookies};
use crate::upstream::Upstream;

pub(crate) const COOKIE: HeaderName = HeaderName::from_static("cookie");

/// How many bytes of changes one call may record, and how many it has recorded.
#[derive(Debug)]
pub(crate) struct ChangeBudget {
    used: usize,
    limit: usize,
}

impl ChangeBudget {
    pub(crate) fn new(limit: usize) -> Self {
        Self { used: 0, limit }
    }

    /// Counts the bytes of a change, and the memory that holds it.
    pub(crate) fn charge(&mut self, bytes: usize) -> Result<(), ChangeError> {
        const PER_CHANGE: usize = 64;
        self.used = self.used.saturating_add(bytes).saturating_add(PER_CHANGE);
        match self.used > self.limit {
            true => Err(ChangeError::TooLarge { limit: self.limit }),
            false => Ok(()),
        }
    }
}

/// What the plugins of a chain want changed.
#[derive(Debug)]
pub(crate) struct Changes {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) headers: Vec<(HeaderName, Option<Vec<u8>>)>,
    /// The cookies that plugins remove from whatever `Cookie` has after all other changes.
    pub(crate) removed_cookies: Vec<CookieNames>,
    /// Whether a plugin set or removed the `Cookie` header as a whole, so that what goes on
    /// does not depend on the request's.
    pub(crate) sets_cookie: bool,
    pub(crate) args: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    pub(crate) response_headers: Vec<(HeaderName, Vec<u8>)>,
    pub(crate) body: Option<Vec<u8>>,
    pub(crate) upstream: Option<Upstream>,
    /// Whether a gateway may cache all this.
    pub(crate) cacheable: Cacheable,
    pub(crate) budget: ChangeBudget,
}

impl Changes {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self {
            path: None,
            // As many as the shipped plugin makes, in one allocation.
            headers: Vec::with_capacity(8),
            removed_cookies: Vec::new(),
            sets_cookie: false,
            args: Vec::new(),
            response_headers: Vec::new(),
            body: None,
            upstream: None,
            cacheable: Cacheable::default(),
            budget: ChangeBudget::new(max_bytes),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.path.is_none()
            && self.headers.is_empty()
            && self.args.is_empty()
            && self.response_headers.is_empty()
            && self.body.is_none()
            && self.upstream.is_none()
    }

    pub(crate) fn header(&mut self, name: HeaderName, value: Option<&[u8]>) -> Result<(), ChangeError> {
        self.budget.charge(name.as_str().len() + value.map_or(0, <[u8]>::len))?;
        self.sets_cookie |= name == COOKIE;
        self.replace(name, value.map(<[u8]>::to_vec));
        Ok(())
    }

    /// Removes cookies once all plugins have decided.
    pub(crate) fn remove_cookies(&mut self, names: &CookieNames) -> Result<(), ChangeError> {
        self.budget.charge(0)?;
        self.removed_cookies.push(names.clone());
        Ok(())
    }

    /// Makes the changes that depend on all others, of a request with these `Cookie` headers.
    pub(crate) fn finish<'a>(&mut self, cookies: impl Iterator<Item = &'a [u8]> + Clone) {
        if self.removed_cookies.is_empty() {
            return;
        }
        let set = self.headers.iter().find(|(name, _)| *name == COOKIE);
        let edited = match set {
            Some((_, set)) => cookies::edit(&self.removed_cookies, set.as_deref().into_iter()),
            None => cookies::edit(&self.removed_cookies, cookies),
        };
        match edited {
            EditedCookies::Unchanged => {}
            EditedCookies::Removed => self.replace(COOKIE, None),
            EditedCookies::Left(left) => self.replace(COOKIE, Some(left)),
        }
    }

    fn replace(&mut self, name: HeaderName, value: Option<Vec<u8>>) {
        match self.headers.iter_mut().find(|(known, _)| *known == name) {
            Some(change) => change.1 = value,
            None => self.headers.push((name, value)),
        }
    }

    pub(crate) fn arg(&mut self, name: &[u8], value: Option<&[u8]>) -> Result<(), ChangeError> {
        if name.is_empty() {
            return Err(ChangeError::ArgName);
        }
        self.budget.charge(name.len() + value.map_or(0, <[u8]>::len))?;
        let value = value.map(<[u8]>::to_vec);
        match self.args.iter_mut().find(|(known, _)| known == name) {
            Some(change) => change.1 = value,
            None => self.args.push((name.to_vec(), value)),
        }
        Ok(())
    }
}

/// A change that the protocol can't carry, or that the gateway would carry out
/// as something else.
///
/// ```
/// use apisix_plugin_runner::{ChangeError, StatusCode, Stop};
///
/// let stop = Stop::new(StatusCode::OK);
/// assert_eq!(stop.clone().header("two words", "a"), Err(ChangeError::Name));
/// let error = stop.header("x-name", "a\r\nb").unwrap_err();
/// assert_eq!(error.to_string(), "the value for header \"x-name\" holds a CR, LF or NUL");
/// ```
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
    /// A redirect has a status that is none.
    #[error("status {0} is no redirect: 301, 302, 303, 307 and 308 are")]
    NotARedirect(u16),
    /// A value has no JSON text.
    #[error("the value has no JSON text: {0}")]
    Json(Box<str>),
    /// A plugin chose an upstream, and this runner has no way to send the request there.
    #[error("this runner has no carrier, so no plugin can choose the upstream: add one with Runner::carrier")]
    NoCarrier,
    /// The changes of one call are more than the limit.
    #[error("the changes of this call are more than {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
}

impl From<InvalidHeaderName> for ChangeError {
    fn from(_: InvalidHeaderName) -> Self {
        Self::Name
    }
}

impl From<std::convert::Infallible> for ChangeError {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

/// Response headers that a rewrite can't add (docs/gateway.md, "What a rewrite can
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
    // Without an early end the compiler looks at many bytes at a time: values are long.
    let is_wrong = value.iter().fold(false, |is_wrong, byte| is_wrong | matches!(byte, b'\r' | b'\n' | 0));
    if is_wrong {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(result: Result<(), ChangeError>, message: &str) {
        assert_eq!(result.expect_err("refused").to_string(), message);
    }

    #[test]
    fn changes_that_the_gateway_would_not_make_are_refused_with_the_reason() {
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
