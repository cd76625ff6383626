//! How a plugin's choice of upstream travels to where it takes effect.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use http::{HeaderName, Method};

use crate::changes::Changes;
use crate::cookies::CookieNames;
use crate::headers::Headers;
use crate::request::Request;
use crate::upstream::Upstream;

/// Turns a plugin's choice of upstream into one request header, which the gateway sets.
///
/// The runner asks its carrier once for each call whose plugins chose an upstream, after
/// the whole chain has decided. What the carrier returns replaces the client's headers of
/// that name, and no plugin can set another value.
///
/// ```
/// use apisix_plugin_runner::{Carried, Carrier, CarrierError, Choice, HeaderName, CarrierFuture};
///
/// /// Names the upstream in a header for a proxy that trusts the gateway.
/// struct PlainHeader;
///
/// impl Carrier for PlainHeader {
///     fn carry<'a>(&'a self, choice: Choice<'a>) -> CarrierFuture<'a> {
///         let value = choice.upstream().to_string();
///         Box::pin(async { Ok(Carried::new(HeaderName::from_static("x-upstream"), value)) })
///     }
/// }
/// ```
pub trait Carrier: Send + Sync + 'static {
    /// The header for this choice.
    ///
    /// # Errors
    ///
    /// If the request can't go to the upstream. The client gets an error response.
    fn carry<'a>(&'a self, choice: Choice<'a>) -> CarrierFuture<'a>;
}

/// What [`Carrier::carry`] returns.
///
/// ```
/// use apisix_plugin_runner::{Carried, Carrier, CarrierFuture, Choice, HeaderName};
///
/// struct PortOnly;
///
/// impl Carrier for PortOnly {
///     fn carry<'a>(&'a self, choice: Choice<'a>) -> CarrierFuture<'a> {
///         Box::pin(async move {
///             let port = choice.upstream().port().to_string();
///             Ok(Carried::new(HeaderName::from_static("x-upstream-port"), port))
///         })
///     }
/// }
/// ```
pub type CarrierFuture<'a> = Pin<Box<dyn Future<Output = Result<Carried, CarrierError>> + Send + 'a>>;

/// A choice of upstream, together with the other changes of its call.
///
/// ```
/// use apisix_plugin_runner::{Choice, HeaderName};
///
/// /// Names the upstream, and the headers that must reach it.
/// fn value(choice: Choice<'_>) -> String {
///     let headers: Vec<_> = choice.set_headers().map(HeaderName::as_str).collect();
///     format!("{} {}", choice.upstream(), headers.join(","))
/// }
/// ```
#[derive(Clone, Copy)]
pub struct Choice<'a> {
    upstream: &'a Upstream,
    pub(crate) changes: &'a Changes,
    /// The method and the headers of the client's request.
    #[cfg_attr(not(feature = "direct"), allow(dead_code))]
    pub(crate) method: &'a Method,
    #[cfg_attr(not(feature = "direct"), allow(dead_code))]
    pub(crate) headers: &'a Headers<'a>,
    route_id: Option<&'a str>,
}

impl<'a> Choice<'a> {
    pub(crate) fn new(upstream: &'a Upstream, request: &'a Request<'_>) -> Self {
        let (method, headers) = request.original();
        Self { upstream, changes: &request.changes, method, headers, route_id: request.route_id() }
    }

    #[cfg(all(test, feature = "direct"))]
    pub(crate) fn for_test(upstream: &'a Upstream, changes: &'a Changes, headers: &'a Headers<'a>) -> Self {
        Self { upstream, changes, method: &Method::GET, headers, route_id: None }
    }

    /// The upstream that was chosen.
    #[must_use]
    pub fn upstream(&self) -> &'a Upstream {
        self.upstream
    }

    /// The id of the route on which the request came, if the gateway said it.
    #[must_use]
    pub fn route_id(&self) -> Option<&'a str> {
        self.route_id
    }

    /// The names of the request headers that plugins set. A client that names one of them
    /// in `Connection` must not be able to remove it on the way.
    pub fn set_headers(&self) -> impl Iterator<Item = &'a HeaderName> + use<'a> {
        self.changes.headers.iter().filter(|(_, value)| value.is_some()).map(|(name, _)| name)
    }

    /// The names of the cookies that plugins removed, without the numbers of chunks. The
    /// runner removes them from the `Cookie` headers that the gateway shows it. A gateway
    /// that shows only a client's first headers can send more of them to the upstream, so a
    /// carrier should have the cookies removed there.
    pub fn removed_cookies(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.changes.removed_cookies.iter().flat_map(CookieNames::iter)
    }
}

impl fmt::Debug for Choice<'_> {
    /// Shows no value of a header: they are the client's secrets.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Choice")
            .field("upstream", self.upstream)
            .field("set_headers", &self.set_headers().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// The header that carries a choice.
///
/// ```
/// use apisix_plugin_runner::{Carried, HeaderName, Upstream};
///
/// let upstream: Upstream = "http://code-alice:8443".parse()?;
/// let carried = Carried::new(HeaderName::from_static("x-upstream"), upstream.to_string());
/// # Ok::<(), apisix_plugin_runner::UpstreamError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carried {
    pub(crate) name: HeaderName,
    pub(crate) value: String,
}

impl Carried {
    /// A header with this name and value. The value is visible ASCII.
    #[must_use]
    pub fn new(name: HeaderName, value: String) -> Self {
        Self { name, value }
    }
}

/// Why a request can't go to the upstream that a plugin chose.
///
/// ```
/// use apisix_plugin_runner::CarrierError;
///
/// // The user asked for a name that does not exist, so the log line is no error.
/// let error = CarrierError::new("upstream-not-found", "code-alice has no address").expected();
/// assert_eq!(error.code(), "upstream-not-found");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CarrierError {
    code: &'static str,
    message: String,
    is_expected: bool,
}

impl CarrierError {
    /// An error with a stable code for the client and a message for the log.
    #[must_use]
    pub fn new(code: &'static str, message: impl fmt::Display) -> Self {
        Self { code, message: message.to_string(), is_expected: false }
    }

    /// Marks an error that the request's user can cause, such as a name that does not
    /// exist. It is logged at `info`; other errors are logged at `error`.
    #[must_use]
    pub fn expected(mut self) -> Self {
        self.is_expected = true;
        self
    }

    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.code
    }

    pub(crate) fn is_expected(&self) -> bool {
        self.is_expected
    }
}

impl fmt::Display for CarrierError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for CarrierError {}
