//! The headers that the plugin sets, refuses in disguise, and decides by.

use crate::route::stamp::STAMP_HEADER;
use apisix_plugin_runner::direct::DECISION_HEADER;
use apisix_plugin_runner::{CacheKey, HeaderName};
use kube_coders_identity::UserUpstreamConfig;
use kube_coders_identity::identity_headers::{self, IDENTITY_HEADERS};

pub(super) static AUTHORIZATION: HeaderName = HeaderName::from_static(identity_headers::AUTHORIZATION);
pub(super) static COOKIE: HeaderName = HeaderName::from_static("cookie");

/// What tells a workspace who its user is.
pub(super) static FORWARDED_USER: HeaderName = HeaderName::from_static("x-forwarded-user");
pub(super) static FORWARDED_USERNAME: HeaderName = HeaderName::from_static("x-forwarded-preferred-username");

/// What the runner adds to a request behind all plugins, and the forwarder believes.
pub(super) static STAMP: HeaderName = HeaderName::from_static(STAMP_HEADER);

/// Headers that the workspace, the forwarder or the gateway believes: a request that has
/// one of their names with `_` for `-` is refused. The last is the decision of direct mode,
/// which the gateway's own plugin drops from requests.
pub(super) static RESERVED: [HeaderName; 4] = [
    HeaderName::from_static("x-forwarded-user"),
    HeaderName::from_static("x-forwarded-preferred-username"),
    HeaderName::from_static(STAMP_HEADER),
    HeaderName::from_static(DECISION_HEADER),
];

/// What else decides about a request: `Authorization` may hold the token, whatever header
/// it was found in.
static OTHERS: [HeaderName; 4] = [
    HeaderName::from_static(identity_headers::AUTHORIZATION),
    HeaderName::from_static("host"),
    HeaderName::from_static("origin"),
    HeaderName::from_static("upgrade"),
];

/// The parts of a request that a decision under this conf depends on. The header of direct
/// mode's decision is none of them: the gateway drops it before.
pub(super) fn cache_key(config: &UserUpstreamConfig) -> CacheKey {
    let reserved = RESERVED.iter().filter(|name| name.as_str() != DECISION_HEADER);
    let sources = config.identity.token_sources().names();
    let names = IDENTITY_HEADERS.iter().chain(reserved).chain(sources).chain(&OTHERS);
    CacheKey::new(names.cloned()).removing_cookies(config.remove_cookies.names())
}
