//! The plugin that is shipped: who asks, and so which workspace the request
//! goes to.
//!
//! Identity, template, name, upstream, in this order. What fails on the way is
//! an answer of ours, so that it holds whatever the route says of failures.

mod claims;
mod config;
mod cookies;
mod decision;
pub(crate) mod explain;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod identity;
mod keys;
mod label;
mod origin;
mod policy;
mod presented;
mod refused;
mod remembered;
mod template;
mod token;
mod userinfo;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, timeout};
use tracing::{debug, info};

use crate::direct::Ways;
use crate::headers::HeaderName;
use crate::plugin::{Action, Plugin, PluginError, Stop};
use crate::refusal::{More, Reader};
use crate::request::Request;
use crate::request_id::{REQUEST_ID_WAIT, shown_request_id};
use crate::resolver::Resolver;
pub(crate) use config::{IdentityConfig, UserUpstreamConfig, Verified};
use cookies::Edited;
use decision::Decision;
use identity::{Identity, IdentityError};
use keys::Issuers;
pub(crate) use keys::KeySet;
use presented::{AUTHORIZATION, FORWARDED_USER, FORWARDED_USERNAME, Presented, PresentedToken, STAMP};
use refused::{MAX_FRAME_HEADERS, Refused};
use remembered::{Digests, Remembered};
pub(crate) use template::{HostTemplate, Template, TemplateError};

/// How long a token that was checked is not checked again.
const TOKEN_REMEMBERED: Duration = Duration::from_secs(60);

/// How long a gateway in direct mode may repeat a decision, if it does: as long as a
/// refused token is remembered, so that neither outlasts the other.
const REPEATED: Duration = Duration::from_secs(10);

/// How long a token that was refused is refused unseen.
const REFUSAL_REMEMBERED: Duration = Duration::from_secs(10);

/// How many identities are remembered, in use at one time at one gateway. Each takes
/// about 400 bytes.
const ADMITTED: usize = 100_000;

/// How many tokens that were refused are remembered.
const REFUSED: usize = 1024;

/// Sends each user's requests to their own workspace.
pub(crate) struct UserUpstream {
    resolver: Arc<Resolver>,
    ways: Ways,
    issuers: Issuers,
    memory: Memory,
}

/// What came of identities that were seen, under all confs.
struct Memory {
    digests: Digests,
    admitted: Remembered<Arc<Decision>>,
    /// Tokens only.
    refused: Remembered<Refused>,
}

impl Memory {
    fn new() -> Result<Self, getrandom::Error> {
        Ok(Self {
            digests: Digests::new()?,
            admitted: Remembered::new(ADMITTED),
            refused: Remembered::new(REFUSED),
        })
    }
}

impl UserUpstream {
    /// # Errors
    ///
    /// The system has no random numbers.
    pub(crate) fn new(resolver: Arc<Resolver>, ways: Ways) -> Result<Self, getrandom::Error> {
        Ok(Self { resolver, ways, issuers: Issuers::default(), memory: Memory::new()? })
    }

    async fn admit<'f>(
        &self,
        config: &UserUpstreamConfig,
        request: &Request<'f>,
    ) -> Result<Admitted<'f>, Refused> {
        if request.headers().len() >= MAX_FRAME_HEADERS {
            return Err(Refused::TooManyHeaders);
        }
        let presented = presented::find(request.headers(), config.identity.token_sources());
        let presented = presented.map_err(IdentityError::from)?;
        config.identity.look_at(&presented)?;
        if request.header("upgrade").is_some() && origin::is_foreign(request.headers()) {
            return Err(Refused::ForeignOrigin);
        }
        let decision = match &config.identity {
            IdentityConfig::Gateway => self.memory.by_userinfo(config, &presented)?,
            IdentityConfig::Verified(verified) => self.memory.by_token(config, verified, &presented).await?,
        };
        let resolved = self.resolver.resolve(decision.upstream.host()).await;
        // The name has the subject in it, so it is told only to who asks for more.
        resolved.inspect_err(|reason| {
            debug!(upstream = %decision.upstream, %reason, "workspace has no address");
        })?;
        Ok(Admitted { decision, token: presented.token })
    }
}

/// A request that goes to a workspace.
struct Admitted<'f> {
    decision: Arc<Decision>,
    /// The token that was checked.
    token: Option<PresentedToken<'f>>,
}

impl Memory {
    /// Decides by the gateway's word.
    fn by_userinfo(
        &self,
        config: &UserUpstreamConfig,
        presented: &Presented<'_>,
    ) -> Result<Arc<Decision>, Refused> {
        let digest = self.digests.digest(config.number, [presented.userinfo, None]);
        let now = Instant::now();
        if let Some(decision) = self.admitted.get(digest, now) {
            return Ok(decision);
        }
        let identity = Identity::of_userinfo(presented, &config.wanted)?;
        let decision = Arc::new(Decision::of(config, &identity.claims)?);
        self.admitted.insert(digest, Arc::clone(&decision), None);
        Ok(decision)
    }

    /// Decides by a token's word, once its signature is checked.
    async fn by_token(
        &self,
        config: &UserUpstreamConfig,
        verified: &Verified,
        presented: &Presented<'_>,
    ) -> Result<Arc<Decision>, Refused> {
        let headers = [presented.token.map(|token| token.text), presented.userinfo];
        let digest = self.digests.digest(config.number, headers);
        let now = Instant::now();
        if let Some(decision) = self.admitted.get(digest, now) {
            return Ok(decision);
        }
        if let Some(refused) = self.refused.get(digest, now) {
            return Err(refused);
        }
        // The future of a real check is large, and rarely needed.
        match Box::pin(check_token(config, verified, presented)).await {
            Ok((decision, good_for)) => {
                let good_for = good_for.min(TOKEN_REMEMBERED);
                if !good_for.is_zero() {
                    self.admitted.insert(digest, Arc::clone(&decision), Some(now + good_for));
                }
                Ok(decision)
            }
            Err(refused) => {
                if refused.is_lasting() {
                    self.refused.insert(digest, refused.clone(), Some(now + REFUSAL_REMEMBERED));
                }
                Err(refused)
            }
        }
    }
}

/// What a token decides, and for how long it does.
async fn check_token(
    config: &UserUpstreamConfig,
    verified: &Verified,
    presented: &Presented<'_>,
) -> Result<(Arc<Decision>, Duration), Refused> {
    let now = unix_now();
    let identity = Identity::of_token(presented, &config.wanted, verified, config.issuer(), now).await?;
    let good_for = identity.good_for.unwrap_or_default();
    let mut decision = Decision::of(config, &identity.claims)?;
    decision.good_until = Some(Instant::now() + good_for);
    Ok((Arc::new(decision), good_for))
}

/// Seconds since 1970, as tokens count them.
pub(crate) fn unix_now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    // A clock before 1970 makes every token one from the future.
    since.map_or(0.0, |since| since.as_secs_f64())
}

impl Plugin for UserUpstream {
    const NAME: &'static str = "user-upstream";
    type Config = UserUpstreamConfig;

    fn prepare(&self, config: &UserUpstreamConfig) -> Result<(), PluginError> {
        config.check_files()?;
        config.way(self.ways).map_err(|error| format!("upstream: {error}"))?;
        if let IdentityConfig::Verified(verified) = &config.identity {
            config.keep_issuer(self.issuers.get(&verified.keys, &self.resolver));
        }
        Ok(())
    }

    async fn on_request(
        &self,
        config: &UserUpstreamConfig,
        request: &mut Request<'_>,
    ) -> Result<Action, PluginError> {
        let admitted = match self.admit(config, request).await {
            Ok(admitted) => admitted,
            Err(refused) => return refuse(&refused, config, request).await,
        };
        if is_plain_page_at_tls(request).await? {
            return refuse(&Refused::ForeignOrigin, config, request).await;
        }
        for name in config.identity.token_sources().secrets() {
            remove(name, request)?;
        }
        remove(&STAMP, request)?;
        // Another authorization than the token's is the workspace's business.
        let is_tokens =
            |token: PresentedToken<'_>| request.headers_named(AUTHORIZATION).any(|value| token.is_in(value));
        if admitted.token.is_some_and(is_tokens) {
            request.remove_header(AUTHORIZATION)?;
        }
        match config.remove_cookies.edit(request.headers_named("cookie")) {
            Edited::Unchanged => {}
            Edited::Removed => request.remove_header("cookie")?,
            Edited::Cookies(cookies) => request.set_header("cookie", cookies)?,
        }
        let decision = &admitted.decision;
        request.set_header(&FORWARDED_USER, decision.upstream.subject().unwrap_or_default())?;
        match &decision.username {
            Some(name) => request.set_header(&FORWARDED_USERNAME, name.as_bytes())?,
            None => remove(&FORWARDED_USERNAME, request)?,
        }
        request.upstream(decision.upstream.clone());
        let good_for = decision.good_until.map(|until| until.saturating_duration_since(Instant::now()));
        let repeated = good_for.unwrap_or(REPEATED).min(REPEATED);
        if !repeated.is_zero() {
            request.repeat_for(repeated, &config.basis);
        }
        Ok(Action::Continue)
    }
}

/// Whether a page without TLS opens a WebSocket at a gateway with it. Whoever is on
/// the way writes such a page, and the user's browser opens it under the same name.
async fn is_plain_page_at_tls(request: &mut Request<'_>) -> Result<bool, PluginError> {
    let is_plain =
        request.header("upgrade").is_some() && request.header("origin").is_some_and(origin::is_plain);
    // Only then is it worth a question to the gateway.
    Ok(is_plain && request.var("scheme").await?.is_some_and(|scheme| scheme == "https"))
}

/// Removes a header that is there: each change costs the gateway time, and most
/// requests have none of these headers.
fn remove(name: &HeaderName, request: &mut Request<'_>) -> Result<(), PluginError> {
    if request.header(name).is_some() {
        request.remove_header(name)?;
    }
    Ok(())
}

async fn refuse(
    refused: &Refused,
    config: &UserUpstreamConfig,
    request: &mut Request<'_>,
) -> Result<Action, PluginError> {
    let refusal = refused.refusal();
    let known = timeout(REQUEST_ID_WAIT, request.var("request_id")).await;
    let request_id = shown_request_id(known.ok().and_then(Result::ok).flatten().as_deref());
    info!(code = refusal.code(), reason = %refused, request_id, "request refused");
    let reader = Reader::new(request.method().as_str(), |name| request.header(name));
    let rendered = refusal.render(&reader, &request_id, More::Login(&config.login));
    let mut stop = Stop::new(rendered.status)?.body(rendered.body);
    for (name, value) in rendered.headers {
        stop = stop.header(name, value)?;
    }
    Ok(stop.into())
}

/// The keys that the integration tests sign with.
#[cfg(test)]
#[path = "../tests/it/signer.rs"]
mod signer;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::keys::Issuer;
    use super::presented::IDENTITY_HEADERS;
    use super::signer::{Signer, claims, key_set};
    use super::*;
    use crate::plugin::{Registry, parse_conf};
    use crate::resolver::NameServers;
    use crate::runner::CallLimits;
    use crate::testing::{ClientRequest, ForwardedRequest, Gateway, Outcome, Route};
    use crate::upstream::Upstream;

    async fn forwarded(claims: &str, request: ClientRequest) -> ForwardedRequest {
        match outcome(claims, request).await {
            Outcome::Forward(forwarded) => forwarded,
            Outcome::Answer(answer) => panic!("{answer:?}"),
        }
    }

    async fn outcome(claims: &str, request: ClientRequest) -> Outcome {
        let servers = NameServers::Listed(vec!["127.0.0.1:1".parse().unwrap()]);
        let mut registry = Registry::default();
        let resolver = Arc::new(Resolver::new(&servers).unwrap());
        assert!(registry.add(UserUpstream::new(resolver, Ways::default()).unwrap()));
        let limits = CallLimits { deadline: Duration::from_secs(5), questions: 10, bytes: 10_000 };
        let conf = r#"{"identity": {"trust": "gateway"}, "upstream": "http://127.0.0.1:8443"}"#;
        let request = match request.header_value("x-userinfo") {
            Some(_) => request,
            None => request.added_header("x-userinfo", STANDARD.encode(claims)),
        };
        let gateway = Gateway::with_registry(registry, limits);
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
    async fn a_workspace_sees_who_asks_and_nothing_to_act_as_them() {
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
    async fn where_headers_may_be_hidden_nobody_is_believed() {
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
        fn new(keys: &[Signer]) -> Self {
            let conf = r#"{"identity": {"trust": "verified", "issuer": "https://a", "audience": ["apisix"]},
                           "upstream": "http://code-{sub}:8443"}"#;
            let config: UserUpstreamConfig = parse_conf(conf.as_bytes()).unwrap();
            config.keep_issuer(Arc::new(Issuer::of_keys(key_set(keys))));
            Self { memory: Memory::new().unwrap(), config }
        }

        /// Asks with the same memory, while the issuer has these keys.
        async fn ask(&self, token: &str, keys: &[Signer]) -> Result<(), &'static str> {
            let mut config = Self::new(keys).config;
            config.number = self.config.number;
            let IdentityConfig::Verified(verified) = &config.identity else { panic!("verified") };
            let text = token.as_bytes();
            let presented = Presented { userinfo: None, token: Some(PresentedToken { text, source: 0 }) };
            let decided = self.memory.by_token(&config, verified, &presented).await;
            decided.map(|_| ()).map_err(|refused| refused.refusal().code())
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
            let believer = Believer::new(&signer);
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
        let believer = Believer::new(&signer);
        let mut claims = claims("https://a", "alice");
        claims["exp"] = (unix_now() as u64 - 5).into();
        let token = signer[0].token(&claims);
        assert_eq!(believer.ask(&token, &signer).await, Ok(()));
        assert_eq!(believer.ask(&token, &withdrawn).await, Err("token-invalid"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_remembered_for_ten_seconds() {
        let [signer, others] = two();
        let believer = Believer::new(&signer);
        let token = signer[0].token(&claims("https://a", "alice"));
        assert_eq!(believer.ask(&token, &others).await, Err("token-invalid"));
        tokio::time::advance(Duration::from_millis(9_999)).await;
        assert_eq!(believer.ask(&token, &signer).await, Err("token-invalid"));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(believer.ask(&token, &signer).await, Ok(()));
    }
}
