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

use jsonwebtoken::crypto::{CryptoProvider, aws_lc};
use tokio::time::{Instant, timeout};
use tracing::{debug, info};

use crate::headers::HeaderName;
use crate::plugin::{Action, Plugin, PluginError, Stop};
use crate::refusal::Reader;
use crate::request::Request;
use crate::request_id::{REQUEST_ID_WAIT, shown_request_id};
use crate::resolver::Resolver;
pub(crate) use config::UserUpstreamConfig;
use config::{IdentityConfig, Verified};
use cookies::Edited;
use decision::Decision;
use identity::{Identity, IdentityError};
use keys::Issuers;
pub(crate) use keys::KeySet;
use presented::{FORWARDED_USER, FORWARDED_USERNAME, Presented};
use refused::{MAX_FRAME_HEADERS, Refused};
pub(crate) use template::{HostTemplate, TemplateError};

/// How long a token that was checked is not checked again.
const TOKEN_REMEMBERED: Duration = Duration::from_secs(60);

/// How long a token that was refused is refused unseen.
const REFUSAL_REMEMBERED: Duration = Duration::from_secs(10);

/// Sends each user's requests to their own workspace.
pub(crate) struct UserUpstream {
    resolver: Arc<Resolver>,
    issuers: Issuers,
}

impl UserUpstream {
    pub(crate) fn new(resolver: Arc<Resolver>) -> Self {
        // Another crate in this program may have made both of its providers there,
        // and then it would have none of its own accord.
        let _ = CryptoProvider::install_default(&aws_lc::DEFAULT_PROVIDER);
        Self { resolver, issuers: Issuers::default() }
    }

    async fn admit(&self, config: &UserUpstreamConfig, request: &Request<'_>) -> Result<Admitted, Refused> {
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
            IdentityConfig::Gateway => by_userinfo(config, &presented)?,
            IdentityConfig::Verified(verified) => by_token(config, verified, &presented).await?,
        };
        let resolved = self.resolver.resolve(decision.upstream.host()).await;
        // The name has the subject in it, so it is told only to who asks for more.
        resolved.inspect_err(|reason| {
            debug!(upstream = %decision.upstream, %reason, "workspace has no address");
        })?;
        Ok(Admitted { decision, token_source: presented.token.map(|token| token.source) })
    }
}

/// A request that goes to a workspace.
struct Admitted {
    decision: Arc<Decision>,
    /// Which of the token's sources held the one that was checked.
    token_source: Option<usize>,
}

/// Decides by the gateway's word.
fn by_userinfo(config: &UserUpstreamConfig, presented: &Presented<'_>) -> Result<Arc<Decision>, Refused> {
    let memory = &config.memory.admitted;
    let digest = memory.digest([presented.userinfo, None]);
    if let Some(decision) = memory.get(digest, Instant::now()) {
        return Ok(decision);
    }
    let identity = Identity::of_userinfo(presented, &config.wanted)?;
    let decision = Arc::new(Decision::of(config, &identity.claims)?);
    memory.insert(digest, Arc::clone(&decision), None);
    Ok(decision)
}

/// Decides by a token's word, once its signature is checked.
async fn by_token(
    config: &UserUpstreamConfig,
    verified: &Verified,
    presented: &Presented<'_>,
) -> Result<Arc<Decision>, Refused> {
    let memory = &config.memory;
    let headers = [presented.token.map(|token| token.text), presented.userinfo];
    let digest = memory.admitted.digest(headers);
    let now = Instant::now();
    if let Some(decision) = memory.admitted.get(digest, now) {
        return Ok(decision);
    }
    if let Some(refused) = memory.refused.get(digest, now) {
        return Err(refused);
    }
    // The future of a real check is large, and rarely needed.
    match Box::pin(check_token(config, verified, presented)).await {
        Ok((decision, good_for)) => {
            let good_until = now + good_for.min(TOKEN_REMEMBERED);
            memory.admitted.insert(digest, Arc::clone(&decision), Some(good_until));
            Ok(decision)
        }
        Err(refused) => {
            if refused.is_lasting() {
                memory.refused.insert(digest, refused.clone(), Some(now + REFUSAL_REMEMBERED));
            }
            Err(refused)
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
    let decision = Decision::of(config, &identity.claims)?;
    Ok((Arc::new(decision), identity.good_for.unwrap_or_default()))
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
        if let IdentityConfig::Verified(verified) = &config.identity {
            if let Some(file) = &verified.keys.ca_file {
                keys::read_ca_file(file)?;
            }
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
        for name in config.identity.token_sources().secrets(admitted.token_source) {
            remove(name, request)?;
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
        Ok(Action::Continue)
    }
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
    let rendered = refusal.render(&reader, &request_id, Some(&config.login));
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

    use super::presented::IDENTITY_HEADERS;
    use super::*;
    use crate::plugin::Registry;
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
        assert!(registry.add(UserUpstream::new(Arc::new(Resolver::new(&servers).unwrap()))));
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
}
