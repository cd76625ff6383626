//! Response headers with which a workspace would speak for all that is at the gateway's
//! origin, and cookies that it may not set.

use std::iter;

use apisix_plugin_runner::{CookieNames, EditedCookies};

use super::head::HeaderField;
use crate::route::own_cookies::is_own_cookie;

/// Headers that hold for the whole origin, and so for all workspaces.
const ORIGIN_HEADERS: [&str; 10] = [
    "alt-svc",
    "clear-site-data",
    "nel",
    "report-to",
    "reporting-endpoints",
    "sec-session-registration",
    "secure-session-registration",
    "service-worker-allowed",
    "set-login",
    "strict-transport-security",
];

/// Whether a response header holds for the whole origin.
pub(crate) fn is_of_origin(field: &HeaderField<'_>) -> bool {
    ORIGIN_HEADERS.iter().any(|name| name.len() == field.name.len() && field.is(name))
}

/// What becomes of a workspace's `Set-Cookie` header.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FilteredCookie {
    Unchanged,
    /// The gateway reads the cookie, or we do.
    Removed,
    /// The value without the attributes that let the cookie reach other hosts.
    Edited(Vec<u8>),
}

/// Filters the value of a `Set-Cookie` header. `removed` are the cookies that only the gateway
/// sets.
pub(crate) fn filter_cookie(value: &[u8], removed: &CookieNames) -> FilteredCookie {
    let mut parts = value.split(|byte| *byte == b';');
    let pair = parts.next().unwrap_or_default();
    // A cookie without a name is sent back as its value, which may look like a name and a value.
    let start = pair.iter().position(|byte| *byte != b'=' && !is_space(*byte)).unwrap_or(pair.len());
    let named = &pair[start..];
    if is_own_cookie(named) || removed.remove_from(iter::once(named)) != EditedCookies::Unchanged {
        return FilteredCookie::Removed;
    }
    if !parts.clone().any(is_domain) {
        return FilteredCookie::Unchanged;
    }
    let mut edited = pair.to_vec();
    for attribute in parts.filter(|attribute| !is_domain(attribute)) {
        edited.push(b';');
        edited.extend_from_slice(attribute);
    }
    FilteredCookie::Edited(edited)
}

fn is_domain(attribute: &[u8]) -> bool {
    let name = attribute.split(|byte| *byte == b'=').next().unwrap_or_default();
    let start = name.iter().position(|byte| !is_space(*byte)).unwrap_or(name.len());
    name[start..].trim_ascii_end().eq_ignore_ascii_case(b"domain")
}

fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == b'\x0b'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(value: &str) -> FilteredCookie {
        filter_cookie(value.as_bytes(), &CookieNames::new(["session", "own"]).unwrap())
    }

    #[test]
    fn a_cookie_of_the_workspace_passes_byte_for_byte() {
        for value in [
            "vscode-tkn=abc; Path=/; HttpOnly",
            "a=b",
            "sessions=1",
            "session_a=1; SameSite=Lax",
            "a=session; x=domain",
            "Session=1",
            "=x",
            "",
            "domain=b; x-domain=c",
        ] {
            assert_eq!(filtered(value), FilteredCookie::Unchanged, "{value}");
        }
    }

    #[test]
    fn a_cookie_that_the_gateway_reads_is_removed() {
        for value in [
            "session=x",
            " session = x; Path=/",
            "session",
            "session2=x",
            "session_2=x; Max-Age=0",
            "own=",
            "=session=x",
            " = session=x",
            "==session=x",
            "\tsession\t=x",
            "__Host-kube-coders-user=x; Secure",
            "__host-KUBE-coders=x",
        ] {
            assert_eq!(filtered(value), FilteredCookie::Removed, "{value}");
        }
    }

    #[test]
    fn a_cookie_stays_at_its_host() {
        for (value, left) in [
            ("a=b; Domain=example.com", "a=b"),
            ("a=b;domain=.example.com; Path=/", "a=b; Path=/"),
            ("a=b; Path=/x; DOMAIN = com ; Secure", "a=b; Path=/x; Secure"),
            ("a=b; Domain", "a=b"),
            ("a=b; Domain=; Domain=example.com", "a=b"),
            ("a=b; \tDomain=example.com", "a=b"),
        ] {
            assert_eq!(filtered(value), FilteredCookie::Edited(left.as_bytes().to_vec()), "{value}");
        }
    }
}
