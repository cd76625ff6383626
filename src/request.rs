//! A client's request as a plugin sees it, and the changes that it records.

use std::fmt;
use std::net::IpAddr;

use bytes::Bytes;

use crate::changes::{ChangeError, Changes, check_added_response_header, check_request_header, check_value};
use crate::extra_info::{AskError, ExtraInfo};
use crate::headers::{HeaderName, Headers};
use crate::upstream::Upstream;
use crate::wire::RequestCall;

/// The method of a request. The gateway hands on no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // The names are the methods'.
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Mkcol,
    Copy,
    Move,
    Options,
    Propfind,
    Proppatch,
    Lock,
    Unlock,
    Patch,
    Trace,
}

/// The methods in the order of their numbers in the protocol.
const METHODS: [(Method, &str); 15] = [
    (Method::Get, "GET"),
    (Method::Head, "HEAD"),
    (Method::Post, "POST"),
    (Method::Put, "PUT"),
    (Method::Delete, "DELETE"),
    (Method::Mkcol, "MKCOL"),
    (Method::Copy, "COPY"),
    (Method::Move, "MOVE"),
    (Method::Options, "OPTIONS"),
    (Method::Propfind, "PROPFIND"),
    (Method::Proppatch, "PROPPATCH"),
    (Method::Lock, "LOCK"),
    (Method::Unlock, "UNLOCK"),
    (Method::Patch, "PATCH"),
    (Method::Trace, "TRACE"),
];

impl Method {
    /// The method as it stands in a request line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        METHODS[usize::from(self.number())].1
    }

    /// The method of this name in upper case; `None` for one that the gateway
    /// does not hand on.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        METHODS.iter().find(|(_, known)| *known == name).map(|(method, _)| *method)
    }

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        METHODS.get(usize::from(number)).map(|(method, _)| *method)
    }

    pub(crate) fn number(self) -> u8 {
        self as u8
    }
}

/// A client's request, before it goes to an upstream.
///
/// Getters return bytes of the frame itself, as the gateway sent it: clients
/// send what they like, so values are bytes, and they may be held across an
/// `.await`. The `_str` getters return `None` for what is not UTF-8.
///
/// Changes are recorded and sent when the whole chain of plugins is through.
/// Reading never shows them: each plugin sees the request that the gateway sent.
/// Where two plugins change the same thing, the later one wins. What the
/// protocol can't carry, or the gateway would not carry out, is refused at once.
pub struct Request<'f> {
    pub(crate) id: u32,
    method: Method,
    path: &'f [u8],
    source: Option<IpAddr>,
    args: Vec<(&'f [u8], Option<&'f [u8]>)>,
    headers: Headers<'f>,
    pub(crate) extra_info: ExtraInfo<'f>,
    pub(crate) changes: Changes,
}

impl<'f> Request<'f> {
    /// `None` where the method is none of the protocol's.
    pub(crate) fn new(
        call: RequestCall<'f>,
        extra_info: ExtraInfo<'f>,
        max_change_bytes: usize,
    ) -> Option<Self> {
        let source = match *call.src_ip {
            [a, b, c, d] => Some(IpAddr::from([a, b, c, d])),
            ref bytes => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        };
        Some(Self {
            id: call.id,
            method: Method::from_number(call.method)?,
            path: call.path,
            source,
            args: call.args,
            headers: Headers::new(call.headers),
            extra_info,
            changes: Changes::new(max_change_bytes),
        })
    }

    /// The method.
    #[must_use]
    pub fn method(&self) -> Method {
        self.method
    }

    /// The path as the gateway matched it: percent-decoded, without dot
    /// segments and doubled slashes. The client's own request line is the
    /// variable `real_request_uri`.
    #[must_use]
    pub fn path(&self) -> &'f [u8] {
        self.path
    }

    /// The path, if it is UTF-8.
    #[must_use]
    pub fn path_str(&self) -> Option<&'f str> {
        std::str::from_utf8(self.path).ok()
    }

    /// The client's address, as the gateway sees it; `None` where it has none,
    /// as on a unix socket.
    #[must_use]
    pub fn source(&self) -> Option<IpAddr> {
        self.source
    }

    /// The first value of a header, whatever the case of its name.
    ///
    /// The gateway hands on at most 100 headers, and those that its own plugins
    /// add come last: with more, the identity that it added may be missing here.
    #[must_use]
    pub fn header(&self, name: impl AsRef<str>) -> Option<&'f [u8]> {
        self.headers.first(name.as_ref())
    }

    /// The first value of a header, if it is UTF-8.
    #[must_use]
    pub fn header_str(&self, name: impl AsRef<str>) -> Option<&'f str> {
        std::str::from_utf8(self.header(name)?).ok()
    }

    /// All values of a header, in their order.
    pub fn headers_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'f [u8]> + 'a {
        self.headers.named(name)
    }

    /// All headers, names in lower case. Only the order of one name's values
    /// means something.
    pub fn headers(&self) -> impl ExactSizeIterator<Item = (&'f [u8], &'f [u8])> + '_ {
        self.headers.all()
    }

    /// The first value of an argument of the query, decoded; empty for a bare
    /// `?name`.
    #[must_use]
    pub fn arg(&self, name: impl AsRef<[u8]>) -> Option<&'f [u8]> {
        let name = name.as_ref();
        let (_, value) = self.args.iter().find(|(known, _)| *known == name)?;
        Some(value.unwrap_or_default())
    }

    /// All arguments of the query, decoded; a bare `?name` has no value. Only
    /// the order of one name's values means something.
    pub fn args(&self) -> impl Iterator<Item = (&'f [u8], Option<&'f [u8]>)> + '_ {
        self.args.iter().copied()
    }

    /// An nginx or APISIX variable, such as `route_id`, `scheme`, `request_id`,
    /// `remote_addr`; `None` where there is none of this name.
    ///
    /// Each new name is a round trip to the gateway; an answer is kept for the
    /// request.
    ///
    /// # Errors
    ///
    /// If the gateway gives no answer, or the call has asked too much. A future
    /// of this kind that is dropped before its answer came ends the questions
    /// of this call.
    pub async fn var(&mut self, name: &str) -> Result<Option<Bytes>, AskError> {
        self.extra_info.variable(name).await
    }

    /// The request's body, whole; `None` where there is none. At more than
    /// 16 MiB the gateway fails the call.
    ///
    /// # Errors
    ///
    /// As [`var`](Self::var).
    pub async fn body(&mut self) -> Result<Option<Bytes>, AskError> {
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

    /// Sets the path, decoded: the gateway encodes it again, so that `%` arrives
    /// as `%25` and `?` as `%3F`. A path that nobody sets goes on byte for byte.
    ///
    /// # Errors
    ///
    /// A path that does not begin with `/`.
    pub fn set_path(&mut self, path: impl AsRef<[u8]>) -> Result<(), ChangeError> {
        let path = path.as_ref();
        if !path.starts_with(b"/") {
            return Err(ChangeError::Path);
        }
        self.changes.charge(path.len())?;
        self.changes.path = Some(path.to_vec());
        Ok(())
    }

    /// Sets an argument of the query, in place of all its values. Any change of
    /// an argument makes the gateway encode and order the whole query anew.
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
        self.changes.charge(body.len())?;
        self.changes.body = Some(body);
        Ok(())
    }

    /// Adds a header to the response that the upstream will give, beside what
    /// the upstream sends.
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
        self.changes.charge(name.as_str().len() + value.as_ref().len())?;
        self.changes.response_headers.push((name, value.as_ref().to_vec()));
        Ok(())
    }

    /// Sends the request to this upstream.
    ///
    /// The route's own upstream must be this runner's forwarder, which takes the
    /// request there; no other way in can be opened with it.
    pub fn upstream(&mut self, upstream: Upstream) {
        self.changes.upstream = Some(upstream);
    }
}

impl fmt::Debug for Request<'_> {
    /// Shows what is no personal data.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Request")
            .field("id", &self.id)
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}
