//! The JSON Schema of a plugin's config.

use schemars::JsonSchema;

use crate::plugin::PreparedPlugin;

/// The JSON Schema (draft 2020-12) of a plugin's config, for editors and for people who
/// write routes. The config derives `schemars::JsonSchema`.
///
/// ```
/// # use apisix_plugin_runner::{Action, Plugin, PluginError, Request};
/// #[derive(serde::Deserialize, schemars::JsonSchema)]
/// struct GreetConfig { greeting: String }
///
/// struct Greet;
///
/// impl Plugin for Greet {
///     const NAME: &'static str = "greet";
///     type Config = GreetConfig;
/// #   async fn on_request(&self, _: &GreetConfig, _: &mut Request<'_>) -> Result<Action, PluginError> { Ok(Action::Continue) }
/// }
///
/// let schema = apisix_plugin_runner::config_schema::<Greet>();
/// assert_eq!(schema["properties"]["greeting"]["type"], "string");
/// ```
#[must_use]
pub fn config_schema<P: PreparedPlugin<Config: JsonSchema>>() -> serde_json::Value {
    schemars::schema_for!(P::Config).to_value()
}
