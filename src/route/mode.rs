//! The two data paths, and which of them a request takes.

use apisix_plugin_runner::{Scheme, UpstreamMode};
use thiserror::Error;

/// How requests get to their upstreams, by the runner's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ways {
    /// The mode if a plugin chooses none.
    pub(crate) mode: UpstreamMode,
    /// Whether workspaces may show any certificate. The gateway can't check one.
    pub(crate) accepts_any_certificate: bool,
}

impl Default for Ways {
    fn default() -> Self {
        Self { mode: UpstreamMode::Forward, accepts_any_certificate: false }
    }
}

impl Ways {
    /// The mode for an upstream of this scheme, for which a plugin chose this mode or none.
    pub(crate) fn way(self, scheme: Scheme, chosen: Option<UpstreamMode>) -> Result<UpstreamMode, Unchecked> {
        match chosen.unwrap_or(self.mode) {
            UpstreamMode::Direct if scheme == Scheme::Https && !self.accepts_any_certificate => {
                Err(Unchecked)
            }
            mode => Ok(mode),
        }
    }
}

/// Nothing would check a workspace's certificate, and the settings do not allow that.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "https:// in direct mode, where the gateway checks no workspace's certificate: go there in forward mode, or start the runner with --workspace-ca none to accept any certificate"
)]
pub(crate) struct Unchecked;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_certificate_is_accepted_only_if_the_settings_say_so() {
        use UpstreamMode::{Direct, Forward};
        for accepts_any_certificate in [false, true] {
            for mode in [Forward, Direct] {
                let ways = Ways { mode, accepts_any_certificate };
                for chosen in [None, Some(Forward), Some(Direct)] {
                    let way = chosen.unwrap_or(mode);
                    assert_eq!(ways.way(Scheme::Http, chosen), Ok(way));
                    let is_closed = way == Direct && !accepts_any_certificate;
                    let expected = if is_closed { Err(Unchecked) } else { Ok(way) };
                    assert_eq!(ways.way(Scheme::Https, chosen), expected);
                }
            }
        }
    }
}
