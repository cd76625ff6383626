//! A client's request as a plugin sees it, and the changes that it records.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use apisix_ext_plugin::payload::RequestCall;
use bytes::Bytes;
use http::{HeaderName, Method};
use thiserror::Error;

use crate::accept;
use crate::cache::{CacheKey, Look};
use crate::changes::{ChangeError, Changes, check_added_response_header, check_request_header, check_value};
use crate::cookies::CookieNames;
use crate::extra_info::{AskError, ExtraInfo};
use crate::headers::Headers;
use crate::upstream::Upstream;

/// The methods in the order of their numbers in the protocol.
const METHODS: [&str; 15] = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "MKCOL",
    "COPY",
    "MOVE",
    "OPTIONS",
    "PROPFIND",
    "PROPPATCH",
    "LOCK",
    "UNLOCK",
    "PATCH",
    "TRACE",
];

/// The method with this number in the protocol.
fn method_of(number: u8) -> Option<Method> {
    match number {
        0 => Some(Method::GET),
        2 => Some(Method::POST),
        number => Method::from_bytes(METHODS.get(usize::from(number))?.as_bytes()).ok(),
    }
}

/// The number of a method in the protocol; `None` for a method that the gateway does not
/// hand on.
pub(crate) fn method_number(method: &Method) -> Option<u8> {
    let number = METHODS.iter().position(|name| method.as_str() == *name)?;
    u8::try_from(number).ok()
}

/// Variables that are part of every cache key.
const COMPARED: [&str; 2] = ["scheme", "route_id"];

/// How many headers the gateway hands on at most (docs/gateway.md, HTTPReqCall).
pub const MAX_FRAME_HEADERS: usize = 100;

/// A client's request, before it goes to an upstream.
///
/// Getters return bytes, because clients can send any bytes. The slices borrow from the
/// frame, so you can hold them across an `.await`. The `_str` getters return `None` if the
/// value is not UTF-8.
///
/// Changes are sent after the last plugin. Getters keep returning the original request. If
/// two plugins change the same thing, the later one wins. Changes that the gateway can't
/// apply return an error.
///
/// ```
/// use apisix_plugin_runner::{Action, Plugin, PluginError, Request, StatusCode, Stop};
///
/// /// Tells the upstream at which host of the gateway a request came.
/// struct NameHost;
///
/// impl Plugin for NameHost {
///     const NAME: &'static str = "name-host";
///     type Config = ();
///
///     async fn on_request(&self, (): &(), request: &mut Request<'_>) -> Result<Action, PluginError> {
///         if request.path().starts_with(b"/internal/") {
///             return Ok(Stop::new(StatusCode::NOT_FOUND).into());
///         }
///         if let Some(host) = request.var("host").await? {
///             request.set_header("x-asked-host", host)?;
///         }
///         Ok(Action::Continue)
///     }
/// }
/// ```
pub struct Request<'f> {
    pub(crate) id: u32,
    method: Method,
    path: &'f [u8],
    source: Option<IpAddr>,
    args: Vec<(&'f [u8], Option<&'f [u8]>)>,
    headers: Headers<'f>,
    /// The id of the route, if the gateway said it when it prepared the conf.
    pub(crate) route: Option<Arc<str>>,
    pub(crate) extra_info: ExtraInfo<'f>,
    pub(crate) changes: Changes,
    has_carrier: bool,
    /// What decisions of the current plugin depend on, if they may be cached.
    key: Option<CacheKey>,
    /// For how long the current plugin lets a gateway cache its decision.
    cached: Option<Duration>,
    /// The first thing outside its key that the current plugin looked at.
    outside: OnceLock<Box<str>>,
}

impl<'f> Request<'f> {
    /// Returns `None` if the protocol has no number for the method.
    pub(crate) fn new(
        call: RequestCall<'f>,
        extra_info: ExtraInfo<'f>,
        max_change_bytes: usize,
        has_carrier: bool,
    ) -> Option<Self> {
        let source = match *call.src_ip {
            [a, b, c, d] => Some(IpAddr::from([a, b, c, d])),
            ref bytes => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        };
        Some(Self {
            id: call.id,
            method: method_of(call.method)?,
            path: call.path,
            source,
            args: call.args,
            headers: Headers::new(call.headers),
            route: None,
            extra_info,
            changes: Changes::new(max_change_bytes),
            has_carrier,
            key: None,
            cached: None,
            outside: OnceLock::new(),
        })
    }

    /// The id of the route on which the request came. It costs nothing, unlike the variable
    /// `route_id`, which the gateway has to be asked for.
    ///
    /// `None` if the gateway did not say it, for example for a plugin in a global rule, or if
    /// more routes share their confs than `--max-confs` allows.
    ///
    /// ```
    /// use apisix_plugin_runner::Request;
    ///
    /// fn note(request: &Request<'_>) {
    ///     tracing::info!(route = request.route_id(), "request refused");
    /// }
    /// ```
    #[must_use]
    pub fn route_id(&self) -> Option<&str> {
        self.route.as_deref()
    }

    /// The method.
    #[must_use]
    pub fn method(&self) -> &Method {
        self.look(Look::Other("the method"));
        &self.method
    }

    /// The path as the gateway matched it: percent-decoded, without dot
    /// segments and doubled slashes. The client's own request line is the
    /// variable `real_request_uri`.
    #[must_use]
    pub fn path(&self) -> &'f [u8] {
        self.look(Look::Other("the path"));
        self.path
    }

    /// The path, if it is UTF-8.
    #[must_use]
    pub fn path_str(&self) -> Option<&'f str> {
        std::str::from_utf8(self.path()).ok()
    }

    /// The client's address, as the gateway sees it; `None` if the client has none,
    /// for example on a unix socket.
    #[must_use]
    pub fn source(&self) -> Option<IpAddr> {
        self.look(Look::Other("the client's address"));
        self.source
    }

    /// The first value of a header, whatever the case of its name.
    ///
    /// The gateway hands on at most 100 headers, and those that its own plugins
    /// add come last: with more, the identity that it added may be missing here.
    #[must_use]
    pub fn header(&self, name: impl AsRef<str>) -> Option<&'f [u8]> {
        self.look(Look::Values(name.as_ref()));
        self.headers.first(name.as_ref())
    }

    /// Whether there is a header of this name, whatever its value.
    #[must_use]
    pub fn has_header(&self, name: impl AsRef<str>) -> bool {
        self.look(Look::Presence(name.as_ref()));
        self.headers.first(name.as_ref()).is_some()
    }

    /// Whether the request is a browser's navigation, so that a person reads the response:
    /// [`is_navigation`](crate::accept::is_navigation).
    #[must_use]
    pub fn is_navigation(&self) -> bool {
        self.look(Look::Navigation);
        accept::is_navigation(self.method.as_str(), |name| self.headers.first(name))
    }

    /// Whether headers may be missing: the gateway hands on at most 100, and drops those
    /// that its own plugins added first. If a plugin trusts a header that the gateway added,
    /// it must refuse such a request.
    #[must_use]
    pub fn may_lack_headers(&self) -> bool {
        self.headers.all().len() >= MAX_FRAME_HEADERS
    }

    /// The names of the headers that have a `_` in them. Many programs read `_` as `-`, so
    /// a client's `x_user` may be taken for the `x-user` that the gateway added.
    pub fn names_with_underscore(&self) -> impl Iterator<Item = &'f [u8]> + '_ {
        self.headers.all().map(|(name, _)| name).filter(|name| name.contains(&b'_'))
    }

    /// The first value of a header, if it is UTF-8.
    #[must_use]
    pub fn header_str(&self, name: impl AsRef<str>) -> Option<&'f str> {
        std::str::from_utf8(self.header(name)?).ok()
    }

    /// All values of a header, in their order.
    pub fn headers_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'f [u8]> + Clone + 'a {
        self.look(Look::Values(name));
        self.headers.named(name)
    }

    /// All headers, names in lower case. Only values of the same name
    /// keep their order.
    pub fn headers(&self) -> impl ExactSizeIterator<Item = (&'f [u8], &'f [u8])> + '_ {
        self.look(Look::Other("all headers"));
        self.headers.all()
    }

    /// The first value of an argument of the query, decoded; empty for a bare
    /// `?name`.
    #[must_use]
    pub fn arg(&self, name: impl AsRef<[u8]>) -> Option<&'f [u8]> {
        self.look(Look::Other("the query"));
        let name = name.as_ref();
        let (_, value) = self.args.iter().find(|(known, _)| *known == name)?;
        Some(value.unwrap_or_default())
    }

    /// All arguments of the query, decoded; a bare `?name` has no value. Only
    /// values of the same name keep their order.
    pub fn args(&self) -> impl Iterator<Item = (&'f [u8], Option<&'f [u8]>)> + '_ {
        self.look(Look::Other("the query"));
        self.args.iter().copied()
    }

    /// An nginx or APISIX variable, such as `route_id`, `scheme`, `request_id`,
    /// `remote_addr`; `None` if no variable has this name.
    ///
    /// Each new name is a round trip to the gateway; an answer is kept for the
    /// request.
    ///
    /// # Errors
    ///
    /// If the gateway gives no answer, or the call has asked too much. If you drop
    /// this future before it completes, the call can ask nothing more.
    pub async fn var(&mut self, name: &str) -> Result<Option<Bytes>, AskError> {
        if !COMPARED.contains(&name) {
            self.look(Look::Other("a variable other than scheme and route_id"));
        }
        self.extra_info.variable(name).await
    }

    /// The request's whole body; `None` if there is none. If the body is larger than
    /// 16 MiB, the gateway fails the call.
    ///
    /// # Errors
    ///
    /// As [`var`](Self::var).
    pub async fn body(&mut self) -> Result<Option<Bytes>, AskError> {
        self.look(Look::Other("the body"));
        self.extra_info.request_body().await
    }

    /// Sets a request header, in place of all its values. A later plugin of the
    /// gateway, and the upstream, see it. `host` sets the host that the upstream
    /// is asked for; to `x-forwarded-for` the gateway appends.
    ///
    /// # Errors
    ///
    /// A name or value that no header can have, an empty value, and the headers
    /// that the gateway sets itself: `content-length`, `connection`, `upgrade`,
    /// `transfer-encoding`, `x-real-ip`.
    pub fn set_header<N>(&mut self, name: N, value: impl AsRef<[u8]>) -> Result<(), ChangeError>
    where
        N: TryInto<HeaderName>,
        ChangeError: From<N::Error>,
    {
        let name = name.try_into()?;
        check_request_header(&name)?;
        check_value(&name, value.as_ref())?;
        self.changes.header(name, Some(value.as_ref()))
    }

    /// Removes all values of a request header.
    ///
    /// # Errors
    ///
    /// As [`set_header`](Self::set_header), and for `host`, without which no
    /// request is valid.
    pub fn remove_header<N>(&mut self, name: N) -> Result<(), ChangeError>
    where
        N: TryInto<HeaderName>,
        ChangeError: From<N::Error>,
    {
        let name = name.try_into()?;
        check_request_header(&name)?;
        if name.as_str() == "host" {
            let why = "without it no request is valid";
            return Err(ChangeError::Fixed { name: name.as_str().into(), why });
        }
        self.changes.header(name, None)
    }

    /// Removes these cookies, and their numbered chunks, from the request. The other cookies
    /// stay byte for byte. It does not matter which plugin is the first: the cookies are also
    /// removed from a `Cookie` header that another plugin sets.
    ///
    /// Unlike a plugin that reads `Cookie` and sets it again, this needs no part of the
    /// [`CacheKey`]: the gateway removes the cookies of each request that a cached decision
    /// answers.
    ///
    /// # Errors
    ///
    /// If the changes of the call become too large.
    pub fn remove_cookies(&mut self, names: &CookieNames) -> Result<(), ChangeError> {
        self.changes.remove_cookies(names)
    }

    /// Sets the path, decoded: the gateway encodes it again, so that `%` arrives
    /// as `%25` and `?` as `%3F`. If no plugin
    /// sets the path, it is unchanged.
    ///
    /// # Errors
    ///
    /// A path that does not begin with `/`.
    pub fn set_path(&mut self, path: impl AsRef<[u8]>) -> Result<(), ChangeError> {
        let path = path.as_ref();
        if !path.starts_with(b"/") {
            return Err(ChangeError::Path);
        }
        self.changes.budget.charge(path.len())?;
        self.changes.path = Some(path.to_vec());
        Ok(())
    }

    /// Sets an argument of the query, in place of all its values. Changing any
    /// argument makes the gateway re-encode and reorder the query.
    ///
    /// # Errors
    ///
    /// An empty name.
    pub fn set_arg(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<(), ChangeError> {
        self.changes.arg(name.as_ref(), Some(value.as_ref()))
    }

    /// Removes all values of an argument of the query.
    ///
    /// # Errors
    ///
    /// An empty name.
    pub fn remove_arg(&mut self, name: impl AsRef<[u8]>) -> Result<(), ChangeError> {
        self.changes.arg(name.as_ref(), None)
    }

    /// Replaces the request's body.
    ///
    /// # Errors
    ///
    /// An empty body, which the protocol can't say.
    pub fn set_body(&mut self, body: impl Into<Vec<u8>>) -> Result<(), ChangeError> {
        let body = body.into();
        if body.is_empty() {
            return Err(ChangeError::EmptyBody);
        }
        self.changes.budget.charge(body.len())?;
        self.changes.body = Some(body);
        Ok(())
    }

    /// Adds a header to the upstream's response.
    ///
    /// The first header of a name replaces what plugins of the gateway have set under it for this
    /// response, such as the cookie of a login that was just renewed. What the upstream sends
    /// stays.
    ///
    /// # Errors
    ///
    /// A name or value that no header can have, an empty value, and the ten
    /// headers that the gateway leaves to the upstream, `content-type` among
    /// them.
    pub fn add_response_header<N>(&mut self, name: N, value: impl AsRef<[u8]>) -> Result<(), ChangeError>
    where
        N: TryInto<HeaderName>,
        ChangeError: From<N::Error>,
    {
        let name = name.try_into()?;
        check_added_response_header(&name)?;
        check_value(&name, value.as_ref())?;
        self.changes.budget.charge(name.as_str().len() + value.as_ref().len())?;
        self.changes.response_headers.push((name, value.as_ref().to_vec()));
        Ok(())
    }

    /// Sends the request to this upstream.
    ///
    /// The runner's carrier passes the choice on in a header. With the direct carrier, the
    /// route's upstream is a closed port, and a gateway plugin replaces it.
    ///
    /// # Errors
    ///
    /// A runner without a carrier ([`Runner::carrier`](crate::Runner::carrier)).
    pub fn set_upstream(&mut self, upstream: Upstream) -> Result<(), ChangeError> {
        if !self.has_carrier {
            return Err(ChangeError::NoCarrier);
        }
        self.changes.upstream = Some(upstream);
        Ok(())
    }

    /// Lets the gateway cache this plugin's decision for up to this long, and at most
    /// 10 s. While it is cached, requests of the route with an equal
    /// [cache key](crate::Plugin::cache_key) are decided without a call.
    ///
    /// The runner records what the plugin looks at, and refuses to cache a decision of a
    /// plugin that looked at anything outside its key. The log says at what: for the first
    /// decision under a conf at `warn`, later at `debug`. It never lets a decision be cached
    /// that
    ///
    /// - depends on the method, the path, the query, the body, the client's address, or a
    ///   variable other than `scheme` and `route_id`,
    /// - a plugin of the chain does not allow to be cached,
    /// - changes anything other than headers, cookies and the upstream,
    /// - sets or removes more than 32 headers, or a header whose name has other characters
    ///   than letters, digits and `-`, or removes more than 128 cookies,
    /// - sets a value that is not UTF-8, or is longer than 16 KiB as a header of JSON.
    ///
    /// A plugin can depend on something that is no part of the request, such as a file, the
    /// time, or another server's answer. The runner can't see that: choose a time for which
    /// an old answer is good enough. A revoked permission stays effective for up to this
    /// long.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use apisix_plugin_runner::{Action, CacheKey, HeaderName, Plugin, PluginError, Request, StatusCode, Stop};
    ///
    /// struct ByTeam;
    ///
    /// impl Plugin for ByTeam {
    ///     const NAME: &'static str = "by-team";
    ///     type Config = ();
    ///
    ///     fn cache_key(&self, (): &()) -> Option<CacheKey> {
    ///         Some(CacheKey::new([HeaderName::from_static("x-team")]))
    ///     }
    ///
    ///     async fn on_request(&self, (): &(), request: &mut Request<'_>) -> Result<Action, PluginError> {
    ///         let Some(team) = request.header_str("x-team") else {
    ///             return Ok(Stop::new(StatusCode::FORBIDDEN).into());
    ///         };
    ///         request.set_upstream(format!("http://team-{team}.example:8080").parse()?)?;
    ///         request.cache_for(Duration::from_secs(5));
    ///         Ok(Action::Continue)
    ///     }
    /// }
    /// ```
    pub fn cache_for(&mut self, time: Duration) {
        self.cached = Some(time);
    }

    /// A plugin is about to look at the request, whose decisions depend on this key.
    pub(crate) fn begin_plugin(&mut self, key: Option<&CacheKey>) {
        self.key = key.cloned();
    }

    /// A plugin has decided; the next one begins.
    ///
    /// # Errors
    ///
    /// Why the decision can't be cached, if the plugin wants it to be.
    pub(crate) fn end_plugin(&mut self) -> Result<(), NotCached> {
        let (key, cached, outside) = (self.key.take(), self.cached.take(), self.outside.take());
        let (allowed, result) = match (cached, key, outside) {
            (None, ..) => (None, Ok(())),
            (Some(_), None, _) => (None, Err(NotCached::NoKey)),
            (Some(_), Some(_), Some(look)) => (None, Err(NotCached::Outside(look))),
            (Some(time), Some(key), None) => (Some((time, key)), Ok(())),
        };
        let so_far = std::mem::take(&mut self.changes.cacheable);
        self.changes.cacheable = so_far.and(allowed);
        result
    }

    /// All plugins have decided to let the request go on.
    pub(crate) fn finish(&mut self) {
        self.changes.finish(self.headers.named("cookie"));
    }

    /// The method and the headers, for the carrier, whose looks are not a plugin's.
    pub(crate) fn original(&self) -> (&Method, &Headers<'f>) {
        (&self.method, &self.headers)
    }

    /// Records a look of the plugin's. Without a key nothing can be cached.
    #[inline]
    fn look(&self, look: Look<'_>) {
        if let Some(key) = &self.key {
            self.compare(key, look);
        }
    }

    #[inline(never)]
    fn compare(&self, key: &CacheKey, look: Look<'_>) {
        if !key.covers(look) {
            self.outside.get_or_init(|| look.to_string().into());
        }
    }
}

/// Why a decision can't be cached although its plugin allows it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum NotCached {
    #[error("the plugin has no cache key: implement cache_key")]
    NoKey,
    #[error("the plugin looked at {0}, which is not in its cache key")]
    Outside(Box<str>),
}

impl fmt::Debug for Request<'_> {
    /// Shows what is no personal data.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Request")
            .field("id", &self.id)
            .field("method", self.method())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::gateway::{ClientRequest, ForwardedRequest, Gateway, Outcome, Route};
    use crate::plugin::{Action, Plugin, PluginError};

    /// What a plugin of a test does with a request.
    type Deed = Box<dyn Fn(&mut Request<'_>) -> Vec<Result<(), ChangeError>> + Send + Sync>;

    struct Does(Deed, Arc<Mutex<Vec<String>>>);

    impl Plugin for Does {
        const NAME: &'static str = "does";
        type Config = ();

        async fn on_request(&self, (): &(), request: &mut Request<'_>) -> Result<Action, PluginError> {
            let errors = (self.0)(request).into_iter().filter_map(Result::err);
            self.1.lock().unwrap().extend(errors.map(|error| error.to_string()));
            Ok(Action::Continue)
        }
    }

    async fn forwarded(
        request: ClientRequest,
        deed: impl Fn(&mut Request<'_>) -> Vec<Result<(), ChangeError>> + Send + Sync + 'static,
    ) -> (ForwardedRequest, Vec<String>) {
        let errors = Arc::default();
        let gateway = Gateway::new().plugin(Does(Box::new(deed), Arc::clone(&errors)));
        let outcome = gateway.call(&Route::new("r").plugin("does", "null"), &request).await;
        let Outcome::Forward(forwarded) = outcome else { panic!("{outcome:?}") };
        let errors = errors.lock().unwrap().clone();
        (forwarded, errors)
    }

    #[tokio::test]
    async fn a_request_is_read_as_the_gateway_sent_it() {
        let request =
            ClientRequest::new(Method::from_bytes(b"MKCOL").unwrap(), "/a%20b/%FF?x=1&flag&x=%26&empty=")
                .header("X-Two", "1")
                .header("x-two", "2")
                .header("x-raw", b"\xff")
                .from_source("::1".parse().unwrap());
        let (forwarded, errors) = forwarded(request, |request| {
            assert_eq!(request.method().as_str(), "MKCOL");
            assert_eq!((request.path(), request.path_str()), (&b"/a b/\xff"[..], None));
            assert_eq!(request.source(), Some("::1".parse().unwrap()));
            assert_eq!(request.headers_named("X-TWO").collect::<Vec<_>>(), [b"1", b"2"]);
            assert_eq!((request.header("x-raw"), request.header_str("x-raw")), (Some(&b"\xff"[..]), None));
            assert_eq!(request.header_str("host"), Some("gateway.test"));
            assert_eq!(request.arg("x"), Some(&b"1"[..]));
            assert_eq!(
                (request.arg("flag"), request.arg("empty"), request.arg("none")),
                (Some(&b""[..]), Some(&b""[..]), None)
            );
            assert_eq!(request.args().filter(|(name, _)| *name == b"x").count(), 2);
            Vec::new()
        })
        .await;
        assert_eq!(forwarded.target, b"/a%20b/%FF?x=1&flag&x=%26&empty=", "reading is no change");
        assert_eq!(errors, <[String; 0]>::default());
    }

    #[tokio::test]
    async fn changes_arrive() {
        let request = ClientRequest::new(Method::POST, "/a?x=1").header("x-gone", "1").body("body");
        let (forwarded, errors) = forwarded(request, |request| {
            vec![
                request.set_path("/new path"),
                request.set_arg("y", "2"),
                request.set_arg("y", "3"),
                request.remove_arg("x"),
                request.set_body("new body"),
                request.set_header("x-set", "first"),
                request.set_header("X-Set", "last"),
                request.remove_header("x-gone"),
                request.set_header("host", "other"),
                request.add_response_header("x-added", "1"),
            ]
        })
        .await;
        assert_eq!(errors, <[String; 0]>::default());
        assert_eq!(String::from_utf8_lossy(&forwarded.target), "/new%20path?y=3");
        assert_eq!(forwarded.body.as_deref(), Some(&b"new body"[..]));
        assert_eq!(forwarded.header("x-set"), Some(&b"last"[..]));
        assert_eq!(forwarded.header("host"), Some(&b"other"[..]));
        assert_eq!(forwarded.header("x-gone"), None);
        assert_eq!(forwarded.response_headers, [("x-added".to_owned(), b"1".to_vec())]);
        assert_eq!(forwarded.upstream, None);
    }

    #[tokio::test]
    async fn changes_that_the_wire_can_not_carry_are_refused_and_change_nothing() {
        let (forwarded, errors) = forwarded(ClientRequest::get("/a"), |request| {
            vec![
                request.set_path("no-slash"),
                request.set_arg("", "1"),
                request.remove_arg(""),
                request.set_body(""),
                request.set_header("a b", "1"),
                request.set_header("x-empty", ""),
                request.remove_header("host"),
                request.remove_header("content-length"),
                request.add_response_header("location", "/"),
                request.set_header("x-large", vec![b'x'; 33 << 20]),
            ]
        })
        .await;
        let expected = [
            "a path begins with \"/\": without, the gateway takes it for a part of the upstream's name",
            "an argument needs a name",
            "an argument needs a name",
            "an empty body leaves the body as it was: the protocol can't say empty",
            "not a header name: letters, digits and !#$%&'*+-.^_`|~ only, at least one",
            "empty value for header \"x-empty\": the gateway would delete it, so use remove_header",
            "request header \"host\" can't be changed: without it no request is valid",
            "request header \"content-length\" can't be changed: a length without its body stalls the request, and a new body brings its own",
            "response header \"location\" can't be set: the gateway ignores it",
            "the changes of this call are more than 33554432 bytes",
        ];
        assert_eq!(errors, expected);
        assert_eq!((&forwarded.target[..], forwarded.header("x-large")), (&b"/a"[..], None));
    }
}
