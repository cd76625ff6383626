//! A plugin that chooses the upstream from a header.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use apisix_plugin_runner::config::header_name;
use apisix_plugin_runner::direct::{Direct, SystemResolver};
use apisix_plugin_runner::{
    Action, HeaderName, Plugin, PluginError, Request, Runner, StatusCode, Stop, Upstream,
};
use serde::Deserialize;

struct HeaderRoute;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderRouteConfig {
    /// The header that says where to go.
    #[serde(deserialize_with = "header_name")]
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
                request.set_upstream(upstream.clone())?;
                Ok(Action::Continue)
            }
            None => Ok(Stop::new(StatusCode::NOT_FOUND).into()),
        }
    }
}

fn main() -> ExitCode {
    Runner::named("header-route", "1.0.0")
        .plugin(HeaderRoute)
        .carrier(Direct::new(Arc::new(SystemResolver)))
        .main()
}
