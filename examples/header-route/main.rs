//! A plugin that chooses the upstream from a header.

use std::collections::BTreeMap;
use std::process::ExitCode;

use kube_coders::{Action, Command, HeaderName, Plugin, PluginError, Request, Stop, Upstream};
use serde::Deserialize;

struct HeaderRoute;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderRouteConfig {
    /// The header that says where to go.
    header: HeaderName,
    /// Where each value of it goes. Another value is answered with 404.
    upstreams: BTreeMap<String, Upstream>,
}

impl Plugin for HeaderRoute {
    const NAME: &'static str = "header-route";
    type Config = HeaderRouteConfig;

    async fn on_request(
        &self,
        config: &HeaderRouteConfig,
        request: &mut Request<'_>,
    ) -> Result<Action, PluginError> {
        let value = request.header_str(&config.header).unwrap_or_default();
        match config.upstreams.get(value) {
            Some(upstream) => {
                request.upstream(upstream.clone());
                Ok(Action::Continue)
            }
            None => Ok(Stop::new(404)?.into()),
        }
    }
}

fn main() -> ExitCode {
    Command::new().plugin(HeaderRoute).main()
}
