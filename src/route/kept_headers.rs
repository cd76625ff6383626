//! Request headers that reach the workspace even if the client names them in `Connection`.
//!
//! The gateway passes the client's own `Connection` on if WebSockets are enabled. A
//! client that sends `Connection: x-forwarded-user` must not be able to remove a header
//! that the gateway or a plugin has just set: a workspace that finds no user may believe
//! that there is none. Headers of this list are kept for every request. Other headers that
//! a plugin sets travel by their names under the stamp.

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
}
