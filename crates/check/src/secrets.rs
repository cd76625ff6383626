//! Secrets that the files themselves contain.

use super::document::Spot;
use super::finding::Findings;
use super::objects::Objects;
use super::rule::Rule;

/// The ends of secrets' names, in any object.
const SECRETS: [&str; 7] =
    ["secret", "password", "private_key", "secret_key", "api_key", "token", "authorization"];

/// Checks every object of a gateway.
pub(super) fn check(objects: &Objects<'_>, findings: &mut Findings) {
    for object in objects.all() {
        check_texts(object, objects, findings);
    }
    for part in objects.configs().iter().flat_map(|config| {
        [&["deployment", "etcd"][..], &["deployment", "certs"], &["nginx_config", "envs"]]
            .into_iter()
            .filter_map(|path| config.at(path))
    }) {
        check_texts(&part, objects, findings);
    }
}

fn check_texts(object: &Spot<'_>, objects: &Objects<'_>, findings: &mut Findings) {
    let may_replace = objects.replaces_variables(object.file);
    // In config.yaml the gateway looks nothing up: the reference itself would be the secret.
    let in_config = objects.configs().iter().any(|config| config.file == object.file);
    for (name, spot) in object.texts() {
        let value = spot.text().unwrap_or_default();
        // A listed variable may have its value after its name.
        let (name, value) = match value.split_once('=') {
            Some((name, value)) if object.path.ends_with("envs") => (Some(name), value),
            _ => (name, value),
        };
        let name = name.unwrap_or_default().to_ascii_lowercase();
        let of_key_auth = name == "key"
            && ["key-auth.key", "keyAuth.value.key", "adminKey.key"]
                .iter()
                .any(|end| spot.path.ends_with(end));
        let of_proxy = name == "value" && spot.path.ends_with("adminKey.value");
        let is_named_so = SECRETS.iter().any(|ending| name.ends_with(ending));
        // A certificate's key, or that of a client's certificate.
        let is_key = value.contains("-----BEGIN") && value.contains("PRIVATE KEY-----");
        if (is_named_so || is_key || of_key_auth || of_proxy)
            && !value.is_empty()
            && !is_reference(value, in_config, may_replace)
        {
            findings.add(Rule::SecretInClear, &spot, format!("{name} in clear text"));
        }
    }
}

/// Whether a value refers to a secret and does not contain it.
fn is_reference(value: &str, in_config: bool, may_replace: bool) -> bool {
    let lower = value.to_ascii_lowercase();
    let is_looked_up = ["$env://", "$secret://"].iter().any(|prefix| lower.starts_with(prefix));
    is_looked_up && !in_config || may_replace && is_variable(value) || is_of_request(value)
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
