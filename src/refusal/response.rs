//! A refusal as an HTTP response.

use serde::Serialize;

use super::facts::Refusal;
use super::page::{self, More};
use super::reader::Reader;

/// A refusal as an HTTP response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rendered {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
}

impl Refusal {
    /// The response for this reader: a page for a navigation, or else a problem document
    /// (RFC 9457). A page has the link only if signing in again may help.
    pub(crate) fn render(self, reader: &Reader, request_id: &str, more: More<'_>) -> Rendered {
        let facts = self.facts();
        let mut headers =
            vec![("cache-control", "no-store".to_owned()), ("x-content-type-options", "nosniff".to_owned())];
        if let Some(wait) = facts.retry_after {
            headers.push(("retry-after", wait.as_secs().to_string()));
        }
        if let Some(challenge) = facts.challenge {
            headers.push(("www-authenticate", challenge.to_owned()));
        }
        let body = if reader.is_navigation() {
            headers.push(("content-type", "text/html; charset=utf-8".to_owned()));
            headers.push(("content-security-policy", page::content_security_policy(self)));
            headers.push(("referrer-policy", "no-referrer".to_owned()));
            let more = match more {
                More::Login(_) if !facts.login_helps => More::Nothing,
                more => more,
            };
            page::render(self, reader.language(), request_id, more).into_bytes()
        } else {
            headers.push(("content-type", "application/problem+json".to_owned()));
            self.problem(request_id)
        };
        Rendered { status: facts.status, headers, body }
    }

    fn problem(self, request_id: &str) -> Vec<u8> {
        let problem = Problem {
            kind: "about:blank",
            title: self.reason_phrase(),
            status: self.status(),
            detail: self.facts().english.cause,
            code: self.code(),
            request_id,
        };
        serde_json::to_vec(&problem).expect("numbers and text can always be written as JSON")
    }

    /// The status in words. RFC 9457, section 4.2.1, asks for it as the title of a problem
    /// of the type `about:blank`.
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
