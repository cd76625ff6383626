//! The walk of an imagined request, step by step, for an administrator to read.

use std::sync::Arc;

use reqwest::dns::Resolve;

use super::issuer_names::IssuerNames;
use super::rejection::Rejection;
use super::trace::{StepOutcome, Steps, Trace, quoted};
use super::walk::{ClientScheme, Exchange, Keys, Stopped, Walk};
use crate::resolver::Resolver;
use apisix_plugin_runner::{
    CookieNames, EditedCookies, HeaderName, MAX_FRAME_HEADERS, PluginError, Upstream, UpstreamMode,
};
use kube_coders_identity::config::{UserUpstreamConfig, Verified};
use kube_coders_identity::identity_error::IdentityError;
use kube_coders_identity::keys::{KeySet, KeyStatus, SignedClaims, verify_with_set};
use kube_coders_identity::token::Token;

/// A request to explain: would it go to a workspace?
pub(crate) struct ExplainedRequest<'q> {
    pub(crate) config: &'q UserUpstreamConfig,
    pub(crate) headers: &'q [(Vec<u8>, Vec<u8>)],
    /// How the client speaks to the gateway.
    pub(crate) scheme: ClientScheme,
    /// Keys to check signatures with, in place of the issuer's.
    pub(crate) keys: Option<KeySet>,
    /// Look up names of workspaces, and of issuers. Without them nothing is asked.
    pub(crate) resolvers: Option<[Arc<Resolver>; 2]>,
    /// How the request gets there.
    pub(crate) way: UpstreamMode,
}

impl ExplainedRequest<'_> {
    /// Walks as a request does, and takes each step down.
    pub(crate) async fn walk(&self, steps: &mut Steps) -> Result<Upstream, Stopped> {
        let (resolver, issuers) = match &self.resolvers {
            Some([workspaces, issuers]) => (Some(&**workspaces), Some(Arc::clone(issuers))),
            None => (None, None),
        };
        let names = issuers.map(|issuers| Arc::new(IssuerNames(issuers)) as Arc<dyn Resolve>);
        let keys = OfflineKeys { given: self.keys.as_ref(), names };
        let walk = Walk { config: self.config, memory: None, keys, resolver };
        let mut request = OfflineRequest::new(self.headers, self.scheme);
        let decision = walk.decide(&mut request, steps).await?;
        if self.way == UpstreamMode::Direct {
            steps.good("way", || {
                "direct: the gateway goes there itself, with kube-coders-upstream.lua".to_owned()
            });
        }
        note_changes(&request.changes, steps);
        Ok(decision.upstream.clone())
    }
}

static COOKIE: HeaderName = HeaderName::from_static("cookie");

/// An imagined request.
pub(super) struct OfflineRequest<'q> {
    headers: &'q [(Vec<u8>, Vec<u8>)],
    scheme: ClientScheme,
    /// A header's new value, or `None` for one that is removed.
    changes: Vec<(HeaderName, Option<Vec<u8>>)>,
}

impl<'q> OfflineRequest<'q> {
    pub(super) fn new(headers: &'q [(Vec<u8>, Vec<u8>)], scheme: ClientScheme) -> Self {
        Self { headers, scheme, changes: Vec::new() }
    }
}

impl Exchange for OfflineRequest<'_> {
    fn header_count(&self) -> usize {
        self.headers.len()
    }

    fn may_lack_headers(&self) -> bool {
        self.headers.len() >= MAX_FRAME_HEADERS
    }

    fn names_with_underscore(&self) -> impl Iterator<Item = &[u8]> {
        self.headers.iter().map(|(name, _)| name.as_slice()).filter(|name| name.contains(&b'_'))
    }

    fn has(&self, name: &str) -> bool {
        self.values(name).next().is_some()
    }

    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + Clone + 'a {
        let named = self.headers.iter().filter(move |(other, _)| other.eq_ignore_ascii_case(name.as_bytes()));
        named.map(|(_, value)| value.as_slice())
    }

    async fn scheme(&mut self) -> Result<ClientScheme, PluginError> {
        Ok(self.scheme)
    }

    fn remove(&mut self, name: &HeaderName) -> Result<(), PluginError> {
        self.changes.push((name.clone(), None));
        Ok(())
    }

    fn set(&mut self, name: &HeaderName, value: &[u8]) -> Result<(), PluginError> {
        self.changes.push((name.clone(), Some(value.to_vec())));
        Ok(())
    }

    fn remove_cookies(&mut self, names: &CookieNames) -> Result<(), PluginError> {
        let changed =
            self.changes.iter().rev().find(|(name, _)| *name == COOKIE).map(|(_, value)| value.clone());
        let edited = match &changed {
            Some(changed) => names.remove_from(changed.as_deref().into_iter()),
            None => names.remove_from(self.values("cookie")),
        };
        match edited {
            EditedCookies::Unchanged => Ok(()),
            EditedCookies::Removed => self.remove(&COOKIE),
            EditedCookies::Left(left) => self.set(&COOKIE, &left),
        }
    }
}

/// The keys that were given, or the issuer's if it may be asked.
struct OfflineKeys<'q> {
    given: Option<&'q KeySet>,
    names: Option<Arc<dyn Resolve>>,
}

impl Keys for OfflineKeys<'_> {
    async fn verify(
        &self,
        verified: &Verified,
        token: Token<'_>,
        trace: &mut impl Trace,
    ) -> Result<SignedClaims, Rejection> {
        let checked = match (self.given, &self.names) {
            (Some(keys), _) => verify_with_set(keys, token),
            (None, Some(names)) => match verified.keys.fetch(names).await {
                Ok(fetched) => {
                    let other = fetched.other_issuer.as_deref().map(quoted);
                    let other = other.map_or_else(String::new, |other| {
                        format!("; the discovery document calls its issuer {other}")
                    });
                    let (count, discovery) = (fetched.keys.len(), &verified.keys.discovery);
                    trace.good("keys", || format!("{count} of {discovery}{other}"));
                    verify_with_set(&fetched.keys, token)
                }
                Err(error) => {
                    trace.note(StepOutcome::Bad, "keys", || error.to_string());
                    return Err(IdentityError::KeysUnavailable.into());
                }
            },
            (None, None) => {
                trace.open("signature", || {
                    "not checked: --keys gives the issuer's keys, --online asks for them".to_owned()
                });
                return Ok(SignedClaims { claims: token.unverified(), key: KeyStatus::default() });
            }
        };
        let signed = trace.check("signature", checked.map_err(IdentityError::from))?;
        trace.good("signature", || "the issuer's".to_owned());
        Ok(signed)
    }
}

fn note_changes(changes: &[(HeaderName, Option<Vec<u8>>)], steps: &mut Steps) {
    let is_cookie = |name: &HeaderName| name.as_str() == "cookie";
    let removed = changes.iter().filter(|(name, value)| value.is_none() || is_cookie(name));
    let removed: Vec<_> = removed
        .map(|(name, value)| if value.is_some() { "the session in cookie" } else { name.as_str() })
        .collect();
    if !removed.is_empty() {
        steps.good("removed", || removed.join(", "));
    }
    let added = changes.iter().filter(|(name, _)| !is_cookie(name)).filter_map(|(name, value)| {
        Some(format!("{name}: {}", quoted(&String::from_utf8_lossy(value.as_deref()?))))
    });
    steps.good("added", || added.collect::<Vec<_>>().join(", "));
}
