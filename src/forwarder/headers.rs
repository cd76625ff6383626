//! What belongs to one connection and must not pass to the next (RFC 9110,
//! section 7.6.1).

use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// What belongs to a connection whether `Connection` names it or not.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What a client's `Connection` does not remove, by name …
const KEPT: [HeaderName; 7] = [
    header::HOST,
    header::COOKIE,
    header::AUTHORIZATION,
    header::ORIGIN,
    header::FORWARDED,
    header::VIA,
    HeaderName::from_static("x-real-ip"),
];

/// … and by how the name starts.
const KEPT_PREFIXES: [&str; 5] = ["x-forwarded-", "x-auth-", "x-request-", "content-", "sec-"];

/// Removes what belongs to the connection that a request came on, and returns
/// the protocols of `Upgrade` if the request asks for one.
///
/// With WebSockets enabled, the gateway passes the client's own `Connection`
/// on. Whoever sends `Connection: x-forwarded-user` would make us remove what
/// the gateway and the plugins have just set, and a workspace that finds no
/// user may believe that there is none. So a name in `Connection` removes a
/// header only if nobody but the client has a reason to set it.
pub(super) fn take_request_hop(headers: &mut HeaderMap) -> Option<HeaderValue> {
    let named = named(headers);
    let upgrade = headers.get(header::UPGRADE).filter(|_| named.contains(&header::UPGRADE));
    let upgrade = upgrade.filter(|protocols| !carries_requests(protocols)).cloned();
    for name in named.iter().filter(|name| !is_kept(name)) {
        headers.remove(name);
    }
    remove_hop_by_hop(headers);
    // Without it no trailer is passed on either: a field that comes after the
    // body has gone past every plugin.
    headers.remove(header::TRAILER);
    upgrade
}

/// Whether one of the protocols carries further requests, each of which has to
/// come by the plugins: HTTP/2 in the clear, or whatever is inside TLS.
fn carries_requests(protocols: &HeaderValue) -> bool {
    let mut protocols = protocols.as_bytes().split(|byte| *byte == b',');
    protocols.any(|protocol| {
        let name = protocol.split(|byte| *byte == b'/').next().unwrap_or_default().trim_ascii();
        [&b"h2c"[..], b"h2", b"http", b"tls"].iter().any(|known| name.eq_ignore_ascii_case(known))
    })
}

/// Removes what belongs to the connection that a response came on, and what
/// would command the gateway: nginx obeys `X-Accel-*` of an upstream, up to
/// serving another of its own locations.
pub(super) fn remove_response_hop(headers: &mut HeaderMap) {
    // A length beside a transfer encoding is to be ignored (RFC 9112, section
    // 6.3), so it must not reach anybody who would believe it.
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    for name in named(headers) {
        headers.remove(name);
    }
    remove_hop_by_hop(headers);
    let commands: Vec<_> =
        headers.keys().filter(|name| name.as_str().starts_with("x-accel-")).cloned().collect();
    for name in commands {
        headers.remove(name);
    }
}

/// Asks for an upgrade, or agrees to one, on the connection that is next.
pub(super) fn set_upgrade(headers: &mut HeaderMap, protocols: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocols);
}

/// Whether a message has a transfer encoding that we can't take off, since
/// only `chunked` is ours to undo.
pub(super) fn is_encoded_otherwise(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::TRANSFER_ENCODING)
        .iter()
        .any(|value| !value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"))
}

/// For how long the sender of a response keeps the connection without a
/// request, less a second for the way: `Keep-Alive: timeout=5` is what Node.js
/// says and does. Whoever sends into a connection that is just being closed
/// can't know whether the request has arrived.
pub(super) fn keep_alive(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("keep-alive")?.to_str().ok()?;
    let timeout = value.split(',').find_map(|part| part.trim().strip_prefix("timeout="))?;
    let seconds: u64 = timeout.parse().ok()?;
    Some(Duration::from_secs(seconds.saturating_sub(1)))
}

/// The header names in `Connection`; what is no header name is left out.
fn named(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect()
}

fn is_kept(name: &HeaderName) -> bool {
    KEPT.contains(name) || KEPT_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix))
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn what_belongs_to_a_connection_is_removed() {
        let mut headers = map(&[
            ("connection", "keep-alive, X-Hop"),
            ("connection", "close ,, http2-settings, no/name"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authenticate", "Basic"),
            ("proxy-authorization", "Basic eDp5"),
            ("te", "trailers"),
            ("trailer", "x-sum"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("x-hop", "1"),
            ("x-hop", "2"),
            ("http2-settings", "AAMAAABk"),
            ("accept", "*/*"),
        ]);
        // `Connection` does not name it, so it asks for nothing.
        assert_eq!(take_request_hop(&mut headers), None);
        assert_eq!(names(&headers), ["accept"]);
    }

    #[test]
    fn a_client_can_not_remove_what_the_gateway_sets() {
        let lines = [
            ("authorization", "Bearer x"),
            ("content-length", "3"),
            ("content-type", "text/plain"),
            ("cookie", "a=b"),
            ("forwarded", "for=192.0.2.1"),
            ("host", "code.example"),
            ("origin", "https://code.example"),
            ("sec-websocket-key", "x"),
            ("via", "1.1 gateway"),
            ("x-auth-user", "alice"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-host", "code.example"),
            ("x-forwarded-preferred-username", "alice"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-user", "alice"),
            ("x-real-ip", "192.0.2.1"),
            ("x-request-id", "1"),
        ];
        let mut headers = map(&lines);
        for (name, _) in lines {
            headers.append(header::CONNECTION, HeaderValue::from_static(name));
        }
        headers.append(header::CONNECTION, HeaderValue::from_static("X-Forwarded-User, Upgrade"));
        assert_eq!(take_request_hop(&mut headers), None);
        assert_eq!(names(&headers), lines.map(|(name, _)| name));
    }

    #[test]
    fn an_upgrade_is_asked_for_with_both_headers() {
        let asked = |lines| take_request_hop(&mut map(lines));
        let websocket = Some(HeaderValue::from_static("websocket"));
        assert_eq!(asked(&[("connection", "Upgrade"), ("upgrade", "websocket")]), websocket);
        assert_eq!(asked(&[("connection", "keep-alive, upgrade"), ("upgrade", "websocket")]), websocket);
        assert_eq!(asked(&[("connection", "upgrade")]), None);
        assert_eq!(asked(&[("upgrade", "websocket")]), None);
    }

    #[test]
    fn an_upgrade_that_would_carry_requests_is_none() {
        for (protocols, passes) in [
            ("websocket", true),
            ("echo/1", true),
            ("h2c", false),
            ("H2C", false),
            ("websocket, h2c", false),
            ("HTTP/2.0", false),
            ("TLS/1.2, HTTP/1.1", false),
        ] {
            let mut headers = map(&[("connection", "upgrade, http2-settings"), ("http2-settings", "x")]);
            headers.insert("upgrade", HeaderValue::from_static(protocols));
            assert_eq!(take_request_hop(&mut headers).is_some(), passes, "{protocols}");
            assert_eq!(names(&headers), <[&str; 0]>::default());
        }
    }

    #[test]
    fn a_response_loses_its_hop_and_a_length_that_does_not_count() {
        let mut headers = map(&[
            ("connection", "close, x-hop"),
            ("keep-alive", "timeout=5"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("content-length", "3"),
            ("trailer", "x-sum"),
            ("x-accel-redirect", "/internal"),
            ("x-accel-buffering", "no"),
            ("set-cookie", "a=b"),
            ("set-cookie", "c=d"),
        ]);
        remove_response_hop(&mut headers);
        assert_eq!(names(&headers), ["set-cookie", "trailer"]);
        assert_eq!(headers.get_all("set-cookie").iter().count(), 2);
        let mut headers = map(&[("content-length", "3")]);
        remove_response_hop(&mut headers);
        assert_eq!(names(&headers), ["content-length"]);
    }

    #[test]
    fn the_sender_says_how_long_a_connection_is_kept() {
        let kept = |value| keep_alive(&map(&[("keep-alive", value)])).map(|kept| kept.as_secs());
        assert_eq!(kept("timeout=5"), Some(4));
        assert_eq!(kept("max=100, timeout=72"), Some(71));
        assert_eq!(kept("timeout=1"), Some(0));
        assert_eq!(kept("timeout=0"), Some(0));
        assert_eq!(kept("timeout=-1"), None);
        assert_eq!(kept("max=100"), None);
        assert_eq!(keep_alive(&map(&[])), None);
    }

    #[test]
    fn only_chunked_can_be_undone() {
        assert!(!is_encoded_otherwise(&map(&[])));
        assert!(!is_encoded_otherwise(&map(&[("transfer-encoding", " Chunked")])));
        assert!(is_encoded_otherwise(&map(&[("transfer-encoding", "gzip, chunked")])));
        assert!(is_encoded_otherwise(&map(&[
            ("transfer-encoding", "gzip"),
            ("transfer-encoding", "chunked")
        ])));
    }
}
