//! Request headers that reach the workspace even if the client names them in `Connection`.
//!
//! The gateway passes the client's own `Connection` on if WebSockets are enabled. A
//! client that sends `Connection: x-forwarded-user` must not be able to remove a header
//! that the gateway or a plugin has just set: a workspace that finds no user may believe
//! that there is none. Headers of this list are kept for every request. Other headers that
//! a plugin sets travel by their names under the stamp.

use super::stamp::STAMP_HEADER;
use kube_coders_identity::identity_headers::IDENTITY_HEADERS;

/// Whether a header of this name is kept for every request: the gateway, its plugins or
/// ours set it.
pub(crate) fn is_always_kept(name: &[u8]) -> bool {
    let is = |kept: &str| name.eq_ignore_ascii_case(kept.as_bytes());
    // Each call asks this about each header that it sets: the first letter tells most apart.
    match name.first().map(u8::to_ascii_lowercase) {
        Some(b'x') => {
            let prefixes = ["x-forwarded-", "x-auth-", "x-request-"];
            prefixes.iter().any(|prefix| starts_with(name, prefix)) || is("x-real-ip")
        }
        Some(b'c') => is("cookie") || starts_with(name, "content-"),
        Some(b's') => starts_with(name, "sec-"),
        Some(b'h') => is("host"),
        Some(b'a') => is("authorization"),
        Some(b'o') => is("origin"),
        Some(b'f') => is("forwarded"),
        Some(b'v') => is("via"),
        _ => false,
    }
}

/// Whether a header of this name, which has a `_`, would tell software that reads `_` as `-`
/// who a user is, or what the gateway or a plugin says. `is_set` says whether plugins set a
/// header of a name.
///
/// The runner refuses such a request, but the gateway does not show it all headers of a request
/// that has many.
pub(crate) fn is_disguised(name: &[u8], is_set: impl Fn(&[u8]) -> bool) -> bool {
    let meant: Vec<u8> = name.iter().map(|byte| if *byte == b'_' { b'-' } else { *byte }).collect();
    let is = |other: &str| meant.eq_ignore_ascii_case(other.as_bytes());
    ["x-forwarded-", "x-auth-"].iter().any(|prefix| starts_with(&meant, prefix))
        || is("x-real-ip")
        || is(STAMP_HEADER)
        || IDENTITY_HEADERS.iter().any(|header| is(header.as_str()))
        || is_set(&meant)
}

fn starts_with(name: &[u8], prefix: &str) -> bool {
    name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_is_kept_and_a_clients_own_header_is_not() {
        for name in [
            "X-Forwarded-User",
            "x-auth-request-email",
            "HOST",
            "cookie",
            "Content-Type",
            "X-Real-IP",
            "sec-fetch-mode",
            "Authorization",
            "Origin",
            "forwarded",
            "VIA",
            "x-request-id",
        ] {
            assert!(is_always_kept(name.as_bytes()), "{name}");
        }
        for name in ["x-forwarded", "te", "x-greeting", ""] {
            assert!(!is_always_kept(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn a_name_with_underscores_is_read_with_hyphens() {
        let is_set = |name: &[u8]| name.eq_ignore_ascii_case(b"x-team");
        for name in [
            "X_Forwarded_User",
            "x-forwarded_user",
            "X_AUTH_user",
            "x_real-ip",
            "X_Userinfo",
            "X_Access_Token",
            "x_kube_coders_stamp",
            "X_Team",
        ] {
            assert!(is_disguised(name.as_bytes(), is_set), "{name}");
        }
        for name in ["x_own", "_", "content_type", "x_teams", "x_forwarded"] {
            assert!(!is_disguised(name.as_bytes(), is_set), "{name}");
        }
    }
}
