//! Values for the gateway's Helm chart.

use super::calls::DECISION;
use super::document::Spot;

/// What `apisix` has in values, and never in `config.yaml`.
const VALUES: [&str; 11] = [
    "admin",
    "deployment",
    "nginx",
    "extPlugin",
    "plugins",
    "pluginAttrs",
    "customPlugins",
    "fullCustomConfig",
    "trustedAddresses",
    "ssl",
    "discovery",
];

/// What the chart's values have beside `apisix`.
const BESIDE: [&str; 4] = ["ingress-controller", "externalEtcd", "extPlugin", "gateway"];

/// What every chart's values may have, and `config.yaml` has not.
const OF_CHARTS: [&str; 6] = ["service", "replicaCount", "image", "etcd", "autoscaling", "extraEnvVars"];

/// A document's values for the gateway's chart, if it has them: it may be another chart's that
/// depends on it.
pub(super) fn values<'d>(document: &Spot<'d>) -> Option<Spot<'d>> {
    if document.get("apiVersion").is_some() {
        return None;
    }
    let gateway = document.get("apisix").filter(Spot::is_map);
    if let Some(inner) =
        gateway.as_ref().filter(|inner| inner.get("apisix").is_some_and(|part| part.is_map()))
    {
        return Some(inner.clone());
    }
    let has = |spot: &Spot<'_>, names: &[&str]| {
        names.iter().any(|name| spot.get(name).is_some_and(|it| it.is_map()))
    };
    let is_config = ["deployment", "nginx_config", "ext-plugin", "plugin_attr"]
        .iter()
        .any(|name| document.get(name).is_some());
    let is_values = gateway.is_some_and(|gateway| has(&gateway, &VALUES))
        || has(document, &BESIDE)
        || OF_CHARTS.iter().any(|name| document.get(name).is_some()) && document.get("apisix").is_some();
    (is_values && !is_config).then(|| document.clone())
}

/// The plugins that values let the gateway load: those of their list, or none of them says so.
pub(super) fn plugin_list<'d>(values: &Spot<'d>) -> Option<(Spot<'d>, Vec<&'d str>)> {
    let list = setting(values, &["plugins"]).filter(|list| !list.items().is_empty())?;
    let custom = setting(values, &["customPlugins", "plugins"]).map(|list| list.items()).unwrap_or_default();
    let custom = custom.iter().filter_map(|plugin| plugin.text_of("name"));
    let names = list.texts_of().into_iter().chain(custom).collect();
    Some((list, names))
}

/// Whether values bring the gateway's plugin for direct mode.
pub(super) fn has_decision_plugin(values: &Spot<'_>) -> bool {
    let custom = setting(values, &["customPlugins", "plugins"]).map(|list| list.items()).unwrap_or_default();
    custom.iter().any(|plugin| plugin.text_of("name") == Some(DECISION))
}

/// The place at which values set the runner's command, if they do.
pub(super) fn runner<'d>(values: &Spot<'d>) -> Option<Spot<'d>> {
    setting(values, &["extPlugin"]).filter(|runner| runner.has_true("enabled"))
}

/// The `config.yaml` in values. With it, the chart ignores most of its other settings.
pub(super) fn full_config<'d>(values: &Spot<'d>) -> Option<Spot<'d>> {
    values.at(&["apisix", "fullCustomConfig", "config"])
}

/// A setting of the gateway. Before version 2 of the chart, they had no `apisix` before them.
pub(super) fn setting<'d>(values: &Spot<'d>, names: &[&str]) -> Option<Spot<'d>> {
    values.get("apisix").and_then(|gateway| gateway.at(names)).or_else(|| values.at(names))
}
