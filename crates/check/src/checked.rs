//! What files are checked by.

use std::net::SocketAddr;

use apisix_plugin_runner::upstream::UpstreamMode;

use super::version::Version;

/// The runner and the gateway that the files are for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How requests get to their workspaces if a conf does not say so.
    pub mode: UpstreamMode,
    /// Where the forwarder listens.
    pub forwarder: SocketAddr,
    /// Which APISIX runs, if that is known.
    pub gateway_version: Option<Version>,
}

/// Judges the conf of a plugin, given by the plugin's name and the conf's text: `None` if
/// there is no such plugin, or why the conf is refused.
pub type Judge<'j> = dyn Fn(&str, &str) -> Option<Result<(), String>> + 'j;

/// What the files are checked by.
pub(super) struct Checked<'r> {
    pub(super) options: Options,
    pub(super) judge: &'r Judge<'r>,
}
