//! The page for a user after a refused request: one file that loads no other.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use super::facts::{PageText, Refusal};
use super::reader::Language;
use kube_coders_identity::LoginLink;

/// The time after which an administrator should look at a start.
const LONG_START: Duration = Duration::from_secs(120);

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1f2328;--soft:#59636e;--paper:#fff;--line:#d1d9e0}\
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--paper:#0d1117;--line:#3d444d}}\
body{margin:0;min-height:100vh;display:grid;place-items:center;background:var(--paper);color:var(--ink);\
font:16px/1.6 system-ui,sans-serif;word-break:keep-all;overflow-wrap:anywhere}\
main{max-width:34rem;padding:2rem}\
h1{font-size:1.5rem;line-height:1.3;margin:0 0 1rem}\
a{display:inline-block;margin-top:.5rem;padding:.4rem 1rem;border:1px solid var(--line);border-radius:6px;\
color:inherit;text-decoration:none}\
a:hover,a:focus-visible{border-color:var(--soft)}\
footer{margin-top:2rem;padding-top:1rem;border-top:1px solid var(--line);color:var(--soft);font-size:.85rem}\
code{font-family:ui-monospace,monospace}";

/// The policy of a refusal's page: it may load nothing, and run nothing except the script
/// that reloads it. Only pages of its own origin may frame it, as the editor's own pages do.
pub(super) fn content_security_policy(refusal: Refusal) -> String {
    let script = reload_script(refusal).map_or_else(String::new, |script| {
        format!(" script-src 'sha256-{}';", STANDARD.encode(Sha256::digest(script)))
    });
    format!(
        "default-src 'none';{script} style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    )
}

/// After how many seconds a page reloads itself, if it does.
fn reloads_after(refusal: Refusal) -> Option<u64> {
    let wait = refusal.retry_after().filter(|_| refusal == Refusal::WorkspaceStarting);
    wait.map(|wait| wait.as_secs())
}

/// The script that reloads a page. A refresh in the head is not enough: at an address with
/// a fragment, browsers take it for a jump within the page.
fn reload_script(refusal: Refusal) -> Option<String> {
    reloads_after(refusal).map(|seconds| format!("setTimeout(function(){{location.reload()}},{seconds}000)"))
}

/// What a page may say in addition to its own texts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum More<'m> {
    Nothing,
    /// The link to sign in again.
    Login(&'m LoginLink),
    /// How long the workspace has not answered.
    Waited(Duration),
}

/// The page as HTML.
pub(super) fn render(refusal: Refusal, language: Language, request_id: &str, more: More<'_>) -> String {
    let facts = refusal.facts();
    let (lang, id_label, code_label, again, text) = match language {
        Language::English => ("en", "Request ID", "Code", "Sign in again", facts.english),
        Language::Korean => ("ko", "요청 ID", "코드", "다시 로그인", facts.korean),
    };
    let more = match more {
        More::Login(link) => format!("<p><a href=\"{}\">{again}</a></p>\n", escape(link.as_str())),
        More::Waited(waited) if waited.as_secs() > 0 => format!("<p>{}</p>\n", since(language, waited)),
        More::Waited(_) | More::Nothing => String::new(),
    };
    let PageText { title, cause, advice } = text;
    let reload = match (reloads_after(refusal), reload_script(refusal)) {
        (Some(seconds), Some(script)) => format!(
            "<script>{script}</script>\n\
             <noscript><meta http-equiv=\"refresh\" content=\"{seconds}\"></noscript>\n"
        ),
        _ => String::new(),
    };
    let (status, code, request_id) = (facts.status, facts.code, escape(request_id));
    format!(
        "<!doctype html>\n\
         <html lang=\"{lang}\">\n\
         <head>\n\
         <meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"robots\" content=\"noindex\">\n\
         {reload}\
         <title>{title}</title>\n\
         <style>{STYLE}</style>\n\
         </head>\n\
         <body>\n\
         <main>\n\
         <h1>{title}</h1>\n\
         <p>{cause}</p>\n\
         <p>{advice}</p>\n\
         {more}\
         <footer>{code_label}: <code>{status} {code}</code><br>{id_label}: <code>{request_id}</code></footer>\n\
         </main>\n\
         </body>\n\
         </html>\n"
    )
}

/// For how long a workspace has not answered, in a sentence.
fn since(language: Language, waited: Duration) -> String {
    let (minutes, seconds) = (waited.as_secs() / 60, waited.as_secs() % 60);
    let (minute, second, space) = match language {
        Language::English => (" min", " s", " "),
        Language::Korean => ("분", "초", " "),
    };
    let time = match (minutes, seconds) {
        (0, seconds) => format!("{seconds}{second}"),
        (minutes, 0) => format!("{minutes}{minute}"),
        (minutes, seconds) => format!("{minutes}{minute}{space}{seconds}{second}"),
    };
    let is_long = waited >= LONG_START;
    match language {
        Language::English => {
            let advice = " This is unusually long. Tell your administrator.";
            format!("It has not answered for {time}.{}", if is_long { advice } else { "" })
        }
        Language::Korean => {
            let advice = " 너무 오래 걸리고 있으니 관리자에게 알려 주세요.";
            format!("{time} 동안 응답이 없습니다.{}", if is_long { advice } else { "" })
        }
    }
}

/// The text with every character that means something in HTML replaced.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(letter),
        }
    }
    escaped
}
