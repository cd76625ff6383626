//! The product's carrier: a stamp in forward mode, a decision in direct mode.

use std::sync::Arc;
use std::time::Duration;

use apisix_plugin_runner::direct::{Direct, Resolve, ResolveFuture};
use apisix_plugin_runner::{
    Carried, Carrier, CarrierError, CarrierFuture, Choice, HeaderName, HostName, RUNNER_FAILED, UpstreamMode,
};

use crate::refusal::Refusal;
use crate::resolver::{ResolveError, Resolver};
use crate::route::kept_headers::is_always_kept;
use crate::route::mode::Ways;
use crate::route::own_cookies::is_own_cookie;
use crate::route::stamp::{MAX_NAMES, STAMP_HEADER, StampedNames, Stamper};

/// Checked when the program is compiled, and not in each call.
const STAMP_NAME: HeaderName = HeaderName::from_static(STAMP_HEADER);

/// Carries choices as the settings say, unless a plugin sets other values.
pub(crate) struct RouteCarrier {
    ways: Ways,
    stamper: Stamper,
    direct: Direct,
}

impl RouteCarrier {
    pub(crate) fn new(ways: Ways, stamper: Stamper, resolver: Arc<Resolver>, waits: [Duration; 3]) -> Self {
        let [connect, send, read] = waits;
        let direct = Direct::new(Arc::new(Addresses(resolver))).timeouts(connect, send, read);
        let direct = if ways.accepts_any_certificate { direct.accept_any_certificate() } else { direct };
        Self { ways, stamper, direct }
    }

    /// The stamp, with the names of the headers that a client could otherwise remove, of the
    /// cookies that it could otherwise hide from the plugins, and of the route.
    fn stamped(&self, choice: Choice<'_>) -> Result<String, CarrierError> {
        // The two that nearly every request gets need no look at the whole list.
        let is_kept = |name: &&str| name.starts_with("x-forwarded-") || is_always_kept(name.as_bytes());
        let names = choice.set_headers().map(HeaderName::as_str).filter(|name| !is_kept(name));
        // The forwarder removes ours from every request.
        let cookies = choice.removed_cookies().filter(|name| !is_own_cookie(name.as_bytes()));
        let names = StampedNames::new(names, cookies).ok_or_else(|| {
            let why = format!(
                "the names of the headers that plugins set and of the cookies that they remove have more than \
                 {MAX_NAMES} bytes, or are more than 64 cookies or 2,048 bytes of cookies"
            );
            CarrierError::new(RUNNER_FAILED, why)
        })?;
        let names = match choice.route_id() {
            Some(route) => names.with_route(route),
            None => names,
        };
        Ok(self.stamper.stamp(choice.upstream(), &names))
    }
}

impl Carrier for RouteCarrier {
    fn carry<'a>(&'a self, choice: Choice<'a>) -> CarrierFuture<'a> {
        let upstream = choice.upstream();
        match self.ways.way(upstream.scheme(), upstream.mode()) {
            Ok(UpstreamMode::Direct) => self.direct.carry(choice),
            Ok(UpstreamMode::Forward) => {
                let stamp = self.stamped(choice);
                Box::pin(async { Ok(Carried::new(STAMP_NAME, stamp?)) })
            }
            Err(unchecked) => Box::pin(async move { Err(CarrierError::new(RUNNER_FAILED, unchecked)) }),
        }
    }
}

/// The addresses of workspaces, for decisions.
struct Addresses(Arc<Resolver>);

impl Resolve for Addresses {
    fn resolve<'a>(&'a self, host: &'a HostName) -> ResolveFuture<'a> {
        Box::pin(async move {
            let resolved = self.0.resolve(host).await;
            resolved.map_err(|error| CarrierError::new(refusal(error).code(), error).expected())
        })
    }
}

fn refusal(error: ResolveError) -> Refusal {
    match error {
        ResolveError::NotFound => Refusal::WorkspaceNotFound,
        ResolveError::NotAllowed => Refusal::AddressNotAllowed,
        ResolveError::Unavailable => Refusal::ResolverUnavailable,
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use apisix_plugin_runner::gateway::{ClientRequest, Gateway, Route};
    use apisix_plugin_runner::{Action, CookieNames, Plugin, PluginError, Request, Runner, Settings};

    use super::*;
    use crate::resolver::NameServers;
    use crate::route::stamp::StampKey;

    /// Sets headers whose names it is told, and chooses an upstream.
    struct Sets;

    impl Plugin for Sets {
        const NAME: &'static str = "sets";
        type Config = Vec<String>;

        async fn on_request(
            &self,
            names: &Vec<String>,
            request: &mut Request<'_>,
        ) -> Result<Action, PluginError> {
            for name in names {
                request.set_header(name.as_str(), "1")?;
            }
            request.remove_header("x-removed")?;
            request.remove_cookies(&CookieNames::default())?;
            request.set_upstream("http://127.0.0.1:8443".parse()?)?;
            Ok(Action::Continue)
        }
    }

    fn gateway(key: &StampKey) -> Gateway {
        let servers = NameServers::Listed(vec!["127.0.0.1:1".parse().unwrap()]);
        let stamper = Stamper { key: key.clone(), lifetime: Duration::from_secs(60) };
        let waits = [Duration::from_secs(1); 3];
        let resolver = Arc::new(Resolver::new(&servers).unwrap());
        let carrier = RouteCarrier::new(Ways::default(), stamper, resolver, waits);
        let runner = Runner::named("test", "0").plugin(Sets).carrier(carrier);
        crate::route::read_choices(Gateway::with_runner(runner, Settings::new("/nonexistent")))
    }

    #[tokio::test]
    async fn the_stamp_names_the_headers_that_plugins_set_and_the_cookies_that_they_remove() {
        let key = StampKey::random().unwrap();
        let route = Route::new("r").plugin_with("sets", &["x-greeting", "x-forwarded-user"]);
        let forwarded = gateway(&key).call(&route, &ClientRequest::get("/")).await.forwarded();
        let stamp = forwarded.header(STAMP_HEADER).unwrap();
        let stamped = key.open(stamp, SystemTime::now()).unwrap();
        let expected = StampedNames::new(["x-greeting"], ["session"]).unwrap().with_route("r");
        assert_eq!(stamped.names, expected, "the other header is kept for all requests");
        assert_eq!(forwarded.upstream, Some(stamped.upstream));
    }

    #[tokio::test]
    async fn more_names_than_a_stamp_holds_are_refused() {
        let names: Vec<_> = (0..100).map(|number| format!("x-{number}-{}", "a".repeat(60))).collect();
        let route = Route::new("r").plugin_with("sets", &names);
        let outcome = gateway(&StampKey::random().unwrap()).call(&route, &ClientRequest::get("/")).await;
        assert_eq!(outcome.status(), Some(503));
    }
}
