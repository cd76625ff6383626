//! A plugin that reads the request's body and stops what may not pass.

use std::process::ExitCode;

use apisix_plugin_runner::{Action, Plugin, PluginError, Request, Runner, StatusCode, Stop};
use serde::Deserialize;

struct BodyGuard;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BodyGuardConfig {
    /// No body may hold one of these, byte for byte.
    refuse: Vec<String>,
}

impl Plugin for BodyGuard {
    const NAME: &'static str = "body-guard";
    type Config = BodyGuardConfig;

    fn check(&self, config: &BodyGuardConfig) -> Result<(), PluginError> {
        match config.refuse.iter().any(String::is_empty) {
            true => Err("an empty text in `refuse` would refuse every body".into()),
            false => Ok(()),
        }
    }

    async fn on_request(
        &self,
        config: &BodyGuardConfig,
        request: &mut Request<'_>,
    ) -> Result<Action, PluginError> {
        let Some(body) = request.body().await? else { return Ok(Action::Continue) };
        let holds = |text: &String| body.windows(text.len()).any(|part| part == text.as_bytes());
        if config.refuse.iter().any(holds) {
            let stop =
                Stop::problem(StatusCode::UNPROCESSABLE_ENTITY, "body-refused", "The body may not pass.");
            return Ok(stop.into());
        }
        Ok(Action::Continue)
    }
}

fn main() -> ExitCode {
    Runner::named("body-guard", "1.0.0").plugin(BodyGuard).main()
}
