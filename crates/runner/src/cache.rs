//! What a cached decision depends on, and whether a plugin looked at anything else.

#[cfg(feature = "direct")]
mod digest;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use thiserror::Error;

/// The parts of a request that a plugin's decisions depend on: see
/// [`Plugin::cache_key`](crate::Plugin::cache_key).
///
/// Two requests share a cached decision if these parts are equal. The route, the scheme,
/// the host that goes upstream, and whether there is an `Upgrade` header are parts of every
/// key. Requests with a `_` in the name of a header, or with 100 headers or more, never
/// share a decision.
///
/// Name as little as the plugin needs, because each value makes decisions of its own: a
/// plugin that only asks whether a header is there names its
/// [presence](Self::and_presence), and one that tells pages from scripts names
/// [navigations](Self::and_navigation), because the values of `Accept` differ from request
/// to request. Values enter the key as one SHA-256 digest, so the gateway keeps no token.
///
/// ```
/// use apisix_plugin_runner::{CacheKey, HeaderName};
///
/// let key = CacheKey::new([HeaderName::from_static("x-team")])
///     .and_presence([HeaderName::from_static("x-debug")])
///     .and_navigation();
/// assert_eq!(key.to_string(), "x-team, whether x-debug is there, navigation or not");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheKey(Arc<KeyParts>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeyParts {
    /// Headers with all their values, each once, by name.
    pub(crate) values: Vec<HeaderName>,
    /// Headers that are there or not, each once, by name.
    pub(crate) presence: Vec<HeaderName>,
    pub(crate) has_navigation: bool,
}

/// Something of a request that a plugin looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Look<'n> {
    Values(&'n str),
    Presence(&'n str),
    Navigation,
    /// Something that no key can hold, in words.
    Other(&'static str),
}

impl fmt::Display for Look<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Values(name) => write!(formatter, "the header {name:?}"),
            Self::Presence(name) => write!(formatter, "whether the header {name:?} is there"),
            Self::Navigation => formatter.write_str("whether it is a navigation"),
            Self::Other(what) => formatter.write_str(what),
        }
    }
}

/// How many headers a cached decision may name in each of its lists. The gateway's plugin
/// allows as many.
pub(crate) const MAX_NAMES: usize = 32;

/// Whether a cached decision may name this header. The gateway's cache knows a header by one
/// spelling of its name only.
pub(crate) fn is_plain(name: &HeaderName) -> bool {
    name.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Why a plugin's cache key can't be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum CacheKeyError {
    #[error("the cache key names no header, so the requests of all users of a route would share a decision")]
    NoHeader,
    #[error("the cache key names more than {MAX_NAMES} headers")]
    TooMany,
    #[error("the cache key names {0}: a name has letters, digits and `-` only")]
    Name(HeaderName),
}

impl CacheKey {
    /// A key of all values of these headers.
    pub fn new(headers: impl IntoIterator<Item = HeaderName>) -> Self {
        Self(Arc::new(KeyParts { values: sorted(headers), ..KeyParts::default() }))
    }

    /// Adds whether these headers are there, whatever their values.
    #[must_use]
    pub fn and_presence(mut self, headers: impl IntoIterator<Item = HeaderName>) -> Self {
        let parts = Arc::make_mut(&mut self.0);
        parts.presence = sorted(std::mem::take(&mut parts.presence).into_iter().chain(headers));
        self
    }

    /// Adds whether the request is a browser's navigation:
    /// [`is_navigation`](crate::accept::is_navigation).
    #[must_use]
    pub fn and_navigation(mut self) -> Self {
        Arc::make_mut(&mut self.0).has_navigation = true;
        self
    }

    #[cfg(feature = "direct")]
    pub(crate) fn parts(&self) -> &KeyParts {
        &self.0
    }

    /// Checks what the gateway's plugin would not accept, when a conf is prepared.
    pub(crate) fn check(&self) -> Result<(), CacheKeyError> {
        let KeyParts { values, presence, .. } = &*self.0;
        if values.is_empty() && presence.is_empty() {
            return Err(CacheKeyError::NoHeader);
        }
        if values.len() > MAX_NAMES || presence.len() > MAX_NAMES {
            return Err(CacheKeyError::TooMany);
        }
        let wrong = values.iter().chain(presence).find(|name| !is_plain(name));
        wrong.map_or(Ok(()), |name| Err(CacheKeyError::Name(name.clone())))
    }

    /// Whether requests with equal keys look the same.
    pub(crate) fn covers(&self, look: Look<'_>) -> bool {
        let KeyParts { values, presence, has_navigation } = &*self.0;
        let has = |names: &[HeaderName], name: &str| {
            names.iter().any(|known| known.as_str().eq_ignore_ascii_case(name))
        };
        match look {
            Look::Values(name) => has(values, name),
            Look::Presence(name) => {
                // Part of every key.
                name.eq_ignore_ascii_case("upgrade") || has(presence, name) || has(values, name)
            }
            Look::Navigation => *has_navigation,
            Look::Other(_) => false,
        }
    }

    /// The key of a chain of two plugins.
    fn and(self, other: &Self) -> Self {
        if self == *other {
            return self;
        }
        let KeyParts { values, presence, has_navigation } = &*other.0;
        let mut both = self.and_presence(presence.iter().cloned());
        let parts = Arc::make_mut(&mut both.0);
        parts.values = sorted(std::mem::take(&mut parts.values).into_iter().chain(values.iter().cloned()));
        parts.has_navigation |= *has_navigation;
        both
    }
}

fn sorted(names: impl IntoIterator<Item = HeaderName>) -> Vec<HeaderName> {
    let mut names: Vec<_> = names.into_iter().collect();
    names.sort_by(|one, other| one.as_str().cmp(other.as_str()));
    names.dedup();
    names
}

impl fmt::Display for CacheKey {
    /// The parts, for people who look at a decision.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let KeyParts { values, presence, has_navigation } = &*self.0;
        let values = values.iter().map(ToString::to_string);
        let presence = presence.iter().map(|name| format!("whether {name} is there"));
        let navigation = has_navigation.then(|| "navigation or not".to_owned());
        let parts: Vec<_> = values.chain(presence).chain(navigation).collect();
        formatter.write_str(&parts.join(", "))
    }
}

/// What all plugins of a chain allow to be cached: as much as the strictest of them.
#[derive(Debug, Default)]
pub(crate) enum Cacheable {
    /// No plugin has decided yet.
    #[default]
    Undecided,
    Never,
    For {
        time: Duration,
        key: CacheKey,
    },
}

impl Cacheable {
    /// Adds what one more plugin allows.
    pub(crate) fn and(self, allowed: Option<(Duration, CacheKey)>) -> Self {
        match (self, allowed) {
            (Self::Never, _) | (_, None) => Self::Never,
            (Self::Undecided, Some((time, key))) => Self::For { time, key },
            (Self::For { time, key }, Some((other, more))) => {
                Self::For { time: time.min(other), key: key.and(&more) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(names: &[&'static str]) -> CacheKey {
        CacheKey::new(names.iter().copied().map(HeaderName::from_static))
    }

    #[test]
    fn a_key_covers_what_equal_requests_have_in_common() {
        let key = key(&["x-a"]).and_presence([HeaderName::from_static("x-b")]);
        for (look, expected) in [
            (Look::Values("X-A"), true),
            (Look::Presence("x-a"), true),
            (Look::Values("x-b"), false),
            (Look::Presence("X-B"), true),
            (Look::Presence("x-c"), false),
            (Look::Presence("Upgrade"), true),
            (Look::Values("upgrade"), false),
            (Look::Navigation, false),
            (Look::Other("the path"), false),
        ] {
            assert_eq!(key.covers(look), expected, "{look}");
        }
        assert!(key.and_navigation().covers(Look::Navigation));
    }

    #[test]
    fn a_key_that_the_gateway_would_not_accept_is_refused() {
        let many: Vec<_> = (0..=MAX_NAMES).map(|number| format!("x-{number}").try_into().unwrap()).collect();
        for (key, expected) in [
            (key(&["x-a"]), Ok(())),
            (key(&[]).and_presence([HeaderName::from_static("x-a")]), Ok(())),
            (key(&[]), Err(CacheKeyError::NoHeader)),
            (key(&[]).and_navigation(), Err(CacheKeyError::NoHeader)),
            (key(&["x_a"]), Err(CacheKeyError::Name(HeaderName::from_static("x_a")))),
            (CacheKey::new(many.clone()), Err(CacheKeyError::TooMany)),
            (key(&["x-a"]).and_presence(many), Err(CacheKeyError::TooMany)),
        ] {
            assert_eq!(key.check(), expected, "{key}");
        }
    }

    #[test]
    fn the_key_of_two_plugins_has_the_parts_of_both() {
        let both = key(&["x-b", "x-a", "x-b"]).and(&key(&["x-c"]).and_navigation());
        assert_eq!(both.to_string(), "x-a, x-b, x-c, navigation or not");
        let strictest = Cacheable::default()
            .and(Some((Duration::from_secs(2), key(&["x-a"]))))
            .and(Some((Duration::from_secs(1), key(&["x-a"]))));
        assert!(
            matches!(strictest, Cacheable::For { time, key: one } if time.as_secs() == 1 && one == key(&["x-a"]))
        );
    }
}
