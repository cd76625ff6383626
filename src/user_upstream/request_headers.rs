//! The headers that the plugin sets, refuses in disguise, and decides by.

use super::browser_marker::NAVIGATION_HEADER;
use crate::route::stamp::STAMP_HEADER;
use apisix_plugin_runner::direct::DECISION_HEADER;
use apisix_plugin_runner::{CacheKey, HeaderName};
use kube_coders_identity::UserUpstreamConfig;
use kube_coders_identity::identity_headers::{self, IDENTITY_HEADERS};

pub(super) static AUTHORIZATION: HeaderName = HeaderName::from_static(identity_headers::AUTHORIZATION);

/// The header in which the gateway's login passes its access token on.
pub(super) static ACCESS_TOKEN: HeaderName = HeaderName::from_static("x-access-token");

/// The headers that tell a workspace who its user is.
pub(super) static FORWARDED_USER: HeaderName = HeaderName::from_static("x-forwarded-user");
pub(super) static FORWARDED_USERNAME: HeaderName = HeaderName::from_static("x-forwarded-preferred-username");

/// The header that the runner adds to a request after all plugins, and that the forwarder
/// believes.
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

/// The parts of a request that a decision under this conf depends on: the user, for a
/// WebSocket the page that opens it, and whether it is a navigation, whose decision is never
/// cached. The other headers are only removed if they are there.
pub(super) fn cache_key(config: &UserUpstreamConfig) -> CacheKey {
    let [.., userinfo] = IDENTITY_HEADERS.clone();
    // `Authorization` may hold the token as well, whatever header the token was found in.
    let others = [ACCESS_TOKEN.clone(), AUTHORIZATION.clone()];
    let mut values = vec![userinfo, HeaderName::from_static("host"), HeaderName::from_static("origin")];
    let sources = config.identity.token_sources();
    values.push(NAVIGATION_HEADER.clone());
    values.extend(sources.names().iter().cloned().chain(others));
    let removed = sources.secrets().cloned().chain([STAMP.clone(), FORWARDED_USERNAME.clone()]);
    CacheKey::new(values).and_presence(removed).and_navigation()
}
