//! The answers that say no: a status, a stable code, and a page or a problem.
//!
//! Shared by the plugin `user-upstream` and by the forwarder, so that a client
//! can't tell, and need not care, which of the two refused it. Nothing in an
//! answer comes from the request except the request id: no name, token, claim
//! or address.

mod login;
mod page;
mod reader;

use std::time::Duration;

use serde::Serialize;

pub(crate) use login::LoginLink;
pub(crate) use reader::{Language, Reader};

/// After how long a client may usefully come again: about as long as a name
/// server or a workspace needs to come up, and short enough for somebody who
/// watches the page.
const COME_AGAIN: Duration = Duration::from_secs(5);

/// Why a request does not reach a workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// So many headers that the gateway hides some.
    TooManyHeaders,
    /// A request that two readers could read in two ways, or nobody at all.
    RequestMalformed,
    /// The request's head did not come in time.
    RequestLate,
    /// The forwarder has all the connections that it takes.
    RunnerBusy,
    /// The subject has all the connections that one may have.
    TooManyConnections,
    /// No header says who is asking.
    IdentityMissing,
    /// A header says who is asking, but not in a form that can be trusted.
    IdentityMalformed,
    /// The token is not the issuer's, not for us, or not for now.
    TokenInvalid,
    /// The token and the userinfo are of two people.
    IdentityMismatch,
    /// Nobody can say whether the token is the issuer's.
    KeysUnavailable,
    /// A rule says that they may not come in.
    NotAllowed,
    /// The claim that the template needs is missing or gives no DNS label.
    NoWorkspaceName,
    /// A page of another origin tried to open a WebSocket.
    ForeignOrigin,
    /// The workspace's name does not exist.
    WorkspaceNotFound,
    /// No name server could say where the workspace is.
    ResolverUnavailable,
    /// The workspace accepts no connection, or is silent for too long.
    WorkspaceStarting,
    /// The stamp is missing, repeated, forged or expired.
    StampRefused,
    /// The workspace broke off before it had answered.
    WorkspaceFailed,
    /// A bug in a plugin.
    RunnerFailed,
}

/// What a page may say beside its own words.
#[derive(Clone, Copy, Debug)]
pub(crate) enum More<'m> {
    Nothing,
    /// Where to sign in again.
    Login(&'m LoginLink),
    /// How long the workspace has been starting.
    Waited(Duration),
}

/// A refusal as an HTTP response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rendered {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
}

impl Refusal {
    /// The HTTP status.
    pub(crate) fn status(self) -> u16 {
        match self {
            Self::IdentityMalformed | Self::RequestMalformed => 400,
            Self::IdentityMissing | Self::TokenInvalid => 401,
            Self::IdentityMismatch
            | Self::NotAllowed
            | Self::NoWorkspaceName
            | Self::ForeignOrigin
            | Self::StampRefused => 403,
            Self::WorkspaceNotFound => 404,
            Self::RequestLate => 408,
            Self::TooManyConnections => 429,
            Self::TooManyHeaders => 431,
            Self::WorkspaceFailed => 502,
            Self::KeysUnavailable
            | Self::ResolverUnavailable
            | Self::WorkspaceStarting
            | Self::RunnerBusy
            | Self::RunnerFailed => 503,
        }
    }

    /// The name that scripts, dashboards and logs may rely on.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::TooManyHeaders => "too-many-headers",
            Self::RequestMalformed => "request-malformed",
            Self::RequestLate => "request-late",
            Self::RunnerBusy => "runner-busy",
            Self::TooManyConnections => "too-many-connections",
            Self::IdentityMissing => "identity-missing",
            Self::IdentityMalformed => "identity-malformed",
            Self::TokenInvalid => "token-invalid",
            Self::IdentityMismatch => "identity-mismatch",
            Self::KeysUnavailable => "keys-unavailable",
            Self::NotAllowed => "not-allowed",
            Self::NoWorkspaceName => "no-workspace-name",
            Self::ForeignOrigin => "foreign-origin",
            Self::WorkspaceNotFound => "workspace-not-found",
            Self::ResolverUnavailable => "resolver-unavailable",
            Self::WorkspaceStarting => "workspace-starting",
            Self::StampRefused => "stamp-refused",
            Self::WorkspaceFailed => "workspace-failed",
            Self::RunnerFailed => "runner-failed",
        }
    }

    /// When to come again, for what is likely to pass by itself.
    pub(crate) fn retry_after(self) -> Option<Duration> {
        match self {
            Self::KeysUnavailable
            | Self::ResolverUnavailable
            | Self::WorkspaceStarting
            | Self::RunnerBusy
            | Self::TooManyConnections => Some(COME_AGAIN),
            _ => None,
        }
    }

    /// What a 401 asks for (RFC 9110, section 15.5.2; RFC 6750, section 3).
    fn challenge(self) -> Option<&'static str> {
        match self {
            Self::IdentityMissing => Some("Bearer"),
            Self::TokenInvalid => Some("Bearer error=\"invalid_token\""),
            _ => None,
        }
    }

    /// Whether it may help to sign in again, perhaps as somebody else.
    fn is_about_the_login(self) -> bool {
        match self {
            Self::IdentityMissing
            | Self::IdentityMalformed
            | Self::TokenInvalid
            | Self::IdentityMismatch
            | Self::NotAllowed
            | Self::NoWorkspaceName
            | Self::WorkspaceNotFound => true,
            Self::TooManyHeaders
            | Self::RequestMalformed
            | Self::RequestLate
            | Self::RunnerBusy
            | Self::TooManyConnections
            | Self::KeysUnavailable
            | Self::ForeignOrigin
            | Self::ResolverUnavailable
            | Self::WorkspaceStarting
            | Self::StampRefused
            | Self::WorkspaceFailed
            | Self::RunnerFailed => false,
        }
    }

    /// The response for this reader: a page for a navigation, else a problem
    /// (RFC 9457). A page has the link only where signing in again may help.
    pub(crate) fn render(self, reader: &Reader, request_id: &str, more: More<'_>) -> Rendered {
        let mut headers =
            vec![("cache-control", "no-store".to_owned()), ("x-content-type-options", "nosniff".to_owned())];
        if let Some(wait) = self.retry_after() {
            headers.push(("retry-after", wait.as_secs().to_string()));
        }
        if let Some(challenge) = self.challenge() {
            headers.push(("www-authenticate", challenge.to_owned()));
        }
        let body = if reader.is_navigation() {
            headers.push(("content-type", "text/html; charset=utf-8".to_owned()));
            headers.push(("content-security-policy", page::content_security_policy(self)));
            headers.push(("referrer-policy", "no-referrer".to_owned()));
            let more = match more {
                More::Login(_) if !self.is_about_the_login() => More::Nothing,
                more => more,
            };
            page::render(self, reader.language(), request_id, more).into_bytes()
        } else {
            headers.push(("content-type", "application/problem+json".to_owned()));
            self.problem(request_id)
        };
        Rendered { status: self.status(), headers, body }
    }

    fn problem(self, request_id: &str) -> Vec<u8> {
        let problem = Problem {
            kind: "about:blank",
            title: self.reason_phrase(),
            status: self.status(),
            detail: page::detail(self),
            code: self.code(),
            request_id,
        };
        serde_json::to_vec(&problem).expect("numbers and text can always be written as JSON")
    }

    /// The status in words: the title that RFC 9457, section 4.2.1, asks for
    /// where the type is `about:blank`.
    pub(crate) fn reason_phrase(self) -> &'static str {
        http::StatusCode::from_u16(self.status())
            .ok()
            .and_then(|status| status.canonical_reason())
            .expect("every refusal has a registered status")
    }
}

/// Problem details (RFC 9457), with our members `code` and `request_id`.
#[derive(Serialize)]
struct Problem<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: &'static str,
    code: &'static str,
    request_id: &'a str,
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use sha2::{Digest as _, Sha256};

    use super::*;

    /// The product's answer table.
    const TABLE: [(Refusal, u16, &str, Option<u64>); 19] = [
        (Refusal::TooManyHeaders, 431, "too-many-headers", None),
        (Refusal::RequestMalformed, 400, "request-malformed", None),
        (Refusal::RequestLate, 408, "request-late", None),
        (Refusal::RunnerBusy, 503, "runner-busy", Some(5)),
        (Refusal::TooManyConnections, 429, "too-many-connections", Some(5)),
        (Refusal::IdentityMissing, 401, "identity-missing", None),
        (Refusal::IdentityMalformed, 400, "identity-malformed", None),
        (Refusal::TokenInvalid, 401, "token-invalid", None),
        (Refusal::IdentityMismatch, 403, "identity-mismatch", None),
        (Refusal::KeysUnavailable, 503, "keys-unavailable", Some(5)),
        (Refusal::NotAllowed, 403, "not-allowed", None),
        (Refusal::NoWorkspaceName, 403, "no-workspace-name", None),
        (Refusal::ForeignOrigin, 403, "foreign-origin", None),
        (Refusal::WorkspaceNotFound, 404, "workspace-not-found", None),
        (Refusal::ResolverUnavailable, 503, "resolver-unavailable", Some(5)),
        (Refusal::WorkspaceStarting, 503, "workspace-starting", Some(5)),
        (Refusal::StampRefused, 403, "stamp-refused", None),
        (Refusal::WorkspaceFailed, 502, "workspace-failed", None),
        (Refusal::RunnerFailed, 503, "runner-failed", None),
    ];

    fn navigation(language: &'static str) -> Reader {
        Reader::new("GET", |name| match name {
            "accept" => Some(b"text/html,*/*;q=0.8".as_slice()),
            "accept-language" => Some(language.as_bytes()),
            _ => None,
        })
    }

    fn script() -> Reader {
        Reader::new("GET", |name| (name == "accept").then_some(b"*/*".as_slice()))
    }

    fn header<'a>(rendered: &'a Rendered, name: &str) -> Option<&'a str> {
        let mut values = rendered.headers.iter().filter(|(other, _)| *other == name);
        let (_, value) = values.next()?;
        assert!(values.next().is_none(), "{name} stands twice");
        Some(value)
    }

    fn text(rendered: &Rendered) -> &str {
        std::str::from_utf8(&rendered.body).unwrap()
    }

    #[test]
    fn statuses_and_codes_are_those_of_the_table() {
        for (refusal, status, code, wait) in TABLE {
            assert_eq!((refusal.status(), refusal.code()), (status, code));
            assert_eq!(refusal.retry_after(), wait.map(Duration::from_secs), "{code}");
        }
    }

    #[test]
    fn every_refusal_is_on_its_page() {
        let page = include_str!("../docs/running.md");
        for (_, status, code, _) in TABLE {
            let row = |line: &&str| {
                line.contains(&format!("| {status}")) && line.ends_with(&format!("| `{code}` |"))
            };
            assert_eq!(page.lines().filter(row).count(), 1, "{code}");
        }
    }

    #[test]
    fn everything_but_a_navigation_gets_a_problem() {
        for (refusal, status, code, wait) in TABLE {
            let rendered = refusal.render(&script(), "id-1", More::Nothing);
            assert_eq!(rendered.status, status);
            assert_eq!(header(&rendered, "content-type"), Some("application/problem+json"));
            assert_eq!(header(&rendered, "cache-control"), Some("no-store"));
            assert_eq!(header(&rendered, "retry-after"), wait.map(|wait| wait.to_string()).as_deref());
            let problem: serde_json::Value = serde_json::from_slice(&rendered.body).unwrap();
            assert_eq!(problem["type"], "about:blank");
            assert_eq!(problem["status"], status);
            assert_eq!(problem["code"], code);
            assert_eq!(problem["request_id"], "id-1");
            assert_eq!(problem["title"], refusal.reason_phrase());
            assert!(!problem["detail"].as_str().unwrap().is_empty());
        }
    }

    #[test]
    fn a_navigation_gets_a_page_of_its_language() {
        for (refusal, status, code, wait) in TABLE {
            let (english, korean) = (navigation("en"), navigation("ko-KR"));
            for (reader, language) in [(&english, "en"), (&korean, "ko")] {
                let rendered = refusal.render(reader, "id-1", More::Nothing);
                assert_eq!(rendered.status, status);
                assert_eq!(header(&rendered, "content-type"), Some("text/html; charset=utf-8"));
                assert_eq!(header(&rendered, "cache-control"), Some("no-store"));
                assert_eq!(header(&rendered, "x-content-type-options"), Some("nosniff"));
                assert!(
                    header(&rendered, "content-security-policy").unwrap().starts_with("default-src 'none'; ")
                );
                assert_eq!(header(&rendered, "retry-after"), wait.map(|wait| wait.to_string()).as_deref());
                let page = text(&rendered);
                assert!(page.starts_with("<!doctype html>\n"), "{page}");
                assert!(page.contains(&format!("<html lang=\"{language}\">")), "{page}");
                assert!(page.contains(code) && page.contains("id-1"), "{page}");
                assert!(!page.contains("http://") && !page.contains("https://"), "{page}");
                assert!(!page.contains('{') || page.contains("<style>"), "{page}");
                let has_hangul = page.chars().any(|letter| ('가'..='힣').contains(&letter));
                assert_eq!(has_hangul, language == "ko", "{page}");
            }
        }
    }

    #[test]
    fn a_page_leads_to_the_login_where_that_may_help() {
        let link: LoginLink = serde_json::from_str(r#""/logout?a=\"b\"&c""#).unwrap();
        let mut codes = Vec::new();
        for (refusal, _, code, _) in TABLE {
            let page = refusal.render(&navigation("ko"), "id-1", More::Login(&link));
            if text(&page).contains("<a ") {
                assert!(
                    text(&page).contains("<a href=\"/logout?a=&quot;b&quot;&amp;c\">다시 로그인</a>"),
                    "{code}"
                );
                codes.push(code);
            }
            assert!(
                !text(&refusal.render(&navigation("en"), "id-1", More::Nothing)).contains("<a "),
                "{code}"
            );
            assert!(
                !text(&refusal.render(&script(), "id-1", More::Login(&link))).contains("logout"),
                "{code}"
            );
        }
        let expected = [
            "identity-missing",
            "identity-malformed",
            "token-invalid",
            "identity-mismatch",
            "not-allowed",
            "no-workspace-name",
            "workspace-not-found",
        ];
        assert_eq!(codes, expected);
    }

    #[test]
    fn the_page_of_a_starting_workspace_says_for_how_long() {
        for (seconds, english, korean) in [
            (5, "It has been starting for 5 s.", "시작한 지 5초 지났습니다."),
            (60, "It has been starting for 1 min.", "시작한 지 1분 지났습니다."),
            (95, "It has been starting for 1 min 35 s.</p>", "시작한 지 1분 35초 지났습니다.</p>"),
            (
                120,
                "It has been starting for 2 min. That is long: tell your administrator.",
                "시작한 지 2분 지났습니다. 너무 오래 걸리고 있으니 관리자에게 알려 주세요.",
            ),
        ] {
            let waited = More::Waited(Duration::from_secs(seconds));
            let page = Refusal::WorkspaceStarting.render(&navigation("en"), "id-1", waited);
            assert!(text(&page).contains(english), "{}", text(&page));
            let page = Refusal::WorkspaceStarting.render(&navigation("ko"), "id-1", waited);
            assert!(text(&page).contains(korean), "{}", text(&page));
        }
        let waited = More::Waited(Duration::from_millis(900));
        let page = Refusal::WorkspaceStarting.render(&navigation("en"), "id-1", waited);
        assert!(!text(&page).contains("has been starting"), "{}", text(&page));
    }

    #[test]
    fn a_401_asks_for_a_token() {
        for (refusal, status, code, _) in TABLE {
            for reader in [navigation("en"), script()] {
                let rendered = refusal.render(&reader, "id-1", More::Nothing);
                let expected = match code {
                    "identity-missing" => Some("Bearer"),
                    "token-invalid" => Some("Bearer error=\"invalid_token\""),
                    _ => None,
                };
                assert_eq!(header(&rendered, "www-authenticate"), expected);
                assert_eq!(header(&rendered, "www-authenticate").is_some(), status == 401);
                assert_eq!(header(&rendered, "location"), None);
            }
        }
    }

    #[test]
    fn only_the_page_of_a_starting_workspace_reloads_itself() {
        for (refusal, ..) in TABLE {
            let page = refusal.render(&navigation("en"), "id-1", More::Nothing);
            let is_starting = refusal == Refusal::WorkspaceStarting;
            let reloads = text(&page).contains("<meta http-equiv=\"refresh\" content=\"5\">");
            assert_eq!(reloads, is_starting, "{refusal:?}");
            // The hash of the script as a browser computes it.
            let script =
                text(&page).split_once("<script>").and_then(|(_, rest)| rest.split_once("</script>"));
            let hash = script.map(|(script, _)| STANDARD.encode(Sha256::digest(script)));
            let policy = header(&page, "content-security-policy").unwrap();
            let allowed =
                policy.split_once("script-src 'sha256-").and_then(|(_, rest)| rest.split_once('\''));
            assert_eq!(allowed.map(|(hash, _)| hash), hash.as_deref());
            assert_eq!(hash.is_some(), is_starting, "{refusal:?}");
        }
    }

    #[test]
    fn a_request_id_is_escaped() {
        let id = "\"'><script>alert(1)</script>&\\";
        let page = Refusal::StampRefused.render(&navigation("en"), id, More::Nothing);
        assert!(!text(&page).contains("<script"));
        assert!(
            text(&page).contains("&quot;&#39;&gt;&lt;script&gt;alert(1)&lt;/script&gt;&amp;\\"),
            "{}",
            text(&page)
        );
        let problem = Refusal::StampRefused.render(&script(), id, More::Nothing);
        let problem: serde_json::Value = serde_json::from_slice(&problem.body).unwrap();
        assert_eq!(problem["request_id"], id);
    }
}
