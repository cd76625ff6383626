//! A plugin that adds a header, made of another header and a variable.

use std::process::ExitCode;

use apisix_plugin_runner::config::header_name;
use apisix_plugin_runner::{Action, HeaderName, Plugin, PluginError, Request, Runner, StatusCode, Stop};
use serde::Deserialize;

struct Greet;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GreetConfig {
    /// The header that names the user to greet.
    #[serde(deserialize_with = "header_name")]
    header: HeaderName,
}

impl Plugin for Greet {
    const NAME: &'static str = "greet";
    type Config = GreetConfig;

    async fn on_request(
        &self,
        config: &GreetConfig,
        request: &mut Request<'_>,
    ) -> Result<Action, PluginError> {
        let Some(name) = request.header(&config.header) else {
            return Ok(Stop::new(StatusCode::UNAUTHORIZED).into());
        };
        let route = request.var("route_id").await?.unwrap_or_default();
        request.set_header("x-greeting", [&b"hello "[..], name, b" from ", &route].concat())?;
        Ok(Action::Continue)
    }
}

fn main() -> ExitCode {
    Runner::named("greet", "1.0.0").plugin(Greet).main()
}
