//! A route with all that is in force on it.

use std::collections::HashMap;

use super::document::Spot;
use kube_coders_identity::{is_digits, parse_digits};

/// A route, as the gateway puts it together.
pub(super) struct GatewayRoute<'d> {
    pub(super) spot: Spot<'d>,
    pub(super) hosts: Vec<&'d str>,
    pub(super) paths: Vec<&'d str>,
    pub(super) plugins: Vec<RoutePlugin<'d>>,
    /// The login of a global rule, which runs before all that the route has.
    pub(super) global_login: Option<RoutePlugin<'d>>,
    pub(super) upstream: Option<RouteUpstream<'d>>,
    /// No file has the object that tells it.
    pub(super) upstream_is_unknown: bool,
    /// The switch for WebSockets, or the place where it would be.
    pub(super) websocket: Spot<'d>,
    /// Another object says whether WebSockets are on, or they are in other words.
    pub(super) websocket_is_unknown: bool,
    /// The route's own, which counts before the upstream's.
    pub(super) timeout: Option<Spot<'d>>,
    /// The conditions on a request in addition to path and host.
    pub(super) conditions: Option<Spot<'d>>,
    /// Other conditions, each by its place.
    pub(super) narrowed: Vec<Spot<'d>>,
    pub(super) priority: f64,
    pub(super) scripts: Vec<Spot<'d>>,
    /// All that the route names was found.
    pub(super) is_complete: bool,
}

impl<'d> GatewayRoute<'d> {
    /// Nothing but plugins: a global rule.
    pub(super) fn with_plugins(spot: &Spot<'d>, plugins: Vec<RoutePlugin<'d>>) -> Self {
        Self {
            spot: spot.clone(),
            hosts: Vec::new(),
            paths: Vec::new(),
            plugins,
            global_login: None,
            upstream: None,
            upstream_is_unknown: true,
            websocket: spot.missing("enable_websocket"),
            websocket_is_unknown: false,
            timeout: None,
            conditions: None,
            narrowed: Vec::new(),
            priority: 0.0,
            scripts: Vec::new(),
            is_complete: true,
        }
    }

    /// An object with plugins that routes may refer to, of which no file has any.
    pub(super) fn part(spot: &Spot<'d>, plugins: Vec<RoutePlugin<'d>>) -> Self {
        Self { websocket_is_unknown: true, is_complete: false, ..Self::with_plugins(spot, plugins) }
    }

    /// Whether this is no route but an object with plugins: a route has a path.
    pub(super) fn is_part(&self) -> bool {
        self.paths.is_empty()
    }

    pub(super) fn plugin(&self, name: &str) -> Option<&RoutePlugin<'d>> {
        self.plugins.iter().find(|plugin| plugin.name == name)
    }
}

/// A plugin's conf on a route.
#[derive(Clone)]
pub(super) struct RoutePlugin<'d> {
    pub(super) name: &'d str,
    pub(super) conf: Spot<'d>,
    /// Another part of the conf comes from a Kubernetes secret, which no file has.
    pub(super) has_secret: bool,
}

impl<'d> RoutePlugin<'d> {
    /// The priority that the route gives it.
    pub(super) fn priority(&self) -> Option<f64> {
        self.conf.at(&["_meta", "priority"])?.number()
    }

    pub(super) fn filter(&self) -> Option<Spot<'d>> {
        self.conf.at(&["_meta", "filter"]).filter(|filter| !filter.items().is_empty())
    }
}

/// Plugins by name. A later plugin replaces an earlier one of the same name.
#[derive(Default)]
pub(super) struct Plugins<'d> {
    plugins: Vec<RoutePlugin<'d>>,
    by_name: HashMap<&'d str, usize>,
}

impl<'d> Plugins<'d> {
    pub(super) fn put(&mut self, plugin: RoutePlugin<'d>) {
        plugin.conf.set_examined();
        match self.by_name.get(plugin.name) {
            Some(at) => self.plugins[*at] = plugin,
            None => {
                self.by_name.insert(plugin.name, self.plugins.len());
                self.plugins.push(plugin);
            }
        }
    }

    pub(super) fn enabled(mut self) -> Vec<RoutePlugin<'d>> {
        let is_off =
            |plugin: &RoutePlugin<'d>| plugin.conf.at(&["_meta", "disable"]).is_some_and(|it| it.is_true());
        self.plugins.retain(|plugin| !is_off(plugin));
        self.plugins
    }
}

/// The upstream to which the gateway itself sends a route's requests.
pub(super) struct RouteUpstream<'d> {
    pub(super) spot: Spot<'d>,
    pub(super) nodes: Vec<UpstreamNode<'d>>,
    /// What says that the gateway finds its nodes out as it runs.
    pub(super) discovered: Option<Spot<'d>>,
    pub(super) timeout: Option<Spot<'d>>,
    pub(super) scheme: Option<Spot<'d>>,
    pub(super) pass_host: Option<Spot<'d>>,
}

pub(super) struct UpstreamNode<'d> {
    pub(super) spot: Spot<'d>,
    pub(super) host: String,
    pub(super) port: Option<u16>,
}

impl<'d> RouteUpstream<'d> {
    pub(super) fn read(spot: &Spot<'d>) -> Self {
        let nodes = spot.get_or_missing("nodes");
        let listed = nodes.items().into_iter().filter_map(|node| {
            let host = unbracketed(node.text_of("host")?);
            Some(UpstreamNode { port: node.get("port").and_then(|port| port_of(&port)), host, spot: node })
        });
        let mapped = nodes.entries().into_iter().map(|(name, node)| {
            let (host, port) = host_and_port(name);
            UpstreamNode { spot: node, host, port }
        });
        Self {
            nodes: listed.chain(mapped).collect(),
            discovered: spot.get("service_name"),
            timeout: spot.get("timeout"),
            scheme: spot.get("scheme"),
            pass_host: spot.get("pass_host"),
            spot: spot.clone(),
        }
    }
}

/// The port that a number says.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the number is a whole one between 1 and 65535"
)]
pub(super) fn port_of(spot: &Spot<'_>) -> Option<u16> {
    let number = spot.number()?;
    let is_port = number.fract() == 0.0 && (1.0..=f64::from(u16::MAX)).contains(&number);
    is_port.then_some(number as u16)
}

/// An IPv6 address without its brackets.
pub(super) fn unbracketed(host: &str) -> String {
    host.trim_start_matches('[').trim_end_matches(']').to_owned()
}

fn host_and_port(text: &str) -> (String, Option<u16>) {
    match text.rsplit_once(':') {
        Some((host, port)) if port.is_empty() || is_digits(port.as_bytes()) => {
            (unbracketed(host), parse_digits(port.as_bytes()))
        }
        _ => (unbracketed(text), None),
    }
}

#[cfg(test)]
mod tests {
    use super::host_and_port;

    #[test]
    fn a_node_is_a_host_and_a_port() {
        for (text, host, port) in [
            ("127.0.0.1:9181", "127.0.0.1", Some(9181)),
            ("[::1]:9181", "::1", Some(9181)),
            ("httpbin.org", "httpbin.org", None),
            ("a:99999", "a", None),
        ] {
            assert_eq!(host_and_port(text), (host.to_owned(), port));
        }
    }
}
