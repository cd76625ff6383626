//! The cache of the gateway's plugin `kube-coders-upstream`, as the stand-in has it.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use apisix_ext_plugin::gateway_side::Rewrite;
use tokio::time::Instant;

use super::exchange::ClientRequest;
use super::outcome::Route;
use crate::cache::CacheKey;
use crate::changes::COOKIE;
use crate::cookies::{CookieNames, EditedCookies};
use crate::direct::{DECISION_HEADER, cacheable};
use crate::headers::Headers;
use crate::locks::lock;
use crate::request::MAX_FRAME_HEADERS;

/// Decisions that serve requests with an equal cache key.
pub(super) struct DecisionCache {
    most: Duration,
    kept: Mutex<CacheContent>,
}

#[derive(Default)]
struct CacheContent {
    /// The key of the last decision in each scope.
    keys: HashMap<Scope, CacheKey>,
    decisions: HashMap<(Scope, [u8; 32]), StoredDecision>,
}

struct StoredDecision {
    until: Instant,
    rewrite: Rewrite,
    cookies: CookieNames,
}

/// What separates decisions in addition to their keys.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Scope {
    route: String,
    confs: Vec<(String, String)>,
    scheme: &'static str,
    host: Vec<u8>,
    is_upgrade: bool,
}

impl DecisionCache {
    pub(super) fn new(most: Duration) -> Self {
        Self { most, kept: Mutex::default() }
    }

    /// The scope of a request; `None` if nothing is cached for it.
    pub(super) fn scope(route: &Route, request: &ClientRequest) -> Option<Scope> {
        let headers = request.all_headers();
        if headers.len() >= MAX_FRAME_HEADERS || headers.iter().any(|(name, _)| name.contains('_')) {
            return None;
        }
        Some(Scope {
            route: route.key(),
            confs: route.confs.clone(),
            scheme: request.scheme,
            host: request.header_value("host").unwrap_or_default().to_vec(),
            is_upgrade: request.header_value("upgrade").is_some(),
        })
    }

    /// The rewrite of a cached decision for this request.
    pub(super) fn find(&self, scope: &Scope, request: &ClientRequest) -> Option<Rewrite> {
        let kept = lock(&self.kept);
        let digest = digest(kept.keys.get(scope)?, request);
        let decision = kept.decisions.get(&(scope.clone(), digest))?;
        if decision.until <= Instant::now() {
            return None;
        }
        let mut rewrite = decision.rewrite.clone();
        let cookies = request.all_headers().into_iter().filter(|(name, _)| name == "cookie");
        let cookies: Vec<_> = cookies.map(|(_, value)| value).collect();
        let left = match decision.cookies.remove_from(cookies.iter().map(|value| &value[..])) {
            EditedCookies::Unchanged => return Some(rewrite),
            EditedCookies::Removed => None,
            EditedCookies::Left(left) => Some(left),
        };
        // The decision stays the last, as in the runner's own answer.
        rewrite.headers.insert(rewrite.headers.len() - 1, (COOKIE.as_str().into(), left));
        Some(rewrite)
    }

    /// Keeps a decision of the runner's, if it may be cached and rests on the same parts
    /// of the request.
    pub(super) fn keep(&self, scope: Scope, request: &ClientRequest, rewrite: &Rewrite, since: Instant) {
        let header = rewrite.headers.iter().find(|(name, _)| name == DECISION_HEADER.as_bytes());
        let Some(value) = header.and_then(|(_, value)| value.as_deref()) else { return };
        let Some(decision) = cacheable(value) else { return };
        let digest = digest(&decision.key, request);
        if digest != decision.digest {
            return;
        }
        let removed = decision.remove.into_iter().map(|name| (name.into_bytes(), None));
        let set = decision.set.into_iter().map(|(name, value)| (name.into_bytes(), Some(value.into_bytes())));
        let carried = (DECISION_HEADER.into(), Some(value.to_vec()));
        let rewrite =
            Rewrite { headers: removed.chain(set).chain([carried]).collect(), ..Rewrite::default() };
        let until = since + decision.time.min(self.most);
        let mut kept = lock(&self.kept);
        kept.keys.insert(scope.clone(), decision.key);
        kept.decisions.insert((scope, digest), StoredDecision { until, rewrite, cookies: decision.cookies });
    }
}

fn digest(key: &CacheKey, request: &ClientRequest) -> [u8; 32] {
    let headers = request.all_headers();
    let pairs = headers.iter().map(|(name, value)| (name.as_bytes(), &value[..])).collect();
    key.parts().digest(&request.method, &Headers::new(pairs))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::HeaderName;

    use crate::direct::{Direct, SystemResolver};
    use crate::gateway::{ClientRequest, ForwardedRequest, Gateway, Route};
    use crate::{Action, CacheKey, CookieNames, Plugin, PluginError, Request, Runner, Settings};

    use super::*;

    /// Sends to the upstream that the team has, and looks at more if a request asks for it.
    struct ByTeam;

    impl Plugin for ByTeam {
        const NAME: &'static str = "by-team";
        type Config = ();

        fn cache_key(&self, (): &()) -> Option<CacheKey> {
            let names = ["x-team", "x-look"].map(HeaderName::from_static);
            Some(CacheKey::new(names).and_presence([HeaderName::from_static("x-debug")]))
        }

        async fn on_request(&self, (): &(), request: &mut Request<'_>) -> Result<Action, PluginError> {
            let team = request.header_str("x-team").unwrap_or("0");
            request.set_upstream(format!("http://127.0.0.{team}:80").parse()?)?;
            request.set_header("x-served-by", team)?;
            request.remove_cookies(&CookieNames::default())?;
            if request.has_header("x-debug") {
                request.remove_header("x-debug")?;
            }
            match request.header_str("x-look") {
                Some("all") => drop(request.headers().count()),
                Some("value") => drop(request.header("x-debug")),
                Some("values") => drop(request.headers_named("x-other").count()),
                Some("presence") => drop(request.has_header("x-other")),
                Some("upgrade") => drop(request.has_header("upgrade")),
                Some("navigation") => drop(request.is_navigation()),
                Some("underscores") => drop(request.names_with_underscore().count()),
                Some("many") => drop(request.may_lack_headers()),
                Some("debug") => drop(format!("{request:?}")),
                _ => {}
            }
            request.cache_for(Duration::from_secs(5));
            Ok(Action::Continue)
        }
    }

    fn gateway() -> Gateway {
        let runner = Runner::named("test", "0").plugin(ByTeam).carrier(Direct::new(Arc::new(SystemResolver)));
        Gateway::with_runner(runner, Settings::new("/nonexistent")).caches_decisions(Duration::from_secs(10))
    }

    /// The request as it goes on, and whether the runner was called for it.
    async fn forwarded(gateway: &Gateway, request: &ClientRequest) -> (ForwardedRequest, bool) {
        let before = gateway.call_count();
        let route = Route::new("r").plugin("by-team", "null");
        let forwarded = gateway.call(&route, request).await.forwarded();
        (forwarded, gateway.call_count() > before)
    }

    fn of_team(team: &str) -> ClientRequest {
        ClientRequest::get("/").header("x-team", team)
    }

    #[tokio::test(start_paused = true)]
    async fn equal_requests_share_a_decision_while_it_is_cached() {
        let gateway = gateway();
        let request = of_team("1").header("cookie", "a=1; session=x").header("x-debug", "1");
        let (first, is_called) = forwarded(&gateway, &request).await;
        assert!(is_called);
        assert_eq!(forwarded(&gateway, &request).await, (first, false));
        let other = of_team("1").header("cookie", "b=2; session=y; c=3").header("x-debug", "2");
        let (other, is_called) = forwarded(&gateway, &other).await;
        assert!(!is_called);
        assert_eq!((other.header("cookie"), other.header("x-debug")), (Some(&b"b=2; c=3"[..]), None));
        assert_eq!(other.header("x-served-by"), Some(&b"1"[..]));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(forwarded(&gateway, &request).await.1, "after its time");
    }

    #[tokio::test]
    async fn requests_that_differ_in_the_key_share_none() {
        let gateway = gateway();
        let underscore = of_team("1").header("x_team", "1");
        for (request, expected) in [
            (of_team("1"), true),
            (of_team("1"), false),
            (of_team("2"), true),
            (of_team("1").header("x-team", "1"), true),
            (of_team("1").header("x-debug", ""), true),
            (of_team("1").header("host", "other.test"), true),
            (of_team("1").header("upgrade", "websocket"), true),
            (underscore.clone(), true),
            (underscore, true),
            (of_team("1").header("x-other", "1"), false),
        ] {
            assert_eq!(forwarded(&gateway, &request).await.1, expected, "{request:?}");
        }
    }

    /// The lines of the log, as text.
    #[cfg(feature = "cli")]
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    #[cfg(feature = "cli")]
    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Allows its decisions to be cached, and has no key.
    #[cfg(feature = "cli")]
    struct NoKey;

    #[cfg(feature = "cli")]
    impl Plugin for NoKey {
        const NAME: &'static str = "no-key";
        type Config = ();

        async fn on_request(&self, (): &(), request: &mut Request<'_>) -> Result<Action, PluginError> {
            request.cache_for(Duration::from_secs(5));
            Ok(Action::Continue)
        }
    }

    #[cfg(feature = "cli")]
    #[tokio::test]
    async fn the_log_says_why_a_decision_is_not_cached() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .without_time()
            .with_writer(move || writer.clone())
            .finish();
        let _logged = tracing::subscriber::set_default(subscriber);
        let gateway = gateway().plugin(NoKey);
        for look in ["all", "value"] {
            forwarded(&gateway, &of_team("1").header("x-look", look)).await;
        }
        let route = Route::new("n").plugin("no-key", "null");
        assert_eq!(gateway.call(&route, &of_team("1")).await.status(), None);
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<_> = text.lines().filter(|line| line.contains("decision not cached")).collect();
        let expected = [
            (
                "WARN",
                r#"plugin="by-team" reason=the plugin looked at all headers, which is not in its cache key"#,
            ),
            (
                "DEBUG",
                r#"plugin="by-team" reason=the plugin looked at the header "x-debug", which is not in its cache key"#,
            ),
            ("WARN", r#"plugin="no-key" reason=the plugin has no cache key: implement cache_key"#),
        ];
        assert_eq!(lines.len(), expected.len(), "{text}");
        for (line, (level, said)) in lines.iter().zip(expected) {
            assert!(line.trim_start().starts_with(level) && line.ends_with(said), "{line}");
        }
    }

    #[tokio::test]
    async fn a_conf_whose_plugin_has_an_unusable_key_is_refused() {
        struct Underscore;

        impl Plugin for Underscore {
            const NAME: &'static str = "underscore";
            type Config = ();

            fn cache_key(&self, (): &()) -> Option<CacheKey> {
                Some(CacheKey::new([HeaderName::from_static("x_team")]))
            }

            async fn on_request(&self, (): &(), _: &mut Request<'_>) -> Result<Action, PluginError> {
                Ok(Action::Continue)
            }
        }

        let runner = Runner::named("test", "0").plugin(Underscore);
        let refused = runner.check_conf("underscore", b"null").await.unwrap().unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the cache key names x_team: a name has letters, digits and `-` only"
        );
    }

    /// Adds a cookie to those of the request, and sets them all.
    struct AddsCookie;

    impl Plugin for AddsCookie {
        const NAME: &'static str = "adds-cookie";
        type Config = ();

        async fn on_request(&self, (): &(), request: &mut Request<'_>) -> Result<Action, PluginError> {
            let cookies = request.header_str("cookie").unwrap_or_default().to_owned();
            request.set_header("cookie", format!("{cookies}; added=1"))?;
            Ok(Action::Continue)
        }
    }

    #[tokio::test]
    async fn removed_cookies_are_gone_whichever_plugin_is_the_first() {
        let gateway = gateway().plugin(AddsCookie);
        let request = of_team("1").header("cookie", "a=1; session=x");
        for order in [["by-team", "adds-cookie"], ["adds-cookie", "by-team"]] {
            let route = order.iter().fold(Route::new("both"), |route, name| route.plugin(name, "null"));
            let forwarded = gateway.call(&route, &request).await.forwarded();
            assert_eq!(forwarded.header("cookie"), Some(&b"a=1; added=1"[..]), "{order:?}");
        }
    }

    #[tokio::test]
    async fn a_plugin_that_looks_outside_its_key_is_asked_each_time() {
        for (look, is_cached) in [
            ("nothing", true),
            ("all", false),
            ("value", false),
            ("values", false),
            ("presence", false),
            ("upgrade", true),
            ("navigation", false),
            ("underscores", true),
            ("many", true),
            ("debug", false),
        ] {
            let gateway = gateway();
            let request = of_team("1").header("x-look", look);
            assert!(forwarded(&gateway, &request).await.1);
            assert_eq!(forwarded(&gateway, &request).await.1, !is_cached, "{look}");
        }
    }
}
