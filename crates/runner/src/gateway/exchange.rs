//! What a gateway does with a client's request before it calls a runner, and with the
//! runner's rewrite after it. It is pure, so captured frames can check it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, Ipv4Addr};

use apisix_ext_plugin::gateway_side::{RequestParts, Rewrite};
use bytes::Bytes;
use http::Method;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, percent_encode};

use crate::request::{MAX_FRAME_HEADERS, method_number};
use crate::upstream::Upstream;

/// The ports at which a gateway listens by default. It sends its own port in
/// `X-Forwarded-Port`, whatever `Host` contains.
const HTTP_PORT: &str = "9080";
const HTTPS_PORT: &str = "9443";

/// What a gateway encodes in the names and values of a query that it writes. A space becomes
/// `%20`, and not `+` as in a form.
const IN_QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// What a gateway encodes in a path.
const IN_PATH: &AsciiSet = &IN_QUERY.remove(b'/');

/// A client's request as it comes to the gateway.
///
/// ```
/// use apisix_plugin_runner::Method;
/// use apisix_plugin_runner::gateway::ClientRequest;
///
/// let request = ClientRequest::new(Method::POST, "/notes?draft=1")
///     .header("content-type", "text/plain")
///     .added_header("x-userinfo", "e30=") // as openid-connect sets it
///     .variable("route_id", "notes")
///     .body("hello");
/// assert_eq!(request.header_value("content-type"), Some(&b"text/plain"[..]));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientRequest {
    pub(crate) method: Method,
    pub(crate) target: Vec<u8>,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) added: Vec<(String, Vec<u8>)>,
    pub(crate) body: Option<Bytes>,
    pub(crate) source: IpAddr,
    pub(crate) scheme: &'static str,
    pub(crate) variables: BTreeMap<String, Option<Bytes>>,
}

impl ClientRequest {
    /// A request with this method and raw request target, such as `/a%20b?c=1`,
    /// for the host `gateway.test`, from 127.0.0.1.
    ///
    /// # Panics
    ///
    /// If the gateway does not hand on this method, for example `CONNECT`.
    #[must_use]
    pub fn new(method: Method, target: impl AsRef<[u8]>) -> Self {
        assert!(method_number(&method).is_some(), "a gateway does not hand on {method}");
        Self {
            method,
            target: target.as_ref().to_vec(),
            headers: vec![("host".to_owned(), b"gateway.test".to_vec())],
            added: Vec::new(),
            body: None,
            source: Ipv4Addr::LOCALHOST.into(),
            scheme: "http",
            variables: BTreeMap::new(),
        }
    }

    /// A `GET`.
    #[must_use]
    pub fn get(target: impl AsRef<[u8]>) -> Self {
        Self::new(Method::GET, target)
    }

    /// Adds a header that the client sends. `host` replaces the one that is there.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        if name.eq_ignore_ascii_case("host") {
            self.headers.retain(|(known, _)| known != "host");
        }
        self.headers.push((name.to_ascii_lowercase(), value.as_ref().to_vec()));
        self
    }

    /// Adds a header that a plugin of the gateway sets before the runner is called, as
    /// openid-connect sets `X-Userinfo`. It comes after the client's headers and replaces a
    /// client's own.
    #[must_use]
    pub fn added_header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let name = name.to_ascii_lowercase();
        self.headers.retain(|(known, _)| *known != name);
        self.added.push((name, value.as_ref().to_vec()));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// Sets the client's address.
    #[must_use]
    pub fn from_source(mut self, source: IpAddr) -> Self {
        self.source = source;
        self
    }

    /// Sets a variable that the runner may ask for. Variables that a gateway always has need
    /// not be set.
    #[must_use]
    pub fn variable(mut self, name: &str, value: impl Into<Bytes>) -> Self {
        self.variables.insert(name.to_owned(), Some(value.into()));
        self
    }

    /// The value of a header, of the client's or added by the gateway.
    #[must_use]
    pub fn header_value(&self, name: &str) -> Option<&[u8]> {
        let mut all = self.headers.iter().chain(&self.added);
        all.find(|(known, _)| known == name).map(|(_, value)| &value[..])
    }

    fn path_and_query(&self) -> (&[u8], Option<&[u8]>) {
        let target = &self.target[..];
        // The absolute form names a host before the path.
        let target = match target.windows(3).position(|window| window == b"://") {
            Some(at) if !target.starts_with(b"/") => {
                let rest = &target[at + 3..];
                rest.iter().position(|byte| *byte == b'/').map_or(&b"/"[..], |slash| &rest[slash..])
            }
            _ => target,
        };
        match target.iter().position(|byte| *byte == b'?') {
            Some(at) => (&target[..at], Some(&target[at + 1..])),
            None => (target, None),
        }
    }

    /// The frame's content, without token.
    pub(crate) fn to_parts(&self, id: u32) -> RequestParts {
        let (path, query) = self.path_and_query();
        RequestParts {
            id,
            conf_token: 0,
            src_ip: match self.source {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            },
            method: method_number(&self.method)
                .expect("the constructor takes only methods that have a number"),
            path: normalized_path(path),
            args: shuffled_names(decoded_args(query.unwrap_or_default()), id),
            headers: shuffled_names(self.frame_headers(), id),
        }
    }

    /// All headers in the gateway's order, those of its plugins last.
    pub(crate) fn all_headers(&self) -> Vec<(String, Vec<u8>)> {
        let host = self.header_value("host").unwrap_or_default().to_vec();
        let port = if self.scheme == "https" { HTTPS_PORT } else { HTTP_PORT };
        let forwarded = [
            ("x-forwarded-proto", self.scheme.as_bytes().to_vec()),
            ("x-forwarded-host", host),
            ("x-forwarded-port", port.as_bytes().to_vec()),
        ];
        let client = self
            .headers
            .iter()
            .filter(|(name, _)| is_known_to_nginx(name) && forwarded.iter().all(|(known, _)| known != name));
        let forwarded = forwarded.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        client.cloned().chain(forwarded).chain(self.added.iter().cloned()).collect()
    }

    fn frame_headers(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let all = self.all_headers();
        all.into_iter().take(MAX_FRAME_HEADERS).map(|(name, value)| (name.into_bytes(), value)).collect()
    }

    /// What goes to the upstream once the runner has said this.
    pub(crate) fn rewritten(&self, rewrite: &Rewrite) -> ForwardedRequest {
        let mut headers = self.all_headers();
        for (name, value) in &rewrite.headers {
            let name = String::from_utf8_lossy(name).to_ascii_lowercase();
            headers.retain(|(known, _)| *known != name);
            // No value and an empty one delete the header.
            if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
                headers.push((name, value.to_vec()));
            }
        }
        let source = self.source.to_string();
        match headers.iter_mut().find(|(name, _)| name == "x-forwarded-for") {
            Some((_, value)) => value.extend_from_slice(format!(", {source}").as_bytes()),
            None => headers.push(("x-forwarded-for".to_owned(), source.clone().into_bytes())),
        }
        headers.retain(|(name, _)| name != "x-real-ip");
        headers.push(("x-real-ip".to_owned(), source.into_bytes()));
        ForwardedRequest {
            method: self.method.clone(),
            upstream: None,
            target: self.rewritten_target(rewrite),
            headers,
            body: if rewrite.body.is_empty() { self.body.clone() } else { Some(rewrite.body.clone().into()) },
            response_headers: (rewrite.response_headers.iter())
                .map(|(name, value)| (String::from_utf8_lossy(name).to_ascii_lowercase(), value.clone()))
                .collect(),
        }
    }

    fn rewritten_target(&self, rewrite: &Rewrite) -> Vec<u8> {
        let (path, query) = self.path_and_query();
        if rewrite.path.is_none() && rewrite.args.is_empty() {
            return self.target.clone();
        }
        let mut target = match &rewrite.path {
            Some(path) => percent_encoded(path, IN_PATH),
            None => path.to_vec(),
        };
        let query = match rewrite.args.is_empty() {
            true => query.map(<[u8]>::to_vec),
            false => Some(rewritten_query(decoded_args(query.unwrap_or_default()), &rewrite.args)),
        };
        if let Some(query) = query.filter(|query| !query.is_empty()) {
            target.push(b'?');
            target.extend_from_slice(&query);
        }
        target
    }
}

/// A request as the gateway sends it to the route's upstream.
///
/// ```
/// use apisix_plugin_runner::gateway::{ClientRequest, Gateway, Route};
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let request = ClientRequest::get("/a?b=1").header("x-name", "alice");
/// let forwarded = Gateway::new().call(&Route::new("r"), &request).await.forwarded();
/// assert_eq!(forwarded.target, b"/a?b=1");
/// assert_eq!(forwarded.header("x-name"), Some(&b"alice"[..]));
/// assert_eq!(forwarded.upstream, None, "no plugin chose one");
/// # });
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardedRequest {
    /// The method, which no runner can change.
    pub method: Method,
    /// The raw request target.
    pub target: Vec<u8>,
    /// Names in lower case.
    pub headers: Vec<(String, Vec<u8>)>,
    /// `None` if there is none.
    pub body: Option<Bytes>,
    /// What the gateway adds to the upstream's response.
    pub response_headers: Vec<(String, Vec<u8>)>,
    /// The upstream that a plugin chose, read from the carrier's header
    /// ([`Gateway::reads_upstream`](super::Gateway::reads_upstream)).
    pub upstream: Option<Upstream>,
}

impl ForwardedRequest {
    /// The first value of a header, by its name in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| &value[..])
    }
}

/// Whether nginx accepts a header at all: it ignores names that contain anything except
/// letters, digits, `-` and, as APISIX sets it, `_` (`ignore_invalid_headers`).
fn is_known_to_nginx(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

type Arg = (Vec<u8>, Option<Vec<u8>>);

/// One name's values stay in order. The order of names means nothing, and differs from
/// call to call.
fn shuffled_names<V>(mut entries: Vec<(Vec<u8>, V)>, id: u32) -> Vec<(Vec<u8>, V)> {
    entries.sort_by_cached_key(|(name, _)| {
        let mut hasher = DefaultHasher::new();
        (id, name).hash(&mut hasher);
        hasher.finish()
    });
    entries
}

fn rewritten_query(mut args: Vec<Arg>, changes: &[Arg]) -> Vec<u8> {
    let mut changed: Vec<&[u8]> = Vec::new();
    for (name, value) in changes {
        // The first value replaces the old ones, and later values are added to it.
        if value.is_none() || !changed.contains(&&name[..]) {
            args.retain(|(known, _)| known != name);
        }
        if value.is_some() {
            changed.push(name);
            args.push((name.clone(), value.clone()));
        }
    }
    let encoded = args.iter().map(|(name, value)| {
        let name = percent_encoded(name, IN_QUERY);
        match value {
            Some(value) => [&name[..], b"=", &percent_encoded(value, IN_QUERY)].concat(),
            None => name,
        }
    });
    encoded.collect::<Vec<_>>().join(&b'&')
}

fn decoded_args(query: &[u8]) -> Vec<Arg> {
    let parts = query.split(|byte| *byte == b'&').filter(|part| !part.is_empty());
    let args = parts.map(|part| match part.iter().position(|byte| *byte == b'=') {
        Some(at) => (form_decoded(&part[..at]), Some(form_decoded(&part[at + 1..]))),
        None => (form_decoded(part), None),
    });
    args.filter(|(name, _)| !name.is_empty()).collect()
}

/// The bytes of a name or a value in a query. `form_urlencoded` would replace those that are
/// not UTF-8, which the gateway hands on.
fn form_decoded(bytes: &[u8]) -> Vec<u8> {
    let spaced: Vec<u8> = bytes.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    percent_decode(&spaced).collect()
}

fn percent_encoded(bytes: &[u8], set: &'static AsciiSet) -> Vec<u8> {
    percent_encode(bytes, set).to_string().into_bytes()
}

/// nginx's `$uri`: decoded, with dot segments and doubled slashes resolved.
fn normalized_path(path: &[u8]) -> Vec<u8> {
    let decoded: Vec<u8> = percent_decode(path).collect();
    let mut segments: Vec<&[u8]> = Vec::new();
    let mut ends_in_slash = decoded.ends_with(b"/");
    for segment in decoded.split(|byte| *byte == b'/') {
        ends_in_slash |= segment == b"." || segment == b"..";
        match segment {
            b"" | b"." => {}
            b".." => {
                segments.pop();
            }
            _ => {
                segments.push(segment);
                ends_in_slash = decoded.ends_with(b"/");
            }
        }
    }
    let mut normalized = b"/".to_vec();
    normalized.extend_from_slice(&segments.join(&b'/'));
    if ends_in_slash && !segments.is_empty() {
        normalized.push(b'/');
    }
    normalized
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_decoded_and_normalized_as_nginx_does() {
        for (raw, expected) in [
            ("/", "/"),
            ("/a//b", "/a/b"),
            ("/a/./b/../c", "/a/c"),
            ("/a/b/..", "/a/"),
            ("/a%2Fb%20c", "/a/b c"),
            ("/a/", "/a/"),
            ("/%2e%2e/x", "/x"),
            ("/100%", "/100%"),
        ] {
            assert_eq!(String::from_utf8_lossy(&normalized_path(raw.as_bytes())), expected, "{raw}");
        }
    }

    fn rewritten(request: &ClientRequest, rewrite: Rewrite) -> ForwardedRequest {
        request.rewritten(&rewrite)
    }

    fn arg(name: &str, value: Option<&str>) -> Arg {
        (name.into(), value.map(Into::into))
    }

    #[test]
    fn args_are_decoded_to_bytes() {
        for (raw, expected) in [
            ("a+b%2B", &b"a b+"[..]),
            ("%ff%E4", b"\xff\xe4"),
            ("%", b"%"),
            ("%4", b"%4"),
            ("%zz%%41%4", b"%zz%A%4"),
            ("%+1", b"% 1"),
        ] {
            let arg = (b"n".to_vec(), Some(expected.to_vec()));
            assert_eq!(decoded_args(format!("&n={raw}&").as_bytes()), [arg], "{raw}");
        }
    }

    #[test]
    fn an_unchanged_target_goes_on_byte_for_byte() {
        let request = ClientRequest::get("/%e4//a?b=%20&a&c=");
        assert_eq!(rewritten(&request, Rewrite::default()).target, b"/%e4//a?b=%20&a&c=");
    }

    #[test]
    fn a_path_is_encoded_again_and_keeps_the_query() {
        let request = ClientRequest::get("/x?b=%20");
        let rewrite = Rewrite { path: Some(b"/a%20b?c/\xff".to_vec()), ..Rewrite::default() };
        assert_eq!(rewritten(&request, rewrite).target, b"/a%2520b%3Fc/%FF?b=%20");
    }

    #[test]
    fn args_are_replaced_appended_and_removed_as_the_gateway_does() {
        let request = ClientRequest::get("/x?a=1&b=2&a=3&c");
        let changes = vec![arg("a", Some("x y")), arg("a", Some("z")), arg("b", None), arg("d", Some(""))];
        let forwarded = rewritten(&request, Rewrite { args: changes, ..Rewrite::default() });
        assert_eq!(String::from_utf8_lossy(&forwarded.target), "/x?c&a=x%20y&a=z&d=");
    }

    #[test]
    fn headers_are_set_and_deleted_as_the_gateway_does() {
        let request = ClientRequest::get("/").header("x-a", "1").header("x-a", "2").header("x-b", "1");
        let headers = vec![
            (b"X-A".to_vec(), Some(b"first".to_vec())),
            (b"x-a".to_vec(), Some(b"last".to_vec())),
            (b"x-b".to_vec(), Some(Vec::new())),
            (b"host".to_vec(), Some(b"other".to_vec())),
            (b"x-forwarded-for".to_vec(), Some(b"9.9.9.9".to_vec())),
            (b"x-real-ip".to_vec(), Some(b"9.9.9.9".to_vec())),
        ];
        let forwarded = rewritten(&request, Rewrite { headers, ..Rewrite::default() });
        assert_eq!(forwarded.header("x-a"), Some(&b"last"[..]));
        assert_eq!(forwarded.header("x-b"), None);
        assert_eq!(forwarded.header("host"), Some(&b"other"[..]));
        assert_eq!(forwarded.header("x-forwarded-for"), Some(&b"9.9.9.9, 127.0.0.1"[..]));
        assert_eq!(forwarded.header("x-real-ip"), Some(&b"127.0.0.1"[..]));
    }

    #[test]
    fn more_than_a_hundred_headers_cut_off_what_the_gateway_added() {
        let mut request = ClientRequest::get("/");
        for n in 0..96 {
            request = request.header(&format!("x-{n}"), "1");
        }
        let request = request.added_header("x-userinfo", "e30");
        let has_userinfo = |request: &ClientRequest| {
            request.to_parts(1).headers.iter().any(|(name, _)| name == b"x-userinfo")
        };
        assert_eq!(request.to_parts(1).headers.len(), 100);
        assert!(!has_userinfo(&request));
        let mut fewer = request.clone();
        fewer.headers.pop();
        assert!(has_userinfo(&fewer));
    }
}
