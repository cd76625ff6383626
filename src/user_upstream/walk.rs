//! The way of a request through the plugin: its identity, the policy, the template, the
//! workspace's addresses, and the changes that it gets.
//!
//! The plugin and `explain` walk the same function. They differ in where keys come from,
//! in what is known of the request, and in the trace.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tracing::debug;

use super::browser_marker::OWN_COOKIES;
use super::decision::WorkspaceDecision;
use super::memory::{ConfNumber, Memory};
use super::origin;
use super::rejection::{Rejection, UserRejection};
use super::request_headers::{
    ACCESS_TOKEN, AUTHORIZATION, FORWARDED_USER, FORWARDED_USERNAME, RESERVED, STAMP,
};
use super::trace::{StepOutcome, Trace, claim_text, distance, quoted};
use crate::resolver::Resolver;
use apisix_plugin_runner::{CookieNames, HeaderName, PluginError, Upstream};
use kube_coders_identity::claims::Claim;
use kube_coders_identity::config::{IdentityConfig, UserUpstreamConfig, Verified};
use kube_coders_identity::identity_error::IdentityError;
use kube_coders_identity::identity_headers::{self, IdentityHeaders, TokenHeader};
use kube_coders_identity::keys::SignedClaims;
use kube_coders_identity::token::has_token_of;
use kube_coders_identity::token::{Token, TokenError};
use kube_coders_identity::userinfo;

/// How much of a token is shown, in characters: its header begins alike in all.
const SHOWN_TOKEN: usize = 10;

/// How long a decision is good at most by its token, in seconds. No memory keeps one for so
/// long.
const MAX_GOOD_FOR: f64 = 86_400.0;

/// The request of a walk: what it has, and the changes that it gets.
pub(super) trait Exchange: Send + Sync {
    /// How many headers there are. Only a trace asks.
    fn header_count(&self) -> usize;

    /// Whether the gateway may have left headers out.
    fn may_lack_headers(&self) -> bool;

    /// The names of the headers that have a `_` in them.
    fn names_with_underscore(&self) -> impl Iterator<Item = &[u8]>;

    /// All values of a header.
    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + Clone + 'a;

    /// How the client speaks to the gateway. The walk asks only if it matters, because the
    /// plugin has to ask the gateway.
    fn scheme(&mut self) -> impl Future<Output = Result<ClientScheme, PluginError>> + Send;

    fn remove(&mut self, name: &HeaderName) -> Result<(), PluginError>;

    fn set(&mut self, name: &HeaderName, value: &[u8]) -> Result<(), PluginError>;

    fn remove_cookies(&mut self, names: &CookieNames) -> Result<(), PluginError>;

    /// Whether there is a header of this name.
    fn has(&self, name: &str) -> bool;
}

/// How a client speaks to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientScheme {
    Https,
    /// Without TLS.
    Http,
    /// Not known here.
    Unknown,
}

/// The source of the keys that check the signatures of tokens.
pub(super) trait Keys: Sync {
    /// The claims of a token, as far as its signature is known.
    fn verify(
        &self,
        verified: &Verified,
        token: Token<'_>,
        trace: &mut impl Trace,
    ) -> impl Future<Output = Result<SignedClaims, Rejection>> + Send;
}

/// Why a walk has no decision.
#[derive(Debug)]
pub(crate) enum Stopped {
    Rejected(UserRejection),
    Failed(PluginError),
}

impl From<UserRejection> for Stopped {
    fn from(rejected: UserRejection) -> Self {
        Self::Rejected(rejected)
    }
}

impl From<PluginError> for Stopped {
    fn from(error: PluginError) -> Self {
        Self::Failed(error)
    }
}

/// The surroundings of a walk.
pub(super) struct Walk<'w, K> {
    pub(super) config: &'w UserUpstreamConfig,
    /// Decisions that are known already.
    pub(super) memory: Option<(&'w Memory, ConfNumber)>,
    pub(super) keys: K,
    /// Looks names of workspaces up; without it they stay open.
    pub(super) resolver: Option<&'w Resolver>,
}

impl<K: Keys> Walk<'_, K> {
    /// Decides about a request and makes its changes.
    pub(super) async fn decide(
        &self,
        request: &mut impl Exchange,
        trace: &mut impl Trace,
    ) -> Result<Arc<WorkspaceDecision>, Stopped> {
        let headers = self.identity_headers(request, trace).map_err(UserRejection::from)?;
        let decision = match &self.config.identity {
            IdentityConfig::Gateway => self.by_userinfo(&headers, trace)?,
            IdentityConfig::Verified(verified) => self.by_token(verified, &headers, trace).await?,
        };
        let is_in_authorization = self.is_in_authorization(headers.token, request);
        let rejected = |rejection| UserRejection::of_upstream(rejection, &decision.upstream);
        self.look_up(&decision.upstream, trace).await.map_err(rejected)?;
        if has_plain_page(request) {
            match request.scheme().await? {
                // An attacker on the network writes such a page, and the user's browser
                // opens it under the same name.
                ClientScheme::Https => {
                    trace.check("origin", Err(Rejection::ForeignOrigin)).map_err(rejected)?;
                }
                ClientScheme::Unknown => trace.open("scheme", || {
                    "not known: over https, a page at http:// is refused; --scheme says which it is"
                        .to_owned()
                }),
                ClientScheme::Http => {}
            }
        }
        self.change(is_in_authorization, &decision, request)?;
        Ok(decision)
    }

    fn identity_headers<'r>(
        &'r self,
        request: &'r impl Exchange,
        trace: &mut impl Trace,
    ) -> Result<IdentityHeaders<'r>, Rejection> {
        let few = if request.may_lack_headers() { Err(Rejection::TooManyHeaders) } else { Ok(()) };
        trace.check("headers", few)?;
        let identity = &self.config.identity;
        let values = |name| request.values(name);
        let underscored = request.names_with_underscore();
        let found = identity_headers::find(values, underscored, identity.token_sources(), &RESERVED);
        let found = trace.check("headers", found.map_err(IdentityError::from))?;
        trace.check("headers", identity.look_at(&found))?;
        trace.good("headers", || format!("{} in all, each identity header once", request.header_count()));
        if request.has("upgrade") {
            let is_foreign = origin::is_foreign(request.values("origin"), request.values("host"));
            trace.check("origin", if is_foreign { Err(Rejection::ForeignOrigin) } else { Ok(()) })?;
            trace.good("origin", || "none, or the request's own host".to_owned());
        }
        Ok(found)
    }

    /// Decides by the gateway's word.
    fn by_userinfo(
        &self,
        headers: &IdentityHeaders<'_>,
        trace: &mut impl Trace,
    ) -> Result<Arc<WorkspaceDecision>, UserRejection> {
        let place = self.memory.map(|(memory, conf)| (memory, memory.digest(conf, [headers.userinfo, None])));
        let known = place.and_then(|(memory, digest)| memory.decision(digest, Instant::now()));
        if let Some(decision) = known {
            return Ok(decision);
        }
        let value = headers.userinfo.ok_or(IdentityError::NoUserinfo);
        let value = trace.check("headers", value)?;
        let claims = userinfo::decode(value, &self.config.wanted).map_err(IdentityError::from);
        let claims = trace.check("userinfo", claims)?;
        trace.good("userinfo", || "believed, because the conf trusts the gateway".to_owned());
        let decision = WorkspaceDecision::of(self.config, &claims, trace);
        let decision =
            decision.map_err(|rejection| UserRejection::of_subject(rejection, claims.subject()))?;
        let decision = Arc::new(decision);
        if let Some((memory, digest)) = place {
            memory.keep_decision(digest, &decision);
        }
        Ok(decision)
    }

    /// Decides by a token's word, once its signature is checked.
    async fn by_token(
        &self,
        verified: &Verified,
        headers: &IdentityHeaders<'_>,
        trace: &mut impl Trace,
    ) -> Result<Arc<WorkspaceDecision>, UserRejection> {
        let place = self.memory.map(|(memory, conf)| {
            let told = [headers.token.map(|token| token.text), headers.userinfo];
            (memory, memory.digest(conf, told))
        });
        if let Some((memory, digest)) = place {
            let now = Instant::now();
            if let Some(decision) = memory.decision(digest, now) {
                return Ok(decision);
            }
            if let Some(rejected) = memory.rejection(digest, now) {
                return Err(rejected);
            }
        }
        // The future of a real check is large, and rarely needed.
        let decided = Box::pin(self.check_token(verified, headers, trace)).await;
        if let Some((memory, digest)) = place {
            match &decided {
                Ok(decision) => memory.keep_decision(digest, decision),
                Err(rejected) => memory.keep_rejection(digest, rejected),
            }
        }
        decided
    }

    async fn check_token(
        &self,
        verified: &Verified,
        headers: &IdentityHeaders<'_>,
        trace: &mut impl Trace,
    ) -> Result<Arc<WorkspaceDecision>, UserRejection> {
        let found = trace.check("headers", headers.token.ok_or(IdentityError::NoToken))?;
        let token = Token::decode(found.text, &self.config.wanted).map_err(IdentityError::from);
        let token = trace.check("token", token)?;
        trace.good("token", || token_text(&token, found, verified));
        let now = unix_now();
        let expires = token.check(&verified.expected, now).map_err(|error| {
            let rejection = Rejection::from(IdentityError::from(error));
            trace.note(StepOutcome::Bad, "claims", || {
                format!("{rejection}{}", failure_text(&token, error, verified, now))
            });
            rejection
        })?;
        trace.good("claims", || {
            format!("`iss` and audience as the conf says, expires {}", distance(expires - now))
        });
        let SignedClaims { claims, key } = self.keys.verify(verified, token, trace).await?;
        let claims = claims.with_subject().map_err(|error| IdentityError::from(TokenError::Claims(error)));
        let mut claims = trace.check("subject", claims)?;
        if headers.userinfo.is_some() {
            let merged = verified.with_userinfo(claims, headers.userinfo, &self.config.wanted);
            claims = trace.check("userinfo", merged)?;
            trace.good("userinfo", || userinfo_text(verified));
        }
        let good_for = (expires - now).clamp(0.0, MAX_GOOD_FOR);
        let decision = WorkspaceDecision::of(self.config, &claims, trace);
        let mut decision =
            decision.map_err(|rejection| UserRejection::of_subject(rejection, claims.subject()))?;
        let good_for = Duration::try_from_secs_f64(good_for).unwrap_or_default();
        decision.good_until = Some(Instant::now() + good_for);
        decision.key = Some(key);
        Ok(Arc::new(decision))
    }

    /// Whether `Authorization` has the user's token in it, or another one of the issuer: the
    /// gateway's login can put its access token there. Another authorization is the workspace's
    /// business.
    fn is_in_authorization(&self, token: Option<TokenHeader<'_>>, request: &impl Exchange) -> bool {
        let issuer = self.config.identity.issuer();
        request.values(AUTHORIZATION.as_str()).any(|value| {
            let is_in = |text| TokenHeader { text, source: 0 }.is_in(value);
            token.is_some_and(|token| token.is_in(value))
                || request.values(ACCESS_TOKEN.as_str()).any(is_in)
                || issuer.is_some_and(|issuer| has_token_of(value, issuer))
        })
    }

    async fn look_up(&self, upstream: &Upstream, trace: &mut impl Trace) -> Result<(), Rejection> {
        let Some(resolver) = self.resolver else {
            match upstream.host().as_ip() {
                Some(address) => trace.good("addresses", || address.to_string()),
                None => trace.open("addresses", || "not looked up: --online does".to_owned()),
            }
            return Ok(());
        };
        let resolved = resolver.resolve(upstream.host()).await;
        // The name has the subject in it, so it is logged only at this level.
        if let Err(reason) = &resolved {
            debug!(%upstream, %reason, "workspace has no address");
        }
        let addresses = trace.check("addresses", resolved)?;
        trace.good("addresses", || addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
        Ok(())
    }

    /// Removes from the request what would let a workspace act as its user, and adds the
    /// user's name and subject.
    fn change(
        &self,
        is_in_authorization: bool,
        decision: &WorkspaceDecision,
        request: &mut impl Exchange,
    ) -> Result<(), PluginError> {
        for name in self.config.identity.token_sources().secrets() {
            remove(name, request)?;
        }
        remove(&STAMP, request)?;
        if is_in_authorization {
            request.remove(&AUTHORIZATION)?;
        }
        request.remove_cookies(&self.config.remove_cookies)?;
        request.remove_cookies(&OWN_COOKIES)?;
        request.set(&FORWARDED_USER, decision.upstream.subject().unwrap_or_default().as_bytes())?;
        match &decision.username {
            Some(name) => request.set(&FORWARDED_USERNAME, name.as_bytes()),
            None => remove(&FORWARDED_USERNAME, request),
        }
    }
}

/// Whether a page without TLS opens a WebSocket.
fn has_plain_page(request: &impl Exchange) -> bool {
    request.has("upgrade") && request.values("origin").next().is_some_and(origin::is_plain)
}

/// Removes a header that is there: each change costs the gateway time, and most requests
/// have none of these headers.
fn remove(name: &HeaderName, request: &mut impl Exchange) -> Result<(), PluginError> {
    if request.has(name.as_str()) { request.remove(name) } else { Ok(()) }
}

/// Seconds since 1970, as tokens count them.
pub(super) fn unix_now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    // A clock before 1970 makes every token one from the future.
    since.map_or(0.0, |since| since.as_secs_f64())
}

fn token_text(token: &Token<'_>, found: TokenHeader<'_>, verified: &Verified) -> String {
    let TokenHeader { text, source } = found;
    let header = &verified.sources.names()[source];
    let key = token.key_id.as_deref().map_or("no kid".to_owned(), |id| format!("kid {}", quoted(id)));
    let start: String = String::from_utf8_lossy(text).chars().take(SHOWN_TOKEN).collect();
    format!("in {header}: {start}… ({} bytes), {:?}, {key}", text.len(), token.algorithm)
}

/// What was found instead, when the check of a token failed.
fn failure_text(token: &Token<'_>, error: TokenError, verified: &Verified, now: f64) -> String {
    let claim = |name| format!("`{name}` {}", claim_text(token.claim(name)));
    let time = |name| match token.claim(name) {
        Some(Claim::Number(at)) if *at < now => format!("; it was {}", distance(at - now)),
        Some(Claim::Number(at)) => format!("; it is {}", distance(at - now)),
        found => format!("; `{name}` {}", claim_text(found)),
    };
    match error {
        TokenError::Issuer => {
            format!("; {}, identity.issuer is {}", claim("iss"), quoted(&verified.expected.issuer))
        }
        TokenError::Audience => format!("; {}, {}", claim("aud"), claim("azp")),
        TokenError::NoExpiry | TokenError::Expired => time("exp"),
        TokenError::NotYetValid => time("nbf"),
        TokenError::FromTheFuture => time("iat"),
        _ => String::new(),
    }
}

fn userinfo_text(verified: &Verified) -> String {
    match &*verified.userinfo_claims {
        [] => "of the same subject; it adds nothing, because it is unsigned (identity.userinfo_claims)"
            .to_owned(),
        names => format!("of the same subject; it may add {}", names.join(", ")),
    }
}
