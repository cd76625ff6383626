//! One browser, two users: all users share the gateway's origin, so what a browser keeps for
//! that origin would outlast its user. The response to a navigation marks the browser as its
//! user's. If another user, or no user, is known as the last one, the browser clears what it
//! has kept before any of it is used.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::{debug, warn};

use crate::route::own_cookies::MARKER_COOKIE;
use crate::subject_digest::{IssuedSubject, LastUser, SubjectKeys};
use apisix_plugin_runner::{CookieNames, EditedCookies, HeaderName, PluginError, Request, StatusCode, Stop};

/// The path at which a user signs out and leaves nothing in the browser.
const SIGN_OUT: &str = "/.kube-coders/sign-out";

static CACHE_CONTROL: HeaderName = HeaderName::from_static("cache-control");
static COOKIE: HeaderName = HeaderName::from_static("cookie");
static SET_COOKIE: HeaderName = HeaderName::from_static("set-cookie");
static CLEAR_SITE_DATA: HeaderName = HeaderName::from_static("clear-site-data");

/// The headers with which a browser asks whether it may show what it has. Another user may
/// have chosen that, and its version, too.
static CONDITIONAL: [HeaderName; 3] = [
    HeaderName::from_static("if-none-match"),
    HeaderName::from_static("if-modified-since"),
    HeaderName::from_static("if-range"),
];

/// What a browser clears. Not `"cookies"`: it would end the gateway's session, and reaches the
/// other hosts of the domain, such as Keycloak's.
const CLEARED: &str = r#""cache", "storage""#;

/// The header in which browsers say why they fetch. They send it only where they accept secure
/// cookies: over HTTPS, and from the machine itself.
const FETCH_MODE: &str = "sec-fetch-mode";

/// How many `Set-Cookie` lines remove cookies at most, and how many bytes these have. Browsers
/// keep at most 180 cookies of a host.
const MAX_REMOVALS: usize = 400;
const MAX_REMOVAL_BYTES: usize = 64 * 1024;

/// How many folders of a path may have cookies of their own.
const MAX_FOLDERS: usize = 8;

/// Our own cookies, which no workspace gets.
pub(super) static OWN_COOKIES: LazyLock<CookieNames> =
    LazyLock::new(|| CookieNames::new([MARKER_COOKIE]).expect("the name of a cookie"));

/// The header that tells navigations apart, for the cache key.
pub(super) static NAVIGATION_HEADER: HeaderName = HeaderName::from_static(FETCH_MODE);

/// Marks browsers.
pub(super) struct BrowserMarker {
    keys: SubjectKeys,
    /// Whether the log says already that a marker was made with a key that is not here.
    has_warned: AtomicBool,
}

impl BrowserMarker {
    pub(super) fn new(keys: SubjectKeys) -> Self {
        Self { keys, has_warned: AtomicBool::new(false) }
    }

    /// Marks the browser of a navigation, and lets it clear what another user left. `removed`
    /// are the cookies that only the gateway reads. Returns whether the request is such a
    /// navigation: its response depends on the browser's cookies.
    pub(super) async fn mark(
        &self,
        subject: IssuedSubject<'_>,
        removed: &CookieNames,
        request: &mut Request<'_>,
    ) -> Result<bool, PluginError> {
        if !is_navigation(request) || !is_secure(request).await? {
            return Ok(false);
        }
        let cookies: Vec<&[u8]> = request.headers_named("cookie").flat_map(pairs).collect();
        let markers = cookies.iter().filter_map(|pair| value_of(pair, MARKER_COOKIE.as_bytes()));
        let last = self.keys.last_user(markers, subject);
        match last {
            LastUser::Same => return Ok(true),
            LastUser::SameByFormerKey => {}
            LastUser::Other | LastUser::Unknown | LastUser::UnknownKey => {
                debug!(?last, "the browser clears what its last user left");
                if last == LastUser::UnknownKey && !self.has_warned.swap(true, Ordering::Relaxed) {
                    warn!(
                        cure = "give all replicas the same --subject-key-file, and former keys after it",
                        "a browser was marked with a key that this runner does not have, and is cleared"
                    );
                }
                request.add_response_header(&CLEAR_SITE_DATA, CLEARED)?;
                for name in &CONDITIONAL {
                    if request.has_header(name) {
                        request.remove_header(name)?;
                    }
                }
                let removals = removals(&cookies, removed, request).await?;
                for line in &removals {
                    request.add_response_header(&SET_COOKIE, line)?;
                }
                if !removals.is_empty() {
                    request.remove_header(&COOKIE)?;
                }
            }
        }
        request.add_response_header(&SET_COOKIE, self.keys.marking_cookie(subject))?;
        Ok(true)
    }
}

/// The response to a navigation to [`SIGN_OUT`]: the browser clears what it has kept, and goes on
/// to the gateway's logout. The logout itself never clears, because the way to sign in again
/// leads through it, too.
///
/// A page of another site can't make its visitor's browser clear, only log out.
pub(super) async fn sign_out(
    login: &str,
    removed: &CookieNames,
    request: &mut Request<'_>,
) -> Result<Option<Stop>, PluginError> {
    if !is_navigation(request) || request.path() != SIGN_OUT.as_bytes() {
        return Ok(None);
    }
    let mut stop =
        Stop::redirect(StatusCode::FOUND, login)?.header(&CACHE_CONTROL, "no-store")?.body("Signing out.\n");
    let is_own = request.header("sec-fetch-site").is_none_or(|site| matches!(site, b"same-origin" | b"none"));
    if is_own {
        stop = stop.header(&CLEAR_SITE_DATA, CLEARED)?;
        let cookies: Vec<&[u8]> = request.headers_named("cookie").flat_map(pairs).collect();
        for line in removals(&cookies, removed, request).await? {
            stop = stop.header(&SET_COOKIE, line)?;
        }
    }
    Ok(Some(stop))
}

/// Whether a browser opens a document, by any method.
fn is_navigation(request: &Request<'_>) -> bool {
    match request.header(FETCH_MODE) {
        Some(mode) => mode.eq_ignore_ascii_case(b"navigate"),
        None => request.is_navigation(),
    }
}

/// Whether the browser would accept a secure cookie. Without TLS it would not, and each
/// navigation would be taken for that of another user.
async fn is_secure(request: &mut Request<'_>) -> Result<bool, PluginError> {
    Ok(request.has_header(FETCH_MODE) || request.var("scheme").await?.is_some_and(|scheme| scheme == "https"))
}

/// The `Set-Cookie` values that remove all of a request's cookies from the browser, except
/// those that the gateway reads and ours.
async fn removals(
    cookies: &[&[u8]],
    removed: &CookieNames,
    request: &mut Request<'_>,
) -> Result<Vec<Vec<u8>>, PluginError> {
    let names: BTreeSet<&[u8]> = cookies
        .iter()
        .filter(|pair| !is_one_of(pair, removed) && !is_one_of(pair, &OWN_COOKIES))
        .map(|pair| name_of(pair))
        // A name that no header can have is no cookie that a browser keeps.
        .filter(|name| !name.iter().any(u8::is_ascii_control))
        .collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let target = request.var("real_request_uri").await?.unwrap_or_default();
    // The cookies of the whole host come first, in both of a browser's jars.
    let whole = ["/; Secure", "/; Secure; Partitioned"].map(str::as_bytes).map(<[u8]>::to_vec);
    let paths = paths_of(&target).into_iter().map(|path| [&path, &b"; Secure"[..]].concat());
    let lines = whole.into_iter().chain(paths).flat_map(|attributes| {
        let line = move |name: &&[u8]| match name.is_empty() {
            // Browsers ignore a line with neither a name nor a value.
            true => [b"=removed; Max-Age=0; Path=", &*attributes].concat(),
            false => [name, &b"=; Max-Age=0; Path="[..], &attributes].concat(),
        };
        names.iter().map(line).collect::<Vec<_>>()
    });
    let mut left = MAX_REMOVAL_BYTES;
    Ok(lines
        .take(MAX_REMOVALS)
        .map_while(|line| {
            left = left.checked_sub(line.len())?;
            Some(line)
        })
        .collect())
}

/// The paths below `/` whose cookies a browser sends with this target.
fn paths_of(target: &[u8]) -> Vec<Vec<u8>> {
    let path = target.split(|byte| matches!(byte, b'?' | b'#')).next().unwrap_or_default();
    // A `;` would end the attribute: a path with one belongs to no cookie.
    if !path.starts_with(b"/") || path.iter().any(|byte| *byte == b';' || byte.is_ascii_control()) {
        return Vec::new();
    }
    let slashes = path.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    let mut paths: Vec<Vec<u8>> = Vec::new();
    for at in slashes.take(MAX_FOLDERS) {
        paths.push(path[..at].to_vec());
        paths.push(path[..=at].to_vec());
    }
    if !path.ends_with(b"/") {
        paths.push(path.to_vec());
    }
    paths
}

/// The cookies of a header's value.
fn pairs(header: &[u8]) -> impl Iterator<Item = &[u8]> {
    header.split(|byte| *byte == b';').map(<[u8]>::trim_ascii).filter(|pair| !pair.is_empty())
}

/// The name of a cookie; empty for one without a name.
fn name_of(pair: &[u8]) -> &[u8] {
    let end = pair.iter().position(|byte| *byte == b'=');
    end.map_or(&[][..], |end| pair[..end].trim_ascii())
}

fn value_of<'c>(pair: &'c [u8], name: &[u8]) -> Option<&'c [u8]> {
    let (found, rest) = pair.split_at(pair.iter().position(|byte| *byte == b'=')?);
    (found.trim_ascii() == name).then(|| rest[1..].trim_ascii())
}

fn is_one_of(pair: &[u8], names: &CookieNames) -> bool {
    names.remove_from(std::iter::once(pair)) != EditedCookies::Unchanged
}
