//! The options of a check.

use std::net::SocketAddr;

use apisix_plugin_runner::upstream::UpstreamMode;

use super::version::Version;

/// The runner and the gateway that the files are for.
///
/// ```
/// use apisix_plugin_runner::UpstreamMode;
/// use kube_coders_check::Options;
///
/// let options = Options {
///     mode: UpstreamMode::Direct,
///     forwarder: ([127, 0, 0, 1], 9181).into(),
///     gateway_version: "3.18".parse().ok(),
/// };
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How requests get to their workspaces if a conf does not say so.
    pub mode: UpstreamMode,
    /// The address at which the forwarder listens.
    pub forwarder: SocketAddr,
    /// The version of APISIX, if it is known.
    pub gateway_version: Option<Version>,
}

/// Judges the conf of a plugin, given by the plugin's name and the conf's text: `None` if
/// there is no such plugin, or why the conf is refused.
///
/// ```
/// use apisix_plugin_runner::config::parse_conf;
/// use kube_coders_check::Judge;
///
/// /// A runner with the one plugin `hello`, whose config is a number.
/// let judge: &Judge<'_> = &|plugin, conf| match plugin {
///     "hello" => Some(parse_conf::<u16>(conf.as_bytes()).map(drop).map_err(|error| error.to_string())),
///     _ => None,
/// };
/// assert_eq!(judge("hello", "7"), Some(Ok(())));
/// ```
pub type Judge<'j> = dyn Fn(&str, &str) -> Option<Result<(), String>> + 'j;

/// What each part of a check needs: the options, and the judge of confs.
pub(super) struct CheckContext<'r> {
    pub(super) options: Options,
    pub(super) judge: &'r Judge<'r>,
}
