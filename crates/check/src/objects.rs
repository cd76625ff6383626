//! The gateway's objects, sorted out of the documents in which they come.

use std::collections::HashMap;

use super::chart;
use super::document::Spot;
use super::finding::Findings;
use super::ingress;
use super::kubernetes;
use super::route::{GatewayRoute, Plugins, RoutePlugin, RouteUpstream};
use super::rule::Rule;

/// The objects of a gateway by their kinds, as the files contain them.
#[derive(Default)]
pub(super) struct Objects<'d> {
    routes: Collection<'d>,
    services: Collection<'d>,
    plugin_configs: Collection<'d>,
    upstreams: Collection<'d>,
    global_rules: Collection<'d>,
    /// Services or sets of plugins: a route says which of the two it means.
    either: Collection<'d>,
    /// Those of certificates, consumers and plugins' metadata, which may hold secrets.
    others: Vec<Spot<'d>>,
    /// The process's own configuration, `config.yaml`.
    configs: Vec<Spot<'d>>,
    ingress: ingress::Resources<'d>,
    /// The files that hold all of a gateway's objects.
    standalone: Vec<Spot<'d>>,
    /// The lists of plugins that these files have.
    plugin_lists: Vec<Spot<'d>>,
    /// Routes within their services, as ADC writes them.
    nested: Vec<(Spot<'d>, Spot<'d>)>,
    /// The map of global rules that ADC writes.
    rule_maps: Vec<Spot<'d>>,
    /// Values of the gateway's Helm chart.
    charts: Vec<Spot<'d>>,
}

/// Objects of one kind, by their ids.
#[derive(Default)]
struct Collection<'d> {
    objects: Vec<Spot<'d>>,
    by_id: HashMap<String, usize>,
    twice: Vec<usize>,
}

impl<'d> Collection<'d> {
    fn push(&mut self, object: Spot<'d>) {
        let at = self.objects.len();
        // As with the gateway, the last one of an id is in force.
        if object.id_of("id").is_some_and(|id| self.by_id.insert(id, at).is_some()) {
            self.twice.push(at);
        }
        self.objects.push(object);
    }

    fn of_id(&self, id: &str) -> Option<&Spot<'d>> {
        self.by_id.get(id).map(|at| &self.objects[*at])
    }
}

/// The lists of a standalone file and the collections of the Admin API.
pub(super) const COLLECTIONS: [&str; 12] = [
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
    "stream_routes",
    "protos",
];

/// What only `config.yaml` has at its top.
const CONFIG: [&str; 5] = ["deployment", "nginx_config", "ext-plugin", "apisix", "plugin_attr"];

impl<'d> Objects<'d> {
    /// Sorts a document in, and says whether it is a gateway's.
    #[must_use]
    pub(super) fn add(&mut self, document: &Spot<'d>) -> bool {
        if let Some(version) = document.text_of("apiVersion") {
            return match document.text_of("kind") {
                Some("List") => self.add_each(&document.items_of("items")),
                Some(kind) if is_route_resource(version, kind, document) => {
                    self.ingress.add(kind, document);
                    true
                }
                // A resource of Kubernetes that is not the gateway's.
                _ => false,
            };
        }
        if is_standalone(document) {
            self.standalone.push(document.clone());
            for name in COLLECTIONS {
                document.items_of(name).into_iter().for_each(|object| self.put(name, object));
            }
            self.plugin_lists.extend(document.get("plugins").filter(Spot::is_list));
            self.rule_maps.extend(document.get("global_rules").filter(Spot::is_map));
            return true;
        }
        if let Some(values) = chart::values(document) {
            self.configs.extend(chart::full_config(&values));
            self.charts.push(values);
            return true;
        }
        if CONFIG.iter().any(|name| document.get(name).is_some_and(|part| part.is_map())) {
            self.configs.push(document.clone());
            return true;
        }
        if let Some(list) = document.get("list") {
            // An empty list may come as an empty map.
            return list.items().is_empty() && list.entries().is_empty() || self.add_each(&list.items());
        }
        if let (Some(key), Some(value)) = (document.text_of("key"), document.get("value")) {
            // What the Admin API answers: {"key": "/apisix/routes/1", "value": {…}}.
            let collection =
                key.split('/').find_map(|part| COLLECTIONS.into_iter().find(|name| *name == part));
            if let Some(name) = collection {
                self.put(name, value);
            }
            return collection.is_some();
        }
        self.add_body(document)
    }

    fn add_each(&mut self, documents: &[Spot<'d>]) -> bool {
        documents.iter().map(|document| self.add(document)).filter(|is_ours| *is_ours).count() > 0
    }

    /// An object as it is sent to the Admin API. The request's path says its kind.
    fn add_body(&mut self, body: &Spot<'d>) -> bool {
        let has = |name: &str| body.get(name).is_some();
        if has("uri") || has("uris") {
            self.routes.push(body.clone());
        } else if has("upstream") || has("upstream_id") || has("enable_websocket") || has("hosts") {
            self.services.push(body.clone());
        } else if has("plugins") && !has("username") {
            self.either.push(body.clone());
        } else if has("nodes") || has("service_name") {
            self.upstreams.push(body.clone());
        } else if has("cert") || has("snis") || has("username") {
            self.others.push(body.clone());
        } else {
            return false;
        }
        true
    }

    fn put(&mut self, collection: &str, object: Spot<'d>) {
        match collection {
            "routes" => self.routes.push(object),
            "services" => {
                let routes = object.items_of("routes").into_iter();
                self.nested.extend(routes.map(|route| (object.clone(), route)));
                self.services.push(object);
            }
            "plugin_configs" => self.plugin_configs.push(object),
            "upstreams" => self.upstreams.push(object),
            "global_rules" => self.global_rules.push(object),
            _ => self.others.push(object),
        }
    }

    /// The lists of plugins in files of routes.
    pub(super) fn plugin_lists(&self) -> &[Spot<'d>] {
        &self.plugin_lists
    }

    pub(super) fn charts(&self) -> &[Spot<'d>] {
        &self.charts
    }

    pub(super) fn configs(&self) -> &[Spot<'d>] {
        &self.configs
    }

    /// Whether the gateway replaces `${{VARIABLES}}` in this document as it reads it.
    pub(super) fn replaces_variables(&self, spot: &Spot<'_>) -> bool {
        self.is_config(spot) || self.standalone.iter().any(|document| spot.is_within(document))
    }

    /// Whether this is of the process's own configuration.
    pub(super) fn is_config(&self, spot: &Spot<'_>) -> bool {
        self.configs.iter().any(|config| spot.is_within(config))
    }

    /// Every object that may have plugins' confs, or secrets of another kind, in it.
    pub(super) fn all(&self) -> impl Iterator<Item = &Spot<'d>> {
        let collections =
            [&self.routes, &self.services, &self.plugin_configs, &self.global_rules, &self.either];
        let objects = collections.into_iter().flat_map(|collection| &collection.objects);
        objects.chain(&self.others).chain(self.ingress.all())
    }

    /// Each consumer's plugins, or a group of consumers'.
    pub(super) fn consumers(&self) -> Vec<Vec<RoutePlugin<'d>>> {
        let consumers = self.others.iter().map(plugins_of).chain(self.ingress.consumers());
        consumers.filter(|plugins| !plugins.is_empty()).collect()
    }

    /// Each object with plugins that no route refers to, as a route of which only these are known.
    pub(super) fn unused(&self, findings: &mut Findings) -> Vec<GatewayRoute<'d>> {
        let collections = [&self.services, &self.plugin_configs, &self.either];
        let objects = collections.into_iter().flat_map(|collection| &collection.objects);
        let unused = objects.filter(|object| !object.is_examined() && object.items_of("routes").is_empty());
        let mut parts: Vec<_> = unused
            .map(|object| GatewayRoute {
                upstream: self.upstream(object, findings).map(|upstream| RouteUpstream::read(&upstream)),
                scripts: object.get("script").into_iter().collect(),
                ..GatewayRoute::part(object, plugins_of(object))
            })
            .collect();
        parts.extend(self.ingress.unused());
        parts
    }

    /// The global rules, each as a route with only its plugins.
    pub(super) fn global_rules(&self) -> Vec<GatewayRoute<'d>> {
        let rules = self.global_rules.objects.iter();
        let rules = rules.map(|rule| GatewayRoute::with_plugins(rule, plugins_of(rule)));
        let maps = self.rule_maps.iter().map(|map| GatewayRoute::with_plugins(map, plugins_in(map)));
        rules.chain(maps).chain(self.ingress.global_rules()).collect()
    }

    /// The routes that are in force, each with all that is in force on it.
    pub(super) fn routes(&self, findings: &mut Findings) -> Vec<GatewayRoute<'d>> {
        let collections =
            [&self.routes, &self.services, &self.plugin_configs, &self.upstreams, &self.global_rules];
        for collection in collections {
            for object in collection.twice.iter().map(|at| &collection.objects[*at]) {
                let id = object.id_of("id").unwrap_or_default();
                findings.add(Rule::IdTwice, &object.get_or_missing("id"), format!("id {id:?} is used twice"));
            }
        }
        let live = self.routes.objects.iter().filter(|route| route.number_of("status") != Some(0.0));
        let mut routes: Vec<_> = live.map(|route| self.route(route, None, findings)).collect();
        let nested = self.nested.iter().filter(|(_, route)| route.number_of("status") != Some(0.0));
        routes.extend(nested.map(|(service, route)| self.route(route, Some(service), findings)));
        routes.extend(self.ingress.routes(findings));
        routes
    }

    /// A route, which may be written within its service.
    fn route(
        &self,
        route: &Spot<'d>,
        within: Option<&Spot<'d>>,
        findings: &mut Findings,
    ) -> GatewayRoute<'d> {
        let service = self.referenced(route, "service_id", &self.services, findings).or(within.cloned());
        let plugin_config = self.referenced(route, "plugin_config_id", &self.plugin_configs, findings);
        let mut plugins = Plugins::default();
        for layer in [service.as_ref(), plugin_config.as_ref(), Some(route)].into_iter().flatten() {
            for (name, conf) in layer.entries_of("plugins") {
                plugins.put(RoutePlugin { name, conf, has_secret: false });
            }
        }
        let upstream = self.upstream(route, findings);
        let upstream =
            upstream.or_else(|| service.as_ref().and_then(|service| self.upstream(service, findings)));
        let of = |name: &str| route.get(name).or_else(|| service.as_ref()?.get(name));
        let scripts = ["script", "filter_func"].into_iter().filter_map(of);
        let upstream_is_unknown = upstream.is_none()
            && [Some(route), service.as_ref()]
                .into_iter()
                .flatten()
                .any(|layer| layer.get("upstream_id").is_some())
            || upstream.is_none() && service.is_none() && route.get("service_id").is_some();
        GatewayRoute {
            hosts: of("host").or_else(|| of("hosts")).map(|hosts| hosts.texts_of()).unwrap_or_default(),
            paths: route
                .get("uri")
                .or_else(|| route.get("uris"))
                .map(|paths| paths.texts_of())
                .unwrap_or_default(),
            websocket: of("enable_websocket").unwrap_or_else(|| route.missing("enable_websocket")),
            websocket_is_unknown: false,
            timeout: route.get("timeout"),
            conditions: route.get("vars"),
            narrowed: ["methods", "remote_addr", "remote_addrs"]
                .into_iter()
                .filter_map(|name| route.get(name))
                .collect(),
            priority: route.number_of("priority").unwrap_or_default(),
            upstream: upstream.map(|spot| RouteUpstream::read(&spot)),
            upstream_is_unknown,
            scripts: scripts.collect(),
            plugins: plugins.enabled(),
            global_login: None,
            is_complete: (service.is_some() || route.get("service_id").is_none())
                && plugin_config.is_some() == route.get("plugin_config_id").is_some(),
            spot: route.clone(),
        }
    }

    /// What an object says about its upstream. The gateway looks at the id first.
    fn upstream(&self, object: &Spot<'d>, findings: &mut Findings) -> Option<Spot<'d>> {
        match object.get("upstream_id") {
            Some(_) => self.referenced(object, "upstream_id", &self.upstreams, findings),
            None => object.get("upstream"),
        }
    }

    /// The object that another names by its id.
    fn referenced(
        &self,
        object: &Spot<'d>,
        field: &'static str,
        among: &Collection<'d>,
        findings: &mut Findings,
    ) -> Option<Spot<'d>> {
        let id = object.id_of(field)?;
        let either = Some(&self.either).filter(|_| field != "upstream_id");
        let found = among.of_id(&id).or_else(|| either?.of_id(&id));
        if found.is_none() {
            let what = field.trim_end_matches("_id").replace('_', " ");
            let spot = object.get_or_missing(field);
            if self.standalone.iter().any(|document| document.file == object.file) {
                findings.add(Rule::ReferenceBroken, &spot, format!("the file has no {what} {id:?}"));
            } else {
                findings.add(Rule::ReferenceMissing, &spot, format!("no file has the {what} {id:?}"));
            }
        }
        found.into_iter().for_each(Spot::set_examined);
        found.cloned()
    }
}

/// Whether a resource of Kubernetes says what the gateway does with requests.
fn is_route_resource(version: &str, kind: &str, document: &Spot<'_>) -> bool {
    version.starts_with("apisix.apache.org/")
        || version.starts_with("gateway.networking.k8s.io/")
        || kind == "Ingress" && kubernetes::is_gateways(document)
}

/// Whether a document is a file that the gateway itself reads, or values for its Helm chart.
pub(super) fn is_gateway_file(document: &Spot<'_>) -> bool {
    document.get("apiVersion").is_none()
        && (is_standalone(document)
            || chart::values(document).is_some()
            || CONFIG.iter().any(|name| document.get(name).is_some_and(|part| part.is_map())))
}

/// Whether a document is a standalone file's.
pub(super) fn is_standalone(document: &Spot<'_>) -> bool {
    COLLECTIONS.iter().any(|name| document.get(name).is_some_and(|list| list.is_list()))
}

fn plugins_of<'d>(object: &Spot<'d>) -> Vec<RoutePlugin<'d>> {
    plugins_in(&object.get_or_missing("plugins"))
}

fn plugins_in<'d>(map: &Spot<'d>) -> Vec<RoutePlugin<'d>> {
    let mut plugins = Plugins::default();
    for (name, conf) in map.entries() {
        plugins.put(RoutePlugin { name, conf, has_secret: false });
    }
    plugins.enabled()
}
