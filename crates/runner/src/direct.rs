//! The direct carrier: the gateway's own proxy takes a request to its upstream. A small
//! plugin in the gateway reads the decision from a request header of the runner's rewrite
//! (`kube-coders-upstream.lua`).
//!
//! The header is as trustworthy as the gateway: the plugin there drops a client's own
//! header of that name, and answers with 503 if it can't read the decision.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use serde::{Deserialize, Serialize, Serializer};

use crate::cache::Cacheable;
use crate::carrier::{Carried, Carrier, CarrierError, CarrierFuture, Choice};
use crate::changes::Changes;
use crate::failure::RUNNER_FAILED;
use crate::upstream::{HostName, Scheme, Timeouts, Upstream};

/// The header that carries a decision from the runner to the gateway's plugin.
pub const DECISION_HEADER: &str = "x-kube-coders-upstream";

/// Checked when the program is compiled, and not in each call.
const DECISION_NAME: HeaderName = HeaderName::from_static(DECISION_HEADER);

/// The version of the decision's format.
const VERSION: u8 = 1;

/// How many addresses of a name go to the gateway, which tries them in turn.
const MAX_ADDRESSES: usize = 8;

/// How long a decision may be cached at most: what the gateway's plugin allows.
const MAX_CACHED: Duration = Duration::from_secs(10);

/// How many headers and how many cookies a cached decision may name.
const MAX_NAMES: usize = 32;

/// How long the header may be, in bytes: half of what nginx takes for all headers of a
/// request by default, and what the gateway's plugin reads at most.
const MAX_HEADER: usize = 16 * 1024;

/// What [`Resolve::resolve`] returns.
pub type ResolveFuture<'a> = Pin<Box<dyn Future<Output = Result<Arc<[IpAddr]>, CarrierError>> + Send + 'a>>;

/// Finds the addresses of a host.
pub trait Resolve: Send + Sync + 'static {
    /// The addresses, the preferred one first, at least one.
    ///
    /// # Errors
    ///
    /// The name does not exist or can't be resolved now.
    fn resolve<'a>(&'a self, host: &'a HostName) -> ResolveFuture<'a>;
}

/// Asks the operating system's resolver for each call. Use it for a plugin whose hosts are
/// addresses, or that has few calls.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve<'a>(&'a self, host: &'a HostName) -> ResolveFuture<'a> {
        Box::pin(async move {
            if let Some(address) = host.as_ip() {
                return Ok([address].into());
            }
            let found = tokio::net::lookup_host((host.as_str(), 0)).await;
            let found = found.map_err(|error| CarrierError::new("resolver-unavailable", error).expected())?;
            let addresses: Arc<[IpAddr]> = found.map(|address| address.ip()).collect();
            match addresses.is_empty() {
                true => Err(CarrierError::new("upstream-not-found", "the name has no address").expected()),
                false => Ok(addresses),
            }
        })
    }
}

/// Carries a choice to the gateway's own proxy.
///
/// ```
/// use std::sync::Arc;
///
/// use apisix_plugin_runner::Runner;
/// use apisix_plugin_runner::direct::{Direct, SystemResolver};
///
/// let runner = Runner::named("my-router", "1.0.0").carrier(Direct::new(Arc::new(SystemResolver)));
/// ```
pub struct Direct {
    resolver: Arc<dyn Resolve>,
    timeouts: DecidedTimeouts,
    accepts_any_certificate: bool,
}

impl Direct {
    /// A carrier that resolves names here, since the gateway takes addresses. It waits 6 s
    /// to connect and 300 s to send and to read, as far as a plugin says nothing else.
    #[must_use]
    pub fn new(resolver: Arc<dyn Resolve>) -> Self {
        let timeouts = DecidedTimeouts { connect: 6.0, send: 300.0, read: 300.0 };
        Self { resolver, timeouts, accepts_any_certificate: false }
    }

    /// Sets how long the gateway waits to connect, to send and to read, as far as a plugin
    /// says nothing else.
    #[must_use]
    pub fn timeouts(mut self, connect: Duration, send: Duration, read: Duration) -> Self {
        self.timeouts = DecidedTimeouts {
            connect: connect.as_secs_f64(),
            send: send.as_secs_f64(),
            read: read.as_secs_f64(),
        };
        self
    }

    /// Allows upstreams at `https://`, whose certificates the gateway does not check.
    #[must_use]
    pub fn accept_any_certificate(mut self) -> Self {
        self.accepts_any_certificate = true;
        self
    }

    /// The decision that sends a request with these changes to this upstream.
    async fn decision(&self, upstream: &Upstream, changes: &Changes) -> Result<String, CarrierError> {
        if upstream.scheme() == Scheme::Https && !self.accepts_any_certificate {
            let why = "an upstream at https:// in direct mode, where the gateway checks no certificate: \
                       go there in forward mode, or allow any certificate";
            return Err(CarrierError::new(RUNNER_FAILED, why));
        }
        let addresses = self.resolver.resolve(upstream.host()).await?;
        let Timeouts { connect, send, read } = upstream.timeouts();
        let seconds = |chosen: Option<Duration>, default| chosen.map_or(default, |time| time.as_secs_f64());
        let mut decision = EncodedDecision {
            v: VERSION,
            scheme: upstream.scheme().as_str(),
            host: upstream.host().as_str(),
            port: upstream.port(),
            addresses: &addresses[..addresses.len().min(MAX_ADDRESSES)],
            timeout: DecidedTimeouts {
                connect: seconds(connect, self.timeouts.connect),
                send: seconds(send, self.timeouts.send),
                read: seconds(read, self.timeouts.read),
            },
            cached: CachedChanges::of(changes),
        };
        let text = decision.to_header();
        if text.len() <= MAX_HEADER {
            return Ok(text);
        }
        // The changes can be long. A decision that is not cached costs only a call.
        decision.cached = None;
        Ok(decision.to_header())
    }
}

impl Carrier for Direct {
    fn carry<'a>(&'a self, choice: Choice<'a>) -> CarrierFuture<'a> {
        Box::pin(async move {
            let decision = self.decision(choice.upstream(), choice.changes).await?;
            Ok(Carried::new(DECISION_NAME, decision))
        })
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

/// The decision in the header.
#[derive(Serialize)]
struct EncodedDecision<'d> {
    v: u8,
    scheme: &'d str,
    host: &'d str,
    port: u16,
    addresses: &'d [IpAddr],
    timeout: DecidedTimeouts,
    #[serde(flatten)]
    cached: Option<CachedChanges<'d>>,
}

impl EncodedDecision<'_> {
    fn to_header(&self) -> String {
        let text = serde_json::to_string(self).expect("texts and numbers are JSON");
        // Readers disagree about bytes beyond ASCII in a header.
        if text.is_ascii() { text } else { escaped(&text) }
    }
}

/// In seconds.
#[derive(Clone, Copy, Serialize)]
struct DecidedTimeouts {
    connect: f64,
    send: f64,
    read: f64,
}

/// The changes that the gateway makes itself while it has a decision in its cache.
#[derive(Serialize)]
struct CachedChanges<'d> {
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

impl<'d> CachedChanges<'d> {
    /// `None` if the decision must not be cached, or changes something that the gateway
    /// can't change from its cache.
    fn of(changes: &'d Changes) -> Option<Self> {
        let Cacheable::For { time, keys } = &changes.cacheable else { return None };
        let has_others = changes.path.is_some()
            || changes.body.is_some()
            || !changes.args.is_empty()
            || !changes.response_headers.is_empty();
        if time.is_zero() || has_others || keys.iter().all(|key| key.headers().is_empty()) {
            return None;
        }
        let by: BTreeSet<_> = keys.iter().flat_map(|key| key.headers()).map(HeaderName::as_str).collect();
        let cookies: BTreeSet<_> = keys.iter().flat_map(|key| key.removed_cookies()).collect();
        let changes_cookies = || changes.headers.iter().any(|(name, _)| name.as_str() == "cookie");
        // With two plugins it is not known which of them changed the cookies.
        if !cookies.is_empty() && keys.len() > 1 && changes_cookies() {
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
        // The gateway's cache knows a header by one spelling of its name only.
        let is_plain = |name: &&str| {
            let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            is_name && *name != DECISION_HEADER
        };
        let names = by.iter().chain(set.keys()).chain(&remove);
        let are_few = [by.len(), set.len(), remove.len(), cookies.len()].iter().all(|len| *len <= MAX_NAMES);
        // The names of cookies and of headers are both tokens (RFC 6265, section 4.1.1).
        let are_cookies = cookies.iter().all(|name| HeaderName::try_from(*name).is_ok());
        let is_expressible = are_few && are_cookies && { names }.all(is_plain);
        is_expressible.then(|| Self { remember: (*time).min(MAX_CACHED), by, set, remove, cookies })
    }
}

/// Reads the upstream and its addresses from a decision's header, for people who look at
/// an answer.
#[must_use]
pub fn decided(header: &[u8]) -> Option<(Upstream, Vec<IpAddr>)> {
    #[derive(Deserialize)]
    struct Destination {
        scheme: String,
        host: String,
        port: u16,
        addresses: Vec<IpAddr>,
    }
    let Destination { scheme, host, port, addresses } = serde_json::from_slice(header).ok()?;
    let upstream = Upstream::new(scheme.parse().ok()?, host.parse().ok()?, port).ok()?;
    Some((upstream, addresses))
}

/// Reads from a decision's header for how many seconds it may be cached, and by which
/// headers, for people who look at an answer.
#[must_use]
pub fn cached(header: &[u8]) -> Option<(f64, Vec<String>)> {
    #[derive(Deserialize)]
    struct Cached {
        remember: f64,
        by: Vec<String>,
    }
    let Cached { remember, by } = serde_json::from_slice(header).ok()?;
    Some((remember, by))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::CacheKey;

    /// Knows addresses only.
    struct NoNames;

    impl Resolve for NoNames {
        fn resolve<'a>(&'a self, host: &'a HostName) -> ResolveFuture<'a> {
            let unknown = CarrierError::new("resolver-unavailable", "no name server answers").expected();
            Box::pin(async move { host.as_ip().map(|address| [address].into()).ok_or(unknown) })
        }
    }

    fn direct() -> Direct {
        let seconds = Duration::from_secs;
        Direct::new(Arc::new(NoNames)).timeouts(seconds(6), seconds(300), Duration::from_millis(1500))
    }

    fn name(name: &'static str) -> HeaderName {
        HeaderName::from_static(name)
    }

    fn key(headers: &[&'static str]) -> Arc<CacheKey> {
        Arc::new(CacheKey::new(headers.iter().copied().map(name)))
    }

    /// The decision for `http://[::1]:8443` with these changes.
    async fn decision(changes: &Changes) -> serde_json::Value {
        let upstream: Upstream = "http://[::1]:8443".parse().unwrap();
        let text = direct().decision(&upstream, changes).await.unwrap();
        assert!(text.is_ascii(), "{text}");
        serde_json::from_str(&text).unwrap()
    }

    fn repeatable(time: Duration, key: Arc<CacheKey>) -> Changes {
        let mut changes = Changes::new(10_000);
        changes.cacheable = Cacheable::default().and(Some((time, key)));
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
            Arc::new(
                CacheKey::new([name("x-userinfo"), name("host")]).removing_cookies(["session", "other"]),
            ),
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
        let with = |allowed: &[Option<(Duration, Arc<CacheKey>)>]| {
            let mut changes = Changes::new(10_000);
            for allowed in allowed {
                changes.cacheable = std::mem::take(&mut changes.cacheable).and(allowed.clone());
            }
            changes
        };
        let (one, other) = (Some((minute, key(&["x-one"]))), Some((second, key(&["x-other"]))));
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
                let cookies = CacheKey::new([name("x-userinfo")]).removing_cookies(["a b"]);
                changes.cacheable =
                    Cacheable::default().and(Some((Duration::from_secs(1), Arc::new(cookies))));
            }),
            ("somebody's cookies", |changes| {
                let cookies = CacheKey::new([name("x-userinfo")]).removing_cookies(["session"]);
                let so_far = std::mem::take(&mut changes.cacheable);
                changes.cacheable = so_far.and(Some((Duration::from_secs(1), Arc::new(cookies))));
                changes.header(name("cookie"), Some(b"fixed=1")).unwrap();
            }),
            ("basis", |changes| {
                changes.cacheable = Cacheable::default().and(Some((Duration::from_secs(1), key(&[]))));
            }),
            ("time", |changes| {
                changes.cacheable = Cacheable::default().and(Some((Duration::ZERO, key(&["x-a"]))));
            }),
            ("many", |changes| {
                for number in 0..=MAX_NAMES {
                    changes.header(format!("x-{number}").try_into().unwrap(), None).unwrap();
                }
            }),
        ];
        let can = |changes: &Changes| CachedChanges::of(changes).is_some();
        for (what, deed) in deeds {
            let mut changes = repeatable(Duration::from_secs(1), key(&["x-userinfo"]));
            assert!(can(&changes));
            deed(&mut changes);
            assert!(!can(&changes), "{what}");
        }
    }

    #[tokio::test]
    async fn cookies_of_nobody_s_list_are_a_header_like_others() {
        let mut changes = repeatable(Duration::from_secs(1), key(&["cookie"]));
        changes.header(name("cookie"), Some(b"a=1")).unwrap();
        assert_eq!(decision(&changes).await["set"], serde_json::json!({"cookie": "a=1"}));
    }

    #[tokio::test]
    async fn a_name_without_an_address_is_not_decided() {
        let unknown: Upstream = "http://nobody.test:1".parse().unwrap();
        let error = direct().decision(&unknown, &Changes::new(10)).await.unwrap_err();
        assert_eq!(
            (error.code(), error.to_string().as_str()),
            ("resolver-unavailable", "no name server answers")
        );
    }

    #[tokio::test]
    async fn what_is_too_long_to_be_repeated_is_decided_each_time() {
        for (times, may_repeat) in [(2000, true), (3000, false)] {
            let mut large = repeatable(Duration::from_secs(1), key(&["x-a"]));
            large.header(name("x-a"), Some("조".repeat(times).as_bytes())).unwrap();
            assert_eq!(decision(&large).await.get("remember").is_some(), may_repeat, "{times}");
        }
    }

    #[tokio::test]
    async fn an_upstream_within_tls_needs_the_word_that_any_certificate_is_accepted() {
        let upstream: Upstream = "https://127.0.0.1:8443".parse().unwrap();
        let error = direct().decision(&upstream, &Changes::new(10)).await.unwrap_err();
        assert_eq!(error.code(), RUNNER_FAILED);
        let decided = direct().accept_any_certificate().decision(&upstream, &Changes::new(10)).await;
        assert!(decided.unwrap().contains(r#""scheme":"https""#));
    }
}
