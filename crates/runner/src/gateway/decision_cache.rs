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
use crate::request::MAX_FRAME_HEADERS;

/// Decisions that serve requests with an equal cache key.
pub(super) struct DecisionCache {
    most: Duration,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// The key of the last decision in each scope.
    keys: HashMap<Scope, CacheKey>,
    decisions: HashMap<(Scope, [u8; 32]), KeptDecision>,
}

struct KeptDecision {
    until: Instant,
    rewrite: Rewrite,
    cookies: CookieNames,
}

/// What tells all decisions apart, whatever their keys.
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
        let kept = self.kept.lock().expect("no panic while the lock is held");
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
        let mut kept = self.kept.lock().expect("no panic while the lock is held");
        kept.keys.insert(scope.clone(), decision.key);
        kept.decisions.insert((scope, digest), KeptDecision { until, rewrite, cookies: decision.cookies });
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
