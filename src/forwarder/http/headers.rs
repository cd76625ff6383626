//! Which headers pass from one connection to the next: all of them, byte for byte, except
//! those that belong to one connection (RFC 9110, section 7.6.1).

use std::io::Write as _;
use std::time::Duration;

use apisix_plugin_runner::{CookieNames, EditedCookies};
use kube_coders_identity::parse_digits;
use thiserror::Error;

use super::document_caching::{Caching, caching_of, is_about_caching};
use super::framing::Framing;
use super::head::{self, HeaderField, HttpVersion, RawRequestHead, RawResponseHead};
use super::origin_headers::{FilteredCookie, filter_cookie, is_of_origin};
use crate::route::own_cookies::is_own_cookie;

/// Headers that belong to one connection even if `Connection` does not name them.
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// Fields that are not passed on as trailers, because they belong in the head (RFC 9110,
/// section 6.5.1) or instruct the gateway.
const NO_TRAILERS: [&str; 5] = ["content-length", "host", "trailer", "set-cookie", "location"];

/// The headers by which an upstream instructs nginx, for example to serve another of its
/// own locations.
const COMMANDS: &str = "x-accel-";

/// The one of them that only concerns its own response: whether nginx sends it on as it comes.
const BUFFERING: &str = "x-accel-buffering";

/// How many names the `Connection` headers of a message may have. Each name is compared
/// with each header.
const MAX_NAMED: usize = 64;

/// `Connection` has too many names.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the connection header has more than {MAX_NAMED} names")]
pub(crate) struct NamedError;

/// The names in the `Connection` headers of a message.
pub(crate) struct Named<'b>(Vec<&'b [u8]>);

impl<'b> Named<'b> {
    pub(crate) fn in_fields(fields: &[HeaderField<'b>]) -> Result<Self, NamedError> {
        let connections = fields.iter().filter(|field| field.name.len() == 10 && field.is("connection"));
        let names =
            connections.flat_map(|field| field.value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii));
        let names: Vec<_> = names.filter(|name| !name.is_empty()).take(MAX_NAMED + 1).collect();
        if names.len() > MAX_NAMED { Err(NamedError) } else { Ok(Self(names)) }
    }

    pub(crate) fn has(&self, name: &[u8]) -> bool {
        self.0.iter().any(|named| named.eq_ignore_ascii_case(name))
    }
}

/// The protocols that a request offers, if it asks for an upgrade.
pub(crate) fn wanted_protocols<'b>(head: &RawRequestHead<'b>, named: &Named<'_>) -> Option<&'b [u8]> {
    // HTTP/1.0 has no upgrades (RFC 9110, section 7.8).
    if head.version == HttpVersion::Http10 || !named.has(b"upgrade") {
        return None;
    }
    let mut upgrades = head.fields.iter().filter(|field| field.is("upgrade"));
    let (protocols, more) = (upgrades.next()?.value, upgrades.next());
    let is_one = more.is_none() && !protocols.is_empty();
    (is_one && !carries_requests(protocols)).then_some(protocols)
}

/// Whether one of the protocols carries further requests, which would bypass the plugins:
/// HTTP/2 without TLS, or anything inside TLS.
fn carries_requests(protocols: &[u8]) -> bool {
    self::protocols(protocols).any(|protocol| {
        let name = protocol.split(|byte| *byte == b'/').next().unwrap_or_default().trim_ascii();
        [&b"h2c"[..], b"h2", b"http", b"tls"].iter().any(|known| name.eq_ignore_ascii_case(known))
    })
}

fn protocols(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// The protocol that a response agrees to, if the request offered it.
pub(crate) fn agreed_protocol<'b>(head: &RawResponseHead<'b>, wanted: &[u8]) -> Option<&'b [u8]> {
    let mut upgrades = head.fields.iter().filter(|field| field.is("upgrade"));
    let (agreed, more) = (upgrades.next()?.value, upgrades.next());
    let is_wanted = protocols(wanted).any(|protocol| protocol.eq_ignore_ascii_case(agreed));
    (more.is_none() && is_wanted).then_some(agreed)
}

/// Whether another message follows on the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Persistence {
    KeepAlive,
    Close,
}

/// How a request's head is written.
pub(crate) struct RequestForm<'b> {
    pub(crate) target: &'b [u8],
    pub(crate) framing: Framing,
    /// The protocols that it offers for an upgrade.
    pub(crate) protocols: Option<&'b [u8]>,
    /// The header, in lower case, that is meant for the forwarder and not passed on.
    pub(crate) own_header: &'b str,
    /// Whether a header of this name is passed on even if the client names it in
    /// `Connection`.
    pub(crate) is_kept: &'b dyn Fn(&[u8]) -> bool,
    /// Whether a header of this name, which has a `_`, could be taken for another one that the
    /// workspace believes. It is not passed on.
    pub(crate) is_disguised: &'b dyn Fn(&[u8]) -> bool,
    /// The cookies that are not passed on.
    pub(crate) removed_cookies: &'b CookieNames,
}

/// Writes a request's head as it goes to a workspace.
///
/// A name in the client's `Connection` removes a header only if neither the gateway nor a
/// plugin has a reason to set it.
pub(crate) fn write_request(
    head: &RawRequestHead<'_>,
    named: &Named<'_>,
    form: &RequestForm<'_>,
    output: &mut Vec<u8>,
) {
    for part in [head.method, b" ", form.target, b" HTTP/1.1\r\n"] {
        output.extend_from_slice(part);
    }
    for field in &head.fields {
        // Trailers reach no plugin, so none is passed on and none announced.
        let is_ours = is_hop_by_hop(field) || field.is("trailer") || field.is(form.own_header);
        let is_removed = named.has(field.name) && !(form.is_kept)(field.name);
        if is_ours || is_removed || field.name.contains(&b'_') && (form.is_disguised)(field.name) {
            continue;
        }
        match field.name.len() {
            6 if field.is("cookie") => write_cookies(field, form.removed_cookies, output),
            16 if field.is("x-forwarded-port") => match client_port(head) {
                Some(port) => write_field(field.name, port, output),
                None => write_line(field.line, output),
            },
            _ => write_line(field.line, output),
        }
    }
    if form.framing == Framing::Chunked {
        write_line(b"Transfer-Encoding: chunked", output);
    }
    write_end(form.protocols, Persistence::KeepAlive, output);
}

/// The port that the client used, by `Host` and the scheme. The gateway writes the port on
/// which it listens, which a container or a load balancer maps to another.
fn client_port<'b>(head: &RawRequestHead<'b>) -> Option<&'b [u8]> {
    let only = |name: &str| {
        let mut values = head.fields.iter().filter(|field| field.is(name)).map(|field| field.value);
        values.next().filter(|_| values.next().is_none())
    };
    let host = only("host")?;
    // A `:` within brackets belongs to an IPv6 address.
    let behind_address = host.rsplit(|byte| *byte == b']').next().unwrap_or(host);
    match behind_address.iter().rposition(|byte| *byte == b':') {
        Some(colon) => {
            let port = &behind_address[colon + 1..];
            parse_digits::<u16>(port).filter(|port| *port != 0).map(|_| port)
        }
        None if only("x-forwarded-proto")?.eq_ignore_ascii_case(b"https") => Some(b"443"),
        None if only("x-forwarded-proto")?.eq_ignore_ascii_case(b"http") => Some(b"80"),
        None => None,
    }
}

/// Writes a `Cookie` header without the cookies that only the gateway reads, and without ours.
fn write_cookies(field: &HeaderField<'_>, removed: &CookieNames, output: &mut Vec<u8>) {
    let without_ours = own_cookies_removed(field.value);
    let value = without_ours.as_deref().unwrap_or(field.value);
    match removed.remove_from(std::iter::once(value)) {
        EditedCookies::Unchanged if without_ours.is_some() && value.trim_ascii().is_empty() => {}
        EditedCookies::Unchanged if without_ours.is_some() => write_field(field.name, value, output),
        EditedCookies::Unchanged => write_line(field.line, output),
        EditedCookies::Removed => {}
        EditedCookies::Left(cookies) => write_field(field.name, &cookies, output),
    }
}

/// A `Cookie` header's value without our cookies, if it has some.
fn own_cookies_removed(value: &[u8]) -> Option<Vec<u8>> {
    let pairs = || value.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    if !pairs().any(is_own_cookie) {
        return None;
    }
    let kept: Vec<&[u8]> = pairs().filter(|pair| !is_own_cookie(pair) && !pair.is_empty()).collect();
    Some(kept.join(&b"; "[..]))
}

/// How a response's head is written.
pub(crate) struct ResponseForm<'b> {
    pub(crate) version: HttpVersion,
    pub(crate) is_chunked: bool,
    /// The protocol that it agrees to.
    pub(crate) protocol: Option<&'b [u8]>,
    pub(crate) persistence: Persistence,
    /// When to try again, if the workspace does not say.
    pub(crate) retry_after: Option<Duration>,
    /// The cookies that only the gateway sets.
    pub(crate) removed_cookies: &'b CookieNames,
}

/// Writes a response's head as it goes to the gateway.
pub(crate) fn write_response(
    head: &RawResponseHead<'_>,
    form: &ResponseForm<'_>,
    output: &mut Vec<u8>,
) -> Result<(), NamedError> {
    let named = Named::in_fields(&head.fields)?;
    let caching = caching_of(head);
    let version: &[u8] = match form.version {
        HttpVersion::Http10 => b"HTTP/1.0 ",
        HttpVersion::Http11 => b"HTTP/1.1 ",
    };
    output.extend_from_slice(version);
    write_line(head.status_and_reason, output);
    for field in &head.fields {
        // The body keeps its length even if `Connection` names it.
        let is_named = named.has(field.name) && !field.is("content-length");
        let is_command = starts_with(field.name, COMMANDS) && !field.is(BUFFERING);
        let is_replaced = caching != Caching::AsSaid && is_about_caching(field);
        if is_hop_by_hop(field) || is_command || is_named || is_of_origin(field) || is_replaced {
            continue;
        }
        match field.name.len() == 10 && field.is("set-cookie") {
            true => write_set_cookie(field, form.removed_cookies, output),
            false => write_line(field.line, output),
        }
    }
    if caching == Caching::Asked {
        write_line(b"Cache-Control: no-cache", output);
    }
    if let Some(wait) = form.retry_after
        && !head.fields.iter().any(|field| field.is("retry-after"))
    {
        write_line(format!("Retry-After: {}", wait.as_secs()).as_bytes(), output);
    }
    if form.is_chunked {
        write_line(b"Transfer-Encoding: chunked", output);
    }
    write_end(form.protocol, form.persistence, output);
    Ok(())
}

fn write_set_cookie(field: &HeaderField<'_>, removed: &CookieNames, output: &mut Vec<u8>) {
    match filter_cookie(field.value, removed) {
        FilteredCookie::Unchanged => write_line(field.line, output),
        FilteredCookie::Removed => {}
        FilteredCookie::Edited(value) => write_field(field.name, &value, output),
    }
}

fn write_field(name: &[u8], value: &[u8], output: &mut Vec<u8>) {
    output.extend_from_slice(name);
    output.extend_from_slice(b": ");
    write_line(value, output);
}

fn write_end(protocols: Option<&[u8]>, persistence: Persistence, output: &mut Vec<u8>) {
    if let Some(protocols) = protocols {
        output.extend_from_slice(b"Connection: upgrade\r\nUpgrade: ");
        write_line(protocols, output);
    } else if persistence == Persistence::Close {
        write_line(b"Connection: close", output);
    }
    output.extend_from_slice(b"\r\n");
}

fn write_line(line: &[u8], output: &mut Vec<u8>) {
    output.extend_from_slice(line);
    output.extend_from_slice(b"\r\n");
}

/// Writes a response of the forwarder's own.
pub(crate) fn write_response_of_ours(
    status: u16,
    reason: &str,
    headers: &[(&str, String)],
    body: &[u8],
    persistence: Persistence,
) -> Vec<u8> {
    let mut output = Vec::with_capacity(512 + body.len());
    write!(output, "HTTP/1.1 {status} {reason}\r\n").expect("memory takes all");
    for (name, value) in headers {
        write!(output, "{name}: {value}\r\n").expect("memory takes all");
    }
    write!(output, "content-length: {}\r\n", body.len()).expect("memory takes all");
    write_end(None, persistence, &mut output);
    output.extend_from_slice(body);
    output
}

/// The trailers of a response that may pass, each with its end. The forwarder's own header
/// may not.
pub(crate) fn passing_trailers(trailers: &[u8], own_header: &str) -> Vec<u8> {
    let mut passing = Vec::new();
    for line in trailers.split_inclusive(|byte| *byte == b'\n') {
        let field = line.strip_suffix(b"\r\n").and_then(|line| head::field(line).ok());
        let may_pass = |field: &HeaderField<'_>| {
            !is_hop_by_hop(field)
                && !starts_with(field.name, COMMANDS)
                && !field.is(own_header)
                && !is_of_origin(field)
                && !NO_TRAILERS.iter().any(|name| field.is(name))
        };
        if field.is_some_and(|field| may_pass(&field)) {
            passing.extend_from_slice(line);
        }
    }
    passing
}

/// Whether the sender of a response accepts another request on its connection.
pub(crate) fn goes_on(head: &RawResponseHead<'_>) -> bool {
    head.version == HttpVersion::Http11
        && Named::in_fields(&head.fields).is_ok_and(|named| !named.has(b"close"))
}

/// For how long the sender of a response keeps an idle connection, less a second for the
/// way. Node.js sends `Keep-Alive: timeout=5` and closes after 5 s. If a request is sent
/// while the other side closes, the sender can't know whether it arrived.
pub(crate) fn keep_alive(fields: &[HeaderField<'_>]) -> Option<Duration> {
    let value = str::from_utf8(fields.iter().find(|field| field.is("keep-alive"))?.value).ok()?;
    let timeout = value.split(',').find_map(|part| part.trim().strip_prefix("timeout="))?;
    let seconds: u64 = parse_digits(timeout.as_bytes())?;
    Some(Duration::from_secs(seconds.saturating_sub(1)))
}

fn starts_with(name: &[u8], prefix: &str) -> bool {
    name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
}

fn is_hop_by_hop(field: &HeaderField<'_>) -> bool {
    // The length excludes most names.
    matches!(field.name.len(), 2 | 7 | 10 | 16..=19)
        && HOP_BY_HOP.iter().any(|name| name.len() == field.name.len() && field.is(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header lines of a request with these lines, as they go to a workspace.
    fn passed(lines: &str) -> Vec<String> {
        let text = format!("GET / HTTP/1.1\r\n{lines}\r\n");
        let head = RawRequestHead::parse(text.as_bytes()).unwrap();
        let named = Named::in_fields(&head.fields).unwrap();
        let protocols = wanted_protocols(&head, &named);
        let mut output = Vec::new();
        let form = RequestForm {
            target: head.target,
            framing: Framing::None,
            protocols,
            own_header: "x-own",
            is_kept: &|name| name == b"X-Kept",
            is_disguised: &|_| false,
            removed_cookies: &CookieNames::default(),
        };
        write_request(&head, &named, &form, &mut output);
        let output = String::from_utf8(output).unwrap();
        let lines = output.strip_prefix("GET / HTTP/1.1\r\n").and_then(|rest| rest.strip_suffix("\r\n\r\n"));
        lines.unwrap_or_default().split("\r\n").map(str::to_owned).collect()
    }

    #[test]
    fn hop_by_hop_headers_are_removed() {
        let lines = "Connection: keep-alive, X-Hop\r\nConnection: close ,, http2-settings, no/name\r\n\
                     Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy-Authenticate: Basic\r\n\
                     Proxy-Authorization: Basic eDp5\r\nTE: trailers\r\nTrailer: x-sum\r\nUpgrade: websocket\r\n\
                     X-Hop: 1\r\nx-hop: 2\r\nHTTP2-Settings: AAMAAABk\r\nX-Own: x\r\nAccept: */*\r\n";
        assert_eq!(passed(lines), ["Accept: */*"]);
        assert_eq!(passed("Connection: x-kept, x-hop\r\nX-Kept: 1\r\nX-Hop: 2\r\n"), ["X-Kept: 1"]);
    }

    #[test]
    fn the_forwarded_port_is_the_one_that_the_client_used() {
        for (host, proto, expected) in [
            ("coders.example.com", "https", "443"),
            ("coders.example.com", "http", "80"),
            ("coders.example.com:8443", "https", "8443"),
            ("[2001:db8::1]", "https", "443"),
            ("[2001:db8::1]:8080", "http", "8080"),
            ("coders.example.com:", "https", "9443"),
            ("coders.example.com:0", "https", "9443"),
            ("coders.example.com:99999", "https", "9443"),
            ("coders.example.com", "ws", "9443"),
        ] {
            let lines = format!("Host: {host}\r\nX-Forwarded-Proto: {proto}\r\nX-Forwarded-Port: 9443\r\n");
            let port = format!("X-Forwarded-Port: {expected}");
            assert_eq!(passed(&lines).last(), Some(&port), "{host} {proto}");
        }
        // What the gateway does not send is not added.
        assert_eq!(passed("Host: a\r\nX-Forwarded-Proto: https\r\n").len(), 2);
    }

    #[test]
    fn an_upgrade_is_asked_for_with_both_headers_and_carries_no_requests() {
        let asks = |lines: &str| {
            let text = format!("GET / HTTP/1.1\r\n{lines}\r\n");
            let head = RawRequestHead::parse(text.as_bytes()).unwrap();
            wanted_protocols(&head, &Named::in_fields(&head.fields).unwrap()).map(<[u8]>::to_vec)
        };
        for (protocols, passes) in [
            ("websocket", true),
            ("echo/1", true),
            ("h2c", false),
            ("H2C", false),
            ("websocket, h2c", false),
            ("HTTP/2.0", false),
            ("TLS/1.2, HTTP/1.1", false),
            ("", false),
        ] {
            let asked = asks(&format!("Connection: keep-alive, upgrade\r\nUpgrade: {protocols}\r\n"));
            assert_eq!(asked, passes.then(|| protocols.as_bytes().to_vec()), "{protocols}");
        }
        assert_eq!(asks("Connection: upgrade\r\n"), None);
        assert_eq!(asks("Upgrade: websocket\r\n"), None);
    }

    #[test]
    fn a_response_agrees_to_a_protocol_that_was_asked_for() {
        for (upgrade, wanted, agrees) in [
            ("Upgrade: WebSocket\r\n", "websocket", true),
            ("Upgrade: b\r\n", "a, b", true),
            ("Upgrade: c\r\n", "a, b", false),
            ("Upgrade: a\r\nUpgrade: b\r\n", "a, b", false),
            ("", "a", false),
        ] {
            let text = format!("HTTP/1.1 101 Switching Protocols\r\n{upgrade}\r\n");
            let head = RawResponseHead::parse(text.as_bytes()).unwrap();
            assert_eq!(agreed_protocol(&head, wanted.as_bytes()).is_some(), agrees, "{upgrade:?} {wanted}");
        }
    }

    #[test]
    fn the_sender_says_how_long_a_connection_is_kept() {
        let kept = |line: &str| {
            let text = format!("HTTP/1.1 200 OK\r\n{line}\r\n");
            let head = RawResponseHead::parse(text.as_bytes()).unwrap();
            (goes_on(&head), keep_alive(&head.fields).map(|kept| kept.as_secs()))
        };
        assert_eq!(kept("Keep-Alive: timeout=5\r\n"), (true, Some(4)));
        assert_eq!(kept("Keep-Alive: max=100, timeout=72\r\n"), (true, Some(71)));
        assert_eq!(kept("Keep-Alive: timeout=1\r\n"), (true, Some(0)));
        assert_eq!(kept("Keep-Alive: timeout=0\r\n"), (true, Some(0)));
        assert_eq!(kept("Keep-Alive: timeout=-1\r\n"), (true, None));
        assert_eq!(kept("Keep-Alive: max=100\r\n"), (true, None));
        assert_eq!(kept("Connection: keep-alive, Close\r\n"), (false, None));
        assert_eq!(kept(""), (true, None));
    }
}
