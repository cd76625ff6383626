//! Our route, in place of a route whose function chooses the upstream.
//!
//! It prints the shipped standalone file with the old route's values instead of the
//! examples, so there is only one text of our route.

use std::fmt::Write as _;

use super::document::Spot;
use super::login::LOGIN;
use super::lua;
use super::report::shown;
use super::route::GatewayRoute;
use apisix_plugin_runner::upstream::HostName;
use kube_coders_identity::{HostTemplate, Template, Url};

/// The file, and the examples in it.
const SHIPPED: &str = include_str!("../../../apisix-conf/standalone/apisix.yaml");
const HOST: &str = "coders.example.com";
const ISSUER: &str = "https://key.example.com/realms/dev";
const CLIENT_IN_LOGIN: &str = "client_id: apisix\n";
const CLIENT_IN_CONF: &str = "\"audience\": [\"apisix\"]";
const TEMPLATE: &str = "http://code-{sub}.code-server.svc.cluster.local:8443";
/// What the file says above its first object, which is replaced.
const HEAD_END: &str = "\nservices:\n";

/// The port of code-server's service in the original's charts.
const PORT: &str = "8443";

const WELL_KNOWN: &str = "/.well-known/openid-configuration";

/// The route that replaces the first route whose function chooses the upstream.
pub(super) fn migrated(routes: &[GatewayRoute<'_>]) -> Option<String> {
    let mut with_choosers = routes.iter().filter(|route| !lua::choosers(route).is_empty());
    let route = with_choosers.next()?;
    let facts = Facts::of(route);
    let mut head = format!(
        "# In place of {} in {}, line {}. Goes to conf/apisix.yaml, beside the config.yaml of\n\
         # apisix-conf/standalone, whose README says what else is needed. The same for the Admin API, the ingress\n\
         # controller and Helm stands beside it in apisix-conf.\n",
        if route.spot.path.is_empty() { "the route" } else { &route.spot.path },
        shown(route.spot.file),
        route.spot.place.line
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
    Some(format!("{head}{HEAD_END}{body}"))
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
    fn of(route: &GatewayRoute<'_>) -> Self {
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
        let found = lua::choosers(route).iter().find_map(|function| template(function.text()?));
        let template = or_example(
            found.as_ref().map(|found| format!("http://{}:{}", found.host, found.port.unwrap_or(PORT))),
            TEMPLATE,
            "the name that the function makes was not understood",
        );
        if let Some(found) = &found {
            notes.extend(found.notes());
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
        Self { host, issuer, client, template, notes }
    }
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

/// The name that a function puts together: `"code-" .. user.sub .. ".svc"`.
struct FoundFunction<'f> {
    host: String,
    claim: &'f str,
    port: Option<&'f str>,
}

impl FoundFunction<'_> {
    fn notes(&self) -> impl Iterator<Item = String> {
        let port = self.port.is_none().then(|| {
            format!("Replace the port {PORT}: the function does not say it in a way that is understood here.")
        });
        let claim = (self.claim != "sub").then(|| {
            format!(
                "Names are made of {}. Where a value is no lower-case label, a digest stands behind it, so such a \
                 workspace has another name than before: kube-coders name VALUE.",
                self.claim
            )
        });
        [port, claim].into_iter().flatten()
    }
}

fn template(function: &str) -> Option<FoundFunction<'_>> {
    let literals = literals(function);
    let mut found = (0..literals.len()).find_map(|at| concatenated(function, &literals, at))?;
    let of_its_own = || literals.iter().find_map(|literal| literal.text.strip_prefix(':'));
    found.port = found.port.or_else(of_its_own).or_else(|| number_of_port(function));
    let port = found.port.unwrap_or(PORT);
    Template::parse(&format!("http://{}:{port}", found.host)).is_ok().then_some(found)
}

/// The number in `port = 8080`.
fn number_of_port(function: &str) -> Option<&str> {
    function.match_indices("port").find_map(|(at, word)| {
        let rest = function[at + word.len()..].trim_start().strip_prefix('=')?.trim_start();
        let length = rest.find(|character: char| !character.is_ascii_digit()).unwrap_or(rest.len());
        (length > 0).then(|| &rest[..length])
    })
}

/// The host, and the port if one follows it, if a literal, a claim and perhaps another
/// literal are put together.
fn concatenated<'f>(function: &'f str, literals: &[Literal<'f>], at: usize) -> Option<FoundFunction<'f>> {
    let before = &literals[at];
    let rest = behind_dots(&function[before.end..])?;
    let is_in_name = |character: char| character.is_ascii_alphanumeric() || "._".contains(character);
    let length = rest.find(|character| !is_in_name(character)).unwrap_or(rest.len());
    let name = rest[..length].trim_end_matches('.');
    let claim = name.rsplit('.').next()?;
    let after = behind_dots(&rest[name.len()..]).and_then(|text| {
        let next = literals.get(at + 1)?;
        (function.len() - text.len() + 1 == next.start).then_some(next.text)
    });
    let after = after.unwrap_or_default();
    let (after, port) = after.split_once(':').map_or((after, None), |(after, port)| (after, Some(port)));
    let host = format!("{}{{{claim}}}{after}", before.text);
    HostTemplate::parse(&host).is_ok().then_some(FoundFunction { host, claim, port })
}

/// The text after the two dots that concatenate.
fn behind_dots(text: &str) -> Option<&str> {
    Some(text.trim_start().strip_prefix("..")?.trim_start())
}

/// A text in quotes: its start and end, without and with the quotes.
struct Literal<'f> {
    text: &'f str,
    start: usize,
    end: usize,
}

/// The plain texts in quotes of a function.
fn literals(function: &str) -> Vec<Literal<'_>> {
    let mut literals = Vec::new();
    let mut from = 0;
    while let Some(at) = function[from..].find(['"', '\'']) {
        let start = from + at + 1;
        let quote = &function[start - 1..start];
        let Some(length) = function[start..].find(quote) else { break };
        literals.push(Literal { text: &function[start..start + length], start, end: start + length + 1 });
        from = start + length + 1;
    }
    literals
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

    #[test]
    fn a_template_is_read_out_of_a_function() {
        for (function, host, port) in [
            (
                r#"local host = "code-" .. user.sub .. ".code-server.svc" .. ":8443""#,
                "code-{sub}.code-server.svc",
                Some("8443"),
            ),
            (
                r#"local h = 'ws-'..claims.preferred_username..'.dev:3000'"#,
                "ws-{preferred_username}.dev",
                Some("3000"),
            ),
            (r#"local h = "code-" .. sub"#, "code-{sub}", None),
            (r#"log("user: " .. user.sub) local h = "code-" .. user.sub .. suffix"#, "code-{sub}", None),
            (r#"nodes = {{host = "code-" .. t.sub .. ".svc", port = 8080}}"#, "code-{sub}.svc", Some("8080")),
            (r#"local port = 8080 local h = "code-" .. sub"#, "code-{sub}", Some("8080")),
        ] {
            let found = template(function).unwrap();
            assert_eq!((&*found.host, found.port), (host, port), "{function}");
        }
        for function in [
            r#"local h = string.format("code-%s", sub)"#,
            r#"local h = "code-""#,
            r#"local h = "Code " .. sub"#,
            "",
        ] {
            assert!(template(function).is_none(), "{function}");
        }
    }
}
