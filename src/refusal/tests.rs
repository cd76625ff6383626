//! Every refusal, as a page and as a problem document.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use super::response::Rendered;
use super::*;
use kube_coders_identity::LoginLink;

/// The product's answer table.
const TABLE: [(Refusal, u16, &str, Option<u64>); 24] = [
    (Refusal::TooManyHeaders, 431, "too-many-headers", None),
    (Refusal::HeadTooLong, 431, "headers-too-large", None),
    (Refusal::RequestMalformed, 400, "request-malformed", None),
    (Refusal::RequestLate, 408, "request-late", None),
    (Refusal::RunnerBusy, 503, "runner-busy", Some(5)),
    (Refusal::TooManyConnections, 429, "too-many-connections", Some(5)),
    (Refusal::IdentityMissing, 401, "identity-missing", None),
    (Refusal::IdentityMalformed, 400, "identity-malformed", None),
    (Refusal::IdentityTooLarge, 431, "identity-too-large", None),
    (Refusal::TokenInvalid, 401, "token-invalid", None),
    (Refusal::IdentityMismatch, 403, "identity-mismatch", None),
    (Refusal::KeysUnavailable, 503, "keys-unavailable", Some(5)),
    (Refusal::NotAllowed, 403, "not-allowed", None),
    (Refusal::NoWorkspaceName, 403, "no-workspace-name", None),
    (Refusal::ForeignOrigin, 403, "foreign-origin", None),
    (Refusal::WorkspaceNotFound, 404, "workspace-not-found", None),
    (Refusal::AddressNotAllowed, 403, "address-not-allowed", None),
    (Refusal::ResolverUnavailable, 503, "resolver-unavailable", Some(5)),
    (Refusal::WorkspaceTimeout, 504, "workspace-timeout", None),
    (Refusal::WorkspaceStarting, 503, "workspace-starting", Some(5)),
    (Refusal::StampRefused, 403, "stamp-refused", None),
    (Refusal::WorkerRefused, 403, "worker-refused", None),
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
    assert!(values.next().is_none(), "{name} is there twice");
    Some(value)
}

/// A page without its style sheet and its script, which have braces of their own.
fn outside_of_code(page: &str) -> String {
    let mut page = page.to_owned();
    for (start, end) in [("<style>", "</style>"), ("<script>", "</script>")] {
        while let Some((before, rest)) = page.split_once(start) {
            let (_, after) = rest.split_once(end).expect("an end tag");
            page = format!("{before}{after}");
        }
    }
    page
}

fn text(rendered: &Rendered) -> &str {
    std::str::from_utf8(&rendered.body).unwrap()
}

#[test]
fn statuses_and_codes_are_those_of_the_table() {
    assert_eq!(TABLE.map(|(refusal, ..)| refusal), Refusal::ALL);
    for (refusal, status, code, wait) in TABLE {
        assert_eq!((refusal.status(), refusal.code()), (status, code));
        assert_eq!(refusal.retry_after(), wait.map(Duration::from_secs), "{code}");
    }
}

#[test]
fn every_refusal_is_on_its_page() {
    let page = include_str!("../../docs/running.md");
    for (_, status, code, _) in TABLE {
        let row =
            |line: &&str| line.contains(&format!("| {status}")) && line.ends_with(&format!("| `{code}` |"));
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
            assert_eq!(outside_of_code(page).find(['{', '}']), None, "a hole is left: {page}");
            let has_hangul = page.chars().any(|letter| ('가'..='힣').contains(&letter));
            assert_eq!(has_hangul, language == "ko", "{page}");
        }
    }
}

#[test]
fn a_page_leads_to_the_login_if_that_may_help() {
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
        assert!(!text(&refusal.render(&navigation("en"), "id-1", More::Nothing)).contains("<a "), "{code}");
        assert!(!text(&refusal.render(&script(), "id-1", More::Login(&link))).contains("logout"), "{code}");
    }
    let expected = [
        "identity-missing",
        "identity-malformed",
        "identity-too-large",
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
        (5, "It has not answered for 5 s.", "5초 동안 응답이 없습니다."),
        (60, "It has not answered for 1 min.", "1분 동안 응답이 없습니다."),
        (95, "It has not answered for 1 min 35 s.</p>", "1분 35초 동안 응답이 없습니다.</p>"),
        (
            120,
            "It has not answered for 2 min. This is unusually long. Tell your administrator.",
            "2분 동안 응답이 없습니다. 너무 오래 걸리고 있으니 관리자에게 알려 주세요.",
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
        let script = text(&page).split_once("<script>").and_then(|(_, rest)| rest.split_once("</script>"));
        let hash = script.map(|(script, _)| STANDARD.encode(Sha256::digest(script)));
        let policy = header(&page, "content-security-policy").unwrap();
        let allowed = policy.split_once("script-src 'sha256-").and_then(|(_, rest)| rest.split_once('\''));
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
