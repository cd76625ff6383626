//! The ingress controller's resources: the same routes in other words.

use std::collections::HashMap;

use super::document::Spot;
use super::finding::Findings;
use super::route::{GatewayRoute, Plugins, RoutePlugin, RouteUpstream, UpstreamNode, port_of, unbracketed};
use super::rule::Rule;

/// The resources by their kinds.
#[derive(Default)]
pub(super) struct Resources<'d> {
    routes: Vec<Spot<'d>>,
    /// Rules for all routes: those of ApisixGlobalRule and of GatewayProxy.
    global_rules: Vec<Spot<'d>>,
    /// What is named by others, by kind, namespace and name.
    named: HashMap<(&'d str, Option<&'d str>, &'d str), Spot<'d>>,
    twice: Vec<Spot<'d>>,
    /// All of them, whatever their kind.
    all: Vec<Spot<'d>>,
}

impl<'d> Resources<'d> {
    pub(super) fn add(&mut self, kind: &'d str, resource: &Spot<'d>) {
        match kind {
            "ApisixRoute" | "HTTPRoute" | "Ingress" => self.routes.push(resource.clone()),
            "ApisixGlobalRule" | "GatewayProxy" => self.global_rules.push(resource.clone()),
            _ => {}
        }
        let name = resource.at(&["metadata", "name"]).and_then(|name| name.text()).unwrap_or_default();
        if self.named.insert((kind, namespace(resource), name), resource.clone()).is_some() {
            self.twice.push(resource.clone());
        }
        self.all.push(resource.clone());
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Spot<'d>> {
        self.all.iter()
    }

    pub(super) fn global_rules(&self) -> impl Iterator<Item = GatewayRoute<'d>> {
        self.global_rules.iter().map(|rule| GatewayRoute::with_plugins(rule, plugins_of(rule)))
    }

    /// The plugins of each consumer, of all kinds of consumers.
    pub(super) fn consumers(&self) -> impl Iterator<Item = Vec<RoutePlugin<'d>>> {
        let consumers = self.all.iter().filter(|resource| resource.text_of("kind") == Some("Consumer"));
        consumers.map(plugins_of)
    }

    /// Each set of plugins that no route refers to, as a route of which only these are known.
    pub(super) fn unused(&self) -> impl Iterator<Item = GatewayRoute<'d>> {
        let is_set = |resource: &&Spot<'d>| {
            ["ApisixPluginConfig", "PluginConfig"].map(Some).contains(&resource.text_of("kind"))
        };
        let unused = self.all.iter().filter(is_set).filter(|resource| !resource.is_examined());
        unused.map(|resource| GatewayRoute::part(resource, plugins_of(resource)))
    }

    pub(super) fn routes(&self, findings: &mut Findings) -> Vec<GatewayRoute<'d>> {
        for resource in &self.twice {
            let spot = resource.get_or_missing("metadata");
            findings.add(Rule::IdTwice, &spot, "another resource has this kind, namespace and name");
        }
        let mut routes = Vec::new();
        for resource in &self.routes {
            match resource.text_of("kind") {
                Some("HTTPRoute") => {
                    routes.extend(self.http_route(resource, findings));
                    continue;
                }
                Some("Ingress") => routes.extend(self.ingress_routes(resource, findings)),
                _ => {}
            }
            if resource.at(&["spec", "ingressClassName"]).is_none() {
                let spot = resource.get_or_missing("spec").missing("ingressClassName");
                findings.add(Rule::IngressClassMissing, &spot, "no ingressClassName");
            }
            for rule in resource.at(&["spec", "http"]).map(|list| list.items()).unwrap_or_default() {
                routes.push(self.route(resource, &rule, findings));
            }
        }
        routes
    }

    fn route(&self, resource: &Spot<'d>, rule: &Spot<'d>, findings: &mut Findings) -> GatewayRoute<'d> {
        let plugin_config = rule.text_of("plugin_config_name").and_then(|name| {
            let namespace = rule.text_of("plugin_config_namespace").or_else(|| namespace(resource));
            let spot = rule.get_or_missing("plugin_config_name");
            self.referenced("ApisixPluginConfig", namespace, name, &spot, findings)
        });
        let shared = plugin_config.as_ref().and_then(|config| config.at(&["spec", "plugins"]));
        let mut plugins = Plugins::default();
        for list in [shared, rule.get("plugins")].into_iter().flatten() {
            list.items().iter().filter_map(plugin).for_each(|plugin| plugins.put(plugin));
        }
        let conditions = rule.get_or_missing("match");
        let upstream = self.upstream(resource, rule, findings);
        let narrowed = ["methods", "remoteAddrs"].into_iter().filter_map(|name| conditions.get(name));
        GatewayRoute {
            hosts: conditions.get("hosts").map(|hosts| hosts.texts_of()).unwrap_or_default(),
            paths: conditions.get("paths").map(|paths| paths.texts_of()).unwrap_or_default(),
            websocket: rule.get_or_missing("websocket"),
            websocket_is_unknown: false,
            timeout: rule.get("timeout"),
            conditions: conditions.get("exprs"),
            narrowed: narrowed.collect(),
            priority: rule.number_of("priority").unwrap_or_default(),
            upstream_is_unknown: upstream.is_none() && rule.get("upstreams").is_some(),
            upstream,
            scripts: conditions.get("filter_func").into_iter().collect(),
            global_login: None,
            is_complete: plugin_config.is_some() == rule.get("plugin_config_name").is_some(),
            plugins: plugins.enabled(),
            spot: rule.clone(),
        }
    }

    pub(super) fn referenced(
        &self,
        kind: &'static str,
        namespace: Option<&'d str>,
        name: &'d str,
        spot: &Spot<'d>,
        findings: &mut Findings,
    ) -> Option<Spot<'d>> {
        let found = self.named.get(&(kind, namespace, name)).cloned();
        if found.is_none() {
            let place = namespace.map(|namespace| format!(" in the namespace {namespace:?}"));
            let place = place.unwrap_or_else(|| " without a namespace".to_owned());
            findings.add(Rule::ReferenceMissing, spot, format!("no file has the {kind} {name:?}{place}"));
        }
        found.iter().for_each(Spot::set_examined);
        found
    }

    /// The nodes of all of a rule's upstreams, and of its backends, which are Kubernetes
    /// services.
    fn upstream(
        &self,
        resource: &Spot<'d>,
        rule: &Spot<'d>,
        findings: &mut Findings,
    ) -> Option<RouteUpstream<'d>> {
        let spot = rule.get("upstreams").or_else(|| rule.get("backends"))?;
        let mut upstream = RouteUpstream {
            spot,
            nodes: Vec::new(),
            discovered: None,
            timeout: None,
            scheme: None,
            pass_host: None,
        };
        for backend in rule.items_of("backends") {
            let host = format!("the service {}", backend.text_of("serviceName").unwrap_or_default());
            let port = backend.get("servicePort").and_then(|port| port_of(&port));
            upstream.nodes.push(UpstreamNode { spot: backend, host, port });
        }
        let mut is_known = !upstream.nodes.is_empty();
        for reference in rule.items_of("upstreams") {
            let Some(name) = reference.text_of("name") else { continue };
            let spot = reference.get_or_missing("name");
            let found = self.referenced("ApisixUpstream", namespace(resource), name, &spot, findings);
            let Some(spec) = found.map(|found| found.get_or_missing("spec")) else { continue };
            is_known = true;
            upstream.discovered = upstream.discovered.or_else(|| spec.get("discovery"));
            upstream.timeout = upstream.timeout.or_else(|| spec.get("timeout"));
            upstream.scheme = upstream.scheme.or_else(|| spec.get("scheme"));
            upstream.pass_host = upstream.pass_host.or_else(|| spec.get("passHost"));
            upstream.nodes.extend(spec.items_of("externalNodes").into_iter().map(external));
        }
        is_known.then_some(upstream)
    }
}

fn external(node: Spot<'_>) -> UpstreamNode<'_> {
    let name = node.text_of("name").unwrap_or_default();
    let host = match node.text_of("type") {
        Some("Service") => format!("the service {name}"),
        _ => unbracketed(name),
    };
    UpstreamNode { port: node.get("port").and_then(|port| port_of(&port)), host, spot: node }
}

/// The plugins that a resource itself lists.
fn plugins_of<'d>(resource: &Spot<'d>) -> Vec<RoutePlugin<'d>> {
    let mut plugins = Plugins::default();
    let list = resource.at(&["spec", "plugins"]).map(|list| list.items()).unwrap_or_default();
    list.iter().filter_map(plugin).for_each(|plugin| plugins.put(plugin));
    plugins.enabled()
}

/// A plugin of a list of them: `{"name": …, "enable": true, "config": {…}}`, and
/// `enabled` in a GatewayProxy.
pub(super) fn plugin<'d>(entry: &Spot<'d>) -> Option<RoutePlugin<'d>> {
    let name = entry.text_of("name")?;
    entry.set_examined();
    let conf = entry.get_or_missing("config");
    let is_off = entry.has_false("enable") || entry.has_false("enabled");
    (!is_off).then(|| RoutePlugin { name, conf, has_secret: entry.get("secretRef").is_some() })
}

pub(super) fn namespace<'d>(resource: &Spot<'d>) -> Option<&'d str> {
    resource.at(&["metadata", "namespace"])?.text()
}
