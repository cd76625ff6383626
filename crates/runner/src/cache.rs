//! What a gateway may cache of a decision, and what a cached decision depends on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

/// The request headers that a cached decision depends on: see
/// [`Request::cache_for`](crate::Request::cache_for).
///
/// The key must be complete. It names `host`, `origin` and `cookie` too, if the plugin
/// looks at them. The route, the scheme, the host that goes upstream and whether there is
/// an `Upgrade` are part of every key. The key is shared, so that a plugin makes it once
/// and not for each request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheKey {
    headers: Vec<HeaderName>,
    removed_cookies: BTreeSet<Box<str>>,
}

impl CacheKey {
    /// A key of these request headers.
    pub fn new(headers: impl IntoIterator<Item = HeaderName>) -> Self {
        let mut headers: Vec<_> = headers.into_iter().collect();
        headers.sort_by(|one, other| one.as_str().cmp(other.as_str()));
        headers.dedup();
        Self { headers, removed_cookies: BTreeSet::new() }
    }

    /// Names cookies that the plugin removes from `Cookie`, together with their numbered
    /// chunks (`name2`, `name_2`). The gateway removes them itself from each request that
    /// a cached decision answers, whatever other cookies the request has, and does not use
    /// the `Cookie` header that the plugin set.
    #[must_use]
    pub fn removing_cookies<'c>(mut self, names: impl IntoIterator<Item = &'c str>) -> Self {
        self.removed_cookies.extend(names.into_iter().map(Box::from));
        self
    }
}

#[cfg_attr(not(feature = "direct"), allow(dead_code))]
impl CacheKey {
    /// The names of the headers, in their order.
    pub(crate) fn headers(&self) -> &[HeaderName] {
        &self.headers
    }

    pub(crate) fn removed_cookies(&self) -> impl Iterator<Item = &str> {
        self.removed_cookies.iter().map(|name| &**name)
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
        keys: Vec<Arc<CacheKey>>,
    },
}

impl Cacheable {
    /// Adds what one more plugin allows.
    pub(crate) fn and(self, allowed: Option<(Duration, Arc<CacheKey>)>) -> Self {
        match (self, allowed) {
            (Self::Never, _) | (_, None) => Self::Never,
            (Self::Undecided, Some((time, key))) => Self::For { time, keys: vec![key] },
            (Self::For { time, mut keys }, Some((other, key))) => {
                keys.push(key);
                Self::For { time: time.min(other), keys }
            }
        }
    }
}
