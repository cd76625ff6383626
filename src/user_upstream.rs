//! The plugin that is shipped: it finds out who the user of a request is, and so which
//! workspace the request goes to.
//!
//! `walk` is the way of a request: identity, policy, template, addresses, changes. What
//! `identity` gives is combined there with what the plugin remembers (`memory`) and
//! checks itself (`origin`). A rejection is an answer of the plugin, so it holds whatever
//! the route says about failures.

mod preparation;
mod browser_marker;
mod issuer_names;
mod request_headers;
mod walk;
mod trace;
mod comparison;
mod origin;
mod memory;
mod digest_cache;
mod decision;
mod decision_error;
mod rejection;
pub(crate) mod explanation;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::dns::Resolve;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use crate::locks::lock;
use crate::logged_user::{LoggedUser, LoggedUsers};
use crate::refusal::{More, Reader};
use crate::resolver::Resolver;
use crate::route::mode::Ways;
use crate::subject_digest::{IssuedSubject, SubjectKeys};
use apisix_plugin_runner::request_id::{REQUEST_ID_WAIT, shown_request_id};
use apisix_plugin_runner::{Action, CacheKey, CookieNames, HeaderName, PluginError, PreparedPlugin, Request};
use browser_marker::{BrowserMarker, sign_out};
use issuer_names::IssuerNames;
use kube_coders_identity::config::{UserUpstreamConfig, Verified};
use kube_coders_identity::identity_error::IdentityError;
use kube_coders_identity::keys::{Issuer, Issuers, SignedClaims};
use kube_coders_identity::template_risk::risks_of;
use kube_coders_identity::token::Token;
use memory::Memory;
use preparation::PreparedUserUpstream;
pub(crate) use preparation::check as check_config;
use rejection::{RejectedUser, Rejection, UserRejection};
use trace::{NoTrace, Trace};
pub(crate) use trace::{Step, StepOutcome, Steps};
pub(crate) use walk::{ClientScheme, Stopped};
use walk::{Exchange, Keys, Walk};

/// How long a gateway in direct mode may cache a decision: as long as a rejected token is
/// remembered, so that neither outlasts the other.
const CACHED: Duration = Duration::from_secs(10);

/// Sends each user's requests to their own workspace.
pub(crate) struct UserUpstream {
    resolver: Arc<Resolver>,
    issuer_names: Arc<dyn Resolve>,
    ways: Ways,
    issuers: Issuers,
    memory: Memory,
    marker: BrowserMarker,
    logged_users: LoggedUsers,
    /// Templates whose risks were logged. A gateway prepares its confs again at each reload.
    warned_of: Mutex<HashSet<String>>,
}

/// How many templates' risks are logged.
const MAX_WARNED: usize = 1024;

impl UserUpstream {
    /// The plugin, with the resolver of workspaces' names and that of issuers' names. The last
    /// keys of an issuer serve for `max_key_age` while it does not answer. Digests of subjects
    /// are made with `subject_keys`.
    ///
    /// # Errors
    ///
    /// The system has no random numbers.
    pub(crate) fn new(
        resolver: Arc<Resolver>,
        issuer_names: Resolver,
        ways: Ways,
        max_key_age: Duration,
        subject_keys: SubjectKeys,
        logged_users: LoggedUsers,
    ) -> Result<Self, getrandom::Error> {
        let issuer_names = Arc::new(IssuerNames(Arc::new(issuer_names)));
        let issuers = Issuers::new(max_key_age);
        Ok(Self {
            resolver,
            issuer_names,
            ways,
            issuers,
            memory: Memory::new()?,
            marker: BrowserMarker::new(subject_keys),
            logged_users,
            warned_of: Mutex::default(),
        })
    }

    /// Logs the risks of a conf's template, once.
    fn warn_about(&self, config: &UserUpstreamConfig) {
        let risks = risks_of(&config.upstream);
        if risks.is_empty() {
            return;
        }
        let host = config.upstream.host().to_string();
        let mut warned_of = lock(&self.warned_of);
        if warned_of.len() < MAX_WARNED && warned_of.insert(host.clone()) {
            for risk in risks {
                warn!(host, %risk, "the upstream of a conf is risky");
            }
        }
    }

    /// The walk of requests under a conf.
    fn walk<'w>(&'w self, prepared: &'w PreparedUserUpstream) -> Walk<'w, KeptKeys<'w>> {
        Walk {
            config: &prepared.config,
            memory: Some((&self.memory, prepared.number)),
            keys: KeptKeys(prepared.issuer.as_deref()),
            resolver: Some(&self.resolver),
        }
    }
}

impl UserUpstream {
    /// Logs a rejection and answers the request.
    async fn stop(
        &self,
        UserRejection { rejection, user }: &UserRejection,
        config: &UserUpstreamConfig,
        request: &mut Request<'_>,
    ) -> Result<Action, PluginError> {
        let refusal = rejection.refusal();
        let known = timeout(REQUEST_ID_WAIT, request.var("request_id")).await;
        let request_id = shown_request_id(known.ok().and_then(Result::ok).flatten().as_deref());
        let user = match user {
            RejectedUser::Unknown => LoggedUser::default(),
            RejectedUser::Subject(subject) => self.logged_users.by_subject(subject),
            RejectedUser::Upstream(upstream) => self.logged_users.by_upstream(upstream),
        };
        info!(
            request_id,
            route = request.route_id(),
            code = refusal.code(),
            reason = %rejection,
            subject_digest = user.digest,
            subject = user.subject,
            workspace = user.workspace,
            "request refused"
        );
        let reader = Reader::new(request.method().as_str(), |name| request.header(name));
        Ok(refusal.render(&reader, &request_id, More::Login(&config.login)).into_stop().into())
    }
}

impl PreparedPlugin for UserUpstream {
    const NAME: &'static str = "user-upstream";
    type Config = UserUpstreamConfig;
    type Prepared = PreparedUserUpstream;

    async fn prepare(&self, config: UserUpstreamConfig) -> Result<PreparedUserUpstream, PluginError> {
        self.warn_about(&config);
        let issuer_of = |verified: &Verified| self.issuers.get(&verified.keys, &self.issuer_names);
        Ok(PreparedUserUpstream::new(config, self.ways, &self.memory, issuer_of)?)
    }

    fn cache_key(&self, prepared: &PreparedUserUpstream) -> Option<CacheKey> {
        prepared.cache_key.clone()
    }

    async fn on_request(
        &self,
        prepared: &PreparedUserUpstream,
        request: &mut Request<'_>,
    ) -> Result<Action, PluginError> {
        let PreparedUserUpstream { config, .. } = prepared;
        if let Some(stop) = sign_out(config.login.as_str(), &config.remove_cookies, request).await? {
            return Ok(stop.into());
        }
        let decision = match self.walk(prepared).decide(request, &mut NoTrace).await {
            Ok(decision) => decision,
            Err(Stopped::Rejected(rejected)) => {
                return self.stop(&rejected, &prepared.config, request).await;
            }
            Err(Stopped::Failed(error)) => return Err(error),
        };
        request.set_upstream(decision.upstream.clone())?;
        let subject = IssuedSubject {
            issuer: prepared.config.identity.issuer().unwrap_or_default(),
            subject: decision.upstream.subject().unwrap_or_default(),
        };
        let is_marked = self.marker.mark(subject, &prepared.config.remove_cookies, request).await?;
        if prepared.cache_key.is_some() && !is_marked {
            let good_for = decision.good_until.map(|until| until.saturating_duration_since(Instant::now()));
            request.cache_for(good_for.unwrap_or(CACHED).min(CACHED));
        }
        Ok(Action::Continue)
    }
}

/// The issuer's own keys, which are kept fresh.
struct KeptKeys<'w>(Option<&'w Issuer>);

impl Keys for KeptKeys<'_> {
    async fn verify(
        &self,
        _: &Verified,
        token: Token<'_>,
        trace: &mut impl Trace,
    ) -> Result<SignedClaims, Rejection> {
        let checked = match self.0 {
            Some(issuer) => issuer.verify(token).await.map_err(IdentityError::from),
            None => Err(IdentityError::KeysUnavailable),
        };
        trace.check("signature", checked)
    }
}

impl Exchange for Request<'_> {
    fn header_count(&self) -> usize {
        self.headers().len()
    }

    fn may_lack_headers(&self) -> bool {
        Request::may_lack_headers(self)
    }

    #[expect(clippy::map_identity, reason = "it shortens lifetimes")]
    fn names_with_underscore(&self) -> impl Iterator<Item = &[u8]> {
        Request::names_with_underscore(self).map(|name| name)
    }

    #[expect(clippy::map_identity, reason = "it shortens lifetimes")]
    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + Clone + 'a {
        self.headers_named(name).map(|value| value)
    }

    fn has(&self, name: &str) -> bool {
        self.has_header(name)
    }

    async fn scheme(&mut self) -> Result<ClientScheme, PluginError> {
        let is_https = self.var("scheme").await?.is_some_and(|scheme| scheme == "https");
        Ok(if is_https { ClientScheme::Https } else { ClientScheme::Http })
    }

    fn remove(&mut self, name: &HeaderName) -> Result<(), PluginError> {
        Ok(self.remove_header(name)?)
    }

    fn set(&mut self, name: &HeaderName, value: &[u8]) -> Result<(), PluginError> {
        Ok(self.set_header(name, value)?)
    }

    fn remove_cookies(&mut self, names: &CookieNames) -> Result<(), PluginError> {
        Ok(Request::remove_cookies(self, names)?)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::explanation::OfflineRequest;
    use super::memory::ConfNumber;
    use super::walk::unix_now;
    use super::*;
    use crate::resolver::NameServers;
    use crate::route::key_file::{KeyBytes, MIN_KEY};
    use apisix_plugin_runner::Upstream;
    use apisix_plugin_runner::config::parse_conf;
    use apisix_plugin_runner::gateway::{ClientRequest, ForwardedRequest, Gateway, Outcome, Route};
    use kube_coders_identity::identity_headers::IDENTITY_HEADERS;
    use kube_coders_test_support::{Signer, claims, key_set};

    fn keys() -> SubjectKeys {
        SubjectKeys::new(&KeyBytes::new(&[7; MIN_KEY]).unwrap(), &[])
    }

    async fn forwarded(claims: &str, request: ClientRequest) -> ForwardedRequest {
        match outcome(claims, request).await {
            Outcome::Forward(forwarded) => forwarded,
            Outcome::Answer(answer) => panic!("{answer:?}"),
        }
    }

    async fn outcome(claims: &str, request: ClientRequest) -> Outcome {
        let servers = NameServers::Listed(vec!["127.0.0.1:1".parse().unwrap()]);
        let resolver = Arc::new(Resolver::new(&servers).unwrap());
        let issuer_names = Resolver::new(&servers).unwrap();
        let plugin = UserUpstream::new(
            resolver,
            issuer_names,
            Ways::default(),
            Duration::from_secs(3600),
            keys(),
            LoggedUsers::new(keys(), false),
        )
        .unwrap();
        let conf = r#"{"identity": {"trust": "gateway"}, "upstream": "http://127.0.0.1:8443"}"#;
        let request = match request.header_value("x-userinfo") {
            Some(_) => request,
            None => request.added_header("x-userinfo", STANDARD.encode(claims)),
        };
        let gateway = Gateway::new().plugin(plugin);
        gateway.call(&Route::new("r").plugin("user-upstream", conf), &request).await
    }

    #[tokio::test]
    async fn a_subject_that_no_header_can_have_is_refused() {
        for claims in [
            r#"{"sub": "a\r\nx: y"}"#,
            r#"{"sub": "a\u0000"}"#,
            r#"{"sub": "a\u007f"}"#,
            r#"{"sub": " a"}"#,
            r#"{"sub": "a "}"#,
        ] {
            assert_eq!(outcome(claims, ClientRequest::get("/")).await.status(), Some(400), "{claims}");
        }
    }

    #[tokio::test]
    async fn a_workspace_sees_its_user_and_no_credential() {
        let mut request = ClientRequest::get("/")
            .header("x-forwarded-user", "mallory")
            .header("x-forwarded-preferred-username", "mallory")
            .header("x-refresh-token", "secret");
        for name in ["x-access-token", "x-id-token", "x-raw-id-token"] {
            request = request.added_header(name, "secret");
        }
        let forwarded = forwarded(r#"{"sub": "alice", "preferred_username": "Alice"}"#, request).await;
        assert_eq!(forwarded.header("x-forwarded-user"), Some(&b"alice"[..]));
        assert_eq!(forwarded.header("x-forwarded-preferred-username"), Some(&b"Alice"[..]));
        for name in &IDENTITY_HEADERS {
            assert_eq!(forwarded.header(name.as_str()), None, "{name}");
        }
        assert_eq!(
            forwarded.upstream,
            Some("http://127.0.0.1:8443".parse::<Upstream>().unwrap().for_subject("alice").unwrap())
        );
    }

    #[tokio::test]
    async fn a_user_name_that_no_header_can_have_is_left_out() {
        for claims in [r#"{"sub": "alice"}"#, r#"{"sub": "alice", "preferred_username": "a\r\nx: y"}"#] {
            let request = ClientRequest::get("/").header("x-forwarded-preferred-username", "mallory");
            assert_eq!(forwarded(claims, request).await.header("x-forwarded-preferred-username"), None);
        }
    }

    #[tokio::test]
    async fn no_identity_is_believed_if_headers_may_be_hidden() {
        // With the host, three that the gateway adds, and the identity.
        for (count, expected) in [(94, None), (95, Some(431)), (300, Some(431))] {
            let mut request = ClientRequest::get("/");
            for n in 0..count {
                request = request.header(&format!("x-{n}"), "1");
            }
            assert_eq!(outcome(r#"{"sub": "alice"}"#, request).await.status(), expected, "{count}");
        }
    }

    #[tokio::test]
    async fn the_session_stays_at_the_gateway() {
        let request = ClientRequest::get("/").header("cookie", "a=1; session=x; session_2=y; b=2");
        let forwarded = forwarded(r#"{"sub": "alice"}"#, request).await;
        assert_eq!(forwarded.header("cookie"), Some(&b"a=1; b=2"[..]));
        let request = ClientRequest::get("/").header("cookie", b"a=\x01; session=x");
        let forwarded = self::forwarded(r#"{"sub": "alice"}"#, request).await;
        assert_eq!(forwarded.header("cookie"), Some(&b"a=\x01"[..]));
    }

    /// A conf that believes the keys that it is given, and remembers.
    struct Believer {
        memory: Memory,
        config: UserUpstreamConfig,
    }

    impl Believer {
        fn new() -> Self {
            let conf = r#"{"identity": {"trust": "verified", "issuer": "https://a", "audience": ["apisix"]},
                           "upstream": "http://127.0.0.1:8443"}"#;
            let config: UserUpstreamConfig = parse_conf(conf.as_bytes()).unwrap();
            Self { memory: Memory::new().unwrap(), config }
        }

        /// Asks with the same memory and the same conf, while the issuer has these keys.
        async fn ask(&self, token: &str, keys: &[Signer]) -> Result<(), &'static str> {
            let issuer = Issuer::of_keys(key_set(keys));
            let walk = Walk {
                config: &self.config,
                memory: Some((&self.memory, ConfNumber::default())),
                keys: KeptKeys(Some(&issuer)),
                resolver: None,
            };
            let headers = [(b"x-raw-id-token".to_vec(), token.as_bytes().to_vec())];
            let mut request = OfflineRequest::new(&headers, ClientScheme::Unknown);
            match walk.decide(&mut request, &mut NoTrace).await {
                Ok(_) => Ok(()),
                Err(Stopped::Rejected(rejected)) => Err(rejected.rejection.refusal().code()),
                Err(Stopped::Failed(error)) => panic!("{error}"),
            }
        }
    }

    /// Two keys of one name: what one has signed, the other has not.
    fn two() -> [[Signer; 1]; 2] {
        [(); 2].map(|()| [Signer::new("1", jsonwebtoken::Algorithm::ES256)])
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_remembered_for_a_minute_or_until_it_expires() {
        let [signer, withdrawn] = two();
        for (lasts, remembered) in [(3600, 60), (20, 20)] {
            let believer = Believer::new();
            let mut claims = claims("https://a", "alice");
            claims["exp"] = (unix_now() as u64 + lasts).into();
            let token = signer[0].token(&claims);
            assert_eq!(believer.ask(&token, &signer).await, Ok(()));
            // Less than a whole second is lost, because the expiry has none.
            tokio::time::advance(Duration::from_secs(remembered - 2)).await;
            assert_eq!(believer.ask(&token, &withdrawn).await, Ok(()), "{lasts}");
            tokio::time::advance(Duration::from_secs(2)).await;
            assert_eq!(believer.ask(&token, &withdrawn).await, Err("token-invalid"), "{lasts}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_within_its_leeway_is_not_remembered() {
        let [signer, withdrawn] = two();
        let believer = Believer::new();
        let mut claims = claims("https://a", "alice");
        claims["exp"] = (unix_now() as u64 - 5).into();
        let token = signer[0].token(&claims);
        assert_eq!(believer.ask(&token, &signer).await, Ok(()));
        assert_eq!(believer.ask(&token, &withdrawn).await, Err("token-invalid"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_remembered_for_ten_seconds() {
        let [signer, others] = two();
        let believer = Believer::new();
        let token = signer[0].token(&claims("https://a", "alice"));
        assert_eq!(believer.ask(&token, &others).await, Err("token-invalid"));
        tokio::time::advance(Duration::from_millis(9_999)).await;
        assert_eq!(believer.ask(&token, &signer).await, Err("token-invalid"));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(believer.ask(&token, &signer).await, Ok(()));
    }
}
