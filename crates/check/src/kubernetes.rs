//! Kubernetes' own resources for routes: HTTPRoute of the Gateway API, and Ingress with the
//! ingress controller's annotations.

use super::document::Spot;
use super::finding::Findings;
use super::ingress::{Resources, namespace, plugin};
use super::route::{GatewayRoute, Plugins, RouteUpstream, UpstreamNode, port_of};

/// What the annotations of the ingress controller begin with.
const PREFIX: &str = "k8s.apisix.apache.org/";

/// How an Ingress named its class before there was a field for it. The controller ignores it.
const CLASS: &str = "kubernetes.io/ingress.class";

/// What HTTPRoute's requests to one Service are told by, unless a resource says otherwise.
const POLICY: &str = "HTTPRoutePolicy";

/// Whether an Ingress is meant for the gateway.
pub(super) fn is_gateways(ingress: &Spot<'_>) -> bool {
    let class = ingress.at(&["spec", "ingressClassName"]);
    class.and_then(|class| class.text()).is_some_and(|class| class.contains("apisix"))
        || annotations(ingress).iter().any(|(name, value)| {
            name.starts_with(PREFIX)
                || *name == CLASS && value.text().is_some_and(|class| class.contains("apisix"))
        })
}

fn annotations<'d>(resource: &Spot<'d>) -> Vec<(&'d str, Spot<'d>)> {
    resource.at(&["metadata", "annotations"]).map(|map| map.entries()).unwrap_or_default()
}

impl<'d> Resources<'d> {
    /// The routes of an HTTPRoute.
    pub(super) fn http_route(&self, resource: &Spot<'d>, findings: &mut Findings) -> Vec<GatewayRoute<'d>> {
        let spec = resource.get_or_missing("spec");
        let hosts = spec.get("hostnames").map(|hosts| hosts.texts_of()).unwrap_or_default();
        let policy = self.policy(resource);
        spec.items_of("rules")
            .into_iter()
            .map(|rule| {
                let mut plugins = Plugins::default();
                let mut is_complete = true;
                for filter in rule.items_of("filters") {
                    let reference = filter.get_or_missing("extensionRef");
                    let kind = reference.text_of("kind");
                    let (Some(name), Some("PluginConfig")) = (reference.text_of("name"), kind) else {
                        continue;
                    };
                    let spot = reference.get_or_missing("name");
                    match self.referenced("PluginConfig", namespace(resource), name, &spot, findings) {
                        Some(config) => put_all(&config, &mut plugins),
                        None => is_complete = false,
                    }
                }
                let matches = rule.items_of("matches");
                let paths: Vec<_> =
                    matches.iter().filter_map(|it| it.at(&["path", "value"])?.text()).collect();
                let narrowed = matches.iter().flat_map(|it| {
                    ["headers", "queryParams", "method"].into_iter().filter_map(|name| it.get(name))
                });
                GatewayRoute {
                    hosts: hosts.clone(),
                    // A prefix of the Gateway API has no `*` at its end.
                    paths: if paths.is_empty() || paths.contains(&"/") { vec!["/*"] } else { paths },
                    // The Service says whether it speaks WebSocket.
                    websocket_is_unknown: true,
                    conditions: policy.as_ref().and_then(|policy| policy.at(&["spec", "vars"])),
                    narrowed: narrowed.collect(),
                    priority: policy
                        .as_ref()
                        .and_then(|policy| policy.at(&["spec", "priority"])?.number())
                        .unwrap_or_default(),
                    upstream: services(&rule, "backendRefs", |backend| {
                        Some((backend.text_of("name")?, backend.get("port").and_then(|port| port_of(&port))))
                    }),
                    is_complete,
                    plugins: plugins.enabled(),
                    ..GatewayRoute::with_plugins(&rule, Vec::new())
                }
            })
            .collect()
    }

    /// The HTTPRoutePolicy that targets a resource.
    fn policy(&self, resource: &Spot<'d>) -> Option<Spot<'d>> {
        let name = resource.at(&["metadata", "name"])?.text()?;
        let kind = resource.text_of("kind")?;
        let targets = |policy: &&Spot<'d>| {
            policy.text_of("kind") == Some(POLICY)
                && namespace(policy) == namespace(resource)
                && policy.at(&["spec", "targetRefs"]).is_some_and(|references| {
                    references.items().iter().any(|reference| {
                        reference.text_of("kind") == Some(kind) && reference.text_of("name") == Some(name)
                    })
                })
        };
        self.all().find(targets).cloned()
    }

    /// The routes of an Ingress.
    pub(super) fn ingress_routes(
        &self,
        resource: &Spot<'d>,
        findings: &mut Findings,
    ) -> Vec<GatewayRoute<'d>> {
        let annotations = resource.at(&["metadata", "annotations"]);
        let annotations = annotations.unwrap_or_else(|| resource.missing("metadata.annotations"));
        let annotation = |name: &str| annotations.get(&format!("{PREFIX}{name}"));
        let mut plugins = Plugins::default();
        let mut is_complete = true;
        if let Some(spot) = annotation("plugin-config-name") {
            let name = spot.text().unwrap_or_default();
            match self.referenced("ApisixPluginConfig", namespace(resource), name, &spot, findings) {
                Some(config) => put_all(&config, &mut plugins),
                None => is_complete = false,
            }
        }
        let plugins = plugins.enabled();
        let websocket = annotation("enable-websocket");
        let is_on = websocket.as_ref().is_some_and(|value| value.text() == Some("true"));
        let policy = self.policy(resource);
        let mut routes = Vec::new();
        for rule in resource.at(&["spec", "rules"]).map(|rules| rules.items()).unwrap_or_default() {
            for path in rule.at(&["http", "paths"]).map(|paths| paths.items()).unwrap_or_default() {
                routes.push(GatewayRoute {
                    hosts: rule.text_of("host").into_iter().collect(),
                    paths: match path.text_of("path") {
                        None | Some("/") => vec!["/*"],
                        Some(path) => vec![path],
                    },
                    websocket: websocket.clone().unwrap_or_else(|| annotations.missing("enable-websocket")),
                    websocket_is_unknown: is_on,
                    conditions: policy.as_ref().and_then(|policy| policy.at(&["spec", "vars"])),
                    priority: policy
                        .as_ref()
                        .and_then(|policy| policy.at(&["spec", "priority"])?.number())
                        .unwrap_or_default(),
                    upstream: services(&path, "backend", |backend| {
                        let service = backend.get("service")?;
                        let port = service.at(&["port", "number"]).and_then(|port| port_of(&port));
                        Some((service.text_of("name")?, port))
                    }),
                    is_complete,
                    plugins: plugins.clone(),
                    ..GatewayRoute::with_plugins(&path, Vec::new())
                });
            }
        }
        routes
    }
}

fn put_all<'d>(config: &Spot<'d>, plugins: &mut Plugins<'d>) {
    let list = config.at(&["spec", "plugins"]).map(|list| list.items()).unwrap_or_default();
    list.iter().filter_map(plugin).for_each(|plugin| plugins.put(plugin));
}

/// The upstream that is made of Kubernetes services, each read by `read`.
fn services<'d>(
    rule: &Spot<'d>,
    name: &str,
    read: impl Fn(&Spot<'d>) -> Option<(&'d str, Option<u16>)>,
) -> Option<RouteUpstream<'d>> {
    let spot = rule.get(name)?;
    let backends = if spot.is_list() { spot.items() } else { vec![spot.clone()] };
    let nodes = backends.into_iter().filter_map(|backend| {
        let (service, port) = read(&backend)?;
        Some(UpstreamNode { spot: backend, host: format!("the service {service}"), port })
    });
    let nodes = nodes.collect();
    Some(RouteUpstream { nodes, discovered: None, timeout: None, scheme: None, pass_host: None, spot })
}
