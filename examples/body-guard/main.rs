//! A plugin that reads the request's body and stops what may not pass.

use std::process::ExitCode;

use kube_coders::{Action, Command, Plugin, PluginError, Request, Stop};
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

    fn prepare(&self, config: &BodyGuardConfig) -> Result<(), PluginError> {
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
            let stop = Stop::new(422)?.header("content-type", "application/problem+json")?;
            return Ok(stop.body(r#"{"title":"the body may not pass","status":422}"#).into());
        }
        Ok(Action::Continue)
    }
}

fn main() -> ExitCode {
    Command::new().plugin(BodyGuard).main()
}
