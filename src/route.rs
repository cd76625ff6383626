//! How a plugin's choice of upstream travels in the product: as a stamp to the forwarder,
//! or as a decision to the gateway's own proxy.

pub(crate) mod carrier;
pub(crate) mod kept_headers;
pub(crate) mod key_file;
pub(crate) mod mode;
pub(crate) mod own_cookies;
pub(crate) mod stamp;

use std::path::Path;

use apisix_plugin_runner::direct::{DECISION_HEADER, decode_destination};
use apisix_plugin_runner::gateway::Gateway;
use apisix_plugin_runner::{HeaderName, UpstreamMode};

use stamp::{STAMP_HEADER, claimed_upstream};

/// A gateway that calls the runner at this socket and reads the upstream that the runner
/// chose. Whether a stamp is valid is for the forwarder to say.
#[must_use]
pub fn gateway(socket: impl AsRef<Path>) -> Gateway {
    read_choices(Gateway::connect(socket))
}

/// Lets a gateway read both ways of a choice.
pub(crate) fn read_choices(gateway: Gateway) -> Gateway {
    gateway
        .reads_upstream(HeaderName::from_static(STAMP_HEADER), claimed_upstream)
        .reads_upstream(HeaderName::from_static(DECISION_HEADER), |header| {
            Some(decode_destination(header)?.0.in_mode(UpstreamMode::Direct))
        })
}
