//! Our route, in place of a route whose function chooses the upstream.
//!
//! It prints the shipped standalone file with the old route's values instead of the
//! examples, so there is only one text of our route.

mod lua_tokens;
mod workspace_name;

use std::fmt::Write as _;

use workspace_name::{PORT, WorkspaceName, workspace_name};

use super::document::Spot;
use super::login::LOGIN;
use super::lua;
use super::report::shown;
use super::route::GatewayRoute;
use apisix_plugin_runner::upstream::HostName;
use kube_coders_identity::Url;

/// The file, and the examples in it.
const SHIPPED: &str = include_str!("../../../apisix-conf/standalone/apisix.yaml");
const HOST: &str = "coders.example.com";
const ISSUER: &str = "https://key.example.com/realms/dev";
const CLIENT_IN_LOGIN: &str = "client_id: apisix\n";
const CLIENT_IN_CONF: &str = "\"audience\": [\"apisix\"]";
const TEMPLATE: &str = "http://code-{sub}.code-server.svc.cluster.local:8443";
/// What the file says above its first object, which is replaced.
const HEAD_END: &str = "\nservices:\n";

const WELL_KNOWN: &str = "/.well-known/openid-configuration";

/// Why there is no route in place of another.
pub(super) enum MigrationError {
    /// No route has a function that chooses the upstream.
    Nothing,
    NameNotUnderstood {
        /// The function's file and line.
        place: String,
        reason: String,
    },
}

/// The route that replaces the first route whose function chooses the upstream.
///
/// # Errors
///
/// No route has such a function, or the name that it makes is not understood.
pub(super) fn migrated(routes: &[GatewayRoute<'_>]) -> Result<String, MigrationError> {
    let mut with_choosers = routes.iter().filter(|route| !lua::choosers(route).is_empty());
    let route = with_choosers.next().ok_or(MigrationError::Nothing)?;
    let facts = Facts::of(route)?;
    let mut head = format!(
        "# Replaces {} in {}, line {}. Save this as conf/apisix.yaml, and use the config.yaml of\n\
         # apisix-conf/standalone. The README there lists what else is needed. apisix-conf has the same route for the\n\
         # Admin API, the ingress controller and Helm.\n",
        if route.spot.path.is_empty() { "the route" } else { &route.spot.path },
        shown(route.spot.file),
        route.spot.place_in_file().line
    );
    let others = with_choosers.map(|other| {
        format!("{} has such a function too: migrate it by itself, in a file of its own.", other.spot.path)
    });
    for note in facts.notes.iter().cloned().chain(others) {
        // Writing to a text can't fail.
        let _ = writeln!(head, "#\n# {}", shown(&note));
    }
    let (_, body) = SHIPPED.split_once(HEAD_END).expect("a test reads the shipped file");
    let mut body =
        body.replace(ISSUER, &facts.issuer).replace(HOST, &facts.host).replace(TEMPLATE, &facts.template);
    body = body.replace(CLIENT_IN_LOGIN, &format!("client_id: {}\n", facts.client));
    body = body.replace(CLIENT_IN_CONF, &format!("\"audience\": [\"{}\"]", facts.client));
    Ok(format!("{head}{HEAD_END}{body}"))
}

/// The values of the old route that ours needs. If a value is missing or can't be taken
/// over, it is the shipped example, with a note.
struct Facts {
    host: String,
    issuer: String,
    client: String,
    template: String,
    notes: Vec<String>,
}

impl Facts {
    fn of(route: &GatewayRoute<'_>) -> Result<Self, MigrationError> {
        let conf = route.plugin(LOGIN).map(|plugin| &plugin.conf);
        let mut notes = Vec::new();
        let mut or_example = |found: Option<String>, example: &str, what: &str| {
            found.unwrap_or_else(|| {
                notes.push(format!("Replace {example}: {what}."));
                example.to_owned()
            })
        };
        let host =
            or_example(host(route, conf), HOST, "the route had no single host of which developers know");
        let issuer = or_example(
            conf.and_then(issuer),
            ISSUER,
            "the route had no discovery from which to take an issuer",
        );
        let client = or_example(conf.and_then(client), "apisix", "the route had no client_id in clear text");
        let name = name(route)?;
        let template = format!("http://{}:{}", name.host, name.port.as_deref().unwrap_or(PORT));
        if name.port.is_none() {
            notes.push(format!(
                "Replace the port {PORT}: the function does not say it in a way that is understood here."
            ));
        }
        for claim in name.claims.iter().filter(|claim| *claim != "sub") {
            notes.push(format!(
                "Names contain the claim {claim}. A value that is not a lower-case DNS label gets a digest, so that user's \
                 workspace has another name than before: kube-coders name VALUE prints it."
            ));
        }
        if conf.is_some_and(|conf| conf.text_of("discovery").is_some_and(|url| url.starts_with("http:"))) {
            notes.push(format!(
                "The old route asked Keycloak over http. This one asks {issuer} over https: make that the \
                 issuer's public address, and name a private CA in apisix.ssl.ssl_trusted_certificate and identity.ca_file."
            ));
        }
        notes.push(format!(
            "At Keycloak's client {client}: the redirect URI https://{host}/.apisix/redirect and nothing else, PKCE \
             method S256, and a new secret, in the gateway's environment as KEYCLOAK_CLIENT_SECRET."
        ));
        notes.extend(left_behind(route));
        Ok(Self { host, issuer, client, template, notes })
    }
}

/// The name that the route's functions make: a template that is only nearly right sends users
/// to each other's workspaces.
fn name(route: &GatewayRoute<'_>) -> Result<WorkspaceName, MigrationError> {
    let not_understood = |spot: &Spot<'_>, reason: String| {
        let place = format!("{}, line {}", shown(spot.file), spot.place_in_file().line);
        MigrationError::NameNotUnderstood { place, reason }
    };
    let mut found = None;
    for function in lua::choosers(route) {
        let name = workspace_name(function.text().unwrap_or_default());
        match name.map_err(|reason| not_understood(&function, reason))? {
            Some(name) if found.as_ref().is_some_and(|found| *found != name) => {
                return Err(not_understood(&function, "another function makes another name".to_owned()));
            }
            Some(name) => found = Some(name),
            None => {}
        }
    }
    found.ok_or_else(|| {
        let reason = "it puts no name together from texts and claims with `..` or string.format";
        not_understood(lua::choosers(route).first().unwrap_or(&route.spot), reason.to_owned())
    })
}

/// The parts of the old route that ours does not have. Only the route's owner knows their
/// purpose.
fn left_behind(route: &GatewayRoute<'_>) -> Vec<String> {
    let replaced = ["openid-connect", "proxy-rewrite", "serverless-pre-function", "serverless-post-function"];
    let plugins = route.plugins.iter().filter(|plugin| !replaced.contains(&plugin.name));
    let mut notes: Vec<_> =
        plugins.map(|plugin| format!("Not taken over: the plugin {}.", plugin.name)).collect();
    if route.paths.iter().any(|path| *path != "/*") {
        notes.push(format!(
            "The old route was for {} only; this one is for every path.",
            route.paths.join(", ")
        ));
    }
    for condition in route.conditions.iter().chain(&route.narrowed) {
        notes.push(format!("Not taken over: the condition {}.", condition.path));
    }
    let login = route.plugin(LOGIN).map(|plugin| &plugin.conf);
    for name in ["required_scopes", "claim_schema", "claim_validator", "scope"] {
        let says_more =
            |spot: &Spot<'_>| name != "scope" || !matches!(spot.text(), Some("openid" | "openid profile"));
        if login.and_then(|login| login.get(name)).is_some_and(|spot| says_more(&spot)) {
            notes.push(format!(
                "Not taken over: {name} of openid-connect. The conf's allow says who is let in."
            ));
        }
    }
    notes
}

/// The one host of the route, or that of its redirect_uri.
fn host(route: &GatewayRoute<'_>, conf: Option<&Spot<'_>>) -> Option<String> {
    let found = match &route.hosts[..] {
        [host] => (*host).to_owned(),
        _ => Url::parse(conf?.text_of("redirect_uri")?).ok()?.host_str()?.to_owned(),
    };
    found.parse::<HostName>().ok().map(|host| host.to_string())
}

/// The issuer whose discovery document this is, always over TLS.
fn issuer(conf: &Spot<'_>) -> Option<String> {
    let mut url = Url::parse(conf.text_of("discovery")?.strip_suffix(WELL_KNOWN)?).ok()?;
    if url.scheme() == "http" {
        url.set_scheme("https").ok()?;
    }
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b":/.-_~%".contains(&byte);
    let text = url.as_str().trim_end_matches('/').to_owned();
    (url.scheme() == "https" && text.bytes().all(is_plain)).then_some(text)
}

fn client(conf: &Spot<'_>) -> Option<String> {
    let client = conf.text_of("client_id")?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let starts_plainly = client.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
    (starts_plainly && client.bytes().all(is_plain)).then(|| client.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_file_has_what_is_replaced() {
        let (head, body) = SHIPPED.split_once(HEAD_END).unwrap();
        assert!(head.lines().all(|line| line.is_empty() || line.starts_with('#')), "{head}");
        for (example, times) in [(CLIENT_IN_LOGIN, 2), (CLIENT_IN_CONF, 1), (TEMPLATE, 1)] {
            assert_eq!(body.matches(example).count(), times, "{example}");
        }
        assert!(body.matches(HOST).count() > 5 && body.matches(ISSUER).count() == 3);
        assert_eq!(body.matches("key.example.com").count(), 3, "Keycloak is named only as the issuer");
    }
}
