//! Secrets that stand in the files themselves, and references to secrets elsewhere.

use super::document::Spot;
use super::finding::Findings;
use super::gateway::Objects;
use super::rule::Rule;

/// What a secret's name ends with, whatever plugin it belongs to.
const SECRETS: [&str; 5] = ["secret", "password", "private_key", "secret_key", "api_key"];

/// How a value refers to the gateway's environment.
const ENVIRONMENT: &str = "$env://";

/// Checks every plugin's conf and every certificate.
pub(super) fn check(objects: &Objects<'_>, findings: &mut Findings) {
    for object in objects.with_plugins() {
        for (name, spot) in object.texts() {
            let Some(name) = name.map(str::to_ascii_lowercase) else { continue };
            let value = spot.text().unwrap_or_default();
            let is_named_so = SECRETS.iter().any(|ending| name.ends_with(ending));
            // A certificate's key, or that of a client's certificate.
            let is_key = value.contains("-----BEGIN") && value.contains("PRIVATE KEY-----");
            if (is_named_so || is_key) && !is_reference(value) && !value.is_empty() {
                findings.add(Rule::SecretInClear, &spot, format!("{name} in clear text"));
            }
        }
    }
}

/// Whether a value says where the secret is, and not what it is: the gateway looks it up,
/// or its start replaces a variable.
pub(super) fn is_reference(value: &str) -> bool {
    let lower = value.to_ascii_lowercase();
    [ENVIRONMENT, "$secret://"].iter().any(|prefix| lower.starts_with(prefix))
        || value.starts_with("${{") && value.ends_with("}}")
}

/// The variables of the gateway's environment that the files refer to.
pub(super) fn variables<'d>(objects: &Objects<'d>) -> Vec<(&'d str, Spot<'d>)> {
    let mut found = Vec::new();
    for object in objects.with_plugins() {
        for (_, spot) in object.texts() {
            let text = spot.text().unwrap_or_default();
            if text.get(..ENVIRONMENT.len()).is_some_and(|start| start.eq_ignore_ascii_case(ENVIRONMENT)) {
                // A part of a variable that holds JSON stands behind a slash.
                let name = text[ENVIRONMENT.len()..].split('/').next().unwrap_or_default();
                found.push((name, spot));
            }
        }
    }
    found
}
