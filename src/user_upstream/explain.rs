//! A decision step by step, with the very parts that decide, for an operator to
//! read.

use std::sync::Arc;
use std::time::Duration;

use super::claims::{Claim, Claims, Found};
use super::config::{IdentityConfig, UserUpstreamConfig, Verified};
use super::cookies::Edited;
use super::decision::Decision;
use super::identity::{IdentityError, with_userinfo};
use super::keys::{KeySet, verify_with_set};
use super::presented::{self, AUTHORIZATION, Presented, PresentedToken};
use super::refused::{MAX_FRAME_HEADERS, Refused};
use super::token::{Token, TokenError};
use super::{origin, userinfo};
use crate::headers::HeaderName;
use crate::resolver::{ResolveError, Resolver};
use crate::upstream::{Upstream, UpstreamMode};

/// How much of a token is shown, in characters: its header begins alike in all.
const SHOWN_TOKEN: usize = 10;

/// How much of a text from a request is shown, in characters.
const SHOWN_TEXT: usize = 200;

/// How many values of a list are shown.
const SHOWN_VALUES: usize = 8;

/// What is asked: would this request go to a workspace?
pub(crate) struct Question<'q> {
    pub(crate) config: &'q UserUpstreamConfig,
    pub(crate) headers: &'q [(Vec<u8>, Vec<u8>)],
    /// Keys to check signatures with, in place of the issuer's.
    pub(crate) keys: Option<KeySet>,
    /// Looks names up, the issuer's too; without it nobody is asked.
    pub(crate) resolver: Option<Arc<Resolver>>,
    /// Seconds since 1970.
    pub(crate) now: f64,
    /// How the request gets there.
    pub(crate) way: UpstreamMode,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Good,
    Bad,
    /// Nobody looked.
    Open,
}

/// One step of a decision.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) outcome: Outcome,
    pub(crate) what: &'static str,
    pub(crate) said: String,
}

/// The steps of a decision, up to the one that refuses.
#[derive(Default)]
pub(crate) struct Steps(pub(crate) Vec<Step>);

impl Steps {
    fn add(&mut self, outcome: Outcome, what: &'static str, said: impl Into<String>) {
        self.0.push(Step { outcome, what, said: said.into() });
    }

    fn good(&mut self, what: &'static str, said: impl Into<String>) {
        self.add(Outcome::Good, what, said);
    }

    /// The value, or the refusal after noting it.
    fn check<T, E: Into<Refused>>(
        &mut self,
        what: &'static str,
        checked: Result<T, E>,
    ) -> Result<T, Refused> {
        checked.map_err(|error| {
            let refused = error.into();
            self.add(Outcome::Bad, what, refused.to_string());
            refused
        })
    }
}

impl Question<'_> {
    /// Goes the way of a request, and notes each step.
    pub(crate) async fn answer(&self, steps: &mut Steps) -> Result<Upstream, Refused> {
        let presented = self.look_at_headers(steps)?;
        let claims = match &self.config.identity {
            IdentityConfig::Gateway => self.believe_gateway(&presented, steps)?,
            IdentityConfig::Verified(verified) => self.verify(verified, &presented, steps).await?,
        };
        steps.good("subject", shown(claims.subject()));
        let decision = self.decide(&claims, steps)?;
        self.look_up(&decision.upstream, steps).await?;
        if self.way == UpstreamMode::Direct {
            steps.good("way", "direct: the gateway goes there itself, with kube-coders-upstream.lua");
        }
        self.tell_changes(&presented, &decision, steps);
        Ok(decision.upstream)
    }

    fn headers(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.headers.iter().map(|(name, value)| (name.as_slice(), value.as_slice()))
    }

    fn is_there(&self, wanted: &str) -> bool {
        self.headers().any(|(name, _)| name.eq_ignore_ascii_case(wanted.as_bytes()))
    }

    fn look_at_headers(&self, steps: &mut Steps) -> Result<Presented<'_>, Refused> {
        let count = self.headers.len();
        let few = if count < MAX_FRAME_HEADERS { Ok(()) } else { Err(Refused::TooManyHeaders) };
        steps.check("headers", few)?;
        let identity = &self.config.identity;
        let presented =
            presented::find(self.headers(), identity.token_sources()).map_err(IdentityError::from);
        let presented = steps.check("headers", presented)?;
        steps.check("headers", identity.look_at(&presented))?;
        steps.good("headers", format!("{count} in all, each identity header once"));
        if self.is_there("upgrade") {
            let own = if origin::is_foreign(self.headers()) { Err(Refused::ForeignOrigin) } else { Ok(()) };
            steps.check("origin", own)?;
            steps.good("origin", "none, or the request's own host");
        }
        Ok(presented)
    }

    fn believe_gateway(&self, presented: &Presented<'_>, steps: &mut Steps) -> Result<Claims, Refused> {
        let value = presented.userinfo.unwrap_or_default();
        let claims = userinfo::decode(value, &self.config.wanted).map_err(IdentityError::from);
        let claims = steps.check("userinfo", claims)?;
        steps.good("userinfo", "believed, because the conf trusts the gateway");
        Ok(claims)
    }

    async fn verify(
        &self,
        verified: &Verified,
        presented: &Presented<'_>,
        steps: &mut Steps,
    ) -> Result<Claims, Refused> {
        let PresentedToken { text, source } =
            presented.token.unwrap_or(PresentedToken { text: b"", source: 0 });
        let header = &verified.sources.names()[source];
        let token = Token::decode(text, &self.config.wanted).map_err(IdentityError::from);
        let token = steps.check("token", token)?;
        let key = token.key_id.as_deref().map_or("no kid".to_owned(), |id| format!("kid {}", shown(id)));
        let (start, length) = (String::from_utf8_lossy(text), text.len());
        let start: String = start.chars().take(SHOWN_TOKEN).collect();
        steps.good("token", format!("in {header}: {start}… ({length} bytes), {:?}, {key}", token.algorithm));
        let expires = token.check(&verified.expected, self.now).map_err(|error| {
            let found = self.found(&token, error, verified);
            let refused = Refused::from(IdentityError::from(error));
            steps.add(Outcome::Bad, "claims", format!("{refused}{found}"));
            refused
        })?;
        steps.good(
            "claims",
            format!("`iss` and audience as the conf says, expires {}", distance(expires - self.now)),
        );
        let claims = self.check_signature(verified, token, steps).await?;
        let claims = claims.with_subject().map_err(|error| IdentityError::from(TokenError::Claims(error)));
        let claims = steps.check("subject", claims)?;
        if presented.userinfo.is_some() {
            let merged = with_userinfo(claims, presented.userinfo, &self.config.wanted, verified);
            let merged = steps.check("userinfo", merged)?;
            steps.good("userinfo", userinfo_says(verified));
            return Ok(merged);
        }
        Ok(claims)
    }

    async fn check_signature(
        &self,
        verified: &Verified,
        token: Token<'_>,
        steps: &mut Steps,
    ) -> Result<Claims, Refused> {
        let checked = match (&self.keys, &self.resolver) {
            (Some(keys), _) => verify_with_set(keys, token).map_err(IdentityError::from),
            (None, Some(resolver)) => match verified.keys.fetch(resolver).await {
                Ok(fetched) => {
                    let other = fetched.other_issuer.as_deref().map(shown);
                    let other = other.map_or_else(String::new, |other| {
                        format!("; the discovery document calls its issuer {other}")
                    });
                    let (count, discovery) = (fetched.keys.len(), &verified.keys.discovery);
                    steps.good("keys", format!("{count} of {discovery}{other}"));
                    verify_with_set(&fetched.keys, token).map_err(IdentityError::from)
                }
                Err(error) => {
                    steps.add(Outcome::Bad, "keys", error.to_string());
                    return Err(IdentityError::KeysUnavailable.into());
                }
            },
            (None, None) => {
                steps.add(
                    Outcome::Open,
                    "signature",
                    "not checked: --keys gives the issuer's keys, --online asks for them",
                );
                return Ok(token.unverified());
            }
        };
        let claims = steps.check("signature", checked)?;
        steps.good("signature", "the issuer's");
        Ok(claims)
    }

    /// What stands where a check of a token failed.
    fn found(&self, token: &Token<'_>, error: TokenError, verified: &Verified) -> String {
        let claim = |name| format!("`{name}` {}", said(token.claim(name)));
        let time = |name| match token.claim(name) {
            Some(Claim::Number(at)) if *at < self.now => format!("; it was {}", distance(at - self.now)),
            Some(Claim::Number(at)) => format!("; it is {}", distance(at - self.now)),
            found => format!("; `{name}` {}", said(found)),
        };
        match error {
            TokenError::Issuer => {
                format!("; {}, identity.issuer is {}", claim("iss"), shown(&verified.expected.issuer))
            }
            TokenError::Audience => format!("; {}, {}", claim("aud"), claim("azp")),
            TokenError::NoExpiry | TokenError::Expired => time("exp"),
            TokenError::NotYetValid => time("nbf"),
            TokenError::FromTheFuture => time("iat"),
            _ => String::new(),
        }
    }

    fn decide(&self, claims: &Claims, steps: &mut Steps) -> Result<Decision, Refused> {
        let decided = Decision::of(self.config, claims);
        let is_denied = matches!(&decided, Err(super::decision::DecisionError::Denied(_)));
        if self.config.policy.is_empty() {
            steps.good("policy", "no rules, everybody is let in");
        } else {
            for path in self.config.policy.paths() {
                steps.good("claim", format!("`{path}` {}", found_says(claims.find(path))));
            }
            if !is_denied {
                steps.good("policy", "let in");
            }
        }
        if !is_denied {
            for (claim, label) in self.config.upstream.labels(claims) {
                let value = claims.text(claim).map_or("missing".to_owned(), shown);
                let outcome = if label.is_some() { Outcome::Good } else { Outcome::Bad };
                let label = label.unwrap_or_else(|| "no label".to_owned());
                steps.add(outcome, "label", format!("`{claim}` is {value}: {label}"));
            }
        }
        let decision = steps.check(if is_denied { "policy" } else { "name" }, decided)?;
        steps.good("name", decision.upstream.host().as_str());
        Ok(decision)
    }

    async fn look_up(&self, upstream: &Upstream, steps: &mut Steps) -> Result<(), Refused> {
        let Some(resolver) = &self.resolver else {
            match upstream.host().as_ip() {
                Some(address) => steps.good("addresses", address.to_string()),
                None => steps.add(Outcome::Open, "addresses", "not looked up: --online does"),
            }
            return Ok(());
        };
        let found: Result<_, ResolveError> = resolver.resolve(upstream.host()).await;
        let addresses = steps.check("addresses", found)?;
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        steps.good("addresses", addresses.join(", "));
        Ok(())
    }

    fn tell_changes(&self, presented: &Presented<'_>, decision: &Decision, steps: &mut Steps) {
        let secrets = self.config.identity.token_sources().secrets();
        let mut removed: Vec<_> =
            secrets.map(HeaderName::as_str).filter(|name| self.is_there(name)).collect();
        let is_authorization =
            |(name, _): &(&[u8], &[u8])| name.eq_ignore_ascii_case(AUTHORIZATION.as_bytes());
        let mut authorizations = self.headers().filter(is_authorization);
        if presented.token.is_some_and(|token| authorizations.any(|(_, value)| token.is_in(value))) {
            removed.push(AUTHORIZATION);
        }
        let cookies: Vec<_> =
            self.headers().filter(|(name, _)| name.eq_ignore_ascii_case(b"cookie")).collect();
        match self.config.remove_cookies.edit(cookies.iter().map(|(_, value)| *value)) {
            Edited::Unchanged => {}
            Edited::Removed => removed.push("cookie"),
            Edited::Cookies(_) => removed.push("the session in cookie"),
        }
        if !removed.is_empty() {
            steps.good("removed", removed.join(", "));
        }
        let user = decision.upstream.subject().unwrap_or_default();
        let name = decision
            .username
            .as_deref()
            .map(|name| format!(", x-forwarded-preferred-username: {}", shown(name)));
        steps.good("added", format!("x-forwarded-user: {}{}", shown(user), name.unwrap_or_default()));
    }
}

fn userinfo_says(verified: &Verified) -> String {
    match &*verified.userinfo_claims {
        [] => "of the same subject; it adds nothing, because it is unsigned (identity.userinfo_claims)"
            .to_owned(),
        names => format!("of the same subject; it may add {}", names.join(", ")),
    }
}

/// What a claim is, in a word or as it stands there.
fn said(claim: Option<&Claim>) -> String {
    match claim {
        None => "is missing".to_owned(),
        Some(Claim::Text(text)) => format!("is {}", shown(text)),
        Some(Claim::Number(number)) => format!("is {number}"),
        Some(Claim::List(list)) => {
            let texts: Vec<_> = list
                .iter()
                .take(SHOWN_VALUES)
                .map(|claim| match claim {
                    Claim::Text(text) => shown(text),
                    _ => "something else than a text".to_owned(),
                })
                .collect();
            let more = if list.len() > SHOWN_VALUES { ", …" } else { "" };
            format!("is a list of {}: {}{more}", list.len(), texts.join(", "))
        }
        Some(Claim::Object(_) | Claim::Other) => "is neither a text nor a list".to_owned(),
    }
}

fn found_says(found: Found<'_>) -> String {
    match found {
        Found::Claim(claim) => said(Some(claim)),
        Found::Nothing => "is missing, so no value of it is there".to_owned(),
        Found::NoObject => "leads through something that is no object".to_owned(),
    }
}

/// A text from a request, quoted, and cut where it is long.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(SHOWN_TEXT).collect();
    let more = if short.len() < text.len() { "…" } else { "" };
    format!("{short:?}{more}")
}

fn distance(seconds: f64) -> String {
    let length = Duration::from_secs(seconds.abs().min(1e9) as u64);
    let length = humantime::format_duration(length);
    if seconds < 0.0 { format!("{length} ago") } else { format!("in {length}") }
}
