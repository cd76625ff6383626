//! Secrets that the files themselves contain.

use super::document::Spot;
use super::finding::Findings;
use super::objects::Objects;
use super::rule::Rule;

/// The ends of secrets' names, without `_`, `-` and capital letters: those of all that APISIX
/// 3.18 encrypts in its plugins' confs (`encrypt_fields`), and the chart's own.
const ENDS: [&str; 13] = [
    "secret",
    "secretfallbacks",
    "password",
    "privatekey",
    "secretkey",
    "accesskey",
    "apikey",
    "adminkey",
    "token",
    "authorization",
    "authheader",
    "serviceaccountjson",
    "keyring",
];

/// Where each text is a secret, whatever its name.
const PARTS: [&str; 2] = [".auth.header.", ".auth.query."];

/// Plugins whose `key` is the secret itself.
const KEYS: [&str; 4] = ["key-auth", "keyAuth", "jwe-decrypt", "csrf"];

/// Ends of ways to other secrets: of an ApisixConsumer, of the ingress controller, and of the
/// chart's Admin API.
const PLACES: [&str; 5] = [
    "keyAuth.value.key",
    "adminKey.key",
    "adminKey.value",
    "admin.credentials.admin",
    "admin.credentials.viewer",
];

/// Checks every object of a gateway.
pub(super) fn check(objects: &Objects<'_>, findings: &mut Findings) {
    let documents = objects.all().chain(objects.configs()).chain(objects.charts());
    for object in documents {
        let mut search = SecretSearch { objects, findings };
        search.walk(object, Surroundings::default());
    }
}

/// What is around a value.
#[derive(Clone, Copy, Default)]
struct Surroundings<'d> {
    /// The name that it, or the list that it is in, has in its map.
    name: &'d str,
    /// The plugin in whose conf it is.
    plugin: &'d str,
    /// Whether it is a variable of a list such as `envs`: `NAME` or `NAME=value`.
    in_list_of_variables: bool,
}

struct SecretSearch<'s, 'd> {
    objects: &'s Objects<'d>,
    findings: &'s mut Findings,
}

impl<'d> SecretSearch<'_, 'd> {
    fn walk(&mut self, spot: &Spot<'d>, around: Surroundings<'d>) {
        if let Some(value) = spot.text() {
            self.look_at(spot, value, around);
            return;
        }
        for item in spot.items() {
            self.walk(&item, Surroundings { in_list_of_variables: around.name == "envs", ..around });
        }
        // `{"name": …, "config": …}` of the ingress controller, and `{"type": …, "config": …}`.
        let listed = spot.get("config").and_then(|_| spot.text_of("name").or_else(|| spot.text_of("type")));
        // A variable of a container.
        let variable = spot.text_of("name").filter(|_| spot.get("value").is_some());
        for (name, value) in spot.entries() {
            let plugin = if around.name == "plugins" { name } else { listed.unwrap_or(around.plugin) };
            let name = variable.filter(|_| name == "value").unwrap_or(name);
            // A whole config.yaml within values is looked at by itself.
            if name == "fullCustomConfig" {
                continue;
            }
            self.walk(&value, Surroundings { name, plugin, in_list_of_variables: false });
        }
    }

    fn look_at(&mut self, spot: &Spot<'d>, value: &str, around: Surroundings<'d>) {
        // A listed variable may have its value after its name.
        let (name, value) = match value.split_once('=') {
            Some((name, value)) if around.in_list_of_variables => (name, value),
            _ => (around.name, value),
        };
        // A certificate's key, or that of a client's certificate.
        let is_key = value.contains("-----BEGIN") && value.contains("PRIVATE KEY-----");
        let is_secret = is_key
            || is_secret_name(name)
            || name == "key" && KEYS.contains(&around.plugin)
            || PARTS.iter().any(|part| spot.path.contains(part))
            || PLACES.iter().any(|end| spot.path.ends_with(end));
        if is_secret && !value.is_empty() && !self.is_reference(spot, value) {
            self.findings.add(Rule::SecretInClear, spot, format!("{name} in clear text"));
        } else if password_of(value).is_some_and(|password| !self.is_reference(spot, password)) {
            self.findings.add(Rule::SecretInClear, spot, "a URL with a password in it");
        }
    }

    /// Whether a value refers to a secret and does not contain it.
    fn is_reference(&self, spot: &Spot<'_>, value: &str) -> bool {
        let lower = value.to_ascii_lowercase();
        let is_looked_up = ["$env://", "$secret://"].iter().any(|prefix| lower.starts_with(prefix));
        // In config.yaml the gateway looks nothing up: the reference itself would be the secret.
        is_looked_up && !self.objects.is_config(spot)
            || self.objects.replaces_variables(spot) && is_variable(value)
            || is_of_request(value)
    }
}

/// Whether a value of this name is a secret, and not the name of one.
fn is_secret_name(name: &str) -> bool {
    // In values for a chart, such a name means a Secret of Kubernetes: existingSecret, tlsSecret.
    let names_another = name.starts_with("existing")
        || name.strip_suffix("Secret").is_some_and(|start| !start.is_empty() && start != "client");
    let plain: String = name
        .chars()
        .filter(|character| !matches!(character, '_' | '-'))
        .map(|character| character.to_ascii_lowercase())
        .collect();
    !names_another && ENDS.iter().any(|end| plain.ends_with(end))
}

/// The password in a URL.
fn password_of(value: &str) -> Option<&str> {
    let (_, rest) = value.split_once("://")?;
    let authority = rest.split(['/', '?', '#', ' ', '\n']).next()?;
    let (user, _) = authority.rsplit_once('@')?;
    let (_, password) = user.split_once(':')?;
    (!password.is_empty()).then_some(password)
}

/// Whether a value is a variable that the gateway replaces as it reads its own files. A
/// default after `:=` is in clear.
pub(super) fn is_variable(value: &str) -> bool {
    value.starts_with("${{") && value.ends_with("}}") && !value.contains(":=")
}

/// Whether a value is a variable of the request: the client sent it itself.
fn is_of_request(value: &str) -> bool {
    let value = value.strip_prefix("Bearer ").or_else(|| value.strip_prefix("Basic ")).unwrap_or(value);
    let is_name = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let name = value.strip_prefix('$');
    let name =
        name.map(|name| name.strip_prefix('{').and_then(|name| name.strip_suffix('}')).unwrap_or(name));
    name.is_some_and(|name| !name.is_empty() && is_name(name))
}

#[cfg(test)]
mod tests {
    use super::{is_secret_name, password_of};

    #[test]
    fn names_of_secrets_are_told_from_names_that_point_to_secrets() {
        for (name, expected) in [
            ("client_secret", true),
            ("clientSecret", true),
            ("secret_access_key", true),
            ("access_key_secret", true),
            ("access_key_id", false),
            ("X-API-Key", true),
            ("rootPassword", true),
            ("auth_header", true),
            ("secret_fallbacks", true),
            ("existingSecret", false),
            ("existingCASecret", false),
            ("tlsSecret", false),
            ("secretName", false),
            ("token_endpoint", false),
            ("set_access_token_header", false),
            ("key_id", false),
        ] {
            assert_eq!(is_secret_name(name), expected, "{name}");
        }
    }

    #[test]
    fn a_url_may_have_a_password() {
        for (value, expected) in [
            ("http://u:p@a/", Some("p")),
            ("redis://:p@a:6379/0", Some("p")),
            ("mongodb://u:p@q@a,b:1/db", Some("p@q")),
            ("http://u@a/", None),
            ("http://u:@a/", None),
            ("http://a:80/x@y:z", None),
            ("see http://a and b:c@d", None),
            ("u:p@a", None),
        ] {
            assert_eq!(password_of(value), expected, "{value}");
        }
    }
}
