//! Direct mode: the gateway's own proxy takes a request to its upstream, which a
//! plugin of ours in the gateway reads from a header of the runner's rewrite
//! (`apisix-conf/plugins/kube-coders-upstream.lua`).
//!
//! The header is as good as the gateway: the plugin there drops what a client sent by
//! its name, and whatever it can't read is answered with 503.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};
use thiserror::Error;

use crate::changes::Changes;
use crate::headers::HeaderName;
use crate::refusal::Refusal;
use crate::resolver::{ResolveError, Resolver};
use crate::upstream::{Scheme, Timeouts, Upstream, UpstreamMode};

/// The header that carries a decision from the runner to the gateway's plugin.
pub(crate) const DECISION_HEADER: &str = "x-kube-coders-upstream";

/// The version of what stands in it.
const VERSION: u8 = 1;

/// How many addresses of a name go to the gateway, which tries them in turn.
const MAX_ADDRESSES: usize = 8;

/// How long a decision may be repeated at most: what the gateway's plugin allows.
const MAX_REMEMBERED: Duration = Duration::from_secs(10);

/// How many headers and cookies a decision that is repeated may name, each.
const MAX_NAMES: usize = 32;

/// How long the header may be, in bytes: half of what nginx takes for all headers of a
/// request by default, and what the gateway's plugin reads at most.
const MAX_HEADER: usize = 16 * 1024;

/// The request headers on which a plugin's decision rests, where
/// [`Request::repeat_for`](crate::Request::repeat_for) lets a gateway in direct mode
/// repeat it.
///
/// It must be complete: `host`, `origin` and `cookie` too, if the plugin looks at them. The
/// route, the scheme, the host that goes upstream and whether there is an `Upgrade` always
/// count. It is shared, so that it can be made once and not for each request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Basis {
    headers: BTreeSet<HeaderName>,
    removed_cookies: BTreeSet<Box<str>>,
}

impl Basis {
    /// A decision that rests on these request headers, the route and the scheme, and on
    /// nothing else.
    pub fn new(headers: impl IntoIterator<Item = HeaderName>) -> Self {
        Self { headers: headers.into_iter().collect(), removed_cookies: BTreeSet::new() }
    }

    /// The same for a plugin that takes cookies out of `Cookie`: whatever other cookies a
    /// request has, it loses those of these names, and their numbered chunks (`name2`,
    /// `name_2`). The gateway does that itself, and the text that the plugin set is not
    /// repeated.
    #[must_use]
    pub fn removing_cookies<'c>(mut self, names: impl IntoIterator<Item = &'c str>) -> Self {
        self.removed_cookies.extend(names.into_iter().map(Box::from));
        self
    }
}

/// What all plugins of a chain allow to be repeated: as much as the strictest of them.
#[derive(Debug, Default)]
pub(crate) enum Repeatable {
    /// No plugin was asked yet.
    #[default]
    Undecided,
    Never,
    For {
        time: Duration,
        basis: Vec<Arc<Basis>>,
    },
}

impl Repeatable {
    /// The same with what one plugin more allows.
    pub(crate) fn and(self, allowed: Option<(Duration, Arc<Basis>)>) -> Self {
        match (self, allowed) {
            (Self::Never, _) | (_, None) => Self::Never,
            (Self::Undecided, Some((time, basis))) => Self::For { time, basis: vec![basis] },
            (Self::For { time, mut basis }, Some((other, one_more))) => {
                basis.push(one_more);
                Self::For { time: time.min(other), basis }
            }
        }
    }
}

/// How requests get to their upstreams, by the runner's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ways {
    /// Where a plugin says nothing of it.
    pub(crate) mode: UpstreamMode,
    /// Whether workspaces may show any certificate, which is all that a gateway can do.
    pub(crate) trusts_anybody: bool,
}

impl Default for Ways {
    fn default() -> Self {
        Self { mode: UpstreamMode::Forward, trusts_anybody: false }
    }
}

impl Ways {
    /// How an upstream of this scheme is reached, for which a plugin chose this or
    /// nothing.
    pub(crate) fn way(self, scheme: Scheme, chosen: Option<UpstreamMode>) -> Result<UpstreamMode, Unchecked> {
        match chosen.unwrap_or(self.mode) {
            UpstreamMode::Direct if scheme == Scheme::Https && !self.trusts_anybody => Err(Unchecked),
            mode => Ok(mode),
        }
    }
}

/// Nobody would look at a workspace's certificate, and nobody said that nobody shall.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "https:// in direct mode, where the gateway checks no workspace's certificate: go there in forward mode, or start the runner with --workspace-ca none if nobody shall check it"
)]
pub(crate) struct Unchecked;

/// Why a request can't go to its upstream directly.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum DirectError {
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error(transparent)]
    Unchecked(#[from] Unchecked),
}

impl DirectError {
    /// What the client is told.
    pub(crate) fn refusal(self) -> Refusal {
        match self {
            Self::Resolve(ResolveError::NotFound) => Refusal::WorkspaceNotFound,
            Self::Resolve(ResolveError::Unavailable) => Refusal::ResolverUnavailable,
            Self::Unchecked(_) => Refusal::RunnerFailed,
        }
    }
}

/// Makes decisions for the gateway's plugin.
pub(crate) struct Direct {
    pub(crate) ways: Ways,
    pub(crate) resolver: Arc<Resolver>,
    /// What is waited where a plugin chose nothing.
    pub(crate) connect: Duration,
    pub(crate) send: Duration,
    pub(crate) read: Duration,
}

impl Direct {
    /// The decision that sends a request with these changes to this upstream.
    pub(crate) async fn decision(
        &self,
        upstream: &Upstream,
        changes: &Changes,
    ) -> Result<String, DirectError> {
        let addresses = self.resolver.resolve(upstream.host()).await?;
        let Timeouts { connect, send, read } = upstream.timeouts();
        let mut decision = Decision {
            v: VERSION,
            scheme: upstream.scheme().as_str(),
            host: upstream.host().as_str(),
            port: upstream.port(),
            addresses: &addresses[..addresses.len().min(MAX_ADDRESSES)],
            timeout: DecidedTimeouts {
                connect: connect.unwrap_or(self.connect).as_secs_f64(),
                send: send.unwrap_or(self.send).as_secs_f64(),
                read: read.unwrap_or(self.read).as_secs_f64(),
            },
            repeat: Repeat::of(changes),
        };
        let text = decision.to_header();
        if text.len() <= MAX_HEADER {
            return Ok(text);
        }
        // What is to be repeated can be long. To be asked again costs only a call.
        decision.repeat = None;
        Ok(decision.to_header())
    }
}

/// JSON with every character beyond ASCII as an escape, in UTF-16 (RFC 8259, section 7).
fn escaped(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len() * 2);
    for character in json.chars() {
        if character.is_ascii() {
            escaped.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(escaped, "\\u{unit:04x}").expect("a string takes whatever is written");
            }
        }
    }
    escaped
}

/// A decision as it stands in the header.
#[derive(Serialize)]
struct Decision<'d> {
    v: u8,
    scheme: &'d str,
    host: &'d str,
    port: u16,
    addresses: &'d [IpAddr],
    timeout: DecidedTimeouts,
    #[serde(flatten)]
    repeat: Option<Repeat<'d>>,
}

impl Decision<'_> {
    fn to_header(&self) -> String {
        let text = serde_json::to_string(self).expect("texts and numbers are JSON");
        // Other bytes than ASCII in a header are read in many ways.
        if text.is_ascii() { text } else { escaped(&text) }
    }
}

/// In seconds.
#[derive(Serialize)]
struct DecidedTimeouts {
    connect: f64,
    send: f64,
    read: f64,
}

/// What the gateway does where it repeats a decision.
#[derive(Serialize)]
struct Repeat<'d> {
    #[serde(serialize_with = "seconds")]
    remember: Duration,
    by: BTreeSet<&'d str>,
    set: BTreeMap<&'d str, &'d str>,
    remove: BTreeSet<&'d str>,
    cookies: BTreeSet<&'d str>,
}

fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

impl<'d> Repeat<'d> {
    /// `None` where the decision may not be repeated, or what it changes can't be.
    fn of(changes: &'d Changes) -> Option<Self> {
        let Repeatable::For { time, basis } = &changes.repeatable else { return None };
        let has_others = changes.path.is_some()
            || changes.body.is_some()
            || !changes.args.is_empty()
            || !changes.response_headers.is_empty();
        if time.is_zero() || has_others || basis.iter().all(|basis| basis.headers.is_empty()) {
            return None;
        }
        let by: BTreeSet<_> = basis.iter().flat_map(|basis| &basis.headers).map(HeaderName::as_str).collect();
        let cookies: BTreeSet<_> =
            basis.iter().flat_map(|basis| &basis.removed_cookies).map(|name| &**name).collect();
        let changes_cookies = || changes.headers.iter().any(|(name, _)| name.as_str() == "cookie");
        // Of two plugins nobody knows which one has set them.
        if !cookies.is_empty() && basis.len() > 1 && changes_cookies() {
            return None;
        }
        let (mut set, mut remove) = (BTreeMap::new(), BTreeSet::new());
        let is_fixed = |name: &str| name != "cookie" || cookies.is_empty();
        for (name, value) in changes.headers.iter().filter(|(name, _)| is_fixed(name.as_str())) {
            match value {
                Some(value) => drop(set.insert(name.as_str(), str::from_utf8(value).ok()?)),
                None => drop(remove.insert(name.as_str())),
            }
        }
        // A name that the gateway would have to spell in another way is none for its memory.
        let is_plain = |name: &&str| {
            let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            is_name && *name != DECISION_HEADER
        };
        let names = by.iter().chain(set.keys()).chain(&remove);
        let are_few = [by.len(), set.len(), remove.len(), cookies.len()].iter().all(|len| *len <= MAX_NAMES);
        let are_cookies = cookies.iter().all(|name| is_cookie_name(name));
        let can_be_said = are_few && are_cookies && { names }.all(is_plain);
        can_be_said.then(|| Self { remember: (*time).min(MAX_REMEMBERED), by, set, remove, cookies })
    }
}

/// Whether a text is a token, as the names of cookies are (RFC 6265, section 4.1.1).
pub(crate) fn is_cookie_name(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_allowed)
}

/// Where a decision leads, for people who look.
pub(crate) fn decided(header: &[u8]) -> Option<(Upstream, Vec<IpAddr>)> {
    #[derive(Deserialize)]
    struct Where {
        scheme: String,
        host: String,
        port: u16,
        addresses: Vec<IpAddr>,
    }
    let Where { scheme, host, port, addresses } = serde_json::from_slice(header).ok()?;
    let upstream = Upstream::new(scheme.parse().ok()?, host.parse().ok()?, port).ok()?;
    Some((upstream, addresses))
}

/// For how many seconds a decision may be repeated, and by which headers, for people
/// who look.
pub(crate) fn repeatable(header: &[u8]) -> Option<(f64, Vec<String>)> {
    #[derive(Deserialize)]
    struct How {
        remember: f64,
        by: Vec<String>,
    }
    let How { remember, by } = serde_json::from_slice(header).ok()?;
    Some((remember, by))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolver::NameServers;

    fn direct() -> Direct {
        let servers = NameServers::Listed(vec!["127.0.0.1:1".parse().unwrap()]);
        Direct {
            resolver: Arc::new(Resolver::new(&servers).unwrap()),
            connect: Duration::from_secs(6),
            send: Duration::from_secs(300),
            read: Duration::from_millis(1500),
            ways: Ways::default(),
        }
    }

    fn name(name: &'static str) -> HeaderName {
        HeaderName::from_static(name)
    }

    fn basis(headers: &[&'static str]) -> Arc<Basis> {
        Arc::new(Basis::new(headers.iter().copied().map(name)))
    }

    /// The decision for `http://[::1]:8443` with these changes.
    async fn decision(changes: &Changes) -> serde_json::Value {
        let upstream: Upstream = "http://[::1]:8443".parse().unwrap();
        let text = direct().decision(&upstream, changes).await.unwrap();
        assert!(text.is_ascii(), "{text}");
        serde_json::from_str(&text).unwrap()
    }

    fn repeatable(time: Duration, basis: Arc<Basis>) -> Changes {
        let mut changes = Changes::new(10_000);
        changes.repeatable = Repeatable::default().and(Some((time, basis)));
        changes
    }

    #[tokio::test]
    async fn a_decision_says_where_and_how_long_to_wait() {
        let upstream: Upstream = "http://127.0.0.1:8443".parse().unwrap();
        let upstream = upstream.connect_timeout(Duration::from_millis(250)).unwrap();
        let text =
            direct().decision(&upstream.for_subject("alice").unwrap(), &Changes::new(10)).await.unwrap();
        let expected = r#"{"v":1,"scheme":"http","host":"127.0.0.1","port":8443,"addresses":["127.0.0.1"],"timeout":{"connect":0.25,"send":300.0,"read":1.5}}"#;
        assert_eq!(text, expected, "the subject is nobody's business there");
        let (decided, addresses) = decided(text.as_bytes()).unwrap();
        assert_eq!(
            (decided.to_string(), addresses),
            ("http://127.0.0.1:8443".to_owned(), vec!["127.0.0.1".parse().unwrap()])
        );
    }

    #[tokio::test]
    async fn what_may_be_repeated_has_all_its_changes() {
        let mut changes = repeatable(
            Duration::from_secs(60),
            Arc::new(Basis::new([name("x-userinfo"), name("host")]).removing_cookies(["session", "other"])),
        );
        changes.header(name("x-forwarded-user"), Some("조\u{1f600}".as_bytes())).unwrap();
        changes.header(name("x-access-token"), None).unwrap();
        changes.header(name("cookie"), Some(b"a=1")).unwrap();
        let decision = decision(&changes).await;
        assert_eq!(decision["remember"], 10.0, "at most");
        assert_eq!(decision["by"], serde_json::json!(["host", "x-userinfo"]));
        assert_eq!(decision["set"], serde_json::json!({"x-forwarded-user": "조\u{1f600}"}));
        assert_eq!(decision["remove"], serde_json::json!(["x-access-token"]));
        assert_eq!(decision["cookies"], serde_json::json!(["other", "session"]));
    }

    #[tokio::test]
    async fn the_strictest_plugin_counts() {
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        let with = |allowed: &[Option<(Duration, Arc<Basis>)>]| {
            let mut changes = Changes::new(10_000);
            for allowed in allowed {
                changes.repeatable = std::mem::take(&mut changes.repeatable).and(allowed.clone());
            }
            changes
        };
        let (one, other) = (Some((minute, basis(&["x-one"]))), Some((second, basis(&["x-other"]))));
        let both = decision(&with(&[one.clone(), other])).await;
        assert_eq!((&both["remember"], &both["by"]), (&1.0.into(), &serde_json::json!(["x-one", "x-other"])));
        for chain in [&[one.clone(), None][..], &[None, one], &[None, None], &[]] {
            assert!(decision(&with(chain)).await.get("remember").is_none(), "{chain:?}");
        }
    }

    #[tokio::test]
    async fn what_a_gateway_could_not_repeat_it_may_not() {
        type Deed = fn(&mut Changes);
        let deeds: [(&str, Deed); 12] = [
            ("path", |changes| changes.path = Some(b"/".to_vec())),
            ("body", |changes| changes.body = Some(b"x".to_vec())),
            ("argument", |changes| changes.arg(b"x", None).unwrap()),
            ("response", |changes| changes.response_headers.push((name("x-a"), b"1".to_vec()))),
            ("bytes", |changes| changes.header(name("x-a"), Some(b"\xff")).unwrap()),
            ("name", |changes| changes.header(name("x_a"), None).unwrap()),
            ("decision", |changes| changes.header(name(DECISION_HEADER), Some(b"{}")).unwrap()),
            ("cookie's name", |changes| {
                let cookies = Basis::new([name("x-userinfo")]).removing_cookies(["a b"]);
                changes.repeatable =
                    Repeatable::default().and(Some((Duration::from_secs(1), Arc::new(cookies))));
            }),
            ("somebody's cookies", |changes| {
                let cookies = Basis::new([name("x-userinfo")]).removing_cookies(["session"]);
                let so_far = std::mem::take(&mut changes.repeatable);
                changes.repeatable = so_far.and(Some((Duration::from_secs(1), Arc::new(cookies))));
                changes.header(name("cookie"), Some(b"fixed=1")).unwrap();
            }),
            ("basis", |changes| {
                changes.repeatable = Repeatable::default().and(Some((Duration::from_secs(1), basis(&[]))));
            }),
            ("time", |changes| {
                changes.repeatable = Repeatable::default().and(Some((Duration::ZERO, basis(&["x-a"]))));
            }),
            ("many", |changes| {
                for number in 0..=MAX_NAMES {
                    changes.header(format!("x-{number}").try_into().unwrap(), None).unwrap();
                }
            }),
        ];
        let can = |changes: &Changes| Repeat::of(changes).is_some();
        for (what, deed) in deeds {
            let mut changes = repeatable(Duration::from_secs(1), basis(&["x-userinfo"]));
            assert!(can(&changes));
            deed(&mut changes);
            assert!(!can(&changes), "{what}");
        }
    }

    #[tokio::test]
    async fn cookies_of_nobody_s_list_are_a_header_like_others() {
        let mut changes = repeatable(Duration::from_secs(1), basis(&["cookie"]));
        changes.header(name("cookie"), Some(b"a=1")).unwrap();
        assert_eq!(decision(&changes).await["set"], serde_json::json!({"cookie": "a=1"}));
    }

    #[tokio::test]
    async fn where_nobody_can_be_sent_nothing_is_decided() {
        let unknown: Upstream = "http://nobody.test:1".parse().unwrap();
        let unavailable = Err(DirectError::Resolve(ResolveError::Unavailable));
        assert_eq!(direct().decision(&unknown, &Changes::new(10)).await, unavailable);
    }

    #[tokio::test]
    async fn what_is_too_long_to_be_repeated_is_decided_each_time() {
        for (times, may_repeat) in [(2000, true), (3000, false)] {
            let mut large = repeatable(Duration::from_secs(1), basis(&["x-a"]));
            large.header(name("x-a"), Some("조".repeat(times).as_bytes())).unwrap();
            assert_eq!(decision(&large).await.get("remember").is_some(), may_repeat, "{times}");
        }
    }

    #[test]
    fn a_certificate_that_nobody_checks_is_asked_for_by_word_alone() {
        use UpstreamMode::{Direct, Forward};
        for trusts_anybody in [false, true] {
            for mode in [Forward, Direct] {
                let ways = Ways { mode, trusts_anybody };
                for chosen in [None, Some(Forward), Some(Direct)] {
                    let way = chosen.unwrap_or(mode);
                    assert_eq!(ways.way(Scheme::Http, chosen), Ok(way));
                    let is_closed = way == Direct && !trusts_anybody;
                    let expected = if is_closed { Err(Unchecked) } else { Ok(way) };
                    assert_eq!(ways.way(Scheme::Https, chosen), expected);
                }
            }
        }
    }
}
