//! The ingress controller's resources: the same routes in other words.

use super::document::Spot;
use super::finding::Findings;
use super::gateway::{Plugin, Plugins, Route, TargetNode, Upstream, port_of};
use super::rule::Rule;

/// The resources by their kinds.
#[derive(Default)]
pub(super) struct Resources<'d> {
    routes: Vec<Spot<'d>>,
    plugin_configs: Vec<Spot<'d>>,
    upstreams: Vec<Spot<'d>>,
    global_rules: Vec<Spot<'d>>,
    others: usize,
}

impl<'d> Resources<'d> {
    pub(super) fn add(&mut self, kind: &str, resource: &Spot<'d>) {
        match kind {
            "ApisixRoute" => self.routes.push(resource.clone()),
            "ApisixPluginConfig" => self.plugin_configs.push(resource.clone()),
            "ApisixUpstream" => self.upstreams.push(resource.clone()),
            "ApisixGlobalRule" => self.global_rules.push(resource.clone()),
            // A certificate or a consumer, whose secrets are Kubernetes' own.
            _ => self.others += 1,
        }
    }

    pub(super) fn count(&self) -> usize {
        let lists = [&self.routes, &self.plugin_configs, &self.upstreams, &self.global_rules];
        lists.iter().map(|list| list.len()).sum::<usize>() + self.others
    }

    /// The plugins of each global rule.
    pub(super) fn global_plugins(&self) -> Vec<Vec<Plugin<'d>>> {
        let of_rule = |rule: &Spot<'d>| {
            let mut plugins = Plugins::default();
            let entries = rule.at(&["spec", "plugins"]).iter().flat_map(Spot::items).collect::<Vec<_>>();
            entries.iter().filter_map(plugin).for_each(|plugin| plugins.put_plugin(plugin));
            plugins.enabled()
        };
        self.global_rules.iter().map(of_rule).collect()
    }

    pub(super) fn with_plugins(&self) -> impl Iterator<Item = &Spot<'d>> {
        [&self.routes, &self.plugin_configs, &self.global_rules].into_iter().flatten()
    }

    pub(super) fn routes(&self, findings: &mut Findings) -> Vec<Route<'d>> {
        let mut routes = Vec::new();
        for resource in &self.routes {
            for rule in resource.at(&["spec", "http"]).iter().flat_map(Spot::items) {
                routes.push(self.route(resource, &rule, findings));
            }
        }
        routes
    }

    fn route(&self, resource: &Spot<'d>, rule: &Spot<'d>, findings: &mut Findings) -> Route<'d> {
        let plugin_config = rule.text_of("plugin_config_name").and_then(|name| {
            let namespace = rule.text_of("plugin_config_namespace").or_else(|| namespace(resource));
            let found = named(&self.plugin_configs, name, namespace);
            if found.is_none() {
                let text = format!("no file has the ApisixPluginConfig {name:?}");
                findings.add(Rule::ReferenceMissing, &rule.get_or_missing("plugin_config_name"), text);
            }
            found
        });
        let shared = plugin_config.as_ref().and_then(|config| config.at(&["spec", "plugins"]));
        let mut plugins = Plugins::default();
        for list in [shared, rule.get("plugins")].into_iter().flatten() {
            list.items().iter().filter_map(plugin).for_each(|plugin| plugins.put_plugin(plugin));
        }
        let conditions = rule.get_or_missing("match");
        let hosts = conditions.items_of("hosts").into_iter().filter_map(|host| host.text());
        let upstream = self.upstream(resource, rule, findings);
        Route {
            hosts: hosts.collect(),
            websocket: rule.get_or_missing("websocket"),
            timeout: None,
            conditions: conditions.get("exprs"),
            upstream_is_unknown: upstream.is_none() && rule.get("upstreams").is_some(),
            upstream,
            scripts: Vec::new(),
            is_complete: plugin_config.is_some() == rule.get("plugin_config_name").is_some(),
            plugins: plugins.enabled(),
            spot: rule.clone(),
        }
    }

    /// The nodes of all of a rule's upstreams, and of its backends, which are Kubernetes
    /// services.
    fn upstream(
        &self,
        resource: &Spot<'d>,
        rule: &Spot<'d>,
        findings: &mut Findings,
    ) -> Option<Upstream<'d>> {
        let mut nodes = Vec::new();
        let mut timeout = rule.get("timeout");
        for backend in rule.items_of("backends").into_iter() {
            let host = format!("the service {}", backend.text_of("serviceName").unwrap_or_default());
            let port = backend.get("servicePort").and_then(|port| port_of(&port));
            nodes.push(TargetNode { spot: backend, host, port });
        }
        for reference in rule.items_of("upstreams").into_iter() {
            let Some(name) = reference.text_of("name") else { continue };
            let Some(upstream) = named(&self.upstreams, name, namespace(resource)) else {
                let text = format!("no file has the ApisixUpstream {name:?}");
                findings.add(Rule::ReferenceMissing, &reference.get_or_missing("name"), text);
                return None;
            };
            let spec = upstream.get_or_missing("spec");
            timeout = timeout.or_else(|| spec.get("timeout"));
            for node in spec.items_of("externalNodes").into_iter() {
                let host = match node.text_of("type") {
                    Some("Service") => format!("the service {}", node.text_of("name").unwrap_or_default()),
                    _ => node.text_of("name").unwrap_or_default().to_owned(),
                };
                let port = node.get("port").and_then(|port| port_of(&port));
                nodes.push(TargetNode { spot: node, host, port });
            }
        }
        let spot = rule.get("upstreams").or_else(|| rule.get("backends"))?;
        Some(Upstream { spot, nodes, is_discovered: false, timeout })
    }
}

/// A plugin of a list of them: `{"name": …, "enable": true, "config": {…}}`.
fn plugin<'d>(entry: &Spot<'d>) -> Option<Plugin<'d>> {
    let name = entry.text_of("name")?;
    let conf = entry.get_or_missing("config");
    (!entry.says("enable", false)).then(|| Plugin {
        name,
        conf,
        has_secret: entry.get("secretRef").is_some(),
    })
}

fn namespace<'d>(resource: &Spot<'d>) -> Option<&'d str> {
    resource.at(&["metadata", "namespace"])?.text()
}

fn named<'d>(among: &[Spot<'d>], name: &str, in_namespace: Option<&str>) -> Option<Spot<'d>> {
    let is_it = |resource: &&Spot<'d>| {
        resource.at(&["metadata", "name"]).is_some_and(|text| text.text() == Some(name))
            && namespace(resource) == in_namespace
    };
    among.iter().find(is_it).cloned()
}
