//! Whether a page of another host opens the connection.
//!
//! Browsers let any page open a WebSocket to any host, with that host's cookies,
//! and only say in `Origin` whose page it is (RFC 6455, section 10.2).

use kube_coders_identity::parse_digits;

/// Whether a request's `Origin` is another host than the request's own, by all values of
/// `Origin` and of `Host`.
///
/// A request without `Origin` comes from no browser and is not foreign. An `Origin` that
/// is `null`, unreadable or repeated is foreign, and so is any `Origin` of a request whose
/// `Host` is missing, unreadable or repeated.
pub(super) fn is_foreign<'a>(
    mut origins: impl Iterator<Item = &'a [u8]>,
    mut hosts: impl Iterator<Item = &'a [u8]>,
) -> bool {
    let Some(origin) = origins.next() else { return false };
    match (origins.next(), hosts.next(), hosts.next()) {
        (None, Some(host), None) => !is_same(origin, host),
        _ => true,
    }
}

/// Whether an `Origin` is one without TLS.
pub(super) fn is_plain(origin: &[u8]) -> bool {
    strip_prefix(origin, b"http://").is_some()
}

fn is_same(origin: &[u8], host: &[u8]) -> bool {
    let (default_port, authority) =
        match (strip_prefix(origin, b"https://"), strip_prefix(origin, b"http://")) {
            (Some(authority), _) => (443, authority),
            (_, Some(authority)) => (80, authority),
            _ => return false,
        };
    match (Authority::parse(authority), Authority::parse(host)) {
        (Some(origin), Some(host)) => {
            origin.host.eq_ignore_ascii_case(host.host)
                && origin.port.unwrap_or(default_port) == host.port.unwrap_or(default_port)
        }
        _ => false,
    }
}

fn strip_prefix<'a>(text: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// `host[:port]`, and nothing else.
struct Authority<'a> {
    host: &'a [u8],
    port: Option<u16>,
}

impl<'a> Authority<'a> {
    fn parse(text: &'a [u8]) -> Option<Self> {
        let end = match text {
            [b'[', ..] => text.iter().position(|byte| *byte == b']')? + 1,
            _ => text.iter().position(|byte| *byte == b':').unwrap_or(text.len()),
        };
        let (host, port) = text.split_at(end);
        // Characters that end or restart a host in a URL must not hide in it.
        let is_allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~[]:%".contains(byte);
        if host.is_empty() || !host.iter().all(is_allowed) {
            return None;
        }
        let port = match port {
            [] => None,
            [b':', digits @ ..] => Some(parse_digits(digits)?),
            _ => return None,
        };
        Some(Self { host, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(origin: &str, host: &str, expected: bool) {
        check_all(&[origin], &[host], expected);
    }

    #[track_caller]
    fn check_all(origins: &[&str], hosts: &[&str], expected: bool) {
        let is_foreign = is_foreign(
            origins.iter().map(|value| value.as_bytes()),
            hosts.iter().map(|value| value.as_bytes()),
        );
        assert_eq!(is_foreign, expected, "{origins:?} for {hosts:?}");
    }

    #[test]
    fn the_same_host_is_not_foreign() {
        check("https://code.example.com", "code.example.com", false);
        check("https://Code.Example.com", "code.EXAMPLE.com", false);
        check("HTTPS://code.example.com", "code.example.com", false);
        check("http://127.0.0.1:9080", "127.0.0.1:9080", false);
        check("http://[::1]:9080", "[::1]:9080", false);
        check("http://[::A]", "[::a]", false);
    }

    #[test]
    fn default_ports_are_the_same_as_none() {
        check("https://a:443", "a", false);
        check("https://a", "a:443", false);
        check("http://a:80", "a", false);
        check("http://a", "a:80", false);
        check("http://[::1]", "[::1]:80", false);
        check("https://a", "a:80", true);
        check("http://a", "a:443", true);
        check("https://a:80", "a", true);
    }

    #[test]
    fn another_host_or_port_is_foreign() {
        check("https://b", "a", true);
        check("https://a.b", "a", true);
        check("https://a", "a.b", true);
        check("https://ab", "a", true);
        check("https://a:8443", "a", true);
        check("https://a:8443", "a:8444", true);
        check("http://[::1]", "[::2]", true);
    }

    #[test]
    fn an_invalid_origin_is_foreign() {
        for origin in [
            "null",
            "",
            "a",
            "//a",
            "https:a",
            "https://",
            "https://:443",
            "https://a/",
            "https://a/b",
            "https://a?",
            "https://a#",
            "https://b@a",
            "https://a,https://a",
            "https://a https://a",
            "https://a ",
            " https://a",
            "https://a:",
            "https://a:x",
            "https://a:+443",
            "https://a:65979",
            "https://a:443:443",
            "https://[a",
            "ftp://a",
            "chrome-extension://a",
            "https://a\0",
            "https://ä",
        ] {
            check(origin, "a", true);
        }
        check("https://b@a", "b@a", true);
        check("https://a/", "a/", true);
        check("https://", "", true);
    }

    #[test]
    fn a_request_without_origin_is_not_foreign() {
        check_all(&[], &["a"], false);
        check_all(&[], &[], false);
        check_all(&[], &["a", "b"], false);
    }

    #[test]
    fn a_repeated_or_missing_header_is_foreign() {
        check_all(&["https://a", "https://a"], &["a"], true);
        check_all(&["https://a", "https://a", "x"], &["a"], true);
        check_all(&["https://a"], &["a", "a"], true);
        check_all(&["https://a"], &[], true);
    }
}
