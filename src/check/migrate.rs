//! Our route for one whose function chooses the upstream.
//!
//! What is printed is the shipped standalone file with what the old route says in the
//! place of its examples, so that there is one text of our route and not two.

use std::fmt::Write as _;

use reqwest::Url;

use super::document::Spot;
use super::gateway::Route;
use super::login::LOGIN;
use super::lua;
use crate::upstream::HostName;
use crate::user_upstream::{HostTemplate, Template};

/// The file, and the examples in it.
const SHIPPED: &str = include_str!("../../apisix-conf/standalone/apisix.yaml");
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

/// The route that takes the place of the first whose function chooses the upstream.
pub(super) fn migrate(routes: &[Route<'_>]) -> Option<String> {
    let mut with_choosers = routes.iter().filter(|route| !lua::choosers(route).is_empty());
    let route = with_choosers.next()?;
    let facts = Facts::of(route);
    let mut head = format!(
        "# In place of {} in {}, line {}. Goes to conf/apisix.yaml, beside the config.yaml of\n\
         # apisix-conf/standalone, whose README says what else is needed.\n",
        if route.spot.path.is_empty() { "the route" } else { &route.spot.path },
        route.spot.file,
        route.spot.place.line
    );
    for note in &facts.notes {
        // Writing to a text can't fail.
        let _ = writeln!(head, "#\n# {note}");
    }
    for other in with_choosers {
        let _ = writeln!(head, "#\n# {} has such a function too: check it by itself.", other.spot.path);
    }
    let (_, body) = SHIPPED.split_once(HEAD_END).expect("a test reads the shipped file");
    let mut body =
        body.replace(ISSUER, &facts.issuer).replace(HOST, &facts.host).replace(TEMPLATE, &facts.template);
    body = body.replace(CLIENT_IN_LOGIN, &format!("client_id: {}\n", facts.client));
    body = body.replace(CLIENT_IN_CONF, &format!("\"audience\": [\"{}\"]", facts.client));
    Some(format!("{head}{HEAD_END}{body}"))
}

/// What the old route says that ours says too; where it says nothing, or what can't be
/// taken over, the shipped example and a note.
struct Facts {
    host: String,
    issuer: String,
    client: String,
    template: String,
    notes: Vec<String>,
}

impl Facts {
    fn of(route: &Route<'_>) -> Self {
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
        let function = lua::choosers(route);
        let template = function.iter().find_map(|function| template(function.text()?));
        let template = or_example(template, TEMPLATE, "the name that the function makes was not understood");
        if conf.is_some_and(|conf| conf.text_of("discovery").is_some_and(|url| url.starts_with("http:"))) {
            notes.push(format!(
                "The old route asked Keycloak over http. This one asks {issuer} over https: make that the issuer's\n\
                 # public address, and name a private CA in apisix.ssl.ssl_trusted_certificate and identity.ca_file."
            ));
        }
        notes.push(format!(
            "At Keycloak's client {client}: the redirect URI https://{host}/.apisix/redirect and nothing else,\n\
             # PKCE method S256, and a new secret, in the gateway's environment as KEYCLOAK_CLIENT_SECRET."
        ));
        Self { host, issuer, client, template, notes }
    }
}

/// The one host of the route, or that of its redirect_uri.
fn host(route: &Route<'_>, conf: Option<&Spot<'_>>) -> Option<String> {
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

/// The template of the name that a function puts together: `"code-" .. user.sub .. ".svc"`.
fn template(function: &str) -> Option<String> {
    let literals = literals(function);
    let (host, port) = (0..literals.len()).find_map(|at| concatenated(function, &literals, at))?;
    let of_its_own = || literals.iter().find_map(|literal| literal.text.strip_prefix(':'));
    let template = format!("http://{host}:{}", port.or_else(of_its_own).unwrap_or(PORT));
    Template::parse(&template).is_ok().then_some(template)
}

/// The host, and the port if there is one behind it, where a literal, a claim and perhaps
/// another literal are put together.
fn concatenated<'f>(
    function: &'f str,
    literals: &[Literal<'f>],
    at: usize,
) -> Option<(String, Option<&'f str>)> {
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
    HostTemplate::parse(&host).is_ok().then_some((host, port))
}

/// What stands behind the two dots that put texts together.
fn behind_dots(text: &str) -> Option<&str> {
    Some(text.trim_start().strip_prefix("..")?.trim_start())
}

/// A text in quotes: where it begins and ends, without and with its quotes.
struct Literal<'f> {
    text: &'f str,
    start: usize,
    end: usize,
}

/// The texts in quotes of a function, as far as they are plain.
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
        for (function, expected) in [
            (
                r#"local host = "code-" .. user.sub .. ".code-server.svc" .. ":8443""#,
                Some("http://code-{sub}.code-server.svc:8443"),
            ),
            (
                r#"local h = 'ws-'..claims.preferred_username..'.dev:3000'"#,
                Some("http://ws-{preferred_username}.dev:3000"),
            ),
            (r#"local h = "code-" .. sub"#, Some("http://code-{sub}:8443")),
            (
                r#"log("user: " .. user.sub) local h = "code-" .. user.sub .. suffix"#,
                Some("http://code-{sub}:8443"),
            ),
            (r#"local h = string.format("code-%s", sub)"#, None),
            (r#"local h = "code-"#, None),
            (r#"local h = "Code " .. sub"#, None),
            ("", None),
        ] {
            assert_eq!(template(function).as_deref(), expected, "{function}");
        }
    }
}
