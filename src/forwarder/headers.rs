//! Which headers pass from one connection to the next: all, byte for byte, but for
//! what belongs to one connection (RFC 9110, section 7.6.1).

use std::io::Write as _;
use std::time::Duration;

use super::framing::Framing;
use super::head::{self, Field, RequestHead, ResponseHead, Version};
use crate::stamp::STAMP_HEADER;
use thiserror::Error;

/// What belongs to a connection whether `Connection` names it or not.
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

/// What a client's `Connection` does not remove, by name …
const KEPT: [&str; 7] = ["host", "cookie", "authorization", "origin", "forwarded", "via", "x-real-ip"];

/// … and by how the name starts.
const KEPT_PREFIXES: [&str; 5] = ["x-forwarded-", "x-auth-", "x-request-", "content-", "sec-"];

/// What no trailer may say: it is decided by the head (RFC 9110, section 6.5.1), or
/// commands the gateway.
const NO_TRAILERS: [&str; 6] = ["content-length", "host", "trailer", "set-cookie", "location", STAMP_HEADER];

/// How nginx is commanded by an upstream, up to serving another of its own
/// locations.
const COMMANDS: &str = "x-accel-";

/// How many names the `Connection` headers of a message may have: each is compared
/// with each of its headers.
const MAX_NAMED: usize = 64;

/// Why nobody looks which headers belong to a connection.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("connection has more than {MAX_NAMED} names")]
pub(super) struct NamedError;

/// What the `Connection` headers of a message name.
pub(super) struct Named<'b>(Vec<&'b [u8]>);

impl<'b> Named<'b> {
    pub(super) fn in_fields(fields: &[Field<'b>]) -> Result<Self, NamedError> {
        let connections = fields.iter().filter(|field| field.name.len() == 10 && field.is("connection"));
        let names =
            connections.flat_map(|field| field.value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii));
        let names: Vec<_> = names.filter(|name| !name.is_empty()).take(MAX_NAMED + 1).collect();
        if names.len() > MAX_NAMED { Err(NamedError) } else { Ok(Self(names)) }
    }

    pub(super) fn has(&self, name: &[u8]) -> bool {
        self.0.iter().any(|named| named.eq_ignore_ascii_case(name))
    }
}

/// The protocols that a request wants to go on with, if it asks for an upgrade.
pub(super) fn wanted_protocols<'b>(head: &RequestHead<'b>, named: &Named<'_>) -> Option<&'b [u8]> {
    // HTTP/1.0 has no upgrades (RFC 9110, section 7.8).
    if head.version == Version::Http10 || !named.has(b"upgrade") {
        return None;
    }
    let mut upgrades = head.fields.iter().filter(|field| field.is("upgrade"));
    let (protocols, more) = (upgrades.next()?.value, upgrades.next());
    let is_one = more.is_none() && !protocols.is_empty();
    (is_one && !carries_requests(protocols)).then_some(protocols)
}

/// Whether one of the protocols carries further requests, each of which has to
/// come by the plugins: HTTP/2 in the clear, or whatever is inside TLS.
fn carries_requests(protocols: &[u8]) -> bool {
    self::protocols(protocols).any(|protocol| {
        let name = protocol.split(|byte| *byte == b'/').next().unwrap_or_default().trim_ascii();
        [&b"h2c"[..], b"h2", b"http", b"tls"].iter().any(|known| name.eq_ignore_ascii_case(known))
    })
}

fn protocols(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// The protocol that a response goes on with, if it is one that was asked for.
pub(super) fn agreed_protocol<'b>(head: &ResponseHead<'b>, wanted: &[u8]) -> Option<&'b [u8]> {
    let mut upgrades = head.fields.iter().filter(|field| field.is("upgrade"));
    let (agreed, more) = (upgrades.next()?.value, upgrades.next());
    let is_wanted = protocols(wanted).any(|protocol| protocol.eq_ignore_ascii_case(agreed));
    (more.is_none() && is_wanted).then_some(agreed)
}

/// Writes a request's head as it goes to a workspace, to this target.
///
/// With WebSockets enabled, the gateway passes the client's own `Connection`
/// on. Whoever sends `Connection: x-forwarded-user` would make us remove what
/// the gateway and the plugins have just set, and a workspace that finds no
/// user may believe that there is none. So a name in `Connection` removes a
/// header only if nobody but the client has a reason to set it.
pub(super) fn write_request(
    head: &RequestHead<'_>,
    target: &[u8],
    named: &Named<'_>,
    framing: Framing,
    protocols: Option<&[u8]>,
    output: &mut Vec<u8>,
) {
    for part in [head.method, b" ", target, b" HTTP/1.1\r\n"] {
        output.extend_from_slice(part);
    }
    for field in &head.fields {
        // A field that comes after the body has gone past every plugin, so none is
        // passed on and none announced.
        let is_ours = is_hop_by_hop(field) || field.is("trailer") || field.is(STAMP_HEADER);
        if !is_ours && (!named.has(field.name) || is_kept(field.name)) {
            write_line(field.line, output);
        }
    }
    if framing == Framing::Chunked {
        write_line(b"Transfer-Encoding: chunked", output);
    }
    write_end(protocols, false, output);
}

/// How a response's head is written.
pub(super) struct ResponseForm<'b> {
    pub(super) version: Version,
    pub(super) is_chunked: bool,
    /// The protocol that it goes on with.
    pub(super) protocol: Option<&'b [u8]>,
    /// Whether nothing comes behind it on its connection.
    pub(super) is_last: bool,
    /// After how long it is worth another try, if the workspace does not say.
    pub(super) retry_after: Option<Duration>,
}

/// Writes a response's head as it goes to the gateway.
pub(super) fn write_response(
    head: &ResponseHead<'_>,
    form: &ResponseForm<'_>,
    output: &mut Vec<u8>,
) -> Result<(), NamedError> {
    let named = Named::in_fields(&head.fields)?;
    let version: &[u8] = match form.version {
        Version::Http10 => b"HTTP/1.0 ",
        Version::Http11 => b"HTTP/1.1 ",
    };
    output.extend_from_slice(version);
    write_line(head.status_and_reason, output);
    for field in &head.fields {
        // The body's length stays with the body, whatever `Connection` says.
        let is_named = named.has(field.name) && !field.is("content-length");
        if !is_hop_by_hop(field) && !starts_with(field.name, COMMANDS) && !is_named {
            write_line(field.line, output);
        }
    }
    if let Some(wait) = form.retry_after
        && !head.fields.iter().any(|field| field.is("retry-after"))
    {
        write_line(format!("Retry-After: {}", wait.as_secs()).as_bytes(), output);
    }
    if form.is_chunked {
        write_line(b"Transfer-Encoding: chunked", output);
    }
    write_end(form.protocol, form.is_last, output);
    Ok(())
}

fn write_end(protocols: Option<&[u8]>, is_last: bool, output: &mut Vec<u8>) {
    if let Some(protocols) = protocols {
        output.extend_from_slice(b"Connection: upgrade\r\nUpgrade: ");
        write_line(protocols, output);
    } else if is_last {
        write_line(b"Connection: close", output);
    }
    output.extend_from_slice(b"\r\n");
}

fn write_line(line: &[u8], output: &mut Vec<u8>) {
    output.extend_from_slice(line);
    output.extend_from_slice(b"\r\n");
}

/// A response of ours.
pub(super) fn write_response_of_ours(
    status: u16,
    reason: &str,
    headers: &[(&str, String)],
    body: &[u8],
    is_last: bool,
) -> Vec<u8> {
    let mut output = Vec::with_capacity(512 + body.len());
    write!(output, "HTTP/1.1 {status} {reason}\r\n").expect("memory takes all");
    for (name, value) in headers {
        write!(output, "{name}: {value}\r\n").expect("memory takes all");
    }
    write!(output, "content-length: {}\r\n", body.len()).expect("memory takes all");
    write_end(None, is_last, &mut output);
    output.extend_from_slice(body);
    output
}

/// The trailers of a response that may pass, each with its end.
pub(super) fn passing_trailers(trailers: &[u8]) -> Vec<u8> {
    let mut passing = Vec::new();
    for line in trailers.split_inclusive(|byte| *byte == b'\n') {
        let field = line.strip_suffix(b"\r\n").and_then(|line| head::field(line).ok());
        let may_pass = |field: &Field<'_>| {
            !is_hop_by_hop(field)
                && !starts_with(field.name, COMMANDS)
                && !NO_TRAILERS.iter().any(|name| field.is(name))
        };
        if field.is_some_and(|field| may_pass(&field)) {
            passing.extend_from_slice(line);
        }
    }
    passing
}

/// Whether the sender of a response takes another request on its connection.
pub(super) fn goes_on(head: &ResponseHead<'_>) -> bool {
    head.version == Version::Http11 && Named::in_fields(&head.fields).is_ok_and(|named| !named.has(b"close"))
}

/// For how long the sender of a response keeps the connection without a
/// request, less a second for the way: `Keep-Alive: timeout=5` is what Node.js
/// says and does. Whoever sends into a connection that is just being closed
/// can't know whether the request has arrived.
pub(super) fn keep_alive(fields: &[Field<'_>]) -> Option<Duration> {
    let value = str::from_utf8(fields.iter().find(|field| field.is("keep-alive"))?.value).ok()?;
    let timeout = value.split(',').find_map(|part| part.trim().strip_prefix("timeout="))?;
    let seconds: u64 = timeout.parse().ok()?;
    Some(Duration::from_secs(seconds.saturating_sub(1)))
}

fn is_kept(name: &[u8]) -> bool {
    KEPT.iter().any(|kept| name.eq_ignore_ascii_case(kept.as_bytes()))
        || KEPT_PREFIXES.iter().any(|prefix| starts_with(name, prefix))
}

fn starts_with(name: &[u8], prefix: &str) -> bool {
    name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
}

fn is_hop_by_hop(field: &Field<'_>) -> bool {
    // Most names are told apart by their length.
    matches!(field.name.len(), 2 | 7 | 10 | 16..=19)
        && HOP_BY_HOP.iter().any(|name| name.len() == field.name.len() && field.is(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header lines of a request with these lines, as they go to a workspace.
    fn passed(lines: &str) -> Vec<String> {
        let text = format!("GET / HTTP/1.1\r\n{lines}\r\n");
        let head = RequestHead::parse(text.as_bytes()).unwrap();
        let named = Named::in_fields(&head.fields).unwrap();
        let protocols = wanted_protocols(&head, &named);
        let mut output = Vec::new();
        write_request(&head, head.target, &named, Framing::None, protocols, &mut output);
        let output = String::from_utf8(output).unwrap();
        let lines = output.strip_prefix("GET / HTTP/1.1\r\n").and_then(|rest| rest.strip_suffix("\r\n\r\n"));
        lines.unwrap_or_default().split("\r\n").map(str::to_owned).collect()
    }

    #[test]
    fn what_belongs_to_a_connection_is_removed() {
        let lines = "Connection: keep-alive, X-Hop\r\nConnection: close ,, http2-settings, no/name\r\n\
                     Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy-Authenticate: Basic\r\n\
                     Proxy-Authorization: Basic eDp5\r\nTE: trailers\r\nTrailer: x-sum\r\nUpgrade: websocket\r\n\
                     X-Hop: 1\r\nx-hop: 2\r\nHTTP2-Settings: AAMAAABk\r\nX-Kube-Coders-Stamp: x\r\nAccept: */*\r\n";
        assert_eq!(passed(lines), ["Accept: */*"]);
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
        assert_eq!(passed(&lines), kept);
    }

    #[test]
    fn an_upgrade_is_asked_for_with_both_headers_and_carries_no_requests() {
        let asks = |lines: &str| {
            let text = format!("GET / HTTP/1.1\r\n{lines}\r\n");
            let head = RequestHead::parse(text.as_bytes()).unwrap();
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
            let head = ResponseHead::parse(text.as_bytes()).unwrap();
            assert_eq!(agreed_protocol(&head, wanted.as_bytes()).is_some(), agrees, "{upgrade:?} {wanted}");
        }
    }

    #[test]
    fn the_sender_says_how_long_a_connection_is_kept() {
        let kept = |line: &str| {
            let text = format!("HTTP/1.1 200 OK\r\n{line}\r\n");
            let head = ResponseHead::parse(text.as_bytes()).unwrap();
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
