//! A request of the gateway: its stamp's upstream, and its head as it goes to the workspace.

use std::time::SystemTime;

use thiserror::Error;

use super::http::framing::{self, Answers, Framing, FramingError};
use super::http::head::{HeadError, HeaderField, HttpVersion, RawRequestHead};
use super::http::headers::{self, Named, NamedError, RequestForm};
use crate::route::kept_headers::{is_always_kept, is_disguised};
use crate::route::stamp::{STAMP_HEADER, StampError, StampKey, Stamped};
use apisix_plugin_runner::{CookieNames, Upstream};

/// A request with a valid stamp, and what the exchange needs to know about it.
#[derive(Debug)]
pub(super) struct StampedRequest {
    pub(super) upstream: Upstream,
    /// The id of its route, for the log.
    pub(super) route: Option<Box<str>>,
    /// Whether it fetches the script of a service worker for more than one application.
    pub(super) is_shared_worker: bool,
    pub(super) framing: Framing,
    pub(super) version: HttpVersion,
    /// What its response answers.
    pub(super) method: Answers,
    /// The protocols that it offers, if it asks for an upgrade.
    pub(super) protocols: Option<Box<[u8]>>,
    /// Whether it may be sent a second time if the first got no answer: it has no body, and a
    /// server does the same once and twice (RFC 9110, section 9.2.2).
    pub(super) is_repeatable: bool,
    /// The cookies that only the gateway sets.
    pub(super) removed_cookies: CookieNames,
    /// Whether it waits for a 100 before its body.
    pub(super) expects_continue: bool,
    /// Whether the gateway sends no other request on its connection.
    pub(super) is_last: bool,
    /// The head as it goes to the workspace.
    pub(super) head: Vec<u8>,
}

/// Why a request is not passed on.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(super) enum RequestError {
    #[error("{0}")]
    Head(#[from] HeadError),
    #[error("{0}")]
    Framing(#[from] FramingError),
    #[error("{0}")]
    Named(#[from] NamedError),
    #[error("the host header is missing, repeated or not a host")]
    Host,
    #[error("the target is neither a path nor, with OPTIONS, `*`, nor a URL of the same host")]
    Target,
    /// The request asks for a tunnel to a host of the client's choice.
    #[error("the method is CONNECT")]
    Connect,
    /// Everything else is valid, so the body can be skipped.
    #[error("{error}")]
    Stamp { error: StampError, framing: Framing, is_last: bool },
}

impl StampedRequest {
    /// Reads a complete head.
    pub(super) fn read(head: &[u8], key: &StampKey, now: SystemTime) -> Result<Self, RequestError> {
        let head = RawRequestHead::parse(head)?;
        if head.method == b"CONNECT" {
            return Err(RequestError::Connect);
        }
        let framing = framing::of_request(&head)?;
        let target = origin_form(&head)?;
        let named = Named::in_fields(&head.fields)?;
        let is_last = head.version == HttpVersion::Http10 || named.has(b"close");
        let Stamped { upstream, names } =
            stamped(&head, key, now).map_err(|error| RequestError::Stamp { error, framing, is_last })?;
        let protocols = headers::wanted_protocols(&head, &named);
        let length: usize = head.fields.iter().map(|field| field.line.len() + 2).sum();
        let mut output = Vec::with_capacity(length + target.len() + 128);
        let removed_cookies = names.cookies().unwrap_or_default();
        let form = RequestForm {
            target,
            framing,
            protocols,
            own_header: STAMP_HEADER,
            is_kept: &|name| is_always_kept(name) || names.has_header(name),
            is_disguised: &|name| is_disguised(name, |meant| names.has_header(meant)),
            removed_cookies: &removed_cookies,
        };
        headers::write_request(&head, &named, &form, &mut output);
        Ok(Self {
            upstream,
            route: names.route().map(Box::from),
            is_shared_worker: is_shared_worker(&head, target),
            framing,
            version: head.version,
            method: if head.method == b"HEAD" { Answers::Head } else { Answers::OtherMethod },
            protocols: protocols.map(Box::from),
            is_repeatable: is_repeatable(&head, framing),
            removed_cookies,
            expects_continue: head.version == HttpVersion::Http11 && expects_continue(&head),
            is_last,
            head: output,
        })
    }
}

/// The folders of the editor's port proxies, at which users open their own applications.
const PORT_PROXIES: [&[u8]; 2] = [b"/proxy/", b"/absproxy/"];

/// Whether a browser fetches the script of a service worker whose default scope, the folder of
/// the script, is the whole origin, or has addresses that users open (Service Workers, section
/// 4.1).
fn is_shared_worker(head: &RawRequestHead<'_>, target: &[u8]) -> bool {
    let is_script =
        |field: &HeaderField<'_>| field.is("service-worker") && field.value.eq_ignore_ascii_case(b"script");
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    // Browsers read a `\` in a path as `/`, and so write none.
    let is_of_root = path.iter().filter(|byte| **byte == b'/').count() == 1;
    head.fields.iter().any(is_script)
        && (is_of_root || PORT_PROXIES.iter().any(|folder| path.starts_with(folder)))
}

fn is_repeatable(head: &RawRequestHead<'_>, framing: Framing) -> bool {
    let has_no_body = matches!(framing, Framing::None | Framing::Length(0));
    has_no_body && [&b"GET"[..], b"HEAD", b"OPTIONS", b"PUT", b"DELETE"].contains(&head.method)
}

fn expects_continue(head: &RawRequestHead<'_>) -> bool {
    head.fields.iter().any(|field| field.is("expect") && field.value.eq_ignore_ascii_case(b"100-continue"))
}

/// What a request's one valid stamp says.
fn stamped(head: &RawRequestHead<'_>, key: &StampKey, now: SystemTime) -> Result<Stamped, StampError> {
    let mut stamps = head.fields.iter().filter(|field| field.is(STAMP_HEADER));
    let stamp = stamps.next().ok_or(StampError::Missing)?;
    match stamps.next() {
        Some(_) => Err(StampError::Repeated),
        None => key.open(stamp.value, now),
    }
}

/// The target in the form that servers accept. A target for a proxy is a whole URL (RFC
/// 9112, section 3.2.2) and must name the same host as `Host`: the stamp decides where the
/// request goes, and no server on the way may see another host.
fn origin_form<'b>(head: &RawRequestHead<'b>) -> Result<&'b [u8], RequestError> {
    let host = host(head)?;
    match head.target {
        [b'/', ..] => Ok(head.target),
        b"*" if head.method == b"OPTIONS" => Ok(head.target),
        target => {
            let rest = without_scheme(target).ok_or(RequestError::Target)?;
            let end = rest.iter().position(|byte| b"/?#".contains(byte)).unwrap_or(rest.len());
            let (authority, path) = rest.split_at(end);
            let is_same = host.is_some_and(|host| host.eq_ignore_ascii_case(authority));
            match path {
                [] if is_same => Ok(b"/"),
                [b'/', ..] if is_same => Ok(path),
                _ => Err(RequestError::Target),
            }
        }
    }
}

fn without_scheme(target: &[u8]) -> Option<&[u8]> {
    let starts = [&b"http://"[..], b"https://"];
    starts.iter().find_map(|start| {
        let (scheme, rest) = target.split_at_checked(start.len())?;
        scheme.eq_ignore_ascii_case(start).then_some(rest)
    })
}

/// The value of `Host`, which must be there once. HTTP/1.0 may leave it out.
fn host<'b>(head: &RawRequestHead<'b>) -> Result<Option<&'b [u8]>, RequestError> {
    let mut hosts = head.fields.iter().filter(|field| field.name.len() == 4 && field.is("host"));
    let is_allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte);
    match (hosts.next(), hosts.next()) {
        (None, _) if head.version == HttpVersion::Http10 => Ok(None),
        (Some(host), None) if !host.value.is_empty() && host.value.iter().all(is_allowed) => {
            Ok(Some(host.value))
        }
        _ => Err(RequestError::Host),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::route::stamp::StampedNames;

    /// The header lines that reach the workspace from a request with these lines. Plugins
    /// have set the headers with these names, and removed the cookie `session`.
    fn passed(lines: &str, set_by_plugins: &[&str]) -> Vec<String> {
        let (key, now) = (StampKey::random().unwrap(), SystemTime::now());
        let names = StampedNames::new(set_by_plugins.iter().copied(), ["session"]).unwrap();
        let upstream = "http://a:1".parse().unwrap();
        let stamp = key.make_with_names(&upstream, &names, now + Duration::from_secs(60));
        let head = format!("GET / HTTP/1.1\r\n{STAMP_HEADER}: {stamp}\r\n{lines}\r\n");
        let request = StampedRequest::read(head.as_bytes(), &key, now).unwrap();
        let head = String::from_utf8(request.head).unwrap();
        head.lines().skip(1).take_while(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    #[test]
    fn a_client_can_not_remove_what_the_gateway_sets() {
        let kept = [
            "Authorization: Bearer x",
            "Content-Length: 3",
            "Content-Type: text/plain",
            "Cookie: a=b",
            "Forwarded: for=192.0.2.1",
            "Host: code.example",
            "Origin: https://code.example",
            "Sec-WebSocket-Key: x",
            "Via: 1.1 gateway",
            "X-Auth-User: alice",
            "X-Forwarded-For: 192.0.2.1",
            "X-Forwarded-User: alice",
            "X-Real-IP: 192.0.2.1",
            "X-Request-Id: 1",
        ];
        let names: Vec<_> = kept.iter().map(|line| line.split(':').next().unwrap()).collect();
        let lines = format!("{}\r\nConnection: {}\r\n", kept.join("\r\n"), names.join(", "));
        assert_eq!(passed(&lines, &[]), kept);
    }

    #[test]
    fn a_header_that_a_plugin_set_reaches_the_workspace_whatever_connection_names() {
        let lines = "Host: h\r\nConnection: X-Greeting, x-own, x-forwarded-user\r\n\
                     x-greeting: hello\r\nx-own: 1\r\nx-forwarded-user: alice\r\n";
        let expected = ["Host: h", "x-greeting: hello", "x-forwarded-user: alice"];
        assert_eq!(passed(lines, &["x-greeting"]), expected);
    }

    /// The gateway shows plugins only a client's first headers, and passes all of them on.
    #[test]
    fn a_cookie_that_plugins_remove_reaches_no_workspace_in_any_line() {
        let lines = "Host: h\r\nCookie: a=1; session=x\r\ncookie: session_2=y;session3=z\r\nCOOKIE: b=2;  c=3\r\n\
                     Cookie: sessions=1; session =2\r\n";
        assert_eq!(passed(lines, &[]), ["Host: h", "Cookie: a=1", "COOKIE: b=2;  c=3", "Cookie: sessions=1"]);
    }

    #[test]
    fn the_script_of_a_worker_that_would_answer_the_next_user_is_recognised() {
        let (key, now) = (StampKey::random().unwrap(), SystemTime::now());
        let stamp = key.make(&"http://a:1".parse().unwrap(), now + Duration::from_secs(60));
        let read = |target: &str, line: &str| {
            let head =
                format!("GET {target} HTTP/1.1\r\nHost: h\r\n{STAMP_HEADER}: {stamp}\r\n{line}\r\n\r\n");
            StampedRequest::read(head.as_bytes(), &key, now).unwrap().is_shared_worker
        };
        for target in [
            "/sw.js",
            "/sw.js?a=/b/c",
            "/",
            "http://h/sw.js",
            "/proxy/3000/sw.js",
            "/proxy/sw.js",
            "/proxy/3000/static/a/sw.js?x",
            "/absproxy/8080/sw.js",
        ] {
            assert!(read(target, "Service-Worker: script"), "{target}");
            assert!(read(target, "service-worker:  SCRIPT "), "{target}");
            assert!(!read(target, "Service-Worker: scripts"), "{target}");
            assert!(!read(target, "X-Service-Worker: script"), "{target}");
        }
        for target in [
            "/a/sw.js",
            "/stable-1/static/out/pre/service-worker.js?v=4",
            "//sw.js",
            "/proxy-a/sw.js",
            "/a/proxy/3000/sw.js",
        ] {
            assert!(!read(target, "Service-Worker: script"), "{target}");
        }
    }

    #[test]
    fn a_header_in_disguise_reaches_no_workspace() {
        let lines = "Host: h\r\nX_Forwarded_User: mallory\r\nx-forwarded-user: alice\r\nX_Userinfo: e30=\r\n\
                     x_team: 1\r\nx_own: 1\r\nX_Kube-Coders_Stamp: x\r\n";
        assert_eq!(passed(lines, &["x-team"]), ["Host: h", "x-forwarded-user: alice", "x_own: 1"]);
    }
}
