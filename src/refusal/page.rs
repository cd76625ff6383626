//! The page that a person sees who was refused: one file, nothing to fetch.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use super::{Language, More, Refusal};

/// From when on a start is so long that somebody should look at it.
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

/// The policy of a refusal's page: nothing may be loaded, and nothing run but what
/// reloads it. It may stand in a frame of its own origin only, as the editor's own pages do.
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

/// What reloads a page. A refresh in the head alone would not do at an address with a
/// fragment, where browsers take it for a jump within the page.
fn reload_script(refusal: Refusal) -> Option<String> {
    reloads_after(refusal).map(|seconds| format!("setTimeout(function(){{location.reload()}},{seconds}000)"))
}

/// The words of one page.
struct Words {
    title: &'static str,
    what: &'static str,
    cure: &'static str,
}

/// What happened, in one English sentence: a problem's `detail`.
pub(super) fn detail(refusal: Refusal) -> &'static str {
    english(refusal).what
}

/// The page as HTML.
pub(super) fn render(refusal: Refusal, language: Language, request_id: &str, more: More<'_>) -> String {
    let (lang, id_label, code_label, again, words) = match language {
        Language::English => ("en", "Request", "Code", "Sign in again", english(refusal)),
        Language::Korean => ("ko", "요청 ID", "코드", "다시 로그인", korean(refusal)),
    };
    let more = match more {
        More::Login(link) => format!("<p><a href=\"{}\">{again}</a></p>\n", escape(link.as_str())),
        More::Waited(waited) if waited.as_secs() > 0 => format!("<p>{}</p>\n", since(language, waited)),
        More::Waited(_) | More::Nothing => String::new(),
    };
    let Words { title, what, cure } = words;
    let reload = match (reloads_after(refusal), reload_script(refusal)) {
        (Some(seconds), Some(script)) => format!(
            "<script>{script}</script>\n\
             <noscript><meta http-equiv=\"refresh\" content=\"{seconds}\"></noscript>\n"
        ),
        _ => String::new(),
    };
    let (status, code, request_id) = (refusal.status(), refusal.code(), escape(request_id));
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
         <p>{what}</p>\n\
         <p>{cure}</p>\n\
         {more}\
         <footer>{code_label}: <code>{status} {code}</code><br>{id_label}: <code>{request_id}</code></footer>\n\
         </main>\n\
         </body>\n\
         </html>\n"
    )
}

/// For how long a workspace has been starting, in a sentence.
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
            let advice = " That is long: tell your administrator.";
            format!("It has been starting for {time}.{}", if is_long { advice } else { "" })
        }
        Language::Korean => {
            let advice = " 너무 오래 걸리고 있으니 관리자에게 알려 주세요.";
            format!("시작한 지 {time} 지났습니다.{}", if is_long { advice } else { "" })
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

fn english(refusal: Refusal) -> Words {
    let (title, what, cure) = match refusal {
        Refusal::TooManyHeaders => (
            "This request has too many headers",
            "Your browser or a program in between sent more headers than the gateway can check.",
            "Switch off browser extensions that add headers, or a proxy that does, and reload this page.",
        ),
        Refusal::RequestMalformed => (
            "This request can't be read",
            "What arrived here is not in a form that can be passed on safely.",
            "Reload this page. If that changes nothing, tell your administrator.",
        ),
        Refusal::RequestLate => (
            "This request took too long",
            "Only a part of it arrived here in time.",
            "Reload this page. If that changes nothing, check your connection.",
        ),
        Refusal::RunnerBusy => (
            "There are too many connections right now",
            "The gateway's runner has as many connections as it takes.",
            "Nothing is lost. Reload this page in a few seconds. If it happens again, tell your administrator.",
        ),
        Refusal::TooManyConnections => (
            "You have too many connections open",
            "Your account has as many connections open as one may have.",
            "Close windows of your workspace that you do not need, and reload this page.",
        ),
        Refusal::TokenInvalid => (
            "Your sign-in is no longer valid",
            "The proof of who you are has expired, or was not made for this site.",
            "Sign in again. If that changes nothing, tell your administrator.",
        ),
        Refusal::IdentityMismatch => (
            "Two people are signed in here",
            "What we were told about who you are does not fit together: it speaks of two accounts.",
            "Sign in again, with one account.",
        ),
        Refusal::KeysUnavailable => (
            "Your sign-in can't be checked right now",
            "The service that proves who you are does not answer.",
            "Nothing is lost. Reload this page in a few seconds.",
        ),
        Refusal::NotAllowed => (
            "This account has no access",
            "You are signed in, but your account is not among those that may use workspaces here.",
            "Ask your administrator to add your account, or sign in again with another one.",
        ),
        Refusal::IdentityMissing => (
            "Please sign in",
            "We could not tell who you are: your sign-in did not reach us.",
            "Sign in again. If that changes nothing, tell your administrator.",
        ),
        Refusal::IdentityMalformed => (
            "Your sign-in could not be read",
            "What we were told about who you are is not in a form that we can trust.",
            "Sign in again. If that changes nothing, tell your administrator.",
        ),
        Refusal::NoWorkspaceName => (
            "No workspace belongs to this account",
            "Your account lacks what a workspace is named after.",
            "Ask your administrator to complete your account, then sign in again.",
        ),
        Refusal::ForeignOrigin => (
            "This connection came from another site",
            "A page of another site tried to open a connection to a workspace, and we stopped it.",
            "Open your workspace by its own address. If you did, your administrator should check the gateway's host name.",
        ),
        Refusal::WorkspaceNotFound => (
            "You have no workspace yet",
            "You are signed in, but there is no workspace for your account.",
            "Ask your administrator to create one, or sign in again with another account. If it was created just now, reload this page in a minute.",
        ),
        Refusal::ResolverUnavailable => (
            "Your workspace can't be found right now",
            "The service that knows where workspaces are does not answer.",
            "Nothing is lost. Reload this page in a few seconds.",
        ),
        Refusal::WorkspaceStarting => (
            "Your workspace is starting",
            "Your workspace does not answer yet; a start usually takes less than a minute.",
            "Stay on this page: it reloads by itself and opens your workspace when it is ready.",
        ),
        Refusal::StampRefused => (
            "This request did not come the right way",
            "The request did not come through the gateway, or stayed on its way for too long.",
            "Open your workspace by the gateway's address, or reload this page if you already did.",
        ),
        Refusal::WorkspaceFailed => (
            "Your workspace closed the connection",
            "Your workspace closed the connection before it had answered.",
            "Reload this page. If it happens again, restart your workspace or tell your administrator.",
        ),
        Refusal::RunnerFailed => (
            "Something went wrong on our side",
            "An error in the gateway's plugin stopped this request.",
            "Reload this page. If it happens again, give your administrator the request id below.",
        ),
    };
    Words { title, what, cure }
}

fn korean(refusal: Refusal) -> Words {
    let (title, what, cure) = match refusal {
        Refusal::TooManyHeaders => (
            "요청 헤더가 너무 많습니다",
            "브라우저나 중간 프로그램이 게이트웨이가 확인할 수 있는 것보다 많은 헤더를 보냈습니다.",
            "헤더를 추가하는 브라우저 확장 프로그램이나 프록시를 끄고 페이지를 새로 고쳐 주세요.",
        ),
        Refusal::RequestMalformed => (
            "요청을 읽을 수 없습니다",
            "도착한 요청의 형식이 올바르지 않아 안전하게 전달할 수 없습니다.",
            "페이지를 새로 고쳐 주세요. 계속되면 관리자에게 알려 주세요.",
        ),
        Refusal::RequestLate => (
            "요청이 너무 오래 걸렸습니다",
            "제한 시간 안에 요청의 일부만 도착했습니다.",
            "페이지를 새로 고쳐 주세요. 계속되면 네트워크 연결을 확인해 주세요.",
        ),
        Refusal::RunnerBusy => (
            "지금은 연결이 너무 많습니다",
            "서버가 받을 수 있는 연결 수에 이르렀습니다.",
            "작업 내용은 그대로 있습니다. 몇 초 뒤에 페이지를 새로 고쳐 주세요. 계속되면 관리자에게 알려 주세요.",
        ),
        Refusal::TooManyConnections => (
            "열려 있는 연결이 너무 많습니다",
            "이 계정이 동시에 열 수 있는 연결 수에 이르렀습니다.",
            "사용하지 않는 작업 공간 창을 닫고 페이지를 새로 고쳐 주세요.",
        ),
        Refusal::TokenInvalid => (
            "로그인이 더 이상 유효하지 않습니다",
            "로그인 정보가 만료되었거나 이 사이트용으로 발급된 것이 아닙니다.",
            "다시 로그인해 주세요. 계속되면 관리자에게 알려 주세요.",
        ),
        Refusal::IdentityMismatch => (
            "두 계정의 로그인 정보가 섞여 있습니다",
            "전달된 로그인 정보가 서로 다른 두 계정을 가리킵니다.",
            "하나의 계정으로 다시 로그인해 주세요.",
        ),
        Refusal::KeysUnavailable => (
            "지금은 로그인을 확인할 수 없습니다",
            "로그인을 확인해 주는 서비스가 응답하지 않습니다.",
            "작업 내용은 그대로 있습니다. 몇 초 뒤에 페이지를 새로 고쳐 주세요.",
        ),
        Refusal::NotAllowed => (
            "이 계정은 이용할 수 없습니다",
            "로그인은 되었지만 이 계정에는 작업 공간을 이용할 권한이 없습니다.",
            "관리자에게 권한을 요청하거나 다른 계정으로 로그인해 주세요.",
        ),
        Refusal::IdentityMissing => (
            "로그인이 필요합니다",
            "로그인 정보가 전달되지 않아 누구의 요청인지 확인할 수 없습니다.",
            "다시 로그인해 주세요. 계속되면 관리자에게 알려 주세요.",
        ),
        Refusal::IdentityMalformed => (
            "로그인 정보를 읽을 수 없습니다",
            "전달된 로그인 정보의 형식이 올바르지 않아 신뢰할 수 없습니다.",
            "다시 로그인해 주세요. 계속되면 관리자에게 알려 주세요.",
        ),
        Refusal::NoWorkspaceName => (
            "이 계정에 연결된 작업 공간이 없습니다",
            "작업 공간 이름을 정하는 데 필요한 정보가 계정에 없습니다.",
            "관리자에게 계정 정보를 보완해 달라고 요청한 뒤 다시 로그인해 주세요.",
        ),
        Refusal::ForeignOrigin => (
            "다른 사이트에서 시작된 연결입니다",
            "다른 사이트의 페이지가 작업 공간에 연결하려고 하여 차단했습니다.",
            "작업 공간의 주소로 직접 접속해 주세요. 이미 그렇게 했다면 관리자에게 게이트웨이의 호스트 이름을 확인해 달라고 요청해 주세요.",
        ),
        Refusal::WorkspaceNotFound => (
            "아직 작업 공간이 없습니다",
            "로그인은 되었지만 이 계정의 작업 공간이 없습니다.",
            "관리자에게 작업 공간을 만들어 달라고 요청하거나 다른 계정으로 다시 로그인해 주세요. 방금 만들었다면 1분쯤 뒤에 페이지를 새로 고쳐 주세요.",
        ),
        Refusal::ResolverUnavailable => (
            "지금은 작업 공간을 찾을 수 없습니다",
            "작업 공간의 위치를 알려 주는 서비스가 응답하지 않습니다.",
            "작업 내용은 그대로 있습니다. 몇 초 뒤에 페이지를 새로 고쳐 주세요.",
        ),
        Refusal::WorkspaceStarting => (
            "작업 공간을 시작하고 있습니다",
            "작업 공간이 아직 응답하지 않습니다. 보통 1분 안에 시작됩니다.",
            "이 페이지를 열어 두세요. 자동으로 새로 고쳐지며, 준비되면 작업 공간이 열립니다.",
        ),
        Refusal::StampRefused => (
            "요청이 잘못된 경로로 들어왔습니다",
            "요청이 게이트웨이를 거치지 않았거나 전달되는 데 너무 오래 걸렸습니다.",
            "게이트웨이 주소로 작업 공간에 접속해 주세요. 이미 그렇게 했다면 페이지를 새로 고쳐 주세요.",
        ),
        Refusal::WorkspaceFailed => (
            "작업 공간과의 연결이 끊어졌습니다",
            "작업 공간이 응답을 보내기 전에 연결을 끊었습니다.",
            "페이지를 새로 고쳐 주세요. 계속되면 작업 공간을 다시 시작하거나 관리자에게 알려 주세요.",
        ),
        Refusal::RunnerFailed => (
            "서버에 문제가 생겼습니다",
            "게이트웨이 플러그인의 오류로 요청을 처리하지 못했습니다.",
            "페이지를 새로 고쳐 주세요. 계속되면 아래의 요청 ID를 관리자에게 알려 주세요.",
        ),
    };
    Words { title, what, cure }
}
