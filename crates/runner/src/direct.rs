//! The direct carrier: the gateway's own proxy takes a request to its upstream. A small
//! plugin in the gateway reads the decision from a request header of the runner's rewrite
//! (`kube-coders-upstream.lua`).
//!
//! The header is as trustworthy as the gateway: the plugin there drops a client's own
//! header of that name, and answers with 503 if it can't read the decision.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use serde::{Deserialize, Serialize, Serializer};
use tracing::debug;

use crate::cache::{CacheKey, Cacheable, KeyParts, MAX_NAMES, is_plain};
use crate::carrier::{Carried, Carrier, CarrierError, CarrierFuture, Choice};
use crate::changes::COOKIE;
use crate::cookies::CookieNames;
use crate::failure::RUNNER_FAILED;
use crate::upstream::{HostName, Scheme, Timeouts, Upstream, clamped_timeout};

/// The header that carries a decision from the runner to the gateway's plugin.
pub const DECISION_HEADER: &str = "x-kube-coders-upstream";

/// Checked when the program is compiled, and not in each call.
const DECISION_NAME: HeaderName = HeaderName::from_static(DECISION_HEADER);

/// The version of the decision's format.
const VERSION: u8 = 1;

/// How many addresses of a name go to the gateway, which tries them in turn.
const MAX_ADDRESSES: usize = 8;

/// The longest time for which a decision may be cached: what the gateway's plugin allows.
const MAX_CACHED: Duration = Duration::from_secs(10);

/// How many cookies a cached decision may name.
const MAX_COOKIES: usize = 128;

/// How long the header may be, in bytes: half of what nginx takes for all headers of a
/// request by default, and what the gateway's plugin reads at most.
const MAX_HEADER: usize = 16 * 1024;

/// What [`Resolve::resolve`] returns.
///
/// ```
/// use apisix_plugin_runner::HostName;
/// use apisix_plugin_runner::direct::{Resolve, ResolveFuture, SystemResolver};
///
/// /// Looks every name up in one zone.
/// struct InZone(&'static str);
///
/// impl Resolve for InZone {
///     fn resolve<'a>(&'a self, host: &'a HostName) -> ResolveFuture<'a> {
///         Box::pin(async move {
///             let name = format!("{host}.{}", self.0).parse().unwrap_or_else(|_| host.clone());
///             SystemResolver.resolve(&name).await
///         })
///     }
/// }
/// ```
pub type ResolveFuture<'a> = Pin<Box<dyn Future<Output = Result<Arc<[IpAddr]>, CarrierError>> + Send + 'a>>;

/// Finds the addresses of a host.
///
/// ```
/// use std::collections::HashMap;
/// use std::net::IpAddr;
/// use std::sync::Arc;
///
/// use apisix_plugin_runner::direct::{Resolve, ResolveFuture};
/// use apisix_plugin_runner::{CarrierError, HostName};
///
/// /// Knows its hosts from a table.
/// struct Table(HashMap<HostName, IpAddr>);
///
/// impl Resolve for Table {
///     fn resolve<'a>(&'a self, host: &'a HostName) -> ResolveFuture<'a> {
///         let not_found = || CarrierError::new("upstream-not-found", "not in the table").expected();
///         let found = self.0.get(host).map(|address| Arc::from([*address])).ok_or_else(not_found);
///         Box::pin(async { found })
///     }
/// }
/// ```
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
///
/// Every failed look-up has the code `resolver-unavailable`, also for a name that does not exist:
/// the standard library does not report why the system's resolver failed.
///
/// ```
/// use apisix_plugin_runner::direct::{Resolve, SystemResolver};
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let addresses = SystemResolver.resolve(&"127.0.0.1".parse()?).await?;
/// assert_eq!(&*addresses, [std::net::Ipv4Addr::LOCALHOST]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
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
    /// A carrier that resolves names here, because the gateway takes addresses. The gateway
    /// waits 6 s to connect and 300 s to send and to read, unless a plugin sets another time.
    #[must_use]
    pub fn new(resolver: Arc<dyn Resolve>) -> Self {
        let timeouts = DecidedTimeouts { connect: 6.0, send: 300.0, read: 300.0 };
        Self { resolver, timeouts, accepts_any_certificate: false }
    }

    /// Sets how long the gateway waits to connect, to send and to read, unless a plugin sets
    /// another time. A time that is shorter than a millisecond, or longer than a day, is set
    /// to that.
    #[must_use]
    pub fn timeouts(mut self, connect: Duration, send: Duration, read: Duration) -> Self {
        let seconds = |time| clamped_timeout(time).as_secs_f64();
        self.timeouts =
            DecidedTimeouts { connect: seconds(connect), send: seconds(send), read: seconds(read) };
        self
    }

    /// Allows upstreams at `https://`, whose certificates the gateway does not check.
    #[must_use]
    pub fn accept_any_certificate(mut self) -> Self {
        self.accepts_any_certificate = true;
        self
    }

    /// The decision that sends a request to the upstream of this choice.
    async fn decision(&self, choice: Choice<'_>) -> Result<String, CarrierError> {
        let upstream = choice.upstream();
        if upstream.scheme() == Scheme::Https && !self.accepts_any_certificate {
            let why = "an upstream at https:// in direct mode, where the gateway checks no certificate: \
                       go there in forward mode, or allow any certificate";
            return Err(CarrierError::new(RUNNER_FAILED, why));
        }
        let addresses = self.resolver.resolve(upstream.host()).await?;
        if addresses.is_empty() {
            return Err(CarrierError::new(RUNNER_FAILED, "the resolver gave no address and no error"));
        }
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
            removed_cookies: choice.removed_cookies().collect(),
            cache: CachedDecision::of(choice),
        };
        let text = decision.to_header();
        if text.len() <= MAX_HEADER {
            return Ok(text);
        }
        // The changes can be long. A decision that is not cached costs only a call.
        debug!(bytes = text.len(), most = MAX_HEADER, "decision not cached: its header would be too long");
        decision.cache = None;
        Ok(decision.to_header())
    }
}

impl Carrier for Direct {
    fn carry<'a>(&'a self, choice: Choice<'a>) -> CarrierFuture<'a> {
        Box::pin(async move { Ok(Carried::new(DECISION_NAME, self.decision(choice).await?)) })
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
    /// The cookies that no upstream may see, nor set.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    removed_cookies: BTreeSet<&'d str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<CachedDecision<'d>>,
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

/// What lets the gateway use a decision for other requests: the cache key, its digest for
/// this request, and the changes, which the gateway then makes itself.
#[derive(Serialize)]
struct CachedDecision<'d> {
    #[serde(serialize_with = "seconds")]
    seconds: Duration,
    #[serde(serialize_with = "names")]
    headers: &'d [HeaderName],
    #[serde(serialize_with = "names")]
    presence: &'d [HeaderName],
    navigation: bool,
    /// [`KeyParts::digest`] in hexadecimal digits.
    digest: Hex,
    set: BTreeMap<&'d str, &'d str>,
    remove: BTreeSet<&'d str>,
    cookies: BTreeSet<&'d str>,
}

fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

fn names<S: Serializer>(names: &&[HeaderName], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(names.iter().map(HeaderName::as_str))
}

struct Hex([u8; 32]);

impl fmt::Display for Hex {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'d> CachedDecision<'d> {
    /// `None` if the decision must not be cached, or the gateway can't make its changes
    /// itself.
    fn of(choice: Choice<'d>) -> Option<Self> {
        let Cacheable::For { time, key } = &choice.changes.cacheable else { return None };
        // The author of one plugin can't know what the whole chain changes.
        Self::with(choice, *time, key)
            .inspect_err(|reason| debug!(reason, "decision not cached: the gateway can't make its changes"))
            .ok()
    }

    fn with(choice: Choice<'d>, time: Duration, key: &'d CacheKey) -> Result<Self, &'static str> {
        let changes = choice.changes;
        let has_others = changes.path.is_some()
            || changes.body.is_some()
            || !changes.args.is_empty()
            || !changes.response_headers.is_empty();
        if has_others {
            return Err("something else than headers, cookies and the upstream is changed");
        }
        if time.is_zero() {
            return Err("the time is zero");
        }
        // A `Cookie` header that a plugin set does not depend on the request's cookies.
        let removed = if changes.sets_cookie { &[][..] } else { &changes.removed_cookies };
        let cookies: BTreeSet<_> = removed.iter().flat_map(CookieNames::iter).collect();
        let (mut set, mut remove) = (BTreeMap::new(), BTreeSet::new());
        for (name, value) in &changes.headers {
            if !is_plain(name) || name.as_str() == DECISION_HEADER {
                return Err(
                    "a header is changed whose name has other characters than letters, digits and `-`",
                );
            }
            match value {
                _ if *name == COOKIE && !cookies.is_empty() => {}
                Some(value) => {
                    let text = str::from_utf8(value).map_err(|_| "a value is not UTF-8")?;
                    set.insert(name.as_str(), text);
                }
                None => {
                    remove.insert(name.as_str());
                }
            }
        }
        let KeyParts { values, presence, has_navigation } = key.parts();
        if [values.len(), presence.len(), set.len(), remove.len()].iter().any(|len| *len > MAX_NAMES) {
            return Err("more than 32 headers are in the key, set, or removed");
        }
        if cookies.len() > MAX_COOKIES {
            return Err("more than 128 cookies are removed");
        }
        Ok(Self {
            seconds: time.min(MAX_CACHED),
            headers: values,
            presence,
            navigation: *has_navigation,
            digest: Hex(key.parts().digest(choice.method, choice.headers)),
            set,
            remove,
            cookies,
        })
    }
}

/// Reads the upstream and its addresses from a decision's header, for people who look at
/// an answer.
///
/// ```
/// use apisix_plugin_runner::direct::decode_destination;
///
/// let header = br#"{"v": 1, "scheme": "http", "host": "code-alice", "port": 8443, "addresses": ["10.0.0.7"]}"#;
/// let (upstream, addresses) = decode_destination(header).expect("a decision");
/// assert_eq!((&*upstream.to_string(), addresses.len()), ("http://code-alice:8443", 1));
/// ```
#[must_use]
pub fn decode_destination(header: &[u8]) -> Option<(Upstream, Vec<IpAddr>)> {
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

/// Reads from a decision's header for how long it may be cached, and by which key, for
/// people who look at an answer. `None` if it may not be cached.
///
/// ```
/// use std::time::Duration;
///
/// use apisix_plugin_runner::direct::decode_cache;
///
/// let header = format!(
///     r#"{{"v": 1, "cache": {{"seconds": 5.0, "headers": ["x-team"], "presence": [], "navigation": false,
///         "digest": "{:064x}", "set": {{}}, "remove": [], "cookies": []}}}}"#,
///     0,
/// );
/// let (time, key) = decode_cache(header.as_bytes()).unwrap();
/// assert_eq!((time, key.to_string().as_str()), (Duration::from_secs(5), "x-team"));
/// ```
#[must_use]
pub fn decode_cache(header: &[u8]) -> Option<(Duration, CacheKey)> {
    cacheable(header).map(|decision| (decision.time, decision.key))
}

/// What a gateway keeps of a decision.
pub(crate) struct CacheableDecision {
    pub(crate) time: Duration,
    pub(crate) key: CacheKey,
    pub(crate) digest: [u8; 32],
    pub(crate) set: BTreeMap<String, String>,
    pub(crate) remove: BTreeSet<String>,
    pub(crate) cookies: CookieNames,
}

/// Reads what a gateway keeps of a decision, if it may be cached.
pub(crate) fn cacheable(header: &[u8]) -> Option<CacheableDecision> {
    #[derive(Deserialize)]
    struct Decision {
        cache: Fields,
    }
    #[derive(Deserialize)]
    struct Fields {
        seconds: f64,
        headers: Vec<String>,
        presence: Vec<String>,
        navigation: bool,
        digest: String,
        set: BTreeMap<String, String>,
        remove: BTreeSet<String>,
        cookies: CookieNames,
    }
    let names = |names: Vec<String>| -> Option<Vec<HeaderName>> {
        names.into_iter().map(|name| HeaderName::try_from(name).ok()).collect()
    };
    let Decision { cache } = serde_json::from_slice(header).ok()?;
    let key = CacheKey::new(names(cache.headers)?).and_presence(names(cache.presence)?);
    Some(CacheableDecision {
        time: Duration::try_from_secs_f64(cache.seconds).ok()?,
        key: if cache.navigation { key.and_navigation() } else { key },
        digest: from_hex(&cache.digest)?,
        set: cache.set,
        remove: cache.remove,
        cookies: cache.cookies,
    })
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 2 * bytes.len() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::changes::Changes;
    use crate::headers::Headers;

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

    fn key(headers: &[&'static str]) -> CacheKey {
        CacheKey::new(headers.iter().copied().map(name))
    }

    /// The decision for an upstream, with these changes of a request that has one header.
    async fn decided_text(
        direct: &Direct,
        upstream: &Upstream,
        changes: &Changes,
    ) -> Result<String, CarrierError> {
        let headers = Headers::new(vec![(b"x-userinfo", b"alice")]);
        direct.decision(Choice::for_test(upstream, changes, &headers)).await
    }

    /// The decision for `http://[::1]:8443` with these changes.
    async fn decision(changes: &Changes) -> serde_json::Value {
        let upstream: Upstream = "http://[::1]:8443".parse().unwrap();
        let text = decided_text(&direct(), &upstream, changes).await.unwrap();
        assert!(text.is_ascii(), "{text}");
        serde_json::from_str(&text).unwrap()
    }

    fn cacheable(time: Duration, key: CacheKey) -> Changes {
        let mut changes = Changes::new(10_000);
        changes.cacheable = Cacheable::default().and(Some((time, key)));
        changes
    }

    #[tokio::test]
    async fn a_decision_says_where_and_how_long_to_wait() {
        let upstream: Upstream = "http://127.0.0.1:8443".parse().unwrap();
        let upstream = upstream.connect_timeout(Duration::from_millis(250)).unwrap();
        let upstream = upstream.for_subject("alice").unwrap();
        let text = decided_text(&direct(), &upstream, &Changes::new(10)).await.unwrap();
        let expected = r#"{"v":1,"scheme":"http","host":"127.0.0.1","port":8443,"addresses":["127.0.0.1"],"timeout":{"connect":0.25,"send":300.0,"read":1.5}}"#;
        assert_eq!(text, expected, "the subject is not in a decision");
        let (decided, addresses) = decode_destination(text.as_bytes()).unwrap();
        assert_eq!(
            (decided.to_string(), addresses),
            ("http://127.0.0.1:8443".to_owned(), vec!["127.0.0.1".parse().unwrap()])
        );
    }

    #[tokio::test]
    async fn a_cached_decision_has_its_key_and_all_its_changes() {
        let key = CacheKey::new([name("x-userinfo"), name("host")])
            .and_presence([name("x-access-token")])
            .and_navigation();
        let mut changes = cacheable(Duration::from_secs(60), key.clone());
        let cookies: CookieNames = serde_json::from_str(r#"["session", "other"]"#).unwrap();
        changes.remove_cookies(&cookies).unwrap();
        changes.header(name("x-forwarded-user"), Some("조\u{1f600}".as_bytes())).unwrap();
        changes.header(name("x-access-token"), None).unwrap();
        let decision = decision(&changes).await;
        // The text that is digested: `1;2;1;other;4:host0;10:x-userinfo1;5:alice14:x-access-token-`.
        let expected = json!({
            "seconds": 10.0,
            "headers": ["host", "x-userinfo"],
            "presence": ["x-access-token"],
            "navigation": true,
            "digest": "9a00f09a10acec39c86937da1e332bc6278232ea468306eb146132947138efa1",
            "set": {"x-forwarded-user": "조\u{1f600}"},
            "remove": ["x-access-token"],
            "cookies": ["other", "session"],
        });
        assert_eq!(decision["cache"], expected);
        let (time, read) = decode_cache(decision.to_string().as_bytes()).unwrap();
        assert_eq!((time, read), (Duration::from_secs(10), key));
    }

    #[tokio::test]
    async fn the_strictest_plugin_counts() {
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        let with = |allowed: &[Option<(Duration, CacheKey)>]| {
            let mut changes = Changes::new(10_000);
            for allowed in allowed {
                changes.cacheable = std::mem::take(&mut changes.cacheable).and(allowed.clone());
            }
            changes
        };
        let (one, other) = (Some((minute, key(&["x-one"]))), Some((second, key(&["x-other"]))));
        let both = decision(&with(&[one.clone(), other])).await;
        let cache = &both["cache"];
        assert_eq!((&cache["seconds"], &cache["headers"]), (&json!(1.0), &json!(["x-one", "x-other"])));
        for chain in [&[one.clone(), None][..], &[None, one], &[None, None], &[]] {
            assert!(decision(&with(chain)).await.get("cache").is_none(), "{chain:?}");
        }
    }

    #[tokio::test]
    async fn a_change_that_the_gateway_can_not_repeat_is_not_cached() {
        type Deed = fn(&mut Changes);
        let deeds: [(&str, Deed); 9] = [
            ("path", |changes| changes.path = Some(b"/".to_vec())),
            ("body", |changes| changes.body = Some(b"x".to_vec())),
            ("argument", |changes| changes.arg(b"x", None).unwrap()),
            ("response", |changes| changes.response_headers.push((name("x-a"), b"1".to_vec()))),
            ("bytes", |changes| changes.header(name("x-a"), Some(b"\xff")).unwrap()),
            ("name", |changes| changes.header(name("x_a"), None).unwrap()),
            ("decision", |changes| changes.header(name(DECISION_HEADER), Some(b"{}")).unwrap()),
            ("time", |changes| {
                changes.cacheable = Cacheable::default().and(Some((Duration::ZERO, key(&["x-a"]))));
            }),
            ("many", |changes| {
                for number in 0..=MAX_NAMES {
                    changes.header(format!("x-{number}").try_into().unwrap(), None).unwrap();
                }
            }),
        ];
        for (what, deed) in deeds {
            let mut changes = cacheable(Duration::from_secs(1), key(&["x-userinfo"]));
            assert!(decision(&changes).await.get("cache").is_some());
            deed(&mut changes);
            assert!(decision(&changes).await.get("cache").is_none(), "{what}");
        }
    }

    #[tokio::test]
    async fn a_cookie_header_that_a_plugin_set_is_a_header_like_others() {
        let mut changes = cacheable(Duration::from_secs(1), key(&["x-a"]));
        changes.header(name("cookie"), Some(b"a=1; session=x")).unwrap();
        changes.remove_cookies(&CookieNames::default()).unwrap();
        changes.finish([&b"b=2; session=y"[..]].into_iter());
        let cache = &decision(&changes).await["cache"];
        assert_eq!((&cache["set"], &cache["cookies"]), (&json!({"cookie": "a=1"}), &json!([])));
    }

    #[tokio::test]
    async fn a_name_without_an_address_is_not_decided() {
        let unknown: Upstream = "http://absent.test:1".parse().unwrap();
        let error = decided_text(&direct(), &unknown, &Changes::new(10)).await.unwrap_err();
        assert_eq!(
            (error.code(), error.to_string().as_str()),
            ("resolver-unavailable", "no name server answers")
        );
    }

    #[tokio::test]
    async fn a_decision_that_is_too_long_to_be_cached_is_made_each_time() {
        for (times, is_cached) in [(2000, true), (3000, false)] {
            let mut large = cacheable(Duration::from_secs(1), key(&["x-a"]));
            large.header(name("x-a"), Some("조".repeat(times).as_bytes())).unwrap();
            assert_eq!(decision(&large).await.get("cache").is_some(), is_cached, "{times}");
        }
    }

    #[tokio::test]
    async fn an_upstream_within_tls_needs_the_word_that_any_certificate_is_accepted() {
        let upstream: Upstream = "https://127.0.0.1:8443".parse().unwrap();
        let error = decided_text(&direct(), &upstream, &Changes::new(10)).await.unwrap_err();
        assert_eq!(error.code(), RUNNER_FAILED);
        let direct = direct().accept_any_certificate();
        let decided = decided_text(&direct, &upstream, &Changes::new(10)).await;
        assert!(decided.unwrap().contains(r#""scheme":"https""#));
    }
}
