//! What the files say together: the gateway's routes, each with all that is in force
//! on it.

use std::collections::HashSet;

use super::document::Spot;
use super::finding::Findings;
use super::ingress;
use super::rule::Rule;

/// The objects of a gateway by their kinds, as they stand in the files.
#[derive(Default)]
pub(super) struct Objects<'d> {
    routes: Vec<Spot<'d>>,
    services: Vec<Spot<'d>>,
    plugin_configs: Vec<Spot<'d>>,
    upstreams: Vec<Spot<'d>>,
    global_rules: Vec<Spot<'d>>,
    /// What else may hold a secret: certificates, consumers, plugins' metadata.
    others: Vec<Spot<'d>>,
    /// The process's own configuration, `config.yaml`.
    pub(super) configs: Vec<Spot<'d>>,
    ingress: ingress::Resources<'d>,
}

/// The lists of a standalone file and the collections of the Admin API.
const COLLECTIONS: [&str; 10] = [
    "routes",
    "services",
    "plugin_configs",
    "upstreams",
    "global_rules",
    "ssls",
    "consumers",
    "consumer_groups",
    "plugin_metadata",
    "secrets",
];

/// What only `config.yaml` has at its top.
const CONFIG: [&str; 5] = ["deployment", "nginx_config", "ext-plugin", "apisix", "plugin_attr"];

impl<'d> Objects<'d> {
    /// Sorts a document in.
    pub(super) fn add(&mut self, document: &Spot<'d>) {
        if let Some(version) = document.text_of("apiVersion") {
            match document.text_of("kind") {
                Some("List") => {
                    document.items_of("items").iter().for_each(|item| self.add(item));
                }
                Some(kind) if version.starts_with("apisix.apache.org/") => self.ingress.add(kind, document),
                // Another resource of Kubernetes', beside the gateway's.
                _ => {}
            }
        } else if is_standalone(document) {
            for name in COLLECTIONS {
                for object in document.items_of(name).into_iter() {
                    self.collection(name).push(object);
                }
            }
        } else if CONFIG.iter().any(|name| document.get(name).is_some_and(|part| part.is_map())) {
            self.configs.push(document.clone());
        } else if let Some(list) = document.get("list").filter(Spot::is_list) {
            list.items().iter().for_each(|item| self.add(item));
        } else if let (Some(key), Some(value)) = (document.text_of("key"), document.get("value")) {
            // What the Admin API answers: {"key": "/apisix/routes/1", "value": {…}}.
            if let Some(name) = COLLECTIONS.into_iter().find(|name| key.split('/').any(|part| part == *name))
            {
                self.collection(name).push(value);
            }
        } else {
            self.add_body(document);
        }
    }

    /// An object as it is sent to the Admin API, whose kind stands in the request's path.
    fn add_body(&mut self, body: &Spot<'d>) {
        let has = |name: &str| body.get(name).is_some();
        if has("uri") || has("uris") {
            self.routes.push(body.clone());
        } else if has("plugins") {
            // A service, or a set of plugins: a route says which of the two it means.
            self.services.push(body.clone());
            self.plugin_configs.push(body.clone());
        } else if has("nodes") || has("service_name") {
            self.upstreams.push(body.clone());
        } else if has("cert") || has("snis") || has("username") {
            self.others.push(body.clone());
        }
    }

    fn collection(&mut self, name: &str) -> &mut Vec<Spot<'d>> {
        match name {
            "routes" => &mut self.routes,
            "services" => &mut self.services,
            "plugin_configs" => &mut self.plugin_configs,
            "upstreams" => &mut self.upstreams,
            "global_rules" => &mut self.global_rules,
            _ => &mut self.others,
        }
    }

    /// How many objects there are.
    pub(super) fn count(&self) -> usize {
        let lists =
            [&self.routes, &self.services, &self.upstreams, &self.global_rules, &self.others, &self.configs];
        lists.iter().map(|list| list.len()).sum::<usize>() + self.ingress.count()
    }

    /// The plugins of each global rule.
    pub(super) fn global_plugins(&self) -> Vec<Vec<Plugin<'d>>> {
        let of_rule = |rule: &Spot<'d>| {
            let mut plugins = Plugins::default();
            for (name, conf) in rule.entries_of("plugins") {
                plugins.put(name, conf);
            }
            plugins.enabled()
        };
        self.global_rules.iter().map(of_rule).chain(self.ingress.global_plugins()).collect()
    }

    /// Every object that may have plugins' confs in it.
    pub(super) fn with_plugins(&self) -> impl Iterator<Item = &Spot<'d>> {
        let lists = [&self.routes, &self.services, &self.plugin_configs, &self.global_rules, &self.others];
        lists.into_iter().flatten().chain(self.ingress.with_plugins())
    }

    /// The routes, each with all that is in force on it.
    pub(super) fn resolved(&self, findings: &mut Findings) -> Vec<Route<'d>> {
        self.ids(findings);
        let mut routes: Vec<_> = self.routes.iter().map(|route| self.route(route, findings)).collect();
        routes.extend(self.ingress.routes(findings));
        routes
    }

    fn ids(&self, findings: &mut Findings) {
        let lists = [&self.routes, &self.upstreams, &self.global_rules];
        for list in lists {
            let mut seen = HashSet::new();
            for object in list {
                let Some(id) = object.id_of("id") else { continue };
                if !seen.insert(id.clone()) {
                    findings.add(
                        Rule::IdTwice,
                        &object.get_or_missing("id"),
                        format!("id {id:?} stands twice"),
                    );
                }
            }
        }
    }

    fn route(&self, route: &Spot<'d>, findings: &mut Findings) -> Route<'d> {
        let service = referenced(route, "service_id", &self.services, findings);
        let plugin_config = referenced(route, "plugin_config_id", &self.plugin_configs, findings);
        let layers = [service.as_ref(), plugin_config.as_ref(), Some(route)];
        let mut plugins = Plugins::default();
        for layer in layers.into_iter().flatten() {
            for (name, conf) in layer.entries_of("plugins") {
                plugins.put(name, conf);
            }
        }
        let own = |object: &Spot<'d>, findings: &mut Findings| {
            object.get("upstream").or_else(|| referenced(object, "upstream_id", &self.upstreams, findings))
        };
        let upstream =
            own(route, findings).or_else(|| service.as_ref().and_then(|service| own(service, findings)));
        let of = |name: &str| route.get(name).or_else(|| service.as_ref()?.get(name));
        let scripts = ["script", "filter_func"].into_iter().filter_map(|name| route.get(name));
        let upstream_is_unknown = upstream.is_none() && refers(route, service.as_ref());
        Route {
            hosts: texts(of("host").or_else(|| of("hosts"))),
            websocket: of("enable_websocket").unwrap_or_else(|| route.missing("enable_websocket")),
            timeout: route.get("timeout"),
            conditions: route.get("vars"),
            upstream: upstream.map(|spot| Upstream::read(&spot)),
            upstream_is_unknown,
            scripts: scripts.collect(),
            plugins: plugins.enabled(),
            is_complete: service.is_some() == route.get("service_id").is_some()
                && plugin_config.is_some() == route.get("plugin_config_id").is_some(),
            spot: route.clone(),
        }
    }
}

/// Whether a document is a standalone file's.
pub(super) fn is_standalone(document: &Spot<'_>) -> bool {
    COLLECTIONS.iter().any(|name| document.get(name).is_some_and(|list| list.is_list()))
}

/// Whether the upstream of a route is told by an object that no file has.
fn refers(route: &Spot<'_>, service: Option<&Spot<'_>>) -> bool {
    route.get("upstream_id").is_some()
        || service.is_some_and(|service| service.get("upstream_id").is_some())
        || service.is_none() && route.get("service_id").is_some()
}

/// The object that another names by its id.
fn referenced<'d>(
    object: &Spot<'d>,
    field: &'static str,
    among: &[Spot<'d>],
    findings: &mut Findings,
) -> Option<Spot<'d>> {
    let id = object.id_of(field)?;
    let found = among.iter().find(|candidate| candidate.id_of("id").as_ref() == Some(&id));
    if found.is_none() {
        let what = field.trim_end_matches("_id").replace('_', " ");
        findings.add(
            Rule::ReferenceMissing,
            &object.get_or_missing(field),
            format!("no file has the {what} {id:?}"),
        );
    }
    found.cloned()
}

fn texts<'d>(spot: Option<Spot<'d>>) -> Vec<&'d str> {
    let Some(spot) = spot else { return Vec::new() };
    match spot.text() {
        Some(text) => vec![text],
        None => spot.items().iter().filter_map(Spot::text).collect(),
    }
}

/// A route with all that is in force on it.
pub(super) struct Route<'d> {
    pub(super) spot: Spot<'d>,
    pub(super) hosts: Vec<&'d str>,
    pub(super) plugins: Vec<Plugin<'d>>,
    pub(super) upstream: Option<Upstream<'d>>,
    /// No file has the object that tells it.
    pub(super) upstream_is_unknown: bool,
    /// The switch for WebSockets, or where it would stand.
    pub(super) websocket: Spot<'d>,
    /// The route's own, which counts before the upstream's.
    pub(super) timeout: Option<Spot<'d>>,
    /// What a request must have beside path and host.
    pub(super) conditions: Option<Spot<'d>>,
    pub(super) scripts: Vec<Spot<'d>>,
    /// All that the route names was found.
    pub(super) is_complete: bool,
}

impl<'d> Route<'d> {
    pub(super) fn plugin(&self, name: &str) -> Option<&Plugin<'d>> {
        self.plugins.iter().find(|plugin| plugin.name == name)
    }
}

/// A plugin's conf on a route.
#[derive(Clone)]
pub(super) struct Plugin<'d> {
    pub(super) name: &'d str,
    pub(super) conf: Spot<'d>,
    /// Another part of the conf comes from a Kubernetes secret, which no file has.
    pub(super) has_secret: bool,
}

impl<'d> Plugin<'d> {
    /// The priority that the route gives it.
    pub(super) fn priority(&self) -> Option<f64> {
        self.conf.at(&["_meta", "priority"])?.number()
    }

    pub(super) fn filter(&self) -> Option<Spot<'d>> {
        self.conf.at(&["_meta", "filter"]).filter(|filter| !filter.items().is_empty())
    }
}

/// Plugins by name, of which a later one takes the place of an earlier one.
#[derive(Default)]
pub(super) struct Plugins<'d>(Vec<Plugin<'d>>);

impl<'d> Plugins<'d> {
    pub(super) fn put(&mut self, name: &'d str, conf: Spot<'d>) {
        self.put_plugin(Plugin { name, conf, has_secret: false });
    }

    pub(super) fn put_plugin(&mut self, plugin: Plugin<'d>) {
        self.0.retain(|before| before.name != plugin.name);
        self.0.push(plugin);
    }

    pub(super) fn enabled(mut self) -> Vec<Plugin<'d>> {
        self.0
            .retain(|plugin| !plugin.conf.at(&["_meta", "disable"]).is_some_and(|disable| disable.is(true)));
        self.0
    }
}

/// Where the gateway itself sends a route's requests.
pub(super) struct Upstream<'d> {
    pub(super) spot: Spot<'d>,
    pub(super) nodes: Vec<TargetNode<'d>>,
    /// Its nodes are found out by the gateway as it runs.
    pub(super) is_discovered: bool,
    pub(super) timeout: Option<Spot<'d>>,
}

pub(super) struct TargetNode<'d> {
    pub(super) spot: Spot<'d>,
    pub(super) host: String,
    pub(super) port: Option<u16>,
}

impl<'d> Upstream<'d> {
    fn read(spot: &Spot<'d>) -> Self {
        let nodes = spot.get_or_missing("nodes");
        let listed = nodes.items().into_iter().filter_map(|node| {
            let host = node.text_of("host")?.to_owned();
            Some(TargetNode { port: node.get("port").and_then(|port| port_of(&port)), host, spot: node })
        });
        let mapped = nodes.entries().into_iter().map(|(name, node)| {
            let (host, port) = host_and_port(name);
            TargetNode { spot: node, host, port }
        });
        Self {
            nodes: listed.chain(mapped).collect(),
            is_discovered: spot.get("service_name").is_some(),
            timeout: spot.get("timeout"),
            spot: spot.clone(),
        }
    }
}

/// The port that a number says.
pub(super) fn port_of(spot: &Spot<'_>) -> Option<u16> {
    let number = spot.number()?;
    (1..=u16::MAX).find(|port| f64::from(*port) == number)
}

fn host_and_port(text: &str) -> (String, Option<u16>) {
    let unbracketed = |host: &str| host.trim_start_matches('[').trim_end_matches(']').to_owned();
    match text.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            (unbracketed(host), port.parse().ok())
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
