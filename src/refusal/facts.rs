//! The refusals, and all facts about each in one table.

use std::time::Duration;

/// After how long another try is worthwhile: about as long as a name server or a workspace
/// needs to come up, and short enough for a user who watches the page.
const RETRY_AFTER: Option<Duration> = Some(Duration::from_secs(5));

/// The texts of a page in one language.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageText {
    pub(super) title: &'static str,
    /// What happened, in one sentence or two.
    pub(super) cause: &'static str,
    /// What the user can do.
    pub(super) advice: &'static str,
}

/// The facts about a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RefusalFacts {
    /// The HTTP status.
    pub(super) status: u16,
    /// The stable name that scripts, dashboards and logs may rely on.
    pub(super) code: &'static str,
    /// When to try again, if the cause is likely to go away by itself.
    pub(super) retry_after: Option<Duration>,
    /// The value of `WWW-Authenticate`, which a 401 must have (RFC 9110, section 15.5.2;
    /// RFC 6750, section 3).
    pub(super) challenge: Option<&'static str>,
    /// Whether signing in again may help, perhaps with another account.
    pub(super) login_helps: bool,
    pub(super) english: PageText,
    pub(super) korean: PageText,
}

/// Declares the refusals together with their facts, so that none is left out.
macro_rules! refusals {
    ($($(#[$about:meta])* $refusal:ident => $facts:expr,)*) => {
        /// Why a request does not reach a workspace.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Refusal { $($(#[$about])* $refusal,)* }

        impl Refusal {
            /// All of them.
            #[cfg(test)]
            pub(super) const ALL: &[Self] = &[$(Self::$refusal,)*];

            pub(super) const fn facts(self) -> RefusalFacts {
                match self { $(Self::$refusal => $facts,)* }
            }
        }
    };
}

impl Refusal {
    /// The HTTP status.
    pub(crate) fn status(self) -> u16 {
        self.facts().status
    }

    /// The name that scripts, dashboards and logs may rely on.
    pub(crate) fn code(self) -> &'static str {
        self.facts().code
    }

    /// When to try again, if the cause is likely to go away by itself.
    pub(crate) fn retry_after(self) -> Option<Duration> {
        self.facts().retry_after
    }
}

refusals! {
    /// The request has so many headers that the gateway hides some.
    TooManyHeaders => RefusalFacts {
        status: 431,
        code: "too-many-headers",
        retry_after: None,
        challenge: None,
        login_helps: false,
        english: PageText {
            title: "This request has too many headers",
            cause: "Your browser, or a program between it and this site, sent more headers than this site can check.",
            advice: "Turn off browser extensions or proxies that add headers, then reload this page.",
        },
        korean: PageText {
            title: "요청 헤더가 너무 많습니다",
            cause: "브라우저나 중간 프로그램이 이 사이트가 확인할 수 있는 것보다 많은 헤더를 보냈습니다.",
            advice: "헤더를 추가하는 브라우저 확장 프로그램이나 프록시를 끄고 페이지를 새로 고쳐 주세요.",
        },
    },
    /// The request's head is longer than the forwarder reads.
    HeadTooLong => RefusalFacts {
        status: 431,
        code: "headers-too-large",
        retry_after: None,
        challenge: None,
        login_helps: false,
        english: PageText {
            title: "The cookies of this site are too large",
            cause: "Your browser sent more than 64 KiB of headers. Usually pages have stored too many cookies for this site.",
            advice: "Delete this site's cookies: click the icon before the address, then \"Cookies\", and remove all of them. Then reload this page and sign in again.",
        },
        korean: PageText {
            title: "이 사이트의 쿠키가 너무 큽니다",
            cause: "브라우저가 64 KiB가 넘는 헤더를 보냈습니다. 보통 이 사이트에 쿠키가 너무 많이 저장되었을 때 생깁니다.",
            advice: "이 사이트의 쿠키를 삭제해 주세요. 주소 앞의 아이콘을 누르고 쿠키를 모두 삭제한 뒤, 페이지를 새로 고치고 다시 로그인해 주세요.",
        },
    },
    /// Two programs could understand the request differently, or none can read it.
    RequestMalformed => RefusalFacts {
        status: 400,
        code: "request-malformed",
        retry_after: None,
        challenge: None,
        login_helps: false,
        english: PageText {
            title: "This request can't be read",
            cause: "The request is malformed, so it can't be passed on safely.",
            advice: "Reload this page. If that does not help, tell your administrator.",
        },
        korean: PageText {
            title: "요청을 읽을 수 없습니다",
            cause: "도착한 요청의 형식이 올바르지 않아 안전하게 전달할 수 없습니다.",
            advice: "페이지를 새로 고쳐 주세요. 계속되면 관리자에게 알려 주세요.",
        },
    },
    /// The request did not arrive in time.
    RequestLate => RefusalFacts {
        status: 408,
        code: "request-late",
        retry_after: None,
        challenge: None,
        login_helps: false,
        english: PageText {
            title: "This request took too long",
            cause: "Only a part of the request arrived in time.",
            advice: "Reload this page. If that does not help, check your network connection.",
        },
        korean: PageText {
            title: "요청이 너무 오래 걸렸습니다",
            cause: "제한 시간 안에 요청의 일부만 도착했습니다.",
            advice: "페이지를 새로 고쳐 주세요. 계속되면 네트워크 연결을 확인해 주세요.",
        },
    },
    /// The forwarder has all the connections that it accepts.
    RunnerBusy => RefusalFacts {
        status: 503,
        code: "runner-busy",
        retry_after: RETRY_AFTER,
        challenge: None,
        login_helps: false,
        english: PageText {
            title: "There are too many connections right now",
            cause: "The server has reached its limit of open connections.",
            advice: "Your files are safe. Reload this page in a few seconds. If it happens again, tell your administrator.",
        },
        korean: PageText {
            title: "지금은 연결이 너무 많습니다",
            cause: "서버가 받을 수 있는 연결 수에 이르렀습니다.",
            advice: "작업 내용은 그대로 있습니다. 몇 초 뒤에 페이지를 새로 고쳐 주세요. 계속되면 관리자에게 알려 주세요.",
        },
    },
    /// The subject has all the connections that one subject may have.
    TooManyConnections => RefusalFacts {
        status: 429,
        code: "too-many-connections",
        retry_after: RETRY_AFTER,
        challenge: None,
        login_helps: false,
        english: PageText {
            title: "You have too many connections open",
            cause: "Your account has reached its limit of open connections.",
            advice: "Close workspace windows that you do not need, then reload this page.",
        },
        korean: PageText {
            title: "열려 있는 연결이 너무 많습니다",
            cause: "이 계정이 동시에 열 수 있는 연결 수에 이르렀습니다.",
            advice: "사용하지 않는 작업 공간 창을 닫고 페이지를 새로 고쳐 주세요.",
        },
    },
    /// No header says who the user is.
    IdentityMissing => RefusalFacts {
        status: 401,
        code: "identity-missing",
        retry_after: None,
        challenge: Some("Bearer"),
        login_helps: true,
        english: PageText {
            title: "Please sign in",
            cause: "The request came without a sign-in, so we do not know who you are.",
            advice: "Sign in again. If that does not help, tell your administrator.",
        },
        korean: PageText {
            title: "로그인이 필요합니다",
            cause: "로그인 정보가 전달되지 않아 누구의 요청인지 확인할 수 없습니다.",
            advice: "다시 로그인해 주세요. 계속되면 관리자에게 알려 주세요.",
        },
    },
    /// A header says who the user is, but not in a form that can be trusted.
    IdentityMalformed => RefusalFacts {
        status: 400,
        code: "identity-malformed",
        retry_after: None,
        challenge: None,
        login_helps: true,
        english: PageText {
            title: "Your sign-in could not be read",
            cause: "Your sign-in is malformed, so it can't be trusted.",
            advice: "Sign in again. If that does not help, tell your administrator.",
        },
        korean: PageText {
            title: "로그인 정보를 읽을 수 없습니다",
            cause: "전달된 로그인 정보의 형식이 올바르지 않아 신뢰할 수 없습니다.",
            advice: "다시 로그인해 주세요. 계속되면 관리자에게 알려 주세요.",
        },
    },
    /// A header that says who the user is has too many bytes.
    IdentityTooLarge => RefusalFacts {
        status: 431,
        code: "identity-too-large",
        retry_after: None,
        challenge: None,
        login_helps: true,
        english: PageText {
            title: "Your account has too much data",
            cause: "Your sign-in is larger than 64 KiB. Usually the account is in too many groups, or has too many roles.",
            advice: "Ask your administrator to leave groups and roles that are not needed here out of the sign-in.",
        },
        korean: PageText {
            title: "계정 정보가 너무 큽니다",
            cause: "로그인 정보가 64 KiB보다 큽니다. 보통 계정에 그룹이나 역할이 너무 많을 때 생깁니다.",
            advice: "여기에 필요하지 않은 그룹과 역할을 로그인 정보에서 빼 달라고 관리자에게 요청해 주세요.",
        },
    },
    /// The token is from another issuer, for another audience, or expired.
    TokenInvalid => RefusalFacts {
        status: 401,
        code: "token-invalid",
        retry_after: None,
        challenge: Some("Bearer error=\"invalid_token\""),
        login_helps: true,
        english: PageText {
            title: "Your sign-in is no longer valid",
            cause: "Your sign-in has expired, or was not made for this site.",
            advice: "Sign in again. If that does not help, tell your administrator.",
        },
        korean: PageText {
            title: "로그인이 더 이상 유효하지 않습니다",
            cause: "로그인 정보가 만료되었거나 이 사이트용으로 발급된 것이 아닙니다.",
            advice: "다시 로그인해 주세요. 계속되면 관리자에게 알려 주세요.",
        },
    },
    /// The token and the userinfo belong to two people.
    IdentityMismatch => RefusalFacts {
        status: 403,
        code: "identity-mismatch",
        retry_after: None,
        challenge: None,
        login_helps: true,
        english: PageText {
            title: "Two accounts are signed in here",
            cause: "Your sign-in names two different accounts.",
            advice: "Sign in again with one account.",
        },
        korean: PageText {
            title: "두 계정의 로그인 정보가 섞여 있습니다",
            cause: "전달된 로그인 정보가 서로 다른 두 계정을 가리킵니다.",
            advice: "하나의 계정으로 다시 로그인해 주세요.",
        },
    },
    /// The issuer's keys are not available, so the token can't be checked.
    KeysUnavailable => RefusalFacts {
        status: 503,
        code: "keys-unavailable",
        retry_after: RETRY_AFTER,
        challenge: None,
        login_helps: false,
        english: PageText {
            title: "Your sign-in can't be checked right now",
            cause: "The service that checks sign-ins does not respond.",
            advice: "Your files are safe. Reload this page in a few seconds.",
        },
        korean: PageText {
            title: "지금은 로그인을 확인할 수 없습니다",
            cause: "로그인을 확인해 주는 서비스가 응답하지 않습니다.",
            advice: "작업 내용은 그대로 있습니다. 몇 초 뒤에 페이지를 새로 고쳐 주세요.",
        },
    },
    /// The policy does not let the user in.
    NotAllowed => RefusalFacts {
        status: 403,
        code: "not-allowed",
        retry_after: None,
        challenge: None,
        login_helps: true,
        english: PageText {
            title: "This account has no access",
            cause: "You are signed in, but your account may not use workspaces here.",
            advice: "Ask your administrator for access, or sign in with another account.",
        },
        korean: PageText {
            title: "이 계정은 이용할 수 없습니다",
            cause: "로그인은 되었지만 이 계정에는 작업 공간을 이용할 권한이 없습니다.",
            advice: "관리자에게 권한을 요청하거나 다른 계정으로 로그인해 주세요.",
        },
    },
    /// The claim that the template needs is missing or gives no DNS label.
    NoWorkspaceName => RefusalFacts {
        status: 403,
        code: "no-workspace-name",
        retry_after: None,
        challenge: None,
        login_helps: true,
        english: PageText {
            title: "No workspace belongs to this account",
            cause: "Your account lacks the information that is needed to find your workspace.",
            advice: "Ask your administrator to complete your account, then sign in again.",
        },
        korean: PageText {
            title: "이 계정에 연결된 작업 공간이 없습니다",
            cause: "작업 공간 이름을 정하는 데 필요한 정보가 계정에 없습니다.",
            advice: "관리자에게 계정 정보를 보완해 달라고 요청한 뒤 다시 로그인해 주세요.",
        },
    },
    /// A page of another origin tried to open a WebSocket.
    ForeignOrigin => RefusalFacts {
        status: 403,
        code: "foreign-origin",
        retry_after: None,
        challenge: None,
        login_helps: false,
        english: PageText {
            title: "This connection came from another site",
            cause: "A page of another site tried to open a connection to a workspace, and we blocked it.",
            advice: "Open your workspace at its own address. If you already did, ask your administrator to check this site's host name.",
        },
        korean: PageText {
            title: "다른 사이트에서 시작된 연결입니다",
            cause: "다른 사이트의 페이지가 작업 공간에 연결하려고 하여 차단했습니다.",
            advice: "작업 공간의 주소로 직접 접속해 주세요. 이미 그렇게 했다면 관리자에게 게이트웨이의 호스트 이름을 확인해 달라고 요청해 주세요.",
        },
    },
    /// The workspace's name does not exist.
    WorkspaceNotFound => RefusalFacts {
        status: 404,
        code: "workspace-not-found",
        retry_after: None,
        challenge: None,
        login_helps: true,
        english: PageText {
            title: "You have no workspace yet",
            cause: "You are signed in, but there is no workspace for your account.",
            advice: "Ask your administrator to create one, or sign in with another account. If it was created just now, reload this page in a minute.",
        },
        korean: PageText {
            title: "아직 작업 공간이 없습니다",
            cause: "로그인은 되었지만 이 계정의 작업 공간이 없습니다.",
            advice: "관리자에게 작업 공간을 만들어 달라고 요청하거나 다른 계정으로 다시 로그인해 주세요. 방금 만들었다면 1분쯤 뒤에 페이지를 새로 고쳐 주세요.",
        },
    },
    /// The workspace's name has an address that no workspace has.
    AddressNotAllowed => RefusalFacts {
        status: 403,
        code: "address-not-allowed",
        retry_after: None,
        challenge: None,
        login_helps: false,
        english: PageText {
            title: "Your workspace has an address that is not allowed",
            cause: "The network address of your workspace belongs to something else, so the connection was blocked.",
            advice: "Give your administrator the request ID below.",
        },
        korean: PageText {
            title: "작업 공간의 주소가 허용되지 않습니다",
            cause: "작업 공간의 네트워크 주소가 다른 시스템의 주소여서 연결을 차단했습니다.",
            advice: "아래의 요청 ID를 관리자에게 알려 주세요.",
        },
    },
    /// No name server could say where the workspace is.
    ResolverUnavailable => RefusalFacts {
        status: 503,
        code: "resolver-unavailable",
        retry_after: RETRY_AFTER,
        challenge: None,
        login_helps: false,
        english: PageText {
            title: "Your workspace can't be found right now",
            cause: "The service that knows where workspaces are does not respond.",
            advice: "Your files are safe. Reload this page in a few seconds.",
        },
        korean: PageText {
            title: "지금은 작업 공간을 찾을 수 없습니다",
            cause: "작업 공간의 위치를 알려 주는 서비스가 응답하지 않습니다.",
            advice: "작업 내용은 그대로 있습니다. 몇 초 뒤에 페이지를 새로 고쳐 주세요.",
        },
    },
    /// The workspace has taken the request, and has not answered in time.
    WorkspaceTimeout => RefusalFacts {
        status: 504,
        code: "workspace-timeout",
        retry_after: None,
        challenge: None,
        login_helps: false,
        english: PageText {
            title: "Your workspace did not answer in time",
            cause: "Your workspace received this request and did not answer within the time limit. It may still be working on it.",
            advice: "Your files are safe. Check in your workspace whether the action is done before you repeat it.",
        },
        korean: PageText {
            title: "작업 공간이 제시간에 응답하지 않았습니다",
            cause: "작업 공간이 요청을 받았지만 제한 시간 안에 응답하지 않았습니다. 아직 처리 중일 수 있습니다.",
            advice: "작업 내용은 그대로 있습니다. 다시 시도하기 전에 작업이 이미 끝났는지 작업 공간에서 확인해 주세요.",
        },
    },
    /// The workspace accepts no connection, or takes nothing of the request.
    WorkspaceStarting => RefusalFacts {
        status: 503,
        code: "workspace-starting",
        retry_after: RETRY_AFTER,
        challenge: None,
        login_helps: false,
        english: PageText {
            title: "Your workspace is starting",
            cause: "Your workspace does not respond yet. Starting usually takes less than a minute.",
            advice: "Keep this page open. It reloads by itself and opens your workspace when it is ready.",
        },
        korean: PageText {
            title: "작업 공간을 시작하고 있습니다",
            cause: "작업 공간이 아직 응답하지 않습니다. 보통 1분 안에 시작됩니다.",
            advice: "이 페이지를 열어 두세요. 자동으로 새로 고쳐지며, 준비되면 작업 공간이 열립니다.",
        },
    },
    /// The stamp is missing, repeated, forged or expired.
    StampRefused => RefusalFacts {
        status: 403,
        code: "stamp-refused",
        retry_after: None,
        challenge: None,
        login_helps: false,
        english: PageText {
            title: "This request did not come through the gateway",
            cause: "The request did not come through this site's gateway, or took too long to arrive.",
            advice: "Open your workspace at this site's address. If you already did, reload this page.",
        },
        korean: PageText {
            title: "요청이 잘못된 경로로 들어왔습니다",
            cause: "요청이 게이트웨이를 거치지 않았거나 전달되는 데 너무 오래 걸렸습니다.",
            advice: "게이트웨이 주소로 작업 공간에 접속해 주세요. 이미 그렇게 했다면 페이지를 새로 고쳐 주세요.",
        },
    },
    /// A workspace's page registers a service worker for addresses that the next user opens.
    WorkerRefused => RefusalFacts {
        status: 403,
        code: "worker-refused",
        retry_after: None,
        challenge: None,
        login_helps: false,
        english: PageText {
            title: "This script can't run for the whole site",
            cause: "A page tried to register a service worker for all addresses of this site, which workspaces share.",
            advice: "Put the script into a folder. The worker is then registered for the addresses in that folder.",
        },
        korean: PageText {
            title: "사이트 전체에서 실행되는 스크립트는 허용되지 않습니다",
            cause: "페이지가 여러 작업 공간이 함께 쓰는 사이트 전체에 서비스 워커를 등록하려고 했습니다.",
            advice: "스크립트를 폴더 안에 두세요. 그러면 그 폴더의 주소에만 서비스 워커가 등록됩니다.",
        },
    },
    /// The workspace closed the connection before its response was complete.
    WorkspaceFailed => RefusalFacts {
        status: 502,
        code: "workspace-failed",
        retry_after: None,
        challenge: None,
        login_helps: false,
        english: PageText {
            title: "Your workspace closed the connection",
            cause: "Your workspace closed the connection before it responded.",
            advice: "Reload this page. If it happens again, ask your administrator to restart your workspace.",
        },
        korean: PageText {
            title: "작업 공간과의 연결이 끊어졌습니다",
            cause: "작업 공간이 응답을 보내기 전에 연결을 끊었습니다.",
            advice: "페이지를 새로 고쳐 주세요. 계속되면 작업 공간을 다시 시작하거나 관리자에게 알려 주세요.",
        },
    },
    /// A plugin has a bug.
    RunnerFailed => RefusalFacts {
        status: 503,
        code: "runner-failed",
        retry_after: None,
        challenge: None,
        login_helps: false,
        english: PageText {
            title: "Something went wrong on our side",
            cause: "An error in this site's gateway stopped this request.",
            advice: "Reload this page. If it happens again, give your administrator the request ID below.",
        },
        korean: PageText {
            title: "서버에 문제가 생겼습니다",
            cause: "게이트웨이 플러그인의 오류로 요청을 처리하지 못했습니다.",
            advice: "페이지를 새로 고쳐 주세요. 계속되면 아래의 요청 ID를 관리자에게 알려 주세요.",
        },
    },
}
