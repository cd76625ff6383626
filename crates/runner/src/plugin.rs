//! What an author writes: a plugin, its verdict about a request, its errors.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::cache::CacheKey;
use crate::request::Request;
use crate::response::Response;
use crate::stop::Stop;
use crate::tasks::Tasks;

/// A plugin that the gateway may call for each request.
///
/// A route names the plugin in `ext-plugin-pre-req` (or `-post-req`, `-post-resp`) with
/// a conf, a JSON text. The runner reads the conf as the plugin's
/// [`Config`](Plugin::Config) once, when the gateway loads the route. A plugin that builds
/// another value from its config, such as a client or a compiled pattern, implements
/// [`PreparedPlugin`] instead.
///
/// A call whose plugin fails, panics or takes too long is answered with 503 and the code
/// `runner-failed`; other calls are not affected. At the deadline the runner drops the
/// plugin's future, which is possible only while the future waits: code that blocks its
/// thread holds up other calls too. A destructor that panics is treated like any other
/// panic, but one that panics while another panic unwinds ends the process. A program
/// built with `panic = "abort"` ends at any panic.
///
/// ```
/// use apisix_plugin_runner::{Action, Plugin, PluginError, Request};
///
/// struct Hello;
///
/// impl Plugin for Hello {
///     const NAME: &'static str = "hello";
///     type Config = ();
///
///     async fn on_request(&self, (): &(), request: &mut Request<'_>) -> Result<Action, PluginError> {
///         request.set_header("x-hello", "world")?;
///         Ok(Action::Continue)
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a plugin",
    label = "not a plugin",
    note = "implement `apisix_plugin_runner::Plugin` for it: a NAME, a Config and on_request"
)]
pub trait Plugin: Send + Sync + 'static {
    /// The name by which a route refers to the plugin.
    const NAME: &'static str;

    /// The conf, deserialised from JSON. Put `#[serde(deny_unknown_fields)]` on it so
    /// that the administrator learns of a misspelt field. An empty conf is read as
    /// `null`.
    ///
    /// A conf that the type can't hold is rejected when the gateway loads the route, and
    /// the log names plugin, field and position. The conf may hold a secret, so the log
    /// never shows its content; a hand-written `Deserialize` must keep it out of its
    /// error text too.
    type Config: DeserializeOwned + Send + Sync + 'static;

    /// Sets the longest time that [`on_request`](Plugin::on_request) or
    /// [`on_response`](Plugin::on_response) of this plugin may take. `None`, the default,
    /// leaves only the deadline of the whole call (`--call-deadline`, 5 s).
    fn deadline(&self) -> Option<Duration> {
        None
    }

    /// Runs once inside the runtime before the runner serves its first call. Start
    /// background work with [`Tasks::spawn`], so that it ends with the runner.
    ///
    /// # Errors
    ///
    /// An error ends the start of the runner.
    fn start(&self, tasks: &Tasks) -> impl Future<Output = Result<(), PluginError>> + Send {
        let _ = tasks;
        async { Ok(()) }
    }

    /// Runs once when the runner ends, after the last call. All hooks together may take 5 s.
    fn stop(&self) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// Checks a config when the gateway loads a route.
    ///
    /// # Errors
    ///
    /// An error rejects the conf. Its text goes to the log.
    fn check(&self, config: &Self::Config) -> Result<(), PluginError> {
        let _ = config;
        Ok(())
    }

    /// The parts of a request that the plugin's decisions depend on under this config.
    /// Without a key, the default, no decision is cached. The runner asks once for each
    /// conf. See [`Request::cache_for`].
    fn cache_key(&self, config: &Self::Config) -> Option<CacheKey> {
        let _ = config;
        None
    }

    /// Decides about a request.
    ///
    /// # Errors
    ///
    /// An error is logged, and the client gets 503.
    fn on_request(
        &self,
        config: &Self::Config,
        request: &mut Request<'_>,
    ) -> impl Future<Output = Result<Action, PluginError>> + Send;

    /// Looks at a response, on routes with `ext-plugin-post-resp`. By default the
    /// response passes unchanged.
    ///
    /// # Errors
    ///
    /// An error is logged, and the client gets 503.
    fn on_response(
        &self,
        config: &Self::Config,
        response: &mut Response<'_>,
    ) -> impl Future<Output = Result<(), PluginError>> + Send {
        let _ = (config, response);
        async { Ok(()) }
    }
}

/// A plugin that builds a value from its config once, when the gateway loads a route, and
/// works with that value afterwards.
///
/// Each [`Plugin`] is a `PreparedPlugin` whose prepared value is the config itself.
///
/// ```
/// use apisix_plugin_runner::{Action, PluginError, PreparedPlugin, Request, Stop, StatusCode};
///
/// /// Lets requests of one network through.
/// struct FromNetwork;
///
/// struct Network { address: u32, bits: u32 }
///
/// impl PreparedPlugin for FromNetwork {
///     const NAME: &'static str = "from-network";
///     type Config = String;
///     type Prepared = Network;
///
///     async fn prepare(&self, config: String) -> Result<Network, PluginError> {
///         let (address, bits) = config.split_once('/').ok_or("no / in the network")?;
///         let address: std::net::Ipv4Addr = address.parse()?;
///         Ok(Network { address: address.into(), bits: bits.parse()? })
///     }
///
///     async fn on_request(&self, network: &Network, request: &mut Request<'_>) -> Result<Action, PluginError> {
///         match request.source() {
///             Some(std::net::IpAddr::V4(source)) => {
///                 let differs = u32::from(source) ^ network.address;
///                 if network.bits == 0 || differs >> (32 - network.bits.min(32)) == 0 {
///                     return Ok(Action::Continue);
///                 }
///                 Ok(Stop::new(StatusCode::FORBIDDEN).into())
///             }
///             _ => Ok(Stop::new(StatusCode::FORBIDDEN).into()),
///         }
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a plugin",
    label = "not a plugin",
    note = "implement `apisix_plugin_runner::Plugin` for it: a NAME, a Config and on_request"
)]
pub trait PreparedPlugin: Send + Sync + 'static {
    /// The name by which a route refers to the plugin, as in [`Plugin::NAME`].
    const NAME: &'static str;

    /// The conf, deserialised from JSON, as in [`Plugin::Config`].
    type Config: DeserializeOwned + Send + 'static;

    /// What the plugin works with.
    type Prepared: Send + Sync + 'static;

    /// Makes the prepared value of a config. The gateway holds a lock over all its routes
    /// meanwhile and gives up after 5 s, so the runner allows 1 s. The future runs on a
    /// thread of its own; blocking code in it does not hold up calls.
    ///
    /// # Errors
    ///
    /// An error rejects the conf. Its text goes to the log.
    fn prepare(
        &self,
        config: Self::Config,
    ) -> impl Future<Output = Result<Self::Prepared, PluginError>> + Send;

    /// Sets the longest time for one call of this plugin, as in [`Plugin::deadline`].
    fn deadline(&self) -> Option<Duration> {
        None
    }

    /// Runs before the first call, as in [`Plugin::start`].
    ///
    /// # Errors
    ///
    /// An error ends the start of the runner.
    fn start(&self, tasks: &Tasks) -> impl Future<Output = Result<(), PluginError>> + Send {
        let _ = tasks;
        async { Ok(()) }
    }

    /// Runs after the last call, as in [`Plugin::stop`].
    fn stop(&self) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// What decisions depend on, as in [`Plugin::cache_key`].
    fn cache_key(&self, prepared: &Self::Prepared) -> Option<CacheKey> {
        let _ = prepared;
        None
    }

    /// Decides about a request, as in [`Plugin::on_request`].
    ///
    /// # Errors
    ///
    /// An error is logged, and the client gets 503.
    fn on_request(
        &self,
        prepared: &Self::Prepared,
        request: &mut Request<'_>,
    ) -> impl Future<Output = Result<Action, PluginError>> + Send;

    /// Looks at a response, as in [`Plugin::on_response`].
    ///
    /// # Errors
    ///
    /// An error is logged, and the client gets 503.
    fn on_response(
        &self,
        prepared: &Self::Prepared,
        response: &mut Response<'_>,
    ) -> impl Future<Output = Result<(), PluginError>> + Send {
        let _ = (prepared, response);
        async { Ok(()) }
    }
}

impl<P: Plugin> PreparedPlugin for P {
    const NAME: &'static str = <P as Plugin>::NAME;
    type Config = <P as Plugin>::Config;
    type Prepared = <P as Plugin>::Config;

    async fn prepare(&self, config: Self::Config) -> Result<Self::Prepared, PluginError> {
        self.check(&config)?;
        Ok(config)
    }

    fn deadline(&self) -> Option<Duration> {
        Plugin::deadline(self)
    }

    fn start(&self, tasks: &Tasks) -> impl Future<Output = Result<(), PluginError>> + Send {
        Plugin::start(self, tasks)
    }

    fn stop(&self) -> impl Future<Output = ()> + Send {
        Plugin::stop(self)
    }

    fn cache_key(&self, prepared: &Self::Prepared) -> Option<CacheKey> {
        Plugin::cache_key(self, prepared)
    }

    fn on_request(
        &self,
        prepared: &Self::Prepared,
        request: &mut Request<'_>,
    ) -> impl Future<Output = Result<Action, PluginError>> + Send {
        Plugin::on_request(self, prepared, request)
    }

    fn on_response(
        &self,
        prepared: &Self::Prepared,
        response: &mut Response<'_>,
    ) -> impl Future<Output = Result<(), PluginError>> + Send {
        Plugin::on_response(self, prepared, response)
    }
}

/// A plugin's verdict about a request.
///
/// ```
/// use apisix_plugin_runner::{Action, StatusCode, Stop};
///
/// fn verdict(is_member: bool) -> Action {
///     match is_member {
///         true => Action::Continue,
///         false => Stop::new(StatusCode::FORBIDDEN).into(),
///     }
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The request goes on, with the recorded changes.
    Continue,
    /// The client gets this answer. No further plugin and no upstream is asked.
    Stop(Stop),
}

impl From<Stop> for Action {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

/// Why a plugin could not decide: any error, or a text.
///
/// The runner logs it, and the client gets 503. If the client made the mistake, return a
/// [`Stop`] instead.
///
/// ```
/// use apisix_plugin_runner::PluginError;
///
/// fn count(header: &str) -> Result<u32, PluginError> {
///     if header.is_empty() {
///         return Err("the header is empty".into());
///     }
///     Ok(header.parse()?)
/// }
///
/// assert_eq!(count("x").unwrap_err().to_string(), "invalid digit found in string");
/// ```
pub struct PluginError(Box<dyn std::error::Error + Send + Sync>);

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for PluginError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl fmt::Display for PluginError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, formatter)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(formatter, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl fmt::Debug for PluginError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, formatter)
    }
}
